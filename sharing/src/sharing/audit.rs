//! Counts everything anew, slowly, and compares.

use super::Sharing;
use crate::content::Domain;
use crate::frames::Frame;
use crate::ledger::VmCounts;
use page::VmId;
use std::collections::BTreeMap;
use thiserror::Error;

/// A count that is not what it should be: a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Disagreement {
    /// References are kept apart from the pages that hold them.
    #[error("frame {frame:?} counts {counted} references, {found} were found")]
    References {
        /// Which.
        frame: Frame,
        /// What the store counts.
        counted: u32,
        /// What pages and requests hold.
        found: u32,
    },
    /// A window must know when no mapping of it is left.
    #[error("the window at {frame:?} counts {counted} pages below it, {found} were found")]
    Covered {
        /// The window's first frame.
        frame: Frame,
        /// What the store counts.
        counted: u32,
        /// Pages that are believed to have a mapping of it.
        found: u32,
    },
    /// The one that must never be.
    #[error("VM {vm} of {own:?} maps {frame:?} of {other:?}")]
    Domain {
        /// Whose mapping.
        vm: VmId,
        /// Whom it may share with.
        own: Domain,
        /// What it maps.
        frame: Frame,
        /// Whose that is.
        other: Option<Domain>,
    },
    /// A VM's counts.
    #[error("VM {vm} counts {counted:?}, {found:?} was found")]
    Counts {
        /// Which.
        vm: VmId,
        /// What is kept.
        counted: VmCounts,
        /// What was found.
        found: VmCounts,
    },
    /// The frames in use.
    #[error("{counted} frames are counted in use, {found} were found")]
    Common {
        /// What is kept.
        counted: u64,
        /// What was found.
        found: u64,
    },
}

impl Sharing {
    /// Checks every count against the pages themselves.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn audit(&self) -> Result<(), Disagreement> {
        self.audit_vms()?;
        self.audit_references()?;
        self.audit_covered()
    }

    fn audit_vms(&self) -> Result<(), Disagreement> {
        for (_, vm) in self.vms.all() {
            let (counted, found) = (vm.ledger.counts(), vm.ledger.recount());
            if counted != found {
                let vm = vm.id;
                return Err(Disagreement::Counts { vm, counted, found });
            }
            for (_, _, place) in vm.ledger.all() {
                let Some(frame) = place.frame() else { continue };
                let other = self.frames.domain(frame);
                if other != Some(vm.domain) {
                    return Err(Disagreement::Domain {
                        vm: vm.id,
                        own: vm.domain,
                        frame,
                        other,
                    });
                }
            }
        }
        Ok(())
    }

    fn audit_references(&self) -> Result<(), Disagreement> {
        let shown = self.vms.all().flat_map(|(_, vm)| vm.ledger.shared());
        let asked = self.pending.values().flat_map(super::Pending::frames);
        let found = tally(shown.chain(asked));
        let counted: BTreeMap<Frame, u32> = self.frames.all_live().collect();
        for &frame in counted.keys().chain(found.keys()) {
            let counted = counted.get(&frame).copied().unwrap_or(0);
            let found = found.get(&frame).copied().unwrap_or(0);
            if counted != found {
                return Err(Disagreement::References {
                    frame,
                    counted,
                    found,
                });
            }
        }
        let (counted, found) = (self.frames.live(), counted.len() as u64);
        match counted == found {
            true => Ok(()),
            false => Err(Disagreement::Common { counted, found }),
        }
    }

    fn audit_covered(&self) -> Result<(), Disagreement> {
        let places = self.vms.all().flat_map(|(_, vm)| vm.ledger.all());
        let windows = places.filter_map(|(_, _, place)| Some(place.frame()?.window_start()));
        let found = tally(windows);
        for (frame, counted) in self.frames.all_covered() {
            let found = found.get(&frame).copied().unwrap_or(0);
            if counted != found {
                return Err(Disagreement::Covered {
                    frame,
                    counted,
                    found,
                });
            }
        }
        Ok(())
    }
}

fn tally(frames: impl Iterator<Item = Frame>) -> BTreeMap<Frame, u32> {
    let mut counts = BTreeMap::new();
    for frame in frames {
        *counts.entry(frame).or_insert(0) += 1;
    }
    counts
}
