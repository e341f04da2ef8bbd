//! Which block to scan next, and when.
//!
//! VMs take turns by their rates: each has a clock that a scanned block moves on by the time that the
//! block should take at the VM's rate, and the VM whose clock is furthest behind is next. A VM that
//! comes starts at the clock of the one furthest behind: it neither waits nor has arrears. When a limit
//! holds the host back, all are slower in proportion.

use crate::block::{BLOCK_PAGES, Block};
use crate::cost::Pressure;
use crate::order::BlockOrder;
use crate::rate::RateSettings;
use page::{PageCount, TokenBucket, VmId, mix};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a look costs that reads nothing, in pages. It costs less; but where nobody writes, there is no hurry:
/// a VM is gone over some thirty times as often as it would be if all of it were read.
const LOOK_PAGES: u64 = 16;

/// What the scanner should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Scan this block, then call [`Schedule::scanned`].
    Scan(Block),
    /// Wait until then and ask again.
    Wait(Duration),
    /// There is no VM to scan.
    Idle,
}

#[derive(Debug)]
struct ScannedVm {
    pages: u64,
    /// Blocks before those whose turn it is, those of most worth first.
    preferred: BTreeSet<(Reverse<usize>, u32)>,
    order: BlockOrder,
    bucket: TokenBucket,
    clock: Duration,
}

/// The order and rate of scanning over all VMs. `now` is any clock that only goes forward.
#[derive(Debug)]
pub struct Schedule {
    settings: RateSettings,
    pressure: Pressure,
    seed: u64,
    vms: BTreeMap<VmId, ScannedVm>,
    host: TokenBucket,
    core: TokenBucket,
}

impl Schedule {
    /// Without VMs. Equal seeds give equal orders.
    #[must_use]
    pub fn new(settings: RateSettings, seed: u64, now: Duration) -> Self {
        Self {
            settings,
            pressure: Pressure::Plenty,
            seed,
            vms: BTreeMap::new(),
            host: TokenBucket::new(settings.host_pages_per_s, now),
            core: TokenBucket::new(settings.core_share_permille * 1_000_000, now),
        }
    }

    /// A VM comes, or comes again with another size.
    pub fn add_vm(&mut self, id: VmId, size: PageCount, now: Duration) {
        let blocks = size.0.div_ceil(BLOCK_PAGES as u64);
        let block_count = u32::try_from(blocks).unwrap_or(u32::MAX);
        let clock = self.vms.values().map(|vm| vm.clock).min();
        let vm = ScannedVm {
            pages: size.0,
            preferred: BTreeSet::new(),
            order: BlockOrder::new(block_count, mix(self.seed ^ u64::from(id.0))),
            bucket: TokenBucket::new(self.vm_rate(size.0), now),
            clock: clock.unwrap_or(now),
        };
        self.vms.insert(id, vm);
    }

    /// A VM goes.
    pub fn remove_vm(&mut self, id: VmId) {
        self.vms.remove(&id);
    }

    /// Goes on at other rates.
    pub fn set_settings(&mut self, settings: RateSettings, now: Duration) {
        self.settings = settings;
        self.core
            .set_rate(settings.core_share_permille * 1_000_000, now);
        self.set_pressure(self.pressure, now);
    }

    /// Memory has become short, or is so no more.
    pub fn set_pressure(&mut self, pressure: Pressure, now: Duration) {
        self.pressure = pressure;
        let factor = self.factor();
        let host_rate = self.settings.host_pages_per_s.saturating_mul(factor);
        self.host.set_rate(host_rate, now);
        for vm in self.vms.values_mut() {
            let rate = self.settings.vm_rate(vm.pages).saturating_mul(factor);
            vm.bucket.set_rate(rate, now);
        }
    }

    fn factor(&self) -> u64 {
        match self.pressure {
            Pressure::Plenty => 1,
            Pressure::Short => self.settings.short_factor,
        }
    }

    fn vm_rate(&self, pages: u64) -> u64 {
        self.settings.vm_rate(pages).saturating_mul(self.factor())
    }

