//! Sampling in real memory, with the agent and the page tables of this process.

use super::*;
use crate::host::sharing::KeptBlocks;
use crate::host::sharing::vm::Keep;
use crate::host::sharing::vm::tests::{Bench, PAGES};
use crate::memory::agent::LargePageOrder;
use crate::memory::ram::GuestRam;
use page::{Gfn, GfnRange};
use policy::{LargePages, Precision, SampleLimits, WorkingSet, sample_size};
use protocol::page_sharing::FromAgent;
use sharing::Content;
use std::collections::BTreeSet;
use std::thread;

const PERIOD: Duration = Duration::from_secs(3600);

impl Bench {
    fn take_in(&mut self, message: FromAgent) {
        if let FromAgent::Sampled {
            number,
            dropped,
            blocks,
        } = message
        {
            self.vm.sampled(number, &dropped, &blocks);
        }
    }

    /// Waits until the agent has dropped the mappings of so many pages.
    fn sample(&mut self, size: u32) {
        self.sample_for(size, PERIOD);
    }

    fn sample_for(&mut self, size: u32, period: Duration) {
        self.samples += 1;
        let order = SampleOrder {
            number: self.samples,
            size,
            blocks: 2,
            period,
            looks: 8,
        };
        self.vm.begin_sample(order, |_| PageSet::EMPTY);
        while self.report().watched.is_none() {
            match self.vm.hear() {
                Some(message) => self.take_in(message),
                None => thread::yield_now(),
            }
        }
    }

    fn report(&self) -> SampleReport {
        self.vm.sample_report().unwrap()
    }

    /// Size, touched, written at the end of the period.
    fn counts(&mut self) -> (u32, u32, u32) {
        self.vm.watch_sample(PERIOD);
        let Sample {
            size,
            touched,
            written,
        } = self.report().sample;
        (size, touched, written)
    }

    fn sampled(&self) -> Vec<u64> {
        self.vm.sample.as_ref().unwrap().in_range(0..u64::MAX)
    }
}

#[test]
fn untouched_pages_count_nothing_and_touched_ones_are_all_counted_writes_apart() {
    let mut bench = Bench::new();
    (0..PAGES).for_each(|page| bench.write(page));
    bench.sample(200);
    assert_eq!(bench.report().population, PageCount(PAGES));
    assert_eq!(bench.counts(), (200, 0, 0));
    let sampled = bench.sampled();
    assert_eq!(sampled.len(), 200);
    for &page in &sampled[..50] {
        assert_eq!(bench.read(page), page + 1);
    }
    assert_eq!(bench.counts(), (200, 50, 0));
    sampled[40..70].iter().for_each(|&page| bench.write(page));
    assert_eq!(bench.counts(), (200, 70, 30));
    sampled.iter().for_each(|&page| bench.write(page));
    assert_eq!(bench.counts(), (200, 200, 200));
    assert!((0..PAGES).all(|page| bench.read(page) == page + 1));
}

/// Where the kernel maps pages around one that is read, it would count them as touched.
#[test]
fn a_page_that_is_read_does_not_bring_its_neighbours() {
    let mut bench = Bench::new();
    (0..512).for_each(|page| bench.write(page));
    bench.sample(512);
    for page in (0..512).step_by(32) {
        bench.read(page);
    }
    assert_eq!(bench.counts(), (512, 16, 0));
}

#[test]
fn only_pages_that_the_memory_file_has_are_sampled_and_none_is_made() {
    let mut bench = Bench::new();
    (100..130).for_each(|page| bench.write(page));
    bench.sample(200);
    assert_eq!(bench.sampled(), (100..130).collect::<Vec<_>>());
    assert_eq!(bench.counts(), (30, 0, 0));
    assert_eq!(bench.ram.allocated().unwrap(), PageCount(30));
    let given_up = GfnRange {
        start: Gfn(100),
        count: PageCount(10),
    };
    bench.agent.give_back(vec![given_up]);
    (110..115).for_each(|page| bench.write(page));
    assert_eq!(bench.counts(), (20, 5, 5), "those given up have left");
    assert_eq!(bench.ram.allocated().unwrap(), PageCount(20));
}

