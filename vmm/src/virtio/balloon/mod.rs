//! The virtio memory balloon: pages that the guest gives up go back to the host at once.
//!
//! The guest lists frame numbers; they are checked, sorted, joined into ranges, and the agent frees
//! each range with one call, before the guest is told that its buffer was used. So when the guest
//! believes a page gone, the host has it. The other way round, a page that leaves the balloon must
//! be told first (`MUST_TELL_HOST`), so the set that is kept never claims less of a cooperating guest
//! than it gave. A guest that touches a page of its balloon without a word gets a zero page, and
//! loses it from the set when the pages are next counted. The set is the agent's, as all that is known of pages.

mod chain;
mod statistics;
#[cfg(test)]
mod tests;
mod wire;

use super::{Device, Interrupt, InterruptCause, Served, lock};
use crate::memory::MemoryError;
use crate::memory::agent::AgentHandle;
use crate::memory::ram::GuestRam;
use chain::{BrokenChain, Chain, MOST_PFNS_IN_CHAIN, Tally};
use page::{PageCount, PageStates, join_into_ranges};
use protocol::{BalloonCounters, GuestStatistics};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use virtio_queue::Queue;
use wire::{F_DEFLATE_ON_OOM, F_MUST_TELL_HOST, F_PAGE_REPORTING, F_STATS_VQ};

/// Pages handled before other work of the VM process gets its turn.
const WORK_IN_A_ROW: u64 = MOST_PFNS_IN_CHAIN as u64;
/// What a chain costs besides its pages, counted in pages.
const WORK_OF_CHAIN: u64 = WORK_IN_A_ROW / 16;
/// Descriptors of each queue.
const QUEUE_SIZES: [u16; 4] = [128; 4];
const OFFERED: u64 = F_MUST_TELL_HOST | F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

/// The device. Its parts are shared between the vCPUs, which set it up, and the device thread,
/// which serves its queues. Locks are taken in the order of the fields.
#[derive(Debug)]
pub struct Balloon {
    ram: GuestRam,
    agent: AgentHandle,
    interrupt: Interrupt,
    target: AtomicU32,
    actual: AtomicU32,
    driver: Mutex<Option<Driver>>,
    book: Mutex<Book>,
}

/// A guest's driver that is ready: the queues it set up.
#[derive(Debug)]
struct Driver {
    queues: Vec<(Role, Queue)>,
    /// The statistics buffer that waits here until figures are wanted.
    statistics_buffer: Option<u16>,
}

/// What the device knows of its guest.
#[derive(Debug)]
struct Book {
    counters: BalloonCounters,
    statistics: Option<GuestStatistics>,
}

impl Balloon {
    /// How many queues it has.
    pub const QUEUES: usize = QUEUE_SIZES.len();

    /// A balloon over `ram` that asks for `target` pages from the start.
    #[must_use]
    pub fn new(ram: GuestRam, agent: AgentHandle, interrupt: Interrupt, target: PageCount) -> Self {
        let book = Book {
            counters: BalloonCounters::default(),
            statistics: None,
        };
        let balloon = Self {
            ram,
            agent,
            interrupt,
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            driver: Mutex::new(None),
            book: Mutex::new(book),
        };
        balloon
            .target
            .store(balloon.clamp(target), Ordering::SeqCst);
        balloon
    }

    /// Asks the guest to hold `target` pages in its balloon.
    pub fn set_target(&self, target: PageCount) {
        let target = self.clamp(target);
        if self.target.swap(target, Ordering::SeqCst) != target && self.has_driver() {
            self.interrupt.raise(InterruptCause::Configuration);
        }
    }

    /// Pages that the guest is asked to hold in its balloon.
    #[must_use]
    pub fn target(&self) -> PageCount {
        PageCount(self.target.load(Ordering::SeqCst).into())
    }

    /// Pages that the guest says are in its balloon: a claim.
    #[must_use]
    pub fn claimed(&self) -> PageCount {
        PageCount(self.actual.load(Ordering::SeqCst).into())
    }

    /// Whether a driver has set the device up.
    #[must_use]
    pub fn has_driver(&self) -> bool {
        lock(&self.driver).is_some()
    }

    /// What the guest did so far.
    #[must_use]
    pub fn counters(&self) -> BalloonCounters {
        BalloonCounters {
            popped: self.agent.counters().popped(),
            ..lock(&self.book).counters
        }
    }

    /// The guest's newest figures.
    #[must_use]
    pub fn statistics(&self) -> Option<GuestStatistics> {
        lock(&self.book).statistics
    }

    /// Asks the guest for new figures: it gets its buffer back and fills it again.
    pub fn request_statistics(&self) {
        let mut driver = lock(&self.driver);
        let Some(driver) = &mut *driver else { return };
        let Some(head) = driver.statistics_buffer.take() else {
            return;
        };
        let queue = driver
            .queues
            .iter_mut()
            .find(|(role, _)| *role == Role::Statistics);
        if let Some((_, queue)) = queue {
            self.finish(queue, head);
        }
    }

    /// As [`AgentHandle::page_states`].
    ///
    /// # Errors
    /// When the kernel does not tell what the memory file holds.
    pub fn page_states(&self, recount: bool) -> Result<PageStates, MemoryError> {
        self.agent.page_states(recount)
    }

