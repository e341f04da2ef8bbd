//! The log in which a VM's cold pages lie: compressed and sealed, in segments, in memory first and then in the VM's swap file.
//!
//! Nothing here does I/O, reads a clock or starts a thread. The pager of the VM process does I/O, keeps the log under a mutex,
//! and holds that for short steps: what is long (sealing, opening, reading, writing) happens without the log.
//!
//! ```text
//!   out                                            in
//!    │ Sealer::seal                                 ▲ Sealer::open
//!    ▼                                              │
//!   append ──▶ index: gfn → segment, offset ◀──── find ◀── a hole is touched
//!    │                                              ▲
//!    ▼                                              │ a copy            │ bytes of the file, pinned
//!   open segments ──full──▶ the pool ───────────────┴─┐                 │
//!    ▲                        │ the coldest, as they stand              │
//!    │                        ▼                                         │
//!    │ what is needed       the file's slots ───────────────────────────┘
//!    └─── the cleaner ◀───────┘
//! ```
//!
//! * A [record] is one page. It is sealed for its page and its time, not for its place, so it is moved as it is.
//! * A page that is one word again and again has no record: the index holds the word.
//! * A page that does not shrink below 3 KiB is stored as it is, and in segments of its own: memory would win next to
//!   nothing by holding it, so those are written as soon as they are full, whatever else the pool holds, and the pool is
//!   left to pages that are worth it. At most one such segment is open; without a file, or while no slot is free, they
//!   stay in memory like all others, for a page that cannot leave costs more than one that is held at little gain.
//! * A record is *needed* while its page is nowhere else. A page that came back keeps its record until it is written:
//!   if it leaves again unchanged nothing has to be stored. Kept records are never copied, so the cleaner drops them, and
//!   where room is wanted segments of nothing else go first.
//! * A page that the guest has from a disk which it can only read is left to that disk: the index says where it is there.
//! * The cleaner picks [by cost and benefit](CleaningPolicy) and parts old records from young, so that what dies
//!   together lies together.
//! * The file is [reserved](reserved_slots) so large that a page that must go out always can.
//!
//! What a pager does:
//! * *Out*, with the page write-protected: [`Log::keep_out`] if it was not written since it came back; else [`Sealer::seal`],
//!   and [`Log::append`] under the mutex, or [`Log::leave_to_disk`]. Refused with [`Refused::Wait`], it does or awaits work and appends again; with
//!   [`Refused::Full`], the page stays. Only then the page is punched.
//! * *In*: [`Log::find`] under the mutex; without it the read, if there is one, and [`Sealer::open`]; then [`Log::bring`] under
//!   the mutex, and the page is put in place only if that says so: else it is looked for again. A page of one repeated word
//!   is put in place and then forgotten ([`Log::forget`]), as one that was read from its guest's disk, if it is out as that still. Nobody else may bring or give up the page in between.
//! * *Written*, and given up by the guest: [`Log::forget`], before anything reads the log for that page again. A page that
//!   came back must therefore be watched for writes as long as [`Log::keep_out`] is to be used.
//! * *Work*, on a thread of its own: [`Log::next_work`], as [`When::Now`] after appends and when they wait, as [`When::Idle`]
//!   else. A disk that fails writes is not asked again at once: [`AfterFailure::Retry`] hands the same write out again.
//! * *Memory*: segments come from the process's allocator and go back to it. That of glibc keeps blocks of their size once it
//!   has seen some freed (150 segments filled and forgotten four times: 143 MiB stay resident), unless its threshold for
//!   mapping is set by hand (`mallopt(M_MMAP_THRESHOLD, 128 KiB)`: 4 MiB).
//! * An error of [`Sealer::open`] is the loss of that page. The guest must not run on as if it had other contents.
//!
//! What must stay true:
//! * A page's newest contents are found until [`Log::forget`], [`Log::bring`] or newer ones; or an error names the page.
//! * A slot is not written while bytes that were found in it may still be read: a [`FileRange`] pins it. What was read may be out
//!   of date when it arrives; [`Log::bring`] tells, and the page is looked for again.
//! * A segment is read from memory until its write was reported. A write that fails loses nothing.
//! * Never more segments in memory than the pool's, those of the cleaner and those being written included.
//! * No nonce is used twice, whoever seals.
//!
//! [`Log::audit`] checks what can be checked.

#![forbid(unsafe_code)]

mod cleaner;
mod disk_page;
pub mod figures;
mod index;
mod log;
pub mod record;
mod reservation;
pub mod seal;
pub mod segment;
mod slots;

pub use cleaner::CleaningPolicy;
pub use disk_page::DiskPage;
pub use figures::Figures;
pub use log::*;
pub use record::Generation;
pub use reservation::reserved_slots;
pub use seal::{Damaged, GenerationsExhausted, Key, PageBytes, Sealed, Sealer, filled_page};
pub use slots::Slot;
