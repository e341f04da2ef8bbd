//! No rights beyond those of the user, who owns nothing where that can be, and none to be had.

use super::held;
use protocol::Holding;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, geteuid, getpid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// As many as a kernel can have.
const MOST: u32 = 64;
/// The first of the users that VM processes run as, one each: this and the number of the process, of which there are at most
/// 2^22. They lie above what is given to people, services, containers and directories, and below 2^31, from where on
/// programs misread them (systemd's UIDS-GIDS.md; SSSD's `ldap_idmap_range_max` is 2000200000).
const FIRST_USER: u32 = 2_100_000_000;

/// Whether this process may do to others what they and their users forbid. Then so may its host, who started it.
pub(super) fn is_above_others() -> bool {
    let needed = CapabilitySet::SYS_PTRACE | CapabilitySet::KILL;
    let may = |sets: CapabilitySets| sets.effective.contains(needed);
    geteuid().is_root() && capabilities(None).is_ok_and(may)
}

/// Makes this thread one of a user and a group that no other process has, and that own nothing. The threads that it has
/// started before keep theirs.
fn leave_root() -> Result<(), Errno> {
    let own = FIRST_USER + getpid().as_raw_nonzero().get().unsigned_abs();
    let (user, group) = (Uid::from_raw(own), Gid::from_raw(own));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}

/// Takes all capabilities of this thread, for good; and all that root owns, if it `leaves_root`.
pub(super) fn drop_all(leaves_root: bool) -> Holding {
    if let Err(error) = bound() {
        // Without it none can be had either, for no program is ever run that has more rights than this.
        tracing::debug!("the bounding set stays: {error}");
    }
    let left = match leaves_root {
        true => held("a user of its own", leave_root()),
        false => Holding::Whole,
    };
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let dropped = set_no_new_privs(true)
        .and_then(|()| clear_ambient_capability_set())
        .and_then(|()| set_capabilities(None, none));
    match (held("capabilities", dropped), left) {
        (Holding::Whole, Holding::No) => Holding::Part,
        (dropped, _) => dropped,
    }
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
