//! What can go wrong with a guest's memory, in words for the person who wanted the VM.

use page::PageCount;
use std::io;
use thiserror::Error;

/// Why a guest's memory cannot be made or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    #[error("cannot make the guest's memory file")]
    MakeRam(#[source] rustix::io::Errno),
    #[error("memory of {0} cannot be mapped in this process")]
    RamTooLarge(PageCount),
    #[error("cannot map the guest's memory")]
    MapRam(#[source] rustix::io::Errno),
    #[error("cannot lay out a part of the guest's memory")]
    LayOutRegion(#[source] vm_memory::mmap::MmapRegionError),
    #[error("cannot lay out the guest's memory")]
    LayOutRam(#[source] vm_memory::GuestRegionCollectionError),
    #[error("cannot read how much memory the guest's memory file holds")]
    ReadRamUse(#[source] rustix::io::Errno),
    #[error("cannot touch the guest's memory")]
    TouchRam(#[source] vm_memory::GuestMemoryError),
    #[error(
        "cannot open a userfaultfd: run as root, or set the sysctl vm.unprivileged_userfaultfd to 1"
    )]
    OpenUserfault(#[source] rustix::io::Errno),
    #[error("this kernel does not say which pages were written: Linux 6.7 or newer is needed")]
    OldKernel,
    #[error("cannot register the guest's memory with userfaultfd")]
    RegisterUserfault(#[source] rustix::io::Errno),
    #[error("cannot change write protection through userfaultfd")]
    WriteProtect(#[source] rustix::io::Errno),
    #[error("cannot read which pages were written")]
    ReadPagemap(#[source] io::Error),
    #[error("cannot read which memory areas this process has")]
    ReadAreas(#[source] io::Error),
    #[error("cannot use the store of shared pages")]
    Store(#[source] rustix::io::Errno),
    #[error("the store of shared pages that it shows is not one of this place's")]
    ForeignStore,
    #[error("cannot change what backs the guest's memory")]
    Remap(#[source] rustix::io::Errno),
    #[error("cannot read from userfaultfd")]
    ReadUserfault(#[source] rustix::io::Errno),
    #[error(
        "a write to a protected page did not wait: userfaultfd of this kernel does not protect memory files"
    )]
    WritersDoNotWait,
    #[error("cannot get random numbers for a key")]
    Random(#[source] rustix::io::Errno),
    #[error("cannot start the agent")]
    StartAgent(#[source] io::Error),
}
