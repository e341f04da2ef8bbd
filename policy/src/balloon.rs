//! How far and how fast a balloon inflates toward its VM's target, and what to do if it does not.
//!
//! A target says what a VM deserves; its guest may not bear to get there, or not so fast. So the balloon
//! takes at most a part of the VM, leaves the guest what it says it needs, waits while the guest waits for
//! memory, and inflates by so many pages a second. What it cannot take for these reasons, or does not
//! take although asked, is to be had by other means: compressed or swapped where that exists, and in the
//! shortest memory state the VM is blocked until it follows.
//!
//! The guest's word slows its own balloon only. It keeps its VM above its target, never lowers another's
//! below its own.

use crate::guest::GuestFigures;
use crate::state::BalloonPace;
use crate::{BALLOON_LIMIT_PERCENT, Stage, VmSnapshot};
use page::PageCount;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How balloons may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonSettings {
    /// The largest part of a VM that its balloon takes.
    pub limit_percent: u64,
    /// How fast it inflates: 64 MiB a second by default, a small part of what a guest can do.
    pub pages_per_s: u64,
    /// How many times faster while memory is short: with 8, about what 4 KiB pages allow.
    pub fast_factor: u64,
}

impl Default for BalloonSettings {
    fn default() -> Self {
        Self {
            limit_percent: BALLOON_LIMIT_PERCENT,
            pages_per_s: PageCount::from_mebibytes(64).0,
            fast_factor: 8,
        }
    }
}

impl BalloonSettings {
    /// What is left of a VM when its balloon has taken the most it may.
    #[must_use]
    pub fn least_left(&self, size: PageCount) -> PageCount {
        let percent_left = 100u64.saturating_sub(self.limit_percent);
        let left = (u128::from(size.0) * u128::from(percent_left)).div_ceil(100);
        PageCount(u64::try_from(left).unwrap_or(size.0))
    }
}

/// How balloons are used in this plan: in a snapshot that lacks it, they follow targets at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonRound {
    /// How they may be used.
    pub settings: BalloonSettings,
    /// Since the last plan that was carried out.
    pub elapsed_ms: u64,
}

impl BalloonRound {
    /// What a balloon may take in this round.
    fn step(&self, pace: BalloonPace) -> PageCount {
        let factor = match pace {
            BalloonPace::Gentle => 1,
            BalloonPace::Fast => self.settings.fast_factor,
        };
        let per_s = self.settings.pages_per_s.saturating_mul(factor);
        PageCount(per_s.saturating_mul(self.elapsed_ms) / 1000)
    }
}

/// Rounds without progress after which a balloon is given up for now.
pub const STUCK_ROUNDS: u32 = 5;

/// Progress is at least this part of what is missing: a page a round is none.
const PROGRESS_DIVISOR: u64 = 64;

/// How a balloon follows. The host keeps one for each VM, and records it with the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonWatch {
    /// What the VM was last asked to hold.
    pub asked: PageCount,
    /// The least that it held since it was last seen to make progress.
    lowest: PageCount,
    /// Rounds since then in which it held more than it was asked to.
    rounds_still: u32,
}

/// What a balloon's watch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BalloonHealth {
    /// The VM holds no more than it was asked to.
    Settled,
    /// It holds more, and less than before.
    Following,
    /// It holds more, and has for some rounds: no driver, no will, or no memory that it could give up.
    Stuck,
}

impl BalloonWatch {
    /// A round in which the VM was asked to hold `asked` and is found to hold `held`.
    #[must_use]
    pub fn observe(self, asked: PageCount, held: PageCount) -> Self {
        let start = Self {
            asked,
            lowest: held,
            rounds_still: 0,
        };
        // That it is asked for less still is no excuse, or one who is asked for a little less each
        // round would never be found out.
        let was_settled = self.lowest <= self.asked;
        if held <= asked || was_settled {
            return start;
        }
        let missing = self.lowest.saturating_sub(asked);
        let progress = (missing.0 / PROGRESS_DIVISOR).max(1);
        if held.0 <= self.lowest.0.saturating_sub(progress) {
            return start;
        }
        Self {
            asked,
            lowest: self.lowest,
            rounds_still: self.rounds_still.saturating_add(1),
        }
    }

