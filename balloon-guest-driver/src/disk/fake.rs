//! A disk in memory, for tests: slow, in any order, and strict about what is lent to it.
#![expect(unsafe_code, reason = "it is a disk")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use super::{Action, Answer, Block, Disk, DiskError, REQUESTS_MAX, Request};
use crate::Gfn;
use crate::page::{Page, WORDS};
use crate::random::Random;

#[derive(Debug)]
struct Lent {
    tag: usize,
    action: Action,
    first: Block,
    gfns: Vec<Gfn>,
    /// What was in the frames when they were lent.
    pages: Vec<Page>,
}

#[derive(Debug)]
pub(crate) struct FakeDisk {
    ram: Arc<[[AtomicU64; WORDS]]>,
    block_count: u32,
    pub(crate) is_read_only: bool,
    pub(crate) blocks: BTreeMap<Block, Page>,
    lent: Vec<Lent>,
    answers: Vec<Answer>,
    /// Answers by itself whenever it is asked.
    pub(crate) is_quick: bool,
    /// What happens to the next requests.
    pub(crate) fault: Option<DiskError>,
    pub(crate) flushes: u32,
    random: Random,
}

impl FakeDisk {
    pub(crate) fn new(ram: Arc<[[AtomicU64; WORDS]]>, block_count: u32) -> Self {
        Self {
            ram,
            block_count,
            is_read_only: false,
            blocks: BTreeMap::new(),
            lent: Vec::new(),
            answers: Vec::new(),
            is_quick: false,
            fault: None,
            flushes: 0,
            random: Random::new(1),
        }
    }

    pub(crate) fn block(&self, block: Block) -> Page {
        self.blocks.get(&block).copied().unwrap_or([0; WORDS])
    }

    /// Carries out one request, any. False if there is none.
    pub(crate) fn work(&mut self) -> bool {
        let count = u32::try_from(self.lent.len()).unwrap();
        if count == 0 {
            return false;
        }
        let lent = self.lent.swap_remove(self.random.below(count) as usize);
        for (gfn, page) in lent.gfns.iter().zip(&lent.pages) {
            assert_eq!(&self.page(*gfn), page, "frame {gfn} was changed while lent");
        }
        let result = self.fault.map_or(Ok(()), Err);
        match (lent.action, result) {
            (_, Err(_)) => {}
            (Action::Flush, Ok(())) => self.flushes += 1,
            (Action::Write, Ok(())) => self.blocks.extend((lent.first..).zip(lent.pages)),
            (Action::Read, Ok(())) => {
                for (block, gfn) in (lent.first..).zip(lent.gfns) {
                    self.fill(gfn, &self.block(block));
                }
            }
        }
        self.answers.push(Answer {
            tag: lent.tag,
            result,
        });
        true
    }

    fn page(&self, gfn: Gfn) -> Page {
        std::array::from_fn(|n| self.ram[gfn as usize][n].load(Ordering::Relaxed))
    }

    fn fill(&self, gfn: Gfn, page: &Page) {
        for (word, value) in self.ram[gfn as usize].iter().zip(page) {
            word.store(*value, Ordering::Relaxed);
        }
    }
}

impl Disk for FakeDisk {
    fn block_count(&self) -> u32 {
        self.block_count
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    unsafe fn start(&mut self, request: &Request<'_>) {
        let &Request {
            tag,
            action,
            first,
            gfns,
        } = request;
        let end = first as usize + gfns.len();
        assert!(tag < REQUESTS_MAX && end <= self.block_count as usize);
        assert!(self.lent.iter().all(|lent| lent.tag != tag), "tag {tag}");
        let lent = self.lent.iter().flat_map(|lent| &lent.gfns);
        assert!(
            lent.into_iter().all(|gfn| !gfns.contains(gfn)),
            "lent twice"
        );
        if action == Action::Read {
            // It may write to them at any time.
            gfns.iter().for_each(|&gfn| self.fill(gfn, &[0xbad; WORDS]));
        }
        let pages = gfns.iter().map(|&gfn| self.page(gfn)).collect();
        self.lent.push(Lent {
            tag,
            action,
            first,
            gfns: gfns.to_vec(),
            pages,
        });
    }

    fn take_answer(&mut self) -> Option<Answer> {
        if self.is_quick {
            self.work();
        }
        self.answers.pop()
    }
}
