//! One VM as the scanner sees it: its memory file, its process's page tables, and its agent's socket.
//!
//! What lies in the memory file is read from there (`reader`); reading a hole allocates nothing. What lies over a
//! mapping of the store is read from the process's memory. Only pages that were written since the last
//! look are read, as the kernel's page tables tell; all others are what they were.

mod breaks;
mod reader;
mod sample;

pub(super) use reader::PageReader;
pub use sample::{SampleOrder, SampleReport};

use super::super::drop_elsewhere::DropElsewhere;
use super::super::rate_limit::RateLimit;
use super::hash::PageHash;
use super::{KeptBlocks, VmConditions};
use crate::memory::MemoryError;
use crate::memory::areas::FileId;
use crate::memory::pagemap::Pagemap;
use crate::memory::residency::FileResidency;
use crate::memory::store::{Store, read_all};
use breaks::Sweeps;
use page::{PAGE_SIZE, PageCount, VmId};
use protocol::page_sharing::{BlockRequest, FromAgent, SharingSocket, TableCheck, ToAgent};
use protocol::{ChannelError, VmName};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use sample::{LookedInto, TouchSample};
use sharing::{BLOCK_PAGES, Content, PageSet, Request, Seen};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs of written pages that are armed one by one. Arming takes the guest's quick translations for
/// all it covers; above this many runs one call over all of them is cheaper all the same.
const ARMED_ONE_BY_ONE: usize = 8;
/// In every so many passes a block is read whole, written or not: what a read failed on shows then. So
/// rare that it adds a tenth, at most, to what covering unwritten memory costs.
const WHOLE_EVERY: u64 = 1024;
/// An agent that has not answered for so long is not waited for any more.
const AGENT_HANGS: Duration = Duration::from_secs(2);
/// Messages of an agent that are taken in at once: a guest that gives up many shared pages is heard soon,
const MESSAGES_AT_ONCE: u32 = 4096;
/// and the time after each further one in which it is not heard.
const MESSAGE_EACH: Duration = Duration::from_micros(50);
/// So many pages of which a message speaks cost as much as one more.
const PAGES_LIKE_A_MESSAGE: u64 = BLOCK_PAGES as u64;

/// What a VM brings when it comes.
#[derive(Debug)]
pub struct ScannedVmSpec {
    /// Which.
    pub id: VmId,
    /// As people know it.
    pub name: VmName,
    /// With whom it may share.
    pub group: Option<sharing::TrustGroup>,
    /// Its size.
    pub size: PageCount,
    /// Its process.
    pub pid: u32,
    /// Where that maps its memory file.
    pub ram_address: u64,
    /// Its memory file, for reading.
    pub memory_file: Arc<File>,
    /// The way to its agent.
    pub socket: SharingSocket,
    /// The store of which it shows frames already, if another host had it.
    pub store: Option<FileId>,
}

/// A VM that is scanned.
#[derive(Debug)]
pub(super) struct ScannedVm {
    pub(super) name: VmName,
    size: u64,
    pid: u32,
    ram_address: u64,
    file: Arc<File>,
    residency: FileResidency,
    pagemap: Pagemap,
    /// The process's memory, as `/proc/PID/mem` gives it.
    memory: File,
    pub(super) hash: Arc<PageHash>,
    pub(super) store: Arc<Store>,
    socket: DropElsewhere<SharingSocket>,
    heard_rate: RateLimit,
    unsent: VecDeque<ToAgent>,
    /// Whether the agent's end of the socket is closed.
    is_gone: bool,
    /// What no agent says, and this one did.
    fault: Option<ChannelError>,
    /// Requests sent and not answered.
    pub(super) pending: usize,
    /// When the last was sent or answered.
    heard: Instant,
    /// The last [`ToAgent::Sync`] that was sent, and the last that was answered.
    syncs: (u64, u64),
    table: TableCheck,
    /// By block: pages that are to be looked at whether the page tables say that they were written or not.
    unknown: Vec<PageSet>,
    /// The blocks that the agent was asked to change, and what was unknown of each before.
    asked: BTreeMap<u32, PageSet>,
    sample: Option<TouchSample>,
    kept: KeptBlocks,
    /// All of it counts as written at every look: the VM process would have to let every write of an armed page go on.
    is_guarded: bool,
    /// The pass in which they were first kept.
    kept_since: Option<u64>,
    /// Large pages that were touched in the last sample in which they were watched to its end.
    used: BTreeSet<u32>,
    looked_into: LookedInto,
    sweeps: Sweeps,
    /// By block: pages that were alone with their frames when that was looked at last.
    lonely: BTreeMap<u32, PageSet>,
    lonely_looked: Instant,
    /// By block: pages whose frames are to be given up.
    to_give_up: BTreeMap<u32, PageSet>,
    /// Pages that were written to and are armed since, and that the scanner has not read.
    owed: BTreeSet<u64>,
    pub(super) figures: VmFigures,
    windows: reader::WindowsOf,
}