    /// What to make of it.
    #[must_use]
    pub fn health(self) -> BalloonHealth {
        match self {
            Self { rounds_still, .. } if rounds_still >= STUCK_ROUNDS => BalloonHealth::Stuck,
            Self { asked, lowest, .. } if lowest > asked => BalloonHealth::Following,
            _ => BalloonHealth::Settled,
        }
    }
}

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
}

/// What a VM's balloon leaves it at least, and why. Where it holds less already, it keeps that.
pub(crate) fn floor(vm: &VmSnapshot, settings: &BalloonSettings) -> (PageCount, BalloonBound) {
    let size = vm.settings.effective_size();
    let guest = vm.evidence.guest.unwrap_or_default();
    let stalled = |guest: GuestFigures| {
        if guest.has_stalled() {
            vm.held()
        } else {
            PageCount::ZERO
        }
    };
    let floors = [
        (settings.least_left(size), BalloonBound::Limit),
        (guest.needs(size), BalloonBound::GuestNeeds),
        (stalled(guest), BalloonBound::GuestStalls),
    ];
    floors.into_iter().fold(floors[0], std::cmp::max)
}

/// How far the balloon of a VM goes toward this target now.
pub(crate) fn reach(
    vm: &VmSnapshot,
    target: PageCount,
    round: &BalloonRound,
    pace: BalloonPace,
) -> Reach {
    let held = vm.held();
    if vm.stage == Stage::Waiting {
        return Reach::at_once(target);
    }
    let (floor, _) = floor(vm, &round.settings);
    let watch = vm.evidence.balloon;
    let base = watch.map_or(held, |watch| watch.asked.min(held));
    let slowed = base.saturating_sub(round.step(pace));
    let is_stuck = watch.is_some_and(|watch| watch.health() == BalloonHealth::Stuck);
    let beyond_balloon = if is_stuck { held } else { floor.min(held) };
    Reach {
        hold: target.max(floor).max(slowed),
        by_other_means: beyond_balloon.saturating_sub(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;
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
        let reach = reach(vm, mebibytes(target), &round, pace);
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
    fn a_balloon_without_progress_is_stuck_and_one_that_moves_again_is_not() {
        let mut watch = BalloonWatch::default();
        let mut health = |asked, held| {
            watch = watch.observe(PageCount(asked), PageCount(held));
            watch.health()
        };
        assert_eq!(health(1000, 1000), BalloonHealth::Settled);
        for _ in 0..STUCK_ROUNDS {
            assert_eq!(health(500, 1000), BalloonHealth::Following);
        }
        assert_eq!(health(500, 1000), BalloonHealth::Stuck);
        assert_eq!(
            health(500, 999),
            BalloonHealth::Stuck,
            "a page is no progress"
        );
        assert_eq!(health(500, 900), BalloonHealth::Following);
        assert_eq!(health(500, 500), BalloonHealth::Settled);
    }

    #[test]
    fn one_who_is_asked_for_less_each_round_is_found_out_too() {
        let mut watch = BalloonWatch::default();
        for round in 0..10 {
            watch = watch.observe(PageCount(1000 - round * 10), PageCount(1000));
        }
        assert_eq!(watch.health(), BalloonHealth::Stuck);
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
        /// However a guest drags its feet: if it holds more than asked for long, either it gets on or
        /// it is found out.
        #[test]
        fn a_slow_balloon_arrives_or_is_stuck(
            held in 10_000u64..100_000, steps in prop::collection::vec(0u64..200, 400)
        ) {
            let (mut watch, mut now, mut was_stuck) = (BalloonWatch::default(), held, false);
            watch = watch.observe(PageCount(now), PageCount(now));
            for step in steps {
                now = now.saturating_sub(step).max(1000);
                watch = watch.observe(PageCount(1000), PageCount(now));
                was_stuck |= watch.health() == BalloonHealth::Stuck;
            }
            prop_assert!(was_stuck || now < held / 2);
        }

        #[test]
        fn a_round_takes_no_more_than_its_rate(
            held in 0u64..1024, target in 0u64..1024, elapsed_ms in 0u64..3000
        ) {
            let vm = holding(held);
            let round = BalloonRound { elapsed_ms, ..BalloonRound::default() };
            let Reach { hold, .. } = reach(&vm, mebibytes(target), &round, BalloonPace::Gentle);
            let taken = vm.held().saturating_sub(hold);
            prop_assert!(taken.0 <= 64 * 256 * elapsed_ms / 1000);
            prop_assert!(hold >= mebibytes(target));
        }
    }
}
