//! The store's frames: which is where, whose, and how many pages refer to it.
//!
//! The store is one memory file. A run of neighbouring pages that maps neighbouring frames needs one
//! call and one memory area, however long it is, so frames are given out in guest order, next to the
//! frames that the neighbouring pages have. A block of which much is shared gets an aligned window of
//! its own, page n at frame n: its clones then map the window whole. A frame never filled is a hole of
//! the file and costs only its four bytes here, so a window may have gaps.
//!
//! What must stay true:
//! * A window holds frames of one domain. It changes hands only when it holds no content, and no
//!   mapping of it is left, not even under broken pages: what is under one shows if the page is dropped.
//! * Every mapped page and every page that was asked to map has one reference, and a frame is free
//!   exactly when it has none.
//! * A frame freed is given out again only after [`Frames::take_freed`] named it, because the host
//!   punches what it names and would punch the new content.

mod window;

use crate::block::BLOCK_PAGES;
use crate::content::Domain;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
pub(crate) use window::MOST_REFERENCES;
use window::{Layout, Window};

/// Windows of a domain that are looked into for a long enough run before a new one is opened.
const WINDOWS_TRIED: usize = 8;

/// A page of the shared-page store, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Frame(pub u32);

impl Frame {
    fn window(self) -> usize {
        self.0 as usize / BLOCK_PAGES
    }

    /// Its place in its window.
    pub(crate) fn index(self) -> usize {
        self.0 as usize % BLOCK_PAGES
    }

    /// The first frame of its window.
    pub(crate) fn window_start(self) -> Self {
        self.before(self.index())
    }

    /// The frame `count` further on.
    ///
    /// # Panics
    /// If there is no such frame number.
    pub(crate) fn after(self, count: usize) -> Self {
        let count = u32::try_from(count).expect("runs are shorter than the store");
        Self(self.0 + count)
    }

    fn before(self, count: usize) -> Self {
        let count = u32::try_from(count).expect("runs are shorter than the store");
        Self(self.0 - count)
    }
}

/// Neighbouring frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRange {
    /// The first.
    pub start: Frame,
    /// How many.
    pub count: u32,
}

/// A frame and which of its lives is meant: numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FrameKey {
    pub(crate) frame: Frame,
    pub(crate) generation: u8,
}

#[derive(Debug)]
pub(crate) struct Frames {
    windows: Vec<Window>,
    window_limit: usize,
    /// Windows without an owner.
    free: Vec<usize>,
    /// Windows for runs, by owner, the newest last.
    loose: BTreeMap<Domain, Vec<usize>>,
    freed: Vec<Frame>,
    live: u64,
}

