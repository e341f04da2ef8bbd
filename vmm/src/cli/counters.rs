//! What can be told of the host and of each VM, under esxtop's names: the short ones of its screen and the
//! long ones of its batch mode. Of what does not exist there is no counter, rather than one that is zero.

use crate::api::{HostFigures, VmFigures, VmPhase};
use std::cmp::Ordering;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    /// Bytes.
    Size(u64),
    /// Bytes, more or fewer.
    Difference(i64),
    Number(u64),
    Percent(f64),
    /// A ratio, such as that of overcommitment.
    Ratio(f64),
    Unknown,
}

/// In what sizes are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Unit {
    Kibibytes,
    #[default]
    Mebibytes,
    Gibibytes,
}

impl Unit {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Kibibytes => Self::Mebibytes,
            Self::Mebibytes => Self::Gibibytes,
            Self::Gibibytes => Self::Kibibytes,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kibibytes => "KiB",
            Self::Mebibytes => "MiB",
            Self::Gibibytes => "GiB",
        }
    }

    /// With decimals where a number is so small that they matter.
    pub(super) fn text(self, bytes: u64) -> String {
        match self {
            Self::Kibibytes => rounded(bytes, 10, 0),
            Self::Mebibytes if bytes == 0 => "0".into(),
            Self::Mebibytes if bytes < 10 << 20 => rounded(bytes, 20, 1),
            Self::Mebibytes => rounded(bytes, 20, 0),
            Self::Gibibytes if bytes < 10 << 30 => rounded(bytes, 30, 2),
            Self::Gibibytes => rounded(bytes, 30, 1),
        }
    }

    /// As [`Self::text`], of a difference.
    pub(super) fn difference(self, bytes: i64) -> String {
        with_sign(bytes, |size| self.text(size))
    }
}

/// A difference in words, by what says a size in words.
pub(super) fn with_sign(bytes: i64, text: impl FnOnce(u64) -> String) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", text(bytes.unsigned_abs()))
}

/// In units of 2^`shift` bytes, with that many decimals.
fn rounded(bytes: u64, shift: u32, decimals: u32) -> String {
    let scale = 10_u128.pow(decimals);
    let parts = (u128::from(bytes) * scale + (1 << (shift - 1))) >> shift;
    match decimals {
        0 => parts.to_string(),
        _ => format!(
            "{}.{:0width$}",
            parts / scale,
            parts % scale,
            width = decimals as usize
        ),
    }
}

impl Cell {
    /// For a screen.
    pub(super) fn text(&self, unit: Unit) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Size(bytes) => unit.text(*bytes),
            Self::Difference(bytes) => unit.difference(*bytes),
            Self::Number(number) => number.to_string(),
            Self::Percent(percent) => format!("{percent:.0}"),
            Self::Ratio(ratio) => format!("{ratio:.2}"),
            Self::Unknown => "-".into(),
        }
    }

    /// For a program: sizes in megabytes as esxtop counts them, and nothing for what is not known.
    pub(super) fn for_programs(&self) -> String {
        match self {
            Self::Size(bytes) => rounded(*bytes, 20, 2),
            Self::Difference(bytes) => with_sign(*bytes, |size| rounded(size, 20, 2)),
            Self::Percent(number) | Self::Ratio(number) => format!("{number:.2}"),
            Self::Unknown => String::new(),
            _ => self.text(Unit::default()),
        }
    }

    /// Numbers by size, texts by letters, what is unknown below all.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Percent(a), Self::Percent(b)) => a.total_cmp(b),
            _ => self.number().cmp(&other.number()),
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Size(number) | Self::Number(number) => Some(*number),
            Self::Percent(_) | Self::Ratio(_) | Self::Difference(_) => Some(0),
            Self::Text(_) | Self::Unknown => None,
        }
    }
}

/// Something that is told of each VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// As the screen names it.
    pub(super) name: &'static str,
    /// As batch mode names it; nothing where the name or a state says it better.
    pub(super) counter: Option<&'static str>,
    pub(super) meaning: &'static str,
    pub(super) cell: fn(&VmFigures) -> Cell,
}

const fn column(
    name: &'static str,
    counter: &'static str,
    meaning: &'static str,
    cell: fn(&VmFigures) -> Cell,
) -> Column {
    Column {
        name,
        counter: Some(counter),
        meaning,
        cell,
    }
}

const fn text(name: &'static str, meaning: &'static str, cell: fn(&VmFigures) -> Cell) -> Column {
    Column {
        name,
        counter: None,
        meaning,
        cell,
    }
}

const fn size(size: Option<u64>) -> Cell {
    match size {
        Some(size) => Cell::Size(size),
        None => Cell::Unknown,
    }
}

const fn percent(percent: Option<f64>) -> Cell {
    match percent {
        Some(percent) => Cell::Percent(percent),
        None => Cell::Unknown,
    }
}

