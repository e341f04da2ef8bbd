//! The scanner: the one thread of the host that looks at guest memory.
//!
//! ```text
//!   Schedule ──▶ block ──▶ look ──▶ Sharing::examine ──▶ plan ──▶ frames filled ──▶ agents asked
//!                                                                                      │
//!   frames punched ◀── Sharing::settle ◀───────────────────────────────── outcomes ◀───┘
//! ```
//!
//! What to do is decided by the `sharing` crate; here is no choice but when to wait. Nothing here can
//! harm a guest: its memory is only read, and agents compare before they act. What could harm is a
//! frame freed while somebody maps it, so frames are freed on the agents' own words alone, or when a
//! VM's process has ended.

use super::audit::{Audit, Auditor, Walk, anonymous_pages, mapped_frames, walk};
use super::hash::PageHash;
use super::listener::Listener;
use super::priority::{Loan, Place};
use super::registry::Registry;
use super::vm::{Keep, Look, PageReader, SampleOrder, ScannedVm, ScannedVmSpec, Source};
use super::{Command, Conditions, Direction, Report, VmReport};
use crate::memory::store::Store;
use api::ScanPriority;
use page::{Gfn, PageCount, VmId};
use protocol::VmName;
use protocol::page_sharing::FromAgent;
use rustix::event::epoll::EventFlags;
use rustix::time::{ClockId, clock_gettime};
use sharing::{
    BLOCK_PAGES, Block, BlockPlan, Content, Counts, Fill, Frame, FrameRange, Next, Pace, Page,
    PageSet, Pressure, RateSettings, Request, Schedule, Seen, Sharing, needed_at_home,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// Requests that one VM's agent may have before it: one it works on and one that waits.
const MOST_PENDING: usize = 2;
/// How often figures are published at most.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// Messages taken from one agent before others have their turn.
const HEARD_AT_ONCE: usize = 256;
/// How often is asked whether a VM's sample is due to be looked at: the last look of a period is late by so
/// much at most.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// How long is slept at least when no block is due: each VM has moments of its own, and to wake for every one
/// of a hundred VMs would cost more than to look at their blocks. Rates let that be caught up with.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);
/// How long an idle scanner sleeps before it looks whether anything has changed.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How long an audit waits for an agent to tell what it has done.
const SYNC_PATIENCE: Duration = Duration::from_secs(5);
/// How long a full agent is waited for before its VM loses its turn.
const AGENT_PATIENCE: Duration = Duration::from_millis(2);

pub(super) struct Scanner {
    commands: Receiver<Command>,
    loan: Arc<Loan>,
    place: Place,
    listener: Listener,
    report: Arc<Mutex<Report>>,
    registry: Registry,
    reader: PageReader,
    /// VMs that could not be taken in, and why.
    outsiders: BTreeMap<VmId, (VmName, String)>,
    sharing: Sharing,
    schedule: Schedule,
    direction: Direction,
    pace: Pace,
    pressure: Pressure,
    priority: ScanPriority,
    /// What may be used to bring shared pages home, in pages.
    free: PageCount,
    /// What of that guests may take by breaking shared pages.
    reserve: PageCount,
    /// What is missing to bring the next block home.
    missing: PageCount,
    /// The last block that was brought home.
    brought_home: Block,
    audits: Vec<SyncSender<Audit>>,
    /// VMs whose agents said more than is heard at once.
    unheard: BTreeSet<VmId>,
    /// Blocks whose turn came while a request to them was pending.
    missed: BTreeSet<Block>,
    /// Blocks looked at since something was read.
    unread_blocks: u64,
    totals: Totals,
    begin: Instant,
    watched: Instant,
    published: Instant,
}

/// What the scanner did since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pages looked over.
    pub covered: u64,
    /// Pages read and hashed.
    pub read: u64,
    /// Frames filled.
    pub filled: u64,
    /// Of those, the ones whose page had changed meanwhile, or could not be written.
    pub fill_failures: u64,
    /// Requests sent to agents.
    pub requests: u64,
}

