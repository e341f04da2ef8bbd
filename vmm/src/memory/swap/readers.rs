//! Reads the swap file and the guest's disks for the pager, many pages at a time, so that nobody waits for another's: by io_uring
//! ([`ring`]), or where the kernel has none or forbids it, by threads that wait.

mod ring;

use super::file::read;
use crate::event::Event;
use crate::lock::lock;
use page::{PAGE_BYTES, PAGE_SIZE};
use ring::Ring;
use rustix::fd::BorrowedFd;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use swap::{DiskPage, FileRange, Located};

/// Threads that read, where there must be some; a disk that does better is one of a machine with more processors than guests
/// are given here.
const THREADS: usize = 4;

/// What is read.
#[derive(Debug)]
pub(super) enum Wanted {
    /// A page's record, and those of neighbours beside it, in the swap file.
    Records {
        records: Vec<Located>,
        /// Keeps its place from being written until it has been read.
        range: FileRange,
    },
    /// A page as a disk of the guest has it.
    OnDisk(DiskPage),
}

impl Wanted {
    /// Which bytes of the file these are: from where, and how many.
    fn extent(&self) -> (u64, usize) {
        match self {
            Self::Records { range, .. } => (range.position, range.length),
            Self::OnDisk(page) => (page.page() * PAGE_SIZE, PAGE_BYTES),
        }
    }
}

/// A page to be read.
#[derive(Debug)]
pub(super) struct Read {
    /// Who waits for it.
    pub(super) index: u64,
    pub(super) wanted: Wanted,
    /// Where it is.
    pub(super) file: Arc<File>,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) index: u64,
    pub(super) wanted: Wanted,
    pub(super) bytes: io::Result<Vec<u8>>,
}

/// The pager's side.
#[derive(Debug)]
pub(super) enum Readers {
    Ring(Box<Ring>),
    Threads(Threads),
}

