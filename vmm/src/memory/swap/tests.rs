//! Pages that go out and come back under threads that write to them, in real memory with the agent and the pager.

use crate::memory::agent::{AgentHandle, Fence, LargePageOrder, Outs};
use crate::memory::ram::GuestRam;
use page::{Gfn, GfnRange, PAGE_SIZE, PageCount, Random};
use policy::LargePages;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 16 << 10;
/// What may be held: a part of that, and the least pool.
const HOLD: PageCount = PageCount(6 << 10);
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    ram: GuestRam,
    agent: AgentHandle,
}

impl Bench {
    fn new(ram: GuestRam) -> Self {
        let fence = Fence::new(&ram).unwrap();
        let agent = AgentHandle::start_behind(fence, &ram, None, Outs::GoToLog).unwrap();
        Self { ram, agent }
    }

    fn write(&self, page: u64, version: u64) {
        write(&self.ram, page, version);
    }

    fn limit(&self, most: Option<PageCount>) {
        self.agent.limit_held(most);
    }

    fn held(&self) -> PageCount {
        self.ram.allocated().unwrap() + PageCount(self.agent.swap().unwrap().log_pages().0)
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            assert!(
                begin.elapsed() < PATIENCE,
                "{what}: {:?}",
                self.agent.swap().unwrap().counters()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn check_log(&self) {
        super::lock(&self.agent.swap().unwrap().log)
            .audit()
            .unwrap();
    }
}

/// Four places of a page: what is torn is seen.
const PLACES: [u64; 4] = [0, 1000, 2048, 4088];

fn word(page: u64, version: u64, place: u64) -> u64 {
    (page << 40 | version << 12 | place) ^ 0x5a5a_0000_0000_0000
}

fn write(ram: &GuestRam, page: u64, version: u64) {
    for place in PLACES {
        let address = GuestAddress(page * PAGE_SIZE + place);
        ram.memory()
            .write_obj(word(page, version, place), address)
            .unwrap();
    }
}

fn check(ram: &GuestRam, page: u64, version: u64) {
    for place in PLACES {
        let address = GuestAddress(page * PAGE_SIZE + place);
        let found: u64 = ram.memory().read_obj(address).unwrap();
        let expected = if version == 0 {
            0
        } else {
            word(page, version, place)
        };
        assert_eq!(
            found, expected,
            "page {page}, version {version}, byte {place}"
        );
    }
}

#[test]
fn what_is_above_the_limit_goes_out_and_comes_back_as_it_was() {
    let bench = Bench::new(GuestRam::new(PageCount(PAGES)).unwrap());
    (0..PAGES).for_each(|page| bench.write(page, 1));
    bench.limit(Some(HOLD));
    bench.wait("all but what may be held goes out", |bench| {
        bench.held() <= HOLD
    });
    let states = bench.agent.page_states(true).unwrap();
    assert_eq!(states.total(), PageCount(PAGES));
    assert!(states.compressed > PageCount(PAGES / 2), "{states:?}");
    for page in (0..PAGES).step_by(7) {
        check(&bench.ram, page, 1);
        assert!(bench.held() <= HOLD, "{:?} after page {page}", bench.held());
    }
    bench.check_log();
    bench.limit(None);
    (0..PAGES).for_each(|page| check(&bench.ram, page, 1));
    bench.wait("all is back", |bench| {
        bench.agent.swap().unwrap().out() == PageCount(0)
    });
    assert_eq!(
        bench.agent.page_states(true).unwrap().private,
        PageCount(PAGES)
    );
    bench.check_log();
}

#[test]
fn pages_of_one_word_take_no_memory_and_holes_stay_holes() {
    let bench = Bench::new(GuestRam::new(PageCount(PAGES)).unwrap());
    let filled = |page: u64| [page.to_le_bytes(); 512].concat();
    for page in 0..PAGES / 2 {
        bench
            .ram
            .memory()
            .write_slice(&filled(page), GuestAddress(page * PAGE_SIZE))
            .unwrap();
    }
    bench.limit(Some(PageCount(2 << 10)));
    bench.wait("all goes out", |bench| bench.held() <= PageCount(2 << 10));
    assert_eq!(bench.agent.swap().unwrap().log_pages(), PageCount(0));
    let mut found = vec![1; 4096];
    for page in (0..PAGES).step_by(5) {
        bench
            .ram
            .memory()
            .read_slice(&mut found, GuestAddress(page * PAGE_SIZE))
            .unwrap();
        let expected = if page < PAGES / 2 {
            filled(page)
        } else {
            vec![0; 4096]
        };
        assert!(found == expected, "page {page}");
    }
    let counters = bench.agent.swap().unwrap().counters();
    assert!(
        counters.filled_in > 0 && counters.zero_in > 0,
        "{counters:?}"
    );
}

/// What is given up comes back as zeros, whether it was out, there, or on its way.
#[test]
fn what_a_guest_gives_up_is_not_brought_back() {
    let bench = Bench::new(GuestRam::new(PageCount(PAGES)).unwrap());
    (0..PAGES).for_each(|page| bench.write(page, 1));
    bench.limit(Some(HOLD));
    bench.wait("much goes out", |bench| bench.held() <= HOLD);
    let given_up = GfnRange {
        start: Gfn(100),
        count: PageCount(PAGES - 200),
    };
    bench.agent.inflate(vec![given_up]);
    let states = bench.agent.page_states(false).unwrap();
    assert_eq!(states.ballooned, given_up.count);
    bench.agent.deflate(vec![given_up]);
    for page in (0..PAGES).step_by(3) {
        let is_kept = !(100..PAGES - 100).contains(&page);
        check(&bench.ram, page, u64::from(is_kept));
    }
    bench.check_log();
}

/// Three threads write and read at random, each its own pages; the limit goes up, down, and away.
fn hammer(ram: GuestRam, seconds: u64) {
    let bench = Bench::new(ram);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for own in 0..3 {
            let (ram, stop, done) = (&bench.ram, &stop, &done);
            scope.spawn(move || {
                let mut random = Random::new(own);
                let mut versions = vec![0u64; usize::try_from(PAGES).unwrap()];
                while !stop.load(Ordering::Relaxed) {
                    let page = random.next() % PAGES / 3 * 3 + own;
                    // Most of it in a third of the pages.
                    let page = if !random.next().is_multiple_of(4) {
                        page / 9 * 3 + own
                    } else {
                        page
                    };
                    if page >= PAGES || page % 3 != own {
                        continue;
                    }
                    let version = &mut versions[usize::try_from(page).unwrap()];
                    check(ram, page, *version);
                    if random.next().is_multiple_of(2) {
                        *version += 1;
                        write(ram, page, *version);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut random = Random::new(9);
        let begin = Instant::now();
        let mut sample = 0;
        while begin.elapsed() < Duration::from_secs(seconds) {
            sample += 1;
            let limit = match random.next() % 4 {
                0 => None,
                _ => Some(HOLD + PageCount(random.next() % 4096)),
            };
            bench.limit(limit);
            bench.agent.order_large_pages(LargePageOrder {
                pages: if random.next().is_multiple_of(2) {
                    LargePages::Fill
                } else {
                    LargePages::Off
                },
                ..LargePageOrder::default()
            });
            thread::sleep(Duration::from_millis(random.next() % 200));
            if sample % 8 == 0 {
                bench.check_log();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counters = bench.agent.swap().unwrap().counters();
    println!("{} touches, {counters:?}", done.load(Ordering::Relaxed));
    assert!(
        counters.out > PAGES && counters.stored_in > 1000,
        "{counters:?}"
    );
    bench.check_log();
}

#[test]
fn threads_that_write_while_pages_go_out_and_come_back_read_what_they_wrote() {
    hammer(GuestRam::new(PageCount(PAGES)).unwrap(), 8);
}

#[test]
fn the_same_with_large_pages() {
    hammer(GuestRam::with_large_pages(PageCount(PAGES)).unwrap(), 8);
}
