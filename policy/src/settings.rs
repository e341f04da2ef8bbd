//! What an administrator decides about one VM's memory.

use crate::{BalloonSettings, SharesSpec, TaxRate};
use page::PageCount;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest size of a VM: what x86-64 can address (52 bits). It also keeps every sum and product in
/// this crate far from overflow.
pub const SIZE_LIMIT: PageCount = PageCount(1 << 40);

/// A VM's memory settings. Valid if [`check`](Self::check) says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSettings {
    /// What the guest sees as its memory.
    pub size: PageCount,
    /// Reservation: the VM is never asked to hold less. A promise that admission keeps.
    pub min: PageCount,
    /// Limit: the VM is never given more.
    pub max: PageCount,
    /// Its weight for what lies between.
    pub shares: SharesSpec,
    /// Its own idle tax, instead of the host's.
    #[serde(default)]
    pub idle_tax: Option<TaxRate>,
    /// Whether its memory is made large pages, where the host makes any.
    #[serde(default = "yes")]
    pub large_pages: bool,
}

fn yes() -> bool {
    true
}

impl VmSettings {
    /// The default of `min` of a VM with a swap file: what a guest needs to go on at all, however slowly. (ESX's is 0, and it
    /// counts some memory of every VM for that besides.)
    pub const LEAST_MIN: PageCount = PageCount::from_mebibytes(16);

    /// Checked settings. `max` is by default the size. `min` is by default what a full balloon leaves
    /// ([`BalloonSettings::least_left`], and at most `max`): with no swap below the balloon, nothing else could take
    /// that memory, so it must be there. Where all of the VM can be swapped it is given as [`Self::LEAST_MIN`].
    pub fn new(
        size: PageCount,
        min: Option<PageCount>,
        max: Option<PageCount>,
        shares: SharesSpec,
    ) -> Result<Self, InvalidSettings> {
        let max = max.unwrap_or(size);
        let left_by_full_balloon = BalloonSettings::default().least_left(size);
        let min = min.unwrap_or(left_by_full_balloon.min(max));
        let settings = Self {
            size,
            min,
            max,
            shares,
            idle_tax: None,
            large_pages: true,
        };
        settings.check().map(|()| settings)
    }

    /// Whether these settings make sense together.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        let &Self { size, min, max, .. } = self;
        check_addressable("size", size)?;
        check_addressable("max", max)?;
        check_addressable("min", min)?;
        match () {
            () if size == PageCount::ZERO => Err(InvalidSettings::NoSize),
            () if max == PageCount::ZERO => Err(InvalidSettings::NoMax { size }),
            () if max > size => Err(InvalidSettings::MaxAboveSize { max, size }),
            () if min > max => Err(InvalidSettings::MinAboveMax { min, max }),
            () => Ok(()),
        }
    }

    /// `size`, made sense of even in unchecked settings (an edited recording, say).
    pub(crate) fn effective_size(&self) -> PageCount {
        self.size.min(SIZE_LIMIT)
    }

    /// `max`, at most the size.
    pub(crate) fn effective_max(&self) -> PageCount {
        self.max.min(self.effective_size())
    }

    /// `min`, at most [`effective_max`](Self::effective_max).
    pub(crate) fn effective_min(&self) -> PageCount {
        self.min.min(self.effective_max())
    }

    /// What memory need not hold, so that it must fit below: the size less the min.
    pub(crate) fn swappable(&self) -> PageCount {
        self.effective_size().saturating_sub(self.effective_min())
    }
}

fn check_addressable(field: &'static str, count: PageCount) -> Result<(), InvalidSettings> {
    let pages = count.0;
    if count > SIZE_LIMIT {
        return Err(InvalidSettings::NotAddressable { field, pages });
    }
    Ok(())
}

/// Why settings were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it, with the fields by name")]
pub enum InvalidSettings {
    #[error("size is 0: give the VM memory, for example --memory 512M")]
    NoSize,
    #[error(
        "{field} of {pages} pages is more than the {SIZE_LIMIT} that a guest can address: give less"
    )]
    NotAddressable { field: &'static str, pages: u64 },
    #[error("max is 0, so the VM could hold nothing: give a max of up to its size, {size}")]
    NoMax { size: PageCount },
    #[error("max {max} is more than the VM's size {size}: lower --max or raise --memory")]
    MaxAboveSize { max: PageCount, size: PageCount },
    #[error("min {min} is more than max {max}: lower --min or raise --max")]
    MinAboveMax { min: PageCount, max: PageCount },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;
    use proptest::prelude::*;

    const MIB_512: PageCount = PageCount::from_mebibytes(512);

    fn pages(count: u64) -> Option<PageCount> {
        Some(PageCount(count))
    }

    fn refusal(size: PageCount, min: Option<PageCount>, max: Option<PageCount>) -> String {
        VmSettings::new(size, min, max, SharesSpec::Normal)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn by_default_a_vm_may_hold_its_size_and_keeps_what_a_full_balloon_leaves() {
        let settings = VmSettings::new(PageCount(1001), None, None, SharesSpec::Normal).unwrap();
        assert_eq!(settings.max, PageCount(1001));
        assert_eq!(settings.min, PageCount(351));
    }

    #[test]
    fn a_low_max_lowers_the_default_min() {
        let settings = VmSettings::new(MIB_512, None, pages(10), SharesSpec::Normal).unwrap();
        assert_eq!(settings.min, PageCount(10));
    }

    #[test]
    fn a_refusal_names_the_fields_and_their_values() {
        let large = Some(PageCount::from_mebibytes(600));
        let small = Some(PageCount::from_mebibytes(100));
        let min_above_max = refusal(MIB_512, Some(MIB_512), small);
        assert!(
            min_above_max.contains("min 512 MiB is more than max 100 MiB"),
            "{min_above_max}"
        );
        let max_above_size = refusal(MIB_512, None, large);
        assert!(
            max_above_size.contains("max 600 MiB is more than the VM's size 512 MiB"),
            "{max_above_size}"
        );
        assert!(refusal(PageCount::ZERO, None, None).contains("size is 0"));
        assert!(refusal(MIB_512, None, pages(0)).contains("max is 0"));
        assert!(refusal(PageCount(u64::MAX), None, None).contains("can address"));
    }

    proptest! {
        #[test]
        fn any_numbers_are_valid_or_refused_with_a_message(settings in generate::senseless_settings()) {
            if let Err(refusal) = settings.check() {
                prop_assert!(refusal.to_string().contains(": "));
            }
        }

        #[test]
        fn valid_settings_are_their_own_effective_ones(
            size in 0u64..50, min in prop::option::of(0u64..50), max in prop::option::of(0u64..50)
        ) {
            let settings = VmSettings::new(
                PageCount(size), min.map(PageCount), max.map(PageCount), SharesSpec::Low,
            );
            if let Ok(settings) = settings {
                prop_assert!(settings.min <= settings.max && settings.max <= settings.size);
                prop_assert_eq!(settings.effective_min(), settings.min);
                prop_assert_eq!(settings.effective_max(), settings.max);
            }
        }
    }
}
