// The page is complete without this; with it, what moves is fetched anew.
"use strict";
const live = document.getElementById("live");
async function refresh() {
  // Not under somebody's finger, and not where nobody looks.
  if (document.hidden || live.contains(document.activeElement)) return;
  try {
    const answer = await fetch("/live", { credentials: "same-origin" });
    if (answer.ok) live.innerHTML = await answer.text();
    document.body.classList.toggle("stale", !answer.ok);
  } catch {
    document.body.classList.add("stale");
  }
}
if (live) setInterval(refresh, 3000);
