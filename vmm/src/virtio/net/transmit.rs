//! Packets from the guest to the tap.

use super::header::NetHeader;
use super::queue::BatchQueue;
use super::rate::Pace;
use super::wire::*;
use super::{FramePort, Place, Wait};
use crate::virtio::chain::{BrokenChain, Chain};
use protocol::NetCounters;
use rustix::io::Errno;
use std::time::Duration;
use virtio_queue::Error;
use vm_memory::Bytes;

/// Packets in a row before the other direction gets its turn.
const PACKETS_IN_A_ROW: usize = 64;

/// The sending half of a driver's device.
#[derive(Debug)]
pub(super) struct Transmitter {
    pub(super) queue: BatchQueue,
    /// The packet at work with its header, copied out of the guest before it is looked at.
    packet: Box<[u8]>,
}

/// Why a packet does not reach the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Malformed,
    TooLong,
    BadHeader,
    Refused,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// Gone, with this many bytes of frame.
    Gone(usize),
    /// The tap takes nothing now.
    TapFull,
}

impl Transmitter {
    pub(super) fn new(queue: BatchQueue) -> Self {
        Self {
            queue,
            packet: vec![0; HEADER_BYTES + LONGEST_FRAME].into(),
        }
    }

    /// Sends some packets; what to wait for before there is more to do.
    pub(super) fn serve<P: FramePort>(
        &mut self,
        place: Place<'_, P>,
        pace: &mut Pace,
        now: Duration,
        counters: &mut NetCounters,
    ) -> Result<Wait, Error> {
        self.queue.decline_notice(place.memory)?;
        for _ in 0..PACKETS_IN_A_ROW {
            if let Some(wait) = pace.wait(now) {
                return Ok(Wait::Time(wait));
            }
            let Some(chain) = self.queue.take(place.memory)? else {
                if self.queue.ask_for_notice(place.memory)? {
                    continue;
                }
                return Ok(Wait::Notice);
            };
            let head = chain.head();
            match self.send(chain, place) {
                Ok(Sent::Gone(bytes)) => {
                    pace.take(bytes, now);
                    counters.sent_packets += 1;
                    counters.sent_bytes += bytes as u64;
                }
                Ok(Sent::TapFull) => {
                    self.queue.untake(1);
                    return Ok(Wait::TapRoom);
                }
                Err(loss) => *loss.counter(counters) += 1,
            }
            self.queue.finish(head, 0);
        }
        Ok(Wait::Turn)
    }

    fn send<P: FramePort>(&mut self, chain: Chain<'_>, place: Place<'_, P>) -> Result<Sent, Loss> {
        let end = self.copy_out(chain)?;
        let packet = &mut self.packet[..end];
        let (header, frame) = packet
            .split_first_chunk_mut::<HEADER_BYTES>()
            .filter(|(_, frame)| frame.len() >= ETHERNET_BYTES)
            .ok_or(Loss::Malformed)?;
        let checked = NetHeader::from_bytes(header).check(frame.len(), place.agreed);
        *header = checked.map_err(|_bad| Loss::BadHeader)?.to_bytes();
        let bytes = frame.len();
        match place.port.write_packet(packet) {
            Ok(_) => Ok(Sent::Gone(bytes)),
            Err(Errno::AGAIN) => Ok(Sent::TapFull),
            // It is down or gone, or the kernel does not believe the header either.
            Err(_) => Err(Loss::Refused),
        }
    }

    /// The chain's bytes, however they are spread over its buffers; where they end.
    fn copy_out(&mut self, chain: Chain<'_>) -> Result<usize, Loss> {
        let memory = chain.memory();
        let mut end = 0;
        for buffer in chain {
            let buffer = buffer.map_err(|BrokenChain| Loss::Malformed)?;
            if buffer.is_write_only() {
                return Err(Loss::Malformed);
            }
            let room = self.packet.get_mut(end..).unwrap_or_default();
            let part = room.get_mut(..buffer.len() as usize).ok_or(Loss::TooLong)?;
            let read = memory.read_slice(part, buffer.addr());
            read.map_err(|_outside| Loss::Malformed)?;
            end += part.len();
        }
        Ok(end)
    }
}

impl Loss {
    fn counter(self, counters: &mut NetCounters) -> &mut u64 {
        match self {
            Self::Malformed => &mut counters.malformed,
            Self::TooLong => &mut counters.sent_too_long,
            Self::BadHeader => &mut counters.sent_bad_header,
            Self::Refused => &mut counters.sent_refused,
        }
    }
}
