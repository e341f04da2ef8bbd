//! `dbench`: file clients over the buffer cache, in the spirit of the benchmark of that name and of
//! NetBench before it. What it does in a second depends on the memory that it has.
//!
//! The files are of 64 KiB at most and lie one after the other on the disk. Each client does one thing
//! after the other with one of them, drawn at random: it reads all of it, looks up its size, writes
//! over a part of it, appends to it, or deletes it. A file that is not there is created first. A client
//! has its file for itself meanwhile. (If clients had files for good, those whose files are in memory
//! would run ahead and keep them there, and more memory would only make another one such.) Names and
//! sizes are in memory always, as other systems keep them; what is in files goes through the
//! cache. A client waits for what has to be read; the others go on meanwhile.
//!
//! Every block carries the pattern of [`Stamp`], which names guest, block and version. The versions are
//! kept outside the cache, and every block read is checked, all of it: one wrong byte ends the run, as
//! it does with `verify`. A client reads only what was written in this run, so what was on the disk
//! before does not matter; and it is lost.
//!
//! **What makes the paper's figures meaningful here.** A hit costs some microseconds and a miss the
//! seek time of the disk's model ([`requests`](crate::disk::requests)), a millisecond at default. With
//! the memory M and files of F in all, drawn uniformly, a part 1 - M/F of the reads misses, and one
//! disk does 1000 of them a second: throughput follows memory, as on the paper's machines, and not
//! this machine's processors, which other guests use, too. `rate` bounds it as clients do that think,
//! or a network.

mod client;
mod files;

use core::fmt;

use self::client::{Client, Kind, Operation};
pub use self::files::Files;
use super::pace::Pace;
use super::spec::{CLIENTS_MAX, DbenchSpec, Distribution, Size};
use super::zipf::Zipf;
use super::{Counters, Slice};
use crate::disk::buffers::{Buffers, FailedRequest, Seen};
use crate::disk::requests::Service;
use crate::disk::{Block, Disk, DiskError};
use crate::page::{Memory, Page, Stamp};
use crate::random::Random;
use crate::{PAGE_SIZE, disk};

/// Blocks of a file at most.
const FILE_BLOCKS: u32 = 16;

/// Why there is no `dbench` on this guest's disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoFiles {
    /// There is no disk.
    NoDisk,
    /// It can only be read.
    ReadOnly,
    /// It has less room than asked for: so many blocks.
    TooLarge {
        /// Blocks asked for.
        files: u32,
        /// Blocks that there is room for.
        room: u32,
    },
    /// There are more clients than files.
    TooFew {
        /// Clients asked for.
        clients: u32,
        /// Blocks for files.
        blocks: u32,
    },
}

impl fmt::Display for NoFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |blocks: u32| u64::from(blocks) * (PAGE_SIZE >> 10);
        match *self {
            Self::NoDisk => f.write_str("dbench needs a disk: start the VM with --disk FILE"),
            Self::ReadOnly => f.write_str(
                "dbench needs a disk that can be written: start the VM with --disk FILE, without `,ro`",
            ),
            Self::TooLarge { files, room } => write!(
                f,
                "files={}K: there is room for {}K, by the disk's size and four times the memory: \
                 ask for less, or give a larger disk",
                kib(files),
                kib(room)
            ),
            Self::TooFew { clients, blocks } => write!(
                f,
                "clients={clients}: each needs a file of {}K and there are {}K in all: ask for fewer, \
                 or give a larger disk",
                kib(FILE_BLOCKS),
                kib(blocks)
            ),
        }
    }
}

/// A block that is not what was written to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WrongBlock {
    /// What it should say.
    pub expected: Stamp,
    /// What its first words say.
    pub found: Stamp,
    /// The first wrong word.
    pub word: usize,
    /// What is in it.
    pub value: u64,
}

impl fmt::Display for WrongBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            expected,
            found,
            word,
            value,
        } = self;
        write!(
            f,
            "dbench: WRONG BYTE block={} expected version={} found guest={} block={} version={} \
             word={word} value={value:#x}",
            expected.gfn, expected.version, found.guest, found.gfn, found.version
        )
    }
}

/// What ended the run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    Wrong(WrongBlock),
    Disk(FailedRequest),
}

impl From<FailedRequest> for Failure {
    fn from(failed: FailedRequest) -> Self {
        Self::Disk(failed)
    }
}

impl fmt::Display for FailedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            action,
            first,
            error,
        } = self;
        write!(f, "dbench: DISK ERROR {action} block={first}: {error}")
    }
}

/// How far it is with its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ending {
    /// What is dirty is being written back.
    WritingBack,
    /// The disk makes it safe.
    Flushing,
}

#[derive(Debug)]
pub(super) struct Dbench {
    spec: DbenchSpec,
    guest: u32,
    pace: Pace,
    random: Random,
    zipf: Option<Zipf>,
    clients: [Client; CLIENTS_MAX],
    /// When each client had something to do last.
    since_ns: [u64; CLIENTS_MAX],
    file_count: u32,
    has_failed: bool,
    ending: Option<Ending>,
}

