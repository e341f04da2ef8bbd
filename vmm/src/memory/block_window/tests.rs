//! Windows into real memory files, and what others do to them meanwhile.

use super::*;
use crate::memory::mapping::collapse;
use crate::memory::pagemap::Pagemap;
use crate::memory::ram::{GuestRam, allocated_pages, sealed_memory_file};
use crate::memory::store::{read_all, write_all};
use page::PageCount;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;
use vm_memory::{Bytes, GuestAddress};

const BLOCK: u64 = BLOCK_PAGES as u64;
/// Names the test of which a child process plays a part.
const PART: &str = "BALLONET_TEST_PART";

fn punch(file: &File, page: u64, count: u64) {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, how, page * PAGE_SIZE, count * PAGE_SIZE).unwrap();
}

/// A file that can be cut off, as a hostile process's can.
fn unsealed(pages: u64) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("window", flags).unwrap());
    file.set_len(pages * PAGE_SIZE).unwrap();
    file
}

fn fill(file: &File, pages: Range<u64>) {
    for page in pages {
        let bytes: Vec<u8> = (0..PAGE_SIZE)
            .map(|byte| (page * 31 + byte / 7).to_le_bytes()[0])
            .collect();
        write_all(file, &bytes, page * PAGE_SIZE).unwrap();
    }
}

fn bytes_of(page: &MappedPage<'_>) -> Vec<u8> {
    let words = (0..PAGE_STRIPES).flat_map(|index| page.stripe(index));
    words.flat_map(u64::to_ne_bytes).collect()
}

fn copied(file: &File, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    read_all(file, &mut bytes, page * PAGE_SIZE).unwrap();
    bytes
}

fn assert_reads_alike(file: &File, pages: Range<u64>) {
    let windows = BlockWindows::new().unwrap();
    let window = windows.open(file, pages.clone()).unwrap();
    for (place, page) in pages.enumerate() {
        assert_eq!(
            window.read(place, bytes_of),
            Some(copied(file, page)),
            "page {page}"
        );
    }
}

/// Needs the right to mount, as the whole-guest tests do, and a large page of the machine.
#[test]
fn what_a_window_shows_of_a_large_page_is_what_the_file_holds() {
    let ram = GuestRam::with_large_pages(PageCount(2 * BLOCK)).unwrap();
    assert!(ram.takes_advice(), "no file system for large pages");
    fill(ram.file(), BLOCK..2 * BLOCK);
    // It is mapped here, for what is mapped nowhere is not made large.
    ram.memory()
        .write_obj(1u8, GuestAddress(BLOCK * PAGE_SIZE))
        .unwrap();
    collapse(&ram.addresses(BLOCK..2 * BLOCK)).expect("the machine has no large page to give");
    let windows = BlockWindows::new().unwrap();
    let window = windows.open(ram.file(), BLOCK..2 * BLOCK).unwrap();
    assert!(window.read(0, bytes_of).is_some());
    let pagemap = Pagemap::open(std::process::id()).unwrap();
    assert!(
        pagemap.is_large(window.addresses()).unwrap(),
        "one fault maps it whole"
    );
    drop(window);
    assert_reads_alike(ram.file(), BLOCK..2 * BLOCK);
    assert_eq!(allocated_pages(ram.file()).unwrap(), PageCount(BLOCK));
}

#[test]
fn what_a_window_shows_of_small_pages_is_what_the_file_holds() {
    let file = sealed_memory_file("window", (BLOCK + 100) * PAGE_SIZE).unwrap();
    fill(&file, 0..BLOCK + 100);
    assert_reads_alike(&file, 0..BLOCK);
    assert_reads_alike(&file, BLOCK..BLOCK + 100);
}

#[test]
fn a_hole_cannot_be_read_and_stays_one() {
    let file = unsealed(BLOCK);
    fill(&file, 0..64);
    punch(&file, 20, 1);
    let windows = BlockWindows::new().unwrap();
    let window = windows.open(&file, 0..BLOCK).unwrap();
    assert!(window.read(19, bytes_of).is_some());
    assert_eq!(window.read(20, bytes_of), None);
    assert_eq!(window.read(19, bytes_of), None, "what follows is worthless");
    assert_eq!(allocated_pages(&file).unwrap(), PageCount(63));
    drop(window);
    let window = windows.open(&file, 0..BLOCK).unwrap();
    assert_eq!(
        window.read(19, bytes_of),
        Some(copied(&file, 19)),
        "a new window is as good as the first"
    );
    assert_eq!(window.read(300, bytes_of), None);
    assert_eq!(allocated_pages(&file).unwrap(), PageCount(63));
}

#[test]
fn a_page_that_is_given_up_while_a_window_shows_it_is_free_at_once() {
    let file = unsealed(BLOCK);
    fill(&file, 0..BLOCK);
    let windows = BlockWindows::new().unwrap();
    let window = windows.open(&file, 0..BLOCK).unwrap();
    assert!((0..BLOCK_PAGES).all(|place| window.read(place, bytes_of).is_some()));
    punch(&file, 0, BLOCK);
    assert_eq!(allocated_pages(&file).unwrap(), PageCount::ZERO);
    assert_eq!(window.read(7, bytes_of), None);
    assert_eq!(allocated_pages(&file).unwrap(), PageCount::ZERO);
}

#[test]
fn a_file_that_is_cut_off_under_the_reader_ends_nothing() {
    let file = unsealed(BLOCK);
    fill(&file, 0..BLOCK);
    let windows = BlockWindows::new().unwrap();
    let window = windows.open(&file, 0..BLOCK).unwrap();
    assert!(window.read(400, bytes_of).is_some());
    ftruncate(&file, 100 * PAGE_SIZE).unwrap();
    assert!(window.read(99, bytes_of).is_some());
    assert_eq!(window.read(400, bytes_of), None);
    drop(window);
    let window = windows.open(&file, 0..BLOCK).unwrap();
    assert_eq!(window.read(100, bytes_of), None);
}

