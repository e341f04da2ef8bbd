//! What each step costs, as medians over rounds.

use page::{Gfn, PAGE_BYTES, PageCount, Random};
use std::hint::black_box;
use std::time::{Duration, Instant};
use swap::{
    Cleaning, CleaningPolicy, Config, Found, Key, LEAST_POOL_SEGMENTS, Log, PageBytes, Sealed,
    Sealer, Source, When, Work,
};

const ROUNDS: usize = 21;
const PAGES: u64 = 1000;

pub(crate) fn print() {
    println!("\n| step | µs a page: median | least | most |\n| --- | --- | --- | --- |");
    let sealer = Sealer::new(&Key([5; 32]));
    for (name, page) in [
        (
            "compressible, to 1.7 KiB",
            compressible as fn(u64) -> PageBytes,
        ),
        ("incompressible", noise),
    ] {
        let pages: Vec<PageBytes> = (0..PAGES).map(page).collect();
        seal(&format!("seal, {name}"), &sealer, &pages);
        open(&format!("open, {name}"), &sealer, &pages);
    }
    seal("seal, of one word", &sealer, &vec![[0; PAGE_BYTES]; 1000]);
    let records = records(&sealer);
    append_and_find(&records);
    clean(&sealer);
    pick(&sealer);
}

fn noise(seed: u64) -> PageBytes {
    let (mut random, mut page) = (Random::new(seed), [0; PAGE_BYTES]);
    page.fill_with(|| random.next().to_le_bytes()[0]);
    page
}

/// 15 bytes of noise, 32 that stood somewhere before, and again: a record as long as those of a running Linux guest are on
/// average, and in as many pieces.
fn compressible(seed: u64) -> PageBytes {
    let (mut random, mut page) = (Random::new(seed), noise(seed));
    for at in (47..PAGE_BYTES - 32).step_by(47) {
        let from = usize::try_from(random.below(at as u64 - 32)).unwrap();
        page.copy_within(from..from + 32, at);
    }
    page
}

fn row(name: &str, mut round: impl FnMut() -> (Duration, u64)) {
    let mut each: Vec<f64> = (0..ROUNDS)
        .map(|_| round())
        .map(|(time, count)| time.as_secs_f64() * 1e6 / count as f64)
        .collect();
    each.sort_by(f64::total_cmp);
    println!(
        "| {name} | {:.3} | {:.3} | {:.3} |",
        each[ROUNDS / 2],
        each[0],
        each[ROUNDS - 1]
    );
}

fn seal(name: &str, sealer: &Sealer, pages: &[PageBytes]) {
    row(name, || {
        let started = Instant::now();
        for (gfn, page) in (0..).zip(pages) {
            black_box(sealer.seal(Gfn(gfn), page).unwrap());
        }
        (started.elapsed(), PAGES)
    });
}

fn open(name: &str, sealer: &Sealer, pages: &[PageBytes]) {
    row(name, || {
        let sealed =
            (0..)
                .zip(pages)
                .map(|(gfn, page)| match sealer.seal(Gfn(gfn), page).unwrap() {
                    Sealed::Record(record) => (record.header(), record.bytes().to_vec()),
                    Sealed::Filled(..) => unreachable!("it has noise"),
                });
        let mut sealed: Vec<_> = sealed.collect();
        let mut page = [0; PAGE_BYTES];
        let started = Instant::now();
        for (header, bytes) in &mut sealed {
            sealer
                .open((header.gfn, header.generation), bytes, &mut page)
                .unwrap();
            black_box(&page);
        }
        (started.elapsed(), PAGES)
    });
}

const MANY: u64 = 20_000;

fn records(sealer: &Sealer) -> Vec<Sealed> {
    let page = compressible(1);
    (0..MANY)
        .map(|gfn| sealer.seal(Gfn(gfn), &page).unwrap())
        .collect()
}

fn log() -> Log {
    let config = Config {
        pages: PageCount(1 << 20),
        segment_bytes: 1 << 20,
        pool_segments: 200,
        file_slots: 0,
        policy: CleaningPolicy::CostBenefit,
    };
    Log::new(config).unwrap()
}

fn filled(records: &[Sealed]) -> Log {
    let mut log = log();
    records
        .iter()
        .for_each(|sealed| log.append(sealed).unwrap());
    log
}

