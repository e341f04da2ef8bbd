//! The agent: the one thread of a VM process that changes what backs the guest's memory.
//!
//! It alone holds the userfaultfd, so a guest that writes to a page under protection waits until
//! the agent has finished with that page. Because of that the agent never touches guest memory
//! through the mapping that the guest and the devices use: it would wait for itself.
//!
//! So far it gives pages back to the host. Requests come with an answer, because a balloon must
//! not tell its guest "taken" before the memory is the host's again.

use crate::event::Event;
use crate::memory::MemoryError;
use crate::memory::ram::GuestRam;
use crate::memory::userfault::{Protection, Userfault, WriteProtectFault};
use page::{Gfn, GfnRange, PAGE_SIZE, PageCount};
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

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
    write_protect_faults: AtomicU64,
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

    /// Writes that waited for the agent.
    #[must_use]
    pub fn write_protect_faults(&self) -> u64 {
        self.write_protect_faults.load(Ordering::Relaxed)
    }
}

enum Request {
    GiveBack {
        ranges: Vec<GfnRange>,
        answer: SyncSender<GivenBack>,
    },
    Protect {
        gfn: Gfn,
        answer: SyncSender<Result<(), MemoryError>>,
    },
}

/// Asks the agent. The agent ends when the last of these is dropped.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    // `None` only while it is being dropped.
    requests: Option<Sender<Request>>,
    wake: Event,
    counters: Arc<AgentCounters>,
}

impl AgentHandle {
    /// Starts the agent of a guest and registers all of the guest's memory with its userfaultfd.
    ///
    /// # Errors
    /// When the kernel gives no userfaultfd, or it turns out not to stop a writer.
    pub fn start(ram: &GuestRam) -> Result<Self, MemoryError> {
        let userfault = Userfault::open()?;
        register(&userfault, ram)?;
        let wake = Event::new().map_err(MemoryError::StartAgent)?;
        let (requests, inbox) = channel();
        let counters = Arc::new(AgentCounters::default());
        let agent = Agent {
            ram: ram.clone(),
            userfault,
            inbox,
            wake: wake.clone(),
            counters: Arc::clone(&counters),
        };
        thread::Builder::new()
            .name("agent".into())
            .spawn(move || agent.run())
            .map_err(MemoryError::StartAgent)?;
        let handle = Self {
            requests: Some(requests),
            wake,
            counters,
        };
        handle.prove_that_writers_wait(ram)?;
        Ok(handle)
    }

    /// Gives pages back to the host; returns when they are free.
    pub fn give_back(&self, ranges: Vec<GfnRange>) -> GivenBack {
        self.ask(|answer| Request::GiveBack { ranges, answer })
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
        self.ask(|answer| Request::Protect { gfn: first, answer })?;
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
        reply.recv().expect("the agent answers every request")
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
    userfault: Userfault,
    inbox: Receiver<Request>,
    wake: Event,
    counters: Arc<AgentCounters>,
}

impl Agent {
    fn run(self) {
        loop {
            self.wait();
            self.answer_faults();
            if self.answer_requests().is_err() {
                return;
            }
        }
    }

    fn wait(&self) {
        let mut sources = [
            PollFd::new(&self.userfault, PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        match poll(&mut sources, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the agent cannot wait: {error}"),
        }
        self.wake.drain();
    }

    fn answer_faults(&self) {
        while let Some(WriteProtectFault { address }) = self
            .userfault
            .next_fault()
            .expect("the agent's own userfaultfd can be read")
        {
            self.counters
                .write_protect_faults
                .fetch_add(1, Ordering::Relaxed);
            let page = address & !(PAGE_SIZE - 1);
            self.userfault
                .protect(page, PAGE_SIZE, Protection::Lifted)
                .expect("a page that faulted is registered");
        }
    }

    /// `Err` when nobody is left that could ask.
    fn answer_requests(&self) -> Result<(), ()> {
        loop {
            match self.inbox.try_recv() {
                Ok(request) => self.answer(request),
                Err(std::sync::mpsc::TryRecvError::Empty) => return Ok(()),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return Err(()),
            }
        }
    }

    fn answer(&self, request: Request) {
        // Whoever asked waits for the answer; a failed send means that its thread has panicked.
        let heard = match request {
            Request::GiveBack { ranges, answer } => answer.send(self.punch(&ranges)).is_ok(),
            Request::Protect { gfn, answer } => answer.send(self.protect(gfn)).is_ok(),
        };
        debug_assert!(heard, "nobody waited for the agent's answer");
    }

    fn punch(&self, ranges: &[GfnRange]) -> GivenBack {
        let mut result = GivenBack::default();
        for &range in ranges {
            match self.ram.punch(range) {
                Ok(()) => result.freed += range.count,
                Err(_) => result.refused += range.count,
            }
        }
        self.counters
            .given_back
            .fetch_add(result.freed.0, Ordering::Relaxed);
        self.counters
            .refused
            .fetch_add(result.refused.0, Ordering::Relaxed);
        result
    }

    fn protect(&self, gfn: Gfn) -> Result<(), MemoryError> {
        let host = self
            .ram
            .memory()
            .get_host_address(GuestAddress(gfn.0 * PAGE_SIZE))
            .map_err(MemoryError::TouchRam)?;
        self.userfault
            .protect(host as u64, PAGE_SIZE, Protection::Protected)
    }
}

fn register(userfault: &Userfault, ram: &GuestRam) -> Result<(), MemoryError> {
    for region in ram.memory().iter() {
        userfault.register(region.as_ptr() as u64, region.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_to_a_protected_page_waits_for_the_agent_and_is_kept() {
        let ram = GuestRam::new(PageCount(64)).unwrap();
        let agent = AgentHandle::start(&ram).unwrap();
        let proven = agent.counters().write_protect_faults();
        assert!(proven >= 1, "the start proves that writers wait");
        ram.memory()
            .write_obj(7u64, GuestAddress(9 * PAGE_SIZE))
            .unwrap();
        agent
            .ask(|answer| Request::Protect {
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
        let agent = AgentHandle::start(&ram).unwrap();
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
