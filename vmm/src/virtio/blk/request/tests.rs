//! The parser against the bytes that a chain holds, however they are cut into buffers.

use super::*;
use crate::memory::ram::GuestRam;
use crate::virtio::blk::plan::{Manner, Step, steps};
use page::{PAGE_SIZE, PageCount};
use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const READABLE: u64 = 0x10_000;
const WRITABLE: u64 = 0x20_000;
const SECTORS: u64 = 1000;

const RULES: Rules = Rules {
    sectors: SECTORS,
    read_only: false,
    features: F_DISCARD | F_WRITE_ZEROES,
};

/// Cuts `bytes` from `start` on into buffers, each behind the one before, with a gap.
fn cut(start: u64, bytes: u64, cuts: &[u64], flags: u16) -> Vec<Descriptor> {
    let mut ends: Vec<u64> = cuts.iter().map(|cut| cut % bytes.max(1)).collect();
    ends.extend([0, bytes]);
    ends.sort_unstable();
    ends.dedup();
    let piece = |(index, pair): (usize, &[u64])| {
        let gap = index as u64 * 8;
        let len = u32::try_from(pair[1] - pair[0]).unwrap();
        Descriptor::new(start + pair[0] + gap, len, flags, 0)
    };
    ends.windows(2).enumerate().map(piece).collect()
}

/// Writes the readable bytes into their buffers, links the chain, and parses it.
fn parse_chain(buffers: &[Descriptor], readable: &[u8]) -> Result<Request, Refused> {
    let ram = GuestRam::new(PageCount(256)).unwrap();
    let memory = ram.memory();
    let mut rest = readable;
    for (index, buffer) in (0u16..).zip(buffers) {
        if !buffer.is_write_only() {
            let (part, after) = rest.split_at(buffer.len() as usize);
            memory.write_slice(part, buffer.addr()).unwrap();
            rest = after;
        }
        let last = usize::from(index) + 1 == buffers.len();
        let flags = buffer.flags() | u16::from(!last);
        let linked = Descriptor::new(buffer.addr().0, buffer.len(), flags, index + 1);
        let place = GuestAddress(TABLE + u64::from(index) * 16);
        memory.write_obj(linked, place).unwrap();
    }
    memory.write_obj(1u16, GuestAddress(AVAIL + 2)).unwrap();
    let mut queue = Queue::new(128).unwrap();
    queue.set_desc_table_address(Some(u32::try_from(TABLE).unwrap()), Some(0));
    queue.set_avail_ring_address(Some(u32::try_from(AVAIL).unwrap()), Some(0));
    queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), Some(0));
    queue.set_ready(true);
    let chain = Chain::take(&mut queue, memory).unwrap().unwrap();
    parse(chain, &RULES)
}

fn addresses(stretches: &Stretches) -> Vec<u64> {
    let bytes = |stretch: Stretch| stretch.start.0..stretch.start.0 + stretch.bytes;
    stretches.iter().flat_map(bytes).collect()
}

/// Addresses of all bytes of some buffers, one by one.
fn bytes_of(buffers: &[Descriptor]) -> Vec<u64> {
    let bytes = |buffer: &Descriptor| buffer.addr().0..buffer.addr().0 + u64::from(buffer.len());
    buffers.iter().flat_map(bytes).collect()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[9; 4], &sector.to_le_bytes()].concat()
}

proptest! {
    /// Header, data and status are found byte by byte, whatever the buffers' borders.
    #[test]
    fn a_request_is_the_same_however_it_is_cut(
        writes in any::<bool>(),
        sector in 0..SECTORS + 20,
        sectors in 0u64..20,
        readable_cuts in prop::collection::vec(0u64..20_000, 0..6),
        writable_cuts in prop::collection::vec(0u64..20_000, 0..6),
    ) {
        let bytes = sectors * SECTOR;
        let (kind, out, back) = match writes {
            true => (VIRTIO_BLK_T_OUT, bytes, 0),
            false => (VIRTIO_BLK_T_IN, 0, bytes),
        };
        let mut readable = header(kind, sector);
        readable.resize(16 + usize::try_from(out).unwrap(), 0x5a);
        let front = cut(READABLE, 16 + out, &readable_cuts, 0);
        let back = cut(WRITABLE, back + 1, &writable_cuts, 2);
        let parsed = parse_chain(&[front.clone(), back.clone()].concat(), &readable);

        let (front, mut back) = (bytes_of(&front), bytes_of(&back));
        let status = GuestAddress(back.pop().unwrap());
        let refused = |fault| Err(Refused { fault, status: Some(status) });
        if sectors == 0 {
            prop_assert_eq!(parsed, refused(Fault::Malformed));
        } else if sector + sectors > SECTORS {
            prop_assert_eq!(parsed, refused(Fault::OutOfRange));
        } else {
            let request = parsed.unwrap();
            prop_assert_eq!(request.status, status);
            match request.kind {
                Kind::Read { offset, data } => {
                    prop_assert!(!writes && offset == sector * SECTOR);
                    prop_assert_eq!(addresses(&data), back);
                }
                Kind::Write { offset, data } => {
                    prop_assert!(writes && offset == sector * SECTOR);
                    prop_assert_eq!(addresses(&data), &front[16..]);
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    /// The pieces of a transfer are all of it, in order, each no longer than allowed.
    #[test]
    fn a_request_in_pieces_is_the_request(
        lengths in prop::collection::vec(1u64..3000, 1..20),
        most in 1usize..5000,
        write_through in any::<bool>(),
    ) {
        let stretch = |(index, &bytes): (usize, &u64)| Stretch {
            start: GuestAddress(index as u64 * 8192),
            bytes,
        };
        let data = Stretches(lengths.iter().enumerate().map(stretch).collect());
        let kind = Kind::Write { offset: 4096, data: data.clone() };
        let manner = Manner { write_through, most_bytes: Some(most) };
        let mut steps = steps(&kind, manner);
        if write_through {
            prop_assert_eq!(steps.pop_back(), Some(Step::Sync));
        }
        let (mut next, mut seen) = (4096, Vec::new());
        for step in steps {
            let Step::Write { offset, data } = step else { panic!("{step:?}") };
            prop_assert!(offset == next && data.bytes() > 0);
            prop_assert!(data.bytes() <= most as u64);
            next += data.bytes();
            seen.extend(addresses(&data));
        }
        prop_assert_eq!(seen, addresses(&data));
    }
}

#[test]
fn only_what_changes_the_disk_waits_for_it_in_a_guest_without_flushes() {
    let manner = Manner {
        write_through: true,
        most_bytes: None,
    };
    let data = Stretches(
        [Stretch {
            start: GuestAddress(PAGE_SIZE),
            bytes: 512,
        }]
        .into(),
    );
    let extent = Extent {
        offset: 0,
        bytes: 512,
    };
    let last = |kind: Kind| steps(&kind, manner).pop_back();
    assert_eq!(
        last(Kind::Write {
            offset: 0,
            data: data.clone()
        }),
        Some(Step::Sync)
    );
    assert_eq!(last(Kind::Discard(vec![extent])), Some(Step::Sync));
    let zeroed = ZeroedExtent {
        extent,
        unmap: true,
    };
    assert_eq!(last(Kind::WriteZeroes(vec![zeroed])), Some(Step::Sync));
    assert_eq!(steps(&Kind::Flush, manner), [Step::Sync]);
    assert_eq!(
        last(Kind::Read {
            offset: 0,
            data: data.clone()
        }),
        Some(Step::Read {
            offset: 0,
            data: data.clone()
        })
    );
    assert_eq!(last(Kind::Identify { data }), None);
}
