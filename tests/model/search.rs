//! Exploring: by chance, and by enumerating every course with few deviations.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::choices::Choices;
use crate::config::Config;
use crate::world::World;

/// How much was seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub courses: usize,
    pub steps: usize,
    pub states: usize,
}

/// One step; what a panic says is a broken law too.
fn advance(world: &mut World) -> bool {
    let stepped = catch_unwind(AssertUnwindSafe(|| world.advance()));
    stepped.unwrap_or_else(|_| {
        world.broken = Some("it panicked".into());
        false
    })
}

/// The course with these choices again, with every step told.
fn fail(config: &Config, choices: Vec<usize>, broken: &str) -> ! {
    let mut world = World::new(config, Choices::given(choices.clone()), true);
    while advance(&mut world) {}
    let trace = world.take_trace();
    let again = world.broken;
    panic!("{broken}\n{config:#?}\n{choices:?}\n{trace}\n{broken}\nwhen replayed: {again:?}");
}

/// One course by chance, to its end.
pub fn by_chance(
    config: &Config,
    chance: fastrand::Rng,
    mut states: Option<&mut HashSet<u64>>,
) -> usize {
    let mut world = World::new(config, Choices::by(chance), false);
    while advance(&mut world) {
        if let Some(states) = &mut states {
            states.insert(world.digest());
        }
    }
    if let Some(broken) = &world.broken {
        fail(config, world.choices.list(), broken);
    }
    world.steps
}

/// A state on the way, and the choices that led here from the one before.
struct Stop<'a> {
    world: World<'a>,
    digest: u64,
    led_here: Vec<usize>,
    deviations_left: usize,
    /// The choices of the step to be tried next.
    next: Option<Vec<usize>>,
}

impl<'a> Stop<'a> {
    fn new(world: World<'a>, digest: u64, led_here: Vec<usize>, deviations_left: usize) -> Self {
        Self {
            world,
            digest,
            led_here,
            deviations_left,
            next: Some(Vec::new()),
        }
    }

    /// The state after the next step that was not tried yet, and whether the course goes on.
    fn branch(&mut self) -> Option<(World<'a>, bool)> {
        let mut world = self.world.clone();
        world.choices = Choices::given(self.next.take()?);
        let goes_on = advance(&mut world);
        self.next = world.choices.next(self.deviations_left);
        Some((world, goes_on))
    }
}

/// Every course with at most so many deviations from the plain one. A state that was seen with as
/// many deviations left is not searched again. From each state the plain course is followed to its
/// end, so from wherever faults cease, everything is told in the end.
pub fn every_course(config: &Config, deviations: usize) -> Seen {
    let mut seen = Seen::default();
    let start = World::new(config, Choices::default(), false);
    let digest = start.digest();
    let mut visited = HashMap::from([(digest, deviations)]);
    let mut path = vec![Stop::new(start, digest, Vec::new(), deviations)];
    while let Some(stop) = path.last_mut() {
        let left = stop.deviations_left;
        let Some((world, goes_on)) = stop.branch() else {
            path.pop();
            continue;
        };
        let list = world.choices.list();
        let choices = |path: &[Stop]| {
            let before = path.iter().flat_map(|stop| &stop.led_here);
            before.chain(&list).copied().collect()
        };
        if let Some(broken) = &world.broken {
            fail(config, choices(&path), broken);
        }
        if !goes_on {
            seen.courses += 1;
            continue;
        }
        seen.steps += 1;
        let digest = world.digest();
        if path.iter().any(|stop| stop.digest == digest) {
            fail(config, choices(&path), "it goes round in a circle");
        }
        let left = left - world.choices.deviations();
        let most = visited.entry(digest).or_insert(usize::MAX);
        if *most != usize::MAX && *most >= left {
            seen.courses += 1;
            continue;
        }
        *most = left;
        path.push(Stop::new(world, digest, list, left));
    }
    seen.states = visited.len();
    seen
}
