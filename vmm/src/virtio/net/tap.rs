//! A tap: an interface of the kernel whose frames a program reads and writes.
#![expect(
    unsafe_code,
    reason = "a tap is opened and set up by ioctls that rustix does not have"
)]

use super::FramePort;
use super::wire::HEADER_BYTES;
use protocol::{NAME_BYTES, TapName};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};
use thiserror::Error;

const TUN_FILE: &str = "/dev/net/tun";
// From the kernel's include/uapi/linux/if_tun.h and sockios.h.
const SET_INTERFACE: Opcode = opcode::write::<i32>(b'T', 202);
const SET_OFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
/// All that is asked of one that was set up.
pub(crate) const IOCTL: Opcode = SET_OFFLOAD;
const SET_HEADER_SIZE: Opcode = opcode::write::<i32>(b'T', 216);
const GET_MTU: Opcode = 0x8921;
const TAP: u16 = 0x0002;
const NO_PACKET_INFO: u16 = 0x1000;
const VNET_HEADER: u16 = 0x4000;

/// Why a tap cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TapError {
    #[error(
        "there is no interface '{0}': make it with `ip tuntap add {0} mode tap` and `ip link set {0} up`"
    )]
    Missing(TapName),
    #[error("the tap '{0}' is in use: another VM or program has it open; give each VM its own")]
    Busy(TapName),
    #[error(
        "no permission to use the tap '{0}': make it with `ip tuntap add {0} mode tap user NAME` for the user who runs the host, or run the host as root"
    )]
    NotAllowed(TapName),
    #[error(
        "the interface '{0}' is no tap, or has several queues: make one with `ip tuntap add NAME mode tap`"
    )]
    NoTap(TapName),
    #[error(
        "cannot open {TUN_FILE} for the tap '{name}': load the kernel's module tun, and see that the file may be opened"
    )]
    NoTunFile { name: TapName, source: Errno },
    #[error("the kernel refused to {what} of the tap '{name}'")]
    Refused {
        name: TapName,
        what: &'static str,
        source: Errno,
    },
}

/// The kernel's `struct ifreq`: a name, and a union of which we use the first bytes.
#[derive(Debug)]
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    value: [u8; 24],
}

impl InterfaceRequest {
    fn new(name: &TapName, value: &[u8]) -> Self {
        let mut request = Self {
            name: [0; NAME_BYTES],
            value: [0; 24],
        };
        let letters = name.as_str().as_bytes();
        request.name[..letters.len()].copy_from_slice(letters);
        request.value[..value.len()].copy_from_slice(value);
        request
    }
}

/// An open tap. Nobody else can open it as long.
#[derive(Debug)]
pub struct Tap {
    file: OwnedFd,
    mtu: Option<u16>,
}

impl Tap {
    /// Opens a tap that is there already.
    ///
    /// # Errors
    /// When there is none of that name, another has it, or it may not be used.
    pub fn open(name: &TapName) -> Result<Self, TapError> {
        let refused = |what| {
            move |source| TapError::Refused {
                name: name.clone(),
                what,
                source,
            }
        };
        let kinds = (AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(kinds.0, kinds.1, kinds.2, None)
            .map_err(refused("tell the place"))?;
        // First: whoever may, makes an interface by opening one that is not there.
        netdevice::name_to_index(&socket, name.as_str()).map_err(|error| match error {
            Errno::NODEV => TapError::Missing(name.clone()),
            error => refused("tell the place")(error),
        })?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(TUN_FILE, flags, Mode::empty()).map_err(|source| {
            TapError::NoTunFile {
                name: name.clone(),
                source,
            }
        })?;
        attach(&file, name)?;
        let header_bytes = i32::try_from(HEADER_BYTES).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ takes the address of an int.
        let set_header = unsafe { Setter::<SET_HEADER_SIZE, i32>::new(header_bytes) };
        // SAFETY: the kernel reads that int and nothing else.
        unsafe { ioctl(&file, set_header) }.map_err(refused("set the header"))?;
        let tap = Self {
            file,
            mtu: mtu_of(&socket, name),
        };
        // What a program before us agreed to with its guest is not ours.
        tap.set_offloads(0).map_err(refused("set the offloads"))?;
        Ok(tap)
    }

    /// How long packets on it may be, if that is a length that a virtio device can say.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }
}

fn attach(file: &OwnedFd, name: &TapName) -> Result<(), TapError> {
    let flags = (TAP | NO_PACKET_INFO | VNET_HEADER).to_ne_bytes();
    let mut request = InterfaceRequest::new(name, &flags);
    // SAFETY: TUNSETIFF takes the address of a `struct ifreq`, which has this size and layout.
    let set_interface = unsafe { Updater::<SET_INTERFACE, _>::new(&mut request) };
    // SAFETY: the kernel reads and writes that structure and nothing else.
    unsafe { ioctl(file, set_interface) }.map_err(|error| match error {
        Errno::BUSY => TapError::Busy(name.clone()),
        Errno::PERM | Errno::ACCESS => TapError::NotAllowed(name.clone()),
        Errno::INVAL => TapError::NoTap(name.clone()),
        source => TapError::Refused {
            name: name.clone(),
            what: "be opened",
            source,
        },
    })
}

fn mtu_of(socket: &OwnedFd, name: &TapName) -> Option<u16> {
    let mut request = InterfaceRequest::new(name, &[]);
    // SAFETY: SIOCGIFMTU takes the address of a `struct ifreq`, which has this size and layout.
    let get_mtu = unsafe { Updater::<GET_MTU, _>::new(&mut request) };
    // SAFETY: the kernel reads and writes that structure and nothing else.
    unsafe { ioctl(socket, get_mtu) }.ok()?;
    let [a, b, c, d, ..] = request.value;
    let mtu = u16::try_from(i32::from_ne_bytes([a, b, c, d])).ok()?;
    // Less is no length for IP (virtio 1.2, section 5.1.4.1).
    (mtu >= 68).then_some(mtu)
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FramePort for Tap {
    fn set_offloads(&self, offloads: u32) -> Result<(), Errno> {
        // SAFETY: TUNSETOFFLOAD takes a number.
        let set_offload = unsafe { IntegerSetter::<SET_OFFLOAD>::new_usize(offloads as usize) };
        // SAFETY: the number is no address of anything.
        unsafe { ioctl(&self.file, set_offload) }
    }
}
