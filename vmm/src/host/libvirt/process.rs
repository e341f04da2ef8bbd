//! Which process a domain's QEMU is. libvirt does not say that; its QEMUs have their domain's UUID among their words.
//!
//! Anybody may start a process with such words. So it must be the user's whom libvirt says, and a QEMU, and the only one.

use super::Uuid;
use crate::host::kernel::other_than_qemu;
use std::fs;
use std::os::unix::fs::MetadataExt;
use thiserror::Error;

/// Bytes of a command line that are looked at.
const LONGEST_COMMAND: usize = 1 << 20;

/// Why a domain's process is not known.
#[derive(Debug, Error)]
pub(in crate::host) enum NotFound {
    #[error("its QEMU is not seen from here: run the host in its PID namespace and as root")]
    Nowhere,
    #[error(
        "processes {0} and {1} both say that they are its QEMU: end the one that libvirt did not start"
    )]
    Twice(u32, u32),
}

/// Looks at all processes.
pub(in crate::host) fn find_process(uuid: Uuid, owner: Option<u32>) -> Result<u32, NotFound> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let uuid = uuid.to_string();
    let mut found = numbers.filter(|&pid| is_of(pid, &uuid, owner));
    match (found.next(), found.next()) {
        (Some(pid), None) => Ok(pid),
        (Some(one), Some(other)) => Err(NotFound::Twice(one, other)),
        (None, _) => Err(NotFound::Nowhere),
    }
}

fn is_of(pid: u32, uuid: &str, owner: Option<u32>) -> bool {
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let is_owned = || match (owner, fs::metadata(format!("/proc/{pid}"))) {
        (Some(owner), Ok(metadata)) => metadata.uid() == owner,
        (None, _) => true,
        (_, Err(_)) => false,
    };
    let is_qemu = || matches!(other_than_qemu(pid), Ok(None));
    command.len() <= LONGEST_COMMAND && names(&command, uuid) && is_owned() && is_qemu()
}

fn names(command: &[u8], uuid: &str) -> bool {
    let words: Vec<&[u8]> = command.split(|&byte| byte == 0).collect();
    let mut pairs = words.windows(2);
    pairs.any(|pair| pair[0] == b"-uuid" && pair[1] == uuid.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_is_known_by_the_uuid_among_its_words() {
        let uuid = "5bb3b54a-7025-4c58-8201-d8ab02dfad30";
        let command = format!("qemu\0-S\0-uuid\0{uuid}\0-nodefaults\0");
        assert!(names(command.as_bytes(), uuid));
        let in_a_name = format!("qemu\0-name\0-uuid {uuid}\0");
        assert!(!names(in_a_name.as_bytes(), uuid));
        assert!(!names(b"-uuid", uuid) && !names(b"", uuid));
        let nobodys: Uuid = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        assert!(matches!(
            find_process(nobodys, None),
            Err(NotFound::Nowhere)
        ));
    }
}
