//! Packets from the tap to the guest.
//!
//! A packet is read from the tap before it is known whether the guest has room for it, so at most
//! one waits here. Buffers that were taken out of the queue stay taken until a packet fills them:
//! their places were checked then, and the guest may not change them any more.

use super::header::NetHeader;
use super::queue::BatchQueue;
use super::rate::Pace;
use super::wire::*;
use super::{FramePort, Place, Wait};
use crate::virtio::chain::{BrokenChain, Chain};
use protocol::NetCounters;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::time::Duration;
use virtio_queue::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Packets in a row before the other direction gets its turn.
const PACKETS_IN_A_ROW: usize = 64;
/// Buffers that a chain may have. Linux makes chains of up to 19.
const MOST_BUFFERS: usize = 64;
/// The longest packet, its header, and a byte in which a longer one shows.
const PACKET_BYTES: usize = HEADER_BYTES + LONGEST_FRAME + 1;

/// The receiving half of a driver's device.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) queue: BatchQueue,
    packet: Box<[u8]>,
    /// The packet that waits for room: its bytes with the header.
    waiting: Option<usize>,
    taken: VecDeque<Room>,
}

/// A chain that was checked: its buffers lie in the guest's memory and may be written.
#[derive(Debug)]
struct Room {
    head: u16,
    buffers: Vec<(GuestAddress, usize)>,
    bytes: usize,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// It is in this many chains.
    In(usize),
    /// No buffers that this driver can offer hold it.
    NoPlace,
    /// More buffers are needed.
    Later,
}

impl Room {
    fn check(chain: Chain<'_>) -> Result<Self, BrokenChain> {
        let (head, memory) = (chain.head(), chain.memory());
        let mut buffers = Vec::new();
        let mut bytes = 0usize;
        for buffer in chain {
            let buffer = buffer?;
            let len = buffer.len() as usize;
            let fits = buffer.is_write_only()
                && buffers.len() < MOST_BUFFERS
                && memory.check_range(buffer.addr(), len);
            if !fits {
                return Err(BrokenChain);
            }
            buffers.push((buffer.addr(), len));
            bytes = bytes.saturating_add(len);
        }
        // The header lies in the first chain as a whole (virtio 1.2, section 5.1.6.3.1).
        (bytes >= HEADER_BYTES)
            .then_some(Self {
                head,
                buffers,
                bytes,
            })
            .ok_or(BrokenChain)
    }

    /// Writes as much as there is room for; how much that is.
    fn fill(&self, memory: &GuestMemoryMmap, bytes: &[u8]) -> usize {
        let mut written = 0;
        for &(address, len) in &self.buffers {
            let part = len.min(bytes.len() - written);
            // Inside memory, as was checked when the buffer was taken, and memory stays.
            let stored = memory.write_slice(&bytes[written..written + part], address);
            debug_assert!(stored.is_ok(), "{stored:?}");
            written += part;
        }
        written
    }
}

impl Receiver {
    pub(super) fn new(queue: BatchQueue) -> Self {
        Self {
            queue,
            packet: vec![0; PACKET_BYTES].into(),
            waiting: None,
            taken: VecDeque::new(),
        }
    }

    /// Receives some packets; what to wait for before there is more to do.
    pub(super) fn serve<P: FramePort>(
        &mut self,
        place: Place<'_, P>,
        pace: &mut Pace,
        now: Duration,
        counters: &mut NetCounters,
    ) -> Result<Wait, Error> {
        self.queue.decline_notice(place.memory)?;
        for _ in 0..PACKETS_IN_A_ROW {
            let bytes = match self.waiting {
                Some(bytes) => bytes,
                None => {
                    if let Some(wait) = pace.wait(now) {
                        return Ok(Wait::Time(wait));
                    }
                    match place.port.read_packet(&mut self.packet) {
                        Ok(bytes) => bytes,
                        Err(Errno::AGAIN | Errno::INTR) => return Ok(Wait::Frames),
                        Err(_) => return Ok(Wait::TapGone),
                    }
                }
            };
            self.waiting = None;
            let Some(header) = self.wanted(bytes, place) else {
                counters.received_unwanted += 1;
                continue;
            };
            match self.place(header, bytes, place, counters)? {
                Placed::In(_) => {
                    let frame = bytes - HEADER_BYTES;
                    pace.take(frame, now);
                    counters.received_packets += 1;
                    counters.received_bytes += frame as u64;
                }
                Placed::NoPlace => counters.received_no_room += 1,
                Placed::Later => {
                    self.waiting = Some(bytes);
                    if !self.queue.ask_for_notice(place.memory)? {
                        return Ok(Wait::Notice);
                    }
                }
            }
        }
        Ok(Wait::Turn)
    }

    /// The header for the guest, if the packet is one that it agreed to take.
    fn wanted<P: FramePort>(&self, bytes: usize, place: Place<'_, P>) -> Option<NetHeader> {
        let packet = self.packet.get(..bytes)?;
        let (header, frame) = packet.split_first_chunk()?;
        if frame.len() > LONGEST_FRAME {
            return None;
        }
        NetHeader::from_bytes(header).for_guest(place.agreed)
    }

    fn place<P: FramePort>(
        &mut self,
        header: NetHeader,
        bytes: usize,
        place: Place<'_, P>,
        counters: &mut NetCounters,
    ) -> Result<Placed, Error> {
        let most = if place.agreed.has(F_MRG_RXBUF) {
            usize::from(self.queue.size())
        } else {
            1
        };
        let mut placed = self.fit(bytes, most);
        let mut takes_left = self.queue.size();
        while placed == Placed::Later && self.take_one(place, counters)? {
            placed = match takes_left.checked_sub(1) {
                Some(left) => {
                    takes_left = left;
                    self.fit(bytes, most)
                }
                // More wrong ones than an honest queue has in all: there is no end to them.
                None => Placed::NoPlace,
            };
        }
        if let Placed::In(chains) = placed {
            self.fill(header, chains, bytes, place.memory);
        }
        Ok(placed)
    }

    /// In how many of the taken chains a packet of so many bytes would lie, of `most` at most.
    fn fit(&self, bytes: usize, most: usize) -> Placed {
        let mut room = 0;
        for (index, chain) in self.taken.iter().take(most).enumerate() {
            room += chain.bytes;
            if room >= bytes {
                return Placed::In(index + 1);
            }
        }
        if self.taken.len() >= most {
            Placed::NoPlace
        } else {
            Placed::Later
        }
    }

    /// Takes one more chain. False if none waits.
    fn take_one<P: FramePort>(
        &mut self,
        place: Place<'_, P>,
        counters: &mut NetCounters,
    ) -> Result<bool, Error> {
        let Some(chain) = self.queue.take(place.memory)? else {
            return Ok(false);
        };
        let head = chain.head();
        match Room::check(chain) {
            Ok(room) => self.taken.push_back(room),
            Err(BrokenChain) => {
                counters.malformed += 1;
                self.queue.finish(head, 0);
            }
        }
        Ok(true)
    }

    fn fill(&mut self, header: NetHeader, chains: usize, bytes: usize, memory: &GuestMemoryMmap) {
        let told = NetHeader {
            // There are no more chains than a queue has descriptors.
            buffers: u16::try_from(chains).unwrap_or(u16::MAX),
            ..header
        };
        self.packet[..HEADER_BYTES].copy_from_slice(&told.to_bytes());
        let mut rest = &self.packet[..bytes];
        for room in self.taken.drain(..chains) {
            let written = room.fill(memory, rest);
            rest = &rest[written..];
            // No longer than a packet.
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            self.queue.finish(room.head, written);
        }
    }
}
