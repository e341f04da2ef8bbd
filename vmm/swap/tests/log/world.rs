//! A guest, a disk and a pager around a log: simple, slow, and checked at every step.

use page::{Gfn, PAGE_BYTES, PageCount, Random};
use std::collections::BTreeMap;
use swap::{
    AfterFailure, CleanJob, Cleaning, CleaningPolicy, Config, Damaged, DiskPage, FileRange, Found,
    Key, Located, Log, PageBytes, Refused, Sealed, Sealer, Source, Stored, Victim, When, Work,
    WriteOrder, filled_page,
};

/// The least that holds a few pages that do not shrink.
pub(crate) const SEGMENT: usize = 20 << 10;

pub(crate) fn config(pages: u64, pool_segments: usize, file_slots: u32) -> Config {
    Config {
        pages: PageCount(pages),
        segment_bytes: SEGMENT,
        pool_segments,
        file_slots,
        policy: CleaningPolicy::CostBenefit,
    }
}

/// `distinct` bytes of noise and then zeros: about as long when it is compressed.
pub(crate) fn contents(seed: u64, distinct: usize) -> PageBytes {
    let mut random = Random::new(seed);
    let mut page = [0; PAGE_BYTES];
    page[..distinct].fill_with(|| random.next().to_le_bytes()[0]);
    page
}

/// A guest's page: in its memory, or out.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) contents: PageBytes,
    pub(crate) is_out: bool,
    /// Whether it was written since it came back.
    pub(crate) is_changed: bool,
}

