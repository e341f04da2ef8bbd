//! How guest memory is read to be hashed: many pages of a block through a window, without copying them, and few by calls
//! that copy them out.

use super::super::hash::PageHash;
use super::{ScannedVm, Source};
use crate::error_chain;
use crate::memory::block_window::BlockWindows;
use page::PAGE_BYTES;
use sharing::{Content, PageSet};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Pages read by one call: what is read is still in a core's cache when it is hashed.
const READ_AT_ONCE: usize = 64;
/// From so many pages of a block on, a window is cheaper. To open and close one takes 7 µs where the block is one
/// large page and 13 where it is not; a page read through it is cheaper by 0.3 µs.
const WINDOW_PAGES: usize = 128;
/// After a window met a hole, so many times as long as it took no other is opened for the same VM. Who touches a hole that
/// is just being punched waits in the kernel until that is done: a VM process that punches all its memory again and
/// again would hold up the scanner otherwise.
const PAUSE_FACTOR: u32 = 100;

/// What one thread needs to read memory.
#[derive(Debug)]
pub(in crate::host::sharing) struct PageReader {
    windows: Option<BlockWindows>,
    buffer: Vec<u8>,
}

/// Whether a VM's memory is read through windows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WindowsOf {
    /// Its memory file cannot be.
    is_refused: bool,
    /// Not before.
    after: Option<Instant>,
}

impl WindowsOf {
    fn may_open(self) -> bool {
        !self.is_refused && self.after.is_none_or(|after| after < Instant::now())
    }

    fn lost(&mut self, took: Duration) {
        self.after = Some(Instant::now() + took * PAUSE_FACTOR);
    }
}

impl PageReader {
    pub(in crate::host::sharing) fn new() -> Self {
        let windows = BlockWindows::new().inspect_err(|error| {
            tracing::debug!("memory is copied to be read: {}", error_chain(error));
        });
        Self {
            windows: windows.ok(),
            buffer: vec![0; READ_AT_ONCE * PAGE_BYTES],
        }
    }

    /// Reads those pages of a block that the memory file holds. Returns how many could be read.
    pub(super) fn read_own(
        &mut self,
        vm: &mut ScannedVm,
        pages: &Range<u64>,
        set: &PageSet,
        mut found: impl FnMut(usize, Content),
    ) -> u64 {
        let seen = match set.count() >= WINDOW_PAGES && vm.windows.may_open() {
            true => self.read_window(vm, pages, set, &mut found),
            false => PageSet::EMPTY,
        };
        let rest = set.without(&seen);
        seen.count() as u64 + self.read_runs(vm, pages, &rest, Source::MemoryFile, found)
    }

    /// Returns the pages that could be read. If one was punched meanwhile, the rest could not.
    fn read_window(
        &self,
        vm: &mut ScannedVm,
        pages: &Range<u64>,
        set: &PageSet,
        found: &mut impl FnMut(usize, Content),
    ) -> PageSet {
        let Some(windows) = &self.windows else {
            return PageSet::EMPTY;
        };
        let window = match windows.open(&vm.file, pages.clone()) {
            Ok(window) => window,
            Err(error) => {
                let name = &vm.name;
                tracing::debug!(
                    "memory of {name} is copied to be read: {}",
                    error_chain(&error)
                );
                vm.windows.is_refused = true;
                return PageSet::EMPTY;
            }
        };
        let begin = Instant::now();
        let hash: &PageHash = &vm.hash;
        let contents = set.iter().map_while(|place| {
            let content = window.read(place, |page| hash.content_of(page));
            content.map(|content| (place, content))
        });
        let seen: PageSet = contents
            .map(|(place, content)| {
                found(place, content);
                place
            })
            .collect();
        if seen != *set {
            vm.windows.lost(begin.elapsed());
        }
        seen
    }

    /// Reads the pages of a set run by run; what cannot be read is left out. Returns how many could be.
    pub(super) fn read_runs(
        &mut self,
        vm: &ScannedVm,
        pages: &Range<u64>,
        set: &PageSet,
        source: Source,
        mut found: impl FnMut(usize, Content),
    ) -> u64 {
        let mut read = 0;
        for (start, count) in set.runs().into_iter().flat_map(pieces) {
            let bytes = &mut self.buffer[..count * PAGE_BYTES];
            if vm.read(pages.start + start as u64, source, bytes).is_err() {
                continue;
            }
            read += count as u64;
            for (place, page) in (start..).zip(bytes.chunks(PAGE_BYTES)) {
                found(place, vm.hash.content(page));
            }
        }
        read
    }
}

/// A run in pieces that can be read at once.
fn pieces((start, count): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    let starts = (start..start + count).step_by(READ_AT_ONCE);
    starts.map(move |piece| (piece, READ_AT_ONCE.min(start + count - piece)))
}

#[cfg(test)]
mod tests;
