//! The scanner's place among all that want a core: the last, while there is memory; as any other thread
//! when there is not, for then its work is what the VMs wait for.
#![expect(unsafe_code, reason = "scheduling classes have no safe wrapper")]

use crate::api::ScanPriority;
use sharing::Pressure;

/// Sets it for the calling thread.
pub(super) fn set(priority: ScanPriority, pressure: Pressure) {
    let class = match (priority, pressure) {
        (ScanPriority::Idle, Pressure::Plenty) => libc::SCHED_IDLE,
        (ScanPriority::Normal, _) | (_, Pressure::Short) => libc::SCHED_OTHER,
    };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: zero is the calling thread, and the parameters outlive the call.
    if unsafe { libc::sched_setscheduler(0, class, &raw const parameters) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!("the scanner keeps its priority: {error}");
    }
}
