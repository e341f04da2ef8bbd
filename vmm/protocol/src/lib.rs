//! How the host and a VM process speak: one message a packet, each with the version it is in.
//!
//! The host asks and the VM process answers; the process keeps what it was told, so that a host
//! that comes later can learn all of it with [`ToVm::Describe`] and go on where the last one ended.

#![forbid(unsafe_code)]

mod channel;
mod counters;
mod cursor;
mod disk_spec;
mod jail;
mod mac;
mod name;
mod packets;
pub mod page_sharing;
mod peek;
mod tap_name;

pub use channel::{Channel, ChannelError, Received};
pub use counters::{
    BalloonCounters, DiskCounters, DiskFigures, GuestStatistics, LATENCY_BUCKETS,
    LargePageCounters, Latencies, NetCounters, SharingCounters, SwapCounters,
};
pub use disk_spec::{DiskSpec, InvalidDisk};
pub use jail::{Holding, InvalidJail, JailLayer, JailMode, JailReport};
pub use mac::{InvalidMac, MacAddress};
pub use name::{InvalidName, VmName};
pub use peek::take_bytes;
pub use tap_name::{InvalidTapName, NAME_BYTES, TapName};

use page::{PageCount, PageStates, VmId};
use policy::{LargePages, TouchLimit, VmSettings};
use serde::{Deserialize, Serialize};
use sharing::TrustGroup;
use std::path::PathBuf;
use utoipa::ToSchema;

/// The version of the messages below,
pub const VERSION: u32 = 3;
/// and the oldest that is understood besides: hosts and VM processes of neighbouring versions speak with each other, each as
/// the older one does. What a version said is kept in `messages/`.
pub const OLDEST_VERSION: u32 = 2;

/// What a VM is: all that its process must know to start, and all that a host must know of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Its number.
    pub id: VmId,
    /// Its name, unique among the running VMs of a host.
    pub name: VmName,
    /// Its size and its claims on memory.
    pub settings: VmSettings,
    /// How many processors it has, 1 to 8.
    pub vcpus: u8,
    /// Who it may share pages with.
    pub trust_group: Option<TrustGroup>,
    /// What it boots; the embedded guest if none is given.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk of that kernel.
    pub initrd: Option<PathBuf>,
    /// Its network cards, in their order.
    pub nets: Vec<NetConfig>,
    /// What its kernel is told besides the devices.
    pub cmdline: String,
    /// Its disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Where its host keeps what it prints, if anywhere.
    #[serde(default)]
    pub console_log: Option<PathBuf>,
    /// Pages that its balloon asks for, from the start on.
    pub balloon_target: PageCount,
    /// What its guest may have touched, from its first instruction on until its host says otherwise.
    pub touch_limit: Option<TouchLimit>,
    /// Which large pages it makes, from the start on.
    #[serde(default)]
    pub large_pages: LargePages,
    /// Whether its pages may go out of memory, into its log: a touch limit is kept by that then, and not by stopping it.
    #[serde(default)]
    pub has_swap: bool,
    /// Of how many of its pages a swap file always has room, if one comes with this, behind the agent's socket.
    #[serde(default)]
    pub swap_file_for: Option<PageCount>,
    /// How its process is jailed.
    #[serde(default)]
    pub jail: JailMode,
    /// What it does when its host dies.
    pub on_host_death: OnHostDeath,
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The tap that it is connected to.
    pub tap: TapName,
    /// Its address.
    pub mac: MacAddress,
    /// The most bytes a second in each direction.
    pub bytes_per_s: Option<u64>,
}

/// What a VM does when its host dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnHostDeath {
    /// The guest runs on with the memory it has.
    #[default]
    Continue,
    /// The guest ends too: for demonstrations and experiments.
    Stop,
}

