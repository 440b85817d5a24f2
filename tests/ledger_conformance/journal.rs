//! The journal: what is told of an order, and that nobody can change it unnoticed.

use std::io::{Cursor, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use wdt_cancel_worker::ledger::audit::{self, Checked, Fault};
use wdt_cancel_worker::ledger::journal::{CallEnded, Notes};
use wdt_cancel_worker::ledger::postgres::operate;
use wdt_cancel_worker::ledger::story::{self, Source};
use wdt_cancel_worker::rules::desk::{CallId, OrderState};
use wdt_cancel_worker::rules::judge::{CallEnd, CancelLists, FoundOrder, Reply};
use wdt_cancel_worker::rules::order::{
    AccountName, CommandId, Ending, OrderNo, Outcome, ReasonCode,
};
use wdt_cancel_worker::rules::story::What;

use super::seat::{Seat, Seating, Sending, Store, at, order, result};
use super::support::eventually::eventually_ok;
use super::support::scene::LATER;

fn source(store: &Store) -> Source {
    match store {
        Store::Embedded(path) => Source::File(path.clone()),
        Store::Shared(database) => Source::Database(database.url().to_owned()),
    }
}

fn no(order: &str) -> OrderNo {
    OrderNo::new(order).unwrap()
}

fn account() -> AccountName {
    AccountName::new("default").unwrap()
}

fn id(command: &str) -> CommandId {
    CommandId::new(command).unwrap()
}

fn asked(command: &str, orders: &[&str]) -> Notes {
    let mut notes = Notes::default();
    notes.asked(Some(&account()), &id(command), orders.iter().copied());
    notes
}

fn tell(notes: &mut Notes, command: &str, order: &str, outcome: Outcome) {
    notes.told(
        Some(&account()),
        &id(command),
        Some(order),
        (outcome, false),
    );
}

fn event(command: &str, order: &str, outcome: Outcome) -> Notes {
    let mut notes = Notes::default();
    tell(&mut notes, command, order, outcome);
    notes
}

fn answered(call: CallId, orders: &[&str], lists: CancelLists) -> Notes {
    let mut notes = Notes::default();
    let end = CallEnd::Answered(Reply {
        status: 0,
        message: "OK".to_owned(),
        data: Some(lists),
    });
    let ended = CallEnded {
        account: &account(),
        call,
        at: at(1),
        duration: Duration::from_millis(120),
        http_status: Some(200),
    };
    let orders: Vec<OrderNo> = orders.iter().map(|order| no(order)).collect();
    notes.answered(ended, &orders, &end);
    notes
}

/// Two orders of one command, of which one is cancelled and one refused in one call.
async fn live_through(seat: &mut Seat) {
    seat.ledger.note(asked("c", &["QC1", "QC2"]), at(0));
    let claimed = seat.claim("c", &["QC1", "QC2"]).await;
    let fences: Vec<_> = claimed
        .orders
        .iter()
        .map(|(_, holding)| match holding {
            wdt_cancel_worker::rules::desk::Holding::Ours(_, fence) => *fence,
            other => panic!("{other:?}"),
        })
        .collect();
    let sent = [("QC1", fences[0]), ("QC2", fences[1])]
        .map(|(number, fence)| order(number, OrderState::Sent, fence));
    let Sending::Sent(sent) = seat.send(sent.to_vec()).await else {
        panic!("it is not sent");
    };
    let call = sent.list().call;
    seat.ledger.call_ended(sent.leave());
    let lists = CancelLists {
        success: vec!["QC1".to_owned()],
        error: vec![("QC2".to_owned(), "已发货".to_owned())],
    };
    seat.ledger
        .note(answered(call, &["QC1", "QC2"], lists), at(1));
    let refused = Ending::not(ReasonCode::OrderState, "已发货");
    let orders = vec![
        order(
            "QC1",
            OrderState::Ended(Ending::Cancelled, at(1)),
            fences[0],
        ),
        order("QC2", OrderState::Ended(refused.clone(), at(1)), fences[1]),
    ];
    let results = vec![
        result("c", "QC1", Ending::Cancelled, Some(fences[0])),
        result("c", "QC2", refused, Some(fences[1])),
    ];
    assert_eq!(seat.record(orders, results).await, [""; 0]);
}

/// A kind of moment, and what matters of it.
fn told(what: &What) -> String {
    match what {
        What::Asked { command_id, orders } => format!("asked by {command_id} of {orders}"),
        What::Sent {
            attempt, orders, ..
        } => format!("sent {attempt} in {orders}"),
        What::Waits => "waits".to_owned(),
        What::Answered {
            method,
            duration_ms,
            status,
            message,
            said,
            words,
            ..
        } => format!("{method} {duration_ms} {status:?} {message} {said:?} {words:?}"),
        What::Ended { outcome, code, .. } => format!("ended {outcome} {code:?}"),
        What::Told {
            command_id,
            outcome,
            ..
        } => format!("told {command_id} {outcome}"),
        What::Parked { command_id } => format!("parked {command_id}"),
    }
}

async fn moments(store: &Store, order: &str) -> Vec<String> {
    let stories = story::of_order(&source(store), &no(order), None).await;
    let stories = stories.unwrap();
    let moments = stories.iter().flat_map(|story| &story.moments);
    moments.map(|moment| told(&moment.what)).collect()
}

#[tokio::test]
async fn the_story_of_an_order_is_told_beside_the_worker_and_says_no_more_than_is_known() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        live_through(&mut seat).await;
        // What follows is durable, though the worker has not written since.
        let known = moments(&store, "QC2").await;
        let first = [
            "asked by c of 2",
            "sent 3 in 2",
            r#"cancel 120 Some(0) OK Some("refused") Some("已发货")"#,
            r#"ended refused Some("order_state")"#,
        ];
        let mut sorted = known.clone();
        sorted.sort();
        let mut expected = first.map(str::to_owned);
        expected.sort();
        assert_eq!(sorted, expected);
        let story = story::of_order(&source(&store), &no("QC2"), None).await;
        let story = story.unwrap().remove(0);
        assert_eq!(story.standing.as_ref().unwrap().state, "ended");
        assert_eq!(story.results[0].outcome, "refused");
        assert_eq!(story.results[0].confirmed_at, []);

        seat.ledger.note(event("c", "QC2", Outcome::Refused), at(2));
        // Nothing else is written, and yet it is soon there.
        let source = source(&store);
        let story = eventually_ok(LATER, "the confirmation is noted", async || {
            let story = story::of_order(&source, &no("QC2"), None).await.unwrap();
            let story = story.into_iter().next().unwrap();
            match story.results[0].confirmed_at.as_slice() {
                [] => Err("not yet".to_owned()),
                confirmed => {
                    assert_eq!(confirmed, [at(2)]);
                    Ok(story)
                }
            }
        })
        .await;
        let text = story.to_string();
        assert!(
            text.starts_with("order QC2 of account default: refused"),
            "{text}"
        );
        assert!(text.contains("已发货"), "{text}");

        let id = CommandId::new("c").unwrap();
        let command = story::of_command(&source, &id, None).await.unwrap();
        let told: Vec<_> = command[0]
            .results
            .iter()
            .map(|told| (told.order_no.as_str(), told.outcome.as_str()))
            .collect();
        assert_eq!(told, [("QC1", "cancelled"), ("QC2", "refused")]);
        let nobody = story::of_order(&source, &no("QC9"), None).await.unwrap();
        assert_eq!(nobody, []);
        let nobody = CommandId::new("d").unwrap();
        let nobody = story::of_command(&source, &nobody, None).await.unwrap();
        assert_eq!(nobody, []);
        seat.close().await;
    }
}

