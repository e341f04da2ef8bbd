//! What is told when nothing keeps two threads apart.

use crate::rules::{Aspect, Protections};
use std::fmt;
use std::panic::Location;

/// Somebody is at a page.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Which thread: any number that no other has.
    pub thread: u32,
    /// Its locks, and whether it is the agent.
    pub has: Protections,
    /// Where.
    pub place: &'static Location<'static>,
}

/// Nothing keeps this one apart from others who were there, or may come.
#[derive(Clone, Copy, Debug)]
pub struct Race {
    /// What they share.
    pub aspect: Aspect,
    /// Where it was found.
    pub place: &'static Location<'static>,
    /// What this one has.
    pub held: Protections,
    /// Where the one before was, or let others come.
    pub earlier: Option<&'static Location<'static>>,
    /// What all before had.
    pub candidates: Protections,
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (aspect, place, held) = (self.aspect, self.place, self.held);
        write!(f, "{aspect:?} at {place} with {held}, ")?;
        match self.earlier {
            Some(earlier) => write!(f, "earlier at {earlier} with {}", self.candidates),
            None => write!(f, "and nobody before"),
        }
    }
}