impl Frames {
    /// A store of at most `limit` frames, rounded down to windows.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            windows: Vec::new(),
            window_limit: limit as usize / BLOCK_PAGES,
            free: Vec::new(),
            loose: BTreeMap::new(),
            freed: Vec::new(),
            live: 0,
        }
    }

    /// Frames that have references: the memory that the store takes.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// Memory for the counts.
    pub(crate) fn bytes(&self) -> usize {
        self.windows.len() * (size_of::<Window>() + BLOCK_PAGES * size_of::<u32>())
    }

    pub(crate) fn references(&self, frame: Frame) -> u32 {
        let window = self.windows.get(frame.window());
        window.map_or(0, |window| window.references(frame.index()))
    }

    pub(crate) fn domain(&self, frame: Frame) -> Option<Domain> {
        let window = self.windows.get(frame.window())?;
        window.owner.map(|(domain, _)| domain)
    }

    /// The life that the frame has now.
    pub(crate) fn key(&self, frame: Frame) -> FrameKey {
        FrameKey {
            frame,
            generation: self.windows[frame.window()].generation(frame.index()),
        }
    }

    /// Whether the frame lives, and still the life that is meant.
    pub(crate) fn is_live(&self, key: FrameKey) -> bool {
        self.references(key.frame) > 0 && self.key(key.frame) == key
    }

    /// Windows in which these frames lie are given to nobody, if nobody has them yet, until [`Self::take_over`] or
    /// [`Self::all_have_come`].
    pub(crate) fn expect(&mut self, range: FrameRange) {
        let first = range.start.0 as usize;
        let windows = first / BLOCK_PAGES..(first + range.count as usize).div_ceil(BLOCK_PAGES);
        for number in windows.start..windows.end.min(self.window_limit) {
            self.keep_free_of_others(number);
        }
    }

    /// Windows that nobody came for may be given to others.
    pub(crate) fn all_have_come(&mut self) {
        let windows = self.windows.iter().enumerate();
        let unowned = windows.filter(|(_, window)| window.owner.is_none());
        self.free = unowned.map(|(number, _)| number).collect();
    }

    fn keep_free_of_others(&mut self, number: usize) {
        while self.windows.len() <= number {
            self.free.push(self.windows.len());
            self.windows.push(Window::new());
        }
        self.free.retain(|&free| free != number);
    }

    /// A page of the domain's shows a frame that another host filled, or has written over it: then the frame is only below.
    /// A page that shows it is a reference. False, and nothing done, if that cannot be: there is no such frame, it is another
    /// domain's, or has as many references as can be counted.
    pub(crate) fn take_over(&mut self, domain: Domain, frame: Frame, is_shown: bool) -> bool {
        let number = frame.window();
        if number >= self.window_limit {
            return false;
        }
        self.keep_free_of_others(number);
        match self.windows[number].owner {
            None => {
                self.windows[number].owner = Some((domain, Layout::Loose));
                self.loose.entry(domain).or_default().push(number);
            }
            Some((owner, _)) if owner != domain => return false,
            Some(_) => {}
        }
        let (window, index) = (&mut self.windows[number], frame.index());
        match is_shown {
            true if window.is_free(index) => {
                window.take(index);
                self.live += 1;
                true
            }
            true => window.add_reference(index),
            false => true,
        }
    }

    /// Opens a window for an image of a block. Its frames are taken with [`Self::take_at`].
    pub(crate) fn reserve_window(&mut self, domain: Domain) -> Option<Frame> {
        self.open((domain, Layout::Image)).map(first_frame)
    }

    /// Takes up to `most` free frames from `first` on, if that lies in a window of the domain. Each has
    /// one reference then. Returns how many.
    pub(crate) fn take_at(&mut self, domain: Domain, first: Frame, most: usize) -> usize {
        if self.domain(first) != Some(domain) {
            return 0;
        }
        let window = &mut self.windows[first.window()];
        let count = window.free_run(first.index(), most);
        (first.index()..first.index() + count).for_each(|frame| window.take(frame));
        self.live += count as u64;
        count
    }

    /// Takes a run of `wanted` frames, or a shorter one where there is no better: (first, count). None
    /// if the store is full.
    pub(crate) fn take_run(&mut self, domain: Domain, wanted: usize) -> Option<(Frame, usize)> {
        let (window, index) = self.find_run(domain, wanted)?;
        let first = first_frame(window).after(index);
        let count = self.take_at(domain, first, wanted);
        Some((first, count))
    }

    fn find_run(&mut self, domain: Domain, wanted: usize) -> Option<(usize, usize)> {
        let windows = self.loose.get(&domain).map_or(&[][..], Vec::as_slice);
        let recent: Vec<usize> = windows
            .iter()
            .rev()
            .copied()
            .filter(|&window| self.windows[window].free_count() > 0)
            .take(WINDOWS_TRIED)
            .collect();
        if let Some((window, (index, _))) = self
            .runs(&recent, wanted)
            .find(|&(_, (_, count))| count == wanted)
        {
            return Some((window, index));
        }
        if let Some(window) = self.open((domain, Layout::Loose)) {
            return Some((window, 0));
        }
        let longest = self
            .runs(&recent, wanted)
            .max_by_key(|&(_, (_, count))| count);
        longest
            .map(|(window, (index, _))| (window, index))
            .or_else(|| self.find_gap(domain))
    }

    fn runs(
        &self,
        windows: &[usize],
        wanted: usize,
    ) -> impl Iterator<Item = (usize, (usize, usize))> {
        windows
            .iter()
            .filter_map(move |&window| Some((window, self.windows[window].find_run(wanted)?)))
    }

    /// Any free frame of the domain, also in an image's window: for when the store is full.
    fn find_gap(&self, domain: Domain) -> Option<(usize, usize)> {
        let mut windows = self.windows.iter().enumerate();
        windows.find_map(|(number, window)| {
            let is_own = window.owner.is_some_and(|(owner, _)| owner == domain);
            let (index, _) = window.find_run(1).filter(|_| is_own)?;
            Some((number, index))
        })
    }

    fn open(&mut self, owner: (Domain, Layout)) -> Option<usize> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.windows.len() < self.window_limit => {
                self.windows.push(Window::new());
                self.windows.len() - 1
            }
            None => return None,
        };
        self.windows[number].owner = Some(owner);
        if owner.1 == Layout::Loose {
            self.loose.entry(owner.0).or_default().push(number);
        }
        Some(number)
    }

    /// False, and nothing done, if the frame has as many references as can be counted.
    pub(crate) fn add_reference(&mut self, frame: Frame) -> bool {
        self.windows[frame.window()].add_reference(frame.index())
    }

    pub(crate) fn release(&mut self, frame: Frame) {
        if self.windows[frame.window()].release(frame.index()) {
            self.live -= 1;
            self.freed.push(frame);
        }
    }

    /// Another user is to come: the frame is new.
    pub(crate) fn expect_company(&mut self, frame: Frame) {
        self.windows[frame.window()].expect_company(frame.index());
    }

    /// A page that shows the frame was looked at. A second look that finds it alone makes it lonely.
    pub(crate) fn wait(&mut self, frame: Frame) {
        self.windows[frame.window()].wait(frame.index());
    }

    /// Whether the frame has one user, and no other is waited for: they left it, or never came.
    pub(crate) fn is_lonely(&self, frame: Frame) -> bool {
        let window = self.windows.get(frame.window());
        window.is_some_and(|window| window.is_lonely(frame.index()))
    }

    /// A mapping of the frame lies over a guest page from now on.
    pub(crate) fn cover(&mut self, frame: Frame) {
        self.windows[frame.window()].covered += 1;
    }

    /// One lies no more.
    pub(crate) fn uncover(&mut self, frame: Frame) {
        self.windows[frame.window()].covered -= 1;
        self.close_if_empty(frame.window());
    }

    /// Closes an image's window that was reserved and then not used.
    pub(crate) fn close_if_unused(&mut self, first: Frame) {
        self.close_if_empty(first.window());
    }

    /// The frames freed since the last call, joined into ranges. The caller punches them out of the
    /// store before anything else is planned: from here on they may be given out again.
    pub(crate) fn take_freed(&mut self) -> Vec<FrameRange> {
        let mut freed = std::mem::take(&mut self.freed);
        freed.sort_unstable();
        for frame in &freed {
            self.windows[frame.window()].punched(frame.index());
            self.close_if_empty(frame.window());
        }
        joined(freed)
    }

    fn close_if_empty(&mut self, number: usize) {
        let window = &mut self.windows[number];
        if !window.is_empty() {
            return;
        }
        let Some((domain, _)) = window.owner.take() else {
            return;
        };
        self.free.push(number);
        if let Some(loose) = self.loose.get_mut(&domain) {
            loose.retain(|&other| other != number);
            if loose.is_empty() {
                self.loose.remove(&domain);
            }
        }
    }

    /// Every live frame with its references, for the audit.
    pub(crate) fn all_live(&self) -> impl Iterator<Item = (Frame, u32)> {
        self.windows
            .iter()
            .enumerate()
            .flat_map(|(number, window)| {
                (0..BLOCK_PAGES)
                    .map(move |index| (first_frame(number).after(index), window.references(index)))
                    .filter(|&(_, references)| references > 0)
            })
    }

    /// How many guest pages each window lies over, for the audit: (first frame, pages).
    pub(crate) fn all_covered(&self) -> impl Iterator<Item = (Frame, u32)> {
        let windows = self.windows.iter().enumerate();
        windows.map(|(number, window)| (first_frame(number), window.covered))
    }
}

/// Frames in their order, those that follow each other as one range.
pub(crate) fn joined(frames: impl IntoIterator<Item = Frame>) -> Vec<FrameRange> {
    let mut ranges: Vec<FrameRange> = Vec::new();
    for start in frames {
        match ranges.last_mut() {
            Some(last) if last.start.0 + last.count == start.0 => last.count += 1,
            _ => ranges.push(FrameRange { start, count: 1 }),
        }
    }
    ranges
}

fn first_frame(window: usize) -> Frame {
    Frame(0).after(window * BLOCK_PAGES)
}

#[cfg(test)]
mod tests;
