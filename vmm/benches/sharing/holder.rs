//! Processes that hold memory: this program again, as a VM's process without a guest, or as one
//! that offers its memory to KSM.
//!
//! A VM's process has guest memory and an agent as a real one has; only nobody runs in it but the
//! thread that fills the memory and writes to it when told to.
#![expect(unsafe_code, reason = "madvise has no safe wrapper")]

use crate::contents::{Contents, Page, shuffle};
use crate::cpu;
use anyhow::{Context, Result, ensure};
use ballonet::internals::SharingSocket;
use ballonet::internals::{AgentHandle, GuestRam};
use page::{Gfn, PAGE_SIZE, PageCount};
use rustix::mm::Advice;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
};

/// The first argument of such a process.
pub(crate) const ARGUMENT: &str = "--hold";

/// What a process is to hold.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) kind: Kind,
    /// Its number among those compared.
    pub(crate) vm: u64,
    pub(crate) contents: Contents,
}

/// What memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Guest memory with an agent, in small pages.
    Vm,
    /// The same in large pages, as VMs have it where the machine has any.
    LargeVm,
    /// Anonymous memory that KSM may merge.
    Mergeable,
    /// Anonymous memory.
    Anonymous,
    /// A private mapping of a memory file, as an agent makes of the store.
    PrivateFile,
}

/// What a process says when its memory is filled.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ready {
    ram_address: u64,
    /// The memory file's number among its descriptors.
    memory_file: Option<i32>,
}

/// Times of single writes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct WriteTimes {
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
}

/// Such a process, for its parent.
#[derive(Debug)]
pub(crate) struct Holder {
    process: Child,
    control: BufReader<UnixStream>,
    ready: Option<Ready>,
    socket: Option<SharingSocket>,
}

