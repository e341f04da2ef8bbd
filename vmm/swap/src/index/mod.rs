//! Where each page is that is out, or kept.
//!
//! For every block of 512 pages there is a table as long as something of the block is in it: a bit for each page, and the
//! entries of those that have one, in order. An entry has 14 bytes, so a block that is out whole takes 14.2 bytes a page, and
//! one of which a single page is out 0.3 KiB.

mod entry;

use page::{Gfn, PageCount};

pub(crate) use entry::{Entry, MOST_SEGMENTS, Place};

/// Pages of a block.
const BLOCK_PAGES: usize = 512;
/// Entries by which a table grows: what it wastes at most.
const GROWTH: usize = 16;

#[derive(Debug)]
pub(crate) struct Index {
    pages: PageCount,
    /// By block.
    tables: Vec<Option<Box<Table>>>,
}

impl Index {
    pub(crate) fn new(pages: PageCount) -> Self {
        let blocks = usize::try_from(pages.0).expect("a VM fits this machine");
        let tables = (0..blocks.div_ceil(BLOCK_PAGES)).map(|_| None).collect();
        Self { pages, tables }
    }

    pub(crate) fn get(&self, gfn: Gfn) -> Option<Entry> {
        let (block, index) = self.place(gfn);
        self.tables[block].as_ref()?.get(index)
    }

    /// Puts an entry in the page's place, and returns what was there.
    pub(crate) fn set(&mut self, gfn: Gfn, entry: Entry) -> Option<Entry> {
        let (block, index) = self.place(gfn);
        self.tables[block]
            .get_or_insert_default()
            .set(index, &entry)
    }

    pub(crate) fn remove(&mut self, gfn: Gfn) -> Option<Entry> {
        let (block, index) = self.place(gfn);
        let table = self.tables[block].as_mut()?;
        let removed = table.remove(index);
        if table.entries.is_empty() {
            self.tables[block] = None;
        }
        removed
    }

    /// Whether the pages are of one block: neighbours are looked for no further.
    pub(crate) fn is_one_block(a: Gfn, b: Gfn) -> bool {
        let block = |gfn: Gfn| gfn.0 / BLOCK_PAGES as u64;
        block(a) == block(b)
    }

    pub(crate) fn pages(&self) -> PageCount {
        self.pages
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Gfn, Entry)> {
        (0..self.tables.len()).flat_map(|block| self.block(block))
    }

    /// The entries of one block, of [`Self::blocks`].
    pub(crate) fn block(&self, block: usize) -> impl Iterator<Item = (Gfn, Entry)> {
        let gfn = move |index: usize| Gfn((block * BLOCK_PAGES + index) as u64);
        let table = self.tables[block].iter();
        table.flat_map(move |table| table.iter().map(move |(index, entry)| (gfn(index), entry)))
    }

    pub(crate) fn blocks(&self) -> usize {
        self.tables.len()
    }

    /// The first page from this one on of which `is` is so.
    pub(crate) fn first(&self, from: Gfn, is: impl Fn(&Entry) -> bool) -> Option<Gfn> {
        let block = usize::try_from(from.0).ok()? / BLOCK_PAGES;
        let mut entries = (block..self.tables.len()).flat_map(|block| self.block(block));
        entries
            .find(|(gfn, entry)| *gfn >= from && is(entry))
            .map(|(gfn, _)| gfn)
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        let tables = self.tables.iter().flatten();
        let in_tables: usize = tables
            .map(|table| size_of::<Table>() + table.entries.capacity() * entry::BYTES)
            .sum();
        self.tables.capacity() * size_of::<Option<Box<Table>>>() + in_tables
    }

    fn place(&self, gfn: Gfn) -> (usize, usize) {
        assert!(
            gfn.0 < self.pages.0,
            "gfn {:#x} of a VM that has {} pages",
            gfn.0,
            self.pages.0
        );
        let gfn = usize::try_from(gfn.0).expect("it is less than the pages");
        (gfn / BLOCK_PAGES, gfn % BLOCK_PAGES)
    }
}

#[derive(Debug, Default)]
struct Table {
    /// A bit for each page that has an entry.
    has: [u64; BLOCK_PAGES / 64],
    entries: Vec<entry::Packed>,
}

impl Table {
    fn has(&self, index: usize) -> bool {
        self.has[index / 64] >> (index % 64) & 1 == 1
    }

    /// How many entries come before the page's.
    fn rank(&self, index: usize) -> usize {
        let (word, bit) = (index / 64, index % 64);
        let before: u32 = self.has[..word].iter().map(|bits| bits.count_ones()).sum();
        let beside = (self.has[word] & ((1 << bit) - 1)).count_ones();
        (before + beside) as usize
    }

