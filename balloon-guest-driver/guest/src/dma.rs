//! Memory that devices read and write: addresses are the same on both sides.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Enough for the queues of one balloon and one disk in either layout, twice.
const POOL_PAGES: usize = 32;

#[repr(align(4096))]
struct Pool(core::cell::UnsafeCell<[u8; POOL_PAGES * PAGE_SIZE]>);

// SAFETY: `dma_alloc` gives each page to one owner.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(core::cell::UnsafeCell::new([0; POOL_PAGES * PAGE_SIZE]));
static PAGES_GIVEN: AtomicUsize = AtomicUsize::new(0);

/// The embedded guest's way to share memory with devices.
#[derive(Debug)]
pub(crate) struct GuestHal;

// SAFETY: pool pages are zero, aligned, mapped where they are, and given out once.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let first = PAGES_GIVEN.fetch_add(pages, Ordering::Relaxed);
        if first + pages > POOL_PAGES {
            return (0, NonNull::dangling());
        }
        let start = POOL.0.get().cast::<u8>();
        // SAFETY: the page is in the pool, as was just checked.
        let page = unsafe { start.add(first * PAGE_SIZE) };
        (
            page as PhysAddr,
            NonNull::new(page).unwrap_or(NonNull::dangling()),
        )
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
