//! The index against a list, and how fast and how large it is.

use super::*;
use crate::frames::Frame;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::Instant;

/// VM slot n and frames n·100.. are of domain n; frames of an odd generation are dead.
struct Model;

impl Owners for Model {
    fn of_vm(&self, slot: VmSlot) -> Option<Domain> {
        Some(Domain(u32::from(slot.get())))
    }
    fn of_frame(&self, key: FrameKey) -> Option<Domain> {
        (key.generation.is_multiple_of(2)).then_some(Domain(key.frame.0 / 100))
    }
}

fn hint(slot: u16, gfn: u32) -> Entry {
    Entry::Hint {
        slot: VmSlot::new(slot),
        gfn,
    }
}

fn frame(frame: u32, generation: u8) -> Entry {
    Entry::Frame(FrameKey {
        frame: Frame(frame),
        generation,
    })
}

/// A good hash of small numbers, as xxh3 is one of pages.
fn spread(number: u64) -> ContentHash {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ContentHash(mixed ^ (mixed >> 32))
}

fn entries() -> impl Strategy<Value = Entry> {
    prop_oneof![
        (1u16..4, 0u32..50).prop_map(|(slot, gfn)| hint(slot, gfn)),
        (100u32..400, 0u8..3).prop_map(|(number, generation)| frame(number, generation)),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, Entry),
    Remove(u64, Entry),
    Resize(usize),
    Forget(u16),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0u64..60, entries()).prop_map(|(hash, entry)| Op::Insert(hash, entry)),
        3 => (0u64..60, entries()).prop_map(|(hash, entry)| Op::Remove(hash, entry)),
        1 => (400usize..9000).prop_map(Op::Resize),
        1 => (1u16..4).prop_map(Op::Forget),
    ];
    prop::collection::vec(op, 0..200)
}

fn all(index: &Index, number: u64, domain: u32) -> BTreeSet<Entry> {
    let found = index.find::<32>(spread(number), Domain(domain), &Model);
    found.entries.iter().flatten().copied().collect()
}

proptest! {
    /// With room for all, what was entered is found, all of it but surplus hints, and nothing else.
    #[test]
    fn an_index_with_room_is_a_list(ops in ops()) {
        let mut index = Index::new(1000);
        let mut model: BTreeSet<(u64, Entry)> = BTreeSet::new();
        // The hashes that once had too many hints, of which some were given up.
        let mut crowded: BTreeSet<u64> = BTreeSet::new();
        for op in ops {
            match op {
                Op::Insert(hash, entry) => {
                    index.insert(spread(hash), entry, &Model);
                    model.insert((hash, entry));
                    if model.iter().filter(|(other, _)| *other == hash).count() > HINTS_PER_HASH {
                        crowded.insert(hash);
                    }
                }
                Op::Remove(hash, entry) => {
                    index.remove(spread(hash), entry);
                    model.remove(&(hash, entry));
                }
                Op::Resize(capacity) => index.resize(capacity, |_| true),
                Op::Forget(gone) => {
                    let keep = |entry| !matches!(entry, Entry::Hint { slot, .. } if slot.get() == gone);
                    index.resize(1000, keep);
                    model.retain(|&(_, entry)| keep(entry));
                }
            }
        }
        let is_hint = |entry: &Entry| matches!(entry, Entry::Hint { .. });
        for slot in 1..4 {
            // Slot n is of domain n.
            let found = (0..60).flat_map(|number| all(&index, number, slot.into()));
            let hints = found.filter(is_hint).count();
            prop_assert_eq!(index.hints_of(VmSlot::new(slot)), hints);
        }
        for number in 0..60 {
            for domain in 1..4 {
                let found = all(&index, number, domain);
                let expected = model.iter().filter(|(hash, _)| *hash == number).map(|&(_, entry)| entry);
                let expected: BTreeSet<Entry> =
                    expected.filter(|&entry| Model.of_entry(entry) == Some(Domain(domain))).collect();
                prop_assert!(found.is_subset(&expected), "{:?} of {:?}", found, expected);
                let is_frame = |entry: &&Entry| matches!(entry, Entry::Frame(_));
                prop_assert_eq!(
                    found.iter().filter(is_frame).count(), expected.iter().filter(is_frame).count()
                );
                let hints = expected.len() - expected.iter().filter(is_frame).count();
                if hints <= 1 && !crowded.contains(&number) {
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}

#[test]
fn a_full_index_gives_up_hints_and_keeps_every_frame() {
    let mut index = Index::new(3000);
    for number in 0..1000 {
        index.insert(spread(number), frame(100, 0), &Model);
    }
    for number in 0..20_000 {
        index.insert(spread(number), hint(1, 7), &Model);
    }
    for number in 0..1000 {
        assert!(all(&index, number, 1).contains(&frame(100, 0)), "{number}");
    }
    let stats = index.stats();
    assert!(stats.replaced_hints > 10_000, "{stats:?}");
    assert_eq!((stats.frames, stats.lost_frames), (1000, 0));
}

#[test]
fn the_place_of_a_freed_frame_is_used_again() {
    let mut index = Index::new(1);
    for number in 0..24 {
        index.insert(spread(number), frame(100, 1), &Model);
    }
    for number in 24..48 {
        index.insert(spread(number), frame(100, 0), &Model);
        assert_eq!(all(&index, number, 1).len(), 1);
    }
    assert_eq!(index.stats().lost_frames, 0);
}

#[test]
fn at_its_capacity_an_index_holds_all_in_14_bytes_a_page() {
    let pages = 300_000;
    let mut index = Index::new(pages);
    for number in 0..pages {
        index.insert(spread(number as u64), hint(1, 0), &Model);
    }
    let stats = index.stats();
    assert!(stats.hints >= pages - pages / 200, "{stats:?}");
    assert!(stats.bytes <= pages * 14, "{stats:?}");
}

/// `cargo nextest run -p sharing --release --run-ignored only --no-capture`
#[test]
#[ignore = "a measurement, for a release build on a calm machine"]
fn measure_lookup_and_insert() {
    for pages in [1u32 << 18, 1 << 22] {
        let capacity = pages as usize;
        let mut index = Index::new(capacity);
        let report = |label: &str, start: Instant| {
            let ns = start.elapsed().as_nanos() / u128::from(pages);
            println!("{pages} pages: {label} {ns} ns a page");
        };
        let start = Instant::now();
        let warm = |index: &Index, block: u32| {
            index.warm((block..block + 512).map(|number| spread(number.into())));
        };
        for number in 0..pages {
            if number.is_multiple_of(512) {
                warm(&index, number);
            }
            let hash = spread(number.into());
            assert_eq!(index.find::<4>(hash, Domain(1), &Model).frames().count(), 0);
            index.insert(hash, hint(1, number), &Model);
        }
        report("lookup that misses, then insert", start);
        let start = Instant::now();
        let hits = |number: u32| {
            if number.is_multiple_of(512) {
                warm(&index, number);
            }
            let found = index.find::<4>(spread(number.into()), Domain(1), &Model);
            found.hints().count()
        };
        let hits: usize = (0..pages).map(hits).sum();
        report("lookup that hits", start);
        let start = Instant::now();
        for number in (0..pages).map(|number| number.rotate_left(7) % pages) {
            black_box(index.find::<4>(spread(number.into()), Domain(1), &Model));
        }
        report("lookup that hits, not warmed", start);
        let bytes = index.stats().bytes as f64 / f64::from(pages);
        let start = Instant::now();
        index.resize(capacity + 1000, |_| true);
        report("resize", start);
        println!("{pages} pages: {bytes:.2} bytes a page, {hits} found");
    }
}
