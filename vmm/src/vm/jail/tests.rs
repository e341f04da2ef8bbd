//! A process that was taken over tries what it likes: another copy of this test program, for a jail is for ever.
#![expect(unsafe_code, reason = "an attacker makes system calls as it pleases")]

use super::*;
use crate::memory::ram::GuestRam;
use crate::memory::store::Store;
use page::{Gfn, GfnRange, PageCount};
use rustix::fs::Mode;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::parent_id;
use std::process::{Command, Output};
use std::thread;

/// What the copy is told to do, and that it is to do anything.
const ORDER: &str = "BALLONET_TEST_ATTACK";
const PAGE: usize = 4096;
const OTHER_PROGRAM: &CStr = c"/bin/true";
const OTHER_FILE: &CStr = c"/etc/passwd";
/// Which nobody but root may read.
const ROOTS_FILE: &CStr = c"/etc/shadow";
const CREATE_VM: usize = 0xae01;
const MEMORY: GfnRange = GfnRange {
    start: Gfn(0),
    count: PageCount(512),
};

/// A system call that no VM process makes once its guest runs.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    name: &'static str,
    call: i64,
    arguments: fn() -> [usize; 6],
}

const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "opens a file",
        call: libc::SYS_openat,
        arguments: || [AT_CWD, address(OTHER_FILE), 0, 0, 0, 0],
    },
    Attempt {
        name: "opens a file of root's",
        call: libc::SYS_openat,
        arguments: || [AT_CWD, address(ROOTS_FILE), 0, 0, 0, 0],
    },
    Attempt {
        name: "runs a program",
        call: libc::SYS_execve,
        arguments: || [address(OTHER_PROGRAM), 0, 0, 0, 0, 0],
    },
    Attempt {
        name: "makes a process",
        call: libc::SYS_clone,
        arguments: || [libc::SIGCHLD.unsigned_abs() as usize, 0, 0, 0, 0, 0],
    },
    Attempt {
        name: "makes a socket",
        call: libc::SYS_socket,
        arguments: || [2, 1, 0, 0, 0, 0],
    },
    Attempt {
        name: "signals another process",
        call: libc::SYS_kill,
        arguments: || [parent_id() as usize, 0, 0, 0, 0, 0],
    },
    Attempt {
        name: "signals a thread of another process",
        call: libc::SYS_tgkill,
        arguments: || [parent_id() as usize, parent_id() as usize, 0, 0, 0, 0],
    },
    Attempt {
        name: "traces another process",
        call: libc::SYS_ptrace,
        arguments: || [0x4206, parent_id() as usize, 0, 0, 0, 0],
    },
    Attempt {
        name: "reads another process",
        call: libc::SYS_process_vm_readv,
        arguments: || [parent_id() as usize, 0, 0, 0, 0, 0],
    },
    Attempt {
        name: "gets hold of another process",
        call: libc::SYS_pidfd_open,
        arguments: || [parent_id() as usize, 0, 0, 0, 0, 0],
    },
    Attempt {
        name: "maps memory as code",
        call: libc::SYS_mmap,
        arguments: || [0, PAGE, 7, 0x22, usize::MAX, 0],
    },
    Attempt {
        name: "makes memory code",
        call: libc::SYS_mprotect,
        arguments: || [0, 0, 5, 0, 0, 0],
    },
    Attempt {
        name: "makes another virtual machine",
        call: libc::SYS_ioctl,
        arguments: || [0, CREATE_VM, 0, 0, 0, 0],
    },
    Attempt {
        name: "makes a ring that nothing restricts",
        call: libc::SYS_io_uring_setup,
        arguments: || [1, 0, 0, 0, 0, 0],
    },
    Attempt {
        name: "loads a program into the kernel",
        call: libc::SYS_bpf,
        arguments: || [0; 6],
    },
    Attempt {
        name: "makes namespaces",
        call: libc::SYS_unshare,
        arguments: || [libc::CLONE_NEWUSER.unsigned_abs() as usize, 0, 0, 0, 0, 0],
    },
    Attempt {
        name: "mounts",
        call: libc::SYS_mount,
        arguments: || [0, address(c"/"), 0, MOUNT_PRIVATE, 0, 0],
    },
    Attempt {
        name: "takes more memory than a VM needs",
        call: libc::SYS_mmap,
        // For reading and writing, private, of no file.
        arguments: || [0, 1 << 30, 3, 0x22, usize::MAX, 0],
    },
    Attempt {
        name: "takes another descriptor",
        call: libc::SYS_fcntl,
        // F_DUPFD, from a number on that is above every limit that a jail sets.
        arguments: || [0, 0, 900, 0, 0, 0],
    },
];