    /// What to do now.
    pub fn next(&mut self, now: Duration) -> Next {
        let host_ready = self.host.ready_at(now).max(self.core.ready_at(now));
        let vms = self.vms.iter_mut().filter(|(_, vm)| vm.pages > 0);
        let ready = vms.map(|(&id, vm)| (vm.bucket.ready_at(now).max(host_ready), vm.clock, id));
        // All that are ready now are equal in the first part, so the clock decides among them.
        match ready.min() {
            None => Next::Idle,
            Some((at, _, _)) if at > now => Next::Wait(at),
            Some((_, _, id)) => self.scan(id),
        }
    }

    /// A block is to come before those of its VM whose turn it is; of several such the one that `worth` pages, the most,
    /// could be saved of.
    pub fn prefer(&mut self, block: Block, worth: usize) {
        if let Some(vm) = self.vms.get_mut(&block.vm) {
            vm.preferred.insert((Reverse(worth), block.number));
        }
    }

    fn scan(&mut self, id: VmId) -> Next {
        let preferred = |vm: &mut ScannedVm| vm.preferred.pop_first().map(|(_, number)| number);
        let next = |vm: &mut ScannedVm| preferred(vm).or_else(|| vm.order.next());
        let block = self.vms.get_mut(&id).and_then(next);
        match block {
            Some(number) => Next::Scan(Block { vm: id, number }),
            None => Next::Idle,
        }
    }

    /// A block was scanned: `pages` of it were read, in `took` on a core. A block of holes, or one that
    /// nobody wrote to, costs little and holds nobody up.
    pub fn scanned(&mut self, block: Block, pages: usize, took: Duration, now: Duration) {
        let pages = (pages as u64).max(LOOK_PAGES);
        self.host.spend(pages, now);
        let core_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.core.spend(core_ns, now);
        if let Some(vm) = self.vms.get_mut(&block.vm) {
            vm.bucket.spend(pages, now);
            let pages_of_time = pages * 1_000_000_000 / vm.bucket.rate().max(1);
            vm.clock += Duration::from_nanos(pages_of_time);
        }
    }

