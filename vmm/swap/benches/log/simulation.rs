//! The paper's simulation (section 3.5) with the real log: a disk with so many pages that each step overwrites one of.

use page::{Gfn, PAGE_BYTES, PageCount, Random};
use swap::figures::Tier;
use swap::{
    Cleaning, CleaningPolicy, Config, Key, LEAST_POOL_SEGMENTS, Log, PageBytes, Refused, Sealer,
    When, Work,
};

/// Small, so that there are many, and many records in each: some 250, as the paper's segments of 1 MiB have files of 4 KiB.
const SEGMENT_BYTES: usize = 64 << 10;
const SLOTS: u32 = 256;
/// Of noise in a page: makes records of about 256 bytes.
const DISTINCT: usize = 200;
/// Overwrites of each page on average: until the disk is as it will be, and then to count.
const WARM_UP: u64 = 20;
const COUNTED: u64 = 12;

/// Which page is overwritten next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Uniform,
    /// Nine of ten times one of a tenth of the pages.
    HotAndCold,
}

impl Pattern {
    fn next(self, random: &mut Random, pages: u64) -> u64 {
        let hot = pages / 10;
        match self {
            Self::HotAndCold if random.below(10) > 0 => random.below(hot),
            Self::HotAndCold => hot + random.below(pages - hot),
            Self::Uniform => random.below(pages),
        }
    }
}

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Needed bytes of a hundred that the file has.
    pub(crate) percent: u64,
    pub(crate) policy: CleaningPolicy,
    pub(crate) pattern: Pattern,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Result {
    pub(crate) write_cost: f64,
    /// Of the segments that were cleaned, on average.
    pub(crate) cleaned_at: f64,
    /// At the end.
    pub(crate) file: Tier,
}

pub(crate) fn simulate(setting: Setting) -> Result {
    let mut disk = Disk::new(setting);
    let pages = disk.log.config().pages.0;
    let mut random = Random::new(1);
    (0..pages).for_each(|gfn| disk.overwrite(gfn));
    let mut go = |disk: &mut Disk, rounds: u64| {
        for _ in 0..rounds * pages {
            disk.overwrite(setting.pattern.next(&mut random, pages));
        }
        disk.log.figures()
    };
    let before = go(&mut disk, WARM_UP).totals;
    let after = go(&mut disk, COUNTED);
    let totals = after.totals;
    let written = totals.written_bytes - before.written_bytes;
    let rewritten = totals.rewritten_bytes - before.rewritten_bytes;
    let read = totals.read_bytes - before.read_bytes;
    let moved = totals.moved_from_file.bytes - before.moved_from_file.bytes;
    Result {
        write_cost: (read + written) as f64 / (written - rewritten) as f64,
        cleaned_at: moved as f64 / read.max(1) as f64,
        file: after.file,
    }
}

struct Disk {
    log: Log,
    sealer: Sealer,
    bytes: Vec<u8>,
    page: PageBytes,
}

impl Disk {
    fn new(setting: Setting) -> Self {
        let (sealer, page) = (Sealer::new(&Key([3; 32])), page());
        let record = match sealer.seal(Gfn(0), &page).unwrap() {
            swap::Sealed::Record(record) => record.bytes().len() as u64,
            swap::Sealed::Filled(..) => unreachable!("it has noise"),
        };
        let bytes = u64::from(SLOTS) * SEGMENT_BYTES as u64;
        let pages = bytes / record * setting.percent / 100;
        let log = Log::new(Config {
            pages: PageCount(pages),
            segment_bytes: SEGMENT_BYTES,
            // As little as can be: what is overwritten in memory is not seen by the disk.
            pool_segments: LEAST_POOL_SEGMENTS,
            file_slots: SLOTS,
            policy: setting.policy,
        });
        Self {
            log: log.unwrap(),
            sealer,
            bytes: vec![0; SLOTS as usize * SEGMENT_BYTES],
            page,
        }
    }

    fn overwrite(&mut self, gfn: u64) {
        let sealed = self.sealer.seal(Gfn(gfn), &self.page).unwrap();
        while let Err(refused) = self.log.append(&sealed) {
            assert_eq!(refused, Refused::Wait, "the file is too small");
            self.work();
        }
    }

    fn work(&mut self) {
        match self.log.next_work(When::Now) {
            Some(Work::Write(order)) => {
                let start = usize::try_from(order.position).unwrap();
                self.bytes[start..start + SEGMENT_BYTES].copy_from_slice(&order.bytes);
                self.log.written(order);
            }
            Some(Work::Clean(victim)) => {
                let read = victim.read().map(|range| {
                    let start = usize::try_from(range.position).unwrap();
                    self.bytes[start..start + range.length].to_vec()
                });
                let mut job = victim.into_job(read.unwrap_or_default());
                loop {
                    match self.log.clean(&mut job, 1000) {
                        Cleaning::More => {}
                        Cleaning::NoRoom => self.work(),
                        Cleaning::Done | Cleaning::Unreadable => return,
                    }
                }
            }
            None => unreachable!("the log has nothing to do and no room"),
        }
    }
}

fn page() -> PageBytes {
    let (mut random, mut page) = (Random::new(7), [0; PAGE_BYTES]);
    page[..DISTINCT].fill_with(|| random.next().to_le_bytes()[0]);
    page
}
