//! The broker: it keeps what was not acknowledged, and takes publications or does not.

use jiff::Timestamp;
use wdt_cancel_worker::rules::admit::{self, House, RawCommand, RawProperties};
use wdt_cancel_worker::rules::desk::{Fate, Ticket};
use wdt_cancel_worker::rules::order::{AccountName, CommandId};
use wdt_cancel_worker::rules::time::later;

use crate::NOON;
use crate::config::{ACCOUNTS, DEADLINE, Sent};
use crate::world::{Answer, Event, Message, Place, Publication, World};

struct Shop(Vec<AccountName>);

impl House for Shop {
    fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.0.iter()
    }
    fn allows_reply_to(&self, _queue: &str) -> bool {
        true
    }
}

impl World<'_> {
    pub fn submit(&mut self) {
        let sent = &self.config.commands[self.messages.len()];
        let sorted = |sent: &Sent| {
            let mut orders = sent.orders.clone();
            orders.sort_unstable();
            (sent.id, sent.account, orders)
        };
        let mut commands = self.config.commands.iter();
        let same = commands.position(|c| sorted(c) == sorted(sent));
        self.messages.push(Message {
            command: same.unwrap(),
            place: Place::Queued { redelivered: false },
        });
    }

    /// To the worker whose turn it is.
    pub fn deliver(&mut self, at: usize, given_up: bool) {
        let message = &mut self.messages[at];
        let Place::Queued { redelivered } = message.place else {
            return;
        };
        let ticket = Ticket(self.tickets.len() as u64 + 1);
        message.place = Place::Held(ticket);
        self.tickets.insert(ticket, at);
        self.holders.insert(ticket, self.at);
        let sent = &self.config.commands[message.command];
        let noon: Timestamp = NOON.parse().unwrap();
        let raw = RawCommand {
            order_no_list: sent.orders.iter().map(|o| Ok((*o).to_owned())).collect(),
            account: Some(ACCOUNTS[sent.account].to_owned()),
            deadline: sent.has_deadline.then(|| later(noon, DEADLINE).to_string()),
            command_id: None,
        };
        let properties = RawProperties {
            message_id: Some(sent.id.to_owned()),
            ..RawProperties::default()
        };
        let shop = Shop(ACCOUNTS.map(|a| AccountName::new(a).unwrap()).into());
        let fresh = || CommandId::new("fresh").unwrap();
        let admission = admit::admit(Ok(raw), properties, fresh, &shop);
        let desk = &mut self.workers[self.at].desk;
        if given_up {
            desk.give_up(self.now, ticket, redelivered, admission);
        } else {
            desk.arrive(self.now, ticket, redelivered, admission);
        }
    }

    fn is_live(&self, ticket: Ticket) -> bool {
        let message = self.tickets.get(&ticket).map(|m| &self.messages[*m]);
        message.is_some_and(|m| m.place == Place::Held(ticket))
    }

    pub fn publication_ends(&mut self, at: usize) {
        let publication = self.workers[self.at].publications.remove(at);
        let outcomes = if self.left.faults > 0 { 5 } else { 1 };
        let outcome = self.choices.pick(outcomes);
        self.left.faults -= usize::from(outcome != 0);
        let (what, reaches, fate) = [
            ("taken", true, Fate::Confirmed),
            ("returned", false, Fate::Unroutable),
            ("refused", false, Fate::Refused),
            ("lost", false, Fate::Lost),
            ("confirm lost", true, Fate::Lost),
        ][outcome];
        self.tell(|| format!("   {what}"));
        if reaches {
            self.take(&publication, fate == Fate::Confirmed);
        }
        self.report(&publication, fate);
    }

    /// A publication reaches its queue.
    pub fn take(&mut self, publication: &Publication, confirmed: bool) {
        let ticket = publication.ticket();
        match publication {
            Publication::Tell(telling) => {
                let event = Event {
                    command: self.messages[self.tickets[&ticket]].command,
                    ticket,
                    order_no: telling.event.order_no.as_deref().unwrap_or("").to_owned(),
                    outcome: telling.event.ending.outcome().as_str(),
                    at: self.messages.len(),
                    confirmed,
                };
                self.events.insert(event);
            }
            Publication::Park(_) => {
                if confirmed {
                    self.copies.insert(ticket);
                }
            }
        }
    }

    pub fn report(&mut self, publication: &Publication, fate: Fate) {
        let now = self.now.mono;
        let desk = &mut self.workers[self.at].desk;
        match publication {
            Publication::Tell(telling) => desk.told(now, telling.command, telling.place, fate),
            Publication::Park(parking) => desk.parked(now, parking.command, fate),
        }
    }

    pub fn answer(&mut self) {
        match self.workers[self.at].answers.pop_front() {
            Some(Answer::Acknowledge(ticket, was_parked)) if self.is_live(ticket) => {
                self.check_acknowledgement(ticket, was_parked);
                let message = self.tickets[&ticket];
                self.messages[message].place = Place::Acknowledged;
            }
            Some(Answer::Return(ticket)) if self.is_live(ticket) => {
                let message = self.tickets[&ticket];
                self.messages[message].place = Place::Queued { redelivered: true };
            }
            // Of a session that is over.
            Some(Answer::Acknowledge(..) | Answer::Return(_)) | None => {}
        }
    }

    pub fn lose_session(&mut self) {
        self.left.losses -= 1;
        if self.workers[self.at].frozen {
            return self.give_up_session();
        }
        let heard_late = self.choices.yes();
        for publication in std::mem::take(&mut self.workers[self.at].publications) {
            if self.choices.yes() {
                self.take(&publication, false);
            }
            if heard_late {
                self.workers[self.at].late_losses.push(publication);
            } else {
                self.report(&publication, Fate::Lost);
            }
        }
        self.workers[self.at].answers.clear();
        self.requeue();
        self.workers[self.at].desk.session_lost(self.now.mono);
    }

    /// A frozen worker hears of it when it goes on.
    pub fn give_up_session(&mut self) {
        let publications = std::mem::take(&mut self.workers[self.at].publications);
        for publication in &publications {
            if self.choices.yes() {
                self.take(publication, false);
            }
        }
        let worker = &mut self.workers[self.at];
        worker.publications = publications;
        worker.lost_session = true;
        self.requeue();
    }

    /// Whatever this worker holds comes again.
    pub fn requeue(&mut self) {
        for message in &mut self.messages {
            if let Place::Held(ticket) = message.place
                && self.holders[&ticket] == self.at
            {
                message.place = Place::Queued { redelivered: true };
            }
        }
    }
}
