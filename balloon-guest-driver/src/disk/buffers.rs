//! Blocks read and written through the cache: acts on what [`Cache`] decides.
#![expect(unsafe_code, reason = "buffers are lent to the disk")]

use super::cache::{Cache, Found};
use super::requests::{Done, Requests};
use super::{Action, Block, Disk, DiskError, RUN_BLOCKS};
use crate::Gfn;
use crate::held::Held;
use crate::page::{Memory, Page};

/// The cache with all that it works on, for one step.
#[expect(
    missing_debug_implementations,
    reason = "it is made of references to what others show"
)]
pub struct Buffers<'s, 'a, M> {
    /// What is where.
    pub cache: &'s mut Cache<'a>,
    /// What is under way.
    pub requests: &'s mut Requests,
    /// The frames of the places.
    pub held: &'s Held<'a>,
    /// The frames' contents.
    pub memory: &'s mut M,
    /// Where blocks come from.
    pub disk: &'s mut dyn Disk,
    /// The time.
    pub now_us: u64,
}

/// A block that is looked for.
#[derive(Debug, Eq, PartialEq)]
pub enum Seen<'p> {
    /// Here it is.
    Page(&'p Page),
    /// It is on its way from or to the disk.
    Busy,
    /// It has to be read first.
    Absent,
}

/// The disk failed a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FailedRequest {
    /// What it was to do.
    pub action: Action,
    /// Its first block.
    pub first: Block,
    /// Why.
    pub error: DiskError,
}

impl<M: Memory> Buffers<'_, '_, M> {
    /// Takes in what the disk has done.
    ///
    /// # Errors
    /// What it failed to do; the rest is still to be taken in. A block that was to be written stays
    /// dirty.
    pub fn take_done(&mut self) -> Result<(), FailedRequest> {
        while let Some(done) = self.requests.take_done(self.disk, self.now_us) {
            self.complete(done)?;
        }
        Ok(())
    }

    fn complete(&mut self, done: Done) -> Result<(), FailedRequest> {
        let Done {
            action,
            first,
            count,
            result,
        } = done;
        for block in first..first + count {
            match action {
                Action::Read => self.cache.end_read(block, result.is_ok()),
                Action::Write => self.cache.end_write(block, result.is_ok()),
                Action::Flush => {}
            }
        }
        result.map_err(|error| FailedRequest {
            action,
            first,
            error,
        })
    }

    /// Looks at a block.
    pub fn see(&mut self, block: Block) -> Seen<'_> {
        match self.cache.find(block) {
            Found::Here(place) => {
                self.cache.touch(place);
                Seen::Page(self.memory.page(self.held.gfn(place)))
            }
            Found::Busy(_) => Seen::Busy,
            Found::Absent => Seen::Absent,
        }
    }

    /// Begins to read the blocks from `first` on that are absent, up to the first that is not, `most`
    /// at most. Returns how many; 0 if there is no room for a request or a buffer now.
    pub fn start_read(&mut self, first: Block, most: u32) -> u32 {
        if !self.requests.has_room() {
            return 0;
        }
        let mut gfns = [0; RUN_BLOCKS];
        let mut count = 0;
        for (block, gfn) in (first..first + most).zip(&mut gfns) {
            if self.cache.find(block) != Found::Absent {
                break;
            }
            let Some(place) = self.cache.claim(block) else {
                break;
            };
            self.cache.begin_read(place);
            *gfn = self.held.gfn(place);
            count += 1;
        }
        if count > 0 {
            self.lend(Action::Read, first, &gfns[..count as usize]);
        }
        count
    }

    /// The page of a block that will be written, all of it. `None` if that has to wait: for the disk,
    /// which has the block, or because there is no buffer, or too much is dirty.
    pub fn write(&mut self, block: Block) -> Option<&mut Page> {
        let place = match self.cache.find(block) {
            Found::Busy(_) => return None,
            _ if self.cache.is_too_dirty() => return None,
            Found::Here(place) => place,
            Found::Absent => self.cache.claim(block)?,
        };
        self.cache.mark_dirty(place);
        Some(self.memory.page(self.held.gfn(place)))
    }

    /// Begins to write back what should be, or all that is dirty.
    pub fn write_back(&mut self, all: bool) {
        while self.requests.has_room()
            && (all || self.cache.wants_write_back())
            && let Some((first, count)) = self.cache.dirty_run()
        {
            let mut gfns = [0; RUN_BLOCKS];
            for (block, gfn) in (first..).zip(&mut gfns[..count]) {
                *gfn = self.lend_dirty(block);
            }
            self.lend(Action::Write, first, &gfns[..count]);
        }
    }

    fn lend_dirty(&mut self, block: Block) -> Gfn {
        let Found::Here(place) = self.cache.find(block) else {
            unreachable!("block {block} of a dirty run is not here");
        };
        self.cache.begin_write(place);
        self.held.gfn(place)
    }

    /// Has the disk make safe what was written. False if there is no room for that now.
    pub fn start_flush(&mut self) -> bool {
        let has_room = self.requests.has_room();
        if has_room {
            self.lend(Action::Flush, 0, &[]);
        }
        has_room
    }

    fn lend(&mut self, action: Action, first: Block, gfns: &[Gfn]) {
        // SAFETY: the frames are held, and their buffers were marked as lent: `see`, `write` and
        // `Cache::give_up` leave them alone until `complete` takes them back.
        unsafe {
            self.requests
                .start(self.disk, (action, first, gfns), self.now_us);
        };
    }
}
