//! The thread of a disk: takes requests out of the queue, has the engine carry them out, and
//! answers them as they end, in any order.
//!
//! It alone touches the queue and the file. Others send it orders and wait for its word, so what it
//! says has ended has ended. It holds no lock while it touches guest memory, for there it may have to
//! wait for the agent.

use super::engine::{Ended, Engine, EngineKind, Submission};
use super::image::DiskImage;
use super::operation::{After, Bounce, Operation};
use super::plan::{self, BOUNCE_BYTES, Manner, Step};
use super::request::{self, Fault, Kind, Refused, Request, Rules, Stretches};
use super::wire::{F_FLUSH, Status};
use crate::event::Event;
use crate::memory::left_out::{self, is_left_out};
use crate::memory::swap::GuestDisks;
use crate::virtio::chain::Chain;
use crate::virtio::{Interrupt, InterruptCause, lock};
use protocol::{DiskCounters, DiskFigures};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Requests at a time. Those that wait in the queue cost nothing.
const MOST_IN_FLIGHT: usize = 128;
/// Requests at a time that need a bounce buffer each: 2 MiB of them.
const MOST_BOUNCES: usize = 16;
/// How often the kernel may be disturbed in one operation without moving anything.
const MOST_RETRIES: u32 = 1000;
/// When io_uring is asked again that had no room.
const SUBMIT_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What the thread is told. It answers when it is done.
#[derive(Debug)]
pub(super) enum Order {
    /// The guest's driver is ready.
    Activate { features: u64, queue: Box<Queue> },
    /// Let go of the queue and of guest memory.
    Reset(SyncSender<()>),
    /// Carry out all that waits in the queue.
    #[cfg(any(test, feature = "fuzzing"))]
    ServeAll(SyncSender<()>),
    /// Finish what is in flight, make it safe, and end.
    End(SyncSender<()>),
}

/// What a disk is connected by.
#[derive(Clone, Debug)]
pub struct DiskWires {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Tells the guest.
    pub interrupt: Interrupt,
    /// Becomes ready when the guest notifies the queue.
    pub notified: Event,
    /// Hears what the guest reads, if its memory may be left to disks, and under which number.
    pub(crate) reads: Option<(Arc<GuestDisks>, u8)>,
}

/// All that the thread has from the start.
#[derive(Debug)]
pub(super) struct WorkerParts {
    pub(super) image: DiskImage,
    pub(super) wires: DiskWires,
    pub(super) orders: Receiver<Order>,
    pub(super) wake: Event,
    pub(super) figures: Arc<Mutex<DiskFigures>>,
    pub(super) engine: EngineKind,
    /// Is told when the thread has made all that it ever makes.
    pub(super) ready: SyncSender<()>,
}

/// Runs until it is told to end, or nobody is left that could tell.
pub(super) fn run(parts: WorkerParts) {
    let ready = parts.ready.clone();
    let worker = Worker::new(parts);
    tell(&ready);
    worker.run();
}

#[derive(Debug)]
struct Worker {
    image: DiskImage,
    wires: DiskWires,
    orders: Receiver<Order>,
    wake: Event,
    figures: Arc<Mutex<DiskFigures>>,
    engine: Engine,
    submission: Submission,
    driver: Option<Driver>,
    /// By the number of their operation.
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    /// Bounce buffers that no operation uses.
    bounces: Vec<Bounce>,
    /// Chains may wait of which nobody will tell again.
    hungry: bool,
    /// Bytes up to which the file was never cut. What was cut off is lost: it would read as zeros once the guest
    /// had written behind it.
    intact: u64,
}

/// A guest's driver that is ready.
#[derive(Debug)]
struct Driver {
    queue: Queue,
    rules: Rules,
    manner: Manner,
    /// Something came back of which the guest has not been told.
    untold: bool,
}

/// A request that is being carried out.
#[derive(Debug)]
struct Task {
    head: u16,
    status: GuestAddress,
    deed: Deed,
    /// What is read and from where, for who hears of it.
    read: Option<(u64, Stretches)>,
    steps: VecDeque<Step>,
    retries: u32,
}

