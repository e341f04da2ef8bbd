//! The door between what a VM process says and what its host believes.
//!
//! A VM process runs a guest, and a guest that has broken its device may say anything in its name. What must
//! add up is compared with what the host knows itself: the VM's size, its devices, its age. What only grows is
//! cut off where no sum over all VMs can overflow. What a guest says of its own memory passes through: that is
//! for whoever reads it to doubt (`policy::GuestFigures`).

use crate::memory::ram::{self, check_memory};
use page::{PAGE_SIZE, PageCount, PageStates};
use protocol::{
    BalloonCounters, BalloonView, BlockedTime, Description, JailReport, LargePageCounters,
    Latencies, Observation, SharingCounters, SwapCounters, VmConfig, VmCounters,
};
use rustix::fd::OwnedFd;
use sharing::BLOCK_PAGES;
use std::fs::File;
use std::ops::Deref;
use std::time::Duration;
use thiserror::Error;

/// No count of pages or events reaches this: a million a second for nine years.
const MOST_COUNTED: u64 = 1 << 48;
/// Pages that a guest can claim to have given up: the balloon's register has 32 bits.
const MOST_CLAIMED: PageCount = PageCount(1 << 32);

/// Characters of what it says in words.
const MOST_CHARACTERS: usize = 1000;

/// Why what a VM process says cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Untrue {
    #[error("its pages by state do not add up to its size of {0}")]
    States(PageCount),
    #[error("{what} {pages}, and its size is {size}")]
    Beyond {
        what: &'static str,
        pages: PageCount,
        size: PageCount,
    },
    #[error("it was stopped for {stopped_us} of {at_us} µs, and is {age_us} µs old")]
    Blocked {
        stopped_us: u64,
        at_us: u64,
        age_us: u128,
    },
    #[error("it has {said} {what}, and was given {given}")]
    Devices {
        what: &'static str,
        said: usize,
        given: usize,
    },
    #[error("its memory cannot be mapped at {0:#x}")]
    Place(u64),
}

/// An observation that can be true.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Checked(Observation);

impl Deref for Checked {
    type Target = Observation;

    fn deref(&self) -> &Observation {
        &self.0
    }
}

impl Checked {
    /// The only way from what a VM says to what is believed. The VM is not older than `age`.
    pub(super) fn new(said: Observation, vm: &VmConfig, age: Duration) -> Result<Self, Untrue> {
        let size = vm.settings.size;
        check_states(&said.states, size)?;
        let within = |what, pages| match pages <= size {
            true => Ok(()),
            false => Err(Untrue::Beyond { what, pages, size }),
        };
        within("its balloon holds", said.balloon.held)?;
        within("its balloon is to hold", said.balloon.target)?;
        within("it shows shared pages of", said.counters.sharing.mapped)?;
        check_blocked(said.blocked, age)?;
        check_devices("network cards", said.nets.len(), vm.nets.len())?;
        check_devices("disks", said.disks.len(), vm.disks.len())?;
        Ok(Self(Observation {
            balloon: balloon(said.balloon),
            counters: counters(said.counters),
            ..said
        }))
    }
}

fn check_states(states: &PageStates, size: PageCount) -> Result<(), Untrue> {
    let sum: u128 = states.iter().map(|(_, pages)| u128::from(pages.0)).sum();
    match sum == u128::from(size.0) {
        true => Ok(()),
        false => Err(Untrue::States(size)),
    }
}

fn check_blocked(said: BlockedTime, age: Duration) -> Result<(), Untrue> {
    let (stopped_us, at_us, age_us) = (said.total_us, said.at_us, age.as_micros());
    match stopped_us <= at_us && u128::from(at_us) <= age_us {
        true => Ok(()),
        false => Err(Untrue::Blocked {
            stopped_us,
            at_us,
            age_us,
        }),
    }
}

fn check_devices(what: &'static str, said: usize, given: usize) -> Result<(), Untrue> {
    match said == given {
        true => Ok(()),
        false => Err(Untrue::Devices { what, said, given }),
    }
}

fn most(count: u64) -> u64 {
    count.min(MOST_COUNTED)
}

fn most_pages(pages: PageCount) -> PageCount {
    PageCount(most(pages.0))
}

fn balloon(said: BalloonView) -> BalloonView {
    let counters = said.counters;
    BalloonView {
        claimed: said.claimed.min(MOST_CLAIMED),
        counters: BalloonCounters {
            inflated: most(counters.inflated),
            deflated: most(counters.deflated),
            reported: most(counters.reported),
            popped: most(counters.popped),
            outside: most(counters.outside),
            repeated: most(counters.repeated),
            malformed: most(counters.malformed),
            broken_queues: most(counters.broken_queues),
        },
        ..said
    }
}

