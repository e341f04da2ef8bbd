//! What the guest read from disks that it cannot write is there still, so such a page need not be stored when it goes out, if it
//! is as it was read. (`VSwapper`: Amit, Tsafrir and Schuster 2014.)
//!
//! Devices tell what was read where. It is a hint and no more: the guest may write to the page at any time, so what goes out is
//! compared first. While the VM has a limit, with a hash of what came, whose secret nobody outside of this process has. Before,
//! that would cost more than the reading itself where the kernel has the disk in its cache; so only the place is kept then, and the
//! page is compared with what that cache has, if it has it still: nobody waits for a disk here.
//!
//! What comes back is compared once more, for somebody may have changed the disk meanwhile.

use crate::lock::lock;
use crate::memory::MemoryError;
use crate::memory::pages::place_of;
use crate::memory::ram::{ClaimedGfn, RamLayout};
use page::{PAGE_BYTES, PAGE_SIZE};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{ReadWriteFlags, preadv2};
use sharing::BLOCK_PAGES;
use std::fmt;
use std::fs::File;
use std::io::IoSliceMut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use swap::seal::repeated_word;
use swap::{DiskPage, PageBytes};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};
use xxhash_rust::xxh3::xxh3_64_with_secret;

/// What xxh3 takes.
const SECRET_BYTES: usize = 192;
/// Of a page whose contents were not looked at when they came. No page has it.
const NOT_HASHED: u64 = 0;

/// For each page of a block what was read into it: 8 KiB.
type Block = Box<[Option<DiskPage>; BLOCK_PAGES]>;

/// The disks of a VM, and what of its memory came from them.
pub(crate) struct GuestDisks {
    layout: RamLayout,
    secret: [u8; SECRET_BYTES],
    /// By number: those that can only be read.
    disks: Vec<Option<ReadOnlyDisk>>,
    /// Whether the VM has a limit.
    is_limited: AtomicBool,
    /// Of each block of the memory file, if anything was read into it.
    blocks: Mutex<Vec<Option<Block>>>,
}

#[derive(Debug)]
struct ReadOnlyDisk {
    file: Arc<File>,
    /// Whether the kernel keeps none of it in its cache.
    is_direct: bool,
}

impl ReadOnlyDisk {
    fn new(file: Arc<File>) -> Self {
        let is_direct = fcntl_getfl(&file).is_ok_and(|flags| flags.contains(OFlags::DIRECT));
        Self { file, is_direct }
    }

    /// A page of it, if the kernel has that in its cache. Not of one that is direct: it would be read from the disk.
    fn cached(&self, page: u64) -> Option<PageBytes> {
        let mut content = [0; PAGE_BYTES];
        let (mut buffers, at_once) = ([IoSliceMut::new(&mut content)], ReadWriteFlags::NOWAIT);
        let count = preadv2(&self.file, &mut buffers, page * PAGE_SIZE, at_once);
        (count == Ok(PAGE_BYTES)).then_some(content)
    }
}

impl GuestDisks {
    /// Disks by number, those that the guest can only read.
    ///
    /// # Errors
    /// When the kernel gives no random numbers.
    pub(crate) fn new(
        layout: RamLayout,
        disks: Vec<Option<Arc<File>>>,
    ) -> Result<Self, MemoryError> {
        let mut secret = [0; SECRET_BYTES];
        super::fill_at_random(&mut secret)?;
        let blocks = layout.size().0.div_ceil(BLOCK_PAGES as u64);
        let disks = disks.into_iter();
        Ok(Self {
            layout,
            secret,
            disks: disks.map(|disk| disk.map(ReadOnlyDisk::new)).collect(),
            is_limited: AtomicBool::new(false),
            blocks: Mutex::new((0..blocks).map(|_| None).collect()),
        })
    }

    /// Whether nothing can be left to a disk.
    pub(crate) fn is_empty(&self) -> bool {
        self.disks.iter().all(Option::is_none)
    }