    /// How often a VM has been gone over completely.
    #[must_use]
    pub fn passes(&self, id: VmId) -> Option<u64> {
        self.vms.get(&id).map(|vm| vm.order.passes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Scans for `time` at `took` a block; returns pages by VM.
    fn run(
        schedule: &mut Schedule,
        from: Duration,
        time: Duration,
        took: Duration,
    ) -> BTreeMap<VmId, u64> {
        let mut now = from;
        let mut pages = BTreeMap::new();
        while now < from + time {
            match schedule.next(now) {
                Next::Scan(block) => {
                    now += took;
                    schedule.scanned(block, BLOCK_PAGES, took, now);
                    *pages.entry(block.vm).or_insert(0) += BLOCK_PAGES as u64;
                }
                Next::Wait(until) => now = until,
                Next::Idle => break,
            }
        }
        pages
    }

    fn fast() -> RateSettings {
        RateSettings {
            pass_s: 10,
            vm_pages_per_s: 100_000,
            host_pages_per_s: 1_000_000,
            ..RateSettings::default()
        }
    }

    #[test]
    fn each_vm_is_seen_whole_in_the_time_of_a_pass() {
        let mut schedule = Schedule::new(fast(), 1, S);
        schedule.add_vm(VmId(1), PageCount(10_000), S);
        schedule.add_vm(VmId(2), PageCount(200_000), S);
        let pages = run(&mut schedule, S, 20 * S, Duration::from_micros(100));
        for (id, size) in [(VmId(1), 10_000), (VmId(2), 200_000)] {
            assert!(
                pages[&id].abs_diff(2 * size) <= 2 * size / 10 + 1024,
                "{pages:?}"
            );
        }
    }

    #[test]
    fn a_host_limit_slows_all_in_proportion() {
        let settings = RateSettings {
            host_pages_per_s: 4_000,
            ..fast()
        };
        let mut schedule = Schedule::new(settings, 1, S);
        schedule.add_vm(VmId(1), PageCount(50_000), S);
        schedule.add_vm(VmId(2), PageCount(150_000), S);
        let pages = run(&mut schedule, S, 60 * S, Duration::from_micros(10));
        assert!(
            (pages[&VmId(1)] + pages[&VmId(2)]).abs_diff(240_000) < 10_000,
            "{pages:?}"
        );
        assert!(
            pages[&VmId(2)].abs_diff(3 * pages[&VmId(1)]) < 10_000,
            "{pages:?}"
        );
    }

    #[test]
    fn short_memory_makes_it_faster_but_not_the_share_of_a_core() {
        let mut schedule = Schedule::new(RateSettings::default(), 1, S);
        schedule.add_vm(VmId(1), PageCount(10_000_000), S);
        let calm = run(&mut schedule, S, 20 * S, Duration::ZERO)[&VmId(1)];
        schedule.set_pressure(Pressure::Short, 21 * S);
        let short = run(&mut schedule, 21 * S, 20 * S, Duration::ZERO)[&VmId(1)];
        assert!(short.abs_diff(8 * calm) < calm, "{calm} {short}");
        let busy = run(&mut schedule, 50 * S, 20 * S, Duration::from_millis(100))[&VmId(1)];
        assert!(
            busy / BLOCK_PAGES as u64 <= 53,
            "a quarter of a core for 0.1 s each"
        );
    }

    /// At the default rates, a hundred VMs in which nothing happens are looked at so seldom that it does
    /// not show: a look takes some five microseconds.
    #[test]
    fn memory_that_nobody_writes_is_gone_over_seldom() {
        let mut schedule = Schedule::new(RateSettings::default(), 1, S);
        (0..100).for_each(|id| schedule.add_vm(VmId(id), PageCount(1 << 16), S));
        let (mut now, mut looks) = (S, 0);
        while now < 61 * S {
            match schedule.next(now) {
                Next::Scan(block) => {
                    looks += 1;
                    schedule.scanned(block, 0, Duration::from_micros(5), now);
                }
                Next::Wait(until) => now = until,
                Next::Idle => break,
            }
        }
        assert!((50 * 60..=1100 * 60).contains(&looks), "{looks}");
    }

    #[test]
    fn a_preferred_block_comes_next_and_costs_no_other_its_turn() {
        let mut schedule = Schedule::new(fast(), 1, S);
        let (vm, blocks) = (VmId(1), 8);
        schedule.add_vm(vm, PageCount(blocks * BLOCK_PAGES as u64), S);
        let preferred = Block { vm, number: 5 };
        let (mut now, mut seen) = (S, Vec::new());
        while schedule.passes(vm) == Some(0) {
            match schedule.next(now) {
                Next::Scan(block) => {
                    schedule.scanned(block, 1, Duration::ZERO, now);
                    seen.push(block);
                    if seen.len() == 2 {
                        (0..2).for_each(|_| schedule.prefer(preferred, 7));
                    }
                }
                Next::Wait(until) => now = until,
                Next::Idle => unreachable!(),
            }
        }
        assert_eq!(seen.remove(2), preferred);
        // The last one belongs to the next pass.
        seen.truncate(8);
        let all: BTreeSet<u32> = seen.iter().map(|block| block.number).collect();
        assert_eq!(all, (0..8).collect());
    }

    #[test]
    fn of_preferred_blocks_the_one_of_most_worth_comes_first() {
        let mut schedule = Schedule::new(fast(), 1, S);
        let vm = VmId(1);
        schedule.add_vm(vm, PageCount(8 * BLOCK_PAGES as u64), S);
        for (number, worth) in [(2, 5), (3, 512), (6, 100)] {
            schedule.prefer(Block { vm, number }, worth);
        }
        let next = |_| match schedule.next(S) {
            Next::Scan(block) => block.number,
            Next::Wait(_) | Next::Idle => unreachable!(),
        };
        assert_eq!([0; 3].map(next), [3, 6, 2]);
    }

    #[test]
    fn vms_come_and_go_and_an_empty_host_is_idle() {
        let mut schedule = Schedule::new(fast(), 1, S);
        assert_eq!(schedule.next(S), Next::Idle);
        schedule.add_vm(VmId(1), PageCount(0), S);
        assert_eq!(schedule.next(S), Next::Idle);
        schedule.add_vm(VmId(2), PageCount(512), S);
        let only = Block {
            vm: VmId(2),
            number: 0,
        };
        assert_eq!(schedule.next(S), Next::Scan(only));
        schedule.remove_vm(VmId(2));
        schedule.scanned(only, 512, S, S);
        assert!(matches!(schedule.next(S), Next::Wait(_) | Next::Idle));
    }
}
