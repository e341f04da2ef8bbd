//! Reads random bytes as what a guest and its network do to a card, well or badly, and checks what
//! must stay true whatever they do.

use super::header::NetHeader;
use super::stand_in::{LineEnd, RECEIVE, TRANSMIT, line};
use super::wire::*;
use super::{FramePort, Net, NetSpec, Paces, Wait};
use crate::memory::ram::{GAP_END, GAP_START};
use crate::virtio::fake_driver::{
    FIRST_FREE_PAGE, FakeDriver, VERSION_1, WRITE, avail_address, table_address, used_address,
};
use crate::virtio::fuzz::{Input, RandomGuest};
use page::{PAGE_SIZE, PageCount};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

/// Packets that may wait on the line: more than a turn takes, and fewer than a socket holds.
const MOST_ON_THE_LINE: usize = 100;
/// Turns in which the card takes whatever a line can hold.
const TURNS_FOR_THE_LINE: usize = 16;
const SIZE: PageCount = PageCount(512);
/// What the card of these runs offers.
const OFFERED: u64 = VERSION_1 | super::features::OFFERED | F_MTU;

/// Does what `bytes` say to a new guest's card.
///
/// # Panics
/// If something does not stay true that must.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let limited = input.u8().is_some_and(|kind| kind % 4 == 3);
    Guest::new(limited.then_some(1 << 20)).run(input);
}

struct Guest {
    driver: FakeDriver<Net<LineEnd>>,
    far: LineEnd,
    on_the_line: usize,
    paces: Paces,
    now: Duration,
}

impl Guest {
    fn new(bytes_per_s: Option<u64>) -> Self {
        let [near, far] = line();
        let spec = NetSpec {
            mac: protocol::MacAddress::of_vm("fuzz", 0),
            mtu: Some(1500),
            bytes_per_s,
        };
        let driver = FakeDriver::with_device(SIZE, |ram, interrupt| {
            let net = Net::new(spec, near, ram.memory().clone(), interrupt.clone());
            net.expect("an event descriptor")
        });
        Self {
            paces: driver.transport.device().paces(),
            driver,
            far,
            on_the_line: 0,
            now: Duration::ZERO,
        }
    }

    fn serve(&mut self) {
        self.now += Duration::from_millis(1);
        let net = self.driver.transport.device();
        let before = net.counters();
        let served = net.serve(&mut self.paces, self.now);
        let after = net.counters();
        // Turns are bounded, whatever waits.
        assert!(after.sent_packets - before.sent_packets <= 64);
        assert!(after.received_packets - before.received_packets <= 64);
        assert!(served.is_none_or(|waits| !waits.contains(&Wait::TapGone)));
        self.on_the_line = 0;
        while let Some((header, frame_len)) = self.next_outside() {
            check_sent(header, frame_len);
        }
    }

    /// What the guest has sent, seen from outside.
    fn next_outside(&self) -> Option<(NetHeader, usize)> {
        let mut packet = vec![0; HEADER_BYTES + LONGEST_FRAME + 1];
        let len = self.far.read_packet(&mut packet).ok()?;
        let (header, frame) = packet[..len].split_first_chunk()?;
        Some((NetHeader::from_bytes(header), frame.len()))
    }

    /// Where rings and buffers of these runs mostly lie.
    fn low_memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; 96 * 4096];
        let memory = self.driver.ram.memory();
        let read = memory.read_slice(&mut bytes, GuestAddress(0));
        read.expect("the guest is larger");
        bytes
    }

    fn start(&mut self, input: &mut Input<'_>) -> Option<()> {
        let features = match input.u8()? {
            0..0x60 => u64::from(input.u32()?) & OFFERED | VERSION_1,
            byte if byte & 1 == 0 => OFFERED & !F_EVENT_IDX,
            _ => OFFERED,
        };
        self.driver.start_with_size(features, 1 << input.up_to(7)?);
        Some(())
    }

    fn offer_buffers(&mut self, input: &mut Input<'_>) -> Option<()> {
        let len = u32::from(input.u16()?) % 5000;
        for _ in 0..=input.up_to(31)? {
            let head = u16::from(input.up_to(127)?);
            let place = (FIRST_FREE_PAGE + u64::from(head)) * PAGE_SIZE;
            self.driver.offer(RECEIVE, head, &[(place, len, WRITE)]);
        }
        Some(())
    }

    /// A packet that is right but for its header, perhaps.
    fn offer_packet(&mut self, input: &mut Input<'_>) -> Option<()> {
        let place = FIRST_FREE_PAGE * PAGE_SIZE;
        let header: [u8; HEADER_BYTES] = input.take()?;
        let bytes = match input.up_to(3)? {
            0 => [0; HEADER_BYTES],
            _ => header,
        };
        self.write(place, &bytes);
        let len = 12 + u32::from(input.u16()?);
        self.driver.offer(TRANSMIT, 0, &[(place, len, 0)]);
        Some(())
    }

    fn send_from_outside(&mut self, input: &mut Input<'_>) -> Option<()> {
        let header: [u8; HEADER_BYTES] = input.take()?;
        let header = match input.up_to(3)? {
            0 => header,
            _ => [0; HEADER_BYTES],
        };
        let len = usize::from(input.u16()?) + usize::from(input.up_to(40)?);
        self.send(&[&header[..], &vec![0x5a; len]].concat());
        Some(())
    }

    fn send(&mut self, packet: &[u8]) {
        // A full line is full; what does not fit is not sent.
        if self.on_the_line < MOST_ON_THE_LINE && self.far.write_packet(packet).is_ok() {
            self.on_the_line += 1;
        }
    }
}

