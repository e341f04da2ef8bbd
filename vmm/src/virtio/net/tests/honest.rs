//! A driver that does as the standard says.

use super::*;
use crate::virtio::Device;
use crate::virtio::mmio::register;
use proptest::prelude::*;

#[test]
fn the_card_says_its_address_its_link_and_the_length_of_its_packets() {
    let (card, _far) = on_a_line(ALL);
    let mut space = [0xee; 16];
    card.driver.transport.read(0x100, &mut space);
    assert_eq!(space[..6], [2, 0, 0, 0, 0, 7]);
    assert_eq!(space[6..8], [1, 0], "the link is up");
    assert_eq!(space[10..12], 1500u16.to_le_bytes());
    assert_eq!(space[12..], [0; 4], "nothing lies behind");
    assert_eq!(card.driver.read(register::DEVICE_ID), 1);
    assert_ne!(card.driver.transport.device().features() & F_MTU, 0);
    card.driver.transport.write(0x100, &[9; 4]);
    assert_eq!(
        card.driver.transport.device().config_space()[..6],
        space[..6]
    );
}

#[test]
fn a_frame_leaves_as_it_is_however_it_is_spread_over_buffers() {
    let (mut card, far) = on_a_line(ALL);
    let packet = packet_of(&frame(1000));
    let cuts = [0, 1, 11, 12, 13, 26, 700, packet.len()];
    let mut buffers = Vec::new();
    for (index, cut) in (0..).zip(cuts.windows(2)) {
        card.driver.put(buffer(index), &packet[cut[0]..cut[1]]);
        buffers.push((buffer(index), u32::try_from(cut[1] - cut[0]).unwrap(), 0));
    }
    card.driver.offer(TRANSMIT, 3, &buffers);
    assert_eq!(card.serve(), [Wait::Frames, Wait::Notice]);
    assert_eq!(next_packet(&far), Some(packet));
    assert_eq!(card.returned(TRANSMIT), [(3, 0)]);
    let counters = card.counters();
    assert_eq!((counters.sent_packets, counters.sent_bytes), (1, 1000));
}

#[test]
fn a_frame_that_comes_lies_in_one_buffer_where_it_fits() {
    let (mut card, far) = on_a_line(ALL);
    card.offer_buffers(0, 4, 1526);
    far.write_packet(&packet_of(&frame(1514))).unwrap();
    assert_eq!(card.serve(), [Wait::Frames, Wait::Notice]);
    let returned = card.returned(RECEIVE);
    assert_eq!(returned, [(0, 1526)]);
    let packet = card.filled(&returned);
    assert_eq!(packet[10..12], [1, 0], "in one buffer");
    assert_eq!(packet[12..], frame(1514));
    assert_eq!(card.counters().received_bytes, 1514);
}

#[test]
fn a_long_frame_lies_in_as_many_buffers_as_it_needs() {
    let (mut card, far) = on_a_line(ALL);
    card.offer_buffers(0, 100, 1526);
    far.write_packet(&packet_of(&frame(LONGEST_FRAME))).unwrap();
    card.serve();
    let returned = card.returned(RECEIVE);
    assert_eq!(
        returned.len(),
        (LONGEST_FRAME + HEADER_BYTES).div_ceil(1526)
    );
    let packet = card.filled(&returned);
    assert_eq!(
        usize::from(packet[10]),
        returned.len(),
        "the header counts them"
    );
    assert_eq!(packet[12..], frame(LONGEST_FRAME));
}

#[test]
fn a_frame_waits_for_buffers_and_the_tap_is_not_read_meanwhile() {
    let (mut card, far) = on_a_line(ALL);
    far.write_packet(&packet_of(&frame(3000))).unwrap();
    far.write_packet(&packet_of(&frame(60))).unwrap();
    assert_eq!(card.serve(), [Wait::Notice, Wait::Notice]);
    card.offer_buffers(0, 1, 1526);
    assert_eq!(card.serve(), [Wait::Notice, Wait::Notice], "too few");
    assert_eq!(card.returned(RECEIVE), []);
    card.offer_buffers(1, 3, 1526);
    assert_eq!(card.serve(), [Wait::Frames, Wait::Notice]);
    let returned = card.returned(RECEIVE);
    assert_eq!(returned.len(), 3);
    assert_eq!(card.filled(&returned[..2])[12..], frame(3000));
    assert_eq!(
        card.filled(&returned[2..])[12..],
        frame(60),
        "in their order"
    );
}

#[test]
fn without_merging_a_frame_that_is_longer_than_the_next_buffer_is_dropped() {
    let (mut card, far) = on_a_line(ALL & !F_MRG_RXBUF);
    card.offer_buffers(0, 2, 1526);
    far.write_packet(&packet_of(&frame(1515))).unwrap();
    far.write_packet(&packet_of(&frame(1514))).unwrap();
    card.serve();
    assert_eq!(
        card.returned(RECEIVE),
        [(0, 1526)],
        "the buffer was for the next"
    );
    assert_eq!(card.counters().received_no_room, 1);
}

#[test]
fn a_frame_that_no_number_of_the_queues_buffers_holds_is_dropped() {
    let (mut card, far) = on_a_line(ALL);
    card.driver.start_with_size(ALL, 2);
    card.driver.offer(RECEIVE, 0, &[(buffer(0), 100, WRITE)]);
    card.driver.offer(RECEIVE, 1, &[(buffer(1), 100, WRITE)]);
    far.write_packet(&packet_of(&frame(189))).unwrap();
    far.write_packet(&packet_of(&frame(188))).unwrap();
    assert_eq!(card.serve(), [Wait::Frames, Wait::Notice]);
    assert_eq!(card.returned(RECEIVE), [(0, 100), (1, 100)]);
    assert_eq!(card.counters().received_no_room, 1);
}

