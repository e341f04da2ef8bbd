//! What a processor says about itself: what KVM can do, made fit for a guest.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const KVM_FEATURES: u32 = 0x4000_0001;
/// Asynchronous page faults, their delivery at exits, and by interrupt (Linux'
/// Documentation/virt/kvm/x86/cpuid.rst): a guest must not be told of faults that are answered in
/// microseconds, or go to sleep over a page that the agent holds.
const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;
/// A timer that KVM's local APIC has, and KVM leaves to its user to announce.
const TSC_DEADLINE_TIMER: u32 = 1 << 24;
const UNDER_A_HYPERVISOR: u32 = 1 << 31;

/// For processor `index` of `count`.
pub(super) fn for_processor(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        set_topology(entry, index.into(), count.into());
        match entry.function {
            0x1 => entry.ecx |= TSC_DEADLINE_TIMER | UNDER_A_HYPERVISOR,
            KVM_FEATURES => entry.eax &= !ASYNC_PAGE_FAULTS,
            _ => {}
        }
    }
    cpuid
}

/// The processor's own number and the number of processors, where software looks for them (Intel's
/// manual, volume 2A, leaves 1 and 0BH; AMD's manual, volume 3, appendix E, leaves 80000008H and
/// 8000001EH): one socket, one thread a core.
fn set_topology(entry: &mut kvm_cpuid_entry2, index: u32, count: u32) {
    match (entry.function, entry.index) {
        (0x1, _) => entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | index << 24,
        (0xb, 0) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 1, 1 << 8, index),
        (0xb, 1) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (3, count, 2 << 8 | 1, index),
        (0xb, _) => (entry.eax, entry.ebx, entry.edx) = (0, 0, index),
        (0x8000_0008, _) => entry.ecx = entry.ecx & !0xffff | 3 << 12 | (count - 1),
        (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
        _ => {}
    }
}
