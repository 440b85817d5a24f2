//! What only a shared ledger does: orders that several workers want.

use std::time::Duration;

use wdt_cancel_worker::rules::admit::Fingerprint;
use wdt_cancel_worker::rules::desk::{Fence, Holding, LaneId, OrderState};
use wdt_cancel_worker::rules::order::{Ending, OrderNo, ReasonCode};

use super::seat::{LANE, LIST, Seat, Sending, Store, ended, order, result, told};
use super::support::eventually::eventually_ok;
use super::support::postgres::Database;
use super::support::scene::LATER;

/// Ends every lease, as if all workers had been silent for long.
async fn end_leases(database: &Database) {
    database
        .run("UPDATE wdt.workers SET lease_until = clock_timestamp() - interval '1 s'")
        .await;
}

/// The worker dies, and its lease is over. It must be the only one.
pub async fn die(database: &Database, seat: Seat) {
    // Its thread goes on until its connections are gone for good, and then the lease is over.
    let name = database.name().to_owned();
    database
        .order(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        .await;
    let kill =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    database.order(&kill).await;
    seat.close().await;
    database
        .order(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        .await;
    end_leases(database).await;
}

fn is_elsewhere(holding: &Holding) -> bool {
    matches!(holding, Holding::Elsewhere(..))
}

fn no(order: &str) -> OrderNo {
    OrderNo::new(order).unwrap()
}

#[tokio::test]
async fn an_order_is_in_one_workers_hands_until_it_lets_go() {
    let store = Store::shared().await;
    let (mut one, mut two) = (store.seat().await, store.seat().await);
    let (_, fence) = one.take("c", "QC1").await;
    let claimed = two.claim("d", &["QC1", "QC2"]).await;
    assert!(is_elsewhere(&claimed.orders[0].1), "{claimed:?}");
    assert!(!is_elsewhere(&claimed.orders[1].1), "{claimed:?}");
    // What is recorded meanwhile comes along.
    one.record(vec![ended("QC1", fence)], Vec::new()).await;
    let claimed = two.claim("d", &["QC1"]).await;
    let Holding::Elsewhere(Some(row), left) = &claimed.orders[0].1 else {
        panic!("{claimed:?}");
    };
    assert_eq!(*row, told(ended("QC1", fence)));
    assert!(!left.is_zero());

    // An older fence frees nothing.
    let (_, latest) = one.take("c", "QC1").await;
    assert_ne!(latest, fence);
    one.ledger.release(vec![(LANE, no("QC1"), fence)]);
    one.claim("after-the-release", &[]).await;
    one.record(Vec::new(), Vec::new()).await;
    assert!(is_elsewhere(&two.claim("d", &["QC1"]).await.orders[0].1));
    one.ledger.release(vec![(LANE, no("QC1"), latest)]);
    one.record(Vec::new(), Vec::new()).await;
    assert_eq!(
        two.take("d", "QC1").await.0,
        Some(told(ended("QC1", fence)))
    );
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_worker_that_stops_lets_go_of_everything() {
    let store = Store::shared().await;
    let (mut one, mut two) = (store.seat().await, store.seat().await);
    one.take("c", "QC1").await;
    one.close().await;
    two.take("d", "QC1").await;
    two.close().await;
    assert_eq!(
        store
            .database()
            .number("SELECT count(*) FROM wdt.workers")
            .await,
        0
    );
    assert_eq!(
        store
            .database()
            .number("SELECT count(*) FROM wdt.holds")
            .await,
        0
    );
}

#[tokio::test]
async fn an_id_belongs_to_the_list_that_it_was_first_claimed_for() {
    let store = Store::shared().await;
    let (mut one, mut two) = (store.seat().await, store.seat().await);
    assert!(!one.claim("c", &["QC1"]).await.id_is_taken);
    assert!(!two.claim("c", &["QC1"]).await.id_is_taken);
    let other = Fingerprint([8; 16]);
    assert!(two.claim_list(LANE, "c", other, &["QC2"]).await.id_is_taken);
    assert!(
        !two.claim_list(LaneId(1), "c", other, &["QC2"])
            .await
            .id_is_taken
    );
    assert!(!one.claim_list(LANE, "c", LIST, &[]).await.id_is_taken);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn what_a_worker_says_after_its_lease_is_not_taken() {
    let store = Store::shared().await;
    let (mut one, mut two) = (store.seat().await, store.seat().await);
    let fences: Vec<Fence> = one
        .claim("c", &["QC1", "QC2"])
        .await
        .orders
        .iter()
        .map(|(_, holding)| match holding {
            Holding::Ours(_, fence) => *fence,
            other => panic!("{other:?}"),
        })
        .collect();
    let Sending::Sent(sent) = one
        .send(vec![order("QC1", OrderState::Sent, fences[0])])
        .await
    else {
        panic!("it is not sent");
    };
    one.ledger.call_ended(sent.leave());
    // The lease of the first is over, the other one takes an order.
    let database = store.database();
    let (known, second) = eventually_ok(LATER, "the order is free", async || {
        database
            .run(
                "UPDATE wdt.workers SET lease_until = clock_timestamp() - interval '1 s'
                  WHERE id = (SELECT min(id) FROM wdt.workers)",
            )
            .await;
        match two.claim("d", &["QC1"]).await.orders.remove(0).1 {
            Holding::Ours(row, fence) => Ok((row, fence)),
            holding => Err(holding),
        }
    })
    .await;
    assert_eq!(known.map(|row| row.state), Some(OrderState::Sent));

    // A list with a lost order is not sent, nor recorded.
    let list = vec![
        order("QC2", OrderState::Sent, fences[1]),
        order("QC1", OrderState::Sent, fences[0]),
    ];
    let Sending::Lost(mut lost) = one.send(list).await else {
        panic!("it is sent");
    };
    lost.retain(|order| order == "QC1");
    assert_eq!(lost, ["QC1"]);
    let (_, third) = one.take("c", "QC2").await;
    assert_eq!(two.claim("d", &["QC2"]).await.orders.remove(0).1, {
        let left = Duration::from_secs(15);
        Holding::Elsewhere(None, left)
    });

    // Of a record, what is lost is left out, and the rest is taken.
    let invalid = Ending::not(ReasonCode::InvalidOrderNo, "no");
    let lost = one
        .record(
            vec![ended("QC1", fences[0]), ended("QC2", third)],
            vec![
                result("c", "QC1", Ending::Cancelled, Some(fences[0])),
                result("c", "QC2", Ending::Cancelled, Some(third)),
                result("c", "?", invalid, None),
            ],
        )
        .await;
    assert!(
        !lost.is_empty() && lost.iter().all(|order| order == "QC1"),
        "{lost:?}"
    );
    let mut told: Vec<String> = two
        .claim("c", &[])
        .await
        .results
        .iter()
        .map(|row| row.order_no.to_string())
        .collect();
    told.sort();
    assert_eq!(told, ["?", "QC2"]);
    // The second worker's word is taken.
    let lost = two.record(vec![ended("QC1", second)], Vec::new()).await;
    assert_eq!(lost, [""; 0]);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_claim_replaces_the_fence_of_the_same_worker() {
    let store = Store::shared().await;
    let mut seat = store.seat().await;
    let (_, early) = seat.take("c", "QC1").await;
    let (_, late) = seat.take("d", "QC1").await;
    assert_eq!(
        seat.record(vec![ended("QC1", early)], Vec::new()).await,
        ["QC1"]
    );
    assert_eq!(
        seat.record(vec![ended("QC1", late)], Vec::new()).await,
        [""; 0]
    );
    seat.close().await;
}

#[tokio::test]
async fn a_dead_workers_orders_are_free_when_its_lease_is_over() {
    let store = Store::shared().await;
    let mut one = store.seat().await;
    let (_, fence) = one.take("c", "QC1").await;
    let row = order("QC1", OrderState::Sent, fence);
    let Sending::Sent(sent) = one.send(vec![row.clone()]).await else {
        panic!("it is not sent");
    };
    drop(sent);
    die(store.database(), one).await;
    let mut two = store.seat().await;
    assert_eq!(two.take("d", "QC1").await.0, Some(told(row)));
    two.close().await;
}

#[tokio::test]
async fn many_workers_that_want_the_same_get_each_order_once() {
    let store = Store::shared().await;
    let mut seats = Vec::new();
    for _ in 0..4 {
        seats.push(store.seat().await);
    }
    let numbers: Vec<String> = (0..300).map(|n| format!("QC{n:03}")).collect();
    let mut tasks = Vec::new();
    for (place, mut seat) in seats.into_iter().enumerate() {
        let mut numbers = numbers.clone();
        // Each in another sequence.
        numbers.rotate_left(place * 75);
        if place % 2 == 1 {
            numbers.reverse();
        }
        tasks.push(tokio::spawn(async move {
            let mut got = Vec::new();
            for some in numbers.chunks(10) {
                let some: Vec<&str> = some.iter().map(String::as_str).collect();
                let claimed = seat.claim(&format!("c{place}"), &some).await;
                for ((_, holding), number) in claimed.orders.iter().zip(some) {
                    if let Holding::Ours(_, fence) = holding {
                        got.push((number.to_owned(), *fence));
                    }
                }
            }
            (seat, got)
        }));
    }
    let (mut all, mut done) = (Vec::new(), Vec::new());
    for task in tasks {
        let (mut seat, got) = task.await.unwrap();
        let rows = got
            .iter()
            .map(|(number, fence)| ended(number, *fence))
            .collect();
        assert_eq!(seat.record(rows, Vec::new()).await, [""; 0]);
        all.extend(got.into_iter().map(|(number, _)| number));
        // Nobody lets go before everybody has asked.
        done.push(seat);
    }
    all.sort();
    assert_eq!(all, numbers);
    for seat in done {
        seat.close().await;
    }
}
