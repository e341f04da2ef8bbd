//! What page sharing brought in the last round, what must be kept for it, and how to go on.
//!
//! Un-sharing takes memory at a guest's speed and asks nobody. So of what sharing saves, only what is
//! beyond the reserve is lent to guests, and some room is kept for frames that are filled before the
//! pages that they replace are given back.

use super::{Direction, Report, VmReport};
use api::{ScanTotals, SharingPace, SharingView, VmSharingView};
use page::{PAGE_SIZE, PageCount, PageStates, VmId};
use policy::OVERHEAD;
use protocol::SharingCounters;
use sharing::{BreakRate, Breakable, FRAMES_IN_FLIGHT, Pace, Reserve, reserve};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long it takes until memory comes from elsewhere after pages were broken: a round to see it, one
/// for a guest to be told, and one for its balloon.
const REACTION_ROUNDS: u32 = 3;
/// What is known of one VM in a round.
#[derive(Clone, Copy, Debug)]
pub(in crate::host) struct VmRound {
    pub(in crate::host) id: VmId,
    pub(in crate::host) vcpus: u8,
    /// Anonymous pages of its process, by the kernel.
    pub(in crate::host) anonymous: PageCount,
    pub(in crate::host) counters: SharingCounters,
}

/// Machine memory in a round, by the kernel.
#[derive(Clone, Copy, Debug)]
pub(in crate::host) struct MemoryRound {
    pub(in crate::host) budget: PageCount,
    pub(in crate::host) used: PageCount,
    pub(in crate::host) stored: PageCount,
}

#[derive(Clone, Copy, Debug, Default)]
struct VmAccount {
    anonymous: u64,
    /// What its process held before anything was shared.
    own: Option<PageCount>,
    counters: SharingCounters,
    /// Pages that its agent copied into mappings.
    copied: u64,
    rate: BreakRate,
    per_s: PerSecond,
    covered: u64,
}

/// Pages a second in the last round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::host) struct PerSecond {
    pub(in crate::host) merges: u64,
    pub(in crate::host) breaks: u64,
    pub(in crate::host) covered: u64,
}

/// The account of page sharing.
#[derive(Debug, Default)]
pub(in crate::host) struct Account {
    pub(in crate::host) report: Report,
    pub(in crate::host) stored: PageCount,
    pub(in crate::host) reserve: Reserve,
    /// Guest pages that show frames.
    shared: PageCount,
    /// Those less the frames, in pages.
    pub(in crate::host) saving: i64,
    /// What guests may have beyond the budget, because sharing saves it.
    pub(in crate::host) saved: PageCount,
    /// What else sharing saves, which guests may break before memory comes from elsewhere.
    pub(in crate::host) breakable: PageCount,
    /// What nobody may have, because sharing needs it.
    pub(in crate::host) kept: PageCount,
    pub(in crate::host) core_permille: u64,
    pub(in crate::host) read_per_s: u64,
    /// How fast all VMs together break pages.
    rate: BreakRate,
    vms: BTreeMap<VmId, VmAccount>,
}

impl Account {
    /// Takes in a round that followed the last one after `time`.
    pub(in crate::host) fn update(
        &mut self,
        report: Report,
        vms: &[VmRound],
        memory: MemoryRound,
        round_time: Duration,
        time: Duration,
    ) {
        let before = std::mem::replace(&mut self.report, report);
        self.stored = memory.stored;
        let cpu = self.report.cpu.saturating_sub(before.cpu);
        self.core_permille = per_second(cpu.as_millis(), time);
        let read = self.report.totals.read.saturating_sub(before.totals.read);
        self.read_per_s = per_second(read.into(), time);
        self.vms
            .retain(|id, _| vms.iter().any(|round| round.id == *id));
        let mut broken = 0;
        for round in vms {
            let seen = self.report.vms.get(&round.id).copied().unwrap_or_default();
            // Nothing is known of what happened before the first round.
            let account = self.vms.entry(round.id).or_insert(VmAccount {
                anonymous: round.anonymous.0,
                copied: round.copied(&seen),
                counters: round.counters,
                covered: seen.figures.covered,
                ..VmAccount::default()
            });
            broken += account.update(round, &seen, time);
        }
        self.rate.record(PageCount(broken), time);
        self.provide(vms, memory, round_time * REACTION_ROUNDS);
    }