impl Scanner {
    /// To be called by the thread that will run it.
    pub(super) fn new(
        commands: Receiver<Command>,
        loan: Arc<Loan>,
        listener: Listener,
        report: Arc<Mutex<Report>>,
        registry: Registry,
        rates: RateSettings,
    ) -> Self {
        let begin = Instant::now();
        Self {
            commands,
            place: Place::of_scanner(&loan),
            loan,
            listener,
            report,
            sharing: Sharing::new(registry.frames),
            schedule: Schedule::new(rates, std::process::id().into(), Duration::ZERO),
            registry,
            reader: PageReader::new(),
            outsiders: BTreeMap::new(),
            direction: Direction::Share,
            pace: Pace::GoOn,
            pressure: Pressure::Plenty,
            priority: ScanPriority::Idle,
            free: PageCount::ZERO,
            reserve: PageCount::ZERO,
            missing: PageCount::ZERO,
            brought_home: Block {
                vm: VmId(0),
                number: 0,
            },
            audits: Vec::new(),
            unheard: BTreeSet::new(),
            missed: BTreeSet::new(),
            unread_blocks: 0,
            totals: Totals::default(),
            begin,
            watched: begin,
            published: begin,
        }
    }

    /// Runs until the host ends.
    pub(super) fn run(mut self) {
        self.take_place();
        while self.obey().is_ok() {
            self.place.give_back(&self.loan);
            self.hear_agents();
            self.answer_audits();
            self.watch_now_and_then();
            self.publish_now_and_then();
            let sleep = match self.direction {
                _ if !self.audits.is_empty() => Some(AGENT_PATIENCE),
                Direction::Share => self.scan(),
                Direction::BringHome => self.bring_home(),
            };
            if let Some(time) = sleep {
                self.sleep(time);
            }
        }
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Among all that want a core.
    fn take_place(&mut self) {
        let is_home_coming = self.direction == Direction::BringHome;
        self.place
            .set(self.priority, self.pressure, is_home_coming, &self.loan);
    }

    /// `Err` when the host has gone.
    fn obey(&mut self) -> Result<(), ()> {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey_one(command),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(()),
            }
        }
    }

    fn obey_one(&mut self, command: Command) {
        match command {
            Command::AddVm(spec) => self.add_vm(*spec),
            Command::Expect(frames) => {
                for range in frames {
                    self.sharing.expect(range);
                }
            }
            Command::AllHaveCome => {
                self.sharing.all_have_come();
                self.registry.all_have_come();
            }
            Command::TakeOver(specs) => {
                self.take_over(specs);
                self.publish();
                self.loan.done();
            }
            Command::RemoveVm(id) => {
                self.remove_vm(id);
                self.loan.done();
            }
            Command::Rates(rates, priority) => {
                self.priority = priority;
                self.take_place();
                let now = self.now();
                self.schedule.set_settings(rates, now);
            }
            Command::Direct(direction) => {
                self.direction = direction;
                self.take_place();
                self.registry
                    .vms
                    .values_mut()
                    .for_each(ScannedVm::forget_looks);
            }
            Command::Adapt(conditions) => self.adapt(*conditions),
            Command::Sweep => {
                let ids = self.registry.ids();
                ids.into_iter().for_each(|id| self.sweep(id));
                self.publish();
                self.loan.done();
            }
            Command::Audit(answer) => self.audits.push(answer),
            Command::Sample(vm, order) => self.begin_sample(vm, order),
        }
    }

    fn adapt(&mut self, conditions: Conditions) {
        let Conditions { pace, pressure, .. } = conditions;
        for conditions in conditions.vms {
            let vm = self.registry.vms.get_mut(&conditions.id);
            if vm.is_some_and(|vm| vm.adapt(&conditions)) {
                self.let_go(conditions.id);
            }
        }
        let is_new = pressure != self.pressure;
        (self.pace, self.pressure) = (pace, pressure);
        (self.free, self.reserve) = (conditions.free, conditions.reserve);
        if is_new {
            let now = self.now();
            self.schedule.set_pressure(pressure, now);
            // What did not pay then may pay now.
            self.registry
                .vms
                .values_mut()
                .for_each(ScannedVm::forget_looks);
            self.take_place();
        }
    }

    /// Other blocks of a VM are left alone from now on. Those that no longer are come first, those before others of which
    /// most can be saved.
    fn let_go(&mut self, id: VmId) {
        let Some(vm) = self.registry.vms.get_mut(&id) else {
            return;
        };
        let pass = self.schedule.passes(id).unwrap_or(0);
        let kept: Vec<(Block, usize)> = self.sharing.kept(id).collect();
        for (block, worth) in kept {
            if vm.keep(block.number, pass, || PageSet::EMPTY) == Keep::No {
                self.sharing.let_go(block);
                if worth > 0 {
                    self.schedule.prefer(block, worth);
                }
            }
        }
    }

    fn begin_sample(&mut self, id: VmId, order: SampleOrder) {
        let sharing = &self.sharing;
        let mapped = |number| sharing.mapped(Block { vm: id, number });
        if let Some(vm) = self.registry.vms.get_mut(&id) {
            vm.begin_sample(order, mapped);
        }
        self.listen_to(id);
    }

    fn watch_now_and_then(&mut self) {
        if self.watched.elapsed() < WATCH_EVERY {
            return;
        }
        self.watched = Instant::now();
        self.registry
            .vms
            .values_mut()
            .for_each(ScannedVm::watch_sample_in_time);
        let vms = self.registry.vms.iter();
        let due = vms.filter(|(_, vm)| vm.is_sweep_due()).map(|(&id, _)| id);
        for id in due.collect::<Vec<_>>() {
            self.sweep(id);
        }
    }

    /// Looks which of a VM's mapped pages its guest has written to, and which frames are left with one user.
    fn sweep(&mut self, id: VmId) {
        let Some(vm) = self.registry.vms.get_mut(&id) else {
            return;
        };
        let begin = vm.begin_sweep();
        let is_lonely_look = vm.is_lonely_look_due();
        let mut found = None;
        for block in (0..vm.blocks()).map(|number| Block { vm: id, number }) {
            let mapped = self.sharing.mapped(block);
            if !mapped.is_empty() {
                let Ok(broken) = vm.broken(block.number, &mapped) else {
                    found = None;
                    break;
                };
                *found.get_or_insert(0) += broken.count() as u64;
                self.sharing.broke(block, &broken);
            }
            if is_lonely_look {
                vm.note_lonely(block.number, self.sharing.lonely(block));
            }
        }
        vm.end_sweep(begin, found.map(PageCount));
        self.registry.punch(self.sharing.take_freed());
    }

    /// Brings pages back that are alone with their frames, as far as agents have room.
    fn give_up_lonely(&mut self) {
        for id in self.registry.ids() {
            while self.has_room(id)
                && let Some(vm) = self.registry.vms.get_mut(&id)
                && let Some((number, pages)) = vm.next_to_give_up()
            {
                let block = Block { vm: id, number };
                if let Some(request) = self.sharing.give_up(block, &pages) {
                    self.ask(&request);
                }
            }
        }
    }

    fn add_vm(&mut self, spec: ScannedVmSpec) {
        let (id, size, name) = (spec.id, spec.size, spec.name.clone());
        if let Err(error) = self.registry.add(spec, &mut self.sharing) {
            tracing::warn!("{name} does not share pages: {error}");
            self.sharing.remove_vm(id);
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            report.not_sharing.insert(id, error.clone());
            self.outsiders.insert(id, (name, error));
            return;
        }
        let now = self.now();
        self.schedule.add_vm(id, size, now);
        self.listen_to(id);
    }

    /// Takes in what another host's VMs of one domain show of their store. Who maps which frame is the kernel's word: each
    /// agent has left the requests of the host before by then, so that nothing is mapped but on this one's word.
    fn take_over(&mut self, specs: Vec<ScannedVmSpec>) {
        let ids: Vec<VmId> = specs.iter().map(|spec| spec.id).collect();
        specs.into_iter().for_each(|spec| self.add_vm(spec));
        let taken = ids.iter().try_for_each(|&id| self.take_in_mapped(id));
        let store = ids.iter().find_map(|id| self.registry.vms.get(id));
        let Some((store, hash)) = store.map(|vm| (Arc::clone(&vm.store), Arc::clone(&vm.hash)))
        else {
            return;
        };
        if let Err(why) = taken {
            // A frame may be shown that is not known to be: none may be filled anew or freed.
            self.registry.leave_as_it_is(store);
            ids.into_iter().for_each(|id| self.leave_outside(id, why));
            return;
        }
        let domain = ids.iter().find_map(|&id| self.sharing.domain_of(id));
        let shown = domain.map_or_else(Vec::new, |domain| self.sharing.frames_of(domain));
        if let Err(error) = store.punch_all_but(&shown) {
            tracing::warn!("frames that nobody shows are not freed: {error}");
        }
        for range in shown {
            self.look_into(&store, &hash, range);
        }
    }

    fn take_in_mapped(&mut self, id: VmId) -> Result<(), &'static str> {
        if !self.sync(id) {
            return Err("its agent does not answer, or its process has ended");
        }
        let vm = self.registry.vms.get(&id).ok_or("it cannot share pages")?;
        let unread = "its memory map cannot be read";
        let (_, mapped) = mapped_frames(vm).ok_or(unread)?;
        let anonymous = anonymous_pages(vm, &mapped).ok_or(unread)?;
        for (gfn, frame) in mapped {
            let page = Page {
                vm: id,
                gfn: Gfn(gfn),
            };
            if !self
                .sharing
                .take_over(page, frame, anonymous.contains(&gfn))
            {
                return Err("it shows a frame that cannot be its own");
            }
        }
        Ok(())
    }

    /// What frames hold, for equal pages to find them.
    fn look_into(&mut self, store: &Store, hash: &PageHash, range: FrameRange) {
        let mut bytes = vec![0; PAGE_BYTES];
        for frame in (range.start.0..range.start.0 + range.count).map(Frame) {
            if store.read(frame, &mut bytes).is_ok()
                && let Content::Hash(hash) = hash.content(&bytes)
            {
                self.sharing.found_in_frame(frame, hash);
            }
        }
    }

    /// A VM goes on without sharing any more. What it shows stays.
    fn leave_outside(&mut self, id: VmId, why: &str) {
        let Some(vm) = self.registry.vms.get(&id) else {
            return;
        };
        let name = vm.name.clone();
        tracing::warn!("{name} does not share pages: {why}");
        self.remove_vm(id);
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.not_sharing.insert(id, why.into());
        self.outsiders.insert(id, (name, why.into()));
    }

    /// The VM's process has ended, and its mappings with it.
    fn remove_vm(&mut self, id: VmId) {
        self.schedule.remove_vm(id);
        self.outsiders.remove(&id);
        self.missed.retain(|block| block.vm != id);
        if let Some(vm) = self.registry.vms.get(&id) {
            self.listener.leave(id, vm);
        }
        self.sharing.remove_vm(id);
        self.registry.punch(self.sharing.take_freed());
        self.registry.remove(id);
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.not_sharing.remove(&id);
        drop(report);
        self.publish();
    }

    fn hear_agents(&mut self) {
        for id in std::mem::take(&mut self.unheard) {
            self.listen_to(id);
        }
        for id in self.listener.speakers() {
            for _ in 0..HEARD_AT_ONCE {
                let Some(message) = self.hear(id) else { break };
                self.take_in(id, message);
            }
            self.listen_to(id);
        }
        self.registry.punch(self.sharing.take_freed());
    }

    /// To be called after whatever is said to an agent or heard from it.
    fn listen_to(&mut self, id: VmId) {
        let Some(vm) = self.registry.vms.get(&id) else {
            return;
        };
        let (word, room) = (EventFlags::IN, EventFlags::OUT);
        if vm.is_gone() {
            // A process that has died is removed soon; until then its socket would not let us sleep.
            self.listener.leave(id, vm);
        } else if vm.has_said_too_much() {
            self.listener.leave(id, vm);
            self.unheard.insert(id);
        } else {
            let room = if vm.has_unsent() {
                room
            } else {
                EventFlags::empty()
            };
            self.listener.listen(id, vm, word | room);
        }
    }

    fn hear(&mut self, id: VmId) -> Option<FromAgent> {
        let vm = self.registry.vms.get_mut(&id)?;
        vm.send_unsent();
        let message = vm.hear();
        if let Some(fault) = vm.take_fault() {
            tracing::warn!("the agent of VM {id} is not heard any more, for it sent {fault}");
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            let why = format!("its process sent {fault}");
            report.not_sharing.insert(id, why);
        }
        message
    }

    fn take_in(&mut self, id: VmId, message: FromAgent) {
        match message {
            FromAgent::Outcome {
                ticket,
                outcome,
                unwritten,
            } => {
                if let Some(block) = self.sharing.settle_of(id, ticket, &outcome)
                    && let Some(vm) = self.registry.vms.get_mut(&id)
                {
                    vm.note_answer(block.number, &unwritten);
                    self.unread_blocks = 0;
                    if self.missed.remove(&block) {
                        self.schedule.prefer(block, usize::MAX);
                    }
                }
            }
            FromAgent::Unmapped(range) => self.sharing.unmapped(id, range),
            FromAgent::Synced { number, table } => {
                if let Some(vm) = self.registry.vms.get_mut(&id) {
                    vm.synced(number, table);
                }
            }
            FromAgent::Sampled {
                number,
                dropped,
                blocks,
            } => {
                if let Some(vm) = self.registry.vms.get_mut(&id) {
                    vm.sampled(number, &dropped, &blocks);
                }
            }
        }
    }

    /// Scans the next block. How long to sleep, if there is none now.
    fn scan(&mut self) -> Option<Duration> {
        self.give_up_lonely();
        if self.waits_for_agents() {
            return Some(AGENT_PATIENCE);
        }
        let now = self.now();
        let block = match self.schedule.next(now) {
            Next::Scan(block) => block,
            Next::Wait(until) => return Some(until.saturating_sub(now).max(SHORTEST_SLEEP)),
            Next::Idle => return Some(LONGEST_SLEEP),
        };
        if !self.has_room(block.vm) {
            self.sleep(AGENT_PATIENCE);
            self.hear_agents();
            if !self.has_room(block.vm) {
                // Its turn is lost, as if it had been scanned: a VM that hangs holds nobody up.
                let now = self.now();
                self.schedule
                    .scanned(block, BLOCK_PAGES, Duration::ZERO, now);
                return None;
            }
        }
        let begin = cpu_time();
        let read = self.visit(block);
        let took = cpu_time().saturating_sub(begin);
        let now = self.now();
        self.schedule.scanned(block, read, took, now);
        self.note_reading(read);
        None
    }

    fn note_reading(&mut self, read: usize) {
        self.unread_blocks = match read {
            0 => self.unread_blocks + 1,
            _ => 0,
        };
    }

    /// Whether all memory was gone over and nothing to read was found, while agents are at work: what
    /// they bring about is the next thing to look at.
    fn waits_for_agents(&self) -> bool {
        let blocks = || {
            self.registry
                .vms
                .values()
                .map(|vm| u64::from(vm.blocks()))
                .sum()
        };
        !self.is_quiet() && self.unread_blocks > blocks()
    }

    /// Whether no agent has anything to do. One that hangs is not waited for.
    fn is_quiet(&self) -> bool {
        self.registry.vms.values().all(|vm| !vm.is_at_work())
    }

    fn has_room(&self, id: VmId) -> bool {
        let most = match self.pace {
            Pace::GoOn => MOST_PENDING,
            Pace::SlowDown | Pace::Stop => 1,
        };
        let has_turn = self.pace == Pace::GoOn || self.is_quiet();
        has_turn
            && self
                .registry
                .vms
                .get(&id)
                .is_some_and(|vm| vm.pending < most)
    }

    /// Looks at a block and does what is to be done about it. Returns the pages read.
    fn visit(&mut self, block: Block) -> usize {
        if self.sharing.is_busy(block) {
            self.missed.insert(block);
            return 0;
        }
        self.sharing.wait_for_others(block);
        let pass = self.schedule.passes(block.vm).unwrap_or(0);
        let to_read = self.sharing.to_read(block);
        let sharing = &self.sharing;
        let Some(vm) = self.registry.vms.get_mut(&block.vm) else {
            return 0;
        };
        match vm.keep(block.number, pass, || sharing.mapped(block)) {
            Keep::No => {}
            // Read, and no more: to arm it would break its mapping.
            kept @ (Keep::AsItIs | Keep::Large) => {
                if kept == Keep::Large {
                    self.sharing.filled(block);
                }
                return self.hint(block);
            }
            Keep::AtHome(mapped) => {
                self.bring_block_home(block, &mapped);
                return mapped.count();
            }
        }
        self.sharing.let_go(block);
        let (sharing, before) = (&self.sharing, vm.figures);
        let reader = &mut self.reader;
        let look = vm.look(block.number, pass, &to_read, reader, || {
            sharing.mapped(block)
        });
        let read = vm.figures.read - before.read;
        self.totals.covered += vm.figures.covered - before.covered;
        self.totals.read += read;
        match look {
            Ok(Look::Seen(mut seen)) => {
                if self.pace == Pace::Stop {
                    leave_zeros(&mut seen);
                }
                self.decide(block, &seen);
            }
            Ok(Look::Unchanged) => {}
            Err(error) => tracing::debug!("VM {} is not seen: {error}", block.vm),
        }
        usize::try_from(read).unwrap_or(BLOCK_PAGES)
    }

    /// Reads a block that stays as it is. Returns the pages read.
    fn hint(&mut self, block: Block) -> usize {
        self.sharing.keep(block);
        let Some(vm) = self.registry.vms.get_mut(&block.vm) else {
            return 0;
        };
        match vm.read_kept(block.number, &mut self.reader) {
            Ok(read) if read.is_empty() => 0,
            Ok(read) => {
                self.sharing.hint_kept(block, &read);
                self.totals.covered += BLOCK_PAGES as u64;
                self.totals.read += read.len() as u64;
                read.len()
            }
            Err(error) => {
                tracing::debug!("VM {} is not seen: {error}", block.vm);
                0
            }
        }
    }

    fn decide(&mut self, block: Block, seen: &[Seen; BLOCK_PAGES]) {
        let Some(examined) = self.sharing.examine(block, seen) else {
            return;
        };
        let answers = self.contents(&examined.rehash);
        let plan = self.sharing.plan(&examined, &answers, self.pressure);
        self.registry.punch(self.sharing.take_freed());
        self.carry_out(&plan);
    }

    /// What pages hold now; none where that cannot be told.
    fn contents(&mut self, pages: &[Page]) -> Vec<Option<Content>> {
        let mut contents = Vec::with_capacity(pages.len());
        let mut buffer = vec![0; PAGE_BYTES];
        for run in pages.chunk_by(|one, next| is_next(*one, *next)) {
            buffer.resize(run.len() * PAGE_BYTES, 0);
            self.totals.read += run.len() as u64;
            let vm = self.registry.vms.get(&run[0].vm);
            let read = vm.map(|vm| self.read(vm, run, &mut buffer));
            let hash = vm.map(|vm| &vm.hash);
            let of_page = |page: &[u8]| hash.map(|hash| hash.content(page));
            match read {
                Some(Ok(())) => contents.extend(buffer.chunks(PAGE_BYTES).map(of_page)),
                _ => contents.extend(run.iter().map(|_| None)),
            }
        }
        contents
    }

    /// Reads neighbouring pages, each from where it is.
    fn read(
        &self,
        vm: &ScannedVm,
        run: &[Page],
        bytes: &mut [u8],
    ) -> Result<(), rustix::io::Errno> {
        let is_mapped = |page: &Page| self.sharing.mapped_frame(*page).is_some();
        if !run.iter().any(is_mapped) {
            return vm.read(run[0].gfn.0, Source::MemoryFile, bytes);
        }
        for (page, bytes) in run.iter().zip(bytes.chunks_mut(PAGE_BYTES)) {
            let source = match is_mapped(page) {
                true => Source::Process,
                false => Source::MemoryFile,
            };
            vm.read(page.gfn.0, source, bytes)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, plan: &BlockPlan) {
        for fills in plan
            .fills
            .chunk_by(|one, next| is_next(one.page, next.page) && one.frame.0 + 1 == next.frame.0)
        {
            self.fill(fills);
        }
        for request in &plan.requests {
            self.ask(request);
        }
        for &block in &plan.next {
            self.schedule.prefer(block, usize::MAX);
        }
    }

    /// Copies neighbouring pages into neighbouring frames.
    fn fill(&mut self, fills: &[Fill]) {
        let pages: Vec<Page> = fills.iter().map(|fill| fill.page).collect();
        let mut bytes = vec![0; fills.len() * PAGE_BYTES];
        self.totals.filled += fills.len() as u64;
        let Some(vm) = self.registry.vms.get(&pages[0].vm) else {
            return;
        };
        let copied = self
            .read(vm, &pages, &mut bytes)
            .and_then(|()| vm.store.fill(fills[0].frame, &bytes));
        let hash = Arc::clone(&vm.hash);
        for (fill, page) in fills.iter().zip(bytes.chunks(PAGE_BYTES)) {
            if copied.is_err() || hash.content(page) != Content::Hash(fill.hash) {
                self.totals.fill_failures += 1;
                self.sharing.fill_failed(fill);
            }
        }
    }

    fn ask(&mut self, request: &Request) {
        self.totals.requests += 1;
        match self.registry.vms.get_mut(&request.block.vm) {
            Some(vm) => {
                vm.ask(request);
                self.listen_to(request.block.vm);
            }
            None => drop(
                self.sharing
                    .settle(request.ticket, &sharing::Outcome::default()),
            ),
        }
    }

    /// Brings the next block's shared pages home, if there is memory for them. How long to sleep, if
    /// there is nothing to do now.
    fn bring_home(&mut self) -> Option<Duration> {
        if !self.is_quiet() {
            return Some(AGENT_PATIENCE);
        }
        let Some((block, mapped)) = self.next_mapped() else {
            self.missing = PageCount::ZERO;
            return Some(LONGEST_SLEEP);
        };
        self.missing = self.bring_block_home(block, &mapped);
        if self.missing > PageCount::ZERO {
            return Some(LONGEST_SLEEP);
        }
        self.brought_home = block;
        None
    }

    /// Asks for all that is shared in a block to come home, if there is memory for it. How much is missing.
    fn bring_block_home(&mut self, block: Block, mapped: &PageSet) -> PageCount {
        let mapped = PageCount(mapped.count() as u64);
        let saving = self.sharing.saving().max(0).unsigned_abs();
        let needed = needed_at_home(mapped, PageCount(saving), self.reserve);
        let missing = needed.saturating_sub(self.free);
        if missing == PageCount::ZERO {
            self.free = self.free.saturating_sub(mapped);
            if let Some(request) = self.sharing.unshare(block) {
                self.ask(&request);
            }
        }
        missing
    }

    fn next_mapped(&self) -> Option<(Block, PageSet)> {
        let blocks = || {
            self.registry.vms.iter().flat_map(|(&vm, scanned)| {
                (0..scanned.blocks()).map(move |number| Block { vm, number })
            })
        };
        // From the last one on, then from the start.
        let later = blocks().filter(|block| *block > self.brought_home);
        later
            .chain(blocks())
            .filter(|block| !self.sharing.is_busy(*block))
            .map(|block| (block, self.sharing.mapped(block)))
            .find(|(_, mapped)| !mapped.is_empty())
    }

    fn answer_audits(&mut self) {
        if self.audits.is_empty() || !self.is_quiet() {
            return;
        }
        let result = self.audit();
        for answer in self.audits.drain(..) {
            // Who asked may have gone.
            drop(answer.send(result.clone()));
            self.loan.done();
        }
    }

    /// Compares VM by VM, and leaves out whose agent does not answer.
    fn audit(&mut self) -> Audit {
        let mut auditor = Auditor::default();
        for id in self.registry.ids() {
            let compared = self.walk_undisturbed(id);
            let Some(vm) = self.registry.vms.get(&id) else {
                continue;
            };
            match compared {
                Ok(walk) => auditor.compare(&self.sharing, vm, &walk),
                Err(why) => auditor.leave_out(&vm.name, why),
            }
        }
        for (name, why) in self.outsiders.values() {
            auditor.leave_out(name, &format!("it does not share pages: {why}"));
        }
        auditor.end(&self.sharing, &self.registry.vms)
    }

    /// A VM's map. What its agent had done when it was walked is in the books when this returns.
    fn walk_undisturbed(&mut self, id: VmId) -> Result<Walk, &'static str> {
        let vm = self.registry.vms.get(&id).ok_or("it has gone")?;
        // What an agent is at work on is between two states.
        if vm.pending > 0 {
            return Err("its agent has not answered a request");
        }
        let walk = walk(&self.sharing, id, vm).ok_or("its memory map cannot be read")?;
        if !self.sync(id) {
            return Err("its agent does not answer, or its process has ended");
        }
        Ok(walk)
    }

    /// Waits until a VM's agent has told all that it did before. False if it does not.
    fn sync(&mut self, id: VmId) -> bool {
        if let Some(vm) = self.registry.vms.get_mut(&id) {
            vm.sync();
        }
        self.listen_to(id);
        let begin = Instant::now();
        loop {
            self.hear_agents();
            match self.registry.vms.get(&id) {
                Some(vm) if vm.is_synced() => return true,
                Some(vm) if !vm.is_gone() && begin.elapsed() < SYNC_PATIENCE => {}
                _ => return false,
            }
            self.sleep(AGENT_PATIENCE);
        }
    }

    fn publish_now_and_then(&mut self) {
        if self.published.elapsed() >= PUBLISH_EVERY {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.published = Instant::now();
        let counts = self.sharing.counts();
        let charges = self.known_charges(counts);
        let report_of = |(&id, vm)| (id, self.vm_report(id, vm, charges.get(&id).copied()));
        let vms = self.registry.vms.iter().map(report_of).collect();
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.counts = counts;
        report.vms = vms;
        report.totals = self.totals;
        report.missing = self.missing;
        report.cpu = cpu_time();
        report.direction = self.direction;
    }

    /// What VMs were charged last, if that is so still: charging visits every shared page.
    fn known_charges(&self, counts: Counts) -> BTreeMap<VmId, u64> {
        let before = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let was = before.counts;
        if (counts.shared, counts.common, counts.broken) != (was.shared, was.common, was.broken) {
            return BTreeMap::new();
        }
        let charges = before.vms.iter();
        charges
            .map(|(&id, vm)| (id, vm.charge_millipages))
            .collect()
    }

    fn vm_report(&self, id: VmId, vm: &ScannedVm, charge: Option<u64>) -> VmReport {
        let charge = charge.or_else(|| self.sharing.charge_millipages(id));
        VmReport {
            counts: self.sharing.vm_counts(id).unwrap_or_default(),
            asked: self.sharing.asked_pages(id),
            own_anonymous: vm.own_anonymous(),
            charge_millipages: charge.unwrap_or_default(),
            hints: self.sharing.hints_of(id),
            areas_limit: self.registry.areas_limit,
            passes: self.schedule.passes(id).unwrap_or_default(),
            figures: vm.figures,
            sample: vm.sample_report(),
        }
    }

    /// Until something is said, or the time is over.
    fn sleep(&mut self, time: Duration) {
        let longest = match self.unheard.is_empty() {
            true => WATCH_EVERY,
            false => SHORTEST_SLEEP,
        };
        self.listener.wait(time.min(longest));
    }
}

/// While there is no room for frames, zero pages are still given back.
fn leave_zeros(seen: &mut [Seen; BLOCK_PAGES]) {
    for seen in seen {
        if matches!(
            seen,
            Seen::Private(Content::Hash(_)) | Seen::Broken(Some(Content::Hash(_)))
        ) {
            *seen = Seen::Skipped;
        }
    }
}

fn is_next(one: Page, next: Page) -> bool {
    one.vm == next.vm && one.gfn.0 + 1 == next.gfn.0
}

/// What this thread used of a core.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
