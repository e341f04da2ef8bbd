//! MOM, oVirt's Memory Overcommitment Manager, with the auto-balloon policy of its documentation.
//!
//! **When the host's free memory falls below a fifth, every guest is shrunk; otherwise every guest grows**, by a
//! twentieth of what it has, at most, in each round. What a guest uses is its balloon's size less what it says is
//! unused. The shorter the host, the less of a guest's memory may be unused; below a twentieth free, less than what it
//! uses is left to it, so that it swaps.
//!
//! Sources: the policy and its configuration as oVirt's site documents them for its administrators
//! (ovirt.org/develop/sla/autoballooning-howto: `mom-balloon.policy` and `mom-balloon.conf`), and
//! ovirt.org/develop/release-management/features/sla/minimum-guaranteed-memory for the minimum. `unused` is libvirt's
//! word for memory that the guest's kernel leaves free: cache counts as used.
//!
//! Assumed: that a guest is never told to hold more than its maximum (the documented policy leaves that to whoever
//! carries it out), and that a guest which has said nothing yet is left alone.

use super::{GuestView, View};
use page::PageCount;
use std::collections::{BTreeMap, VecDeque};

/// `host-monitor-interval` and `guest-monitor-interval` in the documented configuration.
const COLLECT_EVERY_S: u32 = 5;
/// `policy-engine-interval` there.
const DECIDE_EVERY_S: u32 = 10;
/// `sample-history-length` there: of how many collections an average is made.
const HISTORY: usize = 10;

/// `pressure_threshold` of the documented policy, 20 %: with less of the host free, guests shrink.
const PRESSURE: u64 = 2_000;
/// `pressure_critical`, 5 %: with no more than that free, guests get less than they use.
const CRITICAL: u64 = 500;
/// `min_guest_free_percent`, 20 %: what a guest should have unused while the host has enough.
const GUEST_FREE: u64 = 2_000;
/// `max_balloon_change_percent`, 5 %: of what a guest has, in a round.
const MOST_CHANGE: u64 = 500;
/// `min_balloon_change_percent`, 0.25 %: a smaller change is not made.
const LEAST_CHANGE: u64 = 25;
/// The whole of those.
const WHOLE: u64 = 10_000;

/// What was collected, newest last.
#[derive(Debug, Default)]
pub(in crate::simulate) struct Mom {
    free: VecDeque<u64>,
    /// What each guest held and what of that it said was unused.
    guests: BTreeMap<u32, VecDeque<(u64, u64)>>,
}

/// The host on average.
#[derive(Clone, Copy, Debug)]
struct Host {
    total: PageCount,
    free: PageCount,
}

/// A guest, and what it uses on average.
#[derive(Clone, Copy, Debug)]
struct Guest {
    min: PageCount,
    max: PageCount,
    held: PageCount,
    used: PageCount,
}

impl Mom {
    pub(super) fn decide(&mut self, now_s: u32, view: &View) -> Vec<PageCount> {
        if now_s.is_multiple_of(COLLECT_EVERY_S) {
            self.collect(view);
        }
        let is_round = now_s.is_multiple_of(DECIDE_EVERY_S);
        let host = is_round.then(|| self.host(view)).flatten();
        let decided = |guest: &GuestView| target(host?, self.guest(guest)?);
        let told = |guest: &GuestView| decided(guest).unwrap_or(guest.told);
        view.guests.iter().map(told).collect()
    }

    fn collect(&mut self, view: &View) {
        remember(&mut self.free, view.free.0);
        let is_there = |id: &u32| view.guests.iter().any(|guest| guest.id.0 == *id);
        self.guests.retain(|id, _| is_there(id));
        for guest in &view.guests {
            if let Some(unused) = guest.unused {
                let history = self.guests.entry(guest.id.0).or_default();
                remember(history, (guest.held.0, unused.0));
            }
        }
    }

    fn host(&self, view: &View) -> Option<Host> {
        Some(Host {
            total: view.total,
            free: average(self.free.iter().copied())?,
        })
    }

    fn guest(&self, view: &GuestView) -> Option<Guest> {
        let history = self.guests.get(&view.id.0)?;
        let held = average(history.iter().map(|&(held, _)| held))?;
        let unused = average(history.iter().map(|&(_, unused)| unused))?;
        Some(Guest {
            min: view.min,
            max: view.max,
            held: view.held,
            used: held.saturating_sub(unused),
        })
    }
}

fn remember<T>(history: &mut VecDeque<T>, new: T) {
    history.push_back(new);
    if history.len() > HISTORY {
        history.pop_front();
    }
}

fn average(of: impl ExactSizeIterator<Item = u64>) -> Option<PageCount> {
    let count = of.len() as u64;
    let sum: u64 = of.sum();
    sum.checked_div(count).map(PageCount)
}

/// What a guest is told to hold, if that changes.
fn target(host: Host, guest: Guest) -> Option<PageCount> {
    let is_short = u128::from(host.free.0) * u128::from(WHOLE)
        < u128::from(host.total.0) * u128::from(PRESSURE);
    match is_short {
        true => shrunk(host, guest),
        false => grown(guest),
    }
}

fn shrunk(host: Host, guest: Guest) -> Option<PageCount> {
    let least = left_to(host, guest).max(guest.min);
    let target = part(guest.held, WHOLE - MOST_CHANGE).max(least);
    (target <= guest.held && is_worth_it(guest, target)).then_some(target)
}

