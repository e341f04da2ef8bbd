//! How much of its memory a guest truly uses: what an estimate is judged by, and what the closed form of
//! the idle tax is computed from.

use balloon_guest_driver::workload::spec::{self, Action, Spec};
use page::{InvalidSize, PageCount, Size};
use std::str::FromStr;

/// What of a VM's memory is active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Active {
    /// Nobody can tell.
    #[default]
    Unknown,
    /// So many pages.
    Pages(PageCount),
    /// Whatever it has.
    All,
}

impl FromStr for Active {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        match text {
            "all" => Ok(Self::All),
            size => size.parse().map(|Size(pages)| Self::Pages(pages)),
        }
    }
}

impl Active {
    /// What a workload makes active, where its text says so.
    #[must_use]
    pub(crate) fn of_workload(text: &str) -> Self {
        match Spec::parse(text) {
            Ok(Spec {
                action: Action::Idle,
                ..
            }) => Self::Pages(PageCount::ZERO),
            Ok(Spec {
                size,
                action: Action::Touch(toucher),
            }) => Self::of_size(size).and(Self::of_size(toucher.active)),
            // A cache is as good as it is large.
            Ok(Spec {
                size,
                action: Action::Dbench(_),
            }) => Self::of_size(size),
            _ => Self::Unknown,
        }
    }

    fn of_size(size: spec::Size) -> Self {
        match size {
            spec::Size::Max => Self::All,
            spec::Size::Pages(pages) => Self::Pages(PageCount(pages.into())),
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Pages(one), Self::Pages(two)) => Self::Pages(one.min(two)),
            (Self::All, limit) | (limit, Self::All) => limit,
            _ => Self::Unknown,
        }
    }

    /// In a VM that has so much.
    #[must_use]
    pub(crate) fn of(self, has: PageCount) -> Option<PageCount> {
        match self {
            Self::Unknown => None,
            Self::Pages(pages) => Some(pages.min(has)),
            Self::All => Some(has),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_says_what_it_makes_active() {
        let mebibytes = |count| Active::Pages(PageCount::from_mebibytes(count));
        for (text, active) in [
            ("idle", mebibytes(0)),
            ("toucher:size=64M", mebibytes(64)),
            ("toucher:size=64M,active=16M", mebibytes(16)),
            ("toucher:size=max,active=16M", mebibytes(16)),
            ("toucher:size=max", Active::All),
            ("dbench", Active::All),
            ("verify", Active::Unknown),
        ] {
            assert_eq!(Active::of_workload(text), active, "{text}");
        }
        assert_eq!(Active::All.of(PageCount(7)), Some(PageCount(7)));
        assert_eq!(mebibytes(1).of(PageCount(7)), Some(PageCount(7)));
    }
}
