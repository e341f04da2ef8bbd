//! A guest of two processors, and what it asks of the agent. What each page must hold is known to whoever reads it: one processor
//! alone uses it, or whoever has the guest's lock, or nobody writes to it.

use crate::LOST;
use crate::chance::{below, choose, is_so, some_of};
use crate::contents::{COMPRESSED, FILLED, KINDS, PLAIN, Word, plain};
use crate::event::lock;
use crate::guest_disks::on_disk;
use crate::kernel::Kernel;
use crate::swap::Swap;
use shuttle::sync::{Condvar, Mutex};
use std::collections::VecDeque;

/// Two blocks: of each every processor has a page.
pub(crate) const PAGES: u64 = 6;
/// Whose pages those are. What it uses most comes first.
pub(crate) const OWN: [[u64; 2]; 2] = [[4, 0], [1, 3]];
/// Both write to this one, by turns,
const LOCKED: u64 = 2;
/// and only read this one, at any time.
const CONSTANT: u64 = 5;
/// Of its disk.
const DISK_PAGES: u64 = 2;
/// What each processor does.
const ACTS: u64 = 8;

/// What a guest says of one of its pages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// It is the balloon's,
    Inflate(u64),
    /// or no more,
    Deflate(u64),
    /// or free, and may be touched again.
    ReportFree(u64),
}

/// What guests ask of the agent. Who asks waits for the answer.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct InboxState {
    asked: VecDeque<Ask>,
    count: u64,
    answered: u64,
    is_over: bool,
}

impl Inbox {
    fn ask(&self, ask: Ask) {
        let mut state = lock(&self.state);
        state.asked.push_back(ask);
        state.count += 1;
        let number = state.count;
        self.changed.notify_all();
        while state.answered < number {
            state = self.changed.wait(state).unwrap();
        }
    }

    pub(crate) fn answer(&self) {
        lock(&self.state).answered += 1;
        self.changed.notify_all();
    }

    /// What is asked next, if anything is; whoever has nothing else to do waits for it. None at the end.
    pub(crate) fn next(&self, is_idle: bool) -> Option<Option<Ask>> {
        let mut state = lock(&self.state);
        loop {
            match state.asked.pop_front() {
                Some(ask) => return Some(Some(ask)),
                None if !is_idle => return Some(None),
                None if state.is_over => return None,
                None => state = self.changed.wait(state).unwrap(),
            }
        }
    }

    /// Nobody will ask any more.
    pub(crate) fn end(&self) {
        lock(&self.state).is_over = true;
        self.changed.notify_all();
    }
}

/// What a page must hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    index: u64,
    word: Word,
}

impl Expected {
    /// Before the guest begins: all of it is to go to the file.
    pub(crate) fn at_first(index: u64) -> Self {
        let word = plain(index);
        Self { index, word }
    }

    pub(crate) fn write(&self, kernel: &Kernel) {
        kernel.write(self.index, self.word);
    }

    /// # Panics
    /// If the page is lost.
    pub(crate) fn check(&self, kernel: &Kernel) {
        let (index, found) = (self.index, kernel.read(self.index));
        assert!(
            found == self.word,
            "{LOST}: page {index} holds {found} instead of {}",
            self.word
        );
    }
}

/// What both processors use.
pub(crate) struct Common {
    locked: Mutex<Expected>,
    inbox: Inbox,
}

impl Common {
    pub(crate) fn new() -> Self {
        Self {
            locked: Mutex::new(Expected::at_first(LOCKED)),
            inbox: Inbox::default(),
        }
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// # Panics
    /// If a page is lost.
    pub(crate) fn check(&self, kernel: &Kernel) {
        lock(&self.locked).check(kernel);
        Expected::at_first(CONSTANT).check(kernel);
    }
}

/// What a processor may do. Of few things in one schedule more comes together than of all.
#[derive(Clone, Copy, Debug)]
enum Act {
    ReadOrWrite,
    GiveUp,
    ReadDisk,
    ReadConstant,
    WriteByTurns,
}

pub(crate) struct Processor {
    number: usize,
    own: [Expected; 2],
    written: u64,
    acts: Vec<Act>,
}

impl Processor {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            own: OWN[number].map(Expected::at_first),
            written: 0,
            acts: some_of(
                Act::ReadOrWrite,
                &[
                    Act::GiveUp,
                    Act::ReadDisk,
                    Act::ReadConstant,
                    Act::WriteByTurns,
                ],
            ),
        }
    }

    /// # Panics
    /// If a page is lost.
    pub(crate) fn run(mut self, common: &Common, swap: &Swap) -> Self {
        let kernel = &swap.kernel;
        for _ in 0..ACTS {
            let at = usize::from(is_so(1, 4));
            match choose(&self.acts) {
                Act::ReadOrWrite if is_so(1, 2) => self.own[at].check(kernel),
                Act::ReadOrWrite => self.write(at, kernel),
                Act::GiveUp => self.give_up(at, common),
                Act::ReadDisk => self.read_disk(at, swap),
                Act::ReadConstant => Expected::at_first(CONSTANT).check(kernel),
                Act::WriteByTurns => self.write_by_turns(common, kernel),
            }
        }
        self
    }

    fn next_word(&mut self) -> Word {
        self.written += 1;
        if is_so(1, 8) {
            return 0;
        }
        let kind = choose(&[PLAIN, PLAIN, FILLED, COMPRESSED]);
        ((self.number as u64 + 1) * 100 + self.written) * KINDS + kind
    }

    fn write(&mut self, at: usize, kernel: &Kernel) {
        let word = self.next_word();
        kernel.write(self.own[at].index, word);
        self.own[at].word = word;
    }

    /// What the device does for it, is done here.
    fn read_disk(&mut self, at: usize, swap: &Swap) {
        let (index, page) = (self.own[at].index, below(DISK_PAGES));
        swap.kernel.write(index, on_disk(page));
        (swap.guest_disks).was_read(index, page, swap.kernel.read(index));
        self.own[at].word = on_disk(page);
    }

    fn write_by_turns(&mut self, common: &Common, kernel: &Kernel) {
        let word = self.next_word();
        let mut locked = lock(&common.locked);
        locked.check(kernel);
        kernel.write(LOCKED, word);
        locked.word = word;
    }

    /// What it held is gone.
    fn give_up(&mut self, at: usize, common: &Common) {
        let index = self.own[at].index;
        if is_so(1, 2) {
            common.inbox.ask(Ask::ReportFree(index));
        } else {
            common.inbox.ask(Ask::Inflate(index));
            common.inbox.ask(Ask::Deflate(index));
        }
        self.own[at].word = 0;
    }

    /// # Panics
    /// If a page is lost.
    pub(crate) fn check(&self, kernel: &Kernel) {
        self.own.iter().for_each(|page| page.check(kernel));
    }
}
