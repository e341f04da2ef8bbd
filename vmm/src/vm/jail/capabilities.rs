//! No rights beyond those of the user, and none to be had.

use super::held;
use protocol::Holding;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, geteuid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// As many as a kernel can have.
const MOST: u32 = 64;

/// Whether this process may look into others of its user whatever they forbid. Then so may its host, who started it.
/// The kernel's files about those belong to root.
pub(super) fn may_trace() -> bool {
    let may = |sets: CapabilitySets| sets.effective.contains(CapabilitySet::SYS_PTRACE);
    geteuid().is_root() && capabilities(None).is_ok_and(may)
}

/// Takes all capabilities of this thread, for good.
pub(super) fn drop_all() -> Holding {
    if let Err(error) = bound() {
        // Without it none can be had either, for no program is ever run that has more rights than this.
        tracing::debug!("the bounding set stays: {error}");
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let dropped = set_no_new_privs(true)
        .and_then(|()| clear_ambient_capability_set())
        .and_then(|()| set_capabilities(None, none));
    held("capabilities", dropped)
}

/// Not even a program of root's would have any.
fn bound() -> Result<(), Errno> {
    for number in 0..MOST {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(one) {
            // This kernel has no more.
            Err(Errno::INVAL) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Others of the same user may not look into this process or trace it from here on. Its host must be able to, so only
/// where the host may look into any.
pub(super) fn hide() -> Holding {
    held(
        "undumpable",
        set_dumpable_behavior(DumpableBehavior::NotDumpable),
    )
}
