//! What the guest read from disks that it cannot write is there still, so such a page need not be stored when it goes out, if it
//! is as it was read. (`VSwapper`: Amit, Tsafrir and Schuster 2014.)
//!
//! Devices tell what was read where. It is a hint and no more: the guest may write to the page at any time, so what goes out is
//! compared with what came, by a hash whose secret nobody outside of this process has. What comes back is compared once more, for
//! somebody may have changed the disk meanwhile.

use crate::lock::lock;
use crate::memory::MemoryError;
use crate::memory::ram::{ClaimedGfn, RamLayout};
use page::{PAGE_BYTES, PAGE_SIZE};
use sharing::BLOCK_PAGES;
use std::fs::File;
use std::sync::{Arc, Mutex};
use swap::seal::repeated_word;
use swap::{DiskPage, PageBytes};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};
use xxhash_rust::xxh3::xxh3_64_with_secret;

/// What xxh3 takes.
const SECRET_BYTES: usize = 192;

/// For each page of a block what was read into it: 8 KiB.
type Block = Box<[Option<DiskPage>; BLOCK_PAGES]>;

/// The disks of a VM, and what of its memory came from them.
pub(crate) struct GuestDisks {
    layout: RamLayout,
    secret: [u8; SECRET_BYTES],
    /// By number: those that can only be read.
    disks: Vec<Option<Arc<File>>>,
    /// Of each block of the memory file, if anything was read into it.
    blocks: Mutex<Vec<Option<Block>>>,
}

impl GuestDisks {
    /// # Errors
    /// When the kernel gives no random numbers.
    pub(crate) fn new(
        layout: RamLayout,
        disks: Vec<Option<Arc<File>>>,
    ) -> Result<Self, MemoryError> {
        let mut secret = [0; SECRET_BYTES];
        super::fill_at_random(&mut secret)?;
        let blocks = layout.size().0.div_ceil(BLOCK_PAGES as u64);
        Ok(Self {
            layout,
            secret,
            disks,
            blocks: Mutex::new((0..blocks).map(|_| None).collect()),
        })
    }

    /// Whether nothing can be left to a disk.
    pub(crate) fn is_empty(&self) -> bool {
        self.disks.iter().all(Option::is_none)
    }

    /// The disk of this number, if the guest can only read it.
    pub(crate) fn file(&self, disk: u8) -> Option<&Arc<File>> {
        self.disks.get(usize::from(disk))?.as_ref()
    }

    /// The guest has read so many bytes from `offset` on of a disk into a stretch of its memory, and does not know yet.
    pub(crate) fn was_read(
        &self,
        disk: u8,
        offset: u64,
        memory: &GuestMemoryMmap,
        (start, bytes): (GuestAddress, u64),
    ) {
        let misaligned = |at: u64| at % PAGE_SIZE;
        // Where pages of one do not lie as pages of the other there is nothing to gain.
        if misaligned(start.raw_value()) != misaligned(offset) {
            return;
        }
        let before = start.raw_value().next_multiple_of(PAGE_SIZE) - start.raw_value();
        let whole = bytes.saturating_sub(before) / PAGE_SIZE;
        for number in 0..whole {
            let skipped = before + number * PAGE_SIZE;
            let address = start.unchecked_add(skipped);
            let mut content = [0; PAGE_BYTES];
            if memory.read_slice(&mut content, address).is_err() {
                return;
            }
            let claim = ClaimedGfn(address.raw_value() / PAGE_SIZE);
            let page = (offset + skipped) / PAGE_SIZE;
            if let Some(gfn) = self.layout.check(claim) {
                self.note(
                    self.layout.file_index(gfn),
                    DiskPage::new(disk, page, self.hash(&content)),
                );
            }
        }
    }

    fn note(&self, index: u64, page: Option<DiskPage>) {
        let (block, place) = place_of(index);
        let none = || Box::new([None; BLOCK_PAGES]);
        lock(&self.blocks)[block].get_or_insert_with(none)[place] = page;
    }

    /// Where a page of the memory file with this content can be left, if it came from there. One word again and again takes
    /// no room, so that is not looked for.
    pub(crate) fn find(&self, index: u64, content: &PageBytes) -> Option<DiskPage> {
        let (block, place) = place_of(index);
        let page = lock(&self.blocks)[block].as_ref()?[place]?;
        if !self.is(page, content) {
            // It is not compared again and again.
            self.note(index, None);
            return None;
        }
        repeated_word(content).is_none().then_some(page)
    }

    /// Whether that is the page.
    pub(crate) fn is(&self, page: DiskPage, content: &PageBytes) -> bool {
        self.hash(content) == page.hash
    }

    fn hash(&self, content: &PageBytes) -> u64 {
        xxh3_64_with_secret(content, &self.secret)
    }
}

fn place_of(index: u64) -> (usize, usize) {
    let index = usize::try_from(index).expect("as many pages as can be indexed");
    (index / BLOCK_PAGES, index % BLOCK_PAGES)
}

impl std::fmt::Debug for GuestDisks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestDisks")
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}
