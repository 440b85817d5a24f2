//! Waiting for a condition, with a limit. No test sleeps for a fixed time and hopes.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// Between two looks. A look may start a small process, so not less; a person does not notice it.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `check` gives something, and returns that. Panics with `what` once the limit has
/// passed; a look that hangs is cut off by the same limit.
pub async fn eventually<T>(
    limit: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    eventually_ok(limit, what, async || check().await.ok_or("nothing")).await
}

/// The same for a look that tells what it saw instead; the panic tells what was seen last.
pub async fn eventually_ok<T, E: Debug>(
    limit: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + limit;
    let mut last = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match timeout(left, check()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(seen)) => last = Some(seen),
            Err(_) => {}
        }
        // A look that answers at once is never cut off, so the clock is asked as well.
        assert!(
            Instant::now() < end,
            "not within {limit:?}: {what}; seen last: {last:?}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}
