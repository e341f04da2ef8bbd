//! What a plan says of one VM. Who decides each part of it is in `plan` and `touch_limit`.

use page::{PageCount, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One VM's part of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which VM.
    pub id: VmId,
    /// What it should hold in the end.
    pub target: PageCount,
    /// What to tell it now that it may hold: its balloon's target is its size less this. A waiting VM
    /// with a grant above zero is to be started; with zero it goes on waiting.
    pub grant: PageCount,
    /// What its guest may hold beyond its grant, as its compressed pool makes up for it. It is told both together, and its touch
    /// limit keeps it within its grant.
    #[serde(default)]
    pub pooled: PageCount,
    /// What it holds above its target that its balloon cannot or does not bring: to be compressed or
    /// swapped, where the orders say so.
    #[serde(default)]
    pub by_other_means: PageCount,
    /// What its guest may have touched, where its balloon does not keep it within its memory: it is stopped beyond.
    #[serde(default)]
    pub touch_limit: Option<TouchLimit>,
    /// What of it the kernel is to take into its own swap now, where its balloon does not bring it and that is allowed.
    #[serde(default)]
    pub kernel_reclaim: PageCount,
}

/// What a VM's guest may have touched, in pages that something backs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TouchLimit {
    /// Beyond this it runs in slices.
    pub slow_above: PageCount,
    /// Beyond this it stands still.
    pub stop_above: PageCount,
}