    fn provide(&mut self, vms: &[VmRound], memory: MemoryRound, reaction: Duration) {
        let breakable: Vec<Breakable> = vms.iter().map(|round| self.breakable(round)).collect();
        let free = memory.budget.saturating_sub(memory.used);
        self.reserve = reserve(&breakable, self.rate, reaction, free);
        let shared: PageCount = breakable.iter().map(|vm| vm.shared).sum();
        self.shared = shared;
        self.saving = shared.0.cast_signed() - memory.stored.0.cast_signed();
        let is_sharing = self.report.direction == Direction::Share && !vms.is_empty();
        let in_flight = if is_sharing {
            FRAMES_IN_FLIGHT
        } else {
            PageCount::ZERO
        };
        self.kept = in_flight + memory.stored.saturating_sub(shared);
        let saving = shared.saturating_sub(memory.stored);
        let saving = match is_sharing {
            true => saving,
            false => PageCount::ZERO,
        };
        self.breakable = saving.min(self.reserve.keep_free);
        self.saved = saving - self.breakable;
    }

    fn breakable(&self, round: &VmRound) -> Breakable {
        let account = self.vms.get(&round.id);
        Breakable {
            shared: self.mapped(round) - self.broken(round),
            rate: account.map(|account| account.rate).unwrap_or_default(),
            vcpus: round.vcpus.into(),
        }
    }

    /// Pages of a VM over which the store is mapped. The VM knows best, but its word is a claim, and what
    /// others get hangs on it: it is believed as far as the host's own ledger goes.
    fn mapped(&self, round: &VmRound) -> PageCount {
        let seen = self.report.vms.get(&round.id);
        let known = seen.map_or(0, |vm| vm.counts.shared + vm.counts.broken);
        round.counters.mapped.min(PageCount(known))
    }

    /// Of a VM's mapped pages, those that its guest has written to. The scanner may be late, but such pages
    /// are anonymous memory, which the kernel counts: what the process has more of it than was its own
    /// when that was looked at last is broken pages.
    pub(in crate::host) fn broken(&self, round: &VmRound) -> PageCount {
        let seen = self.report.vms.get(&round.id);
        let own = seen.and_then(|vm| vm.own_anonymous);
        let own = own.or_else(|| self.vms.get(&round.id).and_then(|account| account.own));
        let counted = round.anonymous.saturating_sub(own.unwrap_or(OVERHEAD));
        let seen = PageCount(seen.map_or(0, |vm| vm.counts.broken));
        seen.max(counted).min(self.mapped(round))
    }

    fn per_second(&self, id: VmId) -> PerSecond {
        self.vms.get(&id).map(|vm| vm.per_s).unwrap_or_default()
    }

    /// A VM whose pages are in these states.
    pub(in crate::host) fn vm_view(&self, id: VmId, states: &PageStates) -> VmSharingView {
        let vm = self.report.vms.get(&id).copied().unwrap_or_default();
        let per_s = self.per_second(id);
        VmSharingView {
            problem: self.report.not_sharing.get(&id).cloned(),
            shared_bytes: states.shared.bytes(),
            zero_bytes: PageCount(vm.counts.zero).bytes(),
            broken_bytes: states.broken.bytes(),
            charge_bytes: vm.charge_millipages * PAGE_SIZE / 1000,
            hint_bytes: PageCount(vm.hints).bytes(),
            areas: vm.counts.areas,
            areas_limit: vm.areas_limit,
            passes: vm.passes,
            covered: vm.figures.covered,
            read: vm.figures.read,
            covered_per_s: per_s.covered,
            merges_per_s: per_s.merges,
            breaks_per_s: per_s.breaks,
        }
    }

    /// All VMs, of whose pages so many are broken.
    pub(in crate::host) fn view(&self, broken: PageCount) -> SharingView {
        let (counts, totals) = (self.report.counts, self.report.totals);
        let per_s = self.total_per_second();
        SharingView {
            on: self.report.direction == Direction::Share,
            shared_bytes: self.shared.bytes(),
            common_bytes: self.stored.bytes(),
            saving_bytes: self.saving * PAGE_SIZE.cast_signed(),
            zero_bytes: PageCount(counts.zero).bytes(),
            broken_bytes: broken.bytes(),
            reserve_bytes: self.reserve.keep_free.bytes(),
            lent_bytes: self.saved.bytes(),
            pace: match self.reserve.pace {
                Pace::GoOn => SharingPace::GoOn,
                Pace::SlowDown => SharingPace::SlowDown,
                Pace::Stop => SharingPace::Stop,
            },
            missing_bytes: self.report.missing.bytes(),
            covered_per_s: per_s.covered,
            read_per_s: self.read_per_s,
            core_permille: self.core_permille,
            merges_per_s: per_s.merges,
            breaks_per_s: per_s.breaks,
            hints: counts.index.hints as u64,
            hints_limit: counts.index.capacity as u64,
            replaced_hints: counts.index.replaced_hints,
            table_bytes: counts.table_bytes as u64,
            totals: ScanTotals {
                covered: totals.covered,
                read: totals.read,
                filled: totals.filled,
                fill_failures: totals.fill_failures,
                requests: totals.requests,
                cpu_us: u64::try_from(self.report.cpu.as_micros()).unwrap_or(u64::MAX),
                surprises: counts.surprises,
            },
            ..SharingView::default()
        }
    }

