//! The agent: the one thread of a VM process that changes what backs the guest's memory.
//!
//! It alone holds the userfaultfd, so a guest that writes to a page under protection waits until
//! the agent has finished with that page. Because of that the agent never touches guest memory
//! through the mapping that the guest and the devices use: it would wait for itself.
//!
//! Two ask it. The VM's own devices say what its guest gives up and takes back (`balloon`); such a request
//! comes with an answer, because a balloon must not tell its guest "taken" before the memory is the host's again.
//! And the host's scanner asks, over a socket of its own, for pages to be shared (`share`) or sampled (`sample`).
//!
//! So it knows where each page is, and keeps the table of it (`memory/pages`).

mod balloon;
mod check;
mod fence;
mod large;
mod out;
mod sample;
mod share;

use crate::event::Event;
use crate::lock::lock;
use crate::memory::MemoryError;
use crate::memory::doors::{Deed, i_am_the_agent, told, told_of};
use crate::memory::heartbeat::{Heartbeat, LOOK_EVERY, Patience};
use crate::memory::left_out::{Step, is_left_out};
use crate::memory::ram::GuestRam;
use crate::memory::store::StoreView;
use crate::memory::swap::{GuestDisks, KeptOut, Swap};
pub(crate) use fence::Fence;
pub use large::LargePageOrder;
use large::{LargeBlocks, Reason};
use out::Out;
use page::{Gfn, GfnRange, PAGE_SIZE, PageCount, PageStates};
use protocol::page_sharing::{FromAgent, SharingSocket, ToAgent};
use protocol::{ChannelError, LargePageCounters, SharingCounters, SwapCounters};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use share::Sharer;
use sharing::BLOCK_PAGES;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel,
};
use std::sync::{Arc, Mutex};
use std::thread;
use vm_memory::{Bytes, GuestAddress};

/// How long the proof at the start waits for a writer.
const PROOF_PATIENCE: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// Where pages go that a VM may no longer hold.
#[derive(Debug)]
pub enum Outs {
    /// Nowhere.
    Stay,
    /// Into a log, in memory.
    GoToLog,
    /// And from there into a file, which has room for so many pages.
    GoToFile(File, PageCount),
}

/// What became of pages that were to be given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Pages that nothing backs any more.
    pub freed: PageCount,
    /// Pages that the kernel would not free; they keep their content.
    pub refused: PageCount,
}

/// What the agent has done since it started.
#[derive(Debug, Default)]
pub struct AgentCounters {
    given_back: AtomicU64,
    refused: AtomicU64,
    popped: AtomicU64,
    write_protect_faults: AtomicU64,
    sharing: Mutex<SharingCounters>,
    large: Mutex<LargePageCounters>,
}

impl AgentCounters {
    /// Pages given back to the host.
    #[must_use]
    pub fn given_back(&self) -> PageCount {
        PageCount(self.given_back.load(Ordering::Relaxed))
    }

    /// Pages that the kernel refused to free.
    #[must_use]
    pub fn refused(&self) -> PageCount {
        PageCount(self.refused.load(Ordering::Relaxed))
    }

    /// Pages that were found in use though their guest had given them up to its balloon.
    #[must_use]
    pub fn popped(&self) -> u64 {
        self.popped.load(Ordering::Relaxed)
    }

    /// Writes that waited for the agent.
    #[must_use]
    pub fn write_protect_faults(&self) -> u64 {
        self.write_protect_faults.load(Ordering::Relaxed)
    }

    /// What was done for page sharing.
    #[must_use]
    pub fn sharing(&self) -> SharingCounters {
        *lock(&self.sharing)
    }

    /// Its large pages.
    #[must_use]
    pub fn large(&self) -> LargePageCounters {
        *lock(&self.large)
    }
}

enum Request {
    GiveBack {
        ranges: Vec<GfnRange>,
        answer: SyncSender<GivenBack>,
    },
    /// Give pages back and keep them in the balloon; how many were not in it.
    Inflate {
        ranges: Vec<GfnRange>,
        answer: SyncSender<PageCount>,
    },
    /// Take pages out of the balloon; how many were in it.
    Deflate {
        ranges: Vec<GfnRange>,
        answer: SyncSender<PageCount>,
    },
    /// The guest starts anew: nothing is in the balloon.
    Pop { answer: SyncSender<()> },
    /// Make these large pages.
    OrderLargePages {
        order: LargePageOrder,
        answer: SyncSender<()>,
    },
    /// Take pages out as long as more than so many are held.
    LimitHeld {
        most: Option<PageCount>,
        answer: SyncSender<()>,
    },
    Count {
        recount: bool,
        answer: SyncSender<Result<PageStates, MemoryError>>,
    },
    /// Obey another scanner.
    MeetScanner {
        scanner: SharingSocket,
        answer: SyncSender<()>,
    },
    /// Protect a page, answer, and wait for a writer to it.
    Prove {
        gfn: Gfn,
        answer: SyncSender<Result<(), MemoryError>>,
    },
}

