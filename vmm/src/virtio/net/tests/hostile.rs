//! A driver that does what the standard forbids.

use super::*;
use crate::memory::ram::GAP_START;
use crate::virtio::mmio::register;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

/// A buffer's address, length and flags.
type Buffer = (u64, u32, u16);

/// An address in the gap for devices, where no guest has memory.
const NOWHERE: u64 = GAP_START.0 * PAGE_SIZE;

/// Offers a chain to be sent, and an honest packet after it: the chain is answered and counted, and
/// only the packet leaves.
fn expect_refused(name: &str, buffers: &[Buffer], count: impl Fn(NetCounters) -> u64) {
    let (mut card, far) = on_a_line(ALL);
    card.driver.offer(TRANSMIT, 1, buffers);
    card.offer_packet(NetHeader::default(), &frame(64));
    assert_eq!(card.serve(), [Wait::Frames, Wait::Notice], "{name}");
    assert_eq!(card.returned(TRANSMIT), [(1, 0), (0, 0)], "{name}");
    assert_eq!(count(card.counters()), 1, "{name}: {:?}", card.counters());
    assert_eq!(next_packet(&far), Some(packet_of(&frame(64))), "{name}");
    assert_eq!(next_packet(&far), None, "{name}");
}

#[test]
fn a_chain_that_is_no_packet_is_answered_and_counted() {
    let good = buffer(1);
    let cases: [(&str, &[Buffer]); 8] = [
        ("for the device to write", &[(good, 100, WRITE)]),
        ("partly to write", &[(good, 100, 0), (good, 10, WRITE)]),
        ("shorter than a header", &[(good, 11, 0)]),
        ("empty", &[(good, 0, 0)]),
        ("a header alone", &[(good, 12, 0)]),
        ("shorter than Ethernet's header", &[(good, 25, 0)]),
        ("where no memory is", &[(good, 12, 0), (NOWHERE, 100, 0)]),
        ("over memory's end", &[(SMALL.bytes() - 50, 100, 0)]),
    ];
    for (name, buffers) in cases {
        expect_refused(name, buffers, |counters| counters.malformed);
    }
    expect_refused("indirect", &[(good, 16, INDIRECT)], |counters| {
        counters.malformed
    });
}

#[test]
fn a_packet_that_is_too_long_is_dropped_before_it_is_read() {
    let longest = u32::try_from(LONGEST_FRAME + HEADER_BYTES).unwrap();
    let over = [(buffer(1), longest + 1, 0)];
    expect_refused("one byte", &over, |counters| counters.sent_too_long);
    let huge = [(buffer(1), 100, 0), (0, u32::MAX, 0)];
    expect_refused("4 GiB", &huge, |counters| counters.sent_too_long);
    let many = [(buffer(1), 1000, 0); 100];
    expect_refused("many", &many, |counters| counters.sent_too_long);
}

#[test]
fn the_longest_packet_is_not_too_long() {
    let (mut card, far) = on_a_line(ALL);
    card.offer_packet(NetHeader::default(), &frame(LONGEST_FRAME));
    card.serve();
    assert_eq!(next_packet(&far), Some(packet_of(&frame(LONGEST_FRAME))));
}

#[test]
fn a_chain_in_a_loop_is_answered_once() {
    let (mut card, far) = on_a_line(ALL);
    for index in 0..2u16 {
        let next = 1 - index;
        let descriptor = virtio_queue::desc::split::Descriptor::new(buffer(1), 10, NEXT, next);
        card.driver.put_descriptor(TRANSMIT, index, descriptor);
    }
    card.driver.offer_head(TRANSMIT, 0);
    card.serve();
    assert_eq!(card.returned(TRANSMIT), [(0, 0)]);
    assert_eq!(card.counters().malformed, 1);
    assert_eq!(next_packet(&far), None);
}