impl Holder {
    /// Starts one; it fills its memory while others start.
    pub(crate) fn start(job: &Job) -> Result<Self> {
        let (control, its_control) = UnixStream::pair()?;
        let (socket, its_socket) = SharingSocket::pair()?;
        let process = Command::new(std::env::current_exe()?)
            .args([ARGUMENT, &serde_json::to_string(job)?])
            .stdin(Stdio::from(OwnedFd::from(its_control)))
            .stdout(Stdio::from(OwnedFd::from(its_socket)))
            .spawn()?;
        Ok(Self {
            process,
            control: BufReader::new(control),
            ready: None,
            socket: Some(socket),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn wait_until_filled(&mut self) -> Result<()> {
        self.ready = Some(serde_json::from_str(&self.hear()?)?);
        Ok(())
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.control.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a process that holds memory has died");
        Ok(line)
    }

    fn ready(&self) -> Result<&Ready> {
        self.ready.as_ref().context("not filled yet")
    }

    pub(crate) fn ram_address(&self) -> Result<u64> {
        Ok(self.ready()?.ram_address)
    }

    pub(crate) fn memory_file(&self) -> Result<File> {
        let number = self.ready()?.memory_file.context("it has no memory file")?;
        let path = format!("/proc/{}/fd/{number}", self.pid());
        Ok(File::options().read(true).write(true).open(path)?)
    }

    /// The scanner's end of the way to its agent; once.
    pub(crate) fn take_socket(&mut self) -> Result<SharingSocket> {
        self.socket.take().context("the socket was taken already")
    }

    /// Has it write a word into each page that is not its own, in a random order.
    pub(crate) fn write(&mut self) -> Result<WriteTimes> {
        writeln!(self.control.get_mut(), "write")?;
        Ok(serde_json::from_str(&self.hear()?)?)
    }

    /// Ends it; how long that takes.
    pub(crate) fn end(mut self) -> Result<Duration> {
        let begin = Instant::now();
        self.process.kill()?;
        self.process.wait()?;
        Ok(begin.elapsed())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Such a process. Returns when its parent has gone.
pub(crate) fn run(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job)?;
    let control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let socket = SharingSocket::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let memory = Memory::new(&job, socket)?;
    memory.fill(&job)?;
    let mut lines = BufReader::new(control.try_clone()?).lines();
    writeln!(&control, "{}", serde_json::to_string(&memory.ready()?)?)?;
    while let Some(Ok(_)) = lines.next() {
        writeln!(&control, "{}", serde_json::to_string(&memory.write(&job)?)?)?;
    }
    Ok(())
}

/// The memory of such a process.
enum Memory {
    Vm { ram: GuestRam, _agent: AgentHandle },
    Other(GuestMemoryMmap),
}

impl Memory {
    fn new(job: &Job, socket: SharingSocket) -> Result<Self> {
        let pages = job.contents.pages;
        if let Kind::Vm | Kind::LargeVm = job.kind {
            let ram = match job.kind {
                Kind::LargeVm => GuestRam::with_large_pages(PageCount(pages))?,
                _ => GuestRam::new(PageCount(pages))?,
            };
            let _agent = AgentHandle::start(&ram, Some(socket))?;
            if job.kind == Kind::LargeVm {
                advise_large(&ram.addresses(0..pages))?;
            }
            return Ok(Self::Vm { ram, _agent });
        }
        let bytes = usize::try_from(pages * PAGE_SIZE)?;
        if job.kind == Kind::PrivateFile {
            return private_file(job, bytes).map(Self::Other);
        }
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)])?;
        if job.kind == Kind::Mergeable {
            let start = memory.get_host_address(GuestAddress(0))?;
            // SAFETY: the range is the mapping made above. Merging changes no content.
            unsafe { rustix::mm::madvise(start.cast(), bytes, Advice::LinuxMergeable) }?;
        }
        Ok(Self::Other(memory))
    }

    fn memory(&self) -> &GuestMemoryMmap {
        match self {
            Self::Vm { ram, .. } => ram.memory(),
            Self::Other(memory) => memory,
        }
    }

    /// Where a page is, by its number. Guest memory may have a gap.
    fn address(&self, index: u64) -> GuestAddress {
        let gfn = match self {
            Self::Vm { ram, .. } => {
                let pieces = ram.layout().pieces();
                let piece = pieces
                    .iter()
                    .rfind(|piece| piece.file_offset <= index * PAGE_SIZE);
                piece.map_or(Gfn(index), |piece| {
                    Gfn(piece.pages.start.0 + index - piece.file_offset / PAGE_SIZE)
                })
            }
            Self::Other(_) => Gfn(index),
        };
        GuestAddress(gfn.0 * PAGE_SIZE)
    }

    fn fill(&self, job: &Job) -> Result<()> {
        // What is to be touched first stays untouched, and the file below a private mapping is full.
        if matches!(job.kind, Kind::Anonymous | Kind::PrivateFile) {
            return Ok(());
        }
        let mut bytes = [0; 4096];
        for (index, page) in (0..).zip(job.contents.of(job.vm)) {
            page.fill(job.vm, index, &mut bytes);
            self.memory().write_slice(&bytes, self.address(index))?;
        }
        let large = cpu::kibibytes("/proc/self/smaps_rollup", "ShmemPmdMapped")? >> 2;
        let is_large = job.kind != Kind::LargeVm || large * 10 >= job.contents.pages * 9;
        let pages = job.contents.pages;
        ensure!(
            is_large,
            "only {large} of {pages} pages are in large ones: memory is in pieces, or may not be large"
        );
        Ok(())
    }

    fn ready(&self) -> Result<Ready> {
        let Self::Vm { ram, .. } = self else {
            return Ok(Ready {
                ram_address: 0,
                memory_file: None,
            });
        };
        Ok(Ready {
            ram_address: ram.addresses(0..0).start,
            memory_file: Some(std::os::fd::AsRawFd::as_raw_fd(ram.file())),
        })
    }

    fn write(&self, job: &Job) -> Result<WriteTimes> {
        let pages = (0..).zip(job.contents.of(job.vm));
        let mut pages: Vec<u64> = pages
            .filter(|(_, page)| matches!(page, Page::Common(_)))
            .map(|(index, _)| index)
            .collect();
        shuffle(&mut pages, 1);
        let mut times = Vec::with_capacity(pages.len());
        for index in pages {
            let address = self.address(index);
            let begin = Instant::now();
            self.memory().write_obj(job.vm ^ index, address)?;
            times.push(begin.elapsed().as_nanos());
        }
        times.sort_unstable();
        let percentile = |percent: usize| {
            let time = times.get(times.len().saturating_sub(1) * percent / 100);
            time.and_then(|&time| u64::try_from(time).ok()).unwrap_or(0)
        };
        Ok(WriteTimes {
            p50_ns: percentile(50),
            p99_ns: percentile(99),
        })
    }
}

/// Has a first touch make a whole block.
fn advise_large(addresses: &Range<u64>) -> Result<()> {
    let start = std::ptr::with_exposed_provenance_mut(usize::try_from(addresses.start)?);
    let length = usize::try_from(addresses.end - addresses.start)?;
    // SAFETY: the range is this process's guest memory. What it holds does not change.
    Ok(unsafe { rustix::mm::madvise(start, length, Advice::LinuxHugepage) }?)
}

/// A full memory file, mapped privately; every page was read through the mapping once.
fn private_file(job: &Job, bytes: usize) -> Result<GuestMemoryMmap> {
    let source = Memory::new(
        &Job {
            kind: Kind::Vm,
            ..*job
        },
        SharingSocket::pair()?.0,
    )?;
    source.fill(&Job {
        kind: Kind::Vm,
        ..*job
    })?;
    let Memory::Vm { ram, .. } = &source else {
        unreachable!("made as a VM")
    };
    let mapping = MmapRegionBuilder::new(bytes)
        .with_file_offset(FileOffset::new(ram.file().try_clone()?, 0))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).context("one region")?;
    let memory = GuestMemoryMmap::from_regions(vec![region])?;
    for address in (0..bytes as u64).step_by(4096) {
        memory.read_obj::<u64>(GuestAddress(address))?;
    }
    Ok(memory)
}
