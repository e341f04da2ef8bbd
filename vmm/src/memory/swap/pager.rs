//! Brings pages back that are touched.
//!
//! One thread, so that what it finds out about a page is so until it has acted: nobody else makes a page in guarded memory. It
//! waits for nothing but the two locks: who touched a page that finds no room waits himself, in a queue, and is served when the
//! agent has made some.
//!
//! Once nothing limits the VM any more it brings back what nobody asks for, too, for a bounded part of a core: as long as a page
//! is out memory is guarded, and what is guarded is mapped in small pages for the most part.

use super::descent::AT_ONCE;
use super::readers::{Done, Read, Readers, Wanted};
use super::stream::Stream;
use super::{AHEAD, Fenced, KeptOut, KnownGuard, Swap, lock};
use crate::memory::doors::{Deed, told};
use crate::memory::left_out::{Step, is_left_out};
use crate::memory::userfault::{Fault, FaultKind, Protection};
use page::{Gfn, PAGE_BYTES, PAGE_SIZE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use swap::{Damaged, DiskPage, Found, Located, Log, PageBytes, Source, filled_page};

const BLOCK: u64 = sharing::BLOCK_PAGES as u64;
/// How soon those in the queue are looked at again if nobody says that there is room: the memory file also shrinks by what
/// the guest gives up.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Who finds no room for longer than this is held up: pages go out more slowly than they are touched, or not at all.
const STALL: Duration = Duration::from_millis(100);
/// Pages that may come beyond what there is room for, for who hears the host.
const MOST_LENT: u64 = 256;
/// Bytes of the file that are read at once for a page and its neighbours.
const TOGETHER: usize = 16 << 10;

/// How long pages are brought back that nobody waits for, in one go,
const LONGEST_FETCH: Duration = Duration::from_micros(500);
/// how long is paused then: a tenth of a core,
const FETCH_PAUSE: Duration = Duration::from_millis(5);
/// no more of them are read from the file at once,
const FETCHED_AT_ONCE: usize = 8;
/// and when all were tried and some could not be had.
const FETCH_AGAIN: Duration = Duration::from_secs(1);

/// A page is to come.
#[derive(Clone, Copy, Debug)]
struct Touch {
    index: u64,
    is_write: bool,
    since: Instant,
    /// Whether somebody waits for it.
    is_awaited: bool,
    /// Whether that is who hears the host: a limit that is raised would never be heard of.
    by_hearer: bool,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brought {
    /// It is there, made of nothing, and with it so many that follow,
    Zero { beside: u64 },
    /// of a word,
    Filled,
    /// of a record in memory,
    FromPool,
    /// of one in the file,
    FromFile,
    /// or a page of the guest's disk.
    FromDisk,
    /// It is being read.
    Reading,
}

struct Pager {
    swap: Arc<Swap>,
    /// Taken from the kernel and not answered yet: none, but for its room.
    faults: Vec<Fault>,
    /// Who reads the swap file and the guest's disks, if there is anything to read.
    readers: Option<Readers>,
    /// Those whose pages are being read, by page.
    reading: BTreeMap<u64, Touch>,
    /// Those for whose pages there is no room yet.
    queue: VecDeque<Touch>,
    /// When it was last looked how long they wait.
    looked: Instant,
    /// How many pages may come before it is looked again how many there are.
    room: i64,
    /// How many have come beyond that, for who hears the host.
    lent: u64,
    /// Whether some of what is to be read was not begun.
    is_read_later: bool,
    /// Where its guest has begun to use new memory.
    stream: Stream,
    /// Where the next page is looked for that comes though nobody waits for it, and when.
    next_fetched: Gfn,
    fetch_at: Option<Instant>,
}

/// Starts the thread, which ends with the process: closed, its userfaultfd would let whoever waits read zeros.
pub(super) fn start(swap: Arc<Swap>) -> io::Result<()> {
    let may_read = swap.file.is_some() || !swap.guest_disks.is_empty();
    let readers = may_read.then(|| Readers::start(&swap.pager));
    let readers = readers.transpose()?;
    let pager = Pager::new(swap, readers);
    let thread = thread::Builder::new().name("pager".into());
    thread.spawn(move || pager.run()).map(drop)
}

/// Answers somebody who touched a hole once, and was served since: messages of the kernel may be so old.
#[cfg(test)]
pub(super) fn answer_late(swap: &Arc<Swap>, index: u64) {
    let mut pager = Pager::new(Arc::clone(swap), None);
    pager.serve(Touch {
        index,
        is_write: false,
        since: Instant::now(),
        is_awaited: true,
        by_hearer: false,
    });
    assert!(pager.queue.is_empty(), "it was answered");
}

impl Pager {
    fn new(swap: Arc<Swap>, readers: Option<Readers>) -> Self {
        Self {
            faults: Vec::new(),
            readers,
            reading: BTreeMap::new(),
            swap,
            queue: VecDeque::new(),
            looked: Instant::now(),
            room: 0,
            lent: 0,
            is_read_later: false,
            stream: Stream::default(),
            next_fetched: Gfn(0),
            fetch_at: None,
        }
    }

    fn run(mut self) {
        while Arc::strong_count(&self.swap) > 1 || self.swap.is_anything_out() {
            self.swap.heartbeat.rest();
            self.wait();
            self.swap.heartbeat.begin("bringing pages back");
            self.room = 0;
            while let Some(done) = self.readers.as_mut().and_then(Readers::next_done) {
                self.take_in(done);
            }
            for touch in std::mem::take(&mut self.queue) {
                self.serve(touch);
            }
            self.answer_all();
            self.note_queue();
            self.fetch_in_time();
            self.is_read_later = self.readers.as_mut().is_some_and(Readers::begin);
        }
    }

    fn answer_all(&mut self) {
        let mut faults = std::mem::take(&mut self.faults);
        loop {
            let may_be_more = self.swap.userfault.take_faults(&mut faults);
            faults.drain(..).for_each(|fault| self.answer(fault));
            if !may_be_more.unwrap_or(false) {
                break;
            }
        }
        self.faults = faults;
    }

    fn wait(&self) {
        let mut sources = vec![
            PollFd::new(&self.swap.userfault, PollFlags::IN),
            PollFd::new(&self.swap.pager, PollFlags::IN),
        ];
        if let Some(ready) = self.readers.as_ref().and_then(Readers::readiness) {
            sources.push(PollFd::from_borrowed_fd(ready, PollFlags::IN));
        }
        let fetch = self
            .fetch_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let is_tried_again = !self.queue.is_empty() || self.is_read_later;
        let queue = is_tried_again.then_some(LOOK_AGAIN);
        let time = [fetch, queue].into_iter().flatten().min();
        let time = time.map(Timespec::try_from).transpose().unwrap_or_default();
        match poll(&mut sources, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("the pager cannot wait: {error}"),
        }
        if sources[1].revents().contains(PollFlags::IN) {
            self.swap.pager.drain();
        }
    }

    fn note_queue(&mut self) {
        let waits = self.queue.len() as u64;
        let (longest, gone) = (
            self.queue.iter().map(|touch| touch.since.elapsed()).max(),
            self.looked.elapsed(),
        );
        self.looked = Instant::now();
        let mut counters = lock(&self.swap.counters);
        counters.waiting = waits;
        counters.is_stalled = longest > Some(STALL);
        if counters.is_stalled {
            counters.stalled_us += u64::try_from(gone.as_micros()).unwrap_or(0);
        }
        drop(counters);
        if waits > 0 {
            self.swap.agent.signal();
        }
    }

    fn answer(&mut self, fault: Fault) {
        self.swap.heartbeat.begin("answering a touch");
        let start = self.swap.ram.addresses(0..0).start;
        let index = (fault.address - start) / PAGE_SIZE;
        match fault.kind {
            FaultKind::Protected => self.let_write(index),
            FaultKind::Missing { is_write } => self.serve(Touch {
                index,
                is_write,
                since: Instant::now(),
                is_awaited: true,
                by_hearer: fault.thread == self.swap.hears_host.load(Ordering::Relaxed),
            }),
        }
    }

    fn address(&self, index: u64) -> u64 {
        self.swap.ram.addresses(index..index + 1).start
    }

    /// A page that came back as it left is written to.
    fn let_write(&self, index: u64) {
        let address = self.address(index);
        let fenced = lock(&self.swap.fenced);
        let is_fenced = Fenced::has(fenced.as_ref(), address).is_some();
        if is_fenced && !is_left_out(Step::FenceIsHeeded) {
            // The agent wakes all of them.
            return;
        }
        let mut log = lock(&self.swap.log);
        // It may have gone out since the kernel said so.
        if self.swap.is_kept(&log, Gfn(index)) && !is_left_out(Step::WrittenIsForgotten) {
            self.swap.forget_in(&mut log, Gfn(index));
        }
        drop(log);
        let page = address..address + PAGE_SIZE;
        if let Err(error) = self.swap.userfault.protect(page, Protection::Lifted) {
            tracing::debug!("not protected: {error}");
        }
    }

    fn serve(&mut self, touch: Touch) {
        if let Some(reading) = self.reading.get_mut(&touch.index) {
            match reading.is_awaited {
                true => reading.is_write |= touch.is_write,
                false => *reading = touch,
            }
            return;
        }
        if !self.has_room() && !self.lends(touch) {
            self.queue.push_back(touch);
            return;
        }
        let brought = self.bring(touch);
        self.end(touch, brought);
    }

    fn end(&mut self, touch: Touch, brought: Result<Brought, Errno>) {
        match brought {
            Ok(Brought::Reading) => {
                self.reading.insert(touch.index, touch);
            }
            Ok(_) if !touch.is_awaited => {
                self.room -= 1;
                lock(&self.swap.counters).unasked_in += 1;
            }
            Ok(brought) => {
                self.room -= 1;
                if let Brought::Zero { beside } = brought {
                    self.stream.made(touch.index, 1 + beside);
                    self.room -= beside.cast_signed();
                }
                self.count(brought, touch.since.elapsed());
            }
            Err(_) if !touch.is_awaited => {}
            Err(Errno::EXIST) => self.wake(touch.index),
            // Not guarded any more: whoever waited was woken then.
            Err(Errno::NOENT) => {}
            // Not now: the machine has no memory, or the map is being changed, or the page has gone elsewhere.
            Err(_) => self.queue.push_back(touch),
        }
    }

    fn count(&self, brought: Brought, took: Duration) {
        let mut counters = lock(&self.swap.counters);
        match brought {
            Brought::Zero { beside } => {
                counters.zero_in += 1;
                counters.unasked_in += beside;
            }
            Brought::Filled => counters.filled_in += 1,
            Brought::FromPool => {
                counters.stored_in += 1;
                counters.unzipped += 1;
                counters.pool_waits.add(took);
            }
            Brought::FromFile => {
                counters.stored_in += 1;
                counters.file_waits.add(took);
            }
            Brought::FromDisk => {
                counters.disk_in += 1;
                counters.file_waits.add(took);
            }
            Brought::Reading => {}
        }
        counters.waited_us += u64::try_from(took.as_micros()).unwrap_or(0);
    }

    /// A page was read, and perhaps neighbours.
    fn take_in(&mut self, done: Done) {
        let Some(touch) = self.reading.remove(&done.index) else {
            return;
        };
        let mut bytes = match done.bytes {
            Ok(bytes) => bytes,
            // What is wrong with it is for who will wait for it.
            Err(_) if !touch.is_awaited => return,
            Err(error) => {
                if lock(&self.swap.log).is_out(Gfn(done.index)) {
                    let place = match done.wanted {
                        Wanted::Records { .. } => "the swap file".into(),
                        Wanted::OnDisk(page) => format!("the guest's disk {}", page.disk()),
                    };
                    let page = done.index;
                    self.swap.lose(format!(
                        "page {page:#x} cannot be read from {place}: {error}"
                    ));
                }
                return self.queue.push_back(touch);
            }
        };
        let records = match done.wanted {
            Wanted::Records { records, .. } => records,
            Wanted::OnDisk(page) => {
                let brought = self.bring_from_disk(touch, page, &bytes);
                return self.end(touch, brought.map(|()| Brought::FromDisk));
            }
        };
        lock(&self.swap.counters).read_bytes += bytes.len() as u64;
        let brought = self.bring_record(touch, &records[0], &mut bytes, !touch.is_write);
        self.end(touch, brought.map(|()| Brought::FromFile));
        for record in &records[1..] {
            if !self.has_room() {
                return;
            }
            if self.bring_neighbour(record, &mut bytes).is_ok() {
                self.room -= 1;
            }
        }
    }

    /// Puts a page into memory that was read from the guest's own disk.
    fn bring_from_disk(&self, touch: Touch, page: DiskPage, bytes: &[u8]) -> Result<(), Errno> {
        let gfn = Gfn(touch.index);
        let content: &PageBytes = bytes.try_into().expect("a page was read");
        if !self.swap.guest_disks.is(page, content) {
            if touch.is_awaited && lock(&self.swap.log).is_on_disk(gfn, page) {
                self.swap.lose(format!(
                    "page {:#x} is lost: the guest read it from its disk {}, byte {}, which somebody has changed since; give a \
                     disk that is written to without ',ro'",
                    gfn.0,
                    page.disk(),
                    page.page() * PAGE_SIZE
                ));
            }
            return Err(Errno::AGAIN);
        }
        let address = self.address(gfn.0);
        let _admission = self.admit(address)?;
        let mut log = lock(&self.swap.log);
        if !log.is_on_disk(gfn, page) {
            return Err(Errno::AGAIN);
        }
        self.swap.userfault.copy(address, content)?;
        self.swap.forget_in(&mut log, gfn);
        Ok(())
    }

    /// One that nobody waits for, so what is wrong with it is for who will.
    fn bring_neighbour(&self, record: &Located, bytes: &mut [u8]) -> Result<(), Errno> {
        let content = self.open(record, bytes).map_err(|_damage| Errno::IO)?;
        self.put(record, &content, true)?;
        lock(&self.swap.counters).unasked_in += 1;
        Ok(())
    }

    /// A guest has a few pages for what its devices are told, and can have no more by naming others.
    fn lends(&mut self, touch: Touch) -> bool {
        let is_lent = touch.by_hearer && self.lent < MOST_LENT;
        self.lent += u64::from(is_lent);
        is_lent
    }

    fn has_room(&mut self) -> bool {
        if self.room <= 0 {
            let coming = i64::try_from(self.reading.len()).unwrap_or(i64::MAX);
            let room = self.swap.room_to_come().unwrap_or(0) - coming;
            if room < AHEAD / 2 {
                // Before anybody has to wait.
                self.swap.agent.signal();
            }
            self.room = room.min(AT_ONCE);
            if self.room > 0 {
                self.lent = 0;
            }
        }
        self.room > 0
    }

    fn wake(&self, index: u64) {
        let address = self.address(index);
        let woken = self.swap.userfault.wake(address..address + PAGE_SIZE);
        woken.expect("a page-aligned address");
    }

    /// Makes the page that somebody waits for.
    fn bring(&mut self, touch: Touch) -> Result<Brought, Errno> {
        let (gfn, address) = (Gfn(touch.index), self.address(touch.index));
        let together = if self.room >= AT_ONCE { TOGETHER } else { 0 };
        let admission = self.admit(address)?;
        let mut log = lock(&self.swap.log);
        // What is put into memory here cannot leave while the log is held.
        let stored = match log.find(gfn, together) {
            None if !touch.is_awaited => return Err(Errno::NOENT),
            // Somebody waited for it before, and it came, and was shared: here, where it is mapped now, zeros would hide the frame.
            None if self.swap.not_own.frames.contains(touch.index)
                && !is_left_out(Step::FrameStays) =>
            {
                return Err(Errno::EXIST);
            }
            // It was never there, or was given up; or it came meanwhile.
            None => {
                let beside = self.zero(&log, touch.index)?;
                return Ok(Brought::Zero { beside });
            }
            Some(Found::Filled(word)) => {
                self.swap.userfault.copy(address, &filled_page(word))?;
                self.swap.forget_in(&mut log, gfn);
                return Ok(Brought::Filled);
            }
            Some(Found::OnDisk(page)) => {
                drop((log, admission));
                let file = self.swap.guest_disks.file(page.disk());
                let file = Arc::clone(file.expect("one of its disks"));
                return Ok(self.order(touch, Wanted::OnDisk(page), file));
            }
            Some(Found::Stored(stored)) => stored,
        };
        drop((log, admission));
        let records = stored.records;
        match stored.source {
            Source::File(range) => {
                let file = self.swap.file.as_ref().expect("some of it is there");
                let file = file.to_read();
                Ok(self.order(touch, Wanted::Records { records, range }, file))
            }
            Source::Memory(mut bytes) => {
                self.bring_record(touch, &records[0], &mut bytes, false)?;
                Ok(Brought::FromPool)
            }
        }
    }

    /// Makes a page of zeros, and some that follow, in the same block, which none is kept from: for a guest that uses new memory in
    /// order. How many of those.
    fn zero(&self, log: &Log, index: u64) -> Result<u64, Errno> {
        let (room, wanted) = (self.room.max(1).unsigned_abs(), self.stream.wanted(index));
        let block_end = (index / BLOCK + 1) * BLOCK;
        let end = block_end.min(self.swap.ram.layout().size().0);
        let not_own = &self.swap.not_own;
        let may_be_made = |&index: &u64| {
            let is_elsewhere = not_own.frames.contains(index) || not_own.ballooned.contains(index);
            !is_elsewhere && !log.is_out(Gfn(index))
        };
        let beside = (index + 1..end).take_while(may_be_made);
        let beside = beside.take(usize::try_from(wanted.min(room)).unwrap_or(1) - 1);
        let pages = index..index + 1 + beside.count() as u64;
        let made = self.swap.userfault.zero(self.swap.ram.addresses(pages))?;
        Ok(made.saturating_sub(1))
    }

    fn order(&mut self, touch: Touch, wanted: Wanted, file: Arc<File>) -> Brought {
        let readers = self.readers.as_mut();
        readers.expect("there is something to read").order(Read {
            index: touch.index,
            wanted,
            file,
        });
        Brought::Reading
    }

    fn bring_record(
        &self,
        touch: Touch,
        record: &Located,
        bytes: &mut [u8],
        is_kept: bool,
    ) -> Result<(), Errno> {
        let content = match self.open(record, bytes) {
            Ok(content) => content,
            Err(damage) => {
                // It may have gone out again since it was found, and then what was found is no longer looked for.
                let log = lock(&self.swap.log);
                if touch.is_awaited && log.is_out_as(record.gfn, record.generation) {
                    drop(log);
                    self.swap.lose(damage.to_string());
                }
                return Err(Errno::AGAIN);
            }
        };
        self.put(record, &content, is_kept)
    }

    fn open(&self, record: &Located, bytes: &mut [u8]) -> Result<PageBytes, Damaged> {
        let mut content: PageBytes = [0; PAGE_BYTES];
        let (page, bytes) = ((record.gfn, record.generation), &mut bytes[record.range()]);
        self.swap.sealer.open(page, bytes, &mut content)?;
        Ok(content)
    }

    /// Brings back what nobody waits for, if all of it may be there and it is time.
    fn fetch_in_time(&mut self) {
        let begin = Instant::now();
        if self.swap.is_limited() || !self.swap.is_anything_out() {
            self.fetch_at = None;
            return;
        }
        if self.fetch_at.is_some_and(|at| at > begin) {
            return;
        }
        let mut pause = FETCH_PAUSE;
        while begin.elapsed() < LONGEST_FETCH
            && self.reading.len() < FETCHED_AT_ONCE
            && self.has_room()
        {
            let Some(gfn) = lock(&self.swap.log).first_out(self.next_fetched) else {
                self.next_fetched = Gfn(0);
                pause = FETCH_AGAIN;
                break;
            };
            self.next_fetched = Gfn(gfn.0 + 1);
            if !self.reading.contains_key(&gfn.0) {
                let touch = Touch {
                    index: gfn.0,
                    is_write: false,
                    since: begin,
                    is_awaited: false,
                    by_hearer: false,
                };
                let brought = self.bring(touch);
                self.end(touch, brought);
            }
        }
        self.fetch_at = Some(Instant::now() + pause);
    }

    /// Not where the agent keeps everybody out, and for as long as this is held it does not begin to.
    fn admit(&self, address: u64) -> Result<KnownGuard<'_, Option<Fenced>>, Errno> {
        let fenced = lock(&self.swap.fenced);
        match Fenced::has(fenced.as_ref(), address) {
            Some(KeptOut::All) if !is_left_out(Step::NoneComes) => {
                self.swap.has_turned_away.store(true, Ordering::Relaxed);
                Err(Errno::AGAIN)
            }
            _ => Ok(fenced),
        }
    }

    /// Puts a page that was read into memory. Until it is written its record is kept, or it goes at once: to hear of a write costs
    /// the guest ten times what it takes to seal a page anew. What was written to a disk, and would be again, is worth that.
    fn put(&self, record: &Located, content: &PageBytes, is_kept: bool) -> Result<(), Errno> {
        let (gfn, generation) = (record.gfn, record.generation);
        let protection = match is_kept && !is_left_out(Step::ReadComesProtected) {
            true => Protection::Protected,
            false => Protection::Lifted,
        };
        let address = self.address(gfn.0);
        let admission = Some(self.admit(address)?);
        let _admission = admission.filter(|_| !is_left_out(Step::AdmissionIsHeld));
        let mut log = lock(&self.swap.log);
        if !log.bring(gfn, generation) {
            return Err(Errno::AGAIN);
        }
        let log = Some(log).filter(|_| !is_left_out(Step::ComesUnderLog));
        let made = self.swap.userfault.copy_as(address, content, protection);
        let mut log = log.unwrap_or_else(|| lock(&self.swap.log));
        match made {
            Ok(()) if is_kept => told(Deed::Kept, &(address..address + PAGE_SIZE)),
            Ok(()) => self.swap.forget_in(&mut log, gfn),
            // Also where it is there still: the agent is about to punch it.
            Err(_) => assert!(log.keep_out(gfn), "what was kept a moment ago is there"),
        }
        made
    }
}
