//! The card under a fake driver, in real guest memory. The other side is a line that keeps packets
//! whole, and in [`on_a_tap`] a tap of the kernel.

mod honest;
mod hostile;
mod on_a_tap;
mod threads;

use super::features::OFFERED;
use super::header::NetHeader;
use super::stand_in::{LineEnd, RECEIVE, TRANSMIT, line};
use super::wire::*;
use super::{FramePort, Net, NetSpec, Paces, Wait};
use crate::virtio::fake_driver::*;
use page::{PAGE_SIZE, PageCount};
use protocol::NetCounters;
use std::time::Duration;
use vm_memory::Bytes;

/// A guest of 2 MiB.
const SMALL: PageCount = PageCount(512);
/// What a driver like Linux' accepts.
const ALL: u64 = VERSION_1 | OFFERED & !F_EVENT_IDX;

/// A guest with a card, and what is at the other end.
struct Card<P> {
    driver: FakeDriver<Net<P>>,
    paces: Paces,
    now: Duration,
    /// Chains seen to come back, of each queue.
    seen: [u16; 2],
}

fn spec() -> NetSpec {
    NetSpec {
        mac: "02:00:00:00:00:07".parse().unwrap(),
        mtu: Some(1500),
        bytes_per_s: None,
    }
}

/// A card on a line, with a driver that accepted `features`, and the other end of the line.
fn on_a_line(features: u64) -> (Card<LineEnd>, LineEnd) {
    let [near, far] = line();
    (Card::started(spec(), near, features), far)
}

impl<P: FramePort> Card<P> {
    fn started(spec: NetSpec, port: P, features: u64) -> Self {
        let driver = FakeDriver::with_device(SMALL, |ram, interrupt| {
            Net::new(spec, port, ram.memory().clone(), interrupt.clone()).unwrap()
        });
        let paces = driver.transport.device().paces();
        let mut card = Self {
            driver,
            paces,
            now: Duration::ZERO,
            seen: [0; 2],
        };
        card.start(features);
        card
    }

    fn start(&mut self, features: u64) {
        self.driver.start(features);
        assert_eq!(self.driver.status(), 0xf, "the device took {features:#x}");
        self.seen = [0; 2];
    }

    fn counters(&self) -> NetCounters {
        self.driver.transport.device().counters()
    }

    fn serve_once(&mut self) -> Option<[Wait; 2]> {
        let net = self.driver.transport.device();
        net.serve(&mut self.paces, self.now)
    }

    /// Serves until both directions wait for something; what for.
    fn serve(&mut self) -> [Wait; 2] {
        for _ in 0..1000 {
            match self.serve_once() {
                Some(waits) if !waits.contains(&Wait::Turn) => return waits,
                Some(_) => {}
                None => panic!("the device has no driver"),
            }
        }
        panic!("there is no end to it");
    }

    /// Chains that came back since the last look: first descriptors, and bytes written.
    fn returned(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let end = u16::from_le_bytes(self.driver.get(used_address(queue) + 2));
        let mut returned = Vec::new();
        while self.seen[queue] != end {
            let slot = u64::from(self.seen[queue] % LARGEST_QUEUE);
            let element = u64::from_le_bytes(self.driver.get(used_address(queue) + 4 + slot * 8));
            #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
            returned.push((element as u32, (element >> 32) as u32));
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        returned
    }

    /// Offers a packet in one buffer.
    fn offer_packet(&mut self, header: NetHeader, frame: &[u8]) {
        let packet = [&header.to_bytes()[..], frame].concat();
        self.driver.put(buffer(0), &packet);
        let len = u32::try_from(packet.len()).unwrap();
        self.driver.offer(TRANSMIT, 0, &[(buffer(0), len, 0)]);
    }

    /// Offers `count` buffers of `len` bytes for packets, the first at `buffer(first)`.
    fn offer_buffers(&mut self, first: u16, count: u16, len: u32) {
        for index in first..first + count {
            let place = buffer(u64::from(index));
            self.driver.offer(RECEIVE, index, &[(place, len, WRITE)]);
        }
    }

    fn memory(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = self.driver.ram.memory();
        memory
            .read_slice(&mut bytes, vm_memory::GuestAddress(address))
            .unwrap();
        bytes
    }

    /// The bytes that came back, of buffers that `offer_buffers` has offered.
    fn filled(&self, returned: &[(u32, u32)]) -> Vec<u8> {
        let part = |&(head, len): &(u32, u32)| self.memory(buffer(head.into()), len as usize);
        returned.iter().flat_map(part).collect()
    }
}

/// Where the `index`th buffer of a test lies: each has a page.
fn buffer(index: u64) -> u64 {
    (FIRST_FREE_PAGE + index) * PAGE_SIZE
}

/// A frame of a kind that nobody else sends.
fn frame(len: usize) -> Vec<u8> {
    let addresses = [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 8];
    let kind = [0x88, 0xb5];
    let content = (0..).map(|index: usize| u8::try_from(index % 251).unwrap());
    addresses
        .into_iter()
        .chain(kind)
        .chain(content)
        .take(len)
        .collect()
}

fn packet_of(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES][..], frame].concat()
}

/// The next packet at an end of a line, if there is one.
fn next_packet(end: &impl FramePort) -> Option<Vec<u8>> {
    let mut packet = vec![0; 70_000];
    let len = end.read_packet(&mut packet).ok()?;
    packet.truncate(len);
    Some(packet)
}
