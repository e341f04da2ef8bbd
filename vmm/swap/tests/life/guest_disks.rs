//! As `memory/swap/guest_disks`: what the guest read from a disk that it cannot write need not be stored.

use crate::contents::{Word, plain};
use crate::event::lock;
use crate::left_out::{Step, is_left_out};
use shuttle::sync::Mutex;
use std::collections::BTreeMap;
use swap::DiskPage;

/// Its only disk.
const DISK: u8 = 0;
/// From here on the words are the disk's.
const DISK_WORDS: u64 = 1000;

/// What of the guest's memory came from its disk. A page's hash is its word.
#[derive(Default)]
pub(crate) struct GuestDisks(Mutex<BTreeMap<u64, DiskPage>>);

impl GuestDisks {
    /// The guest has read a page of its disk, and does not know yet.
    pub(crate) fn was_read(&self, index: u64, page: u64, content: Word) {
        let page = DiskPage::new(DISK, page, content).expect("a page of a disk");
        lock(&self.0).insert(index, page);
    }

    /// Where a page with this content can be left, if it came from there.
    pub(crate) fn find(&self, index: u64, content: Word) -> Option<DiskPage> {
        let mut pages = lock(&self.0);
        let page = *pages.get(&index)?;
        if !self.is(page, content) && !is_left_out(Step::LeftAsRead) {
            pages.remove(&index);
            return None;
        }
        Some(page)
    }

    /// Whether that is the page.
    pub(crate) fn is(&self, page: DiskPage, content: Word) -> bool {
        page.hash == content
    }
}

/// What the disk has there: never a word again and again.
pub(crate) fn on_disk(page: u64) -> Word {
    plain(DISK_WORDS + page)
}
