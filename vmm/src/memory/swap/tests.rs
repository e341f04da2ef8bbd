//! Pages that go out and come back under threads that write to them, in real memory with the agent and the pager.

use crate::lock::lock;
use crate::memory::agent::{AgentHandle, Fence, LargePageOrder, Outs};
use crate::memory::left_out::{Step, is_missed};
use crate::memory::mapping::collapse;
use crate::memory::ram::GuestRam;
use page::{Gfn, GfnRange, PAGE_SIZE, PageCount, Random};
use policy::LargePages;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 16 << 10;
/// What may be held: a part of that, and the least pool.
const HOLD: PageCount = PageCount(6 << 10);
/// The log opens so much at once, and fills it little by little.
const SEGMENT: PageCount = PageCount(64);
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    ram: GuestRam,
    agent: AgentHandle,
}

impl Bench {
    fn new(ram: GuestRam) -> Self {
        Self::of(ram, Outs::GoToLog)
    }

    fn with_file(ram: GuestRam) -> Self {
        let file = tempfile::tempfile().unwrap();
        let most = ram.layout().size();
        Self::of(ram, Outs::GoToFile(file, most))
    }

    fn of(ram: GuestRam, outs: Outs) -> Self {
        Self::with_disks(ram, outs, Vec::new())
    }

