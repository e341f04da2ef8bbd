//! What the first write to a shared page costs the one who writes.

use crate::Options;
use crate::contents::Contents;
use crate::guests::{Break, Host, Qemu};
use crate::holder::{Holder, Job, Kind, WriteTimes};
use crate::ksm::{self, Ksm, ZeroPages};
use crate::ours::Ours;
use crate::scan::hold;
use crate::table::{Row, Samples};
use anyhow::{Result, ensure};
use rustix::fs::FallocateFlags;
use std::os::unix::fs::FileExt;

const PAGES: u64 = 16_384;
const GUEST_MIB: u64 = 96;
const WORKLOAD: &str = "breaker:size=64M,seed=1";

/// The middle and the slowest of times.
#[derive(Default)]
struct Times {
    p50: Samples,
    p99: Samples,
}

impl Times {
    fn add(&mut self, guest: Break) {
        self.p50.add(guest.p50_ns / 1e3);
        self.p99.add(guest.p99_ns / 1e3);
    }

    fn add_own(&mut self, times: WriteTimes) {
        self.p50.add(times.p50_ns as f64 / 1e3);
        self.p99.add(times.p99_ns as f64 / 1e3);
    }

    fn rows(self, what: &str, peer_name: &'static str, peer: Self) -> [Row; 2] {
        [("p50", self.p50, peer.p50), ("p99", self.p99, peer.p99)].map(|(part, ours, peer)| {
            let row = Row::new(format!("{what}, {part}"), "µs", ours);
            match peer_name {
                "" => row,
                name => row.beside(name, peer),
            }
        })
    }
}

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let [mut shared, mut qemu, mut touch, mut armed, mut plain] = <[Times; 5]>::default();
    let [mut own, mut merged, mut private, mut fresh] = <[Times; 4]>::default();
    for _ in 0..options.rounds {
        shared.add(break_shared()?);
        armed.add(break_armed()?);
        touch.add(touch_first()?);
        plain.add(break_plain()?);
        own.add_own(write_shared()?);
        private.add_own(write(Kind::PrivateFile)?);
        fresh.add_own(write(Kind::Anonymous)?);
        if options.has_ksm {
            qemu.add(break_merged()?);
            merged.add_own(write_merged()?);
        }
    }
    let none = Times::default;
    let rows = [
        shared.rows(
            "guest's first write to a shared page",
            "KSM under QEMU",
            qemu,
        ),
        touch.rows("guest's first touch of an empty page", "", none()),
        armed.rows(
            "guest's first write to a page that was scanned, not shared",
            "",
            none(),
        ),
        plain.rows("guest's write to a page nobody scanned", "", none()),
        own.rows("process's first write to a shared page", "KSM", merged),
        private.rows(
            "process's write to a private file page",
            "anonymous first touch",
            fresh,
        ),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Two guests with the same pages; one breaks them after all are shared.
fn break_shared() -> Result<Break> {
    let host = Host::start()?;
    host.run("one", GUEST_MIB, "bench", WORKLOAD)?;
    host.run("other", GUEST_MIB, "bench", WORKLOAD)?;
    host.wait_until("other", "/memory_file_bytes", PAGES * 4096)?;
    host.share(1)?;
    host.wait_until("one", "/states/shared", PAGES * 4096 / 100 * 98)?;
    host.rest()?;
    host.break_pages("one")
}

/// The scanner has read all of a guest's pages, and watches for writes.
fn break_armed() -> Result<Break> {
    let host = Host::start()?;
    host.run("one", GUEST_MIB, "bench", WORKLOAD)?;
    host.wait_until("one", "/memory_file_bytes", PAGES * 4096)?;
    host.share(1)?;
    host.wait_until("one", "/sharing/passes", 2)?;
    host.rest()?;
    host.break_pages("one")
}

fn break_plain() -> Result<Break> {
    let host = Host::start()?;
    host.run("one", GUEST_MIB, "bench", WORKLOAD)?;
    host.wait_until("one", "/memory_file_bytes", PAGES * 4096)?;
    host.break_pages("one")
}

/// The pages that the guest is about to write to are taken away first; the guest never reads them.
fn touch_first() -> Result<Break> {
    let host = Host::start()?;
    host.run("one", GUEST_MIB, "bench", WORKLOAD)?;
    host.wait_until("one", "/memory_file_bytes", PAGES * 4096)?;
    let file = host.memory_file("one")?;
    let mut page = [0; 4096];
    let mut punched = 0;
    for offset in (0..GUEST_MIB << 20).step_by(4096) {
        file.read_exact_at(&mut page, offset)?;
        if is_random(&page) {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, hole, offset, 4096)?;
            punched += 1;
        }
    }
    ensure!(
        punched == PAGES,
        "{punched} pages look like the breaker's, not {PAGES}"
    );
    host.break_pages("one")
}

/// The breaker's pages are random numbers. Of the ends of 512 such words hardly three are equal, where
/// code, tables and pointers have many.
fn is_random(page: &[u8; 4096]) -> bool {
    [0, 6].into_iter().all(|end| {
        let mut ends: Vec<&[u8]> = page.chunks(8).map(|word| &word[end..end + 2]).collect();
        ends.sort_unstable();
        ends.dedup();
        ends.len() > 500
    })
}

/// The same guests under QEMU, their pages merged by KSM.
fn break_merged() -> Result<Break> {
    let ksm = Ksm::prepare(ZeroPages::Merged)?;
    let mut one = Qemu::start(GUEST_MIB, WORKLOAD, 1)?;
    let _other = Qemu::start(GUEST_MIB, WORKLOAD, 2)?;
    ksm.run()?;
    ksm::wait_until_saved(PAGES)?;
    ksm.stop()?;
    one.break_pages()
}

/// A process without a guest writes to memory that our scanner has shared.
fn write_shared() -> Result<WriteTimes> {
    let mut ours = Ours::prepare(Contents::common(PAGES), 2)?;
    ours.begin()?;
    ours.wait_until_saved(PAGES / 100 * 98)?;
    ours.rest()?;
    ours.vms()[0].write()
}

/// A process writes to memory that KSM has merged.
fn write_merged() -> Result<WriteTimes> {
    let ksm = Ksm::prepare(ZeroPages::Merged)?;
    let mut holders = hold(Contents::common(PAGES), 2)?;
    ksm.run()?;
    ksm::wait_until_saved(PAGES / 100 * 98)?;
    ksm.stop()?;
    holders[0].write()
}

fn write(kind: Kind) -> Result<WriteTimes> {
    let contents = Contents::common(PAGES);
    let mut holder = Holder::start(&Job {
        kind,
        vm: 0,
        contents,
    })?;
    holder.wait_until_filled()?;
    holder.write()
}
