//! Threads that read the swap file for the pager, so that nobody waits for another's page.

use super::file::SwapFile;
use crate::event::Event;
use crate::lock::lock;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use swap::{FileRange, Located};

/// As many reads at once; a disk that does better is one of a machine with more processors than guests are given here.
pub(super) const READERS: usize = 4;

/// A page to be read, with neighbours beside it.
#[derive(Debug)]
pub(super) struct Read {
    /// Who waits for it.
    pub(super) index: u64,
    pub(super) records: Vec<Located>,
    pub(super) range: FileRange,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) index: u64,
    pub(super) records: Vec<Located>,
    pub(super) bytes: io::Result<Vec<u8>>,
}

/// The pager's side.
#[derive(Debug)]
pub(super) struct Readers {
    orders: Sender<Read>,
    done: Receiver<Done>,
}

impl Readers {
    /// Starts them; they end with this. `wake` is signalled when something was read.
    pub(super) fn start(file: &Arc<SwapFile>, wake: &Event) -> io::Result<Self> {
        let (orders, inbox) = channel();
        let (tell, done) = channel();
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..READERS {
            let (file, inbox, tell, wake) = (
                Arc::clone(file),
                Arc::clone(&inbox),
                tell.clone(),
                wake.clone(),
            );
            let thread = thread::Builder::new().name("swap reader".into());
            thread.spawn(move || {
                while let Some(order) = next(&inbox) {
                    if tell.send(read(&file, order)).is_err() {
                        return;
                    }
                    wake.signal();
                }
            })?;
        }
        Ok(Self { orders, done })
    }

    pub(super) fn order(&self, read: Read) {
        let is_heard = self.orders.send(read).is_ok();
        assert!(is_heard, "the threads that read end with this");
    }

    pub(super) fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

/// One waits for the next order, the others for that one.
fn next(inbox: &Mutex<Receiver<Read>>) -> Option<Read> {
    lock(inbox).recv().ok()
}

fn read(file: &SwapFile, order: Read) -> Done {
    // The range keeps its place from being written until it has been read.
    let bytes = file.read(order.range.position, order.range.length);
    Done {
        index: order.index,
        records: order.records,
        bytes,
    }
}
