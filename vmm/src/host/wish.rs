//! Checks what clients wish for, each by one rule.

use super::error::HostError;
use super::vm::Vm;
use page::{PAGE_SIZE, PageCount};
use policy::VmSettings;

pub(super) fn check_budget(budget: PageCount, machine: PageCount) -> Result<(), HostError> {
    if budget > machine {
        return Err(HostError::BudgetLargerThanMachine { budget, machine });
    }
    Ok(())
}

/// What a VM holds with a balloon of that size.
pub(super) fn pinned(vm: &Vm, balloon: PageCount) -> Result<PageCount, HostError> {
    let VmSettings { size, min, .. } = vm.config.settings;
    let left = size.saturating_sub(balloon);
    if balloon > size || left < min {
        return Err(HostError::BalloonBelowMin {
            name: vm.config.name.clone(),
            balloon,
            left,
            min,
        });
    }
    Ok(left)
}

pub(super) fn command_line(
    cmdline: Option<String>,
    workload: Option<String>,
    own_kernel: bool,
) -> Result<String, HostError> {
    if workload.is_some() && own_kernel {
        return Err(HostError::WorkloadWithKernel);
    }
    let workload = workload.map(|spec| format!("workload={spec}"));
    Ok([cmdline, workload]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" "))
}

pub(super) fn whole_pages(size_bytes: u64) -> Result<PageCount, HostError> {
    if size_bytes.is_multiple_of(PAGE_SIZE) {
        Ok(PageCount(size_bytes / PAGE_SIZE))
    } else {
        Err(HostError::NotWholePages { size_bytes })
    }
}

pub(super) fn whole_pages_or(
    size_bytes: Option<u64>,
    otherwise: PageCount,
) -> Result<PageCount, HostError> {
    size_bytes.map_or(Ok(otherwise), whole_pages)
}
