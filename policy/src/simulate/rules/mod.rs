//! Whose rules decide: this crate's, or those that other managers of memory have published.
//!
//! The others are written anew from their documentation, which each names with every constant. Where that is silent,
//! the code says "assumed". They see what they would see on a real host: the host's free memory, and each guest's balloon
//! and statistics. They know nothing of samples, and what they decide is carried out by the same balloons.
//!
//! Under all of them guests start as QEMU starts them, with memory that is not theirs yet but can be touched, and nobody
//! is refused: a manager of balloons that are there already admits nobody.

mod mom;
mod proxmox;

pub use proxmox::ProxmoxSettings;

use crate::SharesSpec;
use mom::Mom;
use page::{PageCount, VmId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Who decides what each VM is to hold.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Rules {
    /// This crate.
    #[default]
    Ours,
    /// oVirt's Memory Overcommitment Manager, with its documented auto-balloon policy.
    Mom,
    /// Proxmox VE's automatic memory allocation.
    Proxmox,
    /// Nobody: every VM may use all of its memory, and the host swaps.
    None,
}

impl Rules {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ours, Self::Mom, Self::Proxmox, Self::None];

    /// What a guest starts with, where this crate does not say it.
    pub(super) fn start(self, min: PageCount, max: PageCount) -> PageCount {
        match self {
            // Assumed: the guide says that memory is added to the minimum.
            Self::Proxmox => min,
            Self::Ours | Self::Mom | Self::None => max,
        }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::Mom => "mom",
            Self::Proxmox => "proxmox",
            Self::None => "none",
        })
    }
}

/// What a manager sees of a host.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// All of its memory.
    pub(super) total: PageCount,
    /// What of that is not in use.
    pub(super) free: PageCount,
    /// Each guest that runs, once.
    pub(super) guests: Vec<GuestView>,
}

/// What it sees of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestView {
    pub(super) id: VmId,
    /// What it must have.
    pub(super) min: PageCount,
    /// What it may have.
    pub(super) max: PageCount,
    /// Its weight.
    pub(super) shares: SharesSpec,
    /// What its balloon leaves it now.
    pub(super) held: PageCount,
    /// What it was told last that it may hold.
    pub(super) told: PageCount,
    /// What it said last that nothing uses.
    pub(super) unused: Option<PageCount>,
}

/// Others' rules, with what they remember.
#[derive(Debug)]
pub(super) enum Manager {
    Mom(Mom),
    Proxmox(ProxmoxSettings),
    Nobody,
}

impl Manager {
    /// None where this crate decides.
    pub(super) fn of(rules: Rules, proxmox: ProxmoxSettings) -> Option<Self> {
        match rules {
            Rules::Ours => None,
            Rules::Mom => Some(Self::Mom(Mom::default())),
            Rules::Proxmox => Some(Self::Proxmox(proxmox)),
            Rules::None => Some(Self::Nobody),
        }
    }

    /// What each guest is to hold, in the view's order. Called once a second.
    pub(super) fn decide(&mut self, now_s: u32, view: &View) -> Vec<PageCount> {
        match self {
            Self::Mom(mom) => mom.decide(now_s, view),
            Self::Proxmox(settings) if now_s.is_multiple_of(settings.every_s) => {
                proxmox::targets(settings, view)
            }
            Self::Proxmox(_) | Self::Nobody => view.guests.iter().map(|guest| guest.told).collect(),
        }
    }
}

#[cfg(test)]
pub(super) mod generate {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn guest()(
            max in 1u64..100_000, min in 0u64..=1000, held in 0u64..=1000, told in 0u64..=1000,
            unused in prop::option::weighted(0.9, 0u64..=1000),
            shares in crate::generate::shares(),
        ) -> GuestView {
            let part = |permille| PageCount(max * permille / 1000);
            GuestView {
                id: VmId(0), min: part(min), max: PageCount(max), shares, told: part(told),
                held: part(held), unused: unused.map(|unused| PageCount(part(held).0 * unused / 1000)),
            }
        }
    }

    /// A host with up to seven guests, together larger than it or not.
    pub(in crate::simulate) fn view() -> impl Strategy<Value = View> {
        let guests = prop::collection::vec(guest(), 0..8);
        (1u64..400_000, 0u64..=1000, guests).prop_map(|(total, free, mut guests)| {
            for (guest, id) in guests.iter_mut().zip(0..) {
                guest.id = VmId(id);
            }
            let free = PageCount(total * free / 1000);
            View {
                total: PageCount(total),
                free,
                guests,
            }
        })
    }
}
