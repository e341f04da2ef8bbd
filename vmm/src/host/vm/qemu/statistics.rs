//! What QEMU says of its balloon's device: where it is, and what its guest reported.

use page::{PAGE_SIZE, PageCount};
use policy::GuestFigures;
use protocol::GuestStatistics;
use serde_json::Value;

/// Figures that were not reported are sent as this.
const NOT_SAID: u64 = u64::MAX;
/// No figure is above this: it is of memory, or a count.
const MOST: u64 = 1 << 52;

/// The path of the balloon's device among children of a container, as `qom-list` has them.
pub(super) fn balloon_in(container: &str, children: &Value) -> Option<String> {
    let is_balloon = |child: &&Value| {
        let kind = child.get("type").and_then(Value::as_str);
        kind.is_some_and(|kind| kind.starts_with("child<virtio-balloon"))
    };
    let child = children.as_array()?.iter().find(is_balloon)?;
    let name = child.get("name")?.as_str()?;
    Some(format!("{container}/{name}"))
}

/// What a guest reported, and when, in seconds since 1970; zero if it never has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::host) struct Reported {
    pub(in crate::host) at_s: u64,
    pub(in crate::host) statistics: GuestStatistics,
    /// Bytes that were read from its disks so far, by the count of who runs it: what it did not find in its memory.
    read_bytes: u64,
}

impl Reported {
    pub(super) fn of(answer: &Value) -> Self {
        let number = |name: &str| {
            let said = answer.pointer(&format!("/stats/{name}"))?.as_u64()?;
            (said != NOT_SAID).then(|| said.min(MOST))
        };
        let at_s = answer.get("last-update").and_then(Value::as_u64);
        Self {
            at_s: at_s.unwrap_or(0),
            statistics: GuestStatistics {
                swap_in: number("stat-swap-in"),
                swap_out: number("stat-swap-out"),
                major_faults: number("stat-major-faults"),
                minor_faults: number("stat-minor-faults"),
                free: number("stat-free-memory"),
                total: number("stat-total-memory"),
                available: number("stat-available-memory"),
                caches: number("stat-disk-caches"),
                huge_page_allocations: number("stat-htlb-pgalloc"),
                huge_page_failures: number("stat-htlb-pgfail"),
                ..GuestStatistics::default()
            },
            read_bytes: 0,
        }
    }

    /// The same with what QEMU's `query-blockstats` says of its disks.
    pub(super) fn with_disks(self, answer: &Value) -> Self {
        let disks = answer.as_array().into_iter().flatten();
        let read = disks.filter_map(|disk| disk.pointer("/stats/rd_bytes")?.as_u64());
        self.with_reads(read)
    }

    /// The same with so many bytes read from each of its disks.
    pub(in crate::host) fn with_reads(self, read: impl Iterator<Item = u64>) -> Self {
        let read_bytes = read.fold(0, u64::saturating_add);
        Self { read_bytes, ..self }
    }

    /// The same as libvirt has it: memory in KiB, and faults under names of its own.
    pub(in crate::host) fn of_libvirt(figure: impl Fn(&str) -> Option<u64>) -> Self {
        let count = |name| figure(name).map(|count| count.min(MOST));
        let bytes = |name| figure(name).map(|kibibytes| kibibytes.saturating_mul(1024).min(MOST));
        Self {
            at_s: figure("last-update").unwrap_or(0),
            statistics: GuestStatistics {
                swap_in: bytes("swap_in"),
                swap_out: bytes("swap_out"),
                major_faults: count("major_fault"),
                minor_faults: count("minor_fault"),
                free: bytes("unused"),
                total: bytes("available"),
                available: bytes("usable"),
                caches: bytes("disk_caches"),
                huge_page_allocations: count("hugetlb_pgalloc"),
                huge_page_failures: count("hugetlb_pgfail"),
                ..GuestStatistics::default()
            },
            read_bytes: 0,
        }
    }

    /// Whether its guest has begun anew in between: its counts only rise until it does.
    pub(super) fn has_begun_since(&self, before: &Self) -> bool {
        let (now, before) = (&self.statistics, &before.statistics);
        now.minor_faults.is_some() && now.minor_faults < before.minor_faults
    }

