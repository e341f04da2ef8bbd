//! Chooses frames for a block's new shared pages, in guest order.
//!
//! The best place is one that continues the line of frames that the block maps already: in the window
//! laid out for this block if there is one, else next to a neighbour's frame. Much at once founds a
//! window. What is left goes in runs as long as the store has them.

use crate::block::{BLOCK_PAGES, PageSet};
use crate::content::Domain;
use crate::frames::{Frame, Frames};

/// New pages in a block from which on it gets a window of its own: a quarter.
const WINDOW_MIN: usize = BLOCK_PAGES / 4;

/// The frame of each page of a block, where it has one or will.
pub(crate) type Lines = [Option<Frame>; BLOCK_PAGES];

/// Gives frames to `new` pages, each with one reference, and enters them in `lines`. Pages for which
/// the store has no room get none.
pub(crate) fn lay_out(new: &PageSet, lines: &mut Lines, frames: &mut Frames, domain: Domain) {
    let home = home_window(lines).or_else(|| {
        let is_much = new.count() >= WINDOW_MIN;
        is_much.then(|| frames.reserve_window(domain)).flatten()
    });
    for (start, count) in new.runs() {
        let end = start + count;
        let mut next = start;
        while next < end {
            let Some((first, count)) = choose(next, end - next, home, lines, frames, domain) else {
                break;
            };
            for index in 0..count {
                lines[next + index] = Some(first.after(index));
            }
            next += count;
        }
    }
    if let Some(home) = home {
        frames.close_if_unused(home);
    }
}

fn choose(
    index: usize,
    count: usize,
    home: Option<Frame>,
    lines: &Lines,
    frames: &mut Frames,
    domain: Domain,
) -> Option<(Frame, usize)> {
    let at_home = home.map(|home| home.after(index));
    let behind = index
        .checked_sub(1)
        .and_then(|before| lines[before])
        .and_then(|frame| frame.0.checked_add(1))
        .map(Frame);
    for first in [at_home, behind].into_iter().flatten() {
        let taken = frames.take_at(domain, first, count);
        if taken > 0 {
            return Some((first, taken));
        }
    }
    frames.take_run(domain, count)
}

/// The window in which most of the block's pages lie at their own index.
fn home_window(lines: &Lines) -> Option<Frame> {
    let mut windows: Vec<(Frame, usize)> = Vec::new();
    for (index, frame) in lines.iter().enumerate() {
        let Some(frame) = frame.filter(|frame| frame.index() == index) else {
            continue;
        };
        let start = frame.window_start();
        match windows.iter_mut().find(|(window, _)| *window == start) {
            Some((_, count)) => *count += 1,
            None => windows.push((start, 1)),
        }
    }
    let most = windows.into_iter().max_by_key(|&(_, count)| count);
    most.map(|(window, _)| window)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Domain = Domain(1);

    fn laid_out(new: PageSet, lines: &mut Lines, frames: &mut Frames) {
        lay_out(&new, lines, frames, OWN);
    }

    #[test]
    fn much_at_once_founds_a_window_and_what_follows_lands_in_it() {
        let mut frames = Frames::new(4096);
        frames.take_run(OWN, 10);
        let mut lines = [None; BLOCK_PAGES];
        laid_out((0..400).step_by(2).collect(), &mut lines, &mut frames);
        assert_eq!(lines[398], Some(Frame(512 + 398)));
        laid_out([7, 9].into_iter().collect(), &mut lines, &mut frames);
        assert_eq!((lines[7], lines[9]), (Some(Frame(519)), Some(Frame(521))));
    }

    #[test]
    fn a_few_pages_continue_their_neighbours_line() {
        let mut frames = Frames::new(4096);
        let mut lines = [None; BLOCK_PAGES];
        laid_out((20..30).collect(), &mut lines, &mut frames);
        assert_eq!(lines[29], Some(Frame(9)));
        laid_out((30..35).collect(), &mut lines, &mut frames);
        assert_eq!(lines[34], Some(Frame(14)));
        assert_eq!(frames.live(), 15);
    }

    #[test]
    fn a_full_store_gives_what_it_has() {
        let mut frames = Frames::new(512);
        let mut lines = [None; BLOCK_PAGES];
        laid_out((0..100).collect(), &mut lines, &mut frames);
        let mut others = [None; BLOCK_PAGES];
        laid_out(PageSet::ALL, &mut others, &mut frames);
        assert_eq!(others.iter().flatten().count(), 412);
    }
}
