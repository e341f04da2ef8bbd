//! What is done to a VM, whoever runs it. What one kind of VM cannot do, its capabilities say; nothing else asks for the kind.

use super::Link;
use super::qemu::Qemu;
use super::take_over::Coming;
use crate::host::console::Console;
use crate::host::kernel::VmUse;
use page::PageCount;
use policy::{Capabilities, LargePages, TouchLimit, VmSettings};
use protocol::{JailReport, ToVm};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

/// What is asked of a VM in a round. Its answer is an `Observation` with the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host) struct Question {
    pub(in crate::host) sequence: u64,
    /// Also look for pages of the balloon that the guest has touched.
    pub(in crate::host) recount: bool,
    /// Also ask the guest for new statistics.
    pub(in crate::host) statistics: bool,
}

/// Whoever runs a VM, as its host acts on it. Nothing here waits: what cannot be told now is not, and says so by `false`.
pub(in crate::host) trait Backend {
    fn capabilities(&self) -> Capabilities;

    /// Whether it has said how it is, so that what it was told before is known.
    fn is_described(&self) -> bool;

    /// Asks how things stand.
    fn sense(&self, question: Question) -> bool;

    /// What the kernel counts for it.
    fn measure(&self) -> io::Result<VmUse>;

    /// Its balloon is to hold so much.
    fn inflate_to(&self, target: PageCount) -> bool;

    /// It is kept from touching more than that, or its pages go out above it.
    fn reclaim_above(&self, limit: Option<TouchLimit>) -> bool;

    /// The kernel takes so much of it into its own swap.
    fn reclaim_by_kernel(&self, pages: PageCount) -> bool;

    /// It makes such large pages.
    fn make_large_pages(&self, pages: LargePages) -> bool;

    /// It is to know these settings, for the host that comes after this one.
    fn remember(&self, settings: &VmSettings) -> bool;
}

/// One of those that there are.
#[derive(Debug)]
pub(in crate::host) enum AnyBackend {
    Process(VmProcess),
    Qemu(Box<Qemu>),
}

impl AnyBackend {
    /// Our own process, if it is one.
    pub(in crate::host) fn process(&self) -> Option<&VmProcess> {
        match self {
            Self::Process(process) => Some(process),
            Self::Qemu(_) => None,
        }
    }

    /// A QEMU that was adopted, if it is one.
    pub(super) fn qemu(&self) -> Option<&Qemu> {
        match self {
            Self::Process(_) => None,
            Self::Qemu(qemu) => Some(qemu),
        }
    }

    pub(super) fn qemu_mut(&mut self) -> Option<&mut Qemu> {
        match self {
            Self::Process(_) => None,
            Self::Qemu(qemu) => Some(qemu),
        }
    }

    pub(super) fn process_mut(&mut self) -> Option<&mut VmProcess> {
        match self {
            Self::Process(process) => Some(process),
            Self::Qemu(_) => None,
        }
    }
}

impl Deref for AnyBackend {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Process(process) => process,
            Self::Qemu(qemu) => qemu.as_ref(),
        }
    }
}

/// Our own: a process that this program was started for, and that obeys over its link.
#[derive(Debug)]
pub(in crate::host) struct VmProcess {
    pub(in crate::host) pid: u32,
    pub(in crate::host) link: Arc<Link>,
    pub(in crate::host) console: Console,
    pub(in crate::host) memory_file: Arc<File>,
    pub(in crate::host) start_us: u64,
    pub(in crate::host) userfault_pages: PageCount,
    pub(in crate::host) jail: JailReport,
    /// What is to be done once it has said how it is. One that was taken over does so when it can.
    pub(in crate::host) coming: Option<Coming>,
}

impl VmProcess {
    /// False if the process does not take messages now.
    pub(super) fn send(&self, message: &ToVm) -> bool {
        match self.link.send(message) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(pid = self.pid, "not told: {error}");
                false
            }
        }
    }
}

impl Backend for VmProcess {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn is_described(&self) -> bool {
        self.coming.is_none()
    }

    fn sense(&self, question: Question) -> bool {
        let Question {
            sequence,
            recount,
            statistics,
        } = question;
        self.send(&ToVm::Observe {
            sequence,
            recount,
            statistics,
        })
    }

    fn measure(&self) -> io::Result<VmUse> {
        VmUse::read(self.pid, &self.memory_file)
    }

    fn inflate_to(&self, target: PageCount) -> bool {
        self.send(&ToVm::SetBalloon { target })
    }

    fn reclaim_above(&self, limit: Option<TouchLimit>) -> bool {
        self.send(&ToVm::SetTouchLimit(limit))
    }

    fn reclaim_by_kernel(&self, _pages: PageCount) -> bool {
        false
    }

    fn make_large_pages(&self, pages: LargePages) -> bool {
        self.send(&ToVm::SetLargePages(pages))
    }

    fn remember(&self, settings: &VmSettings) -> bool {
        self.send(&ToVm::SetSettings(settings.clone()))
    }
}