/// Asks the agent. The agent ends when the last of these is dropped.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    // `None` only while it is being dropped.
    requests: Option<Sender<Request>>,
    ram: GuestRam,
    wake: Event,
    counters: Arc<AgentCounters>,
    heartbeat: Arc<Heartbeat>,
    swap: Option<Arc<Swap>>,
}

impl AgentHandle {
    /// Starts the agent of a guest and registers all of the guest's memory with its userfaultfd. The
    /// host's scanner speaks to it through `scanner`, if there is one.
    ///
    /// # Errors
    /// When the kernel gives no userfaultfd, or it turns out not to stop a writer.
    pub fn start(ram: &GuestRam, scanner: Option<SharingSocket>) -> Result<Self, MemoryError> {
        Self::start_behind(Fence::new(ram)?, ram, scanner, Outs::Stay, Vec::new())
    }

    /// As [`Self::start`], with a fence that was opened before. `disks` by number, those that the guest can only read.
    pub(crate) fn start_behind(
        mut fence: Fence,
        ram: &GuestRam,
        scanner: Option<SharingSocket>,
        outs: Outs,
        disks: Vec<Option<Arc<File>>>,
    ) -> Result<Self, MemoryError> {
        told(Deed::Opened, &ram.addresses(0..ram.layout().size().0));
        let wake = Event::new().map_err(MemoryError::StartAgent)?;
        let sharer = Sharer::new(ram.clone());
        let not_own = Arc::clone(sharer.pages.not_own());
        let start = |file| {
            let pager = fence.take_pager()?;
            Swap::start(ram, pager, wake.clone(), file, disks, not_own)
        };
        let swap = match outs {
            Outs::Stay => None,
            Outs::GoToLog => Some(start(None)?),
            Outs::GoToFile(file, pages) => Some(start(Some((file, pages)))?),
        };
        let (requests, inbox) = channel();
        let counters = Arc::new(AgentCounters::default());
        let heartbeat = Arc::new(Heartbeat::new("agent"));
        let agent = Agent {
            ram: ram.clone(),
            fence,
            sharer,
            large: LargeBlocks::new(ram.layout().size()),
            out: swap.clone().map(|swap| Out::new(swap, ram.layout().size())),
            scanner,
            unsent: VecDeque::new(),
            inbox,
            wake: wake.clone(),
            counters: Arc::clone(&counters),
            heartbeat: Arc::clone(&heartbeat),
        };
        thread::Builder::new()
            .name("agent".into())
            .spawn(move || agent.run())
            .map_err(MemoryError::StartAgent)?;
        let handle = Self {
            requests: Some(requests),
            ram: ram.clone(),
            wake,
            counters,
            heartbeat,
            swap,
        };
        handle.prove_that_writers_wait(ram)?;
        Ok(handle)
    }

    /// Gives pages back to the host; returns when they are free.
    pub fn give_back(&self, ranges: Vec<GfnRange>) -> GivenBack {
        self.ask_about(ranges, |ranges, answer| Request::GiveBack {
            ranges,
            answer,
        })
    }

    /// Gives pages back to the host, of which they are until the guest takes them out of its balloon; returns
    /// when they are free. How many of them were not in the balloon before.
    pub fn inflate(&self, ranges: Vec<GfnRange>) -> PageCount {
        self.ask_about(ranges, |ranges, answer| Request::Inflate { ranges, answer })
    }

    /// Takes pages out of the balloon. How many of them were in it.
    pub fn deflate(&self, ranges: Vec<GfnRange>) -> PageCount {
        self.ask(|answer| Request::Deflate { ranges, answer })
    }

    /// Empties the balloon, of a guest that knows nothing of it any more.
    pub fn pop_balloon(&self) {
        self.ask(|answer| Request::Pop { answer });
    }

    /// From the answer on, large pages are made as this order says, and no others.
    pub fn order_large_pages(&self, order: LargePageOrder) {
        self.ask(|answer| Request::OrderLargePages { order, answer });
    }

