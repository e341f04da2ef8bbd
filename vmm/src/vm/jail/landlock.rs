//! Nothing is opened, connected, traced or signalled outside.
//!
//! A ruleset without rules: all that it handles is forbidden. What is open stays as it is.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use protocol::Holding;

/// The newest of which is known what it forbids.
const NEWEST: ABI = ABI::V9;
/// From this one on abstract sockets and signals are among it.
const WHOLE: ABI = ABI::V6;

pub(super) fn forbid_all() -> Holding {
    match restrict() {
        Ok(status) => holding(&status),
        Err(error) => {
            tracing::debug!("landlock: {error}");
            Holding::No
        }
    }
}

fn restrict() -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()
}

fn holding(status: &RestrictionStatus) -> Holding {
    match (&status.ruleset, &status.landlock) {
        (RulesetStatus::NotEnforced, _) => Holding::No,
        (_, LandlockStatus::Available { effective_abi, .. }) if *effective_abi >= WHOLE => {
            Holding::Whole
        }
        _ => Holding::Part,
    }
}
