//! What can go wrong in a VM process, in words for the person who wanted the VM.

use crate::memory::MemoryError;
use crate::virtio::blk::DiskError;
use page::PageCount;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a VM cannot start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmError {
    #[error("cannot open /dev/kvm: {}; {}", io::Error::from_raw_os_error(.0.errno()), kvm_remedy(.0.errno()))]
    OpenKvm(kvm_ioctls::Error),
    #[error(
        "/dev/kvm speaks version {0} of KVM's interface, this program version 12: see that it is KVM's device, and the kernel's newer than 2.6.22"
    )]
    KvmVersion(i32),
    #[error("KVM on this machine lacks {0}, which is needed: load another KVM module or kernel")]
    KvmLacks(&'static str),
    #[error("KVM refused to {what}")]
    Kvm {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(
        "a VM has room for {} virtio devices, the balloon and a Linux guest's source of random bytes among them: give fewer --disk and --net",
        crate::vm::bus::MOST_DEVICES
    )]
    TooManyDevices,
    #[error("cannot touch the guest's memory")]
    TouchRam(#[source] vm_memory::GuestMemoryError),
    #[error("cannot start a thread or make its event descriptor")]
    StartThread(#[source] io::Error),
    #[error("cannot open the kernel '{}': give a bzImage, or an ELF file with a PVH entry note", .path.display())]
    OpenKernel { path: PathBuf, source: io::Error },
    #[error("the kernel '{}' cannot be loaded: give a whole bzImage or ELF file for x86-64, and the VM memory enough for it", .path.display())]
    LoadKernel {
        path: PathBuf,
        source: linux_loader::loader::Error,
    },
    #[error("the kernel '{}' was cut short: {missing} bytes are missing of what its header announces; copy it again", .path.display())]
    KernelCutShort { path: PathBuf, missing: u64 },
    #[error("the kernel '{}' needs {needed} of memory while it starts, and the VM has {size}: give it more --memory", .path.display())]
    KernelTooLarge {
        path: PathBuf,
        needed: PageCount,
        size: PageCount,
    },
    #[error("the kernel '{}' has no PVH entry note: build it with CONFIG_PVH, or leave --kernel out for the embedded guest", .0.display())]
    NoPvhEntry(PathBuf),
    #[error("the kernel '{}' is a bzImage without a 64-bit entry: give one for x86-64, of Linux 3.8 or newer", .0.display())]
    Not64Bit(PathBuf),
    #[error("cannot read the initrd '{}': give a cpio archive, compressed or not", .path.display())]
    ReadInitrd { path: PathBuf, source: io::Error },
    #[error("the initrd '{}' is empty: give a cpio archive, compressed or not", .0.display())]
    EmptyInitrd(PathBuf),
    #[error("the initrd '{}' of {bytes} bytes does not fit beside the kernel into a VM of {size}: give the VM more --memory", .path.display())]
    InitrdTooLarge {
        path: PathBuf,
        bytes: u64,
        size: PageCount,
    },
    #[error("the kernel command line has {length} bytes, and {limit} fit: shorten --cmdline")]
    CommandLineTooLong { length: usize, limit: usize },
    #[error(transparent)]
    Tap(#[from] crate::virtio::net::TapError),
    #[error("cannot speak with the host")]
    Channel(#[source] protocol::ChannelError),
    #[error("cannot listen for another host")]
    Listen(#[source] rustix::io::Errno),
    #[error("the host told a running VM to boot")]
    BootTwice,
    #[error("the host spoke before it said which VM to be")]
    NoBoot,
    #[error("a page that was out of memory cannot be had again: {0}")]
    LostPage(String),
    #[error("cannot wait for events")]
    Wait(#[source] rustix::io::Errno),
}

fn kvm_remedy(errno: i32) -> &'static str {
    match io::Error::from_raw_os_error(errno).kind() {
        io::ErrorKind::NotFound => {
            "load the module kvm_intel or kvm_amd, and enable virtualization in the firmware"
        }
        io::ErrorKind::PermissionDenied => "join the group that owns it (kvm), or run as root",
        _ => "see that no other hypervisor holds the processor",
    }
}
