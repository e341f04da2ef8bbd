//! What can be done to a VM and known of it besides its balloon. VMs differ in who runs them; the policy asks for this alone.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a VM's host can do. Where nothing is said, everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Capabilities {
    /// It can be kept from touching more than a limit, by stopping it or by taking pages out of its memory.
    pub touch_limit: bool,
    /// What it touches is sampled. Otherwise its working set is its guest's own word.
    pub sampling: bool,
    /// Its pages are known one by one: they can be shared, and are told by state.
    pub sharing: bool,
    /// Which of its memory is large pages can be chosen.
    pub large_pages: bool,
    /// It can be stopped and started.
    pub stop: bool,
    /// It has a console here.
    pub console: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self {
        touch_limit: true,
        sampling: true,
        sharing: true,
        large_pages: true,
        stop: true,
        console: true,
    };
    /// Nothing but a balloon.
    pub const BALLOON_ALONE: Self = Self {
        touch_limit: false,
        sampling: false,
        sharing: false,
        large_pages: false,
        stop: false,
        console: false,
    };

    /// What cannot be done, in words that follow "it cannot".
    pub fn lacking(self) -> impl Iterator<Item = &'static str> {
        let words = [
            (
                self.touch_limit,
                "be kept from touching more than a limit, nor have pages compressed or swapped",
            ),
            (
                self.sampling,
                "be watched for what it touches: its guest's word counts",
            ),
            (self.sharing, "share pages"),
            (self.large_pages, "be told which large pages to make"),
            (self.stop, "be stopped or started from here"),
            (self.console, "show its console here"),
        ];
        words
            .into_iter()
            .filter(|(can, _)| !can)
            .map(|(_, what)| what)
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::ALL
    }
}
