//! What the scanner looks at, in real memory with the agent and the page tables of this process.

use super::*;
use crate::memory::agent::AgentHandle;
use crate::memory::ram::GuestRam;
use page::PAGE_BYTES;
use sharing::{Block, Frame, Span, Ticket};
use std::thread;
use vm_memory::{Bytes, GuestAddress};

pub(super) const PAGES: u64 = 1024;
const FRAMES: u64 = 1024;

/// A VM's memory with its agent, and the scanner's side of it.
pub(super) struct Bench {
    pub(super) ram: GuestRam,
    pub(super) agent: AgentHandle,
    pub(super) vm: ScannedVm,
    pub(super) samples: u64,
    pub(super) reader: PageReader,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::of(GuestRam::new(PageCount(PAGES)).unwrap())
    }

    pub(super) fn of(ram: GuestRam) -> Self {
        let size = ram.layout().size();
        let (host, vm) = SharingSocket::pair().unwrap();
        let agent = AgentHandle::start(&ram, Some(vm)).unwrap();
        let spec = ScannedVmSpec {
            id: VmId(1),
            name: "a".parse().unwrap(),
            group: None,
            size,
            pid: std::process::id(),
            ram_address: ram.addresses(0..0).start,
            memory_file: Arc::new(ram.file().try_clone().unwrap()),
            socket: host,
            store: None,
        };
        let hash = Arc::new(PageHash::new().unwrap());
        let store = Arc::new(Store::new(FRAMES).unwrap());
        Self {
            ram,
            agent,
            vm: ScannedVm::new(spec, hash, store, FRAMES).unwrap(),
            samples: 0,
            reader: PageReader::new(),
        }
    }

    pub(super) fn write(&self, page: u64) {
        let address = GuestAddress(page * 4096);
        self.ram.memory().write_obj(page + 1, address).unwrap();
    }

    pub(super) fn read(&self, page: u64) -> u64 {
        let address = GuestAddress(page * 4096);
        self.ram.memory().read_obj(address).unwrap()
    }

    /// What the scanner finds written in the first block, having armed it.
    pub(super) fn written(&mut self) -> PageSet {
        let pages = self.vm.pages(0);
        let written = self.vm.take_written(&pages, &PageSet::EMPTY).unwrap();
        let owed = self.vm.take_owed(&pages);
        written.iter().chain(owed.iter()).collect()
    }

    /// A request about the first block that asks for nothing.
    pub(super) fn request(&self) -> Request {
        Request {
            ticket: Ticket(1),
            block: Block {
                vm: VmId(1),
                number: 0,
            },
            drops: PageSet::EMPTY,
            zeros: PageSet::EMPTY,
            spans: Vec::new(),
            rehomes: PageSet::EMPTY,
        }
    }

    /// Has the agent do it.
    pub(super) fn ask(&mut self, request: &Request) -> sharing::Outcome {
        self.vm.ask(request);
        loop {
            match self.vm.hear() {
                Some(FromAgent::Outcome {
                    outcome, unwritten, ..
                }) => {
                    self.vm.note_answer(request.block.number, &unwritten);
                    return outcome;
                }
                _ => thread::yield_now(),
            }
        }
    }

    /// The pages of the first block that a look reads.
    fn look(&mut self, mapped: &PageSet) -> PageSet {
        let reader = &mut self.reader;
        let look = self.vm.look(0, 1, &PageSet::EMPTY, reader, || *mapped);
        let Look::Seen(seen) = look.unwrap() else {
            return PageSet::EMPTY;
        };
        let is_read =
            |&place: &usize| matches!(seen[place], Seen::Private(_) | Seen::Broken(Some(_)));
        (0..BLOCK_PAGES).filter(is_read).collect()
    }

    /// Has the frame hold what the page holds.
    fn fill_frame(&self, frame: u32, page: u64) {
        let mut content = [0; PAGE_BYTES];
        self.vm
            .read(page, Source::MemoryFile, &mut content)
            .unwrap();
        self.vm.store.fill(Frame(frame), &content).unwrap();
    }
}

fn lone_span(place: usize, frame: u32) -> Span {
    Span {
        start: place,
        count: 1,
        frame: Frame(frame),
        copied: PageSet::EMPTY,
    }
}

