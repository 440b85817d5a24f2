//! What both stores do.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use wdt_cancel_worker::ledger::{Done, Health};
use wdt_cancel_worker::rules::desk::{Fence, Holding, OrderState};
use wdt_cancel_worker::rules::lane::Paused;
use wdt_cancel_worker::rules::order::{Ending, ReasonCode};
use wdt_cancel_worker::rules::poison::Digest;

use super::seat::{
    LANE, LIST, OTHER_LANE, Seating, Sending, Store, at, claim, ended, order, result, told,
    told_result,
};
use super::support::eventually::eventually_ok;
use super::support::scene::LATER;

fn failed(words: &str) -> Ending {
    Ending::not(ReasonCode::ApiUnavailable, words)
}

#[tokio::test]
async fn what_was_recorded_is_claimed_also_after_a_restart() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        let numbers = ["QC1", "QC2", "QC3", "QC4"];
        let claimed = seat.claim("c", &numbers).await;
        assert_eq!((claimed.results.len(), claimed.id_is_taken), (0, false));
        let fences: Vec<Fence> = claimed
            .orders
            .iter()
            .map(|(_, holding)| match holding {
                Holding::Ours(None, fence) => *fence,
                other => panic!("{other:?}"),
            })
            .collect();
        let rows = [
            order(
                "QC1",
                OrderState::Ended(Ending::Cancelled, at(0)),
                fences[0],
            ),
            order(
                "QC2",
                OrderState::Ended(failed("稍后再试"), at(1)),
                fences[1],
            ),
            order("QC3", OrderState::Sent, fences[2]),
            order("QC4", OrderState::Waiting, fences[3]),
        ];
        let results = [
            result("c", "QC1", Ending::Cancelled, Some(fences[0])),
            result("c", "QC2", failed("稍后再试"), Some(fences[1])),
            result("d", "QC1", Ending::Cancelled, Some(fences[0])),
        ];
        let lost = seat.record(rows.to_vec(), results.to_vec()).await;
        assert_eq!(lost, [""; 0]);
        seat.close().await;

        let mut seat = store.seat().await;
        let claimed = seat.claim("c", &["QC4", "QC3", "QC2", "QC1", "QC9"]).await;
        let rows = rows.map(told);
        let known: Vec<_> = claimed
            .orders
            .into_iter()
            .map(|(_, holding)| match holding {
                Holding::Ours(row, _) => row,
                other => panic!("{other:?}"),
            })
            .collect();
        let [first, second, third, fourth] = rows.map(Some);
        assert_eq!(known, [fourth, third, second, first, None]);
        let mut results_of_c = claimed.results;
        results_of_c.sort_by(|a, b| a.order_no.cmp(&b.order_no));
        assert_eq!(
            results_of_c,
            results[..2]
                .iter()
                .cloned()
                .map(told_result)
                .collect::<Vec<_>>()
        );
        seat.close().await;
    }
}

#[tokio::test]
async fn a_later_record_replaces_an_earlier_one_also_in_the_same_group() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        let (_, fence) = seat.take("c", "QC1").await;
        for round in 0..3 {
            let early = order("QC1", OrderState::Waiting, fence);
            let told_early = result("c", "QC1", failed(&format!("{round}")), Some(fence));
            // Both are asked for before either is answered.
            let late = ended("QC1", fence);
            let mut told_late = result("c", "QC1", Ending::Cancelled, Some(fence));
            told_late.attempts = round;
            for (row, told) in [(early, told_early), (late.clone(), told_late.clone())] {
                seat.ledger.record(wdt_cancel_worker::rules::desk::Record {
                    id: Default::default(),
                    orders: vec![row],
                    results: vec![told],
                });
            }
            for _ in 0..2 {
                assert!(matches!(seat.next().await, Done::Recorded(_, lost) if lost.is_empty()));
            }
            let claimed = seat.claim("c", &[]).await;
            assert_eq!(claimed.results, [told_result(told_late)]);
            let claimed = seat.claim("another", &["QC2"]).await;
            assert_eq!(claimed.results, []);
        }
        let (known, _) = seat.take("c", "QC1").await;
        assert_eq!(known, Some(told(ended("QC1", Fence::default()))));
        seat.close().await;
    }
}