/// How many blocks the files have in all.
///
/// # Errors
/// Why it cannot be.
pub(super) fn blocks_for(
    spec: DbenchSpec,
    disk: Option<&dyn Disk>,
    limit: u32,
) -> Result<u32, NoFiles> {
    let disk = disk.ok_or(NoFiles::NoDisk)?;
    if disk.is_read_only() {
        return Err(NoFiles::ReadOnly);
    }
    let room = disk.block_count().min(limit);
    let blocks = match spec.files {
        Size::Max => room,
        Size::Pages(files) if files > room => return Err(NoFiles::TooLarge { files, room }),
        Size::Pages(files) => files,
    };
    let clients = u32::from(spec.clients);
    if blocks / FILE_BLOCKS < clients {
        return Err(NoFiles::TooFew { clients, blocks });
    }
    Ok(blocks)
}

impl Dbench {
    /// Clients with files in that many blocks, none of which is there yet.
    pub(super) fn new(spec: DbenchSpec, guest: u32, blocks: u32, now_us: u64) -> Self {
        let file_count = blocks / FILE_BLOCKS;
        let zipf = match spec.distribution {
            Distribution::Uniform => None,
            Distribution::Zipf { theta } => Some(Zipf::new(file_count, theta)),
        };
        Self {
            spec,
            guest,
            pace: Pace::new(u64::from(spec.rate), now_us),
            random: Random::new(u64::from(guest) << 32 | u64::from(spec.seed)),
            zipf,
            clients: [Client::Idle; CLIENTS_MAX],
            since_ns: [0; CLIENTS_MAX],
            file_count,
            has_failed: false,
            ending: None,
        }
    }

    /// How long the disk is to take.
    pub(super) const fn service(&self) -> Service {
        Service {
            seek_us: self.spec.seek_us,
            depth: self.spec.depth,
        }
    }

    pub(super) const fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Nothing more is asked of the disk.
    pub(super) const fn stop(&mut self) {
        self.has_failed = true;
    }

    /// Blocks of all files together.
    pub(super) const fn blocks(&self) -> u32 {
        self.file_count * FILE_BLOCKS
    }

    /// Goes on with what the clients do. Returns when to come again.
    pub(super) fn step<M: Memory>(
        &mut self,
        io: &mut Buffers<'_, '_, M>,
        files: &mut Files<'_>,
        counters: &mut Counters,
        slice: &mut Slice<'_>,
    ) -> Result<Option<u64>, Failure> {
        loop {
            io.now_us = slice.look() / 1000;
            self.note(io.take_done())?;
            if self.has_failed {
                return Ok(Some(wake(io)));
            }
            let moved = self.run_clients(io, files, counters, slice)?;
            io.write_back(false);
            if !moved {
                return Ok(self.wake_at_us(io, slice.now_us()));
            }
            if slice.is_over() {
                return Ok(None);
            }
        }
    }

    /// Ends: what is dirty is written back, without delay, and made safe. `None` when that is done;
    /// otherwise when to come again.
    pub(super) fn wind_up<M: Memory>(
        &mut self,
        io: &mut Buffers<'_, '_, M>,
        slice: &mut Slice<'_>,
    ) -> Result<Option<u64>, Failure> {
        io.now_us = slice.look() / 1000;
        if self.ending.is_none() {
            io.requests.set_service(Service::AT_ONCE);
            self.ending = Some(Ending::WritingBack);
        }
        self.note(io.take_done())?;
        if self.has_failed {
            return Ok((!io.requests.is_empty()).then(|| wake(io)));
        }
        io.write_back(true);
        if io.cache.dirty() == 0
            && io.requests.is_empty()
            && self.ending == Some(Ending::WritingBack)
            && io.start_flush()
        {
            self.ending = Some(Ending::Flushing);
        }
        Ok((!io.requests.is_empty()).then(|| wake(io)))
    }