const AT_CWD: usize = libc::AT_FDCWD.cast_unsigned() as usize;
const MOUNT_PRIVATE: usize = 1 << 18;

fn address(text: &'static CStr) -> usize {
    text.as_ptr().expose_provenance()
}

impl Attempt {
    fn named(name: &str) -> Option<&'static Self> {
        ATTEMPTS.iter().find(|attempt| attempt.name == name)
    }

    /// The kernel's error; 0 if it was done.
    fn perform(&self, [a, b, c, d, e, f]: [usize; 6]) -> i32 {
        // SAFETY: the attempts hand over numbers and texts that live for ever, and change no memory that is used.
        let result = unsafe { libc::syscall(self.call, a, b, c, d, e, f) };
        match (self.call, result) {
            // SAFETY: the new process has nothing to do.
            (libc::SYS_clone, 0) => unsafe { libc::_exit(0) },
            (_, -1) => std::io::Error::last_os_error().raw_os_error().unwrap(),
            _ => 0,
        }
    }
}

/// What became of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The call's error; 0 if it was done.
    Errno(i32),
    /// The process's last words.
    Ended(String),
}

/// Has a copy of this program enter a jail of these layers and do something, by name.
fn in_jail(mode: JailMode, layers: &[JailLayer], deed: &str) -> (Output, String) {
    let layers = layers.iter().map(|layer| layer.name());
    let layers = layers.collect::<Vec<_>>().join(",");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "vm::jail::tests::attacker", "--nocapture"])
        .arg("--test-threads=1")
        .env(ORDER, format!("{mode};{layers};{deed}"))
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

fn outcome(mode: JailMode, layers: &[JailLayer], deed: &str) -> Outcome {
    let (output, said) = in_jail(mode, layers, deed);
    let mut lines = said.lines();
    let errno = lines.find_map(|line| line.strip_prefix("outcome ")?.parse().ok());
    match errno {
        Some(errno) => Outcome::Errno(errno),
        None => {
            assert_eq!(output.status.code(), Some(1), "{deed}: {output:?}");
            Outcome::Ended(said)
        }
    }
}

fn all_but(layer: JailLayer) -> Vec<JailLayer> {
    let all = JailLayer::ALL.into_iter();
    all.filter(|other| *other != layer).collect()
}

/// Whether this machine can do all of that layer.
fn holds_whole(layer: JailLayer) -> bool {
    let (_, said) = in_jail(JailMode::Enforce, &[layer], "does nothing");
    let is_root = || layer != JailLayer::Capabilities || capabilities::is_above_others();
    let holds = said.contains(&format!("{layer:?}: Whole")) && is_root();
    if !holds {
        eprintln!("left out: this machine cannot do {layer:?}: {said}");
    }
    holds
}

fn say(text: &str) {
    rustix::io::write(rustix::stdio::stderr(), text.as_bytes()).ok();
}

/// The copy. In any other run it has nothing to do.
#[test]
fn attacker() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    let words: Vec<_> = order.split(';').collect();
    let wanted = |layer: &JailLayer| words[1].split(',').any(|name| name == layer.name());
    let layers: Vec<_> = JailLayer::ALL.into_iter().filter(wanted).collect();
    // Made before: who its parent is it may not ask any more.
    let attempt = Attempt::named(words[2]);
    let attempt = attempt.map(|attempt| (attempt, (attempt.arguments)()));
    let store = Store::new(1).unwrap().read_only().unwrap();
    let new_ram = [GuestRam::new, GuestRam::with_large_pages].map(|new| new(MEMORY.count).unwrap());
    let begin = std::time::Instant::now();
    let jail = Jail::enter_layers(words[0].parse().unwrap(), &layers);
    let vcpus = jail.of_vcpus();
    let vcpu = (words[2] == "reads at a place").then(|| {
        let (tell, wait) = std::sync::mpsc::channel::<()>();
        let body = move || {
            wait.recv().ok();
            vcpus.enter().unwrap();
            read_at_a_place();
        };
        (
            tell,
            thread::Builder::new().name("vcpu7".into()).spawn(body),
        )
    });
    let report = jail.close(MEMORY.count);
    say(&format!("report {:?}\n", report.layers));
    say(&format!("entered in {} µs\n", begin.elapsed().as_micros()));
    if let Some((tell, thread)) = vcpu {
        read_at_a_place();
        say("the others may\n");
        tell.send(()).unwrap();
        drop(thread.unwrap().join());
    }
    match words[2] {
        "panics" => panic!("something is wrong"),
        "does nothing" => say("outcome 0\n"),
        "reaches the machine's own network" => say(&format!("outcome {}\n", reach())),
        "looks what its memory holds" => {
            let held = new_ram.map(|ram| ram.residency(MEMORY).unwrap());
            let is_told = !held.iter().flatten().any(|&is_held| is_held);
            say(&format!("outcome {}\n", i32::from(!is_told)));
        }
        "writes to its store" => say(&format!("outcome {}\n", write_to(&store))),
        name => {
            let (attempt, arguments) = attempt.unwrap_or_else(|| panic!("nobody {name}"));
            say(&format!("outcome {}\n", attempt.perform(arguments)));
        }
    }
    // SAFETY: it ends the process, of which nobody needs anything any more.
    unsafe { libc::_exit(0) }
}

