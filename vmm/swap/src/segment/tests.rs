use super::*;
use crate::record::{Generation, Kind};
use page::Gfn;
use proptest::prelude::*;

const SIZE: usize = 16 << 10;

fn record(gfn: u64, length: u16) -> Vec<u8> {
    let header = RecordHeader {
        gfn: Gfn(gfn),
        generation: Generation(gfn + 1),
        length,
        kind: Kind::Plain,
    };
    let mut bytes = header.encode().to_vec();
    bytes.resize(header.record_bytes(), 0xaa);
    bytes
}

proptest! {
    #[test]
    fn walking_yields_what_was_appended(lengths in prop::collection::vec(1u16..=4096, 0..40)) {
        let mut buffer = Buffer::new(SIZE, 3);
        let mut appended = Vec::new();
        for (gfn, length) in (0..).zip(lengths) {
            let bytes = record(gfn, length);
            if buffer.has_room(bytes.len()) {
                appended.push((buffer.append(&bytes) as usize, bytes));
            }
        }
        let (header, records) = walk(buffer.as_slice()).unwrap();
        prop_assert_eq!(header.number, 3);
        let walked: Vec<_> = records.map(|(offset, _, bytes)| (offset, bytes.to_vec())).collect();
        prop_assert_eq!(walked, appended);
    }

    #[test]
    fn any_bytes_are_walked_to_an_end(mut bytes in prop::collection::vec(any::<u8>(), SIZE), broken in 0..SIZE) {
        bytes[..64].copy_from_slice(&Buffer::new(SIZE, 1).as_slice()[..64]);
        let first = record(1, 4096);
        bytes[64..64 + first.len()].copy_from_slice(&first);
        bytes[broken] ^= 1;
        if let Ok((_, records)) = walk(&bytes) {
            prop_assert!(records.count() <= SIZE / 33);
        }
    }
}

#[test]
fn a_segment_of_another_format_or_size_is_refused() {
    let buffer = Buffer::new(SIZE, 5);
    let [mut version, mut magic] = [0, 1].map(|_| buffer.as_slice().to_vec());
    version[8] = 2;
    magic[0] = 0;
    assert_eq!(walk(&version).unwrap_err(), NotASegment::OtherVersion(2));
    assert_eq!(walk(&magic).unwrap_err(), NotASegment::NoMagic);
    assert_eq!(walk(&[]).unwrap_err(), NotASegment::NoMagic);
    let short = walk(&buffer.as_slice()[..SIZE - 1]).unwrap_err();
    assert_eq!(
        short.to_string(),
        "segment 5 has 16384 bytes: 16383 are here"
    );
}

#[test]
fn a_segment_lies_where_a_direct_write_can_take_it() {
    for number in 0..10 {
        let buffer = Buffer::new(SIZE, number);
        assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(4096));
    }
}
