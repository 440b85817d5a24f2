//! The desk explored: the real rules, between models of a ledger, a broker and a gateway.
//!
//! Each choice (what happens next, how the gateway answers, what the broker takes) is asked of one
//! [`choices::Choices`], so a course is a list of numbers: chance draws it, a search enumerates it,
//! and a failure is replayed from it with every step told.
//!
//! Checked at every step are the laws of the contract, at the end that everything was told and
//! acknowledged and that nothing is left in hand: [`laws`].

// What the tests share knows the rules by the worker's name.
extern crate rules_alone as wdt_cancel_worker;

mod broker;
mod choices;
mod config;
mod gateway;
mod laws;
#[path = "../support/ledger.rs"]
mod ledger;
mod search;
mod shared;
mod world;

use std::collections::HashSet;
use std::time::Instant;

use config::Config;

const NOON: &str = "2026-11-23T12:00:00Z";
/// Distinct states are counted in each course that has such a seed.
const COUNTED_EVERY: u64 = 8;

fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(number) => number.parse().expect("a number"),
        Err(_) => otherwise,
    }
}

/// Courses by chance, each with its own configuration and its own faults. `MODEL_RUNS=2000000`
/// explores for long, `MODEL_SEED` from another seed on.
fn explore_by_chance(what: &str, workers: usize, runs: u64) {
    let (first, runs) = (number("MODEL_SEED", 0), number("MODEL_RUNS", runs));
    let began = Instant::now();
    let (mut steps, mut states) = (0, HashSet::new());
    for seed in first..first + runs {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = config::drawn(workers, &mut rng);
        // Telling states apart takes longer than the steps, so it is done in some courses.
        let counted = (seed % COUNTED_EVERY == 0).then_some(&mut states);
        steps += search::by_chance(&config, rng, counted);
    }
    println!(
        "{what}: {steps} steps, {runs} courses ({} distinct states in every {COUNTED_EVERY}th), seeds {first} to {}, in {:.1} s; no law was broken",
        states.len(),
        first + runs - 1,
        began.elapsed().as_secs_f64()
    );
}

#[test]
fn by_chance() {
    explore_by_chance("by chance", 1, 24_000);
}

#[test]
fn two_workers_by_chance() {
    explore_by_chance("two workers by chance", 2, 12_000);
}

/// `MODEL_DEVIATIONS=1` searches one deviation more in each configuration.
fn explore_small(what: &str, small: Vec<(&str, usize, Config)>) {
    let more = number("MODEL_DEVIATIONS", 0) as usize;
    let mut all = search::Seen::default();
    let all_began = Instant::now();
    for (name, deviations, config) in small {
        let began = Instant::now();
        let seen = search::every_course(&config, deviations + more);
        println!(
            "{what}: {name}: {} distinct states, {} steps, {} courses with at most {} deviations, in {:.1} s; no law was broken",
            seen.states,
            seen.steps,
            seen.courses,
            deviations + more,
            began.elapsed().as_secs_f64()
        );
        all.states += seen.states;
        all.steps += seen.steps;
        all.courses += seen.courses;
    }
    println!(
        "{what}: every course with few deviations: {} distinct states, {} steps, {} courses, no seed, in {:.1} s; no law was broken",
        all.states,
        all.steps,
        all.courses,
        all_began.elapsed().as_secs_f64()
    );
}

#[test]
fn every_course_with_few_deviations() {
    explore_small("one worker", config::small());
}

#[test]
fn every_course_of_two_workers_with_few_deviations() {
    explore_small("two workers", config::small_shared());
}
