//! Opens all that a VM process needs of the world outside: what is built from it opens no path any more.

use super::door::Door;
use crate::memory::agent::Fence;
use crate::memory::ram::GuestRam;
use crate::virtio::blk::DiskImage;
use crate::virtio::net::Tap;
use crate::vm::boot::KernelFiles;
use crate::vm::bus::MOST_DEVICES;
use crate::vm::error::VmError;
use crate::vm::machine;
use kvm_ioctls::Kvm;
use policy::LargePages;
use protocol::page_sharing::SharingSocket;
use protocol::{Channel, FromVm, Received, ToVm, VmConfig};
use rustix::fd::{AsFd, OwnedFd};
use std::fs::File;
use std::time::Instant;

/// What was opened, besides the connection to the host.
#[derive(Debug)]
pub(super) struct Opened {
    /// When the host's first message came.
    pub(super) begin: Instant,
    pub(super) config: VmConfig,
    /// Where the host's scanner speaks to the agent.
    pub(super) scanner: Option<SharingSocket>,
    /// Where other hosts come.
    pub(super) door: Option<Door>,
    pub(super) swap_file: Option<File>,
    pub(super) console: OwnedFd,
    pub(super) ram: GuestRam,
    pub(super) kvm: Kvm,
    pub(super) fence: Fence,
    /// In the order of the configuration, as the taps.
    pub(super) disks: Vec<DiskImage>,
    pub(super) taps: Vec<Tap>,
    pub(super) kernel: Option<KernelFiles>,
}

impl Opened {
    /// Waits for the host to say which VM to be, and opens what that needs.
    pub(super) fn by_first_message(channel: &Channel, console: OwnedFd) -> Result<Self, VmError> {
        let first: Received<ToVm> = channel.receive().map_err(VmError::Channel)?;
        let ToVm::Boot(config) = first.message else {
            return Err(VmError::NoBoot);
        };
        let begin = Instant::now();
        let mut descriptors = first.descriptors.into_iter();
        if device_count(&config) > MOST_DEVICES as usize {
            return Err(VmError::TooManyDevices);
        }
        let ram = match config.large_pages {
            LargePages::Off => GuestRam::new(config.settings.size)?,
            LargePages::Full | LargePages::Fill => {
                GuestRam::with_large_pages(config.settings.size)?
            }
        };
        channel
            .send(&FromVm::Memory, &[ram.file().as_fd()])
            .map_err(VmError::Channel)?;
        let taps = config.nets.iter().map(|card| Tap::open(&card.tap));
        Ok(Self {
            begin,
            scanner: descriptors.next().map(SharingSocket::from),
            door: descriptors.next().map(Door::open).transpose()?,
            swap_file: descriptors.next().map(File::from),
            console,
            kvm: machine::open_kvm()?,
            fence: match config.has_swap {
                true => Fence::with_pager(&ram)?,
                false => Fence::new(&ram)?,
            },
            ram,
            disks: config
                .disks
                .iter()
                .map(DiskImage::open)
                .collect::<Result<_, _>>()?,
            taps: taps.collect::<Result<_, _>>()?,
            kernel: KernelFiles::open(&config)?,
            config: *config,
        })
    }
}

/// The balloon, disks, network cards, and a source of random bytes for a kernel that is not the embedded guest.
fn device_count(config: &VmConfig) -> usize {
    1 + config.disks.len() + config.nets.len() + usize::from(config.kernel.is_some())
}
