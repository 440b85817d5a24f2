//! What happens, as a list of numbers: chance draws it, a search enumerates it, a failure is
//! replayed from it.

#[derive(Debug, Clone, Default)]
pub struct Choices {
    given: Vec<usize>,
    chance: Option<fastrand::Rng>,
    /// Each choice, and among how many.
    taken: Vec<(usize, usize)>,
}

impl Choices {
    /// By chance.
    pub fn by(chance: fastrand::Rng) -> Self {
        Self {
            chance: Some(chance),
            ..Self::default()
        }
    }

    /// These, and after them always the first of what there is.
    pub fn given(given: Vec<usize>) -> Self {
        Self {
            given,
            ..Self::default()
        }
    }

    /// One of so many; 0 is the plain course of things.
    pub fn pick(&mut self, of: usize) -> usize {
        if of <= 1 {
            return 0;
        }
        let choice = match (self.given.get(self.taken.len()), &mut self.chance) {
            (Some(given), _) => *given,
            (None, Some(rng)) => rng.usize(..of),
            (None, None) => 0,
        };
        assert!(choice < of, "a replay takes the same choices");
        self.taken.push((choice, of));
        choice
    }

    pub fn yes(&mut self) -> bool {
        self.pick(2) == 1
    }

    pub fn list(&self) -> Vec<usize> {
        self.taken.iter().map(|(choice, _)| *choice).collect()
    }

    /// How many of them were not the first of what there was.
    pub fn deviations(&self) -> usize {
        self.taken.iter().filter(|(choice, _)| *choice != 0).count()
    }

    /// The next list with at most `most` deviations.
    pub fn next(&self, most: usize) -> Option<Vec<usize>> {
        let list = self.list();
        (0..list.len()).rev().find_map(|at| {
            let (choice, of) = self.taken[at];
            let before = list[..at].iter().filter(|c| **c != 0).count();
            (choice + 1 < of && before < most).then(|| {
                let mut next = list[..at].to_vec();
                next.push(choice + 1);
                next
            })
        })
    }
}