/// More names than a filter holds.
const MANY: usize = 20_000;

#[tokio::test]
async fn an_order_is_found_among_many_also_after_a_restart() {
    for store in Store::both().await {
        for run in 0..2 {
            let mut seat = store.seat().await;
            for batch in 0..MANY / 100 {
                let mut notes = Notes::default();
                for n in 0..100 {
                    let number = format!("QC{run}-{}", batch * 100 + n);
                    tell(
                        &mut notes,
                        &format!("c-{number}"),
                        &number,
                        Outcome::Cancelled,
                    );
                }
                seat.ledger.note(notes, at(0));
                // Each with a group of its own.
                seat.record(Vec::new(), Vec::new()).await;
            }
            seat.close().await;
            for number in [0, 1, 9_999, 19_999] {
                let order = format!("QC{run}-{number}");
                let expected = format!("told c-{order} cancelled");
                assert_eq!(moments(&store, &order).await, [expected], "{order}");
            }
            assert_eq!(moments(&store, "QC7-1").await, [""; 0]);
        }
        assert!(faults(&audit::verify(&source(&store)).await.unwrap()).is_empty());
    }
}

fn faults(chains: &[Checked]) -> Vec<Fault> {
    chains.iter().filter_map(|chain| chain.fault).collect()
}

/// What an export writes.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn change(store: &Store, sql: &str) {
    match store {
        Store::Embedded(path) => {
            let ledger = rusqlite::Connection::open(path).unwrap();
            ledger.execute_batch(&sql.replace("wdt.", "")).unwrap();
        }
        Store::Shared(database) => database.run(sql).await,
    }
}