fn counters(said: VmCounters) -> VmCounters {
    let (sharing, large, swap) = (said.sharing, said.large, said.swap);
    VmCounters {
        given_back: most_pages(said.given_back),
        refused: most_pages(said.refused),
        write_protect_faults: most(said.write_protect_faults),
        sharing: SharingCounters {
            mapped: sharing.mapped,
            shared: most_pages(sharing.shared),
            zeroed: most_pages(sharing.zeroed),
            dropped: most_pages(sharing.dropped),
            copied: most_pages(sharing.copied),
            rehomed: most_pages(sharing.rehomed),
            mappings: most(sharing.mappings),
            differed: most_pages(sharing.differed),
            no_areas: most_pages(sharing.no_areas),
            no_memory: most_pages(sharing.no_memory),
            stale: most_pages(sharing.stale),
        },
        large: LargePageCounters {
            mapped: most_pages(large.mapped),
            made: most(large.made),
            broken_by_balloon: most(large.broken_by_balloon),
            broken_by_sharing: most(large.broken_by_sharing),
            broken_by_sampling: most(large.broken_by_sampling),
            no_memory: most(large.no_memory),
            refused: most(large.refused),
        },
        swap: SwapCounters {
            out: most(swap.out),
            stored_in: most(swap.stored_in),
            filled_in: most(swap.filled_in),
            zero_in: most(swap.zero_in),
            unasked_in: most(swap.unasked_in),
            left_to_disks: most(swap.left_to_disks),
            disk_in: most(swap.disk_in),
            write_errors: most(swap.write_errors),
            refused: most(swap.refused),
            waiting: most(swap.waiting),
            waited_us: most(swap.waited_us),
            keeps_limit: swap.keeps_limit,
            stalled_us: most(swap.stalled_us),
            is_stalled: swap.is_stalled,
            zipped: most(swap.zipped),
            unzipped: most(swap.unzipped),
            read_bytes: most(swap.read_bytes),
            written_bytes: most(swap.written_bytes),
            rewritten_bytes: most(swap.rewritten_bytes),
            cleaned_bytes: most(swap.cleaned_bytes),
            pool_bytes: most(swap.pool_bytes),
            pool_used_bytes: most(swap.pool_used_bytes),
            pool_limit_bytes: most(swap.pool_limit_bytes),
            file_bytes: most(swap.file_bytes),
            file_used_bytes: most(swap.file_used_bytes),
            pool_waits: latencies(swap.pool_waits),
            file_waits: latencies(swap.file_waits),
        },
        register_violations: most(said.register_violations),
        console_lost_bytes: most(said.console_lost_bytes),
    }
}

fn latencies(said: Latencies) -> Latencies {
    Latencies {
        counts: said.counts.map(most),
        sum_us: most(said.sum_us),
    }
}

/// What a VM process says in words, as far as it is short and in one line: events with them are kept, sent to all who look, and
/// logged, where a line that it made would look like the host's own.
pub(super) fn words(said: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    said.chars().take(MOST_CHARACTERS).map(plain).collect()
}

/// Why what a VM process sent as its memory is not taken for that.
#[derive(Debug, Error)]
pub(super) enum NotMemory {
    #[error("its process sent {0} descriptors with its memory, and should have sent one")]
    Count(usize),
    #[error("what its process sent as its memory is none")]
    File(#[source] ram::NotMemory),
}

/// The memory file among what a VM process sent. The host reads from it by calls, which end at the file's end, and through
/// windows that bear with that (`memory::block_window`); neither waits for anybody.
pub(super) fn memory_file(sent: Vec<OwnedFd>, size: PageCount) -> Result<File, NotMemory> {
    let [file] = <[OwnedFd; 1]>::try_from(sent).map_err(|sent| NotMemory::Count(sent.len()))?;
    check_memory(&file, size.bytes()).map_err(NotMemory::File)?;
    Ok(file.into())
}

/// What a VM process says of itself at its start, as far as the host needs it: what the process is to be, and
/// which it is, the host knows itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CheckedStart {
    pub(super) start_us: u64,
    pub(super) userfault_pages: PageCount,
    pub(super) ram_address: u64,
    pub(super) jail: JailReport,
}

impl CheckedStart {
    pub(super) fn new(said: Description, size: PageCount) -> Result<Self, Untrue> {
        if said.userfault_pages > size {
            return Err(Untrue::Beyond {
                what: "its agent holds the faults of",
                pages: said.userfault_pages,
                size,
            });
        }
        check_place(said.ram_address, size)?;
        Ok(Self {
            start_us: said.start_us,
            userfault_pages: said.userfault_pages,
            ram_address: said.ram_address,
            jail: said.jail,
        })
    }
}

/// At the beginning of a block, and no address in it overflows.
fn check_place(address: u64, size: PageCount) -> Result<(), Untrue> {
    let is_block = address.is_multiple_of(BLOCK_PAGES as u64 * PAGE_SIZE);
    match address.checked_add(size.bytes()) {
        Some(_) if is_block => Ok(()),
        _ => Err(Untrue::Place(address)),
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
pub(super) mod tests;
