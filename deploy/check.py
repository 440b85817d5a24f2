"""What deploy/check.sh asks of the alerts and the dashboard. Standard library and PyYAML."""

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

ALERTS = "deploy/prometheus/alerts.yaml"
TESTS = "deploy/prometheus/alerts.test.yaml"
DASHBOARD = "deploy/grafana/wdt-cancel-worker.json"
# Empty as long as nothing is wrong; of the others each has data when all that check.sh sent is done.
EMPTY_WHEN_WELL = {"Checks that are not ok", "Accounts left alone"}
# A scrape each second; the last results wait for one.
DATA_LIMIT_SECONDS = 45


def load(path):
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def anchors(path):
    """The headings of a page, as the anchors that they become."""
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"^```.*?^```$", "", file.read(), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def runbooks():
    """Every alert has its paragraph, its severity, and a test in which it fires and one in which not."""
    wrong = []
    fires, quiet = set(), set()
    for test in load(TESTS)["tests"]:
        for case in test["alert_rule_test"]:
            (fires if case.get("exp_alerts") else quiet).add(case["alertname"])
    rules = [rule for group in load(ALERTS)["groups"] for rule in group["rules"]]
    for rule in rules:
        name = rule["alert"]
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        if anchor != name.lower() or anchor not in anchors(page):
            wrong.append(f"{name}: its runbook {page}#{anchor} is not a heading of its name")
        if rule["labels"]["severity"] not in ("critical", "warning"):
            wrong.append(f"{name}: severity")
        wrong += [f"{name}: no test in which it fires"] * (name not in fires)
        wrong += [f"{name}: no test in which it is quiet"] * (name not in quiet)
    names = {rule["alert"].lower() for rule in rules}
    lost = [a for a in anchors("docs/OPERATIONS.md") if a.startswith("wdt") and a not in names]
    wrong += [f"docs/OPERATIONS.md: {a} is no alert" for a in lost if "-" not in a]
    return wrong, f"{len(rules)} alerts, each with a paragraph and two tests"


def ask(prometheus, expression):
    """The series that a query has now; an error is told in Prometheus's words."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{expression}\n  {json.load(error)['error']}")


def dashboard(prometheus):
    """Every panel's queries are understood, and those that should have data have some."""
    with open(DASHBOARD, encoding="utf-8") as file:
        panels = [p for p in json.load(file)["panels"] if p["type"] != "row"]
    end = time.monotonic() + DATA_LIMIT_SECONDS
    queries = 0
    wrong = []
    for panel in panels:
        for target in panel["targets"]:
            queries += 1
            expression = target["expr"]
            # As Grafana fills them in; the counts of the whole run are of interest.
            for name, value in (("instance", ".*"), ("account", ".*"), ("__rate_interval", "5m")):
                expression = expression.replace(f"${name}", value)
            while not ask(prometheus, expression):
                if panel["title"] in EMPTY_WHEN_WELL:
                    break
                if time.monotonic() > end:
                    wrong.append(f"{panel['title']}: no data for {expression}")
                    break
                time.sleep(0.5)
    return wrong, f"{len(panels)} panels, {queries} queries"


def alerts(prometheus):
    """Prometheus has the rules, evaluates them, and of a worker that is well none fires."""
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    wrong = [f"{r['name']}: {r['lastError']}" for r in rules if r["health"] == "err"]
    critical = [r for r in rules if r["state"] == "firing" and r["labels"]["severity"] == "critical"]
    wrong += [f"{rule['name']} fires" for rule in critical]
    return wrong, f"{len(rules)} rules are loaded"


def translation():
    """The Chinese page has the sections, rows, commands and names of the English one, in sequence."""
    pages = []
    for path in ("README.md", "README.zh-CN.md"):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        blocks = re.findall(r"^```.*?^```$", text, flags=re.M | re.S)
        # What is said in comments and in the place of an account's own is translated.
        code = [re.sub(r"#.*|= \"(your|你的) .*", "", line).strip() for b in blocks for line in b.split("\n")]
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        lines = [line for line in prose.split("\n") if line and not line.startswith("[")]
        pages.append((code, [(re.match(r"[#|-]*", l)[0], sorted(re.findall(r"`[^`]+`", l))) for l in lines]))
    (code, lines), (code_zh, lines_zh) = pages
    wrong = [f"README.zh-CN.md: {b!r}, for {a!r}" for a, b in zip(code, code_zh) if a != b]
    wrong += [f"README.zh-CN.md: {b}, for {a}" for a, b in zip(lines, lines_zh) if a != b]
    wrong += ["README.zh-CN.md: another number of lines"] * (len(lines) != len(lines_zh))
    return wrong, f"{len(lines)} paragraphs and rows in both languages"


def main():
    what, *rest = sys.argv[1:]
    wrong, seen = {
        "runbooks": runbooks,
        "translation": translation,
        "dashboard": dashboard,
        "alerts": alerts,
    }[what](*rest)
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(f"   {seen}")


main()
