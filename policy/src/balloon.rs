//! How far and how fast a balloon inflates toward its VM's target, and what to do if it does not.
//!
//! A target says what a VM deserves; its guest may not bear to get there, or not so fast. So the balloon
//! takes at most a part of the VM, leaves the guest what it says it needs, waits while the guest waits for
//! memory, and inflates by so many pages a second. What it cannot take for these reasons, or does not
//! take although asked, is to be had by other means: compressed or swapped where that exists, and the VM
//! is stopped if it touches more than there is (`touch_limit`).
//!
//! The guest's word slows its own balloon only. It keeps its VM above its target, never lowers another's
//! below its own. **It exempts from the idle tax, not from its neighbours' shares**: what a VM needs by its
//! guest's word counts up to what its shares alone earn. A guest that claims need and shows none by its
//! touches is exempt from nothing while memory is short.

use crate::guest::{GuestFigures, Witness};
use crate::state::BalloonPace;
use crate::{BalloonHealth, BalloonRound, BalloonSettings, Stage, VmSnapshot};
use page::PageCount;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How far a balloon can go in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// What to ask the VM to hold now. May be more than its target.
    pub(crate) hold: PageCount,
    /// What it holds above its target and the balloon will not bring.
    pub(crate) by_other_means: PageCount,
}

impl Reach {
    /// Nothing holds the balloon back.
    pub(crate) fn at_once(target: PageCount) -> Self {
        Self {
            hold: target,
            by_other_means: PageCount::ZERO,
        }
    }
}

/// Why a VM keeps more than its target for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalloonBound {
    /// Its balloon has taken the part of it that a balloon may.
    Limit,
    /// Its guest says that it needs as much.
    GuestNeeds,
    /// Its guest waits for memory already.
    GuestStalls,
    /// Its guest, whose word alone tells what it needs, has not said anything for too long.
    GuestSilent,
    /// It waits for memory that the host has taken already, by the kernel's count.
    Pressure,
}

/// What is asked of a balloon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// What its VM should hold in the end.
    pub(crate) target: PageCount,
    /// Up to this, its guest's word counts.
    pub(crate) untaxed: PageCount,
    pub(crate) pace: BalloonPace,
}

/// What a guest cannot do without, by its word.
pub(crate) fn claim(vm: &VmSnapshot) -> PageCount {
    let guest = vm.evidence.guest.unwrap_or_default();
    guest.needs(vm.settings.effective_size())
}

/// What its word brings a guest.
fn exempt(vm: &VmSnapshot, ask: &Ask) -> PageCount {
    let guest = vm.evidence.guest.unwrap_or_default();
    let witness = guest.witness(vm.evidence.active.as_ref());
    let is_doubted = matches!(witness, Witness::SaysBusier { .. });
    match ask.pace {
        BalloonPace::Fast if is_doubted => PageCount::ZERO,
        _ => claim(vm).min(ask.untaxed),
    }
}

/// Where an administrator has fixed a larger balloon than the policy would, that is the limit.
pub(crate) fn least_left(vm: &VmSnapshot, settings: &BalloonSettings) -> PageCount {
    let size = vm.settings.effective_size();
    let pin = vm.pinned.unwrap_or(size);
    settings.least_left(size).min(pin)
}

/// What a VM's balloon leaves it at least, and why. Where it holds less already, it keeps that.
pub(crate) fn floor(
    vm: &VmSnapshot,
    ask: &Ask,
    settings: &BalloonSettings,
) -> (PageCount, BalloonBound) {
    let guest = vm.evidence.guest.unwrap_or_default();
    let stalled = |guest: GuestFigures| {
        if guest.has_stalled() {
            vm.held()
        } else {
            PageCount::ZERO
        }
    };
    let silent = match vm.evidence.is_stale {
        true => vm.held(),
        false => PageCount::ZERO,
    };
    let pressed = match vm.evidence.is_pressed() {
        true => vm.held(),
        false => PageCount::ZERO,
    };
    let floors = [
        (least_left(vm, settings), BalloonBound::Limit),
        (exempt(vm, ask), BalloonBound::GuestNeeds),
        (stalled(guest), BalloonBound::GuestStalls),
        (silent, BalloonBound::GuestSilent),
        (pressed, BalloonBound::Pressure),
    ];
    floors.into_iter().fold(floors[0], std::cmp::max)
}

