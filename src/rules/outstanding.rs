//! Which deliveries one acknowledgement may cover.
//!
//! A broker settles each acknowledgement by itself, a quorum queue in its log, so one for many costs
//! it as much as one for one. But such a *multiple* acknowledgement covers every delivery of the
//! channel that is not settled yet, up to the one it names: also what is still open, and what is to
//! be given back. So the channel's deliveries are kept in sequence here, and only what is finished
//! before the oldest of the others goes out together. What is finished behind such a *gap* waits a
//! little for it to close, and is then acknowledged by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::time::Mono;

/// The number of a delivery on its channel, where they count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Tag(pub u64);

/// See the module. `P` proves that a delivery may be acknowledged.
#[derive(Debug)]
pub struct Outstanding<P> {
    /// Came, and neither finished nor given back.
    open: BTreeSet<Tag>,
    /// Not acknowledged yet, and since when.
    finished: BTreeMap<Tag, (P, Mono)>,
    last: Tag,
    /// Each came right after the one before. Otherwise one may be on its way that is older than what
    /// is known here, and nothing but a delivery by itself can be acknowledged.
    in_sequence: bool,
}

/// One acknowledgement, which has a proof for each delivery that it covers. Only [`Outstanding`]
/// makes one.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Ack<P> {
    before: Vec<P>,
    last: P,
}

impl<P> Ack<P> {
    /// The delivery that it names.
    pub fn last(&self) -> &P {
        &self.last
    }

    /// Whether it covers others before that one.
    pub fn is_multiple(&self) -> bool {
        !self.before.is_empty()
    }

    /// Every delivery that it covers.
    pub fn covered(&self) -> impl Iterator<Item = &P> {
        self.before.iter().chain([&self.last])
    }
}

impl<P> Default for Outstanding<P> {
    fn default() -> Self {
        Self {
            open: BTreeSet::new(),
            finished: BTreeMap::new(),
            last: Tag::default(),
            in_sequence: true,
        }
    }
}

impl<P> Outstanding<P> {
    /// A delivery has come, whatever will become of it.
    pub fn came(&mut self, tag: Tag) {
        self.in_sequence &= tag.0 == self.last.0 + 1;
        self.last = self.last.max(tag);
        self.open.insert(tag);
    }

    /// It may be acknowledged.
    pub fn finish(&mut self, tag: Tag, proof: P, now: Mono) {
        if self.open.remove(&tag) {
            self.finished.insert(tag, (proof, now));
        }
    }

    /// It went back: the broker has been told, so that no later acknowledgement can cover it.
    pub fn gave_back(&mut self, tag: Tag) {
        self.open.remove(&tag);
    }

    /// What is to be acknowledged now; what has waited for `patience` behind a gap goes by itself.
    /// The broker is to hear of all of these before the next are taken.
    pub fn take(&mut self, now: Mono, patience: Duration) -> Vec<Ack<P>> {
        let mut acks = Vec::new();
        if self.in_sequence {
            let behind = match self.open.first() {
                Some(gap) => self.finished.split_off(gap),
                None => BTreeMap::new(),
            };
            let together = std::mem::replace(&mut self.finished, behind);
            let mut before: Vec<P> = together.into_values().map(|(proof, _)| proof).collect();
            if let Some(last) = before.pop() {
                acks.push(Ack { before, last });
            }
        }
        let waited = |since: Mono| !self.in_sequence || now.since(since) >= patience;
        let due = self.finished.iter();
        let due: Vec<Tag> = due
            .filter(|(_, (_, since))| waited(*since))
            .map(|(tag, _)| *tag)
            .collect();
        for tag in due {
            if let Some((last, _)) = self.finished.remove(&tag) {
                let before = Vec::new();
                acks.push(Ack { before, last });
            }
        }
        acks
    }

    /// The one that came last.
    pub fn last(&self) -> Tag {
        self.last
    }

    /// How many are not acknowledged, nor back.
    pub fn unsettled(&self) -> usize {
        self.open.len() + self.finished.len()
    }

    /// How many of those after this one are not acknowledged, nor back.
    pub fn unsettled_after(&self, tag: Tag) -> usize {
        let later = (Bound::Excluded(tag), Bound::Unbounded);
        self.open.range(later).count() + self.finished.range(later).count()
    }