#[test]
fn the_scanner_misses_no_write_for_a_sample() {
    let mut bench = Bench::new();
    (0..64).for_each(|page| bench.write(page));
    bench.written();
    assert!(bench.written().is_empty());
    (0..32).for_each(|page| bench.write(page));
    bench.sample(64);
    assert_eq!(bench.written(), (0..32).collect(), "written before");
    assert!(bench.written().is_empty(), "dropped and not written");
    (40..50).for_each(|page| assert_eq!(bench.read(page), page + 1));
    (16..20).for_each(|page| bench.write(page));
    assert_eq!(bench.written(), (16..20).collect(), "written since");
}

#[test]
fn a_write_is_not_forgotten_when_the_scanner_arms_the_page_again() {
    let mut bench = Bench::new();
    (0..64).for_each(|page| bench.write(page));
    bench.sample(64);
    (8..16).for_each(|page| bench.write(page));
    let all = PageSet::EMPTY;
    let reader = &mut bench.reader;
    let look = bench.vm.look(0, 1, &all, reader, || PageSet::EMPTY);
    look.unwrap();
    (16..24).for_each(|page| assert_eq!(bench.read(page), page + 1));
    assert_eq!(bench.counts(), (64, 16, 8));
}

/// What a look costs is a part of what the host costs when nothing happens.
#[test]
fn a_sample_is_looked_at_as_often_as_is_ordered_and_at_its_end() {
    let mut bench = Bench::new();
    (0..64).for_each(|page| bench.write(page));
    let period = Duration::from_millis(400);
    bench.sample_for(64, period);
    bench.write(3);
    let mut looks = vec![Duration::ZERO];
    while *looks.last().unwrap() < period {
        bench.vm.watch_sample_in_time();
        let watched = bench.report().watched.unwrap();
        if watched > *looks.last().unwrap() {
            looks.push(watched);
        }
    }
    assert!((2..=9).contains(&looks.len()), "{looks:?}");
    let before_last = |pair: &[Duration]| pair[1] < period;
    let mut pairs = looks.windows(2).filter(|pair| before_last(pair));
    assert!(
        pairs.all(|pair| pair[1] - pair[0] >= period / 8),
        "{looks:?}"
    );
    assert_eq!(bench.report().sample.touched, 1);
}

/// The agent reads what it is asked about, through the guest's own mapping.
#[test]
fn what_the_agent_is_asked_about_leaves_the_sample() {
    let mut bench = Bench::new();
    (0..PAGES).for_each(|page| bench.write(page));
    bench.sample(512);
    let in_first = bench.sampled().iter().filter(|&&page| page < 512).count();
    assert!((1..512).contains(&in_first));
    let mut request = bench.request();
    request.zeros = PageSet::ALL;
    bench.ask(&request);
    let rest = u32::try_from(512 - in_first).unwrap();
    assert_eq!(bench.counts(), (rest, 0, 0));
    assert!(bench.sampled().iter().all(|&page| page >= 512));
}

#[test]
fn a_new_sample_takes_the_place_of_one_that_was_not_answered() {
    let mut bench = Bench::new();
    (0..64).for_each(|page| bench.write(page));
    let order = SampleOrder {
        number: 70,
        size: 10,
        blocks: 2,
        period: PERIOD,
        looks: 8,
    };
    bench.vm.begin_sample(order, |_| PageSet::EMPTY);
    bench.samples = 70;
    bench.sample(20);
    assert_eq!(bench.report().number, 71);
    assert_eq!(bench.counts(), (20, 0, 0));
}

const LARGE: u64 = 8;