#[test]
fn a_file_that_is_punched_and_filled_all_the_time_is_read_or_not_and_no_hole_is_filled() {
    let file = unsealed(BLOCK);
    fill(&file, 0..BLOCK);
    let is_over = AtomicBool::new(false);
    let (read, lost) = thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(Relaxed) {
                round += 1;
                let page = round * 37 % (BLOCK - 4);
                punch(&file, page, 4);
                // What the reader fills in between is seen here: nobody else makes pages now.
                thread::yield_now();
                let held = allocated_pages(&file).unwrap();
                assert_eq!(held, PageCount(BLOCK - 4), "a hole was filled");
                fill(&file, page..page + 4);
            }
            round
        });
        let windows = BlockWindows::new().unwrap();
        let (mut read, mut lost) = (0u64, 0u64);
        let begin = std::time::Instant::now();
        while (read < 1000 || lost < 20) && begin.elapsed().as_secs() < 60 && !churn.is_finished() {
            let window = windows.open(&file, 0..BLOCK).unwrap();
            let seen = (0..BLOCK_PAGES)
                .map_while(|place| window.read(place, bytes_of))
                .count();
            read += seen as u64;
            lost += u64::from(seen < BLOCK_PAGES);
        }
        is_over.store(true, Relaxed);
        assert!(churn.join().unwrap() > 0);
        (read, lost)
    });
    assert!(
        read >= 1000 && lost >= 20,
        "{read} pages read, {lost} times a hole was met"
    );
}

#[test]
fn nothing_of_a_file_stays_when_its_window_is_closed() {
    let file = unsealed(BLOCK);
    fill(&file, 0..BLOCK);
    let maps = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines()
            .filter(|line| line.contains("memfd:window"))
            .count()
    };
    let windows = BlockWindows::new().unwrap();
    let window = windows.open(&file, 0..BLOCK).unwrap();
    window.read(3, bytes_of);
    assert!(maps() > 0);
    drop(window);
    assert_eq!(maps(), 0);
    let window = windows.open(&file, 0..BLOCK).unwrap();
    punch(&file, 0, 1);
    window.read(0, bytes_of);
    drop(window);
    assert_eq!(maps(), 0, "nor after a fault");
}

#[test]
fn a_file_that_cannot_be_written_is_not_mapped() {
    let file = unsealed(BLOCK);
    fill(&file, 0..BLOCK);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let for_reading = File::open(path).unwrap();
    let windows = BlockWindows::new().unwrap();
    let refused = windows.open(&for_reading, 0..BLOCK);
    assert!(
        matches!(refused, Err(MemoryError::RegisterUserfault(Errno::PERM))),
        "{refused:?}"
    );
    assert!(windows.open(&file, 0..BLOCK).is_ok());
}

#[test]
fn each_thread_survives_its_own_faults() {
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let file = unsealed(BLOCK);
                fill(&file, 0..8);
                let windows = BlockWindows::new().unwrap();
                for _ in 0..200 {
                    let window = windows.open(&file, 0..BLOCK).unwrap();
                    assert!(window.read(7, bytes_of).is_some());
                    assert_eq!(window.read(8, bytes_of), None);
                }
                assert_eq!(allocated_pages(&file).unwrap(), PageCount(8));
            });
        }
    });
}

/// Runs a test of this program as a process of its own, told to play its part; how that ended.
fn ends_by(test: &str) -> Option<i32> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        &format!("memory::block_window::tests::{test}"),
        "--nocapture",
    ]);
    let output = child.env(PART, test).output().unwrap();
    output.status.signal()
}

/// Has a test of that name do this as a process of its own, which a SIGBUS must end.
fn ends_by_bus_error(test: &str, part: impl FnOnce()) {
    match std::env::var(PART).is_ok_and(|part| part == test) {
        true => part(),
        false => assert_eq!(ends_by(test), Some(libc::SIGBUS)),
    }
}

#[test]
fn a_bus_error_elsewhere_ends_the_process_as_before() {
    ends_by_bus_error("a_bus_error_elsewhere_ends_the_process_as_before", || {
        let file = unsealed(BLOCK);
        let windows = BlockWindows::new().unwrap();
        let _window = windows.open(&file, 0..BLOCK).unwrap();
        let other = BlockWindow::map(unsealed(0), 0..1).unwrap();
        // SAFETY: none: behind the end of a file. The kernel ends this process.
        unsafe { other.start.cast::<u8>().read_volatile() };
    });
}

#[test]
fn a_bus_error_in_another_threads_window_ends_the_process() {
    ends_by_bus_error(
        "a_bus_error_in_another_threads_window_ends_the_process",
        || {
            let file = unsealed(BLOCK);
            let windows = BlockWindows::new().unwrap();
            let window = windows.open(&file, 0..BLOCK).unwrap();
            let place = window.start.expose_provenance();
            thread::scope(|scope| {
                scope.spawn(move || {
                    let byte = ptr::with_exposed_provenance::<u8>(place);
                    // SAFETY: none: a hole, which the kernel refuses. It ends this process.
                    unsafe { byte.read_volatile() };
                });
            });
        },
    );
}

#[test]
fn a_bus_error_that_is_sent_ends_the_process() {
    ends_by_bus_error("a_bus_error_that_is_sent_ends_the_process", || {
        let _windows = BlockWindows::new().unwrap();
        // SAFETY: raising a signal touches no memory.
        unsafe { libc::raise(libc::SIGBUS) };
    });
}