fn append_and_find(records: &[Sealed]) {
    row("append (new memory, first touched)", || {
        let mut log = log();
        let started = Instant::now();
        records
            .iter()
            .for_each(|sealed| log.append(sealed).unwrap());
        (started.elapsed(), MANY)
    });
    let mut log = filled(records);
    let mut random = Random::new(1);
    row("find at random, with a copy of the record", || {
        let started = Instant::now();
        for _ in 0..PAGES {
            black_box(log.find(Gfn(random.below(MANY)), 0));
        }
        (started.elapsed(), PAGES)
    });
    row("look-up in the index at random", || {
        let started = Instant::now();
        for _ in 0..PAGES {
            black_box(log.is_out(Gfn(random.below(MANY))));
        }
        (started.elapsed(), PAGES)
    });
    row("find eight neighbours at once, a page of them", || {
        let started = Instant::now();
        let mut found = 0;
        for _ in 0..PAGES {
            if let Some(Found::Stored(stored)) = log.find(Gfn(random.below(MANY)), 14_000) {
                found += stored.records.len() as u64;
                assert!(matches!(stored.source, Source::Memory(_)));
            }
        }
        (started.elapsed(), found)
    });
    row("bring, and out again as it was", || {
        let generations: Vec<_> = (0..PAGES).map(|gfn| generation(&log, gfn)).collect();
        let started = Instant::now();
        for (gfn, generation) in (0..).zip(generations) {
            assert!(log.bring(Gfn(gfn), generation) && log.keep_out(Gfn(gfn)));
        }
        (started.elapsed(), PAGES)
    });
}

fn generation(log: &Log, gfn: u64) -> swap::Generation {
    match log.find(Gfn(gfn), 0) {
        Some(Found::Stored(stored)) => stored.records[0].generation,
        found => panic!("{found:?}"),
    }
}

/// Every other page is given up; what is left moves together.
fn clean(sealer: &Sealer) {
    let mut steps = Vec::new();
    row("clean, for each record moved", || {
        let mut log = filled(&records(sealer));
        (0..MANY).step_by(2).for_each(|gfn| log.forget(Gfn(gfn)));
        let mut time = Duration::ZERO;
        while let Some(Work::Clean(victim)) = log.next_work(When::Idle) {
            let started = Instant::now();
            let mut job = victim.into_job(Vec::new());
            loop {
                let step = Instant::now();
                let cleaning = log.clean(&mut job, 64);
                steps.push(step.elapsed().as_secs_f64() * 1e6);
                if cleaning != Cleaning::More {
                    break;
                }
            }
            time += started.elapsed();
        }
        let moved = log.figures().totals.moved_in_memory.records;
        (time, moved)
    });
    steps.sort_by(f64::total_cmp);
    let [median, high] = [2, 100].map(|part| steps[steps.len() - 1 - steps.len() / part]);
    println!(
        "\nA step of 64 records of the cleaner: {median:.1} µs, one of a hundred more than {high:.1}."
    );
    let log = filled(&records(sealer));
    let figures = log.figures();
    let empty = self::log().figures().index_bytes;
    let each = (figures.index_bytes - empty) as f64 / MANY as f64;
    println!("Index: {each:.1} bytes for each page that is out.");
}

/// Segments of a file of 16 GiB, were they of 1 MiB. These are smaller: only their number counts.
const SEGMENTS: u32 = 16_384;

fn pick(sealer: &Sealer) {
    let config = Config {
        pages: PageCount(1 << 20),
        segment_bytes: 20 << 10,
        pool_segments: LEAST_POOL_SEGMENTS,
        file_slots: SEGMENTS,
        policy: CleaningPolicy::CostBenefit,
    };
    let (mut log, page) = (Log::new(config).unwrap(), noise(1));
    for gfn in (0..1 << 20).map(Gfn) {
        let sealed = sealer.seal(gfn, &page).unwrap();
        if log.append(&sealed).is_err() {
            match log.next_work(When::Now) {
                Some(Work::Write(order)) => log.written(order),
                _ => break,
            }
            log.append(&sealed).unwrap();
        }
        if gfn.0 % 4 == 0 {
            log.forget(gfn);
        }
    }
    println!("\n| step | µs: median | least | most |\n| --- | --- | --- | --- |");
    row(
        &format!(
            "pick one of {} segments to clean",
            log.figures().file.segments
        ),
        || {
            let started = Instant::now();
            assert!(matches!(log.next_work(When::Now), Some(Work::Clean(_))));
            (started.elapsed(), 1)
        },
    );
    row("all figures of them", || {
        let started = Instant::now();
        black_box(log.figures());
        (started.elapsed(), 1)
    });
}