    /// From the answer on the VM holds no more than this, its log among it, as soon as what is above has left; any number, if
    /// none is given. Nothing is done where no page may be out.
    pub fn limit_held(&self, most: Option<PageCount>) {
        self.ask(|answer| Request::LimitHeld { most, answer });
    }

    /// From the answer on, another scanner is obeyed. What the one before has asked is forgotten, if it was not begun: what
    /// was done shows in the memory map.
    pub(crate) fn meet_scanner(&self, scanner: SharingSocket) {
        self.ask(|answer| Request::MeetScanner { scanner, answer });
    }

    /// This thread hears the host, and touches guest memory: it is not kept waiting by a limit that the host may raise.
    pub(crate) fn keep_waiting_never(&self) {
        if let Some(swap) = &self.swap {
            swap.keep_waiting_never();
        }
    }

    /// Pages that went out, and came back.
    #[must_use]
    pub fn swap_counters(&self) -> SwapCounters {
        let swap = self.swap.as_ref();
        swap.map(|swap| swap.counters()).unwrap_or_default()
    }

    /// Hears what the guest reads from its disks, if that is worth knowing.
    pub(crate) fn guest_disks(&self) -> Option<&Arc<GuestDisks>> {
        let disks = self.swap.as_ref().map(|swap| swap.guest_disks());
        disks.filter(|disks| !disks.is_empty())
    }

    /// Signalled when a page that is out cannot be had again.
    pub(crate) fn lost_a_page(&self) -> Option<&Event> {
        self.swap.as_ref().map(|swap| swap.ending())
    }

    /// Why its VM cannot go on.
    pub(crate) fn why_it_ends(&self) -> Option<String> {
        self.swap.as_ref().and_then(|swap| swap.why_it_ends())
    }

    #[cfg(test)]
    pub(crate) fn swap(&self) -> Option<&Arc<Swap>> {
        self.swap.as_ref()
    }

    /// The guest's pages by state; they add up to its size. With `recount`, pages of the balloon
    /// that the guest has touched are looked for and taken out of it first.
    ///
    /// # Errors
    /// When the kernel does not tell what the memory file holds.
    pub fn page_states(&self, recount: bool) -> Result<PageStates, MemoryError> {
        self.ask(|answer| Request::Count { recount, answer })
    }

    /// What the agent has done.
    #[must_use]
    pub fn counters(&self) -> &AgentCounters {
        &self.counters
    }

    /// Protects one page and writes to it: the write comes back only if the agent hears of it.
    /// A kernel without this would lose guest writes later, so a VM does not start on it.
    fn prove_that_writers_wait(&self, ram: &GuestRam) -> Result<(), MemoryError> {
        let first = ram.layout().pieces()[0].pages.start;
        self.ask(|answer| Request::Prove { gfn: first, answer })?;
        let address = GuestAddress(first.0 * PAGE_SIZE);
        ram.memory()
            .write_obj(1u8, address)
            .map_err(MemoryError::TouchRam)?;
        self.give_back(vec![GfnRange {
            start: first,
            count: PageCount(1),
        }]);
        match self.counters.write_protect_faults() {
            0 => Err(MemoryError::WritersDoNotWait),
            _ => Ok(()),
        }
    }

    /// Of pages that their guest gives up, and leaves alone until it has the answer.
    fn ask_about<T: Default + Send + 'static>(
        &self,
        ranges: Vec<GfnRange>,
        request: fn(Vec<GfnRange>, SyncSender<T>) -> Request,
    ) -> T {
        // Only who is told needs to know them later.
        let given_up = match cfg!(feature = "lockset") {
            true => ranges.clone(),
            false => Vec::new(),
        };
        told_of(Deed::GivenUp, self.ram.memory(), &given_up);
        let done = match is_left_out(Step::AnswerComesLast) {
            true => {
                let handle = self.clone();
                thread::spawn(move || handle.ask(|answer| request(ranges, answer)));
                T::default()
            }
            false => self.ask(|answer| request(ranges, answer)),
        };
        told_of(Deed::Answered, self.ram.memory(), &given_up);
        done
    }

    fn ask<T>(&self, request: impl FnOnce(SyncSender<T>) -> Request) -> T {
        let (answer, reply) = sync_channel(1);
        let sent = self
            .requests
            .as_ref()
            .map(|requests| requests.send(request(answer)));
        assert!(
            matches!(sent, Some(Ok(()))),
            "the agent has ended before its VM"
        );
        self.wake.signal();
        let mut patience = Patience::new();
        loop {
            match reply.recv_timeout(LOOK_EVERY) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) => patience.look(&self.heartbeat),
                Err(RecvTimeoutError::Disconnected) => panic!("the agent has ended"),
            }
        }
    }

    /// Looks whether the pager goes on, if there is one: who touches a page that is out waits for it.
    ///
    /// # Panics
    /// If it hangs.
    pub(crate) fn watch_pager(&self) {
        if let Some(swap) = &self.swap {
            swap.watch_pager();
        }
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        // Let go first: the agent, once awake, looks whether anybody is left that could ask.
        self.requests = None;
        self.wake.signal();
    }
}