/// How far the balloon of a VM goes toward this target now.
pub(crate) fn reach(vm: &VmSnapshot, ask: &Ask, round: &BalloonRound) -> Reach {
    let Ask { target, pace, .. } = *ask;
    let held = vm.held();
    if vm.stage == Stage::Waiting {
        return Reach::at_once(target);
    }
    let (floor, _) = floor(vm, ask, &round.settings);
    let watch = vm.evidence.balloon;
    let base = watch.map_or(held, |watch| watch.asked.min(held));
    let slowed = base.saturating_sub(round.step(pace));
    let is_stuck = watch.is_some_and(|watch| watch.health() == BalloonHealth::Stuck);
    let beyond_balloon = if is_stuck { held } else { floor.min(held) };
    // A balloon that is not to go all the way to the target may stop where it is, and is not told to go
    // back: a VM that boots seems to hold all its size until its driver has inflated, and what it would
    // be left then may be more than there is.
    let told = vm.told.unwrap_or(vm.granted);
    Reach {
        hold: target.max(floor).max(slowed).min(target.max(told)),
        by_other_means: beyond_balloon.saturating_sub(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActiveSet, BalloonWatch, generate};
    use proptest::prelude::*;

    fn mebibytes(count: u64) -> PageCount {
        PageCount::from_mebibytes(count)
    }

    /// A VM of 1 GiB that holds so many MiB and was asked to.
    fn holding(held: u64) -> VmSnapshot {
        let mut vm = generate::vm_of_size(0, mebibytes(1024).0);
        vm.stage = Stage::Running;
        vm.ballooned = mebibytes(1024 - held);
        vm.granted = mebibytes(held);
        vm.evidence.balloon =
            Some(BalloonWatch::default().observe(mebibytes(held), mebibytes(held)));
        vm
    }

    fn after_a_second(vm: &VmSnapshot, target: u64, pace: BalloonPace) -> (u64, u64) {
        let round = BalloonRound {
            elapsed_ms: 1000,
            ..BalloonRound::default()
        };
        let ask = Ask {
            target: mebibytes(target),
            untaxed: mebibytes(1024),
            pace,
        };
        let reach = reach(vm, &ask, &round);
        (reach.hold.0 / 256, reach.by_other_means.0 / 256)
    }

    #[test]
    fn a_balloon_inflates_so_much_a_second_and_faster_when_memory_is_short() {
        let vm = holding(1000);
        assert_eq!(after_a_second(&vm, 400, BalloonPace::Gentle), (936, 0));
        assert_eq!(after_a_second(&vm, 400, BalloonPace::Fast), (488, 0));
        assert_eq!(after_a_second(&vm, 980, BalloonPace::Gentle), (980, 0));
    }

    #[test]
    fn a_balloon_takes_no_more_than_its_part_of_the_vm() {
        let vm = holding(380);
        assert_eq!(after_a_second(&vm, 100, BalloonPace::Fast), (358, 258));
    }

    #[test]
    fn a_guest_keeps_what_it_says_it_needs_and_the_rest_is_had_by_other_means() {
        let mut vm = holding(800);
        vm.evidence.guest = Some(GuestFigures {
            held: mebibytes(800),
            available: Some(mebibytes(132)),
            ..GuestFigures::default()
        });
        assert_eq!(after_a_second(&vm, 400, BalloonPace::Fast), (700, 300));
    }

    /// It says that it needs 700 of its 800, its shares alone earn it 500, and with the tax it gets 400.
    #[test]
    fn a_guests_word_is_shelter_from_the_tax_and_not_from_its_neighbours_shares() {
        let mut vm = holding(800);
        vm.evidence.guest = Some(GuestFigures {
            held: mebibytes(800),
            available: Some(mebibytes(132)),
            ..GuestFigures::default()
        });
        vm.evidence.active = Some(ActiveSet {
            high: mebibytes(50),
            ..ActiveSet::default()
        });
        let floor = |pace| {
            let ask = Ask {
                target: mebibytes(400),
                untaxed: mebibytes(500),
                pace,
            };
            floor(&vm, &ask, &BalloonSettings::default())
        };
        let gentle = floor(BalloonPace::Gentle);
        assert_eq!(gentle, (mebibytes(500), BalloonBound::GuestNeeds));
        let (doubted, bound) = floor(BalloonPace::Fast);
        assert_eq!(bound, BalloonBound::Limit);
        assert!(doubted < mebibytes(400), "its touches show no need");
    }

    #[test]
    fn a_pin_may_take_more_of_its_vm_than_balloons_do_otherwise() {
        let mut vm = holding(380);
        vm.pinned = Some(mebibytes(100));
        assert_eq!(after_a_second(&vm, 100, BalloonPace::Fast), (100, 0));
    }

    /// What a VM that boots seems to hold is not a grant.
    #[test]
    fn a_balloon_is_never_told_to_go_back_above_its_target() {
        let mut vm = holding(1000);
        vm.told = Some(mebibytes(400));
        assert_eq!(after_a_second(&vm, 300, BalloonPace::Gentle).0, 400);
        assert_eq!(after_a_second(&vm, 500, BalloonPace::Gentle).0, 500);
    }

    #[test]
    fn a_balloon_waits_while_its_guest_waits_for_memory() {
        let mut vm = holding(800);
        vm.evidence.guest = Some(GuestFigures {
            stalls: Some(1),
            ..GuestFigures::default()
        });
        assert_eq!(after_a_second(&vm, 400, BalloonPace::Fast).0, 800);
    }

    #[test]
    fn what_a_stuck_balloon_does_not_bring_is_had_by_other_means() {
        let mut vm = holding(800);
        let mut watch = BalloonWatch::default();
        for _ in 0..10 {
            watch = watch.observe(mebibytes(700), mebibytes(800));
        }
        vm.evidence.balloon = Some(watch);
        assert_eq!(after_a_second(&vm, 700, BalloonPace::Gentle), (700, 100));
    }

    proptest! {
        #[test]
        fn a_round_takes_no_more_than_its_rate(
            held in 0u64..1024, target in 0u64..1024, elapsed_ms in 0u64..3000
        ) {
            let vm = holding(held);
            let round = BalloonRound { elapsed_ms, ..BalloonRound::default() };
            let ask = Ask {
                target: mebibytes(target),
                untaxed: mebibytes(1024),
                pace: BalloonPace::Gentle,
            };
            let Reach { hold, .. } = reach(&vm, &ask, &round);
            let taken = vm.held().saturating_sub(hold);
            prop_assert!(taken.0 <= 64 * 256 * elapsed_ms / 1000);
            prop_assert!(hold >= mebibytes(target));
        }
    }
}
