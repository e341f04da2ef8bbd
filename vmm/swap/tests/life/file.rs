//! The swap file, and who reads it and the guest's disk for the pager.

use crate::chance::{choose, is_so, place_in};
use crate::contents::contents;
use crate::event::{Event, lock};
use crate::guest_disks::on_disk;
use crate::swap::Swap;
use shuttle::sync::Mutex;
use swap::{AfterFailure, DiskPage, FileRange, Located};

pub(crate) struct SwapFile(Mutex<Vec<u8>>);

impl SwapFile {
    pub(crate) fn new(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).expect("a small file");
        Self(Mutex::new(vec![0; bytes]))
    }

    /// Now and then only a part of it, and then it says what becomes of the place.
    pub(crate) fn write(&self, position: u64, bytes: &[u8]) -> Result<(), AfterFailure> {
        let is_whole = !is_so(1, 8);
        let length = if is_whole {
            bytes.len()
        } else {
            bytes.len() / 2
        };
        let start = usize::try_from(position).expect("in the file");
        lock(&self.0)[start..start + length].copy_from_slice(&bytes[..length]);
        match is_whole {
            true => Ok(()),
            false => Err(choose(&[AfterFailure::Retry, AfterFailure::Retire])),
        }
    }

    pub(crate) fn read(&self, range: &FileRange) -> Vec<u8> {
        let start = usize::try_from(range.position).expect("in the file");
        lock(&self.0)[start..start + range.length].to_vec()
    }
}

/// What is read.
pub(crate) enum Wanted {
    /// A page's record, and those of neighbours beside it, in the swap file.
    Records {
        records: Vec<Located>,
        /// Keeps its place from being written until it has been read.
        range: FileRange,
    },
    /// A page as the guest's disk has it.
    OnDisk(DiskPage),
}

/// A page to be read.
pub(crate) struct Read {
    pub(crate) index: u64,
    pub(crate) wanted: Wanted,
}

/// What was read.
pub(crate) struct Done {
    pub(crate) index: u64,
    pub(crate) wanted: Wanted,
    pub(crate) bytes: Vec<u8>,
}

/// Reads in any order.
#[derive(Default)]
pub(crate) struct Readers {
    orders: Mutex<Vec<Read>>,
    done: Mutex<Vec<Done>>,
    reader: Event,
}

impl Readers {
    pub(crate) fn order(&self, read: Read) {
        lock(&self.orders).push(read);
        self.reader.signal();
    }

    pub(crate) fn next_done(&self) -> Option<Done> {
        lock(&self.done).pop()
    }

    /// Once the guest is gone.
    pub(crate) fn end(&self) {
        self.reader.signal();
    }

    pub(crate) fn run(&self, swap: &Swap) {
        while !swap.is_over() {
            self.reader.wait();
            while let Some(order) = self.next() {
                let done = carry_out(&swap.file, order);
                lock(&self.done).push(done);
                swap.pager.signal();
            }
        }
    }

    fn next(&self) -> Option<Read> {
        let mut orders = lock(&self.orders);
        let any = (!orders.is_empty()).then(|| place_in(orders.len()));
        any.map(|at| orders.swap_remove(at))
    }
}

fn carry_out(file: &SwapFile, order: Read) -> Done {
    let Read { index, wanted } = order;
    let bytes = match &wanted {
        Wanted::Records { range, .. } => file.read(range),
        Wanted::OnDisk(page) => contents(on_disk(page.page())).to_vec(),
    };
    Done {
        index,
        wanted,
        bytes,
    }
}
