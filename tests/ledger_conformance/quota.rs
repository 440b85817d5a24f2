//! The minute and the lines of an account belong to all its workers together.

use std::time::Duration;

use tokio::time::Instant;
use wdt_cancel_worker::rules::desk::OrderState;

use super::seat::{LANE, Seating, Sending, Store, order};
use super::support::eventually::eventually;
use super::support::scene::LATER;

fn seating(calls_per_minute: u32, concurrency: u32) -> Seating {
    Seating {
        calls_per_minute,
        concurrency,
        ..Seating::default()
    }
}

#[tokio::test]
async fn no_more_calls_fly_at_once_than_may_whoever_makes_them() {
    let store = Store::shared().await;
    let mut one = store.seat_with(seating(0, 2)).await;
    let mut two = store.seat_with(seating(0, 2)).await;
    let first = one.ask().await.expect("a line is free");
    let second = two.ask().await.expect("a line is free");
    assert!(one.ask().await.is_none(), "both lines are taken");
    assert!(two.ask().await.is_none(), "both lines are taken");
    // A list finds none either, and is not recorded.
    let (_, fence) = one.take("c", "QC1").await;
    let row = order("QC1", OrderState::Sent, fence);
    let sending = one.send(vec![row.clone()]).await;
    assert!(matches!(sending, Sending::NoPlace), "{sending:?}");
    assert_eq!(one.take("c", "QC1").await.0, None);

    two.ledger.call_ended(second);
    // The other one asked before, and might still want it.
    let third = eventually(LATER, "the line is free", async || two.ask().await).await;
    one.ledger.call_ended(first);
    two.ledger.call_ended(third);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_worker_that_always_wants_the_line_does_not_keep_the_other_from_it() {
    const ENOUGH: usize = 20;
    let store = Store::shared().await;
    let mut greedy = Vec::new();
    for _ in 0..2 {
        let mut seat = store.seat_with(seating(0, 1)).await;
        greedy.push(tokio::spawn(async move {
            let mut granted = Vec::new();
            while granted.len() < ENOUGH {
                if let Some(leave) = seat.ask().await {
                    granted.push(Instant::now());
                    seat.ledger.call_ended(leave);
                }
            }
            seat.close().await;
            granted
        }));
    }
    let one = greedy.remove(0).await.unwrap();
    let two = greedy.remove(0).await.unwrap();
    // By the time that one has all of its calls, the other has its share.
    let (first, other) = if one.last() < two.last() {
        (&one, &two)
    } else {
        (&two, &one)
    };
    let end = first.last().unwrap();
    let share = other.iter().filter(|at| *at < end).count();
    assert!(share >= ENOUGH / 4, "{share} of {ENOUGH}");
}

#[tokio::test]
async fn the_minute_is_one_for_all_half_of_it_at_once_and_the_rest_spread() {
    let store = Store::shared().await;
    let mut seats = [
        store.seat_with(seating(20, 64)).await,
        store.seat_with(seating(20, 64)).await,
    ];
    let began = Instant::now();
    let mut granted = 0;
    while granted < 14 {
        for seat in &mut seats {
            if let Some(leave) = seat.ask().await {
                granted += 1;
                seat.ledger.call_ended(leave);
            }
        }
    }
    // 10 at once, then one every 3 s.
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(9), "{took:?}");
    for seat in seats {
        seat.close().await;
    }
}

#[tokio::test]
async fn a_call_counts_for_a_minute_after_it_ended() {
    let store = Store::shared().await;
    let mut seat = store.seat_with(seating(1, 4)).await;
    let leave = seat.ask().await.expect("the first of the minute");
    seat.ledger.call_ended(leave);
    assert!(seat.ask().await.is_none());
    let database = store.database();
    let passed = |seconds: i64| {
        format!("UPDATE wdt.calls SET counts_until = counts_until - {seconds} * interval '1 s'")
    };
    database.run(&passed(50)).await;
    assert!(seat.ask().await.is_none());
    database.run(&passed(11)).await;
    assert!(seat.ask().await.is_some());
    seat.close().await;
}

#[tokio::test]
async fn a_dead_workers_calls_are_over_when_its_lease_would_be_and_count_a_minute_longer() {
    let store = Store::shared().await;
    let mut one = store.seat_with(seating(1, 1)).await;
    drop(one.ask().await.expect("the line is free"));
    super::shared::die(store.database(), one).await;
    let database = store.database();
    let lines = "SELECT count(*) FROM wdt.calls WHERE flies_until > clock_timestamp()
                 AND counts_until - flies_until = interval '1 minute'";
    assert_eq!(database.number(lines).await, 1);
    let mut two = store.seat_with(seating(1, 1)).await;
    assert!(two.ask().await.is_none(), "the line is taken");
    database
        .run("UPDATE wdt.calls SET flies_until = clock_timestamp()")
        .await;
    assert!(two.ask().await.is_none(), "it still counts");
    database
        .run("UPDATE wdt.calls SET counts_until = clock_timestamp()")
        .await;
    assert!(two.ask().await.is_some());
    two.close().await;
}

#[tokio::test]
async fn what_one_worker_hears_of_an_account_keeps_the_others_from_calling() {
    let store = Store::shared().await;
    let mut one = store.seat_with(seating(0, 8)).await;
    let mut two = store.seat_with(seating(0, 8)).await;
    one.ledger.quiet(LANE, Duration::from_secs(3600));
    one.record(Vec::new(), Vec::new()).await;
    assert!(two.ask().await.is_none(), "it is left alone");
    let database = store.database();
    database
        .run("UPDATE wdt.accounts SET quiet_until = '-infinity'")
        .await;
    let leave = eventually(LATER, "the time is over", async || two.ask().await).await;
    two.ledger.call_ended(leave);
    // Wrong settings: one call at a time, and slowly.
    two.ledger.careful(LANE);
    two.record(Vec::new(), Vec::new()).await;
    assert!(one.ask().await.is_none(), "there was a call a moment ago");
    database
        .run("UPDATE wdt.accounts SET called_at = called_at - interval '8 s'")
        .await;
    let leave = eventually(LATER, "one finds out", async || one.ask().await).await;
    database
        .run("UPDATE wdt.accounts SET called_at = called_at - interval '8 s'")
        .await;
    assert!(two.ask().await.is_none(), "one at a time");
    one.ledger.call_ended(leave);
    one.close().await;
    two.close().await;
}