#[tokio::test]
async fn a_list_that_is_sent_is_known_as_sent_by_whoever_comes_next() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        let (_, fence) = seat.take("c", "QC1").await;
        let row = order("QC1", OrderState::Sent, fence);
        let Sending::Sent(sent) = seat.send(vec![row.clone()]).await else {
            panic!("it is not sent");
        };
        assert_eq!(sent.list().orders, std::slice::from_ref(&row));
        let leave = sent.leave();
        assert!(leave.is_in_time());
        seat.ledger.call_ended(leave);
        assert!(seat.ask().await.is_some_and(|leave| leave.is_in_time()));
        seat.close().await;
        let mut seat = store.seat().await;
        assert_eq!(seat.take("c", "QC1").await.0, Some(told(row)));
        seat.close().await;
    }
}

#[tokio::test]
async fn accounts_and_commands_do_not_mix() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        let (_, fence) = seat.take("c", "QC1").await;
        seat.record(
            vec![ended("QC1", fence)],
            vec![result("c", "QC1", Ending::Cancelled, Some(fence))],
        )
        .await;
        let other = seat.claim_list(OTHER_LANE, "c", LIST, &["QC1"]).await;
        assert_eq!(other.results, []);
        assert!(
            matches!(other.orders[0].1, Holding::Ours(None, _)),
            "{other:?}"
        );
        seat.close().await;
    }
}

#[tokio::test]
async fn every_text_that_somebody_may_send_comes_back_as_it_was() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        let odd = [
            "a\0b",
            "a␀b",
            "␀0",
            "\0",
            "\u{202e}abc",
            "😀",
            "'; DROP",
            "\\x00",
            "{1,2}",
        ];
        let results: Vec<_> = odd
            .iter()
            .map(|shown| {
                let words = format!("{shown} 说 \0 \"quoted\" \\");
                result(
                    "c\0\u{1}",
                    shown,
                    Ending::not(ReasonCode::InvalidOrderNo, words),
                    None,
                )
            })
            .collect();
        seat.claim("c\0\u{1}", &[]).await;
        seat.record(Vec::new(), results.clone()).await;
        let claimed = seat.claim("c\0\u{1}", &[]).await;
        let by_shown = |rows: Vec<wdt_cancel_worker::rules::desk::ResultRow>| {
            let rows = rows.into_iter().map(|row| (row.order_no.to_string(), row));
            rows.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(by_shown(claimed.results), by_shown(results));
        seat.close().await;
    }
}

#[tokio::test]
async fn the_largest_command_there_can_be_is_claimed_sent_and_recorded() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        let numbers: Vec<String> = (0..10_000).map(|n| format!("QC{n:05}")).collect();
        let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        let claimed = seat.claim("c", &numbers).await;
        let fences: Vec<Fence> = claimed
            .orders
            .iter()
            .map(|(_, holding)| match holding {
                Holding::Ours(None, fence) => *fence,
                other => panic!("{other:?}"),
            })
            .collect();
        let row = |(number, fence): (&&str, &Fence)| ended(number, *fence);
        let orders = numbers.iter().zip(&fences).map(row).collect();
        let result =
            |(number, fence): (&&str, &Fence)| result("c", number, Ending::Cancelled, Some(*fence));
        let results = numbers.iter().zip(&fences).map(result).collect();
        assert_eq!(seat.record(orders, results).await, [""; 0]);
        let claimed = seat.claim("c", &[]).await;
        assert_eq!(claimed.results.len(), 10_000);
        seat.close().await;
    }
}

