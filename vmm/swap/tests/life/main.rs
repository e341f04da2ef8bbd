//! No order in which its threads may run loses a page: a model of what a VM process does with a page that goes out and comes
//! back, under shuttle, which runs it in many orders, each by a seed.
//!
//! Real are the log, its sealer and all that they do. The rest is a model, function by function after those of the VM process and
//! named as they are, to be laid beside them; nothing but a reader keeps the two alike:
//!
//! | here | there |
//! | --- | --- |
//! | [`swap`] | `memory/swap`: the fence, and the two locks |
//! | [`pager`], [`keeper`], [`file`], [`guest_disks`] | `memory/swap/pager`, `keeper`, `readers` and `file`, `guest_disks` |
//! | [`agent`] | `memory/agent`: `out`, `share`, `large`, `balloon` |
//! | [`left_out`] | `memory/left_out`, and more steps |
//! | [`kernel`] | Linux: a memory file, mappings over it, userfaultfd |
//!
//! ```text
//!   processor ──touches──▶ kernel ──faults──▶ pager ──orders──▶ reader
//!   processor ──gives up──▶ agent ──fence, punch──▶ kernel
//!                pager, agent, keeper ──▶ log
//! ```
//!
//! A life begins with all pages out, most of them in the file. Two processors read and write then, read from a disk, and give
//! pages up, while the agent takes pages out, maps frames over them, brings them home, and lets memory go and guards it again; both choose by the
//! seed. Whoever reads a page knows what it must hold. At the end all of it is read. A thread that waits for ever is found, too.
//!
//! Each step that keeps a page whole can be left out, and then a page is lost in one of these orders: so they are orders that
//! matter.
//!
//! What this cannot show:
//! * That Linux does as [`kernel`] does, or that the VM process does as the model.
//! * What is torn: a page is one word here, written at once, and a call into the kernel is done at once for all of its pages.
//! * Calls that fail for want of memory or areas; only the swap file fails. A guest's disk that somebody else changes.
//! * Large pages, copies between shared pages (windows), dropped mappings, and requests that name a page twice.
//! * How long anything takes: room, rest and what is fetched unasked are left to chance.
//! * All orders: these are a sample. Weak memory is none of them.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod agent;
mod chance;
mod contents;
mod event;
mod file;
mod guest;
mod guest_disks;
mod keeper;
mod kernel;
mod left_out;
mod life;
mod missed;
mod pager;
mod swap;

use life::life;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// What is said of a lost page.
pub(crate) const LOST: &str = "lost";

/// Orders of either kind that are tried.
const ORDERS: usize = 15_000;
const SEED: u64 = 1;
/// One more than how often in a life a thread that could go on falls behind all others.
const DEPTH: usize = 4;
/// Sealing takes more than what is given by default.
const STACK_BYTES: usize = 128 << 10;

/// At each step any thread may be the next.
fn by_chance() -> RandomScheduler {
    RandomScheduler::new_from_seed(SEED, ORDERS)
}

/// The first by rank that can go on does, and ranks seldom change: some wait for long.
fn by_rank() -> PctScheduler {
    PctScheduler::new_from_seed(SEED, DEPTH, ORDERS)
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config
}

#[test]
fn no_order_by_chance_loses_a_page() {
    let tried = Runner::new(by_chance(), config()).run(life);
    assert_eq!(tried, ORDERS);
}

#[test]
fn no_order_by_rank_loses_a_page() {
    let tried = Runner::new(by_rank(), config()).run(life);
    assert_eq!(tried, ORDERS);
}
