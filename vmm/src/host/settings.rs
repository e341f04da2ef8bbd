//! What an administrator sets of a VM, when it starts or later.

use super::error::HostError;
use api::{RunRequest, VmChange, VmIdleTax, whole_pages, whole_pages_or};
use page::PageCount;
use policy::{SharesSpec, VmSettings};

/// The settings of a VM that is wanted on a machine of that size, with a swap file or without.
pub(super) fn of_vm(
    request: &RunRequest,
    machine: PageCount,
    has_swap_file: bool,
) -> Result<VmSettings, HostError> {
    let size = whole_pages(request.memory_bytes)?;
    if size > machine {
        return Err(HostError::LargerThanMachine { size, machine });
    }
    let max = request.max_bytes.map(whole_pages).transpose()?;
    let min = match request.min_bytes {
        Some(bytes) => Some(whole_pages(bytes)?),
        None if has_swap_file => Some(VmSettings::LEAST_MIN.min(max.unwrap_or(size))),
        None => None,
    };
    let shares = request.shares.unwrap_or(SharesSpec::Normal);
    Ok(VmSettings {
        idle_tax: request.idle_tax_permille,
        large_pages: request.large_pages.unwrap_or(true),
        ..VmSettings::new(size, min, max, shares)?
    })
}

/// The settings of a VM with a change.
pub(super) fn of_vm_with(old: &VmSettings, change: &VmChange) -> Result<VmSettings, HostError> {
    let settings = VmSettings {
        size: old.size,
        min: whole_pages_or(change.min_bytes, old.min)?,
        max: whole_pages_or(change.max_bytes, old.max)?,
        shares: change.shares.unwrap_or(old.shares),
        idle_tax: match change.idle_tax {
            None => old.idle_tax,
            Some(VmIdleTax::Host) => None,
            Some(VmIdleTax::Permille(rate)) => Some(rate),
        },
        large_pages: change.large_pages.unwrap_or(old.large_pages),
    };
    settings.check()?;
    Ok(settings)
}