/// What the guest uses, and the part of what it has that may stay unused: the host's own free part, as a fifth of the
/// guest at a fifth of the host. At a critical pressure the same less 5 %, which is less than nothing.
fn left_to(host: Host, guest: Guest) -> PageCount {
    let of_held = |free: u64| {
        let exact = u128::from(guest.held.0) * u128::from(free) / u128::from(host.total.0.max(1));
        u64::try_from(exact).unwrap_or(u64::MAX)
    };
    let free = of_held(host.free.0);
    let critical = part(host.total, CRITICAL);
    let lacking = match host.free <= critical {
        true => part(guest.held, CRITICAL).0,
        false => 0,
    };
    PageCount((guest.used.0 + free).saturating_sub(lacking))
}

fn grown(guest: Guest) -> Option<PageCount> {
    if guest.held >= guest.max {
        return None;
    }
    let wanted = PageCount(guest.used.0 + part(guest.max, GUEST_FREE).0);
    let step = part(guest.held, WHOLE + MOST_CHANGE);
    let target = step.max(wanted).min(guest.max);
    is_worth_it(guest, target).then_some(target)
}

fn is_worth_it(guest: Guest, target: PageCount) -> bool {
    target.0.abs_diff(guest.held.0) > part(guest.held, LEAST_CHANGE).0
}

fn part(of: PageCount, parts: u64) -> PageCount {
    let exact = u128::from(of.0) * u128::from(parts) / u128::from(WHOLE);
    PageCount(u64::try_from(exact).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::generate;
    use super::*;
    use proptest::prelude::*;

    fn host(free: u64) -> Host {
        Host {
            total: PageCount(100_000),
            free: PageCount(free),
        }
    }

    fn guest(held: u64, used: u64) -> Guest {
        Guest {
            min: PageCount::ZERO,
            max: PageCount(10_000),
            held: PageCount(held),
            used: PageCount(used),
        }
    }

    #[test]
    fn a_guest_shrinks_by_a_twentieth_while_a_fifth_of_the_host_is_not_free() {
        assert_eq!(
            target(host(19_999), guest(8_000, 1_000)),
            Some(PageCount(7_600))
        );
        assert_eq!(
            target(host(20_000), guest(8_000, 1_000)),
            Some(PageCount(8_400))
        );
    }

    #[test]
    fn a_guest_keeps_unused_the_part_that_the_host_has_free() {
        assert_eq!(
            target(host(10_000), guest(5_000, 4_400)),
            Some(PageCount(4_900))
        );
        assert_eq!(target(host(10_000), guest(5_000, 4_500)), None);
    }

    #[test]
    fn at_a_critical_pressure_a_guest_gets_less_than_it_uses() {
        assert_eq!(
            target(host(1_000), guest(5_000, 5_000)),
            Some(PageCount(4_800))
        );
        assert_eq!(target(host(0), guest(5_000, 5_000)), Some(PageCount(4_750)));
        assert_eq!(target(host(5_001), guest(5_000, 5_000)), None);
    }

    #[test]
    fn a_guest_that_has_too_little_unused_grows_at_once_to_what_it_wants() {
        assert_eq!(
            target(host(50_000), guest(4_000, 4_000)),
            Some(PageCount(6_000))
        );
        assert_eq!(
            target(host(50_000), guest(9_000, 9_000)),
            Some(PageCount(10_000))
        );
        assert_eq!(target(host(50_000), guest(10_000, 10_000)), None);
    }

    #[test]
    fn a_change_of_a_quarter_of_a_percent_is_not_made() {
        assert_eq!(target(host(10_000), guest(5_000, 4_488)), None);
        assert_eq!(
            target(host(10_000), guest(5_000, 4_487)),
            Some(PageCount(4_987))
        );
    }

    #[test]
    fn figures_are_averages_of_ten_collections() {
        let mut mom = Mom::default();
        let view = |free| View {
            total: PageCount(1000),
            free: PageCount(free),
            guests: Vec::new(),
        };
        (0..20).for_each(|_| mom.collect(&view(500)));
        (0..5).for_each(|_| mom.collect(&view(100)));
        assert_eq!(mom.host(&view(0)).unwrap().free, PageCount(300));
    }

    proptest! {
        /// Whatever it sees: down only by 5 %, and not below the min nor below what is used while there is no crisis; up
        /// never above the max; and only when a round is due.
        #[test]
        fn no_view_makes_it_break_its_rules(view in generate::view(), now_s in 0u32..40) {
            let mut mom = Mom::default();
            mom.collect(&view);
            let told = mom.decide(now_s, &view);
            prop_assert_eq!(told.len(), view.guests.len());
            let free = u128::from(view.free.0) * 100;
            let total = u128::from(view.total.0);
            for (guest, told) in view.guests.iter().zip(told) {
                if told == guest.told {
                    continue;
                }
                prop_assert!(now_s.is_multiple_of(10));
                let used = guest.held - guest.unused.unwrap();
                if free < total * 20 {
                    prop_assert!(told <= guest.held);
                    prop_assert!(told.0 >= (guest.held.0 * 95 / 100).max(guest.min.0.min(guest.held.0)));
                    prop_assert!(free <= total * 5 || told >= used);
                } else {
                    prop_assert!(told > guest.held && told <= guest.max);
                    let wanted = used.0 + guest.max.0 * 20 / 100;
                    prop_assert!(told.0 <= (guest.held.0 * 105 / 100).max(wanted));
                }
            }
        }
    }
}
