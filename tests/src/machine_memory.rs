//! Machine memory of a host and its VMs by the kernel's word alone: what is used, which frames of the
//! shared-page store are mapped where, and how many different contents there are.
//!
//! Nothing here asks the host. Contents are read where reading allocates nothing: what is in a memory
//! file through that file, whose holes read as zeros, and what lies over the store through the process.

use crate::process::{MEMORY_FILE, anonymous_bytes, descriptors};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// The name of a shared-page store.
pub const STORE: &str = "ballonet-store";
const PAGE_BYTES: usize = 4096;

/// What all VMs together use: their memory files, the stores, and anonymous memory of the VMs'
/// processes, in bytes. A file counts once, whoever has it.
#[must_use]
pub fn used_bytes(host: u32, vms: &[u32]) -> u64 {
    let processes = || vms.iter().copied().chain([host]);
    let files: u64 = [MEMORY_FILE, STORE]
        .into_iter()
        .map(|name| file_bytes(processes(), name))
        .sum();
    files + vms.iter().map(|&pid| anonymous_bytes(pid)).sum::<u64>()
}

/// What the stores hold that any of these processes has, in bytes.
#[must_use]
pub fn stored_bytes(processes: &[u32]) -> u64 {
    file_bytes(processes.iter().copied(), STORE)
}

fn file_bytes(processes: impl Iterator<Item = u32>, name: &str) -> u64 {
    let paths = processes.flat_map(|pid| descriptors(pid, name));
    // Each memory file may be alone in a file system of its own.
    let by_file: BTreeMap<(u64, u64), u64> = paths
        .filter_map(|path| fs::metadata(path).ok())
        .map(|metadata| ((metadata.dev(), metadata.ino()), metadata.blocks() * 512))
        .collect();
    by_file.values().sum()
}

/// A part of a process's memory that a file is mapped to (proc_pid_maps(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
}

impl Area {
    fn parse(line: &str) -> Option<Self> {
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (offset, inode) = (words.nth(1)?, words.nth(1)?);
        Some(Self {
            start: hexadecimal(start)?,
            end: hexadecimal(end)?,
            offset: hexadecimal(offset)?,
            inode: inode.parse().ok()?,
        })
    }

    fn frames(self) -> impl Iterator<Item = Frame> {
        let offsets = (self.offset..self.offset + (self.end - self.start)).step_by(PAGE_BYTES);
        offsets.map(move |offset| Frame {
            store: self.inode,
            offset,
        })
    }
}

fn maps(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs")
}

/// The areas over which a process has a store mapped.
fn store_areas(pid: u32) -> Vec<Area> {
    let maps = maps(pid);
    let lines = maps.lines().filter(|line| line.contains(STORE));
    lines
        .map(|line| Area::parse(line).expect("the kernel's lines can be parsed"))
        .collect()
}

/// How many memory areas a process has.
#[must_use]
pub fn area_count(pid: u32) -> u64 {
    maps(pid).lines().count() as u64
}

/// A page of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    /// The store's inode.
    pub store: u64,
    /// Where in the store, in bytes.
    pub offset: u64,
}

/// The frames that a process has mapped, those included over which its guest has written since.
#[must_use]
pub fn mapped_frames(pid: u32) -> BTreeSet<Frame> {
    store_areas(pid)
        .into_iter()
        .flat_map(Area::frames)
        .collect()
}

/// Bytes of a process that show a frame of a store: mapped from there, and not written to since.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn shown_bytes(pid: u32) -> u64 {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("root may look");
    let shown = |area: Area| {
        let pages =
            usize::try_from((area.end - area.start) / PAGE_BYTES as u64).expect("it is mapped");
        let mut entries = vec![0; pages * 8];
        let start = area.start / PAGE_BYTES as u64 * 8;
        pagemap
            .read_exact_at(&mut entries, start)
            .expect("the process runs");
        let (entries, _) = entries.as_chunks::<8>();
        let is_shown = |entry: &&[u8; 8]| {
            // Present, and of a file or shared (proc_pid_pagemap(5)). One that nobody has touched shows it too.
            let bits = u64::from_le_bytes(**entry);
            bits >> 63 == 0 || bits >> 61 & 1 == 1
        };
        entries.iter().filter(is_shown).count()
    };
    let pages: usize = store_areas(pid).into_iter().map(shown).sum();
    (pages * PAGE_BYTES) as u64
}

/// The stores that a process has a descriptor of, and whether each can be written through it.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn store_descriptors(pid: u32) -> BTreeMap<u64, bool> {
    let paths = descriptors(pid, STORE).into_iter();
    paths
        .map(|path| {
            let inode = fs::metadata(&path)
                .expect("an open file has metadata")
                .ino();
            (inode, is_writable(pid, &path))
        })
        .collect()
}

fn is_writable(pid: u32, path: &std::path::Path) -> bool {
    let number = path.file_name().expect("a number").to_string_lossy();
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).expect("it is open");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|text| u64::from_str_radix(text.trim(), 8).ok());
    flags.expect("flags in octal") & 0o3 != 0
}

/// How many different contents the pages of these VMs have, zeros not counted: as many pages as the
/// best of hosts would need for them.
#[must_use]
pub fn distinct_contents(vms: &[u32]) -> u64 {
    let mut contents = HashSet::new();
    for &pid in vms {
        add_shared(pid, &mut contents);
        add_own(pid, &mut contents);
    }
    contents.len() as u64
}

fn add_shared(pid: u32, contents: &mut HashSet<u64>) {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may look");
    for area in store_areas(pid) {
        add_pages(&memory, area.start..area.end, contents);
    }
}

fn add_own(pid: u32, contents: &mut HashSet<u64>) {
    let path: PathBuf = crate::process::memory_file(pid);
    let file = File::open(path).expect("root may look");
    let length = file.metadata().expect("an open file has metadata").len();
    let mut end = 0;
    while end < length
        && let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(end))
    {
        let hole = rustix::fs::SeekFrom::Hole(start);
        end = rustix::fs::seek(&file, hole).expect("a hole ends every file");
        add_pages(&file, start..end, contents);
    }
}

fn add_pages(source: &File, range: std::ops::Range<u64>, contents: &mut HashSet<u64>) {
    let mut page = [0; PAGE_BYTES];
    for address in range.step_by(PAGE_BYTES) {
        // A page may be on its way to somewhere else.
        if source.read_exact_at(&mut page, address).is_ok() && page.iter().any(|&byte| byte != 0) {
            let mut hasher = DefaultHasher::new();
            hasher.write(&page);
            contents.insert(hasher.finish());
        }
    }
}