#[tokio::test]
async fn what_was_changed_taken_out_or_cut_off_is_noticed_in_the_ledger_and_in_an_export() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        live_through(&mut seat).await;
        for n in 0..5 {
            seat.ledger
                .note(event("c", "QC1", Outcome::Cancelled), at(10 + n));
            let (_, fence) = seat.take("c", "QC1").await;
            let row = order("QC1", OrderState::Ended(Ending::Cancelled, at(1)), fence);
            seat.record(vec![row], Vec::new()).await;
        }
        seat.close().await;
        let source = source(&store);
        let whole = audit::verify(&source).await.unwrap();
        assert_eq!(faults(&whole), []);
        let last = whole[0].rows.1;
        assert!(last >= 7, "{whole:?}");

        let kept = Kept::default();
        let count = audit::export(&source, Timestamp::UNIX_EPOCH, kept.clone()).await;
        assert_eq!(count.unwrap(), u64::try_from(last).unwrap());
        let export = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let check = |export: &str| audit::verify_export(Cursor::new(export.to_owned())).unwrap();
        assert_eq!(check(&export), whole);
        let lines: Vec<&str> = export.lines().collect();
        let without = |place: usize| {
            let mut lines = lines.clone();
            lines.remove(place);
            lines.join("\n")
        };
        assert_eq!(faults(&check(&without(3))), [Fault::Missing(4, 4)]);
        assert_eq!(faults(&check(&without(lines.len() - 1))), [Fault::OtherEnd]);
        assert_eq!(
            faults(&check(&without(lines.len() - 2))),
            [Fault::Missing(last, last)]
        );
        let changed = export.replacen("cancelled", "refused", 1);
        assert!(matches!(faults(&check(&changed))[..], [Fault::Changed(_)]));
        let mut moved = lines.clone();
        moved.swap(3, 4);
        assert_eq!(faults(&check(&moved.join("\n"))), [Fault::Missing(4, 4)]);
        // From a time on: the rest hangs on the hash before.
        let later = Kept::default();
        let none = audit::export(&source, Timestamp::now(), later.clone()).await;
        assert_eq!(none.unwrap(), 0);

        let cut = format!("DELETE FROM wdt.journal WHERE seq > {}", last - 2);
        let cases = [
            (
                "UPDATE wdt.journal SET text = replace(text, 'QC1', 'QC7') WHERE seq = 2",
                Fault::Changed(2),
            ),
            (
                "DELETE FROM wdt.journal WHERE seq = 2",
                Fault::Missing(2, 2),
            ),
            (cut.as_str(), Fault::Missing(last - 1, last)),
        ];
        change(&store, "CREATE TABLE wdt.kept AS SELECT * FROM wdt.journal").await;
        for (sql, fault) in cases {
            change(&store, sql).await;
            let found = audit::verify(&source).await.unwrap();
            assert_eq!(faults(&found), [fault], "{sql}");
            let again = "DELETE FROM wdt.journal; INSERT INTO wdt.journal SELECT * FROM wdt.kept";
            change(&store, again).await;
        }
        assert_eq!(audit::verify(&source).await.unwrap(), whole);
    }
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_the_rest_is_still_a_chain() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        live_through(&mut seat).await;
        seat.close().await;
        let before = audit::verify(&source(&store)).await.unwrap();
        let mut seat = store
            .seat_with(Seating {
                retention: Duration::from_millis(1),
                ..Seating::default()
            })
            .await;
        let source = source(&store);
        eventually_ok(LATER, "it is forgotten", async || {
            let now = audit::verify(&source).await.unwrap();
            assert_eq!(faults(&now), []);
            match now[0].rows.0 > before[0].rows.1 {
                true => Ok(()),
                false => Err(format!("{now:?}")),
            }
        })
        .await;
        // It goes on from there.
        seat.ledger.note(asked("d", &["QC3"]), at(0));
        let (_, fence) = seat.take("d", "QC3").await;
        let row = order("QC3", OrderState::Sent, fence);
        assert!(matches!(seat.send(vec![row]).await, Sending::Sent(_)));
        seat.close().await;
        assert_eq!(faults(&audit::verify(&source).await.unwrap()), []);
    }
}