/// Of 8 large pages, and half a block of small ones; none if the machine has no memory in one piece.
fn large() -> Option<Bench> {
    let ram = GuestRam::with_large_pages(PageCount(LARGE * BLOCK + BLOCK / 2)).unwrap();
    let bench = Bench::of(ram);
    bench.agent.order_large_pages(LargePageOrder {
        pages: LargePages::Fill,
        ..LargePageOrder::default()
    });
    (0..LARGE * BLOCK + BLOCK / 2).for_each(|page| bench.write(page));
    let begin = Instant::now();
    loop {
        let large = bench.agent.counters().large();
        if large.mapped == PageCount(LARGE * BLOCK) {
            return Some(bench);
        }
        if large.no_memory > 3 {
            println!("the machine has no memory in one piece");
            return None;
        }
        assert!(begin.elapsed() < PERIOD, "{large:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

impl Bench {
    /// Which blocks are mapped at all, and which as one large page.
    fn mapped(&self) -> [Vec<u32>; 2] {
        let is_present = |&number: &u32| {
            let addresses = self.vm.addresses(&self.vm.pages(number));
            self.vm.pagemap.is_any_present(addresses).unwrap()
        };
        let is_large = |&number: &u32| self.vm.is_large(number);
        let all = || 0..u32::try_from(LARGE).unwrap();
        [
            all().filter(is_present).collect(),
            all().filter(is_large).collect(),
        ]
    }
}

/// What of them is touched costs one fault each, but for the two that are looked into.
#[test]
fn large_pages_are_watched_as_a_whole_and_few_are_looked_into() {
    let Some(mut bench) = large() else { return };
    bench.sample(90);
    assert_eq!(
        bench.report().population,
        PageCount(LARGE * BLOCK + BLOCK / 2)
    );
    assert_eq!(bench.mapped(), [Vec::new(), Vec::<u32>::new()]);
    let (size, touched, written) = bench.counts();
    assert!(size > 0);
    assert_eq!((touched, written), (0, 0));
    // The small pages sampled are few: 90 of 4,352 pages, of which 256 are small.
    let sampled = bench.sampled();
    let in_large: Vec<u64> = sampled
        .iter()
        .copied()
        .filter(|&page| page < LARGE * BLOCK)
        .collect();
    assert_eq!((sampled.len(), in_large.len()), (90, 85));
    let looked_into: BTreeSet<u32> = in_large.iter().map(|&page| block_of(page)).collect();
    assert_eq!(looked_into.len(), 2);
    let all: BTreeSet<u32> = (0..8).collect();
    let others: Vec<u32> = all.difference(&looked_into).copied().collect();
    // One page of each of three others, and all of one that is looked into.
    let touched: Vec<u32> = others[..3].to_vec();
    touched
        .iter()
        .for_each(|&block| bench.write(u64::from(block) * BLOCK + 9));
    let used = *looked_into.first().unwrap();
    (0..BLOCK).for_each(|page| bench.write(u64::from(used) * BLOCK + page));
    let (size, found, written) = bench.counts();
    // Four of eight blocks are touched, and what was looked into of those was used whole.
    let permille = |count: u32| count * 1000 / size;
    assert!((420..=520).contains(&permille(found)), "{found} of {size}");
    assert!(
        (420..=520).contains(&permille(written)),
        "{written} of {size}"
    );
    let [present, large] = bench.mapped();
    assert!(
        touched
            .iter()
            .all(|block| present.contains(block) && large.contains(block))
    );
    assert!(!present.contains(&others[4]), "nobody touched it");
    assert!((0..LARGE * BLOCK).all(|page| bench.read(page) == page + 1));
}

#[test]
fn a_large_page_that_the_scanner_arms_was_looked_at_before() {
    let Some(mut bench) = large() else { return };
    bench.sample(20);
    (0..LARGE).for_each(|block| bench.write(block * BLOCK + 3));
    for number in 0..8 {
        let reader = &mut bench.reader;
        let none = PageSet::EMPTY;
        bench.vm.look(number, 1, &none, reader, || none).unwrap();
    }
    let sample = bench.vm.sample.as_ref().unwrap();
    assert!(
        sample.blocks.values().all(|&is_touched| is_touched),
        "{sample:?}"
    );
}

#[test]
fn a_large_page_that_the_agent_is_asked_about_leaves_the_sample() {
    let Some(mut bench) = large() else { return };
    bench.sample(200);
    let mut request = bench.request();
    request.zeros = PageSet::ALL;
    bench.ask(&request);
    let sample = bench.vm.sample.as_ref().unwrap();
    assert_eq!(
        sample.blocks.keys().copied().collect::<Vec<_>>(),
        (1..8).collect::<Vec<_>>()
    );
    assert!(bench.sampled().iter().all(|&page| page >= BLOCK));
}

/// What an agent says of a sample is a claim.
#[test]
fn an_answer_about_what_was_not_asked_does_no_harm() {
    let mut bench = Bench::new();
    (0..64).for_each(|page| bench.write(page));
    bench.sample(10);
    let number = bench.report().number;
    bench.vm.sampled(number, &PageSet::ALL, &PageSet::ALL);
    bench.vm.sampled(number + 1, &PageSet::ALL, &PageSet::ALL);
    assert_eq!(bench.counts(), (10, 0, 0));
}

/// To read a large page for hints neither breaks it nor fills what it lacks.
#[test]
fn what_is_left_alone_is_read_for_hints_and_stays_as_it_is() {
    let Some(mut bench) = large() else { return };
    let read = |bench: &mut Bench, kept, block| {
        bench.vm.kept = kept;
        let contents = bench.vm.read_kept(block, &mut bench.reader).unwrap();
        let hashes: BTreeSet<u64> = contents
            .iter()
            .map(|(_, content)| hash_of(*content))
            .collect();
        (contents.len(), hashes.len())
    };
    assert_eq!(read(&mut bench, KeptBlocks::Whole, 3), (512, 512));
    assert_eq!(
        bench.agent.counters().large().mapped,
        PageCount(LARGE * BLOCK)
    );
    let last = u32::try_from(LARGE).unwrap();
    assert_eq!(read(&mut bench, KeptBlocks::Large, last), (256, 256));
    let held = bench.ram.allocated().unwrap();
    assert_eq!(
        read(&mut bench, KeptBlocks::Used, 3),
        (0, 0),
        "memory is short"
    );
    assert_eq!(bench.ram.allocated().unwrap(), held);
}

fn hash_of(content: Content) -> u64 {
    match content {
        Content::Hash(hash) => hash.0,
        Content::Zero => 0,
    }
}

/// What its guest uses is told from what it does not use by a whole sample, and stays as it is told.
#[test]
fn what_a_guest_is_known_to_use_is_kept() {
    let Some(mut bench) = large() else { return };
    let kept = |bench: &mut Bench, blocks, pass| {
        bench.vm.kept = blocks;
        let kept = |number: &u32| match bench.vm.keep(*number, pass, || PageSet::EMPTY) {
            Keep::AsItIs | Keep::Large => true,
            Keep::No => false,
            Keep::AtHome(_) => unreachable!("nothing is shared"),
        };
        (0..8).filter(kept).collect::<Vec<u32>>()
    };
    let (all, none): (Vec<u32>, Vec<u32>) = ((0..8).collect(), Vec::new());
    assert_eq!(
        kept(&mut bench, KeptBlocks::Used, 1),
        none,
        "nothing is known"
    );
    bench.sample(10);
    assert_eq!(kept(&mut bench, KeptBlocks::Used, 1), none);
    let (used, cold) = (vec![0, 3, 4, 7], vec![1, 2, 5, 6]);
    let use_some = |bench: &Bench| {
        used.iter()
            .for_each(|&block| bench.write(u64::from(block) * BLOCK + 1))
    };
    use_some(&bench);
    bench.counts();
    // Those that were looked into and used are small for now.
    let looked_before: BTreeSet<u32> = bench.sampled().into_iter().map(block_of).collect();
    let mut looked_into = looked_before.clone();
    looked_into.retain(|block| used.contains(block));
    let mut large_still = used.clone();
    large_still.retain(|block| !looked_into.contains(block));
    // In the next sample the used ones are not touched yet, and the cold ones are watched again.
    bench.sample(10);
    assert_eq!(kept(&mut bench, KeptBlocks::Used, 2), large_still);
    let sample = bench.vm.sample.as_ref().unwrap();
    let mut watched = all.clone();
    watched.retain(|block| !looked_into.contains(block));
    assert_eq!(sample.blocks.keys().copied().collect::<Vec<_>>(), watched);
    // A block that was looked into is mapped page by page when it is touched.
    let once: BTreeSet<u32> = bench.sampled().into_iter().map(block_of).collect();
    let mut whole = cold
        .iter()
        .filter(|block| !once.contains(block) && !looked_before.contains(block));
    if let Some(block) = whole.next() {
        bench.write(u64::from(*block) * BLOCK);
        bench.vm.watch_block(*block);
        let kept = kept(&mut bench, KeptBlocks::Used, 2);
        assert!(kept.contains(block), "it is used now");
    }
    // For a while only; and where memory is short, not at all.
    bench.vm.kept_since = None;
    let at_first = [3, 4].map(|pass| kept(&mut bench, KeptBlocks::UsedAtFirst, pass));
    assert!(
        at_first
            .iter()
            .all(|kept| large_still.iter().all(|block| kept.contains(block)))
    );
    assert_eq!(
        kept(&mut bench, KeptBlocks::UsedAtFirst, 5),
        Vec::<u32>::new()
    );
    assert_eq!(kept(&mut bench, KeptBlocks::None, 5), Vec::<u32>::new());
}

/// A guest of 18 large pages, one of which is used a little and `active` wholly, in simulated time.
struct SmallGuest {
    active: u32,
    used: BTreeSet<u32>,
    looked_into: LookedInto,
    working_set: WorkingSet,
}

impl SmallGuest {
    const BLOCKS: u32 = 18;

    fn interest(&self, number: u32) -> Interest {
        interest(&self.used, &self.looked_into, number)
    }

    fn touches(&self, page: u64) -> bool {
        match block_of(page) {
            0 => page < 20,
            number => number <= self.active,
        }
    }

    /// A period of eight looks, at the fifth of which this many blocks are active. Whether that was believed by its end.
    fn period(&mut self, seed: u64, active_then: u32) -> bool {
        let period = Duration::from_secs(8);
        let limits = SampleLimits::default();
        let size = sample_size(self.working_set.touched(), Precision::Fair, period, &limits);
        let mut candidates = Candidates::new(size, seed);
        (0..Self::BLOCKS).for_each(|number| candidates.offer_block(number, self.interest(number)));
        let order = SampleOrder {
            number: seed,
            size,
            blocks: limits.blocks(period),
            period,
            looks: 8,
        };
        let drawn = candidates.draw(order.blocks);
        self.looked_into.begin();
        let mut sample = TouchSample::new(order, drawn, self.looked_into.samples());
        let all: PageSet = (0..BLOCK_PAGES).collect();
        sample.keep(&all, &all);
        self.working_set.begin(sample.report().sample.size);
        for look in 0..order.looks {
            if look == 4 {
                self.active = active_then;
            }
            for page in sample.in_range(0..u64::MAX) {
                if self.touches(page) {
                    sample.see(page, Some(Touch::Read));
                }
            }
            (0..=self.active).for_each(|number| {
                sample.blocks.insert(number, true);
            });
            sample.count();
            self.working_set.count(sample.report().sample);
        }
        let all = PageCount(u64::from(Self::BLOCKS) * BLOCK);
        let believed = self
            .working_set
            .touched()
            .map(|part| part.likely.of_pages(all));
        let is_believed = believed >= Some(PageCount(u64::from(self.active) * BLOCK * 4 / 5));
        self.used = (0..=self.active).collect();
        for (number, within) in sample.learned() {
            self.looked_into.learn(number, within);
        }
        self.working_set.end();
        is_believed
    }
}

/// As a large page is touched or not, and few can be looked into, how much of each is touched was known too badly to
/// believe that more are: it took three periods and more.
#[test]
fn that_a_small_guest_uses_three_times_as_much_is_believed_within_a_period() {
    for seed in 0..100 {
        let mut guest = SmallGuest {
            active: 4,
            used: BTreeSet::new(),
            looked_into: LookedInto::default(),
            working_set: WorkingSet::default(),
        };
        for turn in 0..5 {
            guest.period(seed << 16 | turn, 4);
        }
        let is_believed = guest.period(seed << 16 | 5, 12) || guest.period(seed << 16 | 6, 12);
        assert!(
            is_believed,
            "seed {seed}: {:?}",
            guest.working_set.touched()
        );
    }
}