pub(crate) struct World {
    pub(crate) log: Log,
    pub(crate) sealer: Sealer,
    pub(crate) disk: Vec<u8>,
    /// A disk of the guest's own, page by page.
    pub(crate) guest_disk: Vec<PageBytes>,
    pub(crate) pages: BTreeMap<u64, Page>,
    pub(crate) writes: Vec<WriteOrder>,
    pub(crate) job: Option<CleanJob>,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            disk: vec![0; config.file_slots as usize * config.segment_bytes],
            guest_disk: Vec::new(),
            log: Log::new(config).unwrap(),
            sealer: Sealer::new(&Key([9; 32])),
            pages: BTreeMap::new(),
            writes: Vec::new(),
            job: None,
        }
    }

    /// The guest writes a page that is in its memory.
    pub(crate) fn write(&mut self, gfn: u64, contents: PageBytes) {
        assert!(self.pages.get(&gfn).is_none_or(|page| !page.is_out));
        self.log.forget(Gfn(gfn));
        let page = Page {
            contents,
            is_out: false,
            is_changed: true,
        };
        self.pages.insert(gfn, page);
    }

    /// A page that is in memory goes out, if the log takes it.
    pub(crate) fn out(&mut self, gfn: u64) -> Result<(), Refused> {
        let page = self.pages.get_mut(&gfn).unwrap();
        assert!(!page.is_out);
        let is_kept = self.log.is_kept(Gfn(gfn));
        assert!(!(is_kept && page.is_changed), "page {gfn} was forgotten");
        let has_record = !page.is_changed && self.log.keep_out(Gfn(gfn));
        assert_eq!(has_record, is_kept);
        if !has_record {
            let sealed = self.sealer.seal(Gfn(gfn), &page.contents).unwrap();
            assert_eq!(sealed.gfn(), Gfn(gfn));
            let is_filled = matches!(sealed, Sealed::Filled(..));
            let appended = self.log.append(&sealed);
            assert!(appended.is_ok() || !is_filled, "a word needs no room");
            appended?;
        }
        page.is_out = true;
        Ok(())
    }

    /// A page that is in memory goes out, for a disk of the guest has it.
    pub(crate) fn leave_to_disk(&mut self, gfn: u64) {
        let number = self.guest_disk.len() as u64;
        let page = self.pages.get_mut(&gfn).unwrap();
        self.guest_disk.push(page.contents);
        page.is_out = true;
        let there = DiskPage::new(63, number, u64::MAX - number).unwrap();
        self.log.leave_to_disk(Gfn(gfn), there);
        assert!(self.log.is_on_disk(Gfn(gfn), there));
    }

    fn read_disk(&self, page: DiskPage) -> PageBytes {
        assert_eq!((page.disk(), page.hash), (63, u64::MAX - page.page()));
        self.guest_disk[usize::try_from(page.page()).unwrap()]
    }

    /// The same, with all the work that it takes.
    pub(crate) fn out_with_work(&mut self, gfn: u64) -> Result<(), Refused> {
        for _ in 0..1000 {
            match self.out(gfn) {
                Err(Refused::Wait) => self.work_once(When::Now),
                outcome => return outcome,
            }
        }
        panic!("page {gfn}: work without an end");
    }

    pub(crate) fn fetch(&self, stored: &Stored) -> Vec<u8> {
        match &stored.source {
            Source::Memory(bytes) => bytes.clone(),
            Source::File(range) => self.read(range),
        }
    }

    pub(crate) fn read(&self, range: &FileRange) -> Vec<u8> {
        let start = usize::try_from(range.position).unwrap();
        self.disk[start..start + range.length].to_vec()
    }

    /// What the log has of a page that is out.
    pub(crate) fn look(&self, gfn: u64, together: usize) -> Result<PageBytes, Damaged> {
        match self.log.find(Gfn(gfn), together).expect("it is out") {
            Found::Filled(word) => Ok(filled_page(word)),
            Found::Stored(stored) => self.open(&stored, &self.fetch(&stored)),
            Found::OnDisk(page) => Ok(self.read_disk(page)),
        }
    }

    /// Opens all that was found, and checks the neighbours.
    pub(crate) fn open(&self, stored: &Stored, bytes: &[u8]) -> Result<PageBytes, Damaged> {
        let open = |record: &Located| {
            let mut page = [0; PAGE_BYTES];
            let mut bytes = bytes[record.range()].to_vec();
            let is_open = self
                .sealer
                .open((record.gfn, record.generation), &mut bytes, &mut page);
            is_open.map(|()| page)
        };
        for neighbour in &stored.records[1..] {
            if self.is_newest(neighbour)
                && let Ok(opened) = open(neighbour)
            {
                let page = &self.pages[&neighbour.gfn.0];
                assert!(opened == page.contents, "neighbour {:?}", neighbour.gfn);
            }
        }
        open(&stored.records[0])
    }

    /// A read takes its time: its page may have gone out again since.
    fn is_newest(&self, found: &Located) -> bool {
        let now = self.log.find(found.gfn, 0);
        matches!(now, Some(Found::Stored(now)) if now.records[0].generation == found.generation)
    }

    /// A page comes back.
    pub(crate) fn bring(&mut self, gfn: u64) {
        let brought = match self.log.find(Gfn(gfn), 0).expect("it is out") {
            Found::Filled(word) => {
                self.log.forget(Gfn(gfn));
                filled_page(word)
            }
            Found::Stored(stored) => {
                let contents = self.open(&stored, &self.fetch(&stored)).unwrap();
                assert!(self.log.bring(Gfn(gfn), stored.records[0].generation));
                contents
            }
            Found::OnDisk(page) => {
                assert!(self.log.is_on_disk(Gfn(gfn), page));
                self.log.forget(Gfn(gfn));
                self.read_disk(page)
            }
        };
        let page = self.pages.get_mut(&gfn).unwrap();
        assert!(page.contents == brought, "page {gfn}");
        (page.is_out, page.is_changed) = (false, false);
    }

    /// The guest gives a page up, wherever it is.
    pub(crate) fn give_up(&mut self, gfn: u64) {
        self.log.forget(Gfn(gfn));
        self.pages.remove(&gfn);
    }

    /// Takes work; writes are under way then, and what was in their slots is no more.
    pub(crate) fn take_work(&mut self, when: When) -> bool {
        match self.log.next_work(when) {
            None => return false,
            Some(Work::Write(order)) => {
                self.slot(&order).fill(0xdd);
                self.writes.push(order);
            }
            Some(Work::Clean(victim)) => {
                assert!(self.job.is_none(), "one at a time");
                self.job = Some(self.job(victim));
            }
        }
        true
    }

    fn job(&self, victim: Victim) -> CleanJob {
        let read = victim.read().map(|range| self.read(range));
        victim.into_job(read.unwrap_or_default())
    }

    fn slot(&mut self, order: &WriteOrder) -> &mut [u8] {
        let start = usize::try_from(order.position).unwrap();
        &mut self.disk[start..start + order.bytes.len()]
    }

    pub(crate) fn finish_write(&mut self, index: usize, failure: Option<AfterFailure>) {
        if self.writes.is_empty() {
            return;
        }
        let order = self.writes.swap_remove(index % self.writes.len());
        match failure {
            None => {
                let bytes = order.bytes.to_vec();
                self.slot(&order).copy_from_slice(&bytes);
                self.log.written(order);
            }
            Some(after) => self.log.write_failed(order, after),
        }
    }

    /// Goes on with cleaning.
    pub(crate) fn clean(&mut self, records: usize) -> Option<Cleaning> {
        let cleaning = self.log.clean(self.job.as_mut()?, records);
        if matches!(cleaning, Cleaning::Done | Cleaning::Unreadable) {
            self.job = None;
        }
        Some(cleaning)
    }

    /// One piece of work from beginning to end, as a pager does it.
    pub(crate) fn work_once(&mut self, when: When) {
        self.take_work(when);
        while let Some(cleaning) = self.clean(3) {
            if cleaning == Cleaning::NoRoom && self.writes.is_empty() && !self.take_work(When::Now)
            {
                self.job = None;
            }
            self.finish_write(0, None);
        }
        while !self.writes.is_empty() {
            self.finish_write(0, None);
        }
    }

    pub(crate) fn work_until_at_rest(&mut self) {
        self.job = None;
        while !self.writes.is_empty() {
            self.finish_write(0, None);
        }
        for _ in 0..10_000 {
            if !self.take_work(When::Idle) {
                return;
            }
            self.work_once(When::Idle);
        }
        panic!("work without an end");
    }

    /// Each page is found as it left, or not at all, and the counts agree.
    pub(crate) fn check(&self) {
        self.log.audit().unwrap();
        for (&gfn, page) in &self.pages {
            assert_eq!(self.log.is_out(Gfn(gfn)), page.is_out, "page {gfn}");
            if page.is_out {
                assert!(
                    self.look(gfn, 2 * SEGMENT).unwrap() == page.contents,
                    "page {gfn}"
                );
            }
        }
        self.check_counts();
    }

    fn check_counts(&self) {
        let figures = self.log.figures();
        let (memory, file) = (figures.memory, figures.file);
        let stored = memory.needed.records + file.needed.records;
        let out = self.pages.values().filter(|page| page.is_out).count();
        assert_eq!(
            stored + figures.filled_pages + figures.disk_pages,
            out as u64
        );
        assert_eq!(self.log.out().0, out as u64);
        assert_eq!(figures.original_bytes, stored * PAGE_BYTES as u64);
        assert!(memory.segments <= self.log.config().pool_segments as u64);
        let slots = figures.slots;
        let in_slots = file.segments + self.writes.len() as u64;
        assert_eq!(
            slots.total,
            in_slots + slots.free + slots.waiting + slots.retired
        );
    }
}
