//! Sampling in real memory, with the agent and the page tables of this process.

use super::*;
use crate::host::sharing::vm::tests::{Bench, PAGES};
use page::{Gfn, GfnRange};
use proptest::prelude::*;
use protocol::page_sharing::FromAgent;
use std::thread;

const PERIOD: Duration = Duration::from_secs(3600);

impl Bench {
    fn take_in(&mut self, message: FromAgent) {
        if let FromAgent::Sampled { number, dropped } = message {
            self.vm.sampled(number, &dropped);
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
        period: PERIOD,
        looks: 8,
    };
    bench.vm.begin_sample(order, |_| PageSet::EMPTY);
    bench.samples = 70;
    bench.sample(20);
    assert_eq!(bench.report().number, 71);
    assert_eq!(bench.counts(), (20, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// 20 of 100 pages, 2,000 times: each is drawn 400 times, give or take six deviations.
    #[test]
    fn every_page_has_the_same_chance(seed: u64) {
        let mut drawn_times = [0u32; 100];
        for draw in 0..2000 {
            let mut drawn = Drawn::new(20, seed.wrapping_add(draw << 40));
            (0..100).for_each(|page| drawn.offer(page));
            prop_assert_eq!(drawn.seen, 100);
            prop_assert_eq!(drawn.pages.len(), 20);
            drawn.pages.iter().for_each(|&page| drawn_times[usize::try_from(page).unwrap()] += 1);
        }
        prop_assert!(drawn_times.iter().all(|times| (290..510).contains(times)), "{drawn_times:?}");
    }
}
