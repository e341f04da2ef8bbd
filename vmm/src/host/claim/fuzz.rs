//! Whatever a VM process sends is understood or refused, and what comes through the door can be true of its VM.

use super::{Checked, CheckedStart, MOST_COUNTED, words};
use page::{PageCount, VmId};
use policy::{SharesSpec, VmSettings};
use protocol::page_sharing::SharingSocket;
use protocol::{Channel, FromVm, Observation, OnHostDeath, VmConfig};
use rustix::fd::OwnedFd;
use rustix::net::{SendFlags, send};
use std::time::Duration;

const SIZE: PageCount = PageCount::from_mebibytes(64);
const AGE: Duration = Duration::from_secs(60);

/// Reads `bytes` as a packet of a VM process at each of the two sockets at which its host hears it.
///
/// # Panics
/// If something is believed that cannot be.
pub fn run(bytes: &[u8]) {
    hear_agent(bytes);
    let (host, vm) = Channel::pair().expect("there are sockets");
    // What is longer than a packet can be is not sent.
    if send(OwnedFd::from(vm), bytes, SendFlags::DONTWAIT).is_err() {
        return;
    }
    let Ok(said) = host.hear::<FromVm>() else {
        return;
    };
    match said {
        FromVm::Observation(said) => observe(*said),
        FromVm::Started(said) | FromVm::Description(said) => {
            if let Ok(start) = CheckedStart::new(*said, SIZE) {
                assert!(start.userfault_pages <= SIZE);
                assert!(start.ram_address.checked_add(SIZE.bytes()).is_some());
            }
        }
        FromVm::Ended { reason: said, .. } | FromVm::Failed { error: said } => {
            let words = words(&said);
            assert!(words.chars().count() <= 1000 && !words.contains(char::is_control));
        }
        FromVm::Memory => {}
    }
}

/// What is understood means the same when it is said again.
fn hear_agent(bytes: &[u8]) {
    let (scanner, agent) = SharingSocket::pair().expect("there are sockets");
    let agent = OwnedFd::from(agent);
    if send(&agent, bytes, SendFlags::DONTWAIT).is_err() {
        return;
    }
    if let Ok(said) = scanner.hear_agent() {
        let agent = SharingSocket::from(agent);
        agent.answer(&said).expect("there is room");
        assert_eq!(scanner.hear_agent().expect("it was said before"), said);
    }
}

fn observe(said: Observation) {
    let config = config(said.nets.len().min(1), said.disks.len().min(1));
    let Ok(checked) = Checked::new(said, &config, AGE) else {
        return;
    };
    let sum: u128 = checked
        .states
        .iter()
        .map(|(_, pages)| u128::from(pages.0))
        .sum();
    assert_eq!(sum, u128::from(SIZE.0));
    assert!(checked.balloon.held <= SIZE && checked.balloon.target <= SIZE);
    assert!(checked.counters.sharing.shared.0 <= MOST_COUNTED);
    assert!(checked.blocked.total_us <= 60_000_000);
    // What is counted of all VMs, of which there are fewer than descriptors.
    let sums = [checked.counters.swap.out, checked.counters.large.made];
    assert!(
        sums.iter()
            .all(|count| count.checked_mul(1 << 15).is_some())
    );
    let again = Checked::new(checked.0.clone(), &config, AGE);
    assert_eq!(again, Ok(checked), "what is believed is believed again");
}

/// A VM with so many devices.
pub(super) fn config(nets: usize, disks: usize) -> VmConfig {
    let net = protocol::NetConfig {
        tap: "tap0".parse().expect("a name of a tap"),
        mac: protocol::MacAddress::of_vm("fuzz", 0),
        bytes_per_s: None,
    };
    let disk = || "disk.img".parse().expect("a path");
    VmConfig {
        id: VmId(1),
        name: "a".parse().expect("a name"),
        settings: VmSettings::new(SIZE, None, None, SharesSpec::Normal).expect("it is right"),
        vcpus: 1,
        trust_group: None,
        kernel: None,
        initrd: None,
        nets: vec![net; nets],
        cmdline: String::new(),
        disks: (0..disks).map(|_| disk()).collect(),
        console_log: None,
        balloon_target: PageCount::ZERO,
        touch_limit: None,
        large_pages: policy::LargePages::Off,
        has_swap: true,
        swap_file_for: None,
        jail: protocol::JailMode::default(),
        on_host_death: OnHostDeath::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fuzz::tests::{run_changed, run_random, run_stored};

    #[test]
    fn no_stored_input_is_believed_that_cannot_be() {
        run_stored("vm", run);
    }

    #[test]
    fn no_random_input_is_believed_that_cannot_be() {
        run_random(run);
        run_changed("vm", run);
    }
}
