//! The system calls of a VM process, as data.
//!
//! Each is there because a thread of an honest process makes it; what it is for stands beside it. An argument is looked
//! at where a call can do more than that. Pointers cannot be looked into, nor can descriptors: which files these are was
//! decided when they were opened.

use crate::memory::{PAGEMAP_IOCTL, USERFAULT_IOCTLS};
use crate::virtio::net::TAP_IOCTL;
use kvm_bindings::{KVMIO, kvm_regs};
use libc::c_long;
use rustix::ioctl::opcode;

/// A call, and when it is allowed. Twice the same call: when either is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    pub(super) call: c_long,
    pub(super) when: When,
}

/// Arguments count from 0, and their lower 32 bits are compared.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    Always,
    IsOneOf {
        argument: u8,
        values: &'static [u32],
    },
    LacksBits {
        argument: u8,
        bits: u32,
    },
    /// The argument is this process's number.
    IsOwnProcess {
        argument: u8,
    },
}

const fn always(call: c_long) -> Allowed {
    Allowed {
        call,
        when: When::Always,
    }
}

const fn one_of(call: c_long, argument: u8, values: &'static [u32]) -> Allowed {
    Allowed {
        call,
        when: When::IsOneOf { argument, values },
    }
}

const fn lacks(call: c_long, argument: u8, bits: u32) -> Allowed {
    Allowed {
        call,
        when: When::LacksBits { argument, bits },
    }
}

const fn own_process(call: c_long, argument: u8) -> Allowed {
    Allowed {
        call,
        when: When::IsOwnProcess { argument },
    }
}

/// On threads that run vCPUs.
pub(super) const ON_VCPUS: &[&[Allowed]] = &[MEMORY, WAITING, ENDING, VCPU];
/// On all: a vCPU's thread is behind both lists.
pub(super) const ON_OTHERS: &[&[Allowed]] = &[
    MEMORY, WAITING, BEGINNING, ENDING, VCPU, DEVICES, AGENT, STEP,
];

/// These fail, as they do where something is missing, and end nobody: the C library and a panic's backtrace try them,
/// and go on without.
pub(super) const REFUSED: &[c_long] = &[
    // malloc looks up how memory is overcommitted when it gives a part back.
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_getcwd,
];

const PROT_EXEC: u32 = libc::PROT_EXEC.unsigned_abs();

/// For malloc, and for buffers.
const MEMORY: &[Allowed] = &[
    always(libc::SYS_brk),
    lacks(libc::SYS_mmap, 2, PROT_EXEC),
    lacks(libc::SYS_mprotect, 2, PROT_EXEC),
    always(libc::SYS_munmap),
    always(libc::SYS_mremap),
    always(libc::SYS_madvise),
    // malloc looks how many cores there are before it makes an arena.
    always(libc::SYS_sched_getaffinity),
    // and shuffles what it hands out, as hash tables do.
    always(libc::SYS_getrandom),
];

/// For each other, for a time, and for whatever comes first.
const WAITING: &[Allowed] = &[
    always(libc::SYS_futex),
    always(libc::SYS_sched_yield),
    always(libc::SYS_clock_nanosleep),
    // Where the kernel's clock cannot be read without a call.
    always(libc::SYS_clock_gettime),
    always(libc::SYS_restart_syscall),
    always(libc::SYS_ppoll),
    // An event is signalled and drained so.
    always(libc::SYS_read),
    always(libc::SYS_write),
];

