//! Un-sharing is paid for in advance: what must stay free because shared pages may be broken.
//!
//! A guest's write to a shared page takes a page of the machine at once and asks nobody. The host sees
//! it late and takes a while to get memory elsewhere. What can be broken in that time must be free.
//!
//! For each VM that is its fastest observed pace, doubled, times the time to react, but for all of them no more than
//! what they were seen to do together, doubled: guests have their bursts at different times. And for one VM of
//! them, whichever could do most, the fastest that its vCPUs can break pages at all. No VM can break
//! more pages than it shares. All at once at full speed is not paid for: that would be the saving itself.
//!
//! A page newly shared frees one page and adds at most one to what must be free, so solvency is no
//! reason to stop sharing. Room for the frames in flight is. A guest that breaks pages as fast as they
//! are shared is no concern here: its pages' history keeps them out, for ever longer.

use crate::cost::BREAK_NS;
use page::PageCount;
use std::time::Duration;

/// Frames that may be filled before the pages that they replace are given back: two plans.
pub const FRAMES_IN_FLIGHT: PageCount = PageCount(1024);
/// How much of an old peak is forgotten each interval: an eighth.
const FORGET_DIVISOR: u64 = 8;
/// A VM may be twice as fast as it ever was seen, and so may all together.
const SAFETY_FACTOR: u64 = 2;

/// How fast a VM breaks pages, or all together do, as observed: the peak, slowly forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BreakRate {
    peak_per_s: u64,
}

impl BreakRate {
    /// An interval has passed in which so many pages were broken.
    pub fn record(&mut self, broken: PageCount, interval: Duration) {
        let ms = u64::try_from(interval.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let now = broken.0.saturating_mul(1000).div_ceil(ms);
        let remembered = self.peak_per_s - self.peak_per_s.div_ceil(FORGET_DIVISOR);
        self.peak_per_s = now.max(remembered);
    }

    /// Pages a second.
    #[must_use]
    pub fn per_s(self) -> u64 {
        self.peak_per_s
    }
}

/// What one VM could break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakable {
    /// Guest pages that show a frame.
    pub shared: PageCount,
    /// How fast it was seen to break them.
    pub rate: BreakRate,
    /// How many vCPUs can do so at once.
    pub vcpus: u32,
}

impl Breakable {
    fn expected(&self, reaction: Duration) -> PageCount {
        expected(self.rate, reaction).min(self.shared)
    }

    /// At a fault for every write and nothing else done.
    fn worst(&self, reaction: Duration) -> PageCount {
        let per_s = u64::from(self.vcpus) * (1_000_000_000 / BREAK_NS);
        in_time(per_s, reaction).min(self.shared)
    }
}

fn expected(rate: BreakRate, reaction: Duration) -> PageCount {
    in_time(rate.per_s().saturating_mul(SAFETY_FACTOR), reaction)
}

fn in_time(per_s: u64, time: Duration) -> PageCount {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    PageCount(per_s.saturating_mul(ms).div_ceil(1000))
}

/// Whether to go on sharing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// At the rates' pace.
    #[default]
    GoOn,
    /// One block at a time, each settled before the next.
    SlowDown,
    /// Nothing new is mapped; zero pages are given back as before.
    Stop,
}

/// What sharing asks of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Give nobody what lies below this.
    pub keep_free: PageCount,
    /// How to go on.
    pub pace: Pace,
}

/// What must stay free, of VMs that break pages so fast together, and how to go on when `free` is what is.
#[must_use]
pub fn reserve(
    vms: &[Breakable],
    together: BreakRate,
    reaction: Duration,
    free: PageCount,
) -> Reserve {
    let of_each: PageCount = vms.iter().map(|vm| vm.expected(reaction)).sum();
    let expected = of_each.min(expected(together, reaction));
    let surprise = vms
        .iter()
        .map(|vm| vm.worst(reaction).saturating_sub(vm.expected(reaction)))
        .max();
    let keep_free = expected + surprise.unwrap_or(PageCount::ZERO);
    let pace = if free < FRAMES_IN_FLIGHT {
        Pace::Stop
    } else if free < keep_free + FRAMES_IN_FLIGHT {
        Pace::SlowDown
    } else {
        Pace::GoOn
    };
    Reserve { keep_free, pace }
}