/// The error of that; 0 if it was done.
fn reach() -> i32 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0");
    errno_of(socket.and_then(|socket| socket.connect("127.0.0.1:9")))
}

/// By a descriptor that is open for reading.
fn write_to(store: &OwnedFd) -> i32 {
    let anew = format!("/proc/self/fd/{}", store.as_raw_fd());
    rustix::fs::fchmod(store, Mode::RUSR | Mode::WUSR).ok();
    errno_of(File::options().write(true).open(anew))
}

/// 0 if it was done.
fn errno_of<T>(done: std::io::Result<T>) -> i32 {
    done.map_or_else(|error| error.raw_os_error().unwrap(), |_| 0)
}

/// What devices' threads do, and vCPUs' never.
fn read_at_a_place() {
    rustix::io::pread(rustix::stdio::stdin(), &mut [0; 1], 0).ok();
}

#[test]
fn what_no_vm_process_does_names_itself_and_ends_the_process() {
    for attempt in ATTEMPTS {
        let outcome = outcome(JailMode::Enforce, &JailLayer::ALL, attempt.name);
        // Some libraries try, and go on without.
        if allowed::REFUSED.contains(&attempt.call) {
            assert_eq!(outcome, Outcome::Errno(libc::EACCES), "{attempt:?}");
            continue;
        }
        // The call as such is one of its own.
        if attempt.name == "takes more memory than a VM needs" {
            assert_eq!(outcome, Outcome::Errno(libc::ENOMEM), "{attempt:?}");
            continue;
        }
        let Outcome::Ended(said) = outcome else {
            panic!("{attempt:?}: {outcome:?}");
        };
        let name = names::of(attempt.call).unwrap();
        let words = format!("forbidden system call {} ({name}) in thread ", attempt.call);
        assert!(said.contains(&words), "{attempt:?}: {said}");
    }
}

/// Each attempt that more than one layer stops is stopped still when one of them does not.
#[test]
fn without_seccomp_the_other_layers_stop_what_is_theirs() {
    let layers = all_but(JailLayer::Seccomp);
    if !holds_whole(JailLayer::Landlock) {
        return;
    }
    for name in [
        "opens a file",
        "runs a program",
        "signals another process",
        "traces another process",
        "reaches the machine's own network",
        "mounts",
        "takes another descriptor",
        "takes more memory than a VM needs",
    ] {
        let outcome = outcome(JailMode::Enforce, &layers, name);
        assert!(
            matches!(outcome, Outcome::Errno(1..)),
            "{name}: {outcome:?}"
        );
    }
}

#[test]
fn without_any_other_layer_seccomp_stops_what_it_stops_with_them() {
    for layer in JailLayer::ALL {
        if layer == JailLayer::Seccomp {
            continue;
        }
        let layers = all_but(layer);
        let opened = outcome(JailMode::Enforce, &layers, "opens a file");
        assert_eq!(opened, Outcome::Errno(libc::EACCES), "without {layer:?}");
        for name in ["runs a program", "signals another process", "mounts"] {
            let outcome = outcome(JailMode::Enforce, &layers, name);
            assert!(
                matches!(outcome, Outcome::Ended(_)),
                "without {layer:?}: {name}"
            );
        }
    }
}