    /// The disk of this number, if the guest can only read it.
    pub(crate) fn file(&self, disk: u8) -> Option<&Arc<File>> {
        self.disk(disk).map(|disk| &disk.file)
    }

    fn disk(&self, disk: u8) -> Option<&ReadOnlyDisk> {
        self.disks.get(usize::from(disk))?.as_ref()
    }

    /// Whether the VM has a limit from here on.
    pub(crate) fn set_limited(&self, is_limited: bool) {
        self.is_limited.store(is_limited, Ordering::Relaxed);
    }

    /// The guest has read so many bytes from `offset` on of a disk into a stretch of its memory, and does not know yet.
    pub(crate) fn was_read(
        &self,
        disk: u8,
        offset: u64,
        memory: &GuestMemoryMmap,
        (start, bytes): (GuestAddress, u64),
    ) {
        // Where pages of one do not lie as pages of the other there is nothing to gain.
        if start.raw_value() % PAGE_SIZE != offset % PAGE_SIZE {
            return;
        }
        let Some(read_only) = self.disk(disk) else {
            return;
        };
        let is_hashed = read_only.is_direct || self.is_limited.load(Ordering::Relaxed);
        let before = start.raw_value().next_multiple_of(PAGE_SIZE) - start.raw_value();
        let whole = bytes.saturating_sub(before) / PAGE_SIZE;
        let read = (0..whole).map_while(|number| {
            let skipped = before + number * PAGE_SIZE;
            let address = start.checked_add(skipped)?;
            let claim = ClaimedGfn(address.raw_value() / PAGE_SIZE);
            let index = self.layout.file_index(self.layout.check(claim)?);
            let hash = match is_hashed {
                true => self.hash_at(memory, address)?,
                false => NOT_HASHED,
            };
            let page = (offset + skipped) / PAGE_SIZE;
            Some((index, DiskPage::new(disk, page, hash)))
        });
        // Before the lock: to read guest memory may take its time.
        let read: Vec<_> = read.collect();
        self.note(&read);
    }

    fn hash_at(&self, memory: &GuestMemoryMmap, address: GuestAddress) -> Option<u64> {
        let mut content = [0; PAGE_BYTES];
        memory.read_slice(&mut content, address).ok()?;
        Some(self.hash(&content))
    }

    fn note(&self, read: &[(u64, Option<DiskPage>)]) {
        let mut blocks = lock(&self.blocks);
        for &(index, page) in read {
            let (block, place) = place_of(index);
            let none = || Box::new([None; BLOCK_PAGES]);
            blocks[block].get_or_insert_with(none)[place] = page;
        }
    }

    /// Where a page of the memory file with this content can be left, if it came from there. One word again and again takes
    /// no room, so that is not looked for.
    pub(crate) fn find(&self, index: u64, content: &PageBytes) -> Option<DiskPage> {
        let (block, place) = place_of(index);
        let page = lock(&self.blocks)[block].as_ref()?[place]?;
        if repeated_word(content).is_some() {
            return None;
        }
        let is_same = match page.hash {
            NOT_HASHED => self.disk(page.disk())?.cached(page.page())? == *content,
            _ => self.is(page, content),
        };
        match (is_same, page.hash) {
            (true, NOT_HASHED) => DiskPage::new(page.disk(), page.page(), self.hash(content)),
            (true, _) => Some(page),
            (false, _) => {
                // It is not compared again and again.
                self.note(&[(index, None)]);
                None
            }
        }
    }

    /// Whether that is the page.
    pub(super) fn is(&self, page: DiskPage, content: &PageBytes) -> bool {
        self.hash(content) == page.hash
    }

    fn hash(&self, content: &PageBytes) -> u64 {
        xxh3_64_with_secret(content, &self.secret).max(NOT_HASHED + 1)
    }
}

impl fmt::Debug for GuestDisks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestDisks")
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}