impl Readers {
    /// `wake` is signalled when something was read, unless [`Self::readiness`] says so.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub(super) fn start(wake: &Event) -> io::Result<Self> {
        match Ring::new() {
            Ok(ring) => Ok(Self::Ring(Box::new(ring))),
            Err(error) => {
                tracing::debug!("reads without io_uring: {error}");
                Threads::start(wake).map(Self::Threads)
            }
        }
    }

    pub(super) fn order(&mut self, read: Read) {
        match self {
            Self::Ring(ring) => ring.order(read),
            Self::Threads(threads) => threads.order(read),
        }
    }

    /// Has what was ordered begun. Whether some was not: it is to be tried again soon.
    pub(super) fn begin(&mut self) -> bool {
        match self {
            Self::Ring(ring) => ring.begin(),
            Self::Threads(_) => false,
        }
    }

    pub(super) fn next_done(&mut self) -> Option<Done> {
        match self {
            Self::Ring(ring) => ring.next_done(),
            Self::Threads(threads) => threads.done.try_recv().ok(),
        }
    }

    /// Becomes readable when something was read.
    pub(super) fn readiness(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Ring(ring) => Some(ring.readiness()),
            Self::Threads(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Threads {
    orders: Sender<Read>,
    done: Receiver<Done>,
}

impl Threads {
    /// Starts them; they end with this.
    fn start(wake: &Event) -> io::Result<Self> {
        let (orders, inbox) = channel();
        let (tell, done) = channel();
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..THREADS {
            let (inbox, tell, wake) = (Arc::clone(&inbox), tell.clone(), wake.clone());
            let thread = thread::Builder::new().name("swap reader".into());
            thread.spawn(move || {
                while let Some(order) = next(&inbox) {
                    if tell.send(carry_out(order)).is_err() {
                        return;
                    }
                    wake.signal();
                }
            })?;
        }
        Ok(Self { orders, done })
    }

    fn order(&self, read: Read) {
        let is_heard = self.orders.send(read).is_ok();
        assert!(is_heard, "the threads that read end with this");
    }
}

/// One waits for the next order, the others for that one.
fn next(inbox: &Mutex<Receiver<Read>>) -> Option<Read> {
    lock(inbox).recv().ok()
}

fn carry_out(order: Read) -> Done {
    let (position, length) = order.wanted.extent();
    Done {
        bytes: read(&order.file, position, length),
        index: order.index,
        wanted: order.wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::SwapFile;
    use super::*;
    use page::{Gfn, PageCount, Random};
    use rustix::event::{PollFd, PollFlags, poll};
    use std::collections::BTreeSet;
    use swap::{
        Cleaning, Config, Found, Key, LEAST_POOL_SEGMENTS, Log, PageBytes, Refused, Sealer, Source,
        When, Work,
    };

    const PAGES: u64 = 3000;

    fn noise(gfn: u64) -> PageBytes {
        let (mut random, mut page) = (Random::new(gfn), [0; PAGE_BYTES]);
        page.fill_with(|| random.next().to_le_bytes()[0]);
        page
    }

    /// All pages of a VM in a file but for those that the pool has kept, and reads for those.
    fn reads(file: &SwapFile, sealer: &Sealer) -> Vec<Read> {
        let config = Config {
            pool_segments: LEAST_POOL_SEGMENTS,
            ..Config::of_vm(PageCount(PAGES), 0).with_file_for(PageCount(PAGES))
        };
        let mut log = Log::new(config).unwrap();
        for gfn in 0..PAGES {
            let sealed = sealer.seal(Gfn(gfn), &noise(gfn)).unwrap();
            while let Err(refused) = log.append(&sealed) {
                assert_eq!(refused, Refused::Wait);
                match log.next_work(When::Now) {
                    Some(Work::Write(order)) => {
                        file.write(order.position, &order.bytes).unwrap();
                        log.written(order);
                    }
                    Some(Work::Clean(victim)) => {
                        let mut job = victim.into_job(Vec::new());
                        assert_eq!(log.clean(&mut job, usize::MAX), Cleaning::Done);
                    }
                    None => panic!("it has nothing to do"),
                }
            }
        }
        let read = |gfn: u64| match log.find(Gfn(gfn), 0) {
            Some(Found::Stored(stored)) => match stored.source {
                Source::File(range) => Some(Read {
                    index: gfn,
                    wanted: Wanted::Records {
                        records: stored.records,
                        range,
                    },
                    file: file.to_read(),
                }),
                Source::Memory(_) => None,
            },
            _ => panic!("page {gfn} is out"),
        };
        (0..PAGES).filter_map(read).collect()
    }

    /// Orders all at once and checks each page once.
    fn all_are_read(mut readers: Readers, wake: &Event, sealer: &Sealer, reads: Vec<Read>) {
        let mut waiting: BTreeSet<u64> = reads.iter().map(|read| read.index).collect();
        assert!(waiting.len() > 1000, "{} are in the file", waiting.len());
        reads.into_iter().for_each(|read| readers.order(read));
        while !waiting.is_empty() {
            while let Some(done) = readers.next_done() {
                let Wanted::Records { records, .. } = done.wanted else {
                    panic!("nothing else was ordered");
                };
                let (record, mut bytes) = (records[0], done.bytes.unwrap());
                let mut page = [0; PAGE_BYTES];
                let whose = (record.gfn, record.generation);
                sealer
                    .open(whose, &mut bytes[record.range()], &mut page)
                    .unwrap();
                assert!(page == noise(done.index), "page {}", done.index);
                assert!(waiting.remove(&done.index));
            }
            if waiting.is_empty() {
                return;
            }
            // As the pager: what was done made room for others.
            readers.begin();
            let mut sources = vec![PollFd::new(wake, PollFlags::IN)];
            if let Some(ready) = readers.readiness() {
                sources.push(PollFd::from_borrowed_fd(ready, PollFlags::IN));
            }
            poll(&mut sources, None).unwrap();
            wake.drain();
        }
    }

    #[test]
    fn however_it_is_done_all_that_was_ordered_is_read_once_and_is_right() {
        let file = SwapFile::new(tempfile::tempfile().unwrap());
        let (sealer, wake) = (Sealer::new(&Key([1; 32])), Event::new().unwrap());
        let orders = reads(&file, &sealer);
        let threads = Threads::start(&wake).map(Readers::Threads);
        all_are_read(threads.unwrap(), &wake, &sealer, orders);
        let orders = reads(&file, &sealer);
        let ring = Ring::new().map(|ring| Readers::Ring(Box::new(ring)));
        all_are_read(ring.unwrap(), &wake, &sealer, orders);
    }

    #[test]
    fn what_the_file_does_not_have_is_an_error() {
        let file = SwapFile::new(tempfile::tempfile().unwrap());
        let (sealer, wake) = (Sealer::new(&Key([1; 32])), Event::new().unwrap());
        let mut orders = reads(&file, &sealer);
        let order = orders.pop().unwrap();
        file.cut();
        let mut readers = Readers::start(&wake).unwrap();
        readers.order(order);
        let done = loop {
            readers.begin();
            if let Some(done) = readers.next_done() {
                break done;
            }
            thread::yield_now();
        };
        let error = done.bytes.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
