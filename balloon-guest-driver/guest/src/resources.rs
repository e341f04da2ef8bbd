//! Who has which frame: the allocator and the workload together, as the balloon sees them.

use core::ptr::NonNull;

use balloon_guest_driver::balloon::{MemoryFigures, PageAllocator};
use balloon_guest_driver::disk::Disk;
use balloon_guest_driver::frames::Frames;
use balloon_guest_driver::page::Page;
use balloon_guest_driver::pool::Lead;
use balloon_guest_driver::workload::spec::Spec;
use balloon_guest_driver::workload::{NoFiles, Rest, Slice, Workload};
use balloon_guest_driver::{BLOCK_FRAMES, Gfn, PAGE_SIZE};

use crate::clock;
use crate::disk::VirtioDisk;
use crate::ram::Pages;

const BLOCK_BYTES: usize = BLOCK_FRAMES as usize * size_of::<Page>();

/// What the balloon and the workload share: all frames but those in the balloon, and the disk.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) frames: Frames<'static>,
    pub(crate) workload: Workload<'static>,
    pub(crate) pages: Pages,
    pub(crate) disk: Option<VirtioDisk>,
    /// Statistics claim that all memory is needed.
    pub(crate) claims_need: bool,
}

impl Resources {
    /// Lets the workload run for a while, on other processors, too, if it is of the kind. None of
    /// them is at it when this returns.
    pub(crate) fn run_workload(&mut self, length_us: u64, lead: Option<&Lead<'_>>) -> Rest {
        let slice = Slice::new(&clock::now_ns, length_us);
        let mut slice = match lead {
            Some(lead) => slice.helped_by(lead),
            None => slice,
        };
        let disk = self.disk.as_mut().map(|disk| disk as &mut dyn Disk);
        self.workload
            .step(&mut self.frames, &mut self.pages, disk, &mut slice)
    }

    /// Runs another workload from now on.
    pub(crate) fn start(&mut self, spec: Spec) -> Result<(), NoFiles> {
        let disk = self.disk.as_ref().map(|disk| disk as &dyn Disk);
        self.workload.start(spec, disk)
    }
}

// SAFETY: a frame taken leaves the free set or the workload's frames and comes back only by
// `give_back` and `return_block`; all frames are RAM mapped where it is.
unsafe impl PageAllocator for Resources {
    fn take(&mut self, out: &mut [Gfn]) -> usize {
        let free = self.frames.take_for_balloon(out);
        free + self.workload.give_up(&mut out[free..], &mut self.pages)
    }

    fn give_back(&mut self, gfns: &[Gfn]) {
        self.frames.give_back(gfns);
    }

    fn available_count(&self) -> u32 {
        self.frames.free_count() + self.workload.would_give_up()
    }

    fn unreported_blocks(&self) -> u32 {
        self.frames.unreported_blocks()
    }

    fn isolate_block(&mut self) -> Option<Gfn> {
        self.frames.isolate_block()
    }

    fn block_memory(&self, first: Gfn) -> NonNull<[u8]> {
        let start = NonNull::new((u64::from(first) * PAGE_SIZE) as *mut u8);
        NonNull::slice_from_raw_parts(start.expect("page 0 is no RAM of ours"), BLOCK_BYTES)
    }

    fn return_block(&mut self, first: Gfn) {
        self.frames.return_block(first);
    }

    fn figures(&self) -> MemoryFigures {
        let (free, available) = match self.claims_need {
            true => (0, 0),
            false => (self.frames.free_count(), self.available_count()),
        };
        MemoryFigures {
            free_pages: free.into(),
            total_pages: u64::from(self.frames.total()),
            available_pages: available.into(),
            minor_faults: self.frames.handed_out(),
        }
    }
}
