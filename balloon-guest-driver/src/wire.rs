//! The virtio balloon's wire format (virtio 1.2, section 5.5), as device and driver share it.

use bitflags::bitflags;

/// The balloon's virtio device id.
pub const DEVICE_ID: u32 = 5;

/// Offset in the configuration space of the `u32` number of pages that the device wants.
pub const CONFIG_NUM_PAGES: usize = 0;
/// Offset of the `u32` number of pages that the driver has in the balloon.
pub const CONFIG_ACTUAL: usize = 4;

bitflags! {
    /// Feature bits: the balloon's own, and the transport's that the driver takes.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub struct Features: u64 {
        /// The host must hear of a deflated page before it is used.
        const MUST_TELL_HOST = 1 << 0;
        /// There is a statistics queue.
        const STATS = 1 << 1;
        /// The guest may deflate by itself when it runs out of memory.
        const DEFLATE_ON_OOM = 1 << 2;
        /// There is a queue for free page hints.
        const FREE_PAGE_HINT = 1 << 3;
        /// Free pages are poisoned by the guest.
        const PAGE_POISON = 1 << 4;
        /// There is a queue for free page reporting.
        const REPORTING = 1 << 5;
        /// The device follows virtio 1.0 or later.
        const VERSION_1 = 1 << 32;
    }
}

/// Which number each queue has.
///
/// The standard gives each queue a fixed number; QEMU and Linux give a queue that was not
/// negotiated none, so that later ones move up. Devices in use follow the latter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct QueueNumbers {
    /// Page numbers of pages that go into the balloon.
    pub inflate: u16,
    /// Page numbers of pages that leave it.
    pub deflate: u16,
    /// Statistics.
    pub stats: Option<u16>,
    /// Free page hints.
    pub hint: Option<u16>,
    /// Free page reporting.
    pub reporting: Option<u16>,
}

impl QueueNumbers {
    /// The numbers for the negotiated features.
    #[must_use]
    pub fn of(features: Features) -> Self {
        let mut next = 2;
        let mut number = |feature| {
            features.contains(feature).then(|| {
                next += 1;
                next - 1
            })
        };
        Self {
            inflate: 0,
            deflate: 1,
            stats: number(Features::STATS),
            hint: number(Features::FREE_PAGE_HINT),
            reporting: number(Features::REPORTING),
        }
    }
}

/// What a statistic means. Memory is in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum StatTag {
    /// Bytes swapped in.
    SwapIn = 0,
    /// Bytes swapped out.
    SwapOut = 1,
    /// Page faults that needed disk.
    MajorFaults = 2,
    /// Page faults that did not.
    MinorFaults = 3,
    /// Memory that is not used at all.
    MemFree = 4,
    /// All memory that the guest manages.
    MemTotal = 5,
    /// Memory that could be used without pushing anything out.
    MemAvailable = 6,
    /// Memory in disk caches.
    DiskCaches = 7,
    /// Huge pages handed out.
    HugePageAllocations = 8,
    /// Huge pages that could not be.
    HugePageFailures = 9,
}

/// Bytes of one statistic: a `u16` tag and a `u64` value, packed, little-endian.
pub const STAT_BYTES: usize = 10;

/// Encodes one statistic.
#[must_use]
pub fn encode_stat(tag: StatTag, value: u64) -> [u8; STAT_BYTES] {
    let mut bytes = [0; STAT_BYTES];
    bytes[..2].copy_from_slice(&(tag as u16).to_le_bytes());
    bytes[2..].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_that_are_not_negotiated_get_no_number() {
        let all = QueueNumbers::of(Features::all());
        assert_eq!(
            (all.stats, all.hint, all.reporting),
            (Some(2), Some(3), Some(4))
        );
        let no_hint = QueueNumbers::of(Features::STATS | Features::REPORTING);
        assert_eq!(
            (no_hint.stats, no_hint.hint, no_hint.reporting),
            (Some(2), None, Some(3))
        );
        let lone = QueueNumbers::of(Features::REPORTING);
        assert_eq!((lone.stats, lone.reporting), (None, Some(2)));
    }

    #[test]
    fn a_statistic_is_ten_packed_bytes() {
        assert_eq!(
            encode_stat(StatTag::MemFree, 0x0102),
            [4, 0, 2, 1, 0, 0, 0, 0, 0, 0]
        );
    }
}
