//! The driver of a virtio block device: requests of many pages, several at a time, none waited for.
//!
//! What a request was made of is remembered out of the device's reach. A device that breaks the protocol
//! is reset, which ends its use of the frames, and all that was asked of it has failed.

use core::cell::UnsafeCell;
use core::{array, slice};

use balloon_guest_driver::disk::wire::{self, Features, HEADER_BYTES, STATUS_NONE};
use balloon_guest_driver::disk::{
    Action, Answer, Disk, DiskError, REQUESTS_MAX, RUN_BLOCKS, Request,
};
use balloon_guest_driver::{Gfn, PAGE_SIZE};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use crate::dma::GuestHal;
use crate::serial::println;

const QUEUE: u16 = 0;
const QUEUE_SIZE: usize = 128;
const SUPPORTED: Features = Features::all();
/// Acknowledging one interrupt may uncover another; a device that never ends is left alone.
const ACKNOWLEDGEMENTS_MAX: u32 = 8;

const _: () = assert!(REQUESTS_MAX * (RUN_BLOCKS + 2) <= QUEUE_SIZE);

/// What the device reads and writes beside frames.
#[derive(Clone, Copy, Debug)]
struct Ends {
    header: [u8; HEADER_BYTES],
    status: u8,
}

struct StorageCell(UnsafeCell<[Ends; REQUESTS_MAX]>);

// SAFETY: `VirtioDisk::start` lends it once.
unsafe impl Sync for StorageCell {}

static STORAGE: StorageCell = StorageCell(UnsafeCell::new(
    [Ends {
        header: [0; HEADER_BYTES],
        status: STATUS_NONE,
    }; REQUESTS_MAX],
));

/// A request that the device has.
#[derive(Clone, Copy, Debug)]
struct Lent {
    token: u16,
    action: Action,
    gfns: [Gfn; RUN_BLOCKS],
    count: usize,
}

/// A disk.
#[derive(Debug)]
pub(crate) struct VirtioDisk {
    transport: MmioTransport<'static>,
    queue: VirtQueue<GuestHal, QUEUE_SIZE>,
    block_count: u32,
    is_read_only: bool,
    ends: &'static mut [Ends; REQUESTS_MAX],
    lent: [Option<Lent>; REQUESTS_MAX],
    is_broken: bool,
}

impl VirtioDisk {
    /// Starts the device.
    ///
    /// # Safety
    /// To be called once.
    pub(crate) unsafe fn start(
        mut transport: MmioTransport<'static>,
    ) -> virtio_drivers::Result<Self> {
        let features = transport.begin_init(SUPPORTED);
        let sectors: u64 = transport.read_consistent(|| {
            let half = |offset| transport.read_config_space::<u32>(wire::CONFIG_SECTORS + offset);
            Ok(u64::from(half(0)?) | u64::from(half(4)?) << 32)
        })?;
        let queue = VirtQueue::new(&mut transport, QUEUE, false, false)?;
        transport.finish_init();
        Ok(Self {
            transport,
            queue,
            block_count: wire::blocks_of(sectors),
            is_read_only: features.contains(Features::READ_ONLY),
            // SAFETY: the caller calls once, so this is the only reference.
            ends: unsafe { &mut *STORAGE.0.get() },
            lent: [None; REQUESTS_MAX],
            is_broken: false,
        })
    }

    /// Takes note of an interrupt, so that the next one comes.
    pub(crate) fn on_interrupt(&mut self) {
        for _ in 0..ACKNOWLEDGEMENTS_MAX {
            if self.transport.ack_interrupt() == InterruptStatus::empty() {
                return;
            }
        }
    }

