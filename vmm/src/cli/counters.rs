//! What can be told of the host and of each VM, under esxtop's names: the short ones of its screen and the
//! long ones of its batch mode. Of what does not exist there is no counter, rather than one that is zero.

use api::{Figure, HOST_FIGURES, HostFigures, Reading, VM_FIGURES, VmFigures, shown};
use std::cmp::Ordering;

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

    /// A reading for a screen.
    pub(super) fn reading(self, reading: &Reading) -> String {
        match reading {
            Reading::Text(text) => text.clone(),
            Reading::Flag(flag) => if *flag { "Y" } else { "N" }.into(),
            Reading::State(state) => state.to_string(),
            Reading::Size(bytes) => self.text(*bytes),
            Reading::Difference(bytes) => self.difference(*bytes),
            Reading::Number(number) => number.to_string(),
            Reading::Percent(number) | Reading::Seconds(number) => format!("{number:.0}"),
            Reading::Permille(count) => format!("{:.0}", in_percent(*count)),
            Reading::Ratio(ratio) => format!("{ratio:.2}"),
            Reading::Unknown => "-".into(),
        }
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

#[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
pub(super) fn in_percent(permille: u64) -> f64 {
    permille as f64 / 10.0
}

/// A reading for a program: sizes in megabytes as esxtop counts them, and nothing for what is not known.
pub(super) fn for_programs(reading: &Reading) -> String {
    match reading {
        Reading::Size(bytes) => rounded(*bytes, 20, 2),
        Reading::Difference(bytes) => with_sign(*bytes, |size| rounded(size, 20, 2)),
        Reading::Percent(number) | Reading::Ratio(number) => format!("{number:.2}"),
        Reading::Permille(count) => format!("{:.2}", in_percent(*count)),
        Reading::Unknown => String::new(),
        _ => Unit::default().reading(reading),
    }
}

/// Numbers by size, texts by letters, what is unknown below all.
pub(super) fn order(one: &Reading, other: &Reading) -> Ordering {
    match (one, other) {
        (Reading::Text(a), Reading::Text(b)) => a.cmp(b),
        (Reading::Percent(a), Reading::Percent(b)) => a.total_cmp(b),
        (Reading::Permille(a), Reading::Permille(b)) => a.cmp(b),
        // A percentage is more than what is unknown.
        _ => whole(one).cmp(&whole(other)),
    }
}

fn whole(reading: &Reading) -> Option<u64> {
    match reading {
        Reading::Percent(_) | Reading::Permille(_) => Some(0),
        _ => reading.number(),
    }
}

/// The columns that a key sorts by, and the name.
pub(super) const NAME: usize = 0;
pub(super) const MEMSZ: usize = 1;
pub(super) const GRANT: usize = 2;
pub(super) const MCTLSZ: usize = 7;

/// What the screen tells of each VM, most wanted first: a narrow terminal shows fewer.
pub(super) const COLUMNS: &[Figure<VmFigures>] = shown!(VM_FIGURES: VmFigures, column);
/// What batch mode tells of each VM.
pub(super) const VM_COUNTERS: &[Figure<VmFigures>] = shown!(VM_FIGURES: VmFigures, counter);
/// What batch mode tells of the host.
pub(super) const HOST_COUNTERS: &[Figure<HostFigures>] = shown!(HOST_FIGURES: HostFigures, counter);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_unknown_comes_below_all_and_percentages_are_sorted_as_numbers() {
        let (unknown, size) = (Reading::Unknown, Reading::Size);
        assert_eq!(order(&unknown, &size(0)), Ordering::Less);
        assert_eq!(order(&unknown, &Reading::Percent(0.0)), Ordering::Less);
        assert_eq!(order(&size(2), &size(1)), Ordering::Greater);
        let (nine, ten) = (Reading::Percent(9.5), Reading::Percent(10.0));
        assert_eq!(order(&nine, &ten), Ordering::Less);
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
        assert_eq!(for_programs(&Reading::Size(1 << 19)), "0.50");
        assert_eq!(for_programs(&Reading::Difference(-(7 << 20))), "-7.00");
        assert_eq!(Unit::Mebibytes.difference(-(7 << 20)), "-7.0");
    }

    #[test]
    fn no_two_counters_have_one_name_and_keys_sort_by_the_columns_that_they_name() {
        let names: BTreeSet<&str> = VM_COUNTERS.iter().map(|figure| figure.counter).collect();
        assert_eq!(names.len(), VM_COUNTERS.len());
        let names: BTreeSet<&str> = HOST_COUNTERS.iter().map(|figure| figure.counter).collect();
        assert_eq!(names.len(), HOST_COUNTERS.len());
        let named = [NAME, MEMSZ, GRANT, MCTLSZ].map(|column| COLUMNS[column].column);
        assert_eq!(named, ["NAME", "MEMSZ", "GRANT", "MCTLSZ"]);
    }
}
