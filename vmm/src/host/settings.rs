//! What an administrator sets of a VM, when it starts or later.

use super::HostOptions;
use super::error::HostError;
use api::{HostChange, HostSettings, RunRequest, VmChange, VmIdleTax, whole_pages, whole_pages_or};
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

/// The settings of a host that starts: what it was told, and what it was not told as it was last changed and kept.
pub(super) fn with_kept(
    options: &HostOptions,
    kept: &HostChange,
    machine: PageCount,
) -> Result<HostSettings, HostError> {
    let mut kept = kept.clone();
    let is_given = |key| options.given.words().iter().any(|(given, _)| *given == key);
    for (key, value) in kept.words() {
        match is_given(key) {
            true => tracing::info!("{key}={value} was set before; what this host was told wins"),
            false => tracing::info!("{key}={value}, as it was set before"),
        }
    }
    if !is_given("memory")
        && kept
            .memory_bytes
            .is_some_and(|bytes| bytes > machine.bytes())
    {
        tracing::warn!(
            "this machine has only {machine}: what memory was set to before is left out"
        );
        kept.memory_bytes = None;
    }
    // What was kept was once allowed, by this program or an older one.
    let settings = options.settings.with(&kept).unwrap_or_else(|error| {
        tracing::warn!("what was set before is left out: {error}");
        options.settings.clone()
    });
    Ok(settings.with(&options.given)?)
}