/// What must be free to bring `mapped` pages home: a page for each, and `reserve` for others, which guests may break
/// meanwhile. All that sharing saves is enough for all of them together.
#[must_use]
pub fn needed_at_home(mapped: PageCount, saving: PageCount, reserve: PageCount) -> PageCount {
    mapped + reserve.min(saving.saturating_sub(mapped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);
    const MUCH: PageCount = PageCount(1 << 30);

    fn rate(per_s: u64) -> BreakRate {
        let mut rate = BreakRate::default();
        rate.record(PageCount(per_s), S);
        rate
    }

    fn vm(shared: u64, per_s: u64) -> Breakable {
        Breakable {
            shared: PageCount(shared),
            rate: rate(per_s),
            vcpus: 1,
        }
    }

    #[test]
    fn what_can_be_broken_until_the_host_reacts_stays_free() {
        let vms = [vm(1_000_000, 100), vm(1_000_000, 300)];
        let at_once = reserve(&vms, rate(400), 2 * S, MUCH);
        let worst = 2 * (1_000_000_000 / BREAK_NS);
        assert_eq!(at_once.keep_free, PageCount(2 * 2 * 300 + worst));
        assert_eq!(at_once.pace, Pace::GoOn);
    }

    #[test]
    fn for_guests_that_have_their_bursts_in_turns_one_burst_stays_free() {
        let vms = [vm(2_000, 900); 20];
        let kept = |together| reserve(&vms, rate(together), S, MUCH).keep_free;
        assert_eq!(kept(900), PageCount(2 * 900 + 2_000 - 1_800));
        assert_eq!(kept(20 * 900), PageCount(20 * 2 * 900 + 2_000 - 1_800));
        assert_eq!(kept(1 << 40), kept(20 * 900), "no more than each can");
    }

    #[test]
    fn a_peak_is_forgotten_slowly() {
        let mut rate = BreakRate::default();
        rate.record(PageCount(800), S);
        rate.record(PageCount(0), S);
        assert_eq!(rate.per_s(), 700);
        (0..60).for_each(|_| rate.record(PageCount(0), S));
        assert_eq!(rate.per_s(), 0);
    }

    #[test]
    fn sharing_slows_down_when_the_reserve_is_not_there_and_stops_without_room_for_frames() {
        let pace = |free| reserve(&[vm(9_000, 0)], rate(0), S, PageCount(free)).pace;
        assert_eq!(pace(1 << 20), Pace::GoOn);
        assert_eq!(pace(9_000), Pace::SlowDown);
        assert_eq!(pace(1_000), Pace::Stop);
    }

    #[test]
    fn pages_come_home_while_guests_break_others_and_all_do_where_what_is_saved_is_free() {
        let [block, saving] = [512, 10_000].map(PageCount);
        let needed = |reserve| needed_at_home(block, saving, PageCount(reserve));
        assert_eq!(needed(0), block);
        assert_eq!(needed(300), PageCount(812));
        assert_eq!(needed(1 << 40), saving);
        assert_eq!(needed_at_home(block, PageCount(7), PageCount(300)), block);
    }

    proptest! {
        #[test]
        fn no_more_is_kept_than_could_be_broken(
            vms in prop::collection::vec((0u64..1 << 40, 0u64..1 << 40), 0..8), together in 0u64..1 << 40, ms: u32
        ) {
            let vms: Vec<Breakable> = vms.into_iter().map(|(shared, per_s)| vm(shared, per_s)).collect();
            let reaction = Duration::from_millis(ms.into());
            let kept = reserve(&vms, rate(together), reaction, MUCH).keep_free;
            prop_assert!(kept <= vms.iter().map(|vm| vm.shared).sum());
        }
    }
}