    fn clamp(&self, target: PageCount) -> u32 {
        u32::try_from(target.min(self.ram.layout().size()).0).unwrap_or(u32::MAX)
    }

    fn finish(&self, queue: &mut Queue, head: u16) {
        self.interrupt.answer(queue, self.ram.memory(), head, 0);
    }

    /// Serves the next chain of a queue: how many pages it listed, or none if the queue is empty.
    /// An error when its driver has made it unusable.
    fn serve_next(
        &self,
        driver: &mut Driver,
        index: usize,
    ) -> Result<Option<u64>, virtio_queue::Error> {
        let Some((role, queue)) = driver.queues.get_mut(index) else {
            return Ok(None);
        };
        let Some(chain) = Chain::take(queue, self.ram.memory())? else {
            return Ok(None);
        };
        let head = chain.head();
        let tally = match role {
            Role::Inflate => self.inflate(chain),
            Role::Deflate => self.deflate(chain),
            Role::Reporting => self.take_reported(chain),
            Role::Statistics => {
                self.keep_statistics(chain);
                // Kept until figures are wanted; a driver that sends another gets the first back.
                if let Some(older) = driver.statistics_buffer.replace(head) {
                    self.finish(queue, older);
                }
                return Ok(Some(0));
            }
        };
        tally.count(&mut lock(&self.book).counters);
        self.finish(queue, head);
        Ok(Some(tally.listed))
    }

    fn inflate(&self, chain: Chain<'_>) -> Tally {
        chain::read_pfns(chain, self.ram.layout(), |gfns| {
            let listed = gfns.len() as u64;
            // What could not be freed shows in the kernel's count, which the states are made from.
            let added = self.agent.inflate(join_into_ranges(gfns)).0;
            let mut book = lock(&self.book);
            book.counters.inflated += added;
            book.counters.repeated += listed - added;
        })
    }

    fn deflate(&self, chain: Chain<'_>) -> Tally {
        chain::read_pfns(chain, self.ram.layout(), |gfns| {
            let listed = gfns.len() as u64;
            let removed = self.agent.deflate(join_into_ranges(gfns)).0;
            let mut book = lock(&self.book);
            book.counters.deflated += removed;
            book.counters.repeated += listed - removed;
        })
    }

    fn take_reported(&self, chain: Chain<'_>) -> Tally {
        let (ranges, tally) = chain::read_reported(chain, self.ram.layout());
        self.agent.give_back(ranges);
        lock(&self.book).counters.reported += tally.listed;
        tally
    }

    fn keep_statistics(&self, chain: Chain<'_>) {
        let read = chain::read_statistics(chain);
        let mut book = lock(&self.book);
        match read {
            Ok(bytes) => book.statistics = Some(statistics::parse(&bytes)),
            Err(BrokenChain) => book.counters.malformed += 1,
        }
    }

    /// The driver has made a queue unusable: nothing of it is served until it resets the device.
    fn give_up(&self, driver: &mut Option<Driver>) {
        *driver = None;
        lock(&self.book).counters.broken_queues += 1;
        self.interrupt.demand_reset();
    }
}

impl Tally {
    fn count(self, counters: &mut BalloonCounters) {
        counters.outside += self.outside;
        counters.malformed += self.malformed;
    }
}

/// The roles of the queues in their order. A queue that was not agreed on takes no number: that is
/// how Linux and QEMU count, whatever the standard's list suggests.
fn roles(features: u64) -> Vec<Role> {
    let mut roles = vec![Role::Inflate, Role::Deflate];
    if features & F_STATS_VQ != 0 {
        roles.push(Role::Statistics);
    }
    if features & F_PAGE_REPORTING != 0 {
        roles.push(Role::Reporting);
    }
    roles
}

impl Device for Balloon {
    fn device_type(&self) -> u32 {
        wire::DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        let numbers = [&self.target, &self.actual];
        let bytes = numbers.map(|number| number.load(Ordering::SeqCst).to_le_bytes());
        bytes.concat()
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if offset == wire::CONFIG_ACTUAL
            && let Ok(bytes) = <[u8; 4]>::try_from(data)
        {
            self.actual
                .store(u32::from_le_bytes(bytes), Ordering::SeqCst);
        } else {
            lock(&self.book).counters.malformed += 1;
        }
    }

    fn activate(&self, features: u64, queues: Vec<Queue>) {
        let queues = roles(features).into_iter().zip(queues).collect();
        *lock(&self.driver) = Some(Driver {
            queues,
            statistics_buffer: None,
        });
    }

    fn reset(&self) {
        // A guest that starts anew knows nothing of the pages it once gave up, so they are its own
        // again: the balloon has popped.
        *lock(&self.driver) = None;
        self.agent.pop_balloon();
        lock(&self.book).statistics = None;
        self.actual.store(0, Ordering::SeqCst);
    }
}

impl Served for Balloon {
    fn serve(&self, queue: usize) -> bool {
        let mut driver = lock(&self.driver);
        let mut work = 0;
        while work < WORK_IN_A_ROW {
            let Some(ready) = &mut *driver else {
                return false;
            };
            match self.serve_next(ready, queue) {
                Ok(Some(pages)) => work += pages + WORK_OF_CHAIN,
                Ok(None) => return false,
                Err(_) => {
                    self.give_up(&mut driver);
                    return false;
                }
            }
        }
        true
    }
}