#[tokio::test]
async fn claims_see_what_was_recorded_before_they_were_made() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        // A flood of everything, none awaited: what is answered first is asked first.
        for n in 0..200 {
            seat.ledger
                .claim(claim(LANE, &format!("c{n}"), LIST, &[&format!("QC{n}")]));
        }
        let mut fences = Vec::new();
        while fences.len() < 200 {
            let Done::Claimed(claimed) = seat.next().await else {
                panic!("nothing else was asked");
            };
            let Holding::Ours(None, fence) = claimed.orders[0].1 else {
                panic!("{claimed:?}");
            };
            fences.push(fence);
        }
        for (n, fence) in fences.iter().enumerate() {
            let number = format!("QC{n}");
            seat.record(vec![ended(&number, *fence)], Vec::new()).await;
            if n % 50 == 0 {
                let (known, _) = seat.take("later", &number).await;
                assert_eq!(known, Some(told(ended(&number, *fence))));
            }
        }
        seat.close().await;
    }
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_what_has_not_ended_is_not() {
    for store in Store::both().await {
        let hour = Duration::from_secs(3600);
        let seating = Seating {
            retention: hour,
            ..Seating::default()
        };
        let mut seat = store.seat_with(seating).await;
        let ago = |minutes: i64| {
            Timestamp::from_millisecond(Timestamp::now().as_millisecond() - minutes * 60_000)
                .unwrap()
        };
        let claimed = seat.claim("c", &["QC-OPEN", "QC-OLD", "QC-YOUNG"]).await;
        let fences: Vec<Fence> = claimed
            .orders
            .iter()
            .map(|(_, holding)| match holding {
                Holding::Ours(_, fence) => *fence,
                other => panic!("{other:?}"),
            })
            .collect();
        let ended_at = |at| OrderState::Ended(Ending::Cancelled, at);
        let rows = vec![
            order("QC-OPEN", OrderState::Sent, fences[0]),
            order("QC-OLD", ended_at(ago(90)), fences[1]),
            order("QC-YOUNG", ended_at(ago(30)), fences[2]),
        ];
        let mut old = result("c", "QC-OLD", Ending::Cancelled, Some(fences[1]));
        let mut young = result("c", "QC-YOUNG", Ending::Cancelled, Some(fences[2]));
        (old.occurred_at, young.occurred_at) = (ago(90), ago(30));
        seat.record(rows, vec![old, young]).await;
        let all = ["QC-OPEN", "QC-OLD", "QC-YOUNG"];
        eventually_ok(LATER, "the old one is forgotten", async || {
            let claimed = seat.claim("c", &all).await;
            let known: Vec<bool> = claimed
                .orders
                .iter()
                .map(|(_, holding)| matches!(holding, Holding::Ours(Some(_), _)))
                .collect();
            let told: Vec<String> = claimed
                .results
                .iter()
                .map(|row| row.order_no.to_string())
                .collect();
            match (known.as_slice(), told.as_slice()) {
                ([true, false, true], [young]) if young == "QC-YOUNG" => Ok(()),
                _ => Err((known, told)),
            }
        })
        .await;
        seat.close().await;
    }
}

#[tokio::test]
async fn a_pause_is_told_when_it_is_durable_and_remembered() {
    for store in Store::both().await {
        let paused = Paused {
            since: Timestamp::from_second(1000).unwrap(),
            by: "李 (127.0.0.1)".into(),
        };
        let mut seat = store.seat().await;
        assert_eq!(seat.paused, []);
        for wish in [Some(paused.clone()), None, Some(paused.clone())] {
            seat.ledger.pause(OTHER_LANE, wish.clone());
            let Done::Paused(told) = seat.next().await else {
                panic!("a pause was asked for");
            };
            assert_eq!(told, [(OTHER_LANE, wish)]);
        }
        seat.close().await;
        let seat = store.seat().await;
        assert_eq!(seat.paused, [(OTHER_LANE, paused)]);
        seat.close().await;
    }
}

#[tokio::test]
async fn runs_that_died_and_what_they_died_with_are_remembered() {
    for store in Store::both().await {
        let digest = Digest([9; 16]);
        for deaths in 0..3 {
            let mut seat = store.seat().await;
            assert_eq!(seat.past.deaths, deaths, "before run {deaths}");
            let trials = seat.past.trials.clone();
            assert_eq!(trials, (deaths > 0).then_some((digest, deaths)).as_slice());
            seat.ledger.begin_run(Timestamp::now());
            seat.ledger.begin_trial(digest, Timestamp::now());
            assert!(matches!(seat.next().await, Done::TrialBegun));
            dies(&store, seat).await;
        }
        let mut seat = store.seat().await;
        seat.ledger.begin_run(Timestamp::now());
        seat.ledger.begin_trial(digest, Timestamp::now());
        assert!(matches!(seat.next().await, Done::TrialBegun));
        seat.ledger.end_trial(digest, true);
        seat.ledger.end_run();
        seat.close().await;
        let seat = store.seat().await;
        assert_eq!(
            (seat.past.deaths, seat.past.trials.as_slice()),
            (0, &[][..])
        );
        seat.close().await;
    }
}

/// The worker is gone, and its ledger is as it was in that moment.
async fn dies(store: &Store, seat: super::seat::Seat) {
    match store {
        // Whether it is closed makes no difference: the run was not ended.
        Store::Embedded(_) => seat.close().await,
        Store::Shared(database) => {
            super::shared::die(database, seat).await;
        }
    }
}

#[tokio::test]
async fn what_is_waiting_is_written_when_it_is_closed() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        let (_, fence) = seat.take("c", "QC1").await;
        assert_eq!(*seat.ledger.health().borrow(), Health::Well);
        seat.ledger.record(wdt_cancel_worker::rules::desk::Record {
            id: Default::default(),
            orders: vec![ended("QC1", fence)],
            results: Vec::new(),
        });
        seat.close().await;
        let mut seat = store.seat().await;
        assert_eq!(
            seat.take("c", "QC1").await.0,
            Some(told(ended("QC1", fence)))
        );
        seat.close().await;
    }
}