impl RandomGuest for Guest {
    type Device = Net<LineEnd>;

    fn driver(&mut self) -> &mut FakeDriver<Self::Device> {
        &mut self.driver
    }

    fn act(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.up_to(13)? {
            0 => self.write_register(input)?,
            1 => {
                let (offset, width) = (input.u16()?, input.up_to(8)?);
                let mut data = [0; 8];
                self.driver
                    .transport
                    .read(offset.into(), &mut data[..usize::from(width)]);
            }
            2 => {
                let register = u64::from(input.u8()?) * 4;
                self.driver.write(register, input.u32()?);
            }
            3 => {
                let address = self.address(input)?;
                let value = input.u64()?.to_le_bytes();
                self.write(address, &value[..usize::from(input.up_to(8)?)]);
            }
            4 => self.start(input)?,
            5 | 6 => self.offer(input)?,
            7 => self.offer_buffers(input)?,
            8 => self.offer_packet(input)?,
            9 => self.send_from_outside(input)?,
            10 | 11 => self.serve(),
            12 => self.jump_avail_index(input)?,
            _ => {
                let queue = self.queue(input)?;
                let size = 1 << input.up_to(8)?;
                self.place_queue(queue, size, input)?;
            }
        }
        Some(())
    }

    fn check(&mut self) {
        // Chains without end would be one.
        for _ in 0..8 {
            self.serve();
        }
        self.driver.reset();
        let untouched = self.low_memory();
        self.send(&[0; 200]);
        self.serve();
        assert!(untouched == self.low_memory(), "it writes after its reset");
        // Whatever was done to it, a reset makes the device usable again.
        self.driver.start(OFFERED & !F_EVENT_IDX);
        assert_eq!(self.driver.status(), 0xf, "a driver starts over");
        let place = FIRST_FREE_PAGE * PAGE_SIZE;
        self.driver.put(place, &[0; HEADER_BYTES + 60]);
        self.driver.offer(TRANSMIT, 0, &[(place, 72, 0)]);
        for head in 0..100 {
            self.driver
                .offer(RECEIVE, head, &[(place + PAGE_SIZE, 1600, WRITE)]);
        }
        self.now += Duration::from_secs(100);
        let before = self.driver.transport.device().counters();
        // Packets that no guest wants may fill the line, so that the one above did not fit.
        for _ in 0..TURNS_FOR_THE_LINE {
            self.serve();
        }
        self.send(&[0; 200]);
        self.serve();
        let after = self.driver.transport.device().counters();
        assert_eq!(after.sent_packets, before.sent_packets + 1, "and sends");
        assert_eq!(self.driver.take_returned(TRANSMIT), [0], "and is answered");
        assert!(
            after.received_packets > before.received_packets,
            "and receives"
        );
    }

    fn queue(&self, input: &mut Input<'_>) -> Option<usize> {
        input.up_to(1).map(usize::from)
    }

    fn address(&self, input: &mut Input<'_>) -> Option<u64> {
        let end = SIZE.bytes();
        Some(match input.up_to(9)? {
            0 => input.u64()?,
            1 => u64::MAX - u64::from(input.u8()?),
            2 => end - u64::from(input.u8()?),
            3 => GAP_START.0 * PAGE_SIZE + u64::from(input.u16()?),
            4 => GAP_END.0 * PAGE_SIZE - u64::from(input.u16()?),
            5 => {
                let place = [table_address, avail_address, used_address];
                let place = place[usize::from(input.up_to(2)?)];
                place(self.queue(input)?) + u64::from(input.u8()?)
            }
            _ => (FIRST_FREE_PAGE + u64::from(input.u8()?)) * PAGE_SIZE + u64::from(input.u8()?),
        })
    }

    fn len(&self, input: &mut Input<'_>) -> Option<u32> {
        Some(match input.up_to(5)? {
            0 => input.u32()?,
            1 => u32::MAX - u32::from(input.u8()?),
            2 => u32::from(input.u8()?),
            3 => 65_536 + u32::from(input.u8()?),
            _ => u32::from(input.u16()?),
        })
    }
}

/// Whatever the guest sent, what comes out is a frame, and its header says what can be done to it.
fn check_sent(header: NetHeader, frame_len: usize) {
    assert!(
        (ETHERNET_BYTES..=LONGEST_FRAME).contains(&frame_len),
        "{frame_len}"
    );
    let checksum_end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
    assert!(header.flags == 0 || header.flags == HEADER_NEEDS_CSUM && checksum_end <= frame_len);
    assert!(header.gso_type == GSO_NONE || header.gso_size > 0 && header.flags != 0);
    assert!(usize::from(header.header_len) <= frame_len, "{header:?}");
}

#[cfg(test)]
mod tests;
