//! From the frames that a block's pages should show to the mappings that bring it about.
//!
//! Neighbouring pages with neighbouring frames make a run, and each run costs a call and areas. Where
//! two runs lie in the same line of frames with a gap between, one mapping over both may be cheaper,
//! with the gap's pages copied into it. Whether it is depends on that gap alone, so each is decided by
//! itself; the window mapped whole is what comes out where all gaps are worth closing.

use super::Span;
use crate::block::{BLOCK_PAGES, PageSet};
use crate::cost::{Areas, COPY_IN_NS, MAP_NS, map_ns};
use crate::frames::Frame;

/// What is wanted at a page, or found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Not known: nothing may be done to it.
    Unknown,
    /// A page of its own, that may be copied into a mapping.
    Own,
    /// It shows this frame already.
    Has(Frame),
    /// It should show this frame, which is worth so much.
    Show(Frame, u64),
}

/// A span in the making, and what its pages bring.
#[derive(Clone, Copy, Debug)]
struct Draft {
    span: Span,
    worth_ns: u64,
}

/// Wants of a block's pages.
pub(crate) type Wants = [Want; BLOCK_PAGES];

/// The mappings worth making. A page that shows its frame already may lie inside one.
pub(crate) fn spans(wants: &Wants, areas: Areas, page_worth_ns: u64) -> Vec<Span> {
    let mut drafts: Vec<Draft> = Vec::new();
    for run in runs(wants) {
        push_or_join(&mut drafts, run, wants, areas, page_worth_ns);
    }
    let mut areas = areas;
    let mut chosen = Vec::new();
    for draft in drafts {
        let added = areas_added(&draft.span, wants);
        let shared = draft.span.count - draft.span.copied.count();
        let cost = map_ns(shared, added, areas)
            .map(|cost| cost + draft.span.copied.count() as u64 * COPY_IN_NS);
        if cost.is_some_and(|cost| cost < draft.worth_ns) {
            areas.used += added;
            chosen.push(draft.span);
        }
    }
    chosen
}

fn runs(wants: &Wants) -> Vec<Draft> {
    let mut runs: Vec<Draft> = Vec::new();
    for (index, want) in wants.iter().enumerate() {
        let Want::Show(frame, worth_ns) = *want else {
            continue;
        };
        match runs.last_mut() {
            Some(Draft {
                span,
                worth_ns: sum,
            }) if span.start + span.count == index && line(span, index) == Some(frame) => {
                span.count += 1;
                *sum += worth_ns;
            }
            _ => runs.push(Draft {
                span: Span {
                    start: index,
                    count: 1,
                    frame,
                    copied: PageSet::EMPTY,
                },
                worth_ns,
            }),
        }
    }
    runs
}

/// The frame that the span would have at a page behind it.
fn line(span: &Span, index: usize) -> Option<Frame> {
    let distance = u32::try_from(index - span.start).ok()?;
    span.frame.0.checked_add(distance).map(Frame)
}

/// Joins `run` to the last draft in its line of frames if closing the gap costs less than a mapping of
/// its own. What lies between then is copied in, mappings of other frames included.
fn push_or_join(
    drafts: &mut Vec<Draft>,
    run: Draft,
    wants: &Wants,
    areas: Areas,
    page_worth_ns: u64,
) {
    let in_line = |draft: &Draft| {
        line(&draft.span, run.span.start) == Some(run.span.frame)
            // Frames of one window have one owner; of what lies in others, nothing is known here.
            && draft.span.frame.window_start() == run.span.frame.window_start()
    };
    if let Some(last) = drafts.iter().rposition(in_line) {
        let first = drafts[last].span;
        let gap = first.start + first.count..run.span.start;
        let calls_saved = (drafts.len() - last) as u64;
        let price = areas.price_ns().unwrap_or(u64::MAX / 4);
        let split = price
            .saturating_mul(2 * calls_saved)
            .saturating_add(calls_saved * MAP_NS);
        let close: Option<u64> = gap
            .clone()
            .map(|index| closing_ns(wants[index], line(&first, index), page_worth_ns))
            .sum();
        if close.is_some_and(|close| close < split) {
            drafts.truncate(last + 1);
            drafts[last].extend(gap, &run, wants);
            return;
        }
    }
    drafts.push(run);
}

/// What it costs to have a page inside a span that has `frame` there. None if that may not be.
fn closing_ns(want: Want, frame: Option<Frame>, page_worth_ns: u64) -> Option<u64> {
    match want {
        Want::Unknown => None,
        Want::Own => Some(COPY_IN_NS),
        Want::Has(shown) if Some(shown) == frame => Some(0),
        Want::Has(_) => Some(COPY_IN_NS + page_worth_ns),
        Want::Show(_, worth_ns) => Some(COPY_IN_NS + worth_ns),
    }
}

