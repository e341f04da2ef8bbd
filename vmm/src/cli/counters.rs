//! What can be shown of each VM, most wanted first: a narrow terminal shows fewer.

use crate::api::{VmFigures, VmPhase};
use std::cmp::Ordering;

/// A value in a cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    /// Bytes.
    Size(u64),
    Number(u64),
    Unknown,
}

impl Cell {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Size(bytes) => mebibytes(*bytes),
            Self::Number(number) => number.to_string(),
            Self::Unknown => "-".into(),
        }
    }

    /// Numbers by size, texts by letters, what is unknown below all.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            _ => self.number().cmp(&other.number()),
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Size(number) | Self::Number(number) => Some(*number),
            Self::Text(_) | Self::Unknown => None,
        }
    }
}

/// Mebibytes; with a decimal where it is less than ten, because then it matters.
pub(super) fn mebibytes(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + (1 << 19)) >> 20;
    match tenths {
        0 => "0".into(),
        1..100 => format!("{}.{}", tenths / 10, tenths % 10),
        _ => ((tenths + 5) / 10).to_string(),
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) meaning: &'static str,
    pub(super) cell: fn(&VmFigures) -> Cell,
}

const fn column(name: &'static str, meaning: &'static str, cell: fn(&VmFigures) -> Cell) -> Column {
    Column {
        name,
        meaning,
        cell,
    }
}

/// All of them, in the order in which they are shown.
pub(super) const COLUMNS: [Column; 26] = [
    column("NAME", "its name", |vm| Cell::Text(vm.name.to_string())),
    column("MEMSZ", "its size", |vm| Cell::Size(vm.memsz)),
    column(
        "GRANT",
        "memory that is backed, shared pages counted whole",
        |vm| Cell::Size(vm.grant),
    ),
    column(
        "CNSM",
        "the same, shared pages charged by reference",
        |vm| Cell::Size(vm.cnsm),
    ),
    column("SZTGT", "what it should hold", |vm| Cell::Size(vm.sztgt)),
    column("TCHD", "its working set", |vm| {
        vm.tchd.map_or(Cell::Unknown, Cell::Size)
    }),
    column("MCTLSZ", "what its balloon holds", |vm| {
        Cell::Size(vm.mctlsz)
    }),
    column("MCTLTGT", "what its balloon should hold", |vm| {
        Cell::Size(vm.mctltgt)
    }),
    column("SHRD", "memory that shows shared frames", |vm| {
        Cell::Size(vm.shrd)
    }),
    column("ASHRS", "its shares", |vm| Cell::Number(vm.ashrs)),
    column("STATE", "how far its life has come", |vm| {
        Cell::Text(state(vm).into())
    }),
    column("SHRDSVD", "machine memory that sharing saves", |vm| {
        Cell::Size(vm.shrdsvd)
    }),
    column("ZERO", "zero pages given back", |vm| Cell::Size(vm.zero)),
    column("BROKEN", "memory once shared, written since", |vm| {
        Cell::Size(vm.broken)
    }),
    column("AMIN", "its reservation", |vm| Cell::Size(vm.amin)),
    column("AMAX", "its limit", |vm| Cell::Size(vm.amax)),
    column("MCTLMAX", "what its balloon can be asked for", |vm| {
        Cell::Size(vm.mctlmax)
    }),
    column("SWCUR", "memory in swap", |vm| Cell::Size(vm.swcur)),
    column("ZIP", "memory that is compressed", |vm| Cell::Size(vm.zip)),
    column("OVHD", "memory of its process beside the guest's", |vm| {
        Cell::Size(vm.ovhd)
    }),
    column("OVHDMAX", "what is set aside for that", |vm| {
        Cell::Size(vm.ovhdmax)
    }),
    column("USED", "machine memory that it uses", |vm| {
        Cell::Size(vm.used)
    }),
    column("AREAS", "memory areas that sharing costs", |vm| {
        Cell::Number(vm.areas)
    }),
    column("MRG/s", "pages shared a second", |vm| {
        Cell::Number(vm.merges_per_s)
    }),
    column("BRK/s", "shared pages written to a second", |vm| {
        Cell::Number(vm.breaks_per_s)
    }),
    column("MCTL?", "whether a balloon driver is there", |vm| {
        Cell::Text(if vm.mctl { "Y" } else { "N" }.into())
    }),
];

fn state(vm: &VmFigures) -> &'static str {
    match vm.phase {
        VmPhase::Waiting => "wait",
        VmPhase::Starting => "start",
        VmPhase::Stopping => "stop",
        VmPhase::Running if vm.responding => "run",
        VmPhase::Running => "silent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_comes_below_all_and_small_sizes_keep_a_decimal() {
        assert_eq!(Cell::Unknown.order(&Cell::Size(0)), Ordering::Less);
        assert_eq!(Cell::Size(2).order(&Cell::Size(1)), Ordering::Greater);
        assert_eq!(mebibytes(3 << 19), "1.5");
        assert_eq!(mebibytes(512 << 20), "512");
        assert_eq!(mebibytes(0), "0");
    }
}
