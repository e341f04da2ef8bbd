//! VMs of a host that died. They run on, because a guest must not die with its host; but a new host
//! does not know them yet, so their memory would be missing from its budget.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A VM process without its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pub(super) name: String,
    pub(super) pid: u32,
}

/// The VM processes that a host at `socket` has started. Called before this host has any.
pub(super) fn find(socket: &Path) -> Vec<Orphan> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let name = vm_named_in(&command, socket)?;
            Some(Orphan { name, pid })
        })
        .collect()
}

/// The arguments of a VM process; [`vm_named_in`] recognizes them.
pub(super) fn arguments<'a>(name: &'a str, socket: &'a Path) -> [&'a std::ffi::OsStr; 3] {
    ["vm".as_ref(), name.as_ref(), socket.as_os_str()]
}

fn vm_named_in(command: &[u8], socket: &Path) -> Option<String> {
    let words: Vec<&[u8]> = command
        .strip_suffix(&[0])?
        .split(|&byte| byte == 0)
        .collect();
    match words[..] {
        [_, b"vm", name, of] if of == socket.as_os_str().as_bytes() => {
            Some(String::from_utf8_lossy(name).into_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_process_is_recognized_by_its_arguments() {
        let socket = Path::new("/run/x.sock");
        let command = |words: &[&str]| {
            words
                .iter()
                .map(|word| format!("{word}\0"))
                .collect::<String>()
        };
        let ours = command(&["/proc/self/exe", "vm", "a", "/run/x.sock"]);
        assert_eq!(vm_named_in(ours.as_bytes(), socket), Some("a".into()));
        for other in [
            command(&["vi", "vm", "a", "/run/y.sock"]),
            command(&["a", "vm"]),
            String::new(),
        ] {
            assert_eq!(vm_named_in(other.as_bytes(), socket), None);
        }
        let typed: Vec<_> = arguments("a", socket)
            .iter()
            .map(|word| word.to_str().unwrap())
            .collect();
        assert_eq!(typed, ["vm", "a", "/run/x.sock"]);
    }
}
