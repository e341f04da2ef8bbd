//! As `memory/swap/pager`. Where that goes by how much room there is, or by the clock, a coin is tossed here.

use crate::chance::{below, is_so};
use crate::contents::word_of;
use crate::event::lock;
use crate::file::{Done, Read, Readers, Wanted};
use crate::guest::PAGES;
use crate::kernel::{Errno, Fault, FaultKind, Protection};
use crate::left_out::{Step, held, is_left_out, pause};
use crate::swap::{Fenced, KeptOut, Swap};
use page::{Gfn, PAGE_BYTES};
use shuttle::sync::MutexGuard;
use shuttle::thread;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use swap::{Damaged, DiskPage, Found, Located, PageBytes, Source, filled_page};

/// Bytes of the file that are read at once for a page and its neighbours.
const TOGETHER: usize = 16 << 10;
/// Pages that may come before it is looked again how many there are.
const MOST_ROOM: u64 = 2;

/// A page is to come.
#[derive(Clone, Copy, Debug)]
struct Touch {
    index: u64,
    is_write: bool,
    /// Whether somebody waits for it.
    is_awaited: bool,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brought {
    /// It is there.
    There,
    /// It is being read.
    Reading,
}

type Admission<'a> = MutexGuard<'a, Option<Fenced>>;

pub(crate) struct Pager {
    swap: Arc<Swap>,
    readers: Arc<Readers>,
    /// Those whose pages are being read, by page.
    reading: BTreeMap<u64, Touch>,
    /// Those for whose pages there is no room yet.
    queue: VecDeque<Touch>,
    /// How many pages may come before it is looked again how many there are.
    room: u64,
}

impl Pager {
    pub(crate) fn new(swap: Arc<Swap>, readers: Arc<Readers>) -> Self {
        Self {
            swap,
            readers,
            reading: BTreeMap::new(),
            queue: VecDeque::new(),
            room: 0,
        }
    }

    pub(crate) fn run(mut self) {
        while !self.swap.is_over() {
            self.wait();
            while let Some(done) = self.readers.next_done() {
                self.take_in(done);
            }
            for touch in std::mem::take(&mut self.queue) {
                self.serve(touch);
            }
            self.answer_all();
            self.fetch_in_time();
        }
    }

    fn answer_all(&mut self) {
        for fault in self.swap.kernel.take_faults() {
            self.answer(fault);
        }
    }

    fn wait(&self) {
        if self.queue.is_empty() {
            self.swap.pager.wait();
        } else {
            thread::yield_now();
            self.swap.pager.drain();
        }
    }

    fn answer(&mut self, fault: Fault) {
        match fault.kind {
            FaultKind::Protected => self.let_write(fault.index),
            FaultKind::Missing { is_write } => self.serve(Touch {
                index: fault.index,
                is_write,
                is_awaited: true,
            }),
        }
    }

    /// A page that came back as it left is written to.
    fn let_write(&self, index: u64) {
        let fenced = lock(&self.swap.fenced);
        if Fenced::has(fenced.as_ref(), index).is_some() && !is_left_out(Step::FencedWait) {
            // The agent wakes all of them.
            return;
        }
        let fenced = held(fenced, Step::LiftedUnderFence);
        let mut log = lock(&self.swap.log);
        // It may have gone out since the kernel said so.
        if log.is_kept(Gfn(index)) && !is_left_out(Step::WrittenIsForgotten) {
            log.forget(Gfn(index));
        }
        drop(log);
        let lifted = (self.swap.kernel).protect(index..index + 1, Protection::Lifted);
        assert!(matches!(lifted, Ok(()) | Err(Errno::NoEnt)));
        drop(fenced);
    }

    fn serve(&mut self, touch: Touch) {
        if let Some(reading) = self.reading.get_mut(&touch.index) {
            match reading.is_awaited {
                true => reading.is_write |= touch.is_write,
                false => *reading = touch,
            }
            return;
        }
        if !self.has_room() {
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
            Ok(Brought::There) => self.room = self.room.saturating_sub(1),
            Err(_) if !touch.is_awaited => {}
            Err(Errno::Exist) => self.wake(touch.index),
            // Not guarded any more: whoever waited was woken then.
            Err(Errno::NoEnt) => {}
            // Not now: the page has gone elsewhere, or all are kept out.
            Err(Errno::Again) => self.queue.push_back(touch),
        }
    }

    /// A page was read, and perhaps neighbours.
    fn take_in(&mut self, done: Done) {
        let Some(touch) = self.reading.remove(&done.index) else {
            return;
        };
        let mut bytes = done.bytes;
        let records = match done.wanted {
            Wanted::Records { records, .. } => records,
            Wanted::OnDisk(page) => {
                let brought = self.bring_from_disk(touch, page, &bytes);
                return self.end(touch, brought.map(|()| Brought::There));
            }
        };
        let brought = self.bring_record(touch, &records[0], &mut bytes, !touch.is_write);
        self.end(touch, brought.map(|()| Brought::There));
        for record in &records[1..] {
            if !self.has_room() {
                return;
            }
            if self.bring_neighbour(record, &mut bytes).is_ok() {
                self.room -= 1;
            }
        }
    }