#[test]
fn each_layer_alone_stops_what_it_is_there_for() {
    let stops: &[(JailLayer, &[(&str, i32)])] = &[
        (
            JailLayer::Namespaces,
            &[
                ("opens a file", libc::ENOENT),
                ("runs a program", libc::ENOENT),
                ("reaches the machine's own network", libc::ENETUNREACH),
            ],
        ),
        (
            JailLayer::Capabilities,
            &[
                ("mounts", libc::EPERM),
                ("opens a file of root's", libc::EACCES),
                ("signals another process", libc::EPERM),
                ("writes to its store", libc::EACCES),
            ],
        ),
        (
            JailLayer::Landlock,
            &[
                ("opens a file", libc::EACCES),
                ("runs a program", libc::EACCES),
                ("signals another process", libc::EPERM),
                ("traces another process", libc::EPERM),
            ],
        ),
        // The number would be above the limit.
        (
            JailLayer::Limits,
            &[
                ("takes another descriptor", libc::EINVAL),
                ("takes more memory than a VM needs", libc::ENOMEM),
            ],
        ),
    ];
    for (layer, attempts) in stops {
        if !holds_whole(*layer) {
            continue;
        }
        for (name, errno) in *attempts {
            let outcome = outcome(JailMode::Enforce, &[*layer], name);
            assert_eq!(outcome, Outcome::Errno(*errno), "{layer:?}: {name}");
        }
    }
    let named = outcome(JailMode::Enforce, &[JailLayer::Seccomp], "makes a socket");
    assert!(matches!(named, Outcome::Ended(said) if said.contains("(socket)")));
}

/// Or the tests above would tell nothing.
#[test]
fn where_nothing_stops_them_attempts_succeed() {
    let of_root = ["opens a file of root's", "writes to its store"];
    for name in of_root
        .into_iter()
        .filter(|_| capabilities::is_above_others())
    {
        let free = outcome(JailMode::Off, &[], name);
        assert_eq!(free, Outcome::Errno(0), "{name}");
    }
    for name in [
        "opens a file",
        "makes a process",
        "signals another process",
        "reaches the machine's own network",
        "maps memory as code",
        "takes another descriptor",
        "takes more memory than a VM needs",
    ] {
        let free = outcome(JailMode::Off, &[], name);
        assert_eq!(free, Outcome::Errno(0), "{name}");
    }
}

#[test]
fn a_vcpu_may_less_than_the_other_threads() {
    let (_, said) = in_jail(JailMode::Enforce, &[JailLayer::Seccomp], "reads at a place");
    assert!(said.contains("the others may"), "{said}");
    let words =
        "forbidden system call 17 (pread64) in thread vcpu7: the jail has ended this process";
    assert!(said.contains(words), "{said}");
}

#[test]
fn where_calls_are_only_logged_they_are_done() {
    for name in ["makes a socket", "signals another process"] {
        let outcome = outcome(JailMode::Log, &[JailLayer::Seccomp], name);
        assert_eq!(outcome, Outcome::Errno(0), "{name}");
    }
}

/// Or it would touch pages that are out, and wait for itself.
#[test]
fn a_vm_process_is_told_what_its_memory_holds() {
    let told = outcome(
        JailMode::Enforce,
        &JailLayer::ALL,
        "looks what its memory holds",
    );
    assert_eq!(told, Outcome::Errno(0));
}

#[test]
fn a_panic_is_told_from_within() {
    let (_, said) = in_jail(JailMode::Enforce, &JailLayer::ALL, "panics");
    assert!(said.contains("something is wrong"), "{said}");
}

/// Whoever adds a call says why: the list is short enough to be read.
#[test]
fn what_vcpus_may_all_may_and_the_list_is_bounded() {
    let calls = |lists: &[&[allowed::Allowed]]| {
        let calls = lists.iter().copied().flatten().map(|allowed| allowed.call);
        calls.collect::<std::collections::BTreeSet<_>>()
    };
    let (vcpus, others) = (calls(allowed::ON_VCPUS), calls(allowed::ON_OTHERS));
    assert!(vcpus.is_subset(&others));
    assert!(
        vcpus.len() < others.len() && others.len() < 70,
        "{}",
        others.len()
    );
    for call in others {
        assert!(names::of(call).is_some(), "{call}");
    }
    for never in [
        libc::SYS_execve,
        libc::SYS_clone3,
        libc::SYS_socket,
        libc::SYS_ptrace,
    ] {
        assert!(!calls(allowed::ON_OTHERS).contains(&never));
    }
}
