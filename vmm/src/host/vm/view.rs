//! A VM as clients see it.

use super::Vm;
use crate::host::sharing::account::Account;
use api::{DiskView, NetView, SwapView, TouchLimitView, VmKind, VmView, WaitView};
use page::PageCount;

impl Vm {
    pub(in crate::host) fn view(&self, account: &Account) -> VmView {
        let settings = &self.config.settings;
        let observation = self.seen.observation.as_ref();
        let running = self.running();
        let process = running.and_then(|running| running.backend.process());
        VmView {
            name: self.config.name.clone(),
            id: self.config.id,
            pid: running.map(|running| running.pid),
            kind: match self.adoption() {
                Some(_) => VmKind::Qemu,
                None => VmKind::Ballonet,
            },
            capabilities: self.capabilities(),
            stale: self.is_stale(),
            paused: self.is_paused(),
            phase: self.life.phase(),
            responding: self.responding(),
            credible: !self.seen.is_doubted,
            restart: api::RestartPolicy::No,
            uptime_s: self.since.elapsed().as_secs_f64(),
            vcpus: self.config.vcpus,
            trust_group: self.config.trust_group.clone(),
            size_bytes: settings.size.bytes(),
            min_bytes: settings.min.bytes(),
            max_bytes: settings.max.bytes(),
            shares: settings.shares,
            shares_count: settings.shares.resolve(settings.size).0.get(),
            target_bytes: self.target.bytes(),
            granted_bytes: self.grant.latest().bytes(),
            pinned_bytes: self.pinned.map(PageCount::bytes),
            used_bytes: self.seen.used.total().bytes(),
            memory_file_bytes: self.seen.used.memory_file.bytes(),
            anonymous_bytes: self.seen.used.anonymous.bytes(),
            states: self.states().map(PageCount::bytes),
            balloon: observation
                .map(|observation| observation.balloon.into())
                .unwrap_or_default(),
            guest: observation.and_then(|observation| observation.statistics),
            counters: observation
                .map(|observation| observation.counters)
                .unwrap_or_default(),
            nets: self.nets(),
            disks: self.disk_views(),
            console_log: self.config.console_log.clone(),
            sharing: account.vm_view(self.config.id, &self.states()),
            working_set: self
                .seen
                .sampling
                .view(&self.states(), self.held(), self.seen.figures),
            idle_tax_permille: settings.idle_tax,
            large_pages: settings.large_pages,
            balloon_health: running.map(|_| self.seen.balloon_watch.health()),
            touch_limit: self.config.touch_limit.map(TouchLimitView::from),
            swap: self.config.has_swap.then(|| self.swap_view()),
            blocked_permille: self.blocked_permille(),
            blocked_us: self.seen.blocked.last.total_us,
            start_us: process.map(|process| process.start_us),
            jail: process.map(|process| process.jail.clone()),
            userfault_bytes: process.map_or(0, |process| process.userfault_pages.bytes()),
        }
    }

    fn swap_view(&self) -> SwapView {
        let (states, rates) = (self.states(), self.seen.swap_rates);
        let observation = self.seen.observation.as_ref();
        let swap = observation.map(|observation| observation.counters.swap);
        let counted = swap.unwrap_or_default();
        let out = states.compressed + states.swapped;
        let target = match self.config.touch_limit {
            Some(limit) => (states.private + out).saturating_sub(limit.slow_above),
            None => PageCount::ZERO,
        };
        SwapView {
            target_bytes: target.bytes(),
            read_per_s: rates.read,
            written_per_s: rates.written,
            zipped_per_s: rates.zipped,
            unzipped_per_s: rates.unzipped,
            pool_bytes: counted.pool_bytes,
            pool_used_bytes: counted.pool_used_bytes,
            pool_limit_bytes: counted.pool_limit_bytes,
            file_bytes: counted.file_bytes,
            file_used_bytes: counted.file_used_bytes,
            write_cost: counted.write_cost(),
            pool_wait_us: WaitView::of(&counted.pool_waits),
            file_wait_us: WaitView::of(&counted.file_waits),
        }
    }

    /// Its network cards. Of one that was not seen yet nothing is known but what it is to be.
    fn nets(&self) -> Vec<NetView> {
        let seen = self
            .seen
            .observation
            .iter()
            .flat_map(|seen| &seen.nets)
            .copied();
        let states = seen.chain(std::iter::repeat_with(Default::default));
        let cards = self.config.nets.iter().zip(states);
        cards
            .map(|(config, state)| NetView::new(config, state))
            .collect()
    }

    fn disk_views(&self) -> Vec<DiskView> {
        let figures = self.seen.observation.iter().flat_map(|seen| &seen.disks);
        let disks = self.config.disks.iter().zip(figures);
        disks
            .map(|(spec, figures)| DiskView::new(spec, *figures))
            .collect()
    }
}