#[test]
fn what_is_left_to_do_goes_with_the_frame() {
    let (mut card, far) = on_a_line(ALL);
    let header = NetHeader {
        flags: HEADER_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        header_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        buffers: 0,
    };
    card.offer_packet(header, &frame(3000));
    card.offer_buffers(1, 3, 2000);
    far.write_packet(&[&header.to_bytes()[..], &frame(3000)].concat())
        .unwrap();
    card.serve();
    let sent = next_packet(&far).unwrap();
    assert_eq!(sent[..HEADER_BYTES], header.to_bytes());
    let returned = card.returned(RECEIVE);
    let got = card.filled(&returned);
    let told = NetHeader {
        buffers: 2,
        ..header
    };
    assert_eq!(got[..HEADER_BYTES], told.to_bytes());
}

#[test]
fn a_driver_that_asks_for_no_interrupt_before_an_index_gets_none_before() {
    let (mut card, far) = on_a_line(ALL | F_EVENT_IDX);
    // For received packets: not before the third came back.
    let event = avail_address(RECEIVE) + 4 + 2 * u64::from(LARGEST_QUEUE);
    card.driver.put(event, &2u16.to_le_bytes());
    card.offer_buffers(0, 8, 1526);
    for expected in [false, false, true, false] {
        far.write_packet(&packet_of(&frame(60))).unwrap();
        card.serve();
        assert_eq!(card.driver.interrupt.line().drain(), expected);
    }
    let (mut card, _far) = on_a_line(ALL);
    card.driver.put(avail_address(TRANSMIT), &[1, 0]);
    card.offer_packet(NetHeader::default(), &frame(60));
    card.serve();
    assert!(
        !card.driver.interrupt.line().drain(),
        "the old way to say so"
    );
    card.driver.put(avail_address(TRANSMIT), &[0, 0]);
    card.offer_packet(NetHeader::default(), &frame(60));
    card.serve();
    assert!(card.driver.interrupt.line().drain());
}

/// The index from which on the driver is to tell of chains follows those that were taken.
#[test]
fn a_driver_is_asked_to_tell_of_the_next_chain_whenever_the_device_waits_for_one() {
    let (mut card, _far) = on_a_line(ALL | F_EVENT_IDX);
    let event = used_address(TRANSMIT) + 4 + 8 * u64::from(LARGEST_QUEUE);
    for sent in 1..=5u16 {
        card.offer_packet(NetHeader::default(), &frame(60));
        assert_eq!(card.serve(), [Wait::Frames, Wait::Notice]);
        assert_eq!(u16::from_le_bytes(card.driver.get(event)), sent);
    }
}

#[test]
fn a_rate_bounds_each_direction_and_a_reset_does_not_lift_it() {
    let [near, far] = line();
    let rate = 1 << 20;
    let spec = NetSpec {
        bytes_per_s: Some(rate),
        ..spec()
    };
    let mut card = Card::started(spec, near, ALL);
    let send_all = |card: &mut Card<LineEnd>| {
        let mut sent = 0;
        loop {
            let before = card.counters().sent_packets;
            card.offer_packet(NetHeader::default(), &frame(4000));
            let waits = card.serve();
            while next_packet(&far).is_some() {}
            if card.counters().sent_packets == before {
                return (sent, waits[1]);
            }
            sent += 4000;
        }
    };
    let (burst, wait) = send_all(&mut card);
    assert!(matches!(wait, Wait::Time(_)), "{wait:?}");
    assert!(burst <= rate / 8, "{burst} at once");
    card.start(ALL);
    assert_eq!(send_all(&mut card).0, 0, "the rate outlives the driver");
    card.now = Duration::from_millis(50);
    let (later, _) = send_all(&mut card);
    let flowed = rate / 20;
    assert!(later.abs_diff(flowed) <= 8000, "{later} of {flowed}");
}

#[test]
fn a_received_frame_counts_against_the_rate() {
    let [near, far] = line();
    let spec = NetSpec {
        bytes_per_s: Some(1 << 20),
        ..spec()
    };
    let mut card = Card::started(spec, near, ALL);
    card.offer_buffers(0, 100, 4096);
    for _ in 0..4 {
        far.write_packet(&packet_of(&frame(60_000))).unwrap();
        card.serve();
    }
    assert_eq!(
        card.counters().received_packets,
        2,
        "the burst, and one that goes over it"
    );
    assert!(matches!(card.serve()[0], Wait::Time(_)));
}

proptest! {
    /// Frames of any length over buffers of any length, as the simplest description of it.
    #[test]
    fn every_frame_comes_whole_and_in_order_or_is_counted(
        lengths in prop::collection::vec(14usize..9000, 1..12),
        sizes in prop::collection::vec(12u32..4096, 60),
    ) {
        let (mut card, far) = on_a_line(ALL);
        for (index, size) in (0..).zip(&sizes) {
            card.driver.offer(RECEIVE, index, &[(buffer(index.into()), *size, WRITE)]);
        }
        let mut room = sizes.iter().map(|&size| size as usize);
        for length in lengths {
            far.write_packet(&packet_of(&frame(length))).unwrap();
            card.serve();
            let (mut buffers, mut left) = (0u16, length + HEADER_BYTES);
            while left > 0 {
                let Some(size) = room.next() else { return Ok(()) };
                left = left.saturating_sub(size);
                buffers += 1;
            }
            let returned = card.returned(RECEIVE);
            prop_assert_eq!(returned.len(), usize::from(buffers));
            let packet = card.filled(&returned);
            prop_assert_eq!(&packet[10..12], &buffers.to_le_bytes()[..]);
            prop_assert_eq!(&packet[12..], &frame(length)[..]);
        }
    }
}