    /// Puts a page into memory that was read from the guest's own disk, which nobody changes.
    fn bring_from_disk(&self, touch: Touch, page: DiskPage, bytes: &[u8]) -> Result<(), Errno> {
        let gfn = Gfn(touch.index);
        let content: &PageBytes = bytes.try_into().expect("a page was read");
        let word = word_of(content);
        let _admission = self.admit(gfn.0)?;
        let mut log = lock(&self.swap.log);
        if !log.is_on_disk(gfn, page) && !is_left_out(Step::OnDiskStill) {
            return Err(Errno::Again);
        }
        (self.swap.kernel).copy_as(gfn.0, word, Protection::Lifted)?;
        log.forget(gfn);
        Ok(())
    }

    /// One that nobody waits for, so what is wrong with it is for who will.
    fn bring_neighbour(&self, record: &Located, bytes: &mut [u8]) -> Result<(), Errno> {
        let content = (self.open(record, bytes)).map_err(|_damage| Errno::Again)?;
        self.put(record, &content, true)
    }

    fn has_room(&mut self) -> bool {
        if self.room == 0 {
            self.room = below(MOST_ROOM + 1);
        }
        self.room > 0
    }

    fn wake(&self, index: u64) {
        self.swap.kernel.wake(index..index + 1);
    }

    /// Makes the page that somebody waits for.
    fn bring(&mut self, touch: Touch) -> Result<Brought, Errno> {
        let (gfn, index) = (Gfn(touch.index), touch.index);
        let together = if is_so(1, 2) { TOGETHER } else { 0 };
        let admission = self.admit(index)?;
        let mut log = lock(&self.swap.log);
        // What is put into memory here cannot leave while the log is held.
        let stored = match log.find(gfn, together) {
            None if !touch.is_awaited => return Err(Errno::NoEnt),
            // Somebody waited for it before, and it came, and was shared.
            None if self.swap.is_shown(index) && !is_left_out(Step::FrameStays) => {
                return Err(Errno::Exist);
            }
            // It was never there, or was given up; or it came meanwhile.
            None => {
                let log = held(log, Step::ZeroedUnderLog);
                self.swap.kernel.zero(index)?;
                drop(log);
                return Ok(Brought::There);
            }
            Some(Found::Filled(word)) => {
                let word = word_of(&filled_page(word));
                (self.swap.kernel).copy_as(index, word, Protection::Lifted)?;
                log.forget(gfn);
                return Ok(Brought::There);
            }
            Some(Found::OnDisk(page)) => {
                drop((log, admission));
                return Ok(self.order(touch, Wanted::OnDisk(page)));
            }
            Some(Found::Stored(stored)) => stored,
        };
        drop((log, admission));
        let records = stored.records;
        match stored.source {
            Source::File(range) => Ok(self.order(touch, Wanted::Records { records, range })),
            Source::Memory(mut bytes) => {
                self.bring_record(touch, &records[0], &mut bytes, false)?;
                Ok(Brought::There)
            }
        }
    }

    fn order(&self, touch: Touch, wanted: Wanted) -> Brought {
        let index = touch.index;
        self.readers.order(Read { index, wanted });
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
                let is_lost = touch.is_awaited
                    && lock(&self.swap.log).is_out_as(record.gfn, record.generation);
                assert!(!is_lost, "{}: {damage}", crate::LOST);
                return Err(Errno::Again);
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

    /// Brings back what nobody waits for.
    fn fetch_in_time(&mut self) {
        if !is_so(1, 4) || !self.has_room() {
            return;
        }
        let from = Gfn(below(PAGES));
        let Some(gfn) = lock(&self.swap.log).first_out(from) else {
            return;
        };
        if !self.reading.contains_key(&gfn.0) {
            let touch = Touch {
                index: gfn.0,
                is_write: false,
                is_awaited: false,
            };
            let brought = self.bring(touch);
            self.end(touch, brought);
        }
    }

    /// Not where the agent keeps everybody out, and for as long as this is held it does not begin to.
    fn admit(&self, index: u64) -> Result<Option<Admission<'_>>, Errno> {
        let fenced = lock(&self.swap.fenced);
        match Fenced::has(fenced.as_ref(), index) {
            Some(KeptOut::All) if !is_left_out(Step::NoneComes) => Err(Errno::Again),
            _ => Ok(held(fenced, Step::MadeUnderFence)),
        }
    }

    /// Puts a page that was read into memory.
    fn put(&self, record: &Located, content: &PageBytes, is_kept: bool) -> Result<(), Errno> {
        let (gfn, generation) = (record.gfn, record.generation);
        let protection = match is_kept && !is_left_out(Step::ReadComesProtected) {
            true => Protection::Protected,
            false => Protection::Lifted,
        };
        let _admission = self.admit(gfn.0)?;
        let mut log = lock(&self.swap.log);
        let is_brought = log.bring(gfn, generation);
        if !is_brought && !is_left_out(Step::BroughtIsNewest) {
            return Err(Errno::Again);
        }
        if is_left_out(Step::BroughtUnderLog) {
            drop(log);
            pause();
            log = lock(&self.swap.log);
        }
        let made = (self.swap.kernel).copy_as(gfn.0, word_of(content), protection);
        match made {
            Ok(()) if is_kept => {}
            Ok(()) => log.forget(gfn),
            Err(_) if is_left_out(Step::ThereStaysOut) => {}
            // Also where it is there still: the agent is about to punch it.
            Err(_) => {
                let is_out_again = log.keep_out(gfn);
                let is_one = is_brought && !is_left_out(Step::BroughtUnderLog);
                assert!(
                    is_out_again || !is_one,
                    "what was kept a moment ago is there"
                );
            }
        }
        made
    }
}