impl Draft {
    fn extend(&mut self, gap: std::ops::Range<usize>, run: &Self, wants: &Wants) {
        let stays = |index: usize| matches!(wants[index], Want::Has(frame) if Some(frame) == line(&self.span, index));
        let copied: Vec<usize> = gap.filter(|&index| !stays(index)).collect();
        copied
            .into_iter()
            .for_each(|index| self.span.copied.insert(index));
        self.span.count = run.span.start + run.span.count - self.span.start;
        self.worth_ns += run.worth_ns;
    }
}

/// One at each end where the mapping does not go on from what is there.
fn areas_added(span: &Span, wants: &Wants) -> u64 {
    let goes_on = |index: Option<usize>, frame: Option<u32>| {
        let want = index.and_then(|index| wants.get(index));
        matches!(want, Some(Want::Has(there)) if Some(there.0) == frame)
    };
    let end = span.start + span.count;
    let before = goes_on(span.start.checked_sub(1), span.frame.0.checked_sub(1));
    let behind = goes_on(Some(end), line(span, end).map(|frame| frame.0));
    u64::from(!before) + u64::from(!behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::PAGE_WORTH_NS;
    use proptest::prelude::*;

    const MANY: Areas = Areas {
        used: 0,
        limit: 60_000,
    };
    const SHORT: Areas = Areas {
        used: 85,
        limit: 100,
    };

    fn show(frame: usize) -> Want {
        Want::Show(Frame(0).after(frame), PAGE_WORTH_NS)
    }

    fn planned(wants: &Wants, areas: Areas) -> Vec<Span> {
        spans(wants, areas, PAGE_WORTH_NS)
    }

    #[test]
    fn a_clone_with_scattered_differences_maps_its_window_whole() {
        let wants: Wants = std::array::from_fn(|index| {
            if index % 4 == 2 {
                Want::Own
            } else {
                show(1024 + index)
            }
        });
        let spans = planned(&wants, MANY);
        assert_eq!(spans.len(), 1);
        assert_eq!(
            (spans[0].start, spans[0].count, spans[0].frame),
            (0, 512, Frame(1024))
        );
        assert_eq!(spans[0].copied.count(), 128);
    }

    #[test]
    fn a_wide_gap_stays_open_while_there_are_areas_and_a_hole_always() {
        let wide: Wants = std::array::from_fn(|index| {
            if (100..200).contains(&index) {
                Want::Own
            } else {
                show(index)
            }
        });
        assert_eq!(planned(&wide, MANY).len(), 2);
        let hole: Wants = std::array::from_fn(|index| {
            if index == 100 {
                Want::Unknown
            } else {
                show(index)
            }
        });
        assert_eq!(planned(&hole, MANY).len(), 2);
        let short = planned(&hole, SHORT);
        assert!(
            short
                .iter()
                .all(|span| !(span.start..span.start + span.count).contains(&100))
        );
    }

    #[test]
    fn a_page_already_shared_joins_two_runs_for_nothing() {
        let wants: Wants = std::array::from_fn(|index| {
            if index == 9 {
                Want::Has(Frame(9))
            } else {
                show(index)
            }
        });
        let spans = planned(&wants, MANY);
        assert_eq!((spans.len(), spans[0].copied.count()), (1, 0));
    }

    #[test]
    fn lone_pages_are_not_mapped_when_areas_are_short() {
        let wants: Wants = std::array::from_fn(|index| show(index * 2));
        assert_eq!(planned(&wants, MANY).len(), 512);
        assert_eq!(planned(&wants, SHORT), []);
    }

    fn wants() -> impl Strategy<Value = Wants> {
        let run =
            (0u8..8, 1usize..20, 0usize..3).prop_map(|(kind, count, line)| (kind, count, line));
        prop::collection::vec(run, 100).prop_map(|runs| {
            let mut wants = [Want::Unknown; BLOCK_PAGES];
            let kinds = runs
                .into_iter()
                .flat_map(|(kind, count, line)| vec![(kind, line); count]);
            for (index, (kind, line)) in kinds.take(BLOCK_PAGES).enumerate() {
                let frame = line * 700 + index;
                wants[index] = match kind {
                    0 | 1 => Want::Unknown,
                    2 | 3 => Want::Own,
                    4 => Want::Has(Frame(0).after(frame)),
                    _ => show(frame),
                };
            }
            wants
        })
    }

    proptest! {
        /// Whatever the costs, no page shows a frame that it should not, and none is taken without need.
        #[test]
        fn spans_do_what_is_wanted_and_no_more(wants in wants(), used in 0u64..100) {
            let spans = planned(&wants, Areas { used, limit: 100 });
            let mut end = 0;
            for span in &spans {
                prop_assert!(span.start >= end, "spans overlap");
                end = span.start + span.count;
                prop_assert!(end <= BLOCK_PAGES);
                for (index, frame) in span.shared() {
                    let is_wanted = match wants[index] {
                        Want::Has(wanted) | Want::Show(wanted, _) => wanted == frame,
                        _ => false,
                    };
                    prop_assert!(is_wanted, "page {} shows {:?}", index, frame);
                }
                for index in span.copied.iter() {
                    prop_assert!(index > span.start && index + 1 < end, "copied at an edge");
                    prop_assert!(wants[index] != Want::Unknown);
                }
            }
        }
    }
}