    /// All VMs together.
    fn total_per_second(&self) -> PerSecond {
        let mut total = PerSecond::default();
        for vm in self.vms.values() {
            total.merges += vm.per_s.merges;
            total.breaks += vm.per_s.breaks;
            total.covered += vm.per_s.covered;
        }
        total
    }
}

impl VmRound {
    /// Pages that its agent says that it copied: no more than it was asked to map.
    fn copied(&self, seen: &VmReport) -> u64 {
        self.counters.copied.0.min(seen.asked)
    }
}

impl VmAccount {
    /// Takes in a round, and returns how many pages were broken in it.
    fn update(&mut self, round: &VmRound, seen: &VmReport, time: Duration) -> u64 {
        let (old, new) = (self.counters, round.counters);
        let copied = round.copied(seen);
        let covered = seen.figures.covered;
        let grown = |figure: fn(&SharingCounters) -> PageCount| {
            figure(&new).0.saturating_sub(figure(&old).0)
        };
        let merged = grown(|count| count.shared).saturating_add(grown(|count| count.zeroed));
        // Anonymous memory grew by what guests broke and by what the agent copied, and shrank by the
        // copies that it dropped or brought home.
        let removed = grown(|count| count.dropped).saturating_add(grown(|count| count.rehomed));
        let added = copied.saturating_sub(self.copied);
        let is_mapped = new.mapped > PageCount::ZERO || old.mapped > PageCount::ZERO;
        let has_frames = seen.counts.shared + seen.counts.broken > 0;
        let broken = match is_mapped || has_frames {
            false => 0,
            true => (round.anonymous.0.saturating_add(removed))
                .saturating_sub(self.anonymous.saturating_add(added)),
        };
        self.rate.record(PageCount(broken), time);
        self.per_s = PerSecond {
            merges: per_second(merged.into(), time),
            breaks: per_second(broken.into(), time),
            covered: per_second(covered.saturating_sub(self.covered).into(), time),
        };
        if new.mapped == PageCount::ZERO && !has_frames {
            self.own = Some(round.anonymous);
        }
        self.anonymous = round.anonymous.0;
        (self.counters, self.copied) = (new, copied);
        self.covered = covered;
        broken
    }
}

