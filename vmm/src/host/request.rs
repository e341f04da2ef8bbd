//! Checks what clients ask for, each by one rule.

use super::error::HostError;
use super::vm::Vm;
use crate::vm::MOST_NETS;
use api::NetRequest;
use balloon_guest_driver::command_line::CommandLine;
use balloon_guest_driver::workload::NoFiles;
use balloon_guest_driver::workload::spec::Spec;
use page::PageCount;
use policy::{OVERHEAD, VmSettings};
use protocol::{DiskSpec, MacAddress, NetConfig, VmName};

pub(super) fn check_budget(budget: PageCount, machine: PageCount) -> Result<(), HostError> {
    if budget > machine {
        return Err(HostError::BudgetLargerThanMachine { budget, machine });
    }
    if budget < OVERHEAD {
        return Err(HostError::BudgetTooSmall {
            budget,
            least: OVERHEAD,
            machine,
        });
    }
    Ok(())
}

/// What a VM holds with a balloon of that size.
pub(super) fn pinned(vm: &Vm, balloon: PageCount) -> Result<PageCount, HostError> {
    left_by_balloon(&vm.config.name, &vm.config.settings, balloon)
}

fn left_by_balloon(
    name: &VmName,
    settings: &VmSettings,
    balloon: PageCount,
) -> Result<PageCount, HostError> {
    let &VmSettings { size, min, .. } = settings;
    if balloon > size {
        return Err(HostError::BalloonLargerThanVm {
            name: name.clone(),
            balloon,
            size,
            most: size.saturating_sub(min),
        });
    }
    let left = size - balloon;
    if left < min {
        return Err(HostError::BalloonBelowMin {
            name: name.clone(),
            balloon,
            left,
            min,
        });
    }
    Ok(left)
}

/// The kernel's command line. Of the embedded guest's workload in it, the guest's own parser says whether the guest
/// will take it.
pub(super) fn command_line(
    cmdline: Option<String>,
    workload: Option<String>,
    own_kernel: bool,
    disks: &[DiskSpec],
) -> Result<String, HostError> {
    if workload.is_some() && own_kernel {
        return Err(HostError::WorkloadWithKernel);
    }
    // As the parser shows it: spaces, which it lets pass, would end the word.
    let workload = workload.as_deref().map(spec).transpose()?;
    let workload = workload.map(|spec| format!("workload={spec}"));
    let line = [cmdline, workload]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ");
    if !own_kernel {
        check_workload(&line, disks)?;
    }
    Ok(line)
}

fn spec(text: &str) -> Result<Spec, HostError> {
    Spec::parse(text).map_err(|error| HostError::Workload(error.to_string()))
}

/// Checks the workload that the embedded guest finds in its command line.
fn check_workload(line: &str, disks: &[DiskSpec]) -> Result<(), HostError> {
    let workload = CommandLine::parse(line).workload;
    let spec = workload.map_or(Ok(Spec::IDLE), spec)?;
    let lacks = match (spec.action.files(), disks.first()) {
        (Some(_), None) => Some(NoFiles::NoDisk),
        (Some(_), Some(disk)) if disk.read_only => Some(NoFiles::ReadOnly),
        _ => None,
    };
    lacks.map_or(Ok(()), |lacks| Err(HostError::Workload(lacks.to_string())))
}

/// The network cards of a VM of that name, each with an address.
pub(super) fn network_cards(
    name: &VmName,
    requests: Vec<NetRequest>,
) -> Result<Vec<NetConfig>, HostError> {
    if requests.len() > MOST_NETS {
        return Err(HostError::TooManyNets(requests.len()));
    }
    if requests.iter().any(|card| card.bytes_per_s == Some(0)) {
        return Err(HostError::NoNetRate);
    }
    let card = |(index, request): (usize, NetRequest)| NetConfig {
        tap: request.tap,
        mac: request
            .mac
            .unwrap_or_else(|| MacAddress::of_vm(name.as_str(), index)),
        bytes_per_s: request.bytes_per_s,
    };
    Ok(requests.into_iter().enumerate().map(card).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(cmdline: Option<&str>, workload: Option<&str>) -> Result<String, HostError> {
        command_line(
            cmdline.map(Into::into),
            workload.map(Into::into),
            false,
            &[],
        )
    }

    #[test]
    fn a_balloon_larger_than_its_vm_is_said_to_be_that() {
        let mebibytes = PageCount::from_mebibytes;
        let name: VmName = "p".parse().unwrap();
        let min = Some(mebibytes(16));
        let settings =
            VmSettings::new(mebibytes(280), min, None, policy::SharesSpec::Normal).unwrap();
        let said = |balloon| left_by_balloon(&name, &settings, mebibytes(balloon));
        assert_eq!(said(264).unwrap(), mebibytes(16));
        let larger = said(281).unwrap_err().to_string();
        assert!(
            larger.contains("281 MiB is larger than VM 'p', which has 280 MiB"),
            "{larger}"
        );
        assert!(larger.contains("264 MiB at most"), "{larger}");
        let below = said(265).unwrap_err().to_string();
        assert!(below.contains("would leave VM 'p' 15 MiB"), "{below}");
    }

    #[test]
    fn the_guest_finds_the_workload_that_was_meant() {
        let given = line(Some("quiet"), Some(" toucher:size=64M, write=5 ")).unwrap();
        let found = CommandLine::parse(&given);
        let meant = Spec::parse("toucher:size=64M,write=5").unwrap();
        assert!(found.quiet, "{given}");
        assert_eq!(found.workload.map(Spec::parse), Some(Ok(meant)), "{given}");
    }

    #[test]
    fn a_workload_that_the_guest_will_refuse_is_refused_in_its_words_wherever_it_stands() {
        for text in [
            "",
            "x",
            "toucher:size=0",
            "verify:zero=3",
            "toucher:size=1M x",
        ] {
            let why = Spec::parse(text).unwrap_err().to_string();
            assert!(
                line(None, Some(text))
                    .unwrap_err()
                    .to_string()
                    .contains(&why)
            );
        }
        let refused = line(Some("quiet workload=x"), None).unwrap_err();
        assert!(refused.to_string().contains("no workload `x`"), "{refused}");
        let refused = line(None, Some("dbench")).unwrap_err();
        assert!(refused.to_string().contains("--disk FILE"), "{refused}");
        // The last one counts, and another kernel may mean anything by it.
        assert!(line(Some("workload=x"), Some("idle")).is_ok());
        assert!(command_line(Some("workload=x".into()), None, true, &[]).is_ok());
    }
}
