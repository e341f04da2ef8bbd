//! Walks the chains of buffers that a guest puts into a queue.
//!
//! virtio-queue's own iterator follows indirect tables, which no device here offers, and ends a loop
//! as if it were a chain's end. Here both are an error, and the first descriptor is known to be one
//! that the chain can be answered by.

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

/// A chain of buffers as the guest linked it. Yields each descriptor in turn, and where the chain
/// is not one, [`BrokenChain`] once, at its end.
#[derive(Clone, Debug)]
pub(super) struct Chain<'a> {
    memory: &'a GuestMemoryMmap,
    table: GuestAddress,
    table_size: u16,
    head: u16,
    next: Option<u16>,
    /// Descriptors that it may still have.
    left: u16,
}

/// The chain goes on outside its table, in a loop, or in an indirect table, which nobody offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BrokenChain;

impl<'a> Chain<'a> {
    /// Takes the next chain out of a queue, if one waits there. A queue that the driver did not set up
    /// has none.
    ///
    /// # Errors
    /// When the queue is unusable: its index has jumped, or the chain has no first descriptor that
    /// it could be answered by.
    pub(super) fn take(
        queue: &mut Queue,
        memory: &'a GuestMemoryMmap,
    ) -> Result<Option<Self>, Error> {
        if !queue.ready() {
            return Ok(None);
        }
        let Some(head) = queue.iter(memory)?.next().map(|chain| chain.head_index()) else {
            return Ok(None);
        };
        if head >= queue.size() {
            return Err(Error::InvalidDescriptorIndex);
        }
        Ok(Some(Self {
            memory,
            table: GuestAddress(queue.desc_table()),
            table_size: queue.size(),
            head,
            next: Some(head),
            left: queue.size(),
        }))
    }

    /// The index of its first descriptor, by which it is answered.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// The memory that its buffers claim to lie in.
    pub(super) fn memory(&self) -> &'a GuestMemoryMmap {
        self.memory
    }

    fn read(&mut self, index: u16) -> Result<Descriptor, BrokenChain> {
        // A chain that is longer than its table comes back to where it was.
        self.left = self.left.checked_sub(1).ok_or(BrokenChain)?;
        if index >= self.table_size {
            return Err(BrokenChain);
        }
        let offset = u64::from(index) * size_of::<Descriptor>() as u64;
        let address = self.table.checked_add(offset).ok_or(BrokenChain)?;
        let descriptor: Descriptor = self
            .memory
            .read_obj(address)
            .map_err(|_outside| BrokenChain)?;
        if descriptor.refers_to_indirect_table() {
            return Err(BrokenChain);
        }
        Ok(descriptor)
    }
}

impl Iterator for Chain<'_> {
    type Item = Result<Descriptor, BrokenChain>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next.take()?;
        let descriptor = self.read(index);
        if let Ok(descriptor) = descriptor
            && descriptor.has_next()
        {
            self.next = Some(descriptor.next());
        }
        Some(descriptor)
    }
}
