//! How many commands may be on their way from the broker, so that those in hand take no more memory
//! than they may.
//!
//! The broker bounds what it sends by count only: a window of two thousand may be two thousand of a
//! hundred bytes, or of a mebibyte each. So what is in hand is weighed. What comes when that is too
//! much goes back, and the next window is as wide as half of what was held then. A window begins
//! narrow, and doubles each time a whole one turns out light. A command that alone is too heavy is
//! taken when nothing else is in hand, for it has to be answered, too.

/// What to do with a delivery that has just come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Arrival {
    /// Take it in hand.
    Take,
    /// Take it, and ask for a wider window: what came of this one is light.
    TakeAndWiden,
    /// Give it back, and all that are on their way behind it.
    GiveBack,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    most: u16,
    now: u16,
    max_weight: usize,
    /// Taken since it was opened or last found heavy.
    taken: u32,
    weight: usize,
}

impl Window {
    /// A window of `first` and up to `most`, at least 1, for at most `max_weight` in hand.
    pub fn new(most: u16, first: u16, max_weight: usize) -> Self {
        let most = most.max(1);
        Self {
            most,
            now: first.clamp(1, most),
            max_weight,
            taken: 0,
            weight: 0,
        }
    }

    /// How many the broker may send ahead of the acknowledgements.
    pub fn width(&self) -> u16 {
        self.now
    }

    /// A delivery of this weight has come, while `count` of together `in_hand` are in hand.
    pub fn arrive(&mut self, weight: usize, count: usize, in_hand: usize) -> Arrival {
        if count > 0 && in_hand.saturating_add(weight) > self.max_weight {
            self.narrow(count);
            return Arrival::GiveBack;
        }
        self.taken += 1;
        self.weight = self.weight.saturating_add(weight);
        if self.taken < u32::from(self.now) {
            return Arrival::Take;
        }
        let is_light = self.weight <= self.max_weight / 4;
        (self.taken, self.weight) = (0, 0);
        if is_light && self.now < self.most {
            self.now = self.now.saturating_mul(2).min(self.most);
            return Arrival::TakeAndWiden;
        }
        Arrival::Take
    }

    /// Something too heavy has come, while `count` are in hand: the next window fits half of them.
    pub fn narrow(&mut self, count: usize) {
        let half = u16::try_from(count / 2).unwrap_or(u16::MAX);
        self.now = half.clamp(1, self.now);
        (self.taken, self.weight) = (0, 0);
    }

    /// After a delivery of this weight was given back: the weight in hand at which to go on.
    pub fn goes_on_at(&self, weight: usize) -> usize {
        (self.max_weight / 2).min(self.max_weight.saturating_sub(weight))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn light_commands_keep_it_wide() {
        let mut window = Window::new(100, 100, 1_000);
        for count in 0..1_000 {
            assert_eq!(window.arrive(1, count % 100, count % 100), Arrival::Take);
        }
        assert_eq!(window.width(), 100);
    }

    #[test]
    fn a_heavy_one_goes_back_and_the_window_fits_half_of_what_was_held() {
        let mut window = Window::new(100, 100, 1_000);
        assert_eq!(window.arrive(400, 0, 0), Arrival::Take);
        assert_eq!(window.arrive(400, 1, 400), Arrival::Take);
        assert_eq!(window.arrive(400, 2, 800), Arrival::GiveBack);
        assert_eq!(window.width(), 1);
        assert_eq!(window.goes_on_at(400), 500);
        assert_eq!(window.goes_on_at(800), 200);
    }

    #[test]
    fn one_that_alone_is_too_heavy_waits_until_nothing_else_is_in_hand() {
        let mut window = Window::new(100, 100, 1_000);
        assert_eq!(window.arrive(5_000, 1, 1), Arrival::GiveBack);
        assert_eq!(window.goes_on_at(5_000), 0);
        assert_eq!(window.arrive(5_000, 0, 0), Arrival::Take);
    }

    #[test]
    fn it_widens_again_window_by_window() {
        let mut window = Window::new(5, 5, 1_000);
        assert_eq!(window.arrive(900, 2, 400), Arrival::GiveBack);
        let widths: Vec<u16> = (0..7)
            .map(|_| {
                let _ = window.arrive(1, 0, 0);
                window.width()
            })
            .collect();
        assert_eq!(widths, [2, 2, 4, 4, 4, 4, 5]);
    }

    proptest! {
        /// A broker that sends whatever the window lets it, and a worker that finishes the oldest.
        #[test]
        fn the_weight_in_hand_is_bounded_and_all_are_taken(
            weights in prop::collection::vec(prop_oneof![9 => 1_usize..20, 1 => 1_usize..2_000], 1..300),
            most in 1_u16..100,
            first in 0_u16..100,
        ) {
            let max_weight = 1_000;
            let mut window = Window::new(most, first, max_weight);
            let mut queue: VecDeque<usize> = weights.iter().copied().collect();
            let mut held: VecDeque<usize> = VecDeque::new();
            let mut returns = 0;
            while !queue.is_empty() {
                let mut on_the_way: VecDeque<usize> = queue
                    .drain(..usize::from(window.width()).min(queue.len()))
                    .collect();
                while let Some(weight) = on_the_way.pop_front() {
                    let in_hand: usize = held.iter().sum();
                    if window.arrive(weight, held.len(), in_hand) == Arrival::GiveBack {
                        on_the_way.push_front(weight);
                        returns += on_the_way.len();
                        for returned in on_the_way.drain(..).rev() {
                            queue.push_front(returned);
                        }
                        while held.iter().sum::<usize>() > window.goes_on_at(weight) {
                            held.pop_front();
                        }
                    } else {
                        held.push_back(weight);
                        let in_hand: usize = held.iter().sum();
                        prop_assert!(in_hand <= max_weight || held.len() == 1);
                    }
                }
                held.pop_front();
            }
            // Each heavy one sends back what is behind it at most twice.
            let heavy = weights.iter().filter(|w| **w >= 20).count();
            prop_assert!(returns <= (heavy + 1) * 2 * usize::from(most), "{returns} for {heavy}");
        }
    }
}