    fn with_disks(ram: GuestRam, outs: Outs, disks: Vec<Option<Arc<File>>>) -> Self {
        let fence = Fence::new(&ram).unwrap();
        let agent = AgentHandle::start_behind(fence, &ram, None, outs, disks).unwrap();
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

    /// Reads all of it, until it is said what is lost.
    fn loses_a_page(&self) -> String {
        let ram = self.ram.clone();
        // Whoever touches what is lost waits until the process ends, so nobody waits for this thread.
        thread::spawn(move || (0..PAGES).for_each(|page| check_noise(&ram, page, 1)));
        self.wait("it is said what is lost", |bench| {
            bench.agent.why_it_ends().is_some()
        });
        let why = self.agent.why_it_ends().unwrap();
        assert!(why.contains("page 0x"), "{why}");
        why
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
        assert!(
            bench.held() <= HOLD + SEGMENT,
            "{:?} after page {page}",
            bench.held()
        );
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

/// As long as a page is out memory is guarded.
#[test]
fn once_nothing_limits_it_all_comes_back_that_nobody_asks_for_but_for_what_is_given_up() {
    let ram = || GuestRam::new(PageCount(PAGES)).unwrap();
    for (bench, is_noise) in [(Bench::new(ram()), false), (Bench::with_file(ram()), true)] {
        (0..PAGES).for_each(|page| match is_noise {
            true => write_noise(&bench.ram, page, 1),
            false => bench.write(page, 1),
        });
        bench.limit(Some(HOLD));
        bench.wait("much goes out", |bench| bench.held() <= HOLD);
        bench.limit(None);
        let given_up = GfnRange {
            start: Gfn(PAGES / 2),
            count: PageCount(PAGES / 4),
        };
        bench.agent.inflate(vec![given_up]);
        bench.wait("all is back", |bench| {
            bench.agent.swap().unwrap().out() == PageCount(0)
        });
        let counters = bench.agent.swap().unwrap().counters();
        assert!(counters.unasked_in > PAGES / 4, "{counters:?}");
        let states = bench.agent.page_states(true).unwrap();
        assert_eq!(states.private, PageCount(PAGES) - given_up.count);
        assert_eq!(states.ballooned, given_up.count);
        bench.check_log();
        for page in (0..PAGES).filter(|page| !(PAGES / 2..3 * PAGES / 4).contains(page)) {
            match is_noise {
                true => check_noise(&bench.ram, page, 1),
                false => check(&bench.ram, page, 1),
            }
        }
    }
}

#[test]
fn what_is_used_whole_is_large_under_a_limit_and_goes_out_whole() {
    const BLOCK: u64 = 512;
    const USED: u64 = 6 * BLOCK;
    let bench = Bench::new(GuestRam::with_large_pages(PageCount(PAGES)).unwrap());
    bench.agent.order_large_pages(LargePageOrder {
        pages: LargePages::Fill,
        ..LargePageOrder::default()
    });
    bench.limit(Some(HOLD));
    bench.wait("what is used becomes large", |bench| {
        (0..USED).for_each(|page| bench.write(page, 1));
        let large = bench.agent.counters().large();
        large.mapped == PageCount(USED) || large.no_memory + large.refused > 10
    });
    // What does not become large takes part in the rest all the same.
    println!("{:?}", bench.agent.counters().large());
    assert!(bench.held() <= PageCount(USED));
    (0..USED).for_each(|page| check(&bench.ram, page, 1));
    bench.limit(Some(PageCount(4 * BLOCK)));
    bench.wait("what is not used goes out", |bench| {
        bench.held() <= PageCount(4 * BLOCK)
    });
    let large = bench.agent.counters().large();
    assert!(large.mapped <= PageCount(4 * BLOCK), "{large:?}");
    (0..USED).for_each(|page| check(&bench.ram, page, 1));
    (0..USED).for_each(|page| bench.write(page, 2));
    (0..USED).for_each(|page| check(&bench.ram, page, 2));
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

/// What does not shrink.
fn noise(page: u64, version: u64) -> Vec<u8> {
    let mut random = Random::new(page << 32 | version);
    let words = std::iter::repeat_with(|| random.next().to_le_bytes());
    words.take(512).flatten().collect()
}

fn write_noise(ram: &GuestRam, page: u64, version: u64) {
    let address = GuestAddress(page * PAGE_SIZE);
    ram.memory()
        .write_slice(&noise(page, version), address)
        .unwrap();
}

fn check_noise(ram: &GuestRam, page: u64, version: u64) {
    let mut found = vec![1; 4096];
    let address = GuestAddress(page * PAGE_SIZE);
    ram.memory().read_slice(&mut found, address).unwrap();
    let expected = if version == 0 {
        vec![0; 4096]
    } else {
        noise(page, version)
    };
    assert!(found == expected, "page {page}, version {version}");
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Three threads write and read at random, each its own pages; the limit goes up, down, and away.
fn hammer(bench: &Bench, is_noise: bool, seconds: u64) {
    hammer_while(bench, is_noise, seconds, || {
        thread::sleep(Duration::from_millis(10));
    });
}

/// The same while something else happens again and again.
fn hammer_while(bench: &Bench, is_noise: bool, seconds: u64, happens: impl Fn() + Sync) {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for own in 0..3 {
            let (ram, stop, done) = (&bench.ram, &stop, &done);
            scope.spawn(move || {
                let _stop = StopAtEnd(stop);
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
                    match is_noise {
                        true => check_noise(ram, page, *version),
                        false => check(ram, page, *version),
                    }
                    if random.next().is_multiple_of(2) {
                        *version += 1;
                        match is_noise {
                            true => write_noise(ram, page, *version),
                            false => write(ram, page, *version),
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                happens();
            }
        });
        let mut random = Random::new(9);
        let begin = Instant::now();
        let mut sample = 0;
        let has_done_much = || {
            let counters = bench.agent.swap().unwrap().counters();
            counters.out > PAGES && counters.stored_in > 1000
        };
        let is_over = || {
            let has_had_time = begin.elapsed() >= Duration::from_secs(seconds);
            has_had_time && (has_done_much() || begin.elapsed() >= PATIENCE)
        };
        while !stop.load(Ordering::Relaxed) && !is_over() {
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
    });
    let counters = bench.agent.swap().unwrap().counters();
    println!("{} touches, {counters:?}", done.load(Ordering::Relaxed));
    println!("{:?}", bench.agent.counters().large());
    let has_done_much = counters.out > PAGES && counters.stored_in > 1000;
    assert!(has_done_much, "{counters:?}");
    bench.check_log();
}

#[test]
fn threads_that_write_while_pages_go_out_and_come_back_read_what_they_wrote() {
    hammer(
        &Bench::new(GuestRam::new(PageCount(PAGES)).unwrap()),
        false,
        8,
    );
}

#[test]
fn the_same_with_large_pages() {
    hammer(
        &Bench::new(GuestRam::with_large_pages(PageCount(PAGES)).unwrap()),
        false,
        8,
    );
}

/// As khugepaged does with memory that may be large, or was allowed to a moment ago: it asks nobody.
fn hammer_while_the_kernel_makes_large_pages(seconds: u64) {
    let bench = Bench::new(GuestRam::with_large_pages(PageCount(PAGES)).unwrap());
    let random = Mutex::new(Random::new(17));
    hammer_while(&bench, false, seconds, || {
        let block = lock(&random).next() % (PAGES / 512);
        let addresses = bench.ram.addresses(block * 512..(block + 1) * 512);
        // The kernel says that it could not where memory is guarded, and may have done it all the same.
        collapse(&addresses).ok();
        thread::sleep(Duration::from_micros(300));
    });
}

#[test]
fn the_same_while_the_kernel_makes_large_pages_by_itself() {
    hammer_while_the_kernel_makes_large_pages(8);
}

#[test]
fn that_what_is_whole_may_be_large_is_missed() {
    is_missed(Step::WholeIsLarge, || {
        hammer_while_the_kernel_makes_large_pages(8);
    });
}

#[test]
fn the_same_with_pages_that_do_not_shrink_and_a_file() {
    let bench = Bench::with_file(GuestRam::with_large_pages(PageCount(PAGES)).unwrap());
    hammer(&bench, true, 8);
    assert!(bench.agent.swap().unwrap().counters().write_errors == 0);
    let states = bench.agent.page_states(true).unwrap();
    assert_eq!(states.total(), PageCount(PAGES), "{states:?}");
}

#[test]
fn the_same_with_pages_that_shrink_and_a_file() {
    let bench = Bench::with_file(GuestRam::new(PageCount(PAGES)).unwrap());
    hammer(&bench, false, 8);
}

/// What could not be written stays in memory, and what was written in part is never read.
#[test]
fn the_same_with_a_file_that_fails_now_and_then() {
    let bench = Bench::with_file(GuestRam::new(PageCount(PAGES)).unwrap());
    let file = bench.agent.swap().unwrap().file.clone().unwrap();
    file.fails_one_of.store(8, Ordering::Relaxed);
    hammer(&bench, true, 8);
    let counters = bench.agent.swap().unwrap().counters();
    assert!(counters.write_errors > 3, "{counters:?}");
    assert_eq!(bench.agent.why_it_ends(), None);
}

/// A block goes out as a whole, though a tenth of the VM is less.
#[test]
fn of_a_small_vm_blocks_go_out_that_do_not_shrink() {
    const SMALL: u64 = 4096;
    const HELD: PageCount = PageCount(2048);
    let bench = Bench::with_file(GuestRam::with_large_pages(PageCount(SMALL)).unwrap());
    (0..SMALL).for_each(|page| write_noise(&bench.ram, page, 1));
    bench.limit(Some(HELD));
    bench.wait("what is above goes out", |bench| bench.held() <= HELD);
    (0..SMALL).for_each(|page| check_noise(&bench.ram, page, 1));
    bench.check_log();
}

/// Much more than memory and the pool have room for.
#[test]
fn what_the_pool_has_no_room_for_goes_to_the_file() {
    const HELD: PageCount = PageCount(3 << 10);
    let bench = Bench::with_file(GuestRam::new(PageCount(PAGES)).unwrap());
    (0..PAGES).for_each(|page| write_noise(&bench.ram, page, 1));
    bench.limit(Some(HELD));
    bench.wait("all but what may be held goes out", |bench| {
        bench.held() <= HELD
    });
    let states = bench.agent.page_states(true).unwrap();
    assert!(states.swapped > PageCount(PAGES / 2), "{states:?}");
    assert_eq!(states.total(), PageCount(PAGES));
    (0..PAGES)
        .step_by(5)
        .for_each(|page| check_noise(&bench.ram, page, 1));
    bench.check_log();
}

/// All pages of a guest, most of them in a file to which something happens: what is lost is named, and nothing wrong is read.
fn is_the_end(happens: impl FnOnce(&Bench, &File)) -> String {
    let file = tempfile::tempfile().unwrap();
    let spoiler = file.try_clone().unwrap();
    let ram = GuestRam::new(PageCount(PAGES)).unwrap();
    let bench = Bench::of(ram, Outs::GoToFile(file, PageCount(PAGES)));
    (0..PAGES).for_each(|page| write_noise(&bench.ram, page, 1));
    bench.limit(Some(PageCount(3 << 10)));
    bench.wait("much is in the file", |bench| {
        bench.agent.page_states(false).unwrap().swapped > PageCount(PAGES / 2)
    });
    happens(&bench, &spoiler);
    bench.loses_a_page()
}

#[test]
fn a_spoilt_record_is_the_end_and_never_a_wrong_byte() {
    is_the_end(|_, file| {
        let length = file.metadata().unwrap().len();
        for position in (64..length).step_by(1024) {
            file.write_all_at(&[0x5a], position).unwrap();
        }
    });
}

#[test]
fn a_file_that_is_cut_is_the_end_and_never_a_wrong_byte() {
    is_the_end(|_, file| file.set_len(0).unwrap());
}

/// All of what there is does not shrink, and there is no file.
#[test]
fn where_nothing_more_can_leave_its_guest_goes_on_slowly_and_holds_no_more_by_that() {
    let bench = Bench::new(GuestRam::new(PageCount(PAGES)).unwrap());
    (0..PAGES).for_each(|page| write_noise(&bench.ram, page, 1));
    bench.limit(Some(HOLD));
    let swap = bench.agent.swap().unwrap();
    bench.wait("the pool is full", |_| {
        swap.takes_nothing.load(Ordering::Relaxed)
    });
    let out = swap.out();
    assert!(out > PageCount(500), "{out:?}");
    // While it is tried in vain to take a block out, the log has what it took of it.
    let tried = PageCount(512) + SEGMENT;
    let most = bench.held() + PageCount(super::EXCHANGED.unsigned_abs()) + tried;
    let ram = bench.ram.clone();
    let read = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&read);
    let reader = thread::spawn(move || {
        for page in 0..PAGES {
            check_noise(&ram, page, 1);
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut last = (0, Instant::now());
    while !reader.is_finished() {
        assert!(bench.held() <= most, "{:?} of {most:?}", bench.held());
        let now = read.load(Ordering::Relaxed);
        if now > last.0 {
            last = (now, Instant::now());
        }
        assert!(
            last.1.elapsed() < PATIENCE,
            "{now} pages: {:?}",
            swap.counters()
        );
        thread::sleep(Duration::from_millis(1));
    }
    reader.join().unwrap();
    bench.check_log();
}

/// Beside it the balloon stays empty, also where pages go there and are taken back meanwhile.
#[test]
fn who_touches_new_memory_in_order_waits_few_times_and_nothing_is_made_of_its_balloon() {
    const TOUCHED: u64 = 6 << 10;
    const AT_ONCE: u64 = 32;
    let bench = Bench::new(GuestRam::new(PageCount(PAGES)).unwrap());
    // Each second stretch of 64 pages is in the balloon.
    let balloon = |page: u64| page / 64 % 2 == 1;
    let stretches = (0..TOUCHED / 128).map(|stretch| GfnRange {
        start: Gfn(stretch * 128 + 64),
        count: PageCount(64),
    });
    let stretches: Vec<_> = stretches.collect();
    bench.agent.inflate(stretches.clone());
    bench.limit(Some(PageCount(PAGES / 2)));
    let swap = Arc::clone(bench.agent.swap().unwrap());
    bench.wait("the limit is kept", |_| swap.counters().keeps_limit);

    let ram = bench.ram.clone();
    let guest = thread::spawn(move || {
        let touched = (0..TOUCHED).filter(|&page| !balloon(page));
        touched.for_each(|page| write(&ram, page, 1));
    });
    while !guest.is_finished() {
        bench.agent.deflate(stretches.clone());
        bench.agent.inflate(stretches.clone());
    }
    guest.join().unwrap();

    let counters = swap.counters();
    assert!(counters.zero_in < TOUCHED / 8, "{counters:?}");
    assert!(
        counters.zero_in + counters.unasked_in >= TOUCHED / 2,
        "{counters:?}"
    );
    let states = bench.agent.page_states(false).unwrap();
    assert_eq!(states.ballooned, PageCount(TOUCHED / 2));
    let most = TOUCHED / 2 + AT_ONCE;
    assert!(
        (TOUCHED / 2..=most).contains(&states.private.0),
        "{states:?}"
    );
    (0..TOUCHED)
        .filter(|&page| !balloon(page))
        .for_each(|page| check(&bench.ram, page, 1));
}

/// What it waits for would be told it by the host, which it does not hear meanwhile.
#[test]
fn who_hears_the_host_does_not_wait_for_room() {
    const TOUCHED: usize = 40;
    let path = tempfile::NamedTempFile::new().unwrap();
    let read_only = File::open(path.path()).unwrap();
    let ram = GuestRam::new(PageCount(PAGES)).unwrap();
    let bench = Bench::of(ram, Outs::GoToFile(read_only, PageCount(PAGES)));
    (0..PAGES).for_each(|page| write_noise(&bench.ram, page, 1));
    bench.limit(Some(PageCount(3 << 10)));
    let swap = Arc::clone(bench.agent.swap().unwrap());
    bench.wait("the pool is full", |_| {
        let counters = swap.counters();
        counters.refused > 0 && counters.write_errors > 0
    });
    let out = || -> Vec<u64> {
        let is_out = |page: &u64| super::lock(&swap.log).is_out(page::Gfn(*page));
        (0..PAGES).filter(is_out).collect()
    };
    // There was more room once, so pages are not even exchanged.
    swap.best_room.store(0, Ordering::Relaxed);
    let (ram, others) = (bench.ram.clone(), out());
    // Others do, and take what room there is.
    let guest = thread::spawn(move || others.iter().for_each(|&page| check_noise(&ram, page, 1)));
    bench.wait("others wait", |_| swap.counters().waiting > 0);
    let (ram, mine) = (bench.ram.clone(), out());
    let hearer = Arc::clone(&swap);
    let hears = thread::spawn(move || {
        hearer.keep_waiting_never();
        let mine = mine.iter().rev().take(TOUCHED);
        mine.for_each(|&page| check_noise(&ram, page, 1));
    });
    bench.wait("it has come", |_| hears.is_finished());
    hears.join().unwrap();
    assert!(!guest.is_finished());
    bench.limit(None);
    bench.wait("they do as well", |_| guest.is_finished());
    guest.join().unwrap();
    bench.check_log();
}

/// As a file system does whose disk fails: what is in memory stays there.
#[test]
fn where_the_file_takes_nothing_nothing_is_lost_and_nobody_goes_on_beyond_his_limit() {
    const HELD: PageCount = PageCount(3 << 10);
    let path = tempfile::NamedTempFile::new().unwrap();
    let read_only = File::open(path.path()).unwrap();
    let ram = GuestRam::new(PageCount(PAGES)).unwrap();
    let bench = Bench::of(ram, Outs::GoToFile(read_only, PageCount(PAGES)));
    (0..PAGES).for_each(|page| write_noise(&bench.ram, page, 1));
    bench.limit(Some(HELD));
    bench.wait("the pool is full", |bench| {
        let counters = bench.agent.swap().unwrap().counters();
        counters.refused > 0 && counters.write_errors > 0
    });
    bench.check_log();
    let ram = bench.ram.clone();
    let reader = thread::spawn(move || (0..PAGES).for_each(|page| check_noise(&ram, page, 1)));
    bench.wait(
        "who touches what is out comes in its place, or waits for room",
        |bench| {
            let is_stalled = bench.agent.swap().unwrap().counters().is_stalled;
            is_stalled || reader.is_finished()
        },
    );
    bench.limit(None);
    reader.join().unwrap();
    bench.check_log();
}

/// What came back as it left and is written while no limit stands goes out as it is now.
#[test]
fn what_is_written_without_a_limit_is_not_taken_for_what_came_back() {
    let bench = Bench::with_file(GuestRam::new(PageCount(PAGES)).unwrap());
    (0..PAGES).for_each(|page| write_noise(&bench.ram, page, 1));
    bench.limit(Some(HOLD));
    bench.wait("much goes out", |bench| bench.held() <= HOLD);
    bench.limit(None);
    (0..PAGES).for_each(|page| check_noise(&bench.ram, page, 1));
    let is_let_go = |bench: &Bench| {
        let log = super::lock(&bench.agent.swap().unwrap().log);
        (0..PAGES).all(|page| !log.is_kept(Gfn(page)))
    };
    bench.wait("nothing is guarded", is_let_go);
    (0..PAGES).for_each(|page| write_noise(&bench.ram, page, 2));
    bench.limit(Some(HOLD));
    bench.wait("much goes out again", |bench| bench.held() <= HOLD);
    (0..PAGES).for_each(|page| check_noise(&bench.ram, page, 2));
}

#[test]
fn a_file_that_cannot_be_read_is_the_end_and_never_a_wrong_byte() {
    let why = is_the_end(|bench, _| {
        // Where nothing is mapped the kernel reads EIO.
        let unreadable = Arc::new(File::open("/proc/self/mem").unwrap());
        let swap = bench.agent.swap().unwrap();
        *super::lock(&swap.file.as_ref().unwrap().instead) = Some(unreadable);
    });
    assert!(why.contains("Input/output error"), "{why}");
}

/// A disk of noise, all of which a guest has read: each of its pages into that of the same number.
struct ReadDisk {
    bench: Bench,
    image: File,
}

impl ReadDisk {
    const NUMBER: u8 = 1;

    /// While the VM had a limit, or before.
    fn new(is_limited: bool) -> Self {
        let (ram, image) = (
            GuestRam::new(PageCount(PAGES)).unwrap(),
            tempfile::tempfile().unwrap(),
        );
        let disks = vec![None, Some(Arc::new(image.try_clone().unwrap()))];
        let outs = Outs::GoToFile(tempfile::tempfile().unwrap(), PageCount(PAGES));
        let bench = Bench::with_disks(ram, outs, disks);
        (0..PAGES).for_each(|page| write_noise(&bench.ram, page, 1));
        let mut content = vec![0; 1 << 20];
        for position in (0..PAGES * PAGE_SIZE).step_by(content.len()) {
            let (memory, start) = (bench.ram.memory(), GuestAddress(position));
            memory.read_slice(&mut content, start).unwrap();
            image.write_all_at(&content, position).unwrap();
            let disks = bench.agent.guest_disks().unwrap();
            disks.set_limited(is_limited);
            disks.was_read(
                Self::NUMBER,
                position,
                memory,
                (start, content.len() as u64),
            );
        }
        Self { bench, image }
    }

    /// What becomes of it when something happens to the disk that has most of its memory.
    fn loses_a_page_when(&self, happens: impl FnOnce(&File)) -> String {
        self.bench.limit(Some(PageCount(3 << 10)));
        self.bench.wait("much is left to the disk", |bench| {
            bench.agent.swap().unwrap().counters().left_to_disks > PAGES / 2
        });
        happens(&self.image);
        self.bench.loses_a_page()
    }
}

fn is_left_to_the_disk_unless_it_was_written(is_limited: bool) {
    const HELD: PageCount = PageCount(3 << 10);
    let ReadDisk { bench, .. } = ReadDisk::new(is_limited);
    let version = |page: u64| if page.is_multiple_of(5) { 2 } else { 1 };
    (0..PAGES)
        .step_by(5)
        .for_each(|page| write_noise(&bench.ram, page, 2));
    bench.limit(Some(HELD));
    bench.wait("all but what may be held goes out", |bench| {
        bench.held() <= HELD
    });
    let swap = bench.agent.swap().unwrap();
    assert!(
        swap.counters().left_to_disks > PAGES / 2,
        "{:?}",
        swap.counters()
    );
    let states = bench.agent.page_states(true).unwrap();
    assert!(states.swapped > PageCount(PAGES / 2), "{states:?}");
    assert_eq!(states.total(), PageCount(PAGES));
    for page in 0..PAGES {
        check_noise(&bench.ram, page, version(page));
    }
    assert!(swap.counters().disk_in > PAGES / 2, "{:?}", swap.counters());
    bench.check_log();
    bench.limit(None);
    bench.wait("all is back", |bench| {
        bench.agent.swap().unwrap().out() == PageCount(0)
    });
    (0..PAGES).for_each(|page| check_noise(&bench.ram, page, version(page)));
}

#[test]
fn what_a_disk_has_is_left_to_it_unless_it_was_written_since() {
    is_left_to_the_disk_unless_it_was_written(true);
}

#[test]
fn what_was_read_before_there_was_a_limit_is_compared_with_the_kernels_cache() {
    is_left_to_the_disk_unless_it_was_written(false);
}

#[test]
fn a_disk_that_somebody_changes_is_the_end_and_never_a_wrong_byte() {
    let why = ReadDisk::new(true).loses_a_page_when(|image| {
        for position in (8..PAGES * PAGE_SIZE).step_by(1024) {
            image.write_all_at(&[0x5a, 0xa5, 0x5a], position).unwrap();
        }
    });
    assert!(why.contains("its disk 1, byte"), "{why}");
}

#[test]
fn a_disk_that_is_cut_is_the_end_and_never_a_wrong_byte() {
    let why = ReadDisk::new(true).loses_a_page_when(|image| image.set_len(0).unwrap());
    assert!(
        why.contains("cannot be read from the guest's disk 1"),
        "{why}"
    );
}

fn a_step_is_missed(step: Step) {
    is_missed(step, || {
        let ram = GuestRam::with_large_pages(PageCount(PAGES)).unwrap();
        // Only what comes from a file is kept.
        hammer(&Bench::with_file(ram), true, 4);
    });
}

#[test]
fn that_holes_wait_is_missed() {
    a_step_is_missed(Step::HolesWait);
}

#[test]
fn that_writers_wait_is_missed() {
    a_step_is_missed(Step::WritersWait);
}

#[test]
fn that_what_comes_to_be_read_is_protected_is_missed() {
    a_step_is_missed(Step::ReadComesProtected);
}

#[test]
fn that_it_stays_protected_is_missed() {
    a_step_is_missed(Step::StaysProtected);
}

#[test]
fn that_what_is_written_is_forgotten_is_missed() {
    a_step_is_missed(Step::WrittenIsForgotten);
}

#[test]
fn that_what_is_let_go_is_forgotten_is_missed() {
    a_step_is_missed(Step::LetGoIsForgotten);
}

#[test]
fn that_what_is_large_is_whole_is_missed() {
    a_step_is_missed(Step::LargeIsWhole);
}

#[test]
fn that_what_is_given_up_is_forgotten_is_missed() {
    is_missed(
        Step::GivenUpIsForgotten,
        what_a_guest_gives_up_is_not_brought_back,
    );
}
