//! Chance that can be had again.

/// A seed that is printed, and can be given: `WDT_TEST_SEED`.
pub fn chance() -> fastrand::Rng {
    let given = std::env::var("WDT_TEST_SEED").ok();
    let seed = given.map_or_else(
        || fastrand::u64(..),
        |seed| seed.parse().expect("WDT_TEST_SEED is a number"),
    );
    println!("WDT_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
