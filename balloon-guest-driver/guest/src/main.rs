//! The embedded guest: a small OS for memory work, booted by PVH.
//!
//! Everything that can be tested elsewhere is in `balloon-guest-driver`; here is what needs the
//! bare machine. After a short start at CPL 0 (`rt`) all of it runs at CPL 3.
#![no_std]
#![no_main]

mod apic;
mod clock;
mod device;
mod disk;
mod dma;
mod guest;
mod port;
mod power;
mod processors;
mod ram;
mod resources;
mod rt;
mod serial;
mod start_info;

use core::sync::atomic::{AtomicBool, Ordering};

use balloon_guest_driver::command_line::CommandLine;
use balloon_guest_driver::disk::Disk;
use balloon_guest_driver::disk::cache::Cache;
use balloon_guest_driver::frames::Frames;
use balloon_guest_driver::held::Held;
use balloon_guest_driver::set::FrameSet;
use balloon_guest_driver::workload::{FileSystem, Files, Workload};
use balloon_guest_driver::{Gfn, PAGE_SIZE};

use self::device::{Devices, Found};
use self::disk::VirtioDisk;
use self::guest::Guest;
use self::ram::{Arena, Pages};
use self::resources::Resources;
use self::serial::println;
use self::start_info::StartInfo;

/// Blocks that there are tables for, for each frame.
const BLOCKS_A_FRAME: u32 = 4;

/// Where the start at CPL 0 leads, once.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    clock::start();
    serial::start();
    let info = StartInfo::read(start_info);
    let line = CommandLine::parse(info.command_line());
    rt::fill_idt();
    apic::start();
    let mut arena = Arena::behind_image(info.ram());
    // SAFETY: here and nowhere else, and RAM below 1 MiB is nobody's.
    let lead = unsafe { processors::start(line.cpus, info.ram(), &mut arena) };
    println!(
        "ballonet guest {}: {} MiB, {} cpus",
        env!("CARGO_PKG_VERSION"),
        info.ram_mib(),
        1 + lead.workers()
    );
    processors::tell_missing(line.cpus, &lead);
    clock::calibrate();

    let devices = Devices::find(&line);
    let disk = devices.disk.and_then(start_disk);
    let (resources, inside) = build_resources(&info, arena, &line, disk);
    let balloon = devices.balloon.and_then(|Found { transport, pin }| {
        // SAFETY: here and nowhere else.
        let balloon = unsafe { device::start_balloon(transport, line.batch_pages, inside) }?;
        apic::connect(pin, guest::BALLOON_LINE);
        Some(balloon)
    });
    apic::connect(serial::PIN, guest::SERIAL_LINE);
    if balloon.is_none() && line.has_balloon && !line.quiet {
        println!("no balloon device");
    }
    Guest::new(&line, resources, lead, balloon).run()
}

fn start_disk(found: Found) -> Option<VirtioDisk> {
    let Found { transport, pin } = found;
    // SAFETY: here and nowhere else, for there is one such device found.
    let disk = unsafe { VirtioDisk::start(transport) };
    let disk = disk.inspect_err(|error| println!("error: the disk cannot be used: {error}"));
    apic::connect(pin, guest::DISK_LINE);
    disk.ok()
}

/// Cuts what must last from the RAM behind the image; the rest is free. Also returns the set for
/// the frames in the balloon.
fn build_resources(
    info: &StartInfo,
    mut arena: Arena,
    line: &CommandLine<'_>,
    disk: Option<VirtioDisk>,
) -> (Resources, FrameSet<'static>) {
    let end = info.ram().iter().map(|piece| piece.end).max().unwrap_or(0);
    let limit = u32::try_from(end / PAGE_SIZE).expect("16 TiB are more than page tables reach");
    ram::map_above_4_gib(&mut arena, end);
    let set_words = FrameSet::words_for(limit);
    // SAFETY: numbers may have any contents.
    let frames = unsafe { arena.cut(Frames::words_for(limit)) };
    // SAFETY: as before.
    let inside = unsafe { arena.cut(set_words) };
    // SAFETY: as before.
    let other_contents = unsafe { arena.cut(set_words) };
    // SAFETY: a slot is two numbers. There cannot be more frames than numbers below the limit.
    let slots = unsafe { arena.cut(limit as usize) };
    // SAFETY: as before.
    let own = unsafe { arena.cut(limit as usize) };
    let file_system = match &disk {
        Some(disk) => file_system(disk, limit, &mut arena),
        None => FileSystem::none(),
    };
    let mut frames = Frames::new(frames, limit);
    for &piece in info.ram() {
        frames.add_untouched(ram::frames_of(piece, arena.next()));
    }
    let other_contents = FrameSet::new(other_contents, limit);
    let (held, own) = (Held::new(slots), Held::new(own));
    let workload = Workload::new(line.id, held, own, other_contents, file_system);
    // SAFETY: here and nowhere else, after mapping; frames are all behind the arena.
    let pages = unsafe { Pages::new() };
    (
        Resources {
            frames,
            workload,
            pages,
            disk,
            claims_need: line.claims_need,
        },
        FrameSet::new(inside, limit),
    )
}

/// Tables for files on a disk: 8 bytes a block, and no more blocks than four times the memory, so 1 %
/// of it at most. Untouched until they are used.
fn file_system(disk: &VirtioDisk, limit: Gfn, arena: &mut Arena) -> FileSystem<'static> {
    let blocks = disk.block_count().min(limit.saturating_mul(BLOCKS_A_FRAME));
    // SAFETY: numbers may have any contents, and buffers are made of them.
    let buffers = unsafe { arena.cut(limit as usize) };
    // SAFETY: as before.
    let places = unsafe { arena.cut(blocks as usize) };
    // SAFETY: as before.
    let versions = unsafe { arena.cut(blocks as usize) };
    // SAFETY: as before.
    let lengths = unsafe { arena.cut(Files::lengths_for(blocks)) };
    FileSystem::new(Cache::new(buffers, places), Files::new(versions, lengths))
}

/// A bug of this program: told, by the first processor that meets one, and the end of the machine.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if TOLD.swap(true, Ordering::Relaxed) {
        processors::stop();
    }
    println!("{info}");
    power::off()
}