    /// Since when the oldest of what is finished waits.
    pub fn waits_since(&self) -> Option<Mono> {
        self.finished.values().map(|(_, since)| *since).min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(5);

    fn at(millis: u64) -> Mono {
        Mono(Duration::from_millis(millis))
    }

    fn tags(acks: Vec<Ack<u64>>) -> Vec<Vec<u64>> {
        acks.iter()
            .map(|a| a.covered().copied().collect())
            .collect()
    }

    fn came(count: u64) -> Outstanding<u64> {
        let mut outstanding = Outstanding::default();
        (1..=count).for_each(|tag| outstanding.came(Tag(tag)));
        outstanding
    }

    #[test]
    fn what_is_finished_before_a_gap_goes_together_and_what_is_behind_it_waits() {
        let mut outstanding = came(6);
        for tag in [6, 2, 1, 4] {
            outstanding.finish(Tag(tag), tag, at(0));
        }
        assert_eq!(tags(outstanding.take(at(0), PATIENCE)), [vec![1, 2]]);
        assert_eq!(outstanding.waits_since(), Some(at(0)));
        outstanding.finish(Tag(3), 3, at(1));
        assert_eq!(tags(outstanding.take(at(1), PATIENCE)), [vec![3, 4]]);
        assert_eq!(tags(outstanding.take(at(4), PATIENCE)), [[0; 0]; 0]);
        assert_eq!(tags(outstanding.take(at(5), PATIENCE)), [vec![6]]);
        assert_eq!(outstanding.waits_since(), None);
    }

    #[test]
    fn what_goes_back_is_a_gap_until_it_is_gone() {
        let mut outstanding = came(3);
        outstanding.finish(Tag(1), 1, at(0));
        outstanding.finish(Tag(3), 3, at(0));
        assert_eq!(tags(outstanding.take(at(0), PATIENCE)), [vec![1]]);
        outstanding.gave_back(Tag(2));
        assert_eq!(tags(outstanding.take(at(0), PATIENCE)), [vec![3]]);
    }

    #[test]
    fn where_numbers_are_missing_each_goes_by_itself() {
        let mut outstanding = came(2);
        outstanding.came(Tag(4));
        for tag in [1, 2, 4] {
            outstanding.finish(Tag(tag), tag, at(0));
        }
        let acks = tags(outstanding.take(at(0), PATIENCE));
        assert_eq!(acks, [vec![1], vec![2], vec![4]]);
    }

    /// What the broker knows of a delivery.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Known {
        OnItsWay,
        Open,
        Finished(Mono),
        GoingBack,
        Settled,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Deliver,
        /// The client sees what was delivered.
        Come,
        Finish(Index),
        GiveBack(Index),
        GaveBack(Index),
        Pass(u64),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Deliver),
            3 => Just(Step::Come),
            4 => any::<Index>().prop_map(Step::Finish),
            1 => any::<Index>().prop_map(Step::GiveBack),
            1 => any::<Index>().prop_map(Step::GaveBack),
            1 => (0..4_u64).prop_map(Step::Pass),
            2 => Just(Step::Take),
        ]
    }

    /// The broker carries them out to the letter: a multiple acknowledgement settles whatever is not
    /// settled up to there, even what the client has not seen.
    fn carry_out(
        acks: Vec<Ack<u64>>,
        broker: &mut BTreeMap<u64, Known>,
    ) -> Result<(), TestCaseError> {
        for ack in acks {
            let last = *ack.last();
            let proofs: BTreeSet<u64> = ack.covered().copied().collect();
            let first = if ack.is_multiple() { 0 } else { last };
            let unsettled = broker.range_mut(first..=last);
            let unsettled = unsettled.filter(|(_, known)| **known != Known::Settled);
            let mut covered = BTreeSet::new();
            for (tag, known) in unsettled {
                prop_assert!(matches!(known, Known::Finished(_)), "{tag} is {known:?}");
                *known = Known::Settled;
                covered.insert(*tag);
            }
            prop_assert_eq!(&covered, &proofs);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn only_what_is_finished_is_covered_and_all_of_it_in_time(
            steps in prop::collection::vec(step(), 1..300),
            skips in any::<bool>(),
        ) {
            let mut broker: BTreeMap<u64, Known> = BTreeMap::new();
            let mut outstanding = Outstanding::default();
            let mut now = 0;
            let pick = |broker: &BTreeMap<u64, Known>, wanted: Known, index: &Index| {
                let tags = broker.iter().filter(|(_, known)| **known == wanted);
                let tags: Vec<u64> = tags.map(|(tag, _)| *tag).collect();
                (!tags.is_empty()).then(|| *index.get(&tags))
            };
            for step in steps {
                match step {
                    Step::Deliver => {
                        let next = broker.last_key_value().map_or(1, |(tag, _)| tag + 1);
                        broker.insert(next, Known::OnItsWay);
                    }
                    Step::Come => {
                        let mut on_the_way = broker.iter_mut();
                        // One may be overtaken, if only in theory.
                        let skipped = usize::from(skips);
                        let arrives = on_the_way.find(|(_, known)| **known == Known::OnItsWay);
                        let arrives = match skipped {
                            0 => arrives,
                            _ => on_the_way.find(|(_, known)| **known == Known::OnItsWay),
                        };
                        if let Some((tag, known)) = arrives {
                            *known = Known::Open;
                            outstanding.came(Tag(*tag));
                        }
                    }
                    Step::Finish(index) => {
                        if let Some(tag) = pick(&broker, Known::Open, &index) {
                            broker.insert(tag, Known::Finished(at(now)));
                            outstanding.finish(Tag(tag), tag, at(now));
                        }
                    }
                    Step::GiveBack(index) => {
                        if let Some(tag) = pick(&broker, Known::Open, &index) {
                            broker.insert(tag, Known::GoingBack);
                        }
                    }
                    Step::GaveBack(index) => {
                        if let Some(tag) = pick(&broker, Known::GoingBack, &index) {
                            broker.insert(tag, Known::Settled);
                            outstanding.gave_back(Tag(tag));
                        }
                    }
                    Step::Pass(millis) => now += millis,
                    Step::Take => {
                        carry_out(outstanding.take(at(now), PATIENCE), &mut broker)?;
                        for known in broker.values() {
                            if let Known::Finished(since) = known {
                                prop_assert!(at(now).since(*since) < PATIENCE);
                            }
                        }
                    }
                }
            }
            carry_out(outstanding.take(at(now), Duration::ZERO), &mut broker)?;
            prop_assert!(!broker.values().any(|known| matches!(known, Known::Finished(_))));
            prop_assert_eq!(outstanding.waits_since(), None);
        }
    }
}