/// The columns that a key sorts by, and the name.
pub(super) const NAME: usize = 0;
pub(super) const MEMSZ: usize = 1;
pub(super) const GRANT: usize = 2;
pub(super) const MCTLSZ: usize = 7;

/// All of them, most wanted first: a narrow terminal shows fewer.
#[rustfmt::skip]
pub(super) const COLUMNS: [Column; 34] = [
    text("NAME", "its name", |vm| Cell::Text(vm.name.to_string())),
    column("MEMSZ", "Memory Size MBytes", "its size", |vm| Cell::Size(vm.memsz)),
    column("GRANT", "Memory Granted Size MBytes", "memory that is backed, shared pages counted whole", |vm| Cell::Size(vm.grant)),
    column("CNSM", "Memory Consumed Size MBytes", "the same, shared pages charged by reference", |vm| Cell::Size(vm.cnsm)),
    column("SZTGT", "Target Size MBytes", "what it should hold", |vm| Cell::Size(vm.sztgt)),
    column("TCHD", "Touched MBytes", "its working set", |vm| size(vm.tchd)),
    column("%ACTV", "% Active Estimate", "the part that it touches now", |vm| percent(vm.actv)),
    column("MCTLSZ", "Memctl MBytes", "what its balloon holds", |vm| Cell::Size(vm.mctlsz)),
    column("MCTLTGT", "Memctl Target MBytes", "what its balloon should hold", |vm| Cell::Size(vm.mctltgt)),
    column("SHRD", "Shared MBytes", "memory that shows shared frames", |vm| Cell::Size(vm.shrd)),
    column("SHRDSVD", "Shared Saved MBytes", "machine memory that sharing saves", |vm| Cell::Size(vm.shrdsvd)),
    column("%BLKD", "% Blocked", "the part of its time that it is stopped", |vm| percent(Some(blocked_percent(vm)))),
    column("LIMIT", "Touch Limit MBytes", "what it may touch before it is stopped", |vm| size(vm.limit.map(|limit| limit.slow_above_bytes))),
    column("ZERO", "Zero MBytes", "zero pages given back", |vm| Cell::Size(vm.zero)),
    column("COWH", "Copy On Write Hint MBytes", "memory nominated for sharing", |vm| Cell::Size(vm.cowh)),
    column("TCHD_W", "Touched Write MBytes", "what of the working set is written to", |vm| size(vm.tchd_w)),
    column("%ACTVS", "% Active Slow Estimate", "%ACTV over about eight samples", |vm| percent(vm.actvs)),
    column("%ACTVF", "% Active Fast Estimate", "%ACTV over hardly more than one", |vm| percent(vm.actvf)),
    column("AMIN", "Min MBytes", "its reservation", |vm| Cell::Size(vm.amin)),
    column("AMAX", "Max MBytes", "what it may hold at most", |vm| Cell::Size(vm.amax)),
    column("ASHRS", "Shares", "its shares", |vm| Cell::Number(vm.ashrs)),
    column("MCTL?", "Memctl?", "whether a balloon driver is there", |vm| Cell::Text(if vm.mctl { "Y" } else { "N" }.into())),
    column("MCTLMAX", "Memctl Max MBytes", "what its balloon can be asked for", |vm| Cell::Size(vm.mctlmax)),
    column("OVHD", "Overhead MBytes", "memory of its process beside the guest's", |vm| Cell::Size(vm.ovhd)),
    column("OVHDMAX", "Overhead Max MBytes", "what is set aside for that", |vm| Cell::Size(vm.ovhdmax)),
    text("STATE", "how far its life has come", |vm| Cell::Text(state(vm).into())),
    // Beyond esxtop.
    column("USED", "Machine Used MBytes", "machine memory that it uses", |vm| Cell::Size(vm.used)),
    column("TCHDLOW", "Touched Low MBytes", "its working set is no less, by 95 % confidence", |vm| size(vm.tchd_low)),
    column("TCHDTOP", "Touched High MBytes", "its working set is no more", |vm| size(vm.tchd_high)),
    column("BELIEF", "Touched Believed MBytes", "its working set as the policy takes it", |vm| size(vm.tchd_believed)),
    column("BROKEN", "Broken MBytes", "memory once shared, written since", |vm| Cell::Size(vm.broken)),
    column("AREAS", "Memory Areas", "memory areas that sharing costs", |vm| Cell::Number(vm.areas)),
    column("MRG/s", "Pages Shared/sec", "pages shared a second", |vm| Cell::Number(vm.merges_per_s)),
    column("BRK/s", "Pages Broken/sec", "shared pages written to a second", |vm| Cell::Number(vm.breaks_per_s)),
];