struct Agent {
    ram: GuestRam,
    fence: Fence,
    sharer: Sharer,
    large: LargeBlocks,
    /// Pages that are out; none where none may be.
    out: Option<Out>,
    /// None once the host has gone.
    scanner: Option<SharingSocket>,
    /// What the scanner did not take yet. As many at most as requests are pending and runs are mapped.
    unsent: VecDeque<FromAgent>,
    inbox: Receiver<Request>,
    wake: Event,
    counters: Arc<AgentCounters>,
    heartbeat: Arc<Heartbeat>,
}

impl Agent {
    fn run(mut self) {
        i_am_the_agent();
        loop {
            self.heartbeat.rest();
            self.wait();
            if self.answer_requests().is_err() {
                if let Some(out) = &self.out {
                    out.swap.end();
                }
                return;
            }
            self.heartbeat.begin("doing what the scanner asks");
            self.send_unsent();
            self.serve_scanner();
            self.heartbeat.begin("making large pages");
            self.tend_large_pages();
            self.heartbeat.begin("taking pages out");
            self.tend_out();
        }
    }

    fn wait(&self) {
        let mut sources = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if let Some(scanner) = &self.scanner {
            let room = match self.unsent.is_empty() {
                true => PollFlags::empty(),
                false => PollFlags::OUT,
            };
            sources.push(PollFd::new(scanner, PollFlags::IN | room));
        }
        let out = self.out.as_ref().and_then(Out::time_left);
        let times = [self.large.time_left(), out];
        let time = times.into_iter().flatten().min().map(Timespec::try_from);
        let time = time.transpose().unwrap_or_default();
        match poll(&mut sources, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("the agent cannot wait: {error}"),
        }
        self.wake.drain();
    }