#[test]
fn a_header_that_points_outside_its_packet_never_reaches_the_kernel() {
    let (mut card, far) = on_a_line(ALL);
    let honest = NetHeader {
        flags: HEADER_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    let headers = [
        NetHeader {
            csum_start: 4000,
            ..honest
        },
        NetHeader {
            gso_type: GSO_TCPV4,
            ..honest
        },
        NetHeader {
            gso_type: 3,
            gso_size: 100,
            ..honest
        },
    ];
    for header in headers {
        card.offer_packet(header, &frame(1000));
        card.serve();
    }
    assert_eq!(card.counters().sent_bad_header, 3);
    assert_eq!(next_packet(&far), None);
    card.offer_packet(honest, &frame(1000));
    card.serve();
    assert!(next_packet(&far).is_some());
}

/// What Linux' own driver would never accept half of.
#[test]
fn a_driver_that_did_not_agree_to_offloads_can_neither_ask_for_nor_get_them() {
    let (mut card, far) = on_a_line(VERSION_1 | F_MRG_RXBUF);
    let header = NetHeader {
        flags: HEADER_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    card.offer_buffers(1, 4, 2000);
    card.offer_packet(header, &frame(1000));
    far.write_packet(&[&header.to_bytes()[..], &frame(1000)].concat())
        .unwrap();
    card.serve();
    assert_eq!(card.counters().sent_bad_header, 1);
    assert_eq!(card.counters().received_unwanted, 1);
    assert_eq!(card.returned(RECEIVE), []);
    assert_eq!(next_packet(&far), None);
}

#[test]
fn buffers_that_cannot_take_a_packet_come_back_empty_and_the_packet_goes_into_the_next() {
    let (mut card, far) = on_a_line(ALL);
    let wrong: [&[Buffer]; 6] = [
        &[(buffer(0), 2000, 0)],
        &[(buffer(0), 2000, WRITE), (buffer(1), 10, 0)],
        &[(NOWHERE, 2000, WRITE)],
        &[(SMALL.bytes() - 50, 2000, WRITE)],
        &[(buffer(0), 11, WRITE)],
        &[(buffer(0), 0, WRITE)],
    ];
    for (head, buffers) in (0..).step_by(2).zip(wrong) {
        card.driver.offer(RECEIVE, head, buffers);
    }
    let many = [(buffer(0), 100, WRITE); 65];
    card.driver.offer(RECEIVE, 20, &many);
    card.offer_buffers(90, 1, 2000);
    far.write_packet(&packet_of(&frame(1000))).unwrap();
    assert_eq!(card.serve(), [Wait::Frames, Wait::Notice]);
    let returned = card.returned(RECEIVE);
    let lengths: Vec<u32> = returned.iter().map(|&(_, len)| len).collect();
    assert_eq!(lengths, [0, 0, 0, 0, 0, 0, 0, 1012]);
    assert_eq!(card.counters().malformed, 7);
    assert_eq!(card.filled(&returned[7..])[12..], frame(1000));
}

#[test]
fn an_index_that_jumps_makes_the_device_ask_for_a_reset_after_which_it_works() {
    for queue in [RECEIVE, TRANSMIT] {
        let (mut card, far) = on_a_line(ALL);
        card.driver.set_avail_index(queue, LARGEST_QUEUE + 1);
        far.write_packet(&packet_of(&frame(100))).unwrap();
        assert_eq!(card.serve_once(), None);
        assert_ne!(card.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
        assert_eq!(card.counters().broken_queues, 1);
        card.start(ALL);
        card.offer_packet(NetHeader::default(), &frame(100));
        card.serve();
        assert_eq!(next_packet(&far), Some(packet_of(&frame(100))));
    }
}

#[test]
fn a_driver_without_queues_is_served_without_harm() {
    let (mut card, far) = on_a_line(ALL);
    card.driver.reset();
    card.driver.negotiate(ALL);
    card.driver.add_status(4);
    assert_eq!(card.driver.read(register::STATUS), 0xf);
    far.write_packet(&packet_of(&frame(100))).unwrap();
    assert_eq!(card.serve(), [Wait::Notice, Wait::Notice]);
}

#[test]
fn without_a_driver_nothing_is_done() {
    let (mut card, far) = on_a_line(ALL);
    card.offer_buffers(0, 4, 2000);
    card.driver.write(register::STATUS, 0);
    far.write_packet(&packet_of(&frame(100))).unwrap();
    assert_eq!(card.serve_once(), None);
    assert_eq!(card.memory(buffer(0), 4 * 4096), vec![0; 4 * 4096]);
}