pub(super) fn state(vm: &VmFigures) -> &'static str {
    match vm.phase {
        VmPhase::Waiting => "wait",
        VmPhase::Starting => "start",
        VmPhase::Stopping => "stop",
        VmPhase::Running if !vm.responding => "silent",
        VmPhase::Running if !vm.credible => "doubt",
        VmPhase::Running if is_blocked(vm) => "block",
        VmPhase::Running => "run",
    }
}

/// Whether it was stopped in the last second.
pub(super) fn is_blocked(vm: &VmFigures) -> bool {
    vm.blocked_permille > 0
}

#[expect(clippy::cast_precision_loss, reason = "a thousand at most")]
pub(super) fn blocked_percent(vm: &VmFigures) -> f64 {
    vm.blocked_permille as f64 / 10.0
}

/// What batch mode tells of the host.
pub(super) type HostCounter = (&'static str, fn(&HostFigures) -> Cell);

#[rustfmt::skip]
pub(super) const HOST_COUNTERS: [HostCounter; 22] = [
    ("Memory Overcommit (1 Minute Avg)", |host| Cell::Ratio(host.overcommit_avg[0])),
    ("Memory Overcommit (5 Minute Avg)", |host| Cell::Ratio(host.overcommit_avg[1])),
    ("Memory Overcommit (15 Minute Avg)", |host| Cell::Ratio(host.overcommit_avg[2])),
    ("Machine MBytes", |host| Cell::Size(host.pmem_total)),
    ("Used MBytes", |host| Cell::Size(host.pmem_used)),
    ("Free MBytes", |host| Cell::Size(host.pmem_free)),
    ("Kernel MinFree MBytes", |host| size(host.minfree)),
    ("Kernel State", |host| host.state.clone().map_or(Cell::Unknown, Cell::Text)),
    ("PShare Shared MBytes", |host| Cell::Size(host.pshare_shared)),
    ("PShare Common MBytes", |host| Cell::Size(host.pshare_common)),
    ("PShare Savings MBytes", |host| Cell::Difference(host.pshare_saving)),
    ("Memctl Current MBytes", |host| Cell::Size(host.memctl_curr)),
    ("Memctl Target MBytes", |host| Cell::Size(host.memctl_target)),
    ("Memctl Max MBytes", |host| Cell::Size(host.memctl_max)),
    // Beyond esxtop.
    ("Configured MBytes", |host| Cell::Size(host.configured)),
    ("Promised MBytes", |host| Cell::Size(host.promised)),
    ("Broken MBytes", |host| Cell::Size(host.broken)),
    ("Sharing Reserve MBytes", |host| Cell::Size(host.reserve)),
    ("Pages Shared/sec", |host| Cell::Number(host.merges_per_s)),
    ("Pages Broken/sec", |host| Cell::Number(host.breaks_per_s)),
    ("VMs Queued", |host| Cell::Number(host.queued)),
    ("Queue Wait Seconds", |host| Cell::Number(host.queue_wait_s)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_unknown_comes_below_all_and_percentages_are_sorted_as_numbers() {
        assert_eq!(Cell::Unknown.order(&Cell::Size(0)), Ordering::Less);
        assert_eq!(Cell::Unknown.order(&Cell::Percent(0.0)), Ordering::Less);
        assert_eq!(Cell::Size(2).order(&Cell::Size(1)), Ordering::Greater);
        let (nine, ten) = (Cell::Percent(9.5), Cell::Percent(10.0));
        assert_eq!(nine.order(&ten), Ordering::Less);
    }

    #[test]
    fn small_sizes_keep_decimals() {
        let mebibytes = [
            (3 << 19, "1.5"),
            (512 << 20, "512"),
            (0, "0"),
            (1 << 15, "0.0"),
        ];
        for (bytes, text) in mebibytes {
            assert_eq!(Unit::Mebibytes.text(bytes), text);
        }
        assert_eq!(Unit::Gibibytes.text(3 << 29), "1.50");
        assert_eq!(Unit::Gibibytes.text(100 << 30), "100.0");
        assert_eq!(Unit::Kibibytes.text(4096), "4");
        assert_eq!(Cell::Size(1 << 19).for_programs(), "0.50");
        assert_eq!(Cell::Difference(-(7 << 20)).for_programs(), "-7.00");
        assert_eq!(Unit::Mebibytes.difference(-(7 << 20)), "-7.0");
    }

    #[test]
    fn no_two_counters_have_one_name_and_keys_sort_by_the_columns_that_they_name() {
        let columns = COLUMNS.iter().filter_map(|column| column.counter);
        let names: BTreeSet<&str> = columns.clone().collect();
        assert_eq!(names.len(), columns.count());
        let names: BTreeSet<&str> = HOST_COUNTERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), HOST_COUNTERS.len());
        let named = [NAME, MEMSZ, GRANT, MCTLSZ].map(|column| COLUMNS[column].name);
        assert_eq!(named, ["NAME", "MEMSZ", "GRANT", "MCTLSZ"]);
    }
}