    fn get(&self, index: usize) -> Option<Entry> {
        self.has(index)
            .then(|| self.entries[self.rank(index)].unpack())
    }

    fn set(&mut self, index: usize, entry: &Entry) -> Option<Entry> {
        let rank = self.rank(index);
        if self.has(index) {
            let old = std::mem::replace(&mut self.entries[rank], entry.pack());
            return Some(old.unpack());
        }
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(GROWTH);
        }
        self.entries.insert(rank, entry.pack());
        self.has[index / 64] |= 1 << (index % 64);
        None
    }

    fn remove(&mut self, index: usize) -> Option<Entry> {
        if !self.has(index) {
            return None;
        }
        let removed = self.entries.remove(self.rank(index));
        self.has[index / 64] &= !(1 << (index % 64));
        if self.entries.capacity() >= self.entries.len() + 2 * GROWTH {
            self.entries.shrink_to(self.entries.len() + GROWTH);
        }
        Some(removed.unpack())
    }

    fn iter(&self) -> impl Iterator<Item = (usize, Entry)> {
        let present = (0..BLOCK_PAGES).filter(|&index| self.has(index));
        present.zip(self.entries.iter().map(|packed| packed.unpack()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_page::DiskPage;
    use crate::record::Generation;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PAGES: u64 = 1500;

    fn entry() -> impl Strategy<Value = Entry> {
        let place = (0..MOST_SEGMENTS, 0u32..1 << 21, 33u16..=4128, 1u64..1 << 48);
        (any::<u64>(), place, (0u8..64, 0u64..1 << 40), 0..4).prop_map(
            |(word, (segment, offset, length, generation), (disk, number), kind)| {
                let place = Place {
                    segment,
                    offset,
                    length,
                    generation: Generation(generation),
                };
                match kind {
                    0 => Entry::Filled(word),
                    1 => Entry::Needed(place),
                    2 => Entry::OnDisk(DiskPage::new(disk, number, word).unwrap()),
                    _ => Entry::Kept(place),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0..PAGES, prop::option::of(entry())), 0..600)) {
            let (mut index, mut model) = (Index::new(PageCount(PAGES)), BTreeMap::new());
            for (gfn, entry) in steps {
                let (ours, theirs) = match entry {
                    Some(entry) => (index.set(Gfn(gfn), entry), model.insert(gfn, entry)),
                    None => (index.remove(Gfn(gfn)), model.remove(&gfn)),
                };
                prop_assert_eq!(ours, theirs);
            }
            let all: Vec<_> = index.iter().map(|(gfn, entry)| (gfn.0, entry)).collect();
            prop_assert_eq!(all, model.iter().map(|(&gfn, &entry)| (gfn, entry)).collect::<Vec<_>>());
            let is = |entry: &Entry| matches!(entry, Entry::Filled(_));
            for gfn in 0..PAGES {
                prop_assert_eq!(index.get(Gfn(gfn)), model.get(&gfn).copied());
                let mut after = model.range(gfn..);
                let first = after.find(|(_, entry)| is(entry)).map(|(&gfn, _)| Gfn(gfn));
                prop_assert_eq!(index.first(Gfn(gfn), is), first);
            }
            prop_assert_eq!(index.first(Gfn(PAGES + 9999), is), None);
        }
    }

    #[test]
    fn a_page_that_is_out_takes_less_than_15_bytes_and_a_lone_one_less_than_a_third_of_a_kib() {
        let mut index = Index::new(PageCount(1 << 20));
        let empty = index.bytes();
        index.set(Gfn(7), Entry::Filled(0));
        assert!(index.bytes() - empty < 341, "{}", index.bytes() - empty);
        for gfn in 0..1 << 20 {
            index.set(Gfn(gfn), Entry::Filled(gfn));
        }
        let each = index.bytes() as f64 / f64::from(1 << 20);
        assert!(each < 15.0, "{each}");
    }

    #[test]
    fn a_block_of_which_nothing_is_out_has_no_table() {
        let mut index = Index::new(PageCount(PAGES));
        let empty = index.bytes();
        for gfn in 0..PAGES {
            index.set(Gfn(gfn), Entry::Filled(gfn));
        }
        for gfn in 0..PAGES {
            index.remove(Gfn(gfn));
        }
        assert_eq!(index.bytes(), empty);
    }

    #[test]
    #[should_panic = "gfn 0x5dc of a VM that has 1500 pages"]
    fn a_page_of_another_vm_is_none_of_ours() {
        Index::new(PageCount(PAGES)).get(Gfn(PAGES));
    }
}