impl Task {
    fn next_step(&mut self) -> Option<Step> {
        let step = self.steps.pop_front()?;
        let Step::WriteZeros { extent } = step else {
            return Some(step);
        };
        let (extent, rest) = plan::split_zeros(extent);
        if let Some(extent) = rest {
            self.steps.push_front(Step::WriteZeros { extent });
        }
        Some(Step::WriteZeros { extent })
    }
}

/// What counts when a request has ended.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Read { bytes: u64 },
    Write { bytes: u64 },
    Flush,
    Identify { bytes: u64 },
    Discard,
    WriteZeroes,
}

#[derive(Debug)]
enum Next {
    GoOn,
    End(Option<SyncSender<()>>),
}

impl Worker {
    fn new(parts: WorkerParts) -> Self {
        let most = match parts.image.spec.direct {
            true => MOST_BOUNCES,
            false => MOST_IN_FLIGHT,
        };
        Self {
            intact: parts.image.bytes_left(),
            engine: Engine::new(parts.engine, &parts.image.file, most),
            image: parts.image,
            wires: parts.wires,
            orders: parts.orders,
            wake: parts.wake,
            figures: parts.figures,
            submission: Submission::Complete,
            driver: None,
            tasks: std::iter::repeat_with(|| None).take(most).collect(),
            free: (0..most).collect(),
            bounces: Vec::new(),
            hungry: false,
        }
    }