    /// `Err` when nobody is left that could ask.
    fn answer_requests(&mut self) -> Result<(), ()> {
        loop {
            match self.inbox.try_recv() {
                Ok(request) => {
                    self.heartbeat.begin("giving pages back or counting");
                    self.answer(request);
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(()),
            }
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::GiveBack { ranges, answer } => tell(&answer, self.report_free(&ranges)),
            Request::Inflate { ranges, answer } => tell(&answer, self.inflate(&ranges)),
            Request::Deflate { ranges, answer } => tell(&answer, self.deflate(&ranges)),
            Request::OrderLargePages { order, answer } => {
                self.order_large_pages(order);
                tell(&answer, ());
            }
            Request::Pop { answer } => {
                self.sharer.pages.pop();
                self.balloon_changed();
                tell(&answer, ());
            }
            Request::LimitHeld { most, answer } => {
                self.limit_held(most);
                tell(&answer, ());
            }
            Request::MeetScanner { scanner, answer } => {
                self.scanner = Some(scanner);
                self.unsent.clear();
                tell(&answer, ());
            }
            Request::Count { recount, answer } => tell(&answer, self.count(recount)),
            Request::Prove { gfn, answer } => self.prove(gfn, &answer),
        }
    }

    fn publish(&self) {
        *lock(&self.counters.sharing) = self.sharer.counters();
        *lock(&self.counters.large) = self.large.counters;
        self.counters
            .popped
            .store(self.sharer.popped, Ordering::Relaxed);
    }

    fn serve_scanner(&mut self) {
        let Some(scanner) = &self.scanner else { return };
        match scanner.hear_scanner() {
            Ok((ToAgent::Store { frames }, descriptor)) => {
                let store = descriptor.and_then(|file| StoreView::new(file, frames));
                match store {
                    Some(store) => self.sharer.use_store(store),
                    None => tracing::error!("the host sent no store of {frames} frames"),
                }
            }
            Ok((ToAgent::Request(request), _)) => {
                let first = u64::from(request.number) * BLOCK_PAGES as u64;
                let pages = first..first + BLOCK_PAGES as u64;
                let were_advised = self.break_blocks_of(&pages, Reason::Sharing);
                let done = self.sharer.carry_out(&request, &self.fence);
                self.look_again_soon(were_advised);
                self.counters
                    .write_protect_faults
                    .fetch_add(done.waited, Ordering::Relaxed);
                self.publish();
                self.unsent.push_back(FromAgent::Outcome {
                    ticket: request.ticket,
                    outcome: done.outcome,
                    unwritten: done.unwritten,
                });
            }
            Ok((
                ToAgent::Sample {
                    number,
                    pages,
                    blocks,
                },
                _,
            )) => {
                let whole = self.drop_large_mappings(&blocks);
                let dropped = sample::drop_mappings_of(&self.ram, &self.sharer, &pages);
                if let Some(out) = &mut self.out {
                    out.sampled = pages.iter().map(|&page| page.into()).collect();
                }
                self.watch_in_large_pages(&pages, &dropped);
                self.unsent.push_back(FromAgent::Sampled {
                    number,
                    dropped,
                    blocks: whole,
                });
            }
            // Behind all that is to be said before it.
            Ok((ToAgent::Sync { number }, _)) => {
                let table = self.check_table();
                self.unsent.push_back(FromAgent::Synced { number, table });
            }
            Err(ChannelError::Socket(Errno::AGAIN | Errno::INTR)) => {}
            Err(error) => {
                tracing::debug!("no more sharing: {error}");
                self.scanner = None;
            }
        }
        self.send_unsent();
    }

    fn send_unsent(&mut self) {
        let Some(scanner) = &self.scanner else {
            self.unsent.clear();
            return;
        };
        while let Some(message) = self.unsent.front() {
            match scanner.answer(message) {
                Ok(()) => drop(self.unsent.pop_front()),
                // A host that has gone is noticed at the next reading.
                Err(_) => return,
            }
        }
    }

    fn prove(&self, gfn: Gfn, answer: &SyncSender<Result<(), MemoryError>>) {
        let index = self.ram.layout().file_index(gfn);
        let addresses = self.ram.addresses(index..index + 1);
        let raised = self.fence.raise(&addresses, KeptOut::Writers);
        let is_up = raised.is_ok();
        tell(answer, raised);
        if !is_up {
            return;
        }
        let mut writer = [PollFd::new(&self.fence, PollFlags::IN)];
        if let Err(error) = poll(&mut writer, Some(&PROOF_PATIENCE)) {
            tracing::debug!("the proof was cut short: {error}");
        }
        // Counted before the writer goes on and looks.
        self.counters
            .write_protect_faults
            .fetch_add(self.fence.count_waiting(), Ordering::Relaxed);
        self.fence.lower(&addresses);
    }
}

/// Answers a request. Whoever asked waits for it, unless its thread has panicked.
fn tell<T>(asker: &SyncSender<T>, answer: T) {
    let heard = asker.send(answer).is_ok();
    debug_assert!(heard, "nobody waited for the agent's answer");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_to_a_protected_page_waits_for_the_agent_and_is_kept() {
        let ram = GuestRam::new(PageCount(64)).unwrap();
        let agent = AgentHandle::start(&ram, None).unwrap();
        let proven = agent.counters().write_protect_faults();
        assert!(proven >= 1, "the start proves that writers wait");
        ram.memory()
            .write_obj(7u64, GuestAddress(9 * PAGE_SIZE))
            .unwrap();
        agent
            .ask(|answer| Request::Prove {
                gfn: Gfn(9),
                answer,
            })
            .unwrap();
        ram.memory()
            .write_obj(8u64, GuestAddress(9 * PAGE_SIZE))
            .unwrap();
        assert_eq!(agent.counters().write_protect_faults(), proven + 1);
        assert_eq!(
            ram.memory()
                .read_obj::<u64>(GuestAddress(9 * PAGE_SIZE))
                .unwrap(),
            8
        );
    }

    #[test]
    fn pages_given_back_are_free_when_the_answer_comes() {
        let ram = GuestRam::new(PageCount(64)).unwrap();
        let agent = AgentHandle::start(&ram, None).unwrap();
        assert_eq!(
            ram.allocated().unwrap(),
            PageCount(0),
            "the proof leaves nothing behind"
        );
        for gfn in 0..64 {
            ram.memory()
                .write_obj(1u8, GuestAddress(gfn * PAGE_SIZE))
                .unwrap();
        }
        let ranges = vec![
            GfnRange {
                start: Gfn(0),
                count: PageCount(16),
            },
            GfnRange {
                start: Gfn(32),
                count: PageCount(1),
            },
        ];
        assert_eq!(agent.give_back(ranges).freed, PageCount(17));
        assert_eq!(ram.allocated().unwrap(), PageCount(47));
    }
}
