use super::*;
use page::Random;
use proptest::prelude::*;

const GFN: Gfn = Gfn(0x1234);

fn sealer() -> Sealer {
    Sealer::new(&Key([7; 32]))
}

/// A page of `distinct` bytes of noise, and then the same words again.
fn page(seed: u64, distinct: usize) -> PageBytes {
    let mut random = Random::new(seed);
    let mut page = [0x55; PAGE_BYTES];
    page[..distinct].fill_with(|| random.next().to_le_bytes()[0]);
    page
}

fn record(sealer: &Sealer, gfn: Gfn, page: &PageBytes) -> Record {
    match sealer.seal(gfn, page).unwrap() {
        Sealed::Record(record) => record,
        Sealed::Filled(..) => panic!("the page is not filled with one word"),
    }
}

fn open(sealer: &Sealer, record: &Record, bytes: &[u8]) -> Result<PageBytes, Damaged> {
    let RecordHeader {
        gfn, generation, ..
    } = record.header;
    let mut page = [0xee; PAGE_BYTES];
    sealer.open((gfn, generation), &mut bytes.to_vec(), &mut page)?;
    Ok(page)
}

proptest! {
    #[test]
    fn a_page_comes_back_as_it_left(seed: u64, distinct in 0..=PAGE_BYTES) {
        let (sealer, page) = (sealer(), page(seed, distinct));
        match sealer.seal(GFN, &page).unwrap() {
            Sealed::Filled(gfn, word) => prop_assert_eq!((gfn, filled_page(word)), (GFN, page)),
            Sealed::Record(record) => prop_assert_eq!(open(&sealer, &record, &record.bytes).unwrap(), page),
        }
    }

    #[test]
    fn any_bytes_in_place_of_a_record_are_an_error_that_names_the_page(bytes: Vec<u8>) {
        let sealer = sealer();
        let mut page = [0; PAGE_BYTES];
        let damaged = sealer.open((GFN, Generation(1)), &mut bytes.clone(), &mut page).unwrap_err();
        prop_assert_eq!(damaged.gfn(), GFN);
    }
}

#[test]
fn each_bit_of_a_record_counts() {
    let sealer = sealer();
    for distinct in [600, PAGE_BYTES] {
        let record = record(&sealer, GFN, &page(1, distinct));
        for bit in 0..record.bytes.len() * 8 {
            let mut bytes = record.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let damaged = open(&sealer, &record, &bytes).unwrap_err();
            assert_eq!(damaged.gfn(), GFN, "bit {bit}: {damaged}");
        }
    }
}

#[test]
fn a_record_cut_short_or_long_is_refused_at_every_length() {
    let sealer = sealer();
    let record = record(&sealer, GFN, &page(1, 600));
    for length in 0..record.bytes.len() {
        open(&sealer, &record, &record.bytes[..length]).unwrap_err();
    }
    let longer = [&record.bytes[..], &[0]].concat();
    assert!(matches!(
        open(&sealer, &record, &longer),
        Err(Damaged::WrongLength { gfn: GFN, .. })
    ));
}

#[test]
fn an_older_record_of_the_page_is_refused() {
    let sealer = sealer();
    let old = record(&sealer, GFN, &page(1, 600));
    let new = record(&sealer, GFN, &page(2, 600));
    assert_eq!(
        open(&sealer, &new, &old.bytes),
        Err(Damaged::OtherGeneration {
            gfn: GFN,
            expected: new.header.generation,
            found: old.header.generation,
        })
    );
}

#[test]
fn another_pages_record_is_refused() {
    let sealer = sealer();
    let mine = record(&sealer, GFN, &page(1, 600));
    let other = record(&sealer, Gfn(9), &page(1, 600));
    let found = Gfn(9);
    assert_eq!(
        open(&sealer, &mine, &other.bytes),
        Err(Damaged::OtherPage { gfn: GFN, found })
    );
}

#[test]
fn another_vms_record_of_the_same_page_and_generation_is_refused() {
    let (mine, other) = (sealer(), Sealer::new(&Key([8; 32])));
    let record = record(&other, GFN, &page(1, 600));
    let generation = record.header.generation;
    assert_eq!(
        open(&mine, &record, &record.bytes),
        Err(Damaged::NotAuthentic {
            gfn: GFN,
            generation
        })
    );
}

#[test]
fn no_two_records_have_the_same_nonce_whoever_seals() {
    let sealer = sealer();
    let seal = || -> Vec<u64> {
        let page = page(1, 600);
        let seal = |gfn| record(&sealer, Gfn(gfn), &page).header.generation.0;
        (0..500).map(seal).collect()
    };
    let mut all = std::thread::scope(|scope| {
        let threads = [scope.spawn(seal), scope.spawn(seal), scope.spawn(seal)];
        threads
            .map(|thread| thread.join().unwrap())
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    });
    all.sort_unstable();
    assert_eq!(all, (1..=1500).collect::<Vec<_>>());
}

#[test]
fn equal_pages_are_sealed_to_different_bytes() {
    let sealer = sealer();
    let [first, second] = [1, 1].map(|seed| record(&sealer, GFN, &page(seed, 600)));
    assert_ne!(first.bytes[HEADER_BYTES..], second.bytes[HEADER_BYTES..]);
}

#[test]
fn the_last_generation_is_used_and_none_after_it() {
    let sealer = Sealer::starting_at(&Key([7; 32]), Generation(MOST_NUMBER));
    let page = page(1, 600);
    let last = record(&sealer, GFN, &page);
    assert_eq!(last.header.generation.0, MOST_NUMBER);
    for _ in 0..3 {
        assert_eq!(sealer.seal(GFN, &page), Err(GenerationsExhausted));
    }
    assert_eq!(open(&sealer, &last, &last.bytes), Ok(page));
}

#[test]
fn what_does_not_shrink_below_3_kib_is_stored_as_it_is() {
    let sealer = sealer();
    let kind = |distinct| record(&sealer, GFN, &page(1, distinct)).header.kind;
    assert_eq!(kind(3000), Kind::Lz4);
    assert_eq!(kind(3200), Kind::Plain);
    assert_eq!(
        record(&sealer, GFN, &page(1, PAGE_BYTES)).bytes.len(),
        crate::record::MOST_RECORD_BYTES
    );
}

#[test]
fn neither_a_key_nor_a_sealer_shows_the_key() {
    let key = Key([0xab; 32]);
    let shown = format!("{key:?} {:?}", Sealer::new(&key));
    assert!(!shown.contains("ab, ") && !shown.contains("171"), "{shown}");
}