    /// Nothing more is asked of a disk that failed. Nobody misses a flush that it does not know.
    fn note(&mut self, result: Result<(), FailedRequest>) -> Result<(), Failure> {
        match result {
            Err(FailedRequest {
                action: disk::Action::Flush,
                error: DiskError::Unsupported,
                ..
            }) => Ok(()),
            Err(failed) => {
                self.has_failed = true;
                Err(failed.into())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Lets each client go on that can. True if any has finished something.
    fn run_clients<M: Memory>(
        &mut self,
        io: &mut Buffers<'_, '_, M>,
        files: &mut Files<'_>,
        counters: &mut Counters,
        slice: &mut Slice<'_>,
    ) -> Result<bool, Failure> {
        let mut moved = false;
        // Those that wait first: what has come for them may have to go for what others want.
        for is_waiting in [true, false] {
            for number in 0..usize::from(self.spec.clients) {
                if (self.clients[number] != Client::Idle) != is_waiting {
                    continue;
                }
                if !is_waiting {
                    if slice.is_over() || self.pace.due(slice.now_us()) == 0 {
                        break;
                    }
                    self.pace.note_done(1);
                    self.clients[number] = Client::Wants(self.draw_file());
                    self.since_ns[number] = slice.look();
                }
                if self.go_on(number, io, files, counters)? {
                    moved = true;
                    let took_ns = slice.look() - self.since_ns[number];
                    counters.operation_time.note(took_ns);
                }
            }
        }
        Ok(moved)
    }

    fn draw_file(&mut self) -> u32 {
        match &self.zipf {
            Some(zipf) => zipf.draw(&mut self.random),
            None => self.random.below(self.file_count),
        }
    }

    /// Lets a client go on. True if it has finished something.
    fn go_on<M: Memory>(
        &mut self,
        number: usize,
        io: &mut Buffers<'_, '_, M>,
        files: &mut Files<'_>,
        counters: &mut Counters,
    ) -> Result<bool, Failure> {
        let mut operation = match self.clients[number] {
            Client::Idle => return Ok(false),
            Client::Wants(file) if self.clients.iter().any(|client| client.has(file)) => {
                return Ok(false);
            }
            Client::Wants(file) => self.begin(file, io, files),
            Client::Does(operation) => operation,
        };
        match operation.kind {
            Kind::Read => self.read(&mut operation, io, files, counters)?,
            Kind::Write => self.write(&mut operation, io, files),
            Kind::LookUp | Kind::Delete => {}
        }
        if !operation.is_done() {
            self.clients[number] = Client::Does(operation);
            return Ok(false);
        }
        self.clients[number] = Client::Idle;
        counters.operations += 1;
        let bytes = u64::from(operation.count) * PAGE_SIZE;
        match operation.kind {
            Kind::Read => counters.read_bytes += bytes,
            Kind::Write => counters.written_bytes += bytes,
            Kind::LookUp | Kind::Delete => {}
        }
        Ok(true)
    }

    /// Something to be done with a file that no client has. The file is at once as long as it will be.
    fn begin<M: Memory>(
        &mut self,
        file: u32,
        io: &mut Buffers<'_, '_, M>,
        files: &mut Files<'_>,
    ) -> Operation {
        let operation = client::draw(&mut self.random, self.spec.write, file, files.length(file));
        match operation.kind {
            Kind::Delete => {
                for block in files.blocks(file) {
                    io.cache.forget(block);
                }
                files.set_length(file, 0);
            }
            Kind::Write => {
                let end = operation.first + operation.count - file * FILE_BLOCKS;
                files.set_length(file, end.max(files.length(file)));
            }
            Kind::Read | Kind::LookUp => {}
        }
        operation
    }

    fn read<M: Memory>(
        &mut self,
        operation: &mut Operation,
        io: &mut Buffers<'_, '_, M>,
        files: &Files<'_>,
        counters: &mut Counters,
    ) -> Result<(), Failure> {
        while let Some(index) = operation.next_wanted() {
            let block = operation.first + index;
            match io.see(block) {
                Seen::Page(page) => {
                    counters.checks += 1;
                    counters.hits += u64::from(!operation.was_asked(index));
                    if let Err(wrong) = check(self.stamp(block, files), page) {
                        self.has_failed = true;
                        return Err(Failure::Wrong(wrong));
                    }
                    operation.note_done(index);
                }
                Seen::Busy => operation.pass_over(index),
                Seen::Absent => {
                    let started = io.start_read(block, operation.count - index);
                    counters.misses += u64::from(started);
                    if started == 0 {
                        break;
                    }
                    operation.note_asked(index, started);
                }
            }
        }
        operation.look_at_all_again();
        Ok(())
    }

    fn write<M: Memory>(
        &self,
        operation: &mut Operation,
        io: &mut Buffers<'_, '_, M>,
        files: &mut Files<'_>,
    ) {
        while let Some(index) = operation.next_wanted() {
            let block = operation.first + index;
            let Some(page) = io.write(block) else {
                operation.pass_over(index);
                continue;
            };
            files.next_version(block);
            self.stamp(block, files).write(page);
            operation.note_done(index);
        }
        operation.look_at_all_again();
    }

    const fn stamp(&self, block: Block, files: &Files<'_>) -> Stamp {
        Stamp {
            guest: self.guest,
            gfn: block,
            version: files.version(block),
        }
    }

    /// When something can go on: a client that waits for nothing, or the disk.
    fn wake_at_us<M>(&self, io: &Buffers<'_, '_, M>, now_us: u64) -> Option<u64> {
        let clients = &self.clients[..usize::from(self.spec.clients)];
        if clients.contains(&Client::Idle) {
            Some(self.pace.wake_at_us(now_us)?.min(wake(io)))
        } else {
            Some(wake(io))
        }
    }
}

/// When the disk is next known to have done something; never, if only it can tell.
fn wake<M>(io: &Buffers<'_, '_, M>) -> u64 {
    io.requests.wake_at_us().unwrap_or(u64::MAX)
}

fn check(expected: Stamp, page: &Page) -> Result<(), WrongBlock> {
    match expected.first_wrong_word(page) {
        None => Ok(()),
        Some(word) => Err(WrongBlock {
            expected,
            found: Stamp::read(page),
            word,
            value: page[word],
        }),
    }
}