#[tokio::test]
async fn what_an_answer_said_of_an_order_is_read_as_it_was_judged() {
    let store = Store::embedded();
    let mut seat = store.seat().await;
    let lists = CancelLists {
        success: vec![
            "QC1-1".to_owned(),
            " QC2 ".to_owned(),
            "QC4".to_owned(),
            "QC4-1".to_owned(),
        ],
        error: vec![
            ("QC3-1".to_owned(), "已发货".to_owned()),
            ("QC4".to_owned(), "稍后再试".to_owned()),
        ],
    };
    let orders = ["QC1", "QC2", "QC3", "QC4", "QC5"];
    let mut notes = answered(CallId(1), &orders, lists);
    let found = FoundOrder {
        number: " QC6-1".to_owned(),
        status: 80,
    };
    let end = CallEnd::Answered(Reply {
        status: 0,
        message: String::new(),
        data: Some(vec![found]),
    });
    let ended = CallEnded {
        account: &account(),
        call: CallId(2),
        at: at(1),
        duration: Duration::from_millis(90),
        http_status: Some(200),
    };
    notes.looked_up(ended, &no("QC6"), &end);
    seat.ledger.note(notes, at(1));
    seat.record(Vec::new(), Vec::new()).await;
    for (order, said) in [
        ("QC1", r#"Some("cancelled") None"#),
        ("QC2", r#"Some("cancelled") None"#),
        ("QC3", r#"Some("refused") Some("已发货")"#),
        ("QC4", r#"Some("cancelled_and_refused") Some("稍后再试")"#),
        ("QC5", r#"Some("not_named") None"#),
    ] {
        let expected = format!("cancel 120 Some(0) OK {said}");
        assert_eq!(moments(&store, order).await, [expected], "{order}");
    }
    let expected = r#"look_up 90 Some(0)  Some("found") Some("status 80")"#;
    assert_eq!(moments(&store, "QC6").await, [expected]);
    seat.close().await;
}

#[tokio::test]
async fn what_was_forgotten_is_not_told_as_never_sent() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        live_through(&mut seat).await;
        // What is old goes table by table, and a later event of it is remembered for longer.
        change(&store, "DELETE FROM wdt.orders").await;
        let story = story::of_order(&source(&store), &no("QC1"), None).await;
        let text = story.unwrap().remove(0).to_string();
        assert!(text.contains("ended as cancelled"), "{text}");
        assert!(!text.contains("never"), "{text}");
        seat.close().await;
    }
}

#[tokio::test]
async fn what_was_written_twice_is_told_once() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        // As after a commit whose answer was lost.
        for _ in 0..2 {
            let mut notes = asked("c", &["QC1"]);
            notes.asked(Some(&account()), &id("d"), ["QC1"]);
            tell(&mut notes, "c", "QC1", Outcome::Cancelled);
            tell(&mut notes, "d", "QC1", Outcome::Cancelled);
            seat.ledger.note(notes, at(0));
            seat.record(Vec::new(), Vec::new()).await;
        }
        let expected = [
            "asked by c of 1",
            "asked by d of 1",
            "told c cancelled",
            "told d cancelled",
        ];
        assert_eq!(moments(&store, "QC1").await, expected);
        seat.close().await;
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_keeps_nobody_from_working_or_forgetting() {
    let store = Store::embedded();
    let mut seat = store.seat().await;
    live_through(&mut seat).await;
    seat.close().await;
    let spoilt = "UPDATE wdt.journal SET text = CAST(x'7bff' AS TEXT), hash = x'00' WHERE seq <= 2";
    change(&store, spoilt).await;
    let source = source(&store);
    let found = faults(&audit::verify(&source).await.unwrap());
    assert_eq!(found, [Fault::Changed(1)]);
    let mut seat = store
        .seat_with(Seating {
            retention: Duration::from_millis(1),
            ..Seating::default()
        })
        .await;
    let health = seat.ledger.health();
    eventually_ok(LATER, "it is forgotten", async || {
        seat.record(Vec::new(), Vec::new()).await;
        let now = audit::verify(&source).await.unwrap();
        match now[0].rows.0 > 2 {
            true => Ok(()),
            false => Err(format!("{now:?} {:?}", *health.borrow())),
        }
    })
    .await;
    seat.close().await;
}

#[tokio::test]
async fn a_clock_that_was_ahead_for_a_while_keeps_nothing_for_longer() {
    for store in Store::both().await {
        let mut seat = store.seat().await;
        live_through(&mut seat).await;
        // What was written until now was written in 2100.
        let ahead = "UPDATE wdt.journal SET at = 4102444800000";
        change(&store, ahead).await;
        if let Store::Embedded(_) = store {
            seat.close().await;
            seat = store.seat().await;
        }
        let since = Timestamp::now();
        seat.ledger.note(asked("d", &["QC3"]), at(0));
        seat.record(Vec::new(), Vec::new()).await;
        let kept = Kept::default();
        let source = source(&store);
        audit::export(&source, since, kept.clone()).await.unwrap();
        let export = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(export.contains("QC3"), "{export}");
        seat.close().await;
        let seat = store
            .seat_with(Seating {
                retention: Duration::from_millis(1),
                ..Seating::default()
            })
            .await;
        eventually_ok(LATER, "it is forgotten", async || {
            let now = audit::verify(&source).await.unwrap();
            assert_eq!(faults(&now), []);
            match now.iter().all(|chain| chain.rows.0 > chain.rows.1) {
                true => Ok(()),
                false => Err(format!("{now:?}")),
            }
        })
        .await;
        seat.close().await;
    }
}

#[tokio::test]
async fn what_was_forgotten_does_not_come_back_with_an_import() {
    let (file, shared) = (Store::embedded(), Store::shared().await);
    let mut seat = file.seat().await;
    live_through(&mut seat).await;
    seat.close().await;
    let Store::Embedded(path) = &file else {
        panic!("it is one");
    };
    let url = shared.database().url().to_owned();
    operate::import(&url, path).await.unwrap();
    let forget = "UPDATE wdt.chains c SET forgotten_seq = 2, forgotten_hash = j.hash
         FROM wdt.journal j WHERE j.chain = c.chain AND j.seq = 2;
         DELETE FROM wdt.journal WHERE seq <= 2";
    change(&shared, forget).await;
    operate::import(&url, path).await.unwrap();
    let after = audit::verify(&source(&shared)).await.unwrap();
    assert_eq!((faults(&after), after[0].rows.0), (vec![], 3));

    // Its worker went on for longer than anything is remembered.
    let mut seat = file.seat().await;
    seat.ledger.note(asked("d", &["QC3"]), at(0));
    seat.record(Vec::new(), Vec::new()).await;
    seat.ledger.note(asked("e", &["QC4"]), at(0));
    seat.record(Vec::new(), Vec::new()).await;
    seat.close().await;
    let before = after[0].rows.1;
    let forget = format!(
        "UPDATE marks SET forgotten_seq = {0},
             forgotten_hash = (SELECT hash FROM journal WHERE seq = {0});
         DELETE FROM journal WHERE seq <= {0}",
        before + 1
    );
    change(&file, &forget).await;
    operate::import(&url, path).await.unwrap();
    let after = audit::verify(&source(&shared)).await.unwrap();
    assert_eq!(
        (faults(&after), after[0].rows),
        (vec![], (before + 2, before + 2))
    );
}

/// More than waits for a ledger that cannot be written.
const FLOOD: usize = 100;

#[tokio::test]
async fn what_is_seen_while_nothing_can_be_written_is_bounded() {
    let store = Store::embedded();
    let Store::Embedded(path) = &store else {
        panic!("it is one");
    };
    let mut seat = store.seat().await;
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let large = "x".repeat(1024 * 1024);
    for _ in 0..FLOOD {
        seat.ledger.note(asked("c", &[&large]), at(0));
    }
    other.execute_batch("COMMIT").unwrap();
    seat.record(Vec::new(), Vec::new()).await;
    seat.ledger.note(asked("d", &["QC1"]), at(1));
    seat.record(Vec::new(), Vec::new()).await;
    let written: i64 = other
        .query_row("SELECT sum(length(text)) FROM journal", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert!((1..50 << 20).contains(&written), "{written}");
    assert_eq!(moments(&store, "QC1").await, ["asked by d of 1"]);
    seat.close().await;
}
