use super::super::tests::Bench;
use super::*;
use crate::memory::ram::allocated_pages;
use page::PageCount;
use rustix::fs::{FallocateFlags, fallocate};
use sharing::BLOCK_PAGES;
use std::collections::BTreeMap;

const BLOCK: Range<u64> = 0..BLOCK_PAGES as u64;

/// What is found at the pages of the first block, whether the memory file holds them or not.
fn read(bench: &mut Bench, reader: &mut PageReader) -> BTreeMap<usize, Content> {
    let mut all = BTreeMap::new();
    let found = |place, content| assert_eq!(all.insert(place, content), None);
    let count = reader.read_own(&mut bench.vm, &BLOCK, &PageSet::ALL, found);
    assert_eq!(count, all.len() as u64);
    all
}

fn without_windows() -> PageReader {
    PageReader {
        windows: None,
        ..PageReader::new()
    }
}

#[test]
fn what_is_read_through_windows_is_what_is_copied_out() {
    let mut bench = Bench::new();
    BLOCK.for_each(|page| bench.write(page));
    let mut reader = PageReader::new();
    assert!(reader.windows.is_some(), "this kernel has no windows");
    let through_windows = read(&mut bench, &mut reader);
    assert!(bench.vm.windows.may_open());
    assert_eq!(through_windows.len(), BLOCK_PAGES);
    assert_eq!(through_windows, read(&mut bench, &mut without_windows()));
}

/// As one does that is punched when the scanner has asked what is there, and has not read it yet.
#[test]
fn a_hole_in_a_block_is_read_as_zeros_and_stays_a_hole() {
    let mut bench = Bench::new();
    BLOCK.for_each(|page| bench.write(page));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(bench.ram.file(), punch, 300 * 4096, 2 * 4096).unwrap();
    let held = PageCount(BLOCK_PAGES as u64 - 2);
    let all = read(&mut bench, &mut PageReader::new());
    let zeros = all.iter().filter(|(_, content)| **content == Content::Zero);
    assert_eq!(
        zeros.map(|(&place, _)| place).collect::<Vec<_>>(),
        [300, 301]
    );
    assert_eq!(all.len(), BLOCK_PAGES);
    assert_eq!(all, read(&mut bench, &mut without_windows()));
    assert_eq!(allocated_pages(bench.ram.file()).unwrap(), held);
}

#[test]
fn after_a_hole_was_met_for_a_while_no_window_is_opened() {
    let mut windows = WindowsOf::default();
    assert!(windows.may_open());
    windows.lost(Duration::from_millis(1));
    assert!(!windows.may_open());
    std::thread::sleep(Duration::from_millis(101));
    assert!(windows.may_open());
    let mut bench = Bench::new();
    (0..200).for_each(|page| bench.write(page));
    read(&mut bench, &mut PageReader::new());
    assert!(bench.vm.windows.after.is_some());
}

#[test]
fn of_memory_that_its_process_cut_off_the_rest_is_read() {
    let mut bench = Bench::new();
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("cut", flags).unwrap();
    let file = std::fs::File::from(file);
    file.set_len(512 * 4096).unwrap();
    crate::memory::store::write_all(&file, &[7; 256 * 4096], 0).unwrap();
    file.set_len(192 * 4096).unwrap();
    bench.vm.file = std::sync::Arc::new(file);
    let all = read(&mut bench, &mut PageReader::new());
    assert_eq!(
        all.keys().copied().collect::<Vec<_>>(),
        Vec::from_iter(0..192)
    );
}
