//! The balloon's numbers in the virtio standard (virtio 1.2, section 5.5), which no crate has.

/// The device's number.
pub(super) const DEVICE_TYPE: u32 = 5;

/// Feature: the driver tells before it uses a page of the balloon again.
pub(super) const F_MUST_TELL_HOST: u64 = 1 << 0;
/// Feature: a queue for statistics.
pub(super) const F_STATS_VQ: u64 = 1 << 1;
/// Feature: a guest that runs out of memory may take pages out of the balloon.
pub(super) const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Feature: a queue for free pages.
pub(super) const F_PAGE_REPORTING: u64 = 1 << 5;

/// Where in the configuration space the guest writes how many pages it has given up; before it
/// lies the number that is wanted of it.
pub(super) const CONFIG_ACTUAL: u64 = 4;
/// Bytes of a frame number in the inflate and deflate queues.
pub(super) const PFN_BYTES: usize = 4;
/// Bytes of a statistic: a 16-bit tag and a 64-bit value.
pub(super) const STATISTIC_BYTES: usize = 10;