#[test]
fn what_a_request_does_not_name_is_not_read_again() {
    let mut bench = Bench::new();
    (0..500).for_each(|page| bench.write(page));
    assert_eq!(bench.look(&PageSet::EMPTY), (0..500).collect());
    let mut request = bench.request();
    for place in (10..490).step_by(16) {
        let frame = u32::try_from(place).unwrap();
        bench.fill_frame(frame, place as u64);
        request.spans.push(lone_span(place, frame));
    }
    // This one has another content, so it stays where it is.
    bench.fill_frame(10, 11);
    let outcome = bench.ask(&request);
    assert_eq!((outcome.done.count(), outcome.differed.count()), (29, 1));
    assert_eq!(bench.look(&outcome.done), [10].into_iter().collect());
    assert_eq!(bench.look(&outcome.done), PageSet::EMPTY);
    assert!((0..500).all(|page| bench.read(page) == page + 1));
}

#[test]
fn what_is_copied_into_a_mapping_is_not_read_again() {
    let mut bench = Bench::new();
    (0..500).for_each(|page| bench.write(page));
    bench.look(&PageSet::EMPTY);
    bench.write(30);
    let mut request = bench.request();
    (0..100).for_each(|page| bench.fill_frame(u32::try_from(page).unwrap(), page));
    bench.fill_frame(20, 0);
    bench.fill_frame(30, 0);
    request.spans.push(Span {
        count: 100,
        copied: [20, 30].into_iter().collect(),
        ..lone_span(0, 0)
    });
    let outcome = bench.ask(&request);
    assert_eq!((outcome.done.count(), outcome.copied.count()), (98, 2));
    let mapped = outcome.done.union(&outcome.copied);
    assert_eq!(bench.look(&mapped), [30].into_iter().collect());
    bench.write(20);
    assert_eq!(bench.look(&mapped), [20].into_iter().collect());
    assert!((0..500).all(|page| bench.read(page) == page + 1));
}

#[test]
fn what_was_written_around_a_request_is_read() {
    let mut bench = Bench::new();
    (0..500).for_each(|page| bench.write(page));
    bench.look(&PageSet::EMPTY);
    (100..120).for_each(|page| bench.write(page));
    bench.write(505);
    let mut request = bench.request();
    request.zeros = [5, 490].into_iter().collect();
    let outcome = bench.ask(&request);
    assert_eq!(outcome.differed.count(), 2);
    (200..210).for_each(|page| bench.write(page));
    // Neither of the two was zero, so both are to be looked at again.
    let changed = [5, 490, 505].into_iter().chain(100..120).chain(200..210);
    assert_eq!(bench.look(&PageSet::EMPTY), changed.collect());
    assert_eq!(bench.look(&PageSet::EMPTY), PageSet::EMPTY);
}

/// A page that shows a frame and is written to while the fence goes up or down would be missed, so
/// those are looked at.
#[test]
fn a_copy_made_around_a_request_is_found() {
    let mut bench = Bench::new();
    (0..500).for_each(|page| bench.write(page));
    let mut request = bench.request();
    for place in [50, 60] {
        let frame = u32::try_from(place).unwrap();
        bench.fill_frame(frame, place as u64);
        request.spans.push(lone_span(place, frame));
    }
    let mapped = bench.ask(&request).done;
    assert_eq!(mapped.count(), 2);
    bench.look(&mapped);
    bench.write(50);
    let mut request = bench.request();
    request.zeros = [1, 400].into_iter().collect();
    bench.ask(&request);
    bench.write(60);
    assert_eq!(bench.look(&mapped), [1, 50, 60, 400].into_iter().collect());
}

#[test]
fn nothing_is_taken_for_granted_while_a_request_is_out() {
    let mut bench = Bench::new();
    (0..500).for_each(|page| bench.write(page));
    bench.look(&PageSet::EMPTY);
    let mut request = bench.request();
    request.zeros = [5].into_iter().collect();
    bench.vm.ask(&request);
    bench.vm.forget_looks();
    while !matches!(bench.vm.hear(), Some(FromAgent::Outcome { .. })) {
        thread::yield_now();
    }
    bench.vm.note_answer(0, &PageSet::ALL);
    assert_eq!(bench.look(&PageSet::EMPTY), (0..500).collect());
}
