//! `verify`: every page says whose it is, and every read checks all of it.
//!
//! The expected version is kept outside the page, so that a page which came back as an older
//! self is found, too. A page that was just obtained is either zero or has this guest's own
//! pattern from when it last had it, or a common content if this guest writes such; anything else
//! came from somebody else.

use core::fmt;

use super::content::{Content, is_common};
use super::pace::Pace;
use super::spec::VerifySpec;
use super::{Counters, Slice};
use crate::Gfn;
use crate::held::{Held, Slot};
use crate::page::{Memory, Page, Stamp, is_zero};
use crate::random::Random;

/// A page that is not what it must be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WrongPage {
    /// The page.
    pub gfn: Gfn,
    /// The version that was written; `None` for a page just obtained, of which nothing is known.
    pub expected_version: Option<u32>,
    /// What the page's header says. Common contents are of guest 4294967295.
    pub found: Stamp,
    /// The first wrong word.
    pub word: usize,
    /// What is in it.
    pub value: u64,
}

impl WrongPage {
    /// A page that we hold in which that word is wrong.
    pub(super) fn at(slot: Slot, page: &Page, word: usize) -> Self {
        Self {
            gfn: slot.gfn,
            expected_version: Some(slot.version),
            found: Stamp::read(page),
            word,
            value: page[word],
        }
    }
}

impl fmt::Display for WrongPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            gfn,
            found,
            word,
            value,
            ..
        } = self;
        match self.expected_version {
            Some(version) => write!(f, "verify: WRONG BYTE gfn={gfn} expected version={version}")?,
            None => write!(f, "verify: LEAK gfn={gfn} expected version=none")?,
        }
        let Stamp {
            guest,
            gfn,
            version,
        } = found;
        write!(
            f,
            " found guest={guest} gfn={gfn} version={version} word={word} value={value:#x}"
        )
    }
}

#[derive(Debug)]
pub(super) struct Verifier {
    spec: VerifySpec,
    guest: u32,
    pace: Pace,
    random: Random,
    /// This guest has written common contents, now or before.
    writes_common: bool,
}

impl Verifier {
    pub(super) fn new(spec: VerifySpec, guest: u32, writes_common: bool, now_us: u64) -> Self {
        Self {
            spec,
            guest,
            pace: Pace::new(u64::from(spec.rate), now_us),
            random: Random::new(u64::from(guest)),
            writes_common,
        }
    }

    /// Checks a page just obtained and makes it ours. `anything` goes if another workload of this
    /// guest had it last.
    pub(super) fn adopt(
        &self,
        gfn: Gfn,
        page: &mut Page,
        anything: bool,
    ) -> Result<Slot, WrongPage> {
        let found = Stamp::read(page);
        let own = Stamp {
            guest: self.guest,
            gfn,
            version: found.version,
        };
        let wrong = if is_zero(page) || (self.writes_common && is_common(page)) {
            None
        } else {
            own.first_wrong_word(page)
        };
        if let Some(word) = wrong
            && !anything
        {
            return Err(WrongPage {
                gfn,
                expected_version: None,
                found,
                word,
                value: page[word],
            });
        }
        let slot = Slot {
            gfn,
            version: found.version.wrapping_add(1),
        };
        self.content(slot).write(page);
        Ok(slot)
    }

    /// Checks a page that we hold.
    pub(super) fn check(&self, slot: Slot, page: &Page) -> Result<(), WrongPage> {
        match self.content(slot).first_wrong_word(page) {
            None => Ok(()),
            Some(word) => Err(WrongPage::at(slot, page, word)),
        }
    }

    /// Checks, and rewrites some of, as many pages as are due. Returns when to come again.
    pub(super) fn step(
        &mut self,
        held: &mut Held<'_>,
        memory: &mut impl Memory,
        counters: &mut Counters,
        slice: &mut Slice<'_>,
    ) -> Result<Option<u64>, WrongPage> {
        let count = held.count();
        let mut due = self.pace.due(slice.now_us());
        while due > 0 && count > 0 && !slice.is_over() {
            let slot = &mut held.slots()[self.random.below(count) as usize];
            let page = memory.page(slot.gfn);
            counters.checks += 1;
            self.check(*slot, page)?;
            if self.random.percent(self.spec.write) {
                slot.version = slot.version.wrapping_add(1);
                self.content(*slot).write(page);
                counters.rewritten += 1;
            }
            due -= 1;
            self.pace.note_done(1);
        }
        Ok(self.pace.wake_at_us(slice.now_us()))
    }

    fn content(&self, slot: Slot) -> Content {
        Content::of(self.guest, slot, self.spec.common)
    }
}