    /// What it would have said if so much of what is free, or else available, were not its own.
    pub(super) fn with_so_much_less(&self, less: PageCount) -> GuestStatistics {
        let said = self.statistics;
        let less = less.bytes();
        let without = |bytes: Option<u64>| bytes.map(|bytes| bytes.saturating_sub(less));
        let from_caches = less.saturating_sub(said.free.unwrap_or(0));
        GuestStatistics {
            free: without(said.free),
            available: without(said.available),
            caches: said.caches.map(|bytes| bytes.saturating_sub(from_caches)),
            ..said
        }
    }

    /// What a guest cannot do without that holds so much.
    pub(super) fn needs(&self, held: PageCount) -> Option<PageCount> {
        let pages = |bytes: Option<u64>| bytes.map(|bytes| PageCount(bytes / PAGE_SIZE));
        policy::needs(&GuestFigures {
            held,
            free: pages(self.statistics.free),
            available: pages(self.statistics.available),
            ..GuestFigures::default()
        })
    }

    /// Pages that faults and reads of its disks have brought since: a guest that began anew counts from zero.
    pub(in crate::host) fn faulted_since(&self, earlier: &Self) -> PageCount {
        let (now, before) = (&self.statistics, &earlier.statistics);
        let rise = |now: Option<u64>, before: Option<u64>| {
            now.unwrap_or(0).saturating_sub(before.unwrap_or(0))
        };
        let swapped = rise(now.swap_in, before.swap_in) / PAGE_SIZE;
        let minor = rise(now.minor_faults, before.minor_faults);
        let major = rise(now.major_faults, before.major_faults);
        let read = self.read_bytes.saturating_sub(earlier.read_bytes) / PAGE_SIZE;
        PageCount(swapped + minor + major + read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_balloon_is_found_by_its_type_whatever_it_is_called() {
        let children = json!([{"name": "type", "type": "string"},
            {"name": "b0", "type": "child<virtio-balloon-pci>"}]);
        let found = balloon_in("/machine/peripheral", &children);
        assert_eq!(found.as_deref(), Some("/machine/peripheral/b0"));
        for none in [json!([]), json!({}), json!(null), json!([{"name": "a"}, 7])] {
            assert_eq!(balloon_in("/machine/peripheral", &none), None);
        }
    }

    #[test]
    fn what_a_guest_reported_is_taken_apart_and_what_it_did_not_is_absent() {
        let answer = json!({"stats": {"stat-free-memory": 4096, "stat-available-memory": u64::MAX,
            "stat-minor-faults": 10, "stat-swap-in": 8192, "stat-major-faults": "many"}, "last-update": 7});
        let reported = Reported::of(&answer);
        let said = reported.statistics;
        assert_eq!(
            (reported.at_s, said.free, said.available),
            (7, Some(4096), None)
        );
        assert_eq!(reported.faulted_since(&Reported::default()), PageCount(12));
        assert_eq!(Reported::default().faulted_since(&reported), PageCount(0));
        assert_eq!(Reported::of(&json!([])), Reported::default());
        let disks = json!([{"device": "a", "stats": {"rd_bytes": 8192}}, {"stats": {"rd_bytes": "all"}}, 7,
            {"stats": {"rd_bytes": 4096}}]);
        let later = reported.with_disks(&disks);
        assert_eq!(later.faulted_since(&reported), PageCount(3));
        assert_eq!(reported.faulted_since(&later), PageCount(0));
        let many = json!([{"stats": {"rd_bytes": u64::MAX}}, {"stats": {"rd_bytes": u64::MAX}}]);
        assert!(reported.with_disks(&many).faulted_since(&reported) > PageCount(1 << 51));
        assert_eq!(reported.with_disks(&json!("none")), reported);
    }

    #[test]
    fn what_a_balloon_would_have_taken_is_taken_from_what_is_free_and_then_from_files() {
        let reported = Reported {
            at_s: 1,
            read_bytes: 0,
            statistics: GuestStatistics {
                free: Some(10 * PAGE_SIZE),
                available: Some(30 * PAGE_SIZE),
                caches: Some(25 * PAGE_SIZE),
                ..GuestStatistics::default()
            },
        };
        assert_eq!(reported.needs(PageCount(100)), Some(PageCount(70)));
        let left = |less| {
            let left = reported.with_so_much_less(PageCount(less));
            [left.free, left.available, left.caches].map(|bytes| bytes.unwrap() / PAGE_SIZE)
        };
        assert_eq!(left(4), [6, 26, 25]);
        assert_eq!(left(20), [0, 10, 15]);
        assert_eq!(left(99), [0, 0, 0]);
    }
}
