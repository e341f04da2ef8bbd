//! One aligned window of 512 frames: whose it is, and each frame's references.
//!
//! Four bytes a frame: 24 bits of references and an 8-bit generation. The generation moves on when a
//! frame is freed, so that the index's entry for it dies without being looked for.

use super::BLOCK_PAGES;
use crate::block::PageSet;
use crate::content::Domain;

const REFERENCE_MASK: u32 = 0x00ff_ffff;
/// In place of a count: freed, but its page is not punched out of the store yet.
const UNPUNCHED: u32 = REFERENCE_MASK;
/// The most references a frame can have; further pages of this content get another frame.
pub(crate) const MOST_REFERENCES: u32 = UNPUNCHED - 1;
const ONE_GENERATION: u32 = REFERENCE_MASK + 1;

/// What a window's frames are laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Frame n holds page n of some block, so that its clones map the window whole.
    Image,
    /// Runs of any length, one after the other.
    Loose,
}

#[derive(Debug)]
pub(super) struct Window {
    /// Whose contents; none while it is free.
    pub(super) owner: Option<(Domain, Layout)>,
    /// Frames with references.
    pub(super) live: u32,
    unpunched: u32,
    /// Guest pages over which a mapping of this window lies, readable or under a broken page.
    pub(super) covered: u32,
    frames: Box<[u32; BLOCK_PAGES]>,
    /// Frames with one reference whose other user was waited for once.
    waited: PageSet,
    /// Frames with one reference for which nobody is waited any more.
    lonely: PageSet,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            owner: None,
            live: 0,
            unpunched: 0,
            covered: 0,
            frames: Box::new([0; BLOCK_PAGES]),
            waited: PageSet::EMPTY,
            lonely: PageSet::EMPTY,
        }
    }

    /// Whether nothing of its owner is left: no content, and no mapping that could show what comes.
    pub(super) fn is_empty(&self) -> bool {
        self.live == 0 && self.unpunched == 0 && self.covered == 0
    }

    pub(super) fn references(&self, frame: usize) -> u32 {
        match self.frames[frame] & REFERENCE_MASK {
            UNPUNCHED => 0,
            references => references,
        }
    }

    pub(super) fn generation(&self, frame: usize) -> u8 {
        (self.frames[frame] >> 24) as u8
    }

    pub(super) fn is_free(&self, frame: usize) -> bool {
        self.frames[frame] & REFERENCE_MASK == 0
    }

    pub(super) fn free_count(&self) -> usize {
        BLOCK_PAGES - (self.live + self.unpunched) as usize
    }

    /// Free frames from `frame` on, up to `most`.
    pub(super) fn free_run(&self, frame: usize, most: usize) -> usize {
        (frame..BLOCK_PAGES)
            .take(most)
            .take_while(|&frame| self.is_free(frame))
            .count()
    }

    /// The first free run of `wanted` frames, or else the longest shorter one: (first, count).
    pub(super) fn find_run(&self, wanted: usize) -> Option<(usize, usize)> {
        let mut best = None;
        let mut frame = 0;
        while frame < BLOCK_PAGES {
            let count = self.free_run(frame, wanted);
            if count > best.map_or(0, |(_, count)| count) {
                best = Some((frame, count));
            }
            if count == wanted {
                break;
            }
            frame += count + 1;
        }
        best
    }

    pub(super) fn take(&mut self, frame: usize) {
        assert!(self.is_free(frame), "frame {frame} given out twice");
        self.frames[frame] += 1;
        self.live += 1;
    }

    /// False, and nothing done, if the frame has as many references as can be counted.
    pub(super) fn add_reference(&mut self, frame: usize) -> bool {
        let references = self.references(frame);
        assert!(references > 0, "a reference to the freed frame {frame}");
        let has_room = references < MOST_REFERENCES;
        self.frames[frame] += u32::from(has_room);
        self.expect_company(frame);
        has_room
    }

    /// Whatever was waited for in vain, from now on it is waited anew.
    pub(super) fn expect_company(&mut self, frame: usize) {
        self.waited.remove(frame);
        self.lonely.remove(frame);
    }

    /// Its one user was looked at, and nobody else had come.
    pub(super) fn wait(&mut self, frame: usize) {
        if self.references(frame) != 1 {
            return;
        }
        match self.waited.contains(frame) {
            true => self.lonely.insert(frame),
            false => self.waited.insert(frame),
        }
    }

    pub(super) fn is_lonely(&self, frame: usize) -> bool {
        self.lonely.contains(frame)
    }

    /// True if it was the last one.
    pub(super) fn release(&mut self, frame: usize) -> bool {
        let references = self.references(frame);
        assert!(references > 0, "frame {frame} released too often");
        if references > 1 {
            self.frames[frame] -= 1;
            if references == 2 {
                self.lonely.insert(frame);
            }
            return false;
        }
        self.expect_company(frame);
        let generation = self.frames[frame] & !REFERENCE_MASK;
        self.frames[frame] = generation.wrapping_add(ONE_GENERATION) | UNPUNCHED;
        self.live -= 1;
        self.unpunched += 1;
        true
    }

    pub(super) fn punched(&mut self, frame: usize) {
        self.frames[frame] &= !REFERENCE_MASK;
        self.unpunched -= 1;
    }
}