    fn run(mut self) {
        loop {
            self.wait();
            match self.obey() {
                Next::GoOn => self.turn(),
                Next::End(whoever_waits) => {
                    self.end();
                    // First the file, so that who is told can open it again.
                    drop(self);
                    whoever_waits.iter().for_each(tell);
                    return;
                }
            }
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) {
        let timeout = match self.submission {
            _ if self.hungry && !self.free.is_empty() => Some(&AT_ONCE),
            Submission::Incomplete => Some(&SUBMIT_AGAIN),
            Submission::Complete => None,
        };
        let mut sources = vec![
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.wires.notified, PollFlags::IN),
        ];
        if let Some(ring) = self.engine.readiness() {
            sources.push(PollFd::from_borrowed_fd(ring, PollFlags::IN));
        }
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("the disk's thread cannot wait: {error}"),
        }
        self.wake.drain();
        self.hungry |= self.wires.notified.drain();
    }

    fn obey(&mut self) -> Next {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Activate { features, queue }) => self.activate(features, *queue),
                Ok(Order::Reset(done)) => {
                    self.let_go();
                    tell(&done);
                }
                #[cfg(any(test, feature = "fuzzing"))]
                Ok(Order::ServeAll(done)) => {
                    self.serve_all();
                    tell(&done);
                }
                Ok(Order::End(done)) => return Next::End(Some(done)),
                Err(TryRecvError::Empty) => return Next::GoOn,
                Err(TryRecvError::Disconnected) => return Next::End(None),
            }
        }
    }

    fn activate(&mut self, features: u64, queue: Queue) {
        let spec = &self.image.spec;
        self.driver = Some(Driver {
            queue,
            rules: Rules {
                sectors: self.image.geometry.sectors,
                read_only: spec.read_only,
                features,
            },
            manner: Manner {
                write_through: features & F_FLUSH == 0,
                most_bytes: spec.direct.then_some(BOUNCE_BYTES),
            },
            untold: false,
        });
        self.hungry = true;
    }

    /// One round: takes what there is room for, and answers what has ended.
    fn turn(&mut self) {
        self.take_chains();
        self.submission = self.engine.submit();
        self.finish_ended();
        // What goes on was started again.
        self.submission = self.engine.submit();
        self.tell_guest();
    }

    /// Waits until nothing is in flight.
    fn drain(&mut self) {
        while self.free.len() < self.tasks.len() {
            self.engine.wait();
            self.finish_ended();
        }
    }

    fn let_go(&mut self) {
        self.driver = None;
        self.hungry = false;
        for task in self.tasks.iter_mut().flatten() {
            task.steps.clear();
        }
        self.drain();
    }

    #[cfg(any(test, feature = "fuzzing"))]
    fn serve_all(&mut self) {
        self.hungry = true;
        while self.hungry {
            self.take_chains();
            self.drain();
        }
        self.tell_guest();
    }

    fn end(&mut self) {
        self.drain();
        self.tell_guest();
        if !self.image.spec.read_only
            && let Err(error) = rustix::fs::fdatasync(&self.image.file)
        {
            // Written before, and lost now.
            self.note(|figures| count_failure(figures, error));
        }
        self.image.unlock();
    }

    fn take_chains(&mut self) {
        if self.hungry {
            self.intact = self.intact.min(self.image.bytes_left());
        }
        while self.hungry && !self.free.is_empty() {
            self.hungry = match self.take_chain() {
                Ok(taken) => taken,
                Err(_) => {
                    self.give_up();
                    false
                }
            };
        }
    }

    /// False if the queue is empty, an error where it is unusable.
    fn take_chain(&mut self) -> Result<bool, virtio_queue::Error> {
        let Some(driver) = &mut self.driver else {
            return Ok(false);
        };
        let Some(chain) = Chain::take(&mut driver.queue, &self.wires.memory)? else {
            return Ok(false);
        };
        let head = chain.head();
        match request::parse(chain, &driver.rules) {
            Ok(request) => {
                let manner = driver.manner;
                self.begin(head, request, manner);
            }
            Err(refused) => self.refuse(head, refused),
        }
        Ok(true)
    }

    /// The driver has made the queue unusable: nothing of it is answered until it resets the device.
    fn give_up(&mut self) {
        self.driver = None;
        self.note(|figures| figures.counters.broken_queues += 1);
        self.wires.interrupt.demand_reset();
    }

    fn begin(&mut self, head: u16, request: Request, manner: Manner) {
        let Some(number) = self.free.pop() else {
            return;
        };
        let deed = match &request.kind {
            Kind::Read { data, .. } => Deed::Read {
                bytes: data.bytes(),
            },
            Kind::Write { data, .. } => Deed::Write {
                bytes: data.bytes(),
            },
            Kind::Flush => Deed::Flush,
            Kind::Identify { data } => Deed::Identify {
                bytes: data
                    .copy_in(&self.wires.memory, &self.image.serial)
                    .unwrap_or(0),
            },
            Kind::Discard(_) => Deed::Discard,
            Kind::WriteZeroes(_) => Deed::WriteZeroes,
        };
        let read = match &request.kind {
            Kind::Read { offset, data } if self.wires.reads.is_some() => {
                Some((*offset, data.clone()))
            }
            _ => None,
        };
        self.tasks[number] = Some(Task {
            head,
            status: request.status,
            deed,
            read,
            steps: plan::steps(&request.kind, manner),
            retries: 0,
        });
        if request.kind.end() > self.intact {
            return self.finish(number, Err(Errno::NXIO));
        }
        self.take_step(number);
    }

    /// Starts a request's next operation; one that has none left has ended.
    fn take_step(&mut self, number: usize) {
        let task = self.tasks[number].as_mut();
        let Some(step) = task.and_then(Task::next_step) else {
            return self.finish(number, Ok(()));
        };
        let transfers = matches!(step, Step::Read { .. } | Step::Write { .. });
        let is_bounced = self.image.spec.direct && !is_left_out(left_out::Step::ThroughBuffer);
        let bounce = (is_bounced && transfers).then(|| self.bounces.pop());
        let bounce = bounce.map(|kept| kept.unwrap_or_else(Bounce::new));
        if let Step::Read { data, .. } | Step::Write { data, .. } = &step {
            let waits = is_bounced || !self.image.spec.direct;
            data.go_to_device(waits, &self.wires.memory);
        }
        match Operation::new(step, &self.wires.memory, bounce) {
            Ok(operation) => self.engine.start(number, operation),
            Err(errno) => self.finish(number, Err(errno)),
        }
    }

    fn finish_ended(&mut self) {
        while let Some(ended) = self.engine.take_ended() {
            self.go_on(ended);
        }
    }

    fn go_on(&mut self, ended: Ended) {
        let number = ended.number;
        let Some(task) = &mut self.tasks[number] else {
            return;
        };
        match ended.operation.after(ended.result) {
            After::GoOn(operation) => {
                task.retries = 0;
                self.engine.start(number, operation);
            }
            After::Again(operation) if task.retries < MOST_RETRIES => {
                task.retries += 1;
                self.engine.start(number, operation);
            }
            After::Again(operation) => {
                self.bounces.extend(operation.into_bounce());
                self.finish(number, Err(Errno::AGAIN));
            }
            After::Failed(Errno::OPNOTSUPP, Operation::Allocate { extent, .. })
                if matches!(task.deed, Deed::WriteZeroes) =>
            {
                task.steps.push_front(Step::WriteZeros { extent });
                self.take_step(number);
            }
            After::Failed(errno, operation) => {
                self.bounces.extend(operation.into_bounce());
                self.finish(number, Err(errno));
            }
            After::Done(operation) => {
                self.bounces.extend(operation.into_bounce());
                self.take_step(number);
            }
        }
    }

    fn finish(&mut self, number: usize, result: Result<(), Errno>) {
        let Some(task) = self.tasks[number].take() else {
            return;
        };
        self.free.push(number);
        if let (Ok(()), Some((offset, data))) = (result, &task.read) {
            self.tell_of_read(*offset, data);
        }
        let status = match result {
            Ok(()) => Status::Ok,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Status::Unsupported,
            Err(_) => Status::IoError,
        };
        self.note(|figures| match result {
            Ok(()) => task.deed.count(&mut figures.counters),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => figures.counters.refused += 1,
            Err(errno) => count_failure(figures, errno),
        });
        let data_bytes = match (result, task.deed) {
            (Ok(()), Deed::Read { bytes } | Deed::Identify { bytes }) => bytes,
            _ => 0,
        };
        self.answer(task.head, Some((task.status, status)), data_bytes);
    }

    /// Before the guest knows, so that what is there is what was read.
    fn tell_of_read(&self, mut offset: u64, data: &Stretches) {
        let Some((disks, number)) = &self.wires.reads else {
            return;
        };
        for stretch in data.iter() {
            let into = (stretch.start, stretch.bytes);
            disks.was_read(*number, offset, &self.wires.memory, into);
            offset += stretch.bytes;
        }
    }

    fn refuse(&mut self, head: u16, refused: Refused) {
        self.note(|figures| match refused.fault {
            Fault::Malformed => figures.counters.malformed += 1,
            Fault::OutOfRange | Fault::ReadOnly | Fault::Unsupported => {
                figures.counters.refused += 1;
            }
        });
        let status = refused
            .status
            .map(|address| (address, refused.fault.status()));
        self.answer(head, status, 0);
    }

    /// Gives a chain back to the guest, its status written first. A guest whose driver was reset, or
    /// that moved its ring away, gets no answer.
    fn answer(&mut self, head: u16, status: Option<(GuestAddress, Status)>, data_bytes: u64) {
        let Some(driver) = &mut self.driver else {
            return;
        };
        let memory = &self.wires.memory;
        let told = status.is_some_and(|(address, status)| {
            let written = memory.write_obj(status as u8, address);
            written.is_ok()
        });
        let written = data_bytes + u64::from(told);
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        driver.untold |= driver.queue.add_used(memory, head, written).is_ok();
    }

    /// One interrupt for all that came back.
    fn tell_guest(&mut self) {
        let Some(driver) = &mut self.driver else {
            return;
        };
        if std::mem::take(&mut driver.untold)
            && driver
                .queue
                .needs_notification(&self.wires.memory)
                .unwrap_or(true)
        {
            self.wires.interrupt.raise(InterruptCause::UsedBuffer);
        }
    }

    fn note(&self, note: impl FnOnce(&mut DiskFigures)) {
        note(&mut lock(&self.figures));
    }
}

/// Whoever gave the order waits, unless its thread has panicked.
fn tell(done: &SyncSender<()>) {
    let heard = done.send(()).is_ok();
    debug_assert!(heard, "nobody waited for the disk's thread");
}

/// The file failed a request.
fn count_failure(figures: &mut DiskFigures, errno: Errno) {
    figures.counters.errors += 1;
    figures.last_error = Some(errno.raw_os_error());
}

impl Deed {
    fn count(self, counters: &mut DiskCounters) {
        match self {
            Self::Read { bytes } => {
                counters.reads += 1;
                counters.read_bytes += bytes;
            }
            Self::Write { bytes } => {
                counters.writes += 1;
                counters.written_bytes += bytes;
            }
            Self::Flush => counters.flushes += 1,
            Self::Discard => counters.discards += 1,
            Self::WriteZeroes => counters.zeroings += 1,
            Self::Identify { .. } => {}
        }
    }
}