fn per_second(count: u128, time: Duration) -> u64 {
    let per_second = count * 1000 / time.as_millis().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn round(id: u32, anonymous: u64, mapped: u64, shared: u64) -> VmRound {
        VmRound {
            id: VmId(id),
            vcpus: 1,
            anonymous: PageCount(anonymous),
            counters: SharingCounters {
                mapped: PageCount(mapped),
                shared: PageCount(shared),
                ..SharingCounters::default()
            },
        }
    }

    fn memory(used: u64, stored: u64) -> MemoryRound {
        MemoryRound {
            budget: PageCount(1_000_000),
            used: PageCount(used),
            stored: PageCount(stored),
        }
    }

    /// What the scanner knows of two VMs, of which the first has so many broken pages.
    fn report(broken: u64) -> Report {
        let vm = |broken| VmReport {
            counts: sharing::VmCounts {
                shared: 300_000 - broken,
                broken,
                ..Default::default()
            },
            asked: 1000,
            ..VmReport::default()
        };
        Report {
            vms: [(VmId(1), vm(broken)), (VmId(2), vm(0))].into(),
            ..Report::default()
        }
    }

    #[test]
    fn what_is_saved_is_lent_but_for_the_reserve() {
        let mut account = Account::default();
        let vms = [
            round(1, 100, 300_000, 300_000),
            round(2, 100, 300_000, 300_000),
        ];
        account.update(report(0), &vms, memory(0, 300_000), S, S);
        // One of the two VMs may break pages for three seconds as fast as it can.
        let reserve = 3 * (1_000_000_000 / sharing::cost::BREAK_NS);
        assert_eq!(account.reserve.keep_free.0, reserve);
        assert_eq!(account.saved.0, 300_000 - reserve);
        assert_eq!(account.kept, FRAMES_IN_FLIGHT);
    }

    #[test]
    fn frames_that_nobody_shows_any_more_are_kept_for() {
        let mut account = Account::default();
        account.update(report(90), &[round(1, 190, 100, 100)], memory(0, 50), S, S);
        assert_eq!(account.saved, PageCount::ZERO);
        assert_eq!(account.kept, FRAMES_IN_FLIGHT + PageCount(40));
    }

    #[test]
    fn breaks_are_what_anonymous_memory_grew_by_and_no_agent_brought_about() {
        let mut account = Account::default();
        account.update(report(0), &[round(1, 500, 100, 100)], memory(0, 50), S, S);
        let mut later = round(1, 560, 110, 120);
        later.counters.copied = PageCount(15);
        later.counters.dropped = PageCount(5);
        account.update(report(0), &[later], memory(0, 50), S, 2 * S);
        let per_second = account.per_second(VmId(1));
        assert_eq!((per_second.breaks, per_second.merges), (25, 10));
    }

    /// A pass of the scanner can take an hour.
    #[test]
    fn what_the_kernel_counts_is_broken_before_the_scanner_has_seen_it() {
        let mut account = Account::default();
        let (own, seen) = (500, 30);
        let mut broken = |anonymous| {
            let round = round(1, anonymous, 10_000, 10_000);
            let mut report = report(seen);
            let vm = report.vms.get_mut(&VmId(1)).unwrap();
            vm.own_anonymous = Some(PageCount(own));
            account.update(report, &[round], memory(0, 50), S, S);
            account.broken(&round).0
        };
        assert_eq!(broken(own + 30), seen);
        assert_eq!(broken(own + 7_000), 7_000);
        assert_eq!(broken(own + 70_000), 10_000);
        assert_eq!(broken(own), seen);
    }

    /// A VM process that its guest has taken over may say anything.
    #[test]
    fn a_vm_that_claims_to_share_what_it_does_not_brings_nobody_more() {
        let honest = [
            round(1, 100, 300_000, 300_000),
            round(2, 100, 300_000, 300_000),
        ];
        let mut account = Account::default();
        account.update(report(0), &honest, memory(0, 300_000), S, S);
        let (saved, saving) = (account.saved, account.saving);
        for claimed in [1 << 18, 1 << 63, u64::MAX] {
            let mut liar = round(3, 100, claimed, claimed);
            liar.counters.copied = PageCount(claimed);
            liar.counters.dropped = PageCount(claimed);
            liar.counters.zeroed = PageCount(claimed);
            let all = [honest[0], honest[1], liar];
            for _ in 0..3 {
                account.update(report(0), &all, memory(0, 300_000), S, S);
                assert_eq!((account.saved, account.saving), (saved, saving));
            }
        }
    }

    /// What the agent copied is no break. What it says that it copied, and was not asked for, is.
    #[test]
    fn a_vm_that_claims_copies_does_not_hide_its_breaks() {
        let mut account = Account::default();
        let mut vm = round(1, 500, 100, 100);
        account.update(report(0), &[vm], memory(0, 50), S, S);
        vm.anonymous = PageCount(5500);
        vm.counters.copied = PageCount(1 << 60);
        account.update(report(0), &[vm], memory(0, 50), S, S);
        assert_eq!(account.per_second(VmId(1)).breaks, 4000);
    }

    #[test]
    fn what_sharing_costs_is_told_as_a_loss() {
        let mut account = Account::default();
        account.update(report(0), &[round(1, 0, 100, 100)], memory(0, 150), S, S);
        assert_eq!(account.view(PageCount(0)).saving_bytes, -50 * 4096);
        assert_eq!(account.saved, PageCount(0));
    }

    #[test]
    fn nothing_is_lent_while_pages_are_brought_home() {
        let mut account = Account::default();
        let mut home = report(0);
        home.direction = Direction::BringHome;
        let vms = [round(1, 100, 300_000, 300_000)];
        account.update(home, &vms, memory(0, 10), S, S);
        assert_eq!((account.saved, account.kept), (PageCount(0), PageCount(0)));
    }
}