    /// The frames' memory, for the queue to take addresses of.
    ///
    /// # Safety
    /// The frames are RAM that nobody else uses as long as the result is used.
    unsafe fn memory<'m>(gfns: &[Gfn]) -> [&'m mut [u8]; RUN_BLOCKS] {
        array::from_fn(|n| match gfns.get(n) {
            None => &mut [][..],
            Some(&gfn) => {
                let start = (u64::from(gfn) * PAGE_SIZE) as *mut u8;
                // SAFETY: RAM is mapped where it is; the rest is the caller's promise.
                unsafe { slice::from_raw_parts_mut(start, virtio_drivers::PAGE_SIZE) }
            }
        })
    }

    /// Adds a request to the queue, or takes it out again if it has a token.
    ///
    /// # Safety
    /// The frames are RAM and nobody's, and the token, if any, was made with them.
    unsafe fn exchange(
        &mut self,
        (tag, action, gfns): (usize, Action, &[Gfn]),
        token: Option<u16>,
    ) -> virtio_drivers::Result<u16> {
        let Ends { header, status } = &mut self.ends[tag];
        // SAFETY: the caller's promise.
        let mut pages = unsafe { Self::memory(gfns) };
        let status = slice::from_mut(status);
        let count = gfns.len();
        if action == Action::Read {
            let mut outputs: [&mut [u8]; RUN_BLOCKS + 1] = array::from_fn(|_| &mut [][..]);
            for (output, page) in outputs.iter_mut().zip(&mut pages[..count]) {
                *output = page;
            }
            outputs[count] = status;
            // SAFETY: headers and statuses are static, and a tag in use is not used again; the rest is
            // the caller's promise.
            unsafe { pass(&mut self.queue, token, &[header], &mut outputs[..=count]) }
        } else {
            let mut inputs: [&[u8]; RUN_BLOCKS + 1] = [&[]; RUN_BLOCKS + 1];
            inputs[0] = header;
            for (input, page) in inputs[1..].iter_mut().zip(&pages[..count]) {
                *input = page;
            }
            // SAFETY: as above.
            unsafe { pass(&mut self.queue, token, &inputs[..=count], &mut [status]) }
        }
    }

    /// Ends all dealings with the device.
    fn give_it_up(&mut self, error: virtio_drivers::Error) {
        println!("error: the disk broke the protocol: {error}; going on without it");
        self.transport.set_status(DeviceStatus::empty());
        self.is_broken = true;
    }

    fn take_failed(&mut self) -> Option<Answer> {
        let tag = self.lent.iter().position(Option::is_some)?;
        self.lent[tag] = None;
        Some(Answer {
            tag,
            result: Err(DiskError::Broken),
        })
    }
}

/// Adds buffers to the queue, or takes them out again if they have a token.
///
/// # Safety
/// They are nobody's until they are taken out, and the token, if any, was made with them.
unsafe fn pass<'a>(
    queue: &mut VirtQueue<GuestHal, QUEUE_SIZE>,
    token: Option<u16>,
    inputs: &'a [&'a [u8]],
    outputs: &'a mut [&'a mut [u8]],
) -> virtio_drivers::Result<u16> {
    match token {
        // SAFETY: the caller's promise.
        None => unsafe { queue.add(inputs, outputs) },
        // SAFETY: the caller's promise.
        Some(token) => unsafe { queue.pop_used(token, inputs, outputs) }.map(|_length| token),
    }
}

impl Disk for VirtioDisk {
    fn block_count(&self) -> u32 {
        self.block_count
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    unsafe fn start(&mut self, request: &Request<'_>) {
        let &Request {
            tag,
            action,
            first,
            gfns,
        } = request;
        self.ends[tag] = Ends {
            header: wire::header(action, first),
            status: STATUS_NONE,
        };
        let mut lent = Lent {
            token: 0,
            action,
            gfns: [0; RUN_BLOCKS],
            count: gfns.len(),
        };
        lent.gfns[..gfns.len()].copy_from_slice(gfns);
        if !self.is_broken {
            // SAFETY: the caller's promise.
            match unsafe { self.exchange((tag, action, gfns), None) } {
                Ok(token) => lent.token = token,
                Err(error) => self.give_it_up(error),
            }
        }
        self.lent[tag] = Some(lent);
        if !self.is_broken && self.queue.should_notify() {
            self.transport.notify(QUEUE);
        }
    }

    fn take_answer(&mut self) -> Option<Answer> {
        if self.is_broken {
            return self.take_failed();
        }
        let token = self.queue.peek_used()?;
        let has_token = |lent: &Option<Lent>| lent.is_some_and(|lent| lent.token == token);
        let Some((tag, Some(lent))) = self
            .lent
            .iter()
            .position(has_token)
            .map(|tag| (tag, self.lent[tag]))
        else {
            self.give_it_up(virtio_drivers::Error::WrongToken);
            return self.take_failed();
        };
        let buffers = (tag, lent.action, &lent.gfns[..lent.count]);
        // SAFETY: the frames are the device's until this answer is given, and the token is theirs.
        if let Err(error) = unsafe { self.exchange(buffers, Some(token)) } {
            self.give_it_up(error);
            return self.take_failed();
        }
        self.lent[tag] = None;
        Some(Answer {
            tag,
            result: wire::result_of(self.ends[tag].status),
        })
    }
}