/// What the scanner did for one VM, in pages since it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmFigures {
    /// Looked over: those unchanged by the word of the page tables included.
    pub covered: u64,
    /// Read and hashed.
    pub read: u64,
}

/// Whether a block is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is.
    No,
    /// It stays as it is.
    AsItIs,
    /// It stays as it is: one large page, all of which is there.
    Large,
    /// What of the store is mapped over these pages comes home.
    AtHome(PageSet),
}

/// How a block was found.
pub(super) enum Look {
    /// Nobody has written to it since the last look.
    Unchanged,
    /// What each page is.
    Seen(Box<[Seen; BLOCK_PAGES]>),
}

impl ScannedVm {
    pub(super) fn new(
        spec: ScannedVmSpec,
        hash: Arc<PageHash>,
        store: Arc<Store>,
        frames: u64,
    ) -> Result<Self, MemoryError> {
        let size = spec.size.0;
        let residency =
            FileResidency::new(&spec.memory_file, size).map_err(MemoryError::ReadRamUse)?;
        let memory = File::open(format!("/proc/{}/mem", spec.pid));
        let blocks = usize::try_from(size.div_ceil(BLOCK_PAGES as u64)).unwrap_or(usize::MAX);
        let vm = Self {
            name: spec.name,
            size,
            pid: spec.pid,
            ram_address: spec.ram_address,
            file: spec.memory_file,
            residency,
            pagemap: Pagemap::open(spec.pid)?,
            memory: memory.map_err(MemoryError::ReadPagemap)?,
            hash,
            store,
            socket: spec.socket.into(),
            heard_rate: RateLimit::new(MESSAGES_AT_ONCE, MESSAGE_EACH),
            unsent: VecDeque::new(),
            is_gone: false,
            fault: None,
            pending: 0,
            heard: Instant::now(),
            syncs: (0, 0),
            table: TableCheck::default(),
            unknown: vec![PageSet::ALL; blocks],
            asked: BTreeMap::new(),
            sample: None,
            kept: KeptBlocks::None,
            kept_since: None,
            is_guarded: false,
            used: BTreeSet::new(),
            looked_into: LookedInto::default(),
            sweeps: Sweeps::new(),
            lonely: BTreeMap::new(),
            lonely_looked: Instant::now(),
            to_give_up: BTreeMap::new(),
            owed: BTreeSet::new(),
            figures: VmFigures::default(),
            windows: reader::WindowsOf::default(),
        };
        let message = ToAgent::Store { frames };
        let store = vm.store.read_only()?;
        let sent = vm.socket.ask(&message, Some(store.as_fd()));
        sent.map_err(|_unsent| MemoryError::Store(Errno::PIPE))?;
        Ok(vm)
    }