/// What the host says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToVm {
    /// The first message: be this VM. Comes with the agent's end of the socket to the host's scanner, and with a
    /// socket to listen at for other hosts. Answered by `Started` or `Failed`.
    Boot(Box<VmConfig>),
    /// The first message of another host: obey this one from now on. Comes with the agent's end of the socket to its
    /// scanner, with a stream socket for the console, and with a pipe for what the process prints as errors. Answered by
    /// `Description`; not at all, and the connection closed, if a later host was obeyed before.
    TakeOver {
        /// Which host of its place this is: each has a higher number than those before it.
        epoch: u64,
        /// The newest version that it speaks.
        speaks: u32,
    },
    /// Ask the guest for a balloon of this many pages.
    SetBalloon {
        /// Pages to hold in the balloon.
        target: PageCount,
    },
    /// Stop the guest when it has touched more than this.
    SetTouchLimit(Option<TouchLimit>),
    /// Make these large pages.
    SetLargePages(LargePages),
    /// Keep these settings for `Describe`.
    SetSettings(VmSettings),
    /// Say how things stand. Answered by `Observation` with the same sequence number.
    Observe {
        /// Which question this is.
        sequence: u64,
        /// Also look for pages of the balloon that the guest has touched.
        recount: bool,
        /// Also ask the guest for new statistics; they come with a later observation.
        statistics: bool,
    },
    /// Say how you are. Answered by `Description`.
    Describe,
    /// Press the guest's power button: a kernel that listens switches itself off.
    PressPowerButton,
    /// End in order.
    Stop,
}

/// What a VM process says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVm {
    /// The first message. Comes with the descriptor of its memory file, before the process is jailed: from one that may have
    /// few descriptors open the kernel takes none while other processes of its user have many on their way.
    Memory,
    /// The guest runs.
    Started(Box<Description>),
    /// How this VM is.
    Description(Box<Description>),
    /// How things stand.
    Observation(Box<Observation>),
    /// The guest has ended; the process ends after this.
    Ended {
        /// Why, in words.
        reason: String,
        /// Whether it has switched itself off, and nothing told it to.
        #[serde(default)]
        is_switched_off: bool,
    },
    /// The VM could not start or go on; the process ends after this.
    Failed {
        /// Why, in words.
        error: String,
    },
}

/// Who a VM process is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// What it runs, with all changes since.
    pub config: VmConfig,
    /// Its process.
    pub pid: u32,
    /// Time from its first message to its guest's first instruction, in microseconds.
    pub start_us: u64,
    /// Pages whose faults its agent holds through userfaultfd.
    pub userfault_pages: PageCount,
    /// Where its whole memory file is mapped in its process.
    pub ram_address: u64,
    /// What holds of its jail.
    #[serde(default)]
    pub jail: JailReport,
}

/// The sequence number of an observation that answers no question: a VM's last.
pub const UNASKED: u64 = 0;

/// How things stand with a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Which question this answers.
    pub sequence: u64,
    /// The guest's pages by state; they add up to its size.
    pub states: PageStates,
    /// Its balloon.
    pub balloon: BalloonView,
    /// What the guest last said about its memory.
    pub statistics: Option<GuestStatistics>,
    /// How long it was stopped.
    #[serde(default)]
    pub blocked: BlockedTime,
    /// What its agent and devices counted.
    pub counters: VmCounters,
    /// Its network cards, in their order.
    pub nets: Vec<NetState>,
    /// Its disks, in their order.
    #[serde(default)]
    pub disks: Vec<DiskFigures>,
}

/// How long a VM's vCPUs were stopped because its guest had touched more than its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedTime {
    /// Whether they are now.
    pub is_now: bool,
    /// Since the start, up to the last time that they were stopped anew, in microseconds.
    pub total_us: u64,
    /// When this was counted, in microseconds from the start.
    pub at_us: u64,
}

/// How things stand with a network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Whether the guest has a driver that is ready.
    pub has_driver: bool,
    /// What went through it.
    pub counters: NetCounters,
}

/// A VM's balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonView {
    /// Whether the guest has a driver that is ready.
    pub has_driver: bool,
    /// Pages asked for.
    pub target: PageCount,
    /// Pages that the guest has given up, by the device's record.
    pub held: PageCount,
    /// Pages that the guest claims to have given up.
    pub claimed: PageCount,
    /// What went through it.
    pub counters: BalloonCounters,
}

/// What a VM process counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmCounters {
    /// Pages given back to the host.
    pub given_back: PageCount,
    /// Pages that the kernel refused to free.
    pub refused: PageCount,
    /// Guest writes that waited for the agent.
    pub write_protect_faults: u64,
    /// What the agent did for page sharing.
    pub sharing: SharingCounters,
    /// Its large pages.
    #[serde(default)]
    pub large: LargePageCounters,
    /// Its pages that went out, and came back.
    #[serde(default)]
    pub swap: SwapCounters,
    /// Register accesses that the virtio standard forbids.
    pub register_violations: u64,
    /// Bytes of console output that nobody took in time.
    pub console_lost_bytes: u64,
}

#[cfg(test)]
mod stored;