/// Of a thread and of the process, in order and by a panic; and signals.
const ENDING: &[Allowed] = &[
    always(libc::SYS_exit),
    always(libc::SYS_exit_group),
    always(libc::SYS_rt_sigreturn),
    always(libc::SYS_rt_sigprocmask),
    always(libc::SYS_sigaltstack),
    // A stack's end and abort() take their signals' handlers off.
    one_of(
        libc::SYS_rt_sigaction,
        0,
        &[
            libc::SIGSEGV.unsigned_abs(),
            libc::SIGBUS.unsigned_abs(),
            libc::SIGABRT.unsigned_abs(),
        ],
    ),
    always(libc::SYS_getpid),
    always(libc::SYS_gettid),
    own_process(libc::SYS_tgkill, 0),
    one_of(libc::SYS_prctl, 0, &[libc::PR_GET_NAME.unsigned_abs()]),
    always(libc::SYS_close),
    // The standard library of a debug build looks whether what it closes is open.
    one_of(libc::SYS_fcntl, 1, &[libc::F_GETFD.unsigned_abs()]),
];

const KVM_RUN: u32 = opcode::none(KVMIO.to_le_bytes()[0], 0x80);
const KVM_GET_REGS: u32 = opcode::read::<kvm_regs>(KVMIO.to_le_bytes()[0], 0x81);

/// For the guest itself: its instructions, what it prints, and a network card that it sets up.
const VCPU: &[Allowed] = &[
    one_of(libc::SYS_ioctl, 1, &[KVM_RUN, KVM_GET_REGS, TAP_IOCTL]),
    always(libc::SYS_sendto),
];

/// For disks, network cards, the console, the host and the scanner.
const DEVICES: &[Allowed] = &[
    always(libc::SYS_io_uring_enter),
    always(libc::SYS_preadv),
    always(libc::SYS_pwritev),
    always(libc::SYS_pread64),
    always(libc::SYS_pwrite64),
    always(libc::SYS_lseek),
    always(libc::SYS_fallocate),
    always(libc::SYS_fdatasync),
    always(libc::SYS_fstat),
    // A disk's lock is given back.
    one_of(libc::SYS_flock, 1, &[libc::LOCK_UN.unsigned_abs()]),
    always(libc::SYS_recvfrom),
    always(libc::SYS_recvmsg),
    always(libc::SYS_sendmsg),
    // Another host comes, and takes what is printed.
    always(libc::SYS_accept4),
    one_of(libc::SYS_dup2, 1, &[libc::STDERR_FILENO.unsigned_abs()]),
    // A console is one socket by two descriptors.
    one_of(libc::SYS_fcntl, 1, &[libc::F_DUPFD_CLOEXEC.unsigned_abs()]),
    always(libc::SYS_epoll_ctl),
    always(libc::SYS_epoll_wait),
    always(libc::SYS_epoll_pwait),
    always(libc::SYS_epoll_pwait2),
];

/// For guest memory.
const AGENT: &[Allowed] = &[
    one_of(libc::SYS_ioctl, 1, USERFAULT_IOCTLS),
    one_of(libc::SYS_ioctl, 1, &[PAGEMAP_IOCTL]),
    always(libc::SYS_mincore),
    // What the kernel has of a disk that a page may be left to.
    one_of(libc::SYS_preadv2, 5, &[libc::RWF_NOWAIT.unsigned_abs()]),
    own_process(libc::SYS_pidfd_open, 0),
    // Which process is not told by the number of its descriptor, but there is none to be had but its own.
    one_of(
        libc::SYS_process_madvise,
        3,
        &[libc::MADV_DONTNEED.unsigned_abs()],
    ),
];

/// Of threads that were started and have not come to their work yet.
const BEGINNING: &[Allowed] = &[
    always(libc::SYS_rseq),
    always(libc::SYS_set_robust_list),
    one_of(libc::SYS_prctl, 0, &[libc::PR_SET_NAME.unsigned_abs()]),
];

/// From the list for all to that for vCPUs. Another list can only forbid more.
const STEP: &[Allowed] = &[
    one_of(libc::SYS_seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER]),
    // seccompiler sees to it again.
    one_of(
        libc::SYS_prctl,
        0,
        &[libc::PR_SET_NO_NEW_PRIVS.unsigned_abs()],
    ),
];