    pub(super) fn size(&self) -> PageCount {
        PageCount(self.size)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn blocks(&self) -> u32 {
        u32::try_from(self.unknown.len()).unwrap_or(u32::MAX)
    }

    /// Pages of a block, by their places in the memory file.
    fn pages(&self, number: u32) -> Range<u64> {
        let first = u64::from(number) * BLOCK_PAGES as u64;
        first..(first + BLOCK_PAGES as u64).min(self.size)
    }

    /// Where a page is in the VM's process.
    pub(super) fn address(&self, page: u64) -> u64 {
        self.ram_address + page * PAGE_SIZE
    }

    /// The page at an address of the VM's process, if it is guest memory.
    pub(super) fn page_at(&self, address: u64) -> Option<u64> {
        let page = address.checked_sub(self.ram_address)? / PAGE_SIZE;
        (page < self.size).then_some(page)
    }

    fn addresses(&self, pages: &Range<u64>) -> Range<u64> {
        let start = self.address(pages.start);
        start..start + (pages.end - pages.start) * PAGE_SIZE
    }

    /// Takes in how things stand with it. Whether other blocks are left alone from now on.
    pub(super) fn adapt(&mut self, conditions: &VmConditions) -> bool {
        self.set_anonymous(conditions.anonymous);
        self.is_guarded = conditions.is_guarded;
        let is_new = conditions.kept != self.kept;
        if is_new {
            self.kept = conditions.kept;
            self.kept_since = None;
        }
        is_new
    }

    /// What the pages of a block that is left alone hold, for hints: as long as memory is not short nobody waits for that,
    /// and once it is, what is left alone has nothing to give.
    pub(super) fn read_kept(
        &mut self,
        number: u32,
        reader: &mut PageReader,
    ) -> Result<Vec<(usize, Content)>, MemoryError> {
        let mut contents = Vec::new();
        if !matches!(self.kept, KeptBlocks::Large | KeptBlocks::Whole) {
            return Ok(contents);
        }
        let pages = self.pages(number);
        let held = self.held(&pages)?;
        self.figures.covered += pages.end - pages.start;
        let found = |place, content| contents.push((place, content));
        self.figures.read += reader.read_own(self, &pages, &held, found);
        Ok(contents)
    }

    /// The pages of a block that the memory file holds.
    fn held(&self, pages: &Range<u64>) -> Result<PageSet, MemoryError> {
        let mut held = PageSet::EMPTY;
        self.residency
            .for_each(pages.clone(), |page| held.insert(index(pages, page)))
            .map_err(MemoryError::ReadRamUse)?;
        Ok(held)
    }

    /// Whether a block is left alone. `mapped` says over which of its pages the store is mapped. When there has been
    /// enough for all for a whole pass, those come home: to share them again would take as long.
    pub(super) fn keep(
        &mut self,
        number: u32,
        pass: u64,
        mapped: impl FnOnce() -> PageSet,
    ) -> Keep {
        let since = *self.kept_since.get_or_insert(pass);
        match self.kept {
            KeptBlocks::None => Keep::No,
            // The pass that was under way is not over all of them.
            KeptBlocks::UsedAtFirst if since + 1 < pass => Keep::No,
            KeptBlocks::UsedAtFirst | KeptBlocks::Used => match self.is_used_large(number) {
                true => Keep::Large,
                false => Keep::No,
            },
            KeptBlocks::Large | KeptBlocks::Whole if self.is_large(number) => Keep::Large,
            KeptBlocks::Large => Keep::No,
            KeptBlocks::Whole => match mapped() {
                mapped if mapped.is_empty() => Keep::AsItIs,
                mapped if since + 1 < pass => Keep::AtHome(mapped),
                _ => Keep::No,
            },
        }
    }

    /// Whether a block is a large page that its guest is known to use.
    fn is_used_large(&self, number: u32) -> bool {
        let sample = self.sample.as_ref();
        let touched = sample.and_then(|sample| sample.block_touched(number));
        let is_used = touched == Some(true) || self.used.contains(&number);
        // Untouched, it is not mapped: that was dropped to see a touch.
        is_used && (touched == Some(false) || self.is_large(number))
    }

    /// Whether a block is mapped as one large page.
    fn is_large(&self, number: u32) -> bool {
        let addresses = self.addresses(&self.pages(number));
        self.pagemap.is_large(addresses).unwrap_or(false)
    }

    /// Everything is to be read anew: more is worth sharing than was.
    pub(super) fn forget_looks(&mut self) {
        self.unknown.fill(PageSet::ALL);
        self.asked.values_mut().for_each(|set| *set = PageSet::ALL);
    }

    /// Looks at a block. `mapped` says over which of its pages the store is mapped, `to_read` are those
    /// that are to be read even if nobody wrote to them.
    pub(super) fn look(
        &mut self,
        number: u32,
        pass: u64,
        to_read: &PageSet,
        reader: &mut PageReader,
        mapped: impl FnOnce() -> PageSet,
    ) -> Result<Look, MemoryError> {
        let pages = self.pages(number);
        self.figures.covered += pages.end - pages.start;
        let is_whole = (pass + u64::from(number)).is_multiple_of(WHOLE_EVERY);
        let unknown = match is_whole {
            true => PageSet::ALL,
            false => self.unknown[number as usize],
        };
        self.watch_block(number);
        let written = self.take_written(&pages, &unknown)?;
        let owed = self.take_owed(&pages);
        let news = written.union(&unknown).union(to_read).union(&owed);
        if news.is_empty() {
            return Ok(Look::Unchanged);
        }
        self.unknown[number as usize] = PageSet::EMPTY;
        let mapped = mapped();
        let mut seen = Box::new([Seen::Skipped; BLOCK_PAGES]);
        self.look_at_own(&pages, &mapped, &news, reader, &mut seen)?;
        self.look_at_mapped(&pages, &mapped, &news, reader, &mut seen)?;
        Ok(Look::Seen(seen))
    }

    /// The pages written since the last look. They are armed before they are read, so that a later write is
    /// seen the next time. Of a block of which nothing is known, all pages count as written.
    fn take_written(&self, pages: &Range<u64>, unknown: &PageSet) -> Result<PageSet, MemoryError> {
        if self.is_guarded {
            return Ok(PageSet::ALL);
        }
        let all = self.addresses(pages);
        let mut runs = vec![all.clone()];
        if *unknown != PageSet::ALL {
            runs.clear();
            self.pagemap.written(all.clone(), |run| runs.push(run))?;
        }
        if runs.len() > ARMED_ONE_BY_ONE {
            let hull = runs[0].start..runs[runs.len() - 1].end;
            runs = vec![hull];
        }
        let mut written = PageSet::EMPTY;
        for run in runs {
            self.pagemap
                .arm_written(run, |found| insert(&mut written, &all, found))?;
        }
        Ok(written)
    }

    /// The pages in the memory file.
    fn look_at_own(
        &mut self,
        pages: &Range<u64>,
        mapped: &PageSet,
        news: &PageSet,
        reader: &mut PageReader,
        seen: &mut [Seen; BLOCK_PAGES],
    ) -> Result<(), MemoryError> {
        let count = pages.end - pages.start;
        let held = self.held(pages)?;
        let mut wanted = PageSet::EMPTY;
        for place in (0..BLOCK_PAGES).take(usize::try_from(count).unwrap_or(BLOCK_PAGES)) {
            if mapped.contains(place) {
                continue;
            }
            seen[place] = match (held.contains(place), news.contains(place)) {
                (false, _) => Seen::Hole,
                (true, false) => Seen::Unchanged,
                (true, true) => {
                    wanted.insert(place);
                    continue;
                }
            };
        }
        let found = |place: usize, content| seen[place] = Seen::Private(content);
        self.figures.read += reader.read_own(self, pages, &wanted, found);
        Ok(())
    }

    /// The pages over which the store is mapped: nothing but the agent takes a mapping away, so each
    /// shows its frame or was written to.
    fn look_at_mapped(
        &mut self,
        pages: &Range<u64>,
        mapped: &PageSet,
        news: &PageSet,
        reader: &mut PageReader,
        seen: &mut [Seen; BLOCK_PAGES],
    ) -> Result<(), MemoryError> {
        mapped
            .iter()
            .for_each(|place| seen[place] = Seen::Unchanged);
        let suspects: PageSet = mapped
            .iter()
            .filter(|&place| news.contains(place))
            .collect();
        let (Some(first), Some(last)) = (suspects.iter().next(), suspects.iter().last()) else {
            return Ok(());
        };
        let hull = pages.start + first as u64..pages.start + last as u64 + 1;
        let all = self.addresses(pages);
        let mut anonymous = PageSet::EMPTY;
        self.pagemap.anonymous(self.addresses(&hull), |run| {
            insert(&mut anonymous, &all, run)
        })?;
        for place in suspects.iter() {
            seen[place] = match anonymous.contains(place) {
                true => Seen::Broken(None),
                false => Seen::Shared,
            };
        }
        let broken: PageSet = suspects
            .iter()
            .filter(|&place| anonymous.contains(place))
            .collect();
        let found = |place: usize, content| seen[place] = Seen::Broken(Some(content));
        self.figures.read += reader.read_runs(self, pages, &broken, Source::Process, found);
        Ok(())
    }

    /// Reads whole pages from `page` on.
    pub(super) fn read(&self, page: u64, source: Source, bytes: &mut [u8]) -> Result<(), Errno> {
        match source {
            Source::MemoryFile => read_all(&self.file, bytes, page * PAGE_SIZE),
            Source::Process => read_all(&self.memory, bytes, self.address(page)),
        }
    }

    /// Which pages of a range the process has anonymous memory for.
    pub(super) fn anonymous(
        &self,
        pages: Range<u64>,
        found: impl FnMut(Range<u64>),
    ) -> Result<(), MemoryError> {
        self.pagemap.anonymous(self.addresses(&pages), found)
    }

    /// Asks the agent, now or as soon as it takes messages.
    pub(super) fn ask(&mut self, request: &Request) {
        self.pending += 1;
        self.heard = Instant::now();
        let number = request.block.number;
        let unknown = &mut self.unknown[number as usize];
        self.asked
            .insert(number, std::mem::replace(unknown, PageSet::ALL));
        self.leave_block(number);
        self.unsent
            .push_back(ToAgent::Request(Box::new(BlockRequest::from(request))));
        self.send_unsent();
    }

    pub(super) fn send_unsent(&mut self) {
        while let Some(message) = self.unsent.front() {
            match self.socket.ask(message, None) {
                Ok(()) => drop(self.unsent.pop_front()),
                // If the process has died, it is removed soon.
                Err(_) => return,
            }
        }
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether its agent has something to do and does it.
    pub(super) fn is_at_work(&self) -> bool {
        self.pending > 0 && !self.is_gone && self.heard.elapsed() < AGENT_HANGS
    }

    /// The request for this block was answered. Of what the agent left alone and nobody wrote to, is known
    /// what was known before.
    pub(super) fn note_answer(&mut self, number: u32, unwritten: &PageSet) {
        self.pending -= 1;
        self.heard = Instant::now();
        if let Some(before) = self.asked.remove(&number) {
            let changed = PageSet::ALL.without(unwritten);
            self.unknown[number as usize] = before.union(&changed);
        }
    }

    /// Asks the agent to say when all that it has done so far is told.
    pub(super) fn sync(&mut self) {
        self.syncs.0 += 1;
        let number = self.syncs.0;
        self.unsent.push_back(ToAgent::Sync { number });
        self.send_unsent();
    }

    /// All that the agent did before this sync is known now.
    pub(super) fn synced(&mut self, number: u64, table: TableCheck) {
        self.syncs.1 = number;
        self.table = table;
    }

    /// How its agent's books stood at the last sync.
    pub(super) fn table(&self) -> TableCheck {
        self.table
    }

    pub(super) fn is_synced(&self) -> bool {
        self.syncs.0 == self.syncs.1
    }

    /// Whether its agent has said more than is heard at once, and has to wait.
    pub(super) fn has_said_too_much(&self) -> bool {
        self.heard_rate.next() > Instant::now()
    }

    /// Whether its agent does not speak any more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Why its agent is not heard any more, if it has said what no agent says. Told once.
    pub(super) fn take_fault(&mut self) -> Option<ChannelError> {
        self.fault.take()
    }

    /// What its agent said next, if anything that is to be heard now. An agent that has gone or talks
    /// nonsense says nothing more.
    pub(super) fn hear(&mut self) -> Option<FromAgent> {
        if self.is_gone || self.has_said_too_much() {
            return None;
        }
        match self.socket.hear_agent() {
            Ok(message) => {
                self.heard_rate.charge(self.cost(&message), Instant::now());
                Some(message)
            }
            Err(ChannelError::Socket(Errno::AGAIN | Errno::INTR)) => None,
            Err(error) => {
                self.is_gone = true;
                let is_end = matches!(error, ChannelError::Closed | ChannelError::Socket(_));
                self.fault = (!is_end).then_some(error);
                None
            }
        }
    }

    fn cost(&self, message: &FromAgent) -> u32 {
        let pages = match message {
            FromAgent::Unmapped(range) => range.count.0.min(self.size),
            FromAgent::Outcome { .. } | FromAgent::Sampled { .. } | FromAgent::Synced { .. } => 0,
        };
        u32::try_from(1 + pages / PAGES_LIKE_A_MESSAGE).unwrap_or(u32::MAX)
    }
}

/// Where a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    MemoryFile,
    Process,
}

impl AsFd for ScannedVm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn index(pages: &Range<u64>, page: u64) -> usize {
    usize::try_from(page - pages.start).unwrap_or(usize::MAX)
}

/// Which page of the block at `all` an address belongs to.
fn place(all: &Range<u64>, address: u64) -> usize {
    usize::try_from((address - all.start) / PAGE_SIZE).unwrap_or(usize::MAX)
}

fn insert(set: &mut PageSet, all: &Range<u64>, found: Range<u64>) {
    (place(all, found.start)..place(all, found.end)).for_each(|place| set.insert(place));
}

#[cfg(test)]
mod tests;
