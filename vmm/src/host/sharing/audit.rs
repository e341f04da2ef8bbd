//! Compares what the host believes with what the kernel's page tables say, page by page.
//!
//! Guests go on giving pages up while their maps are read, and their agents' word of that comes later. So
//! what is not as the books say is a *doubt* at first. The agent is then asked to say when all that it
//! did before has been told; a doubt that the books still hold against after that is a disagreement.

use super::vm::ScannedVm;
use crate::memory::areas::{Area, FileId};
use page::{Gfn, PAGE_SIZE, VmId};
use protocol::VmName;
use serde::{Deserialize, Serialize};
use sharing::{BLOCK_PAGES, Frame, Page, Sharing};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use utoipa::ToSchema;

/// Disagreements that are told; more are only counted.
const MOST_TOLD: usize = 20;

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Audit {
    /// VMs whose memory maps were compared.
    pub vms: u64,
    /// VMs that could not be compared, and why.
    #[serde(default)]
    pub not_compared: Vec<NotCompared>,
    /// Guest pages over which the kernel has the store mapped.
    pub mapped_pages: u64,
    /// Of those, the ones that guests have written to: an anonymous page each.
    pub anonymous_pages: u64,
    /// Frames that are in use by the books.
    pub frames: u64,
    /// Frames that the stores hold, as the kernel counts them.
    pub stored_frames: u64,
    /// Memory areas of all VM processes.
    pub areas: u64,
    /// Guest pages that are mapped by large pages.
    #[serde(default)]
    pub large_pages: u64,
    /// How many things were not as the books say.
    pub disagreements: u64,
    /// The first of them, in words.
    pub told: Vec<String>,
}

/// A VM that an audit says nothing of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotCompared {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

impl Audit {
    fn disagree(&mut self, what: String) {
        self.disagreements += 1;
        if self.told.len() < MOST_TOLD {
            self.told.push(what);
        }
    }
}

/// A page that was not found as it is believed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubt {
    page: Page,
    believed: Belief,
    found: Option<Frame>,
}

/// What the books say of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Belief {
    mapped: Option<Frame>,
    is_broken: bool,
}

impl Belief {
    fn of(sharing: &Sharing, page: Page) -> Self {
        let mapped = sharing.mapped_frame(page);
        Self {
            mapped,
            is_broken: mapped.is_some() && sharing.frame_of(page).is_none(),
        }
    }
}

/// A VM's memory map beside the books.
#[derive(Debug)]
pub(super) struct Walk {
    areas: u64,
    mapped_pages: u64,
    anonymous_pages: u64,
    doubts: Vec<Doubt>,
}

/// Walks a VM's memory map. None if it cannot be read.
pub(super) fn walk(sharing: &Sharing, id: VmId, vm: &ScannedVm) -> Option<Walk> {
    let (areas, mapped) = mapped_frames(vm)?;
    let anonymous = anonymous_pages(vm, &mapped)?;
    let mut doubts = Vec::new();
    for gfn in 0..vm.size().0 {
        let page = Page {
            vm: id,
            gfn: Gfn(gfn),
        };
        let believed = Belief::of(sharing, page);
        let found = mapped.get(&gfn).copied();
        // The other way round is no disagreement: a guest may have written since.
        let is_broken_by_books_alone = believed.is_broken && !anonymous.contains(&gfn);
        if believed.mapped != found || is_broken_by_books_alone {
            doubts.push(Doubt {
                page,
                believed,
                found,
            });
        }
    }
    Some(Walk {
        areas,
        mapped_pages: mapped.len() as u64,
        anonymous_pages: anonymous.len() as u64,
        doubts,
    })
}

/// An audit in the making.
#[derive(Debug, Default)]
pub(super) struct Auditor(Audit);

impl Auditor {
    /// A VM of which nothing can be said.
    pub(super) fn leave_out(&mut self, name: &VmName, why: &str) {
        self.0.not_compared.push(NotCompared {
            name: name.to_string(),
            why: why.into(),
        });
    }

    /// A VM's map was walked, and all that its agent had done by then is in the books now.
    pub(super) fn compare(&mut self, sharing: &Sharing, vm: &ScannedVm, walk: &Walk) {
        let audit = &mut self.0;
        audit.vms += 1;
        audit.areas += walk.areas;
        audit.mapped_pages += walk.mapped_pages;
        audit.anonymous_pages += walk.anonymous_pages;
        let (name, table) = (&vm.name, vm.table());
        audit.large_pages += table.large.min(vm.size()).0;
        if let Some(first) = table.first_wrong {
            let wrong = table.wrong.min(vm.size());
            audit.disagree(format!(
                "{name}: by its own table {} pages are elsewhere than the kernel has them, the first is page {first}",
                wrong.0
            ));
        }
        for doubt in &walk.doubts {
            // What the books have been told since explains what was found.
            if Belief::of(sharing, doubt.page) != doubt.believed {
                continue;
            }
            let (gfn, believed) = (doubt.page.gfn.0, doubt.believed.mapped);
            audit.disagree(match doubt.found {
                found if found == believed => {
                    format!("page {gfn} of {name}: broken by the books, not by the kernel")
                }
                found => format!(
                    "page {gfn} of {name}: {believed:?} by the books, {found:?} by the kernel"
                ),
            });
        }
    }

    /// The sums, when every VM was looked at.
    pub(super) fn end(self, sharing: &Sharing, vms: &BTreeMap<VmId, ScannedVm>) -> Audit {
        let Self(mut audit) = self;
        if let Err(error) = sharing.audit() {
            audit.disagree(error.to_string());
        }
        let stores = vms.values().map(|vm| &vm.store);
        let stored: BTreeMap<FileId, u64> = stores
            .filter_map(|store| Some((store.file_id().ok()?, store.allocated().ok()?.0)))
            .collect();
        audit.frames = sharing.counts().common;
        audit.stored_frames = stored.values().sum();
        if sharing.counts().pending == 0 && audit.frames != audit.stored_frames {
            audit.disagree(format!(
                "{} frames are in use, the stores hold {}",
                audit.frames, audit.stored_frames
            ));
        }
        audit
    }
}

/// The areas of a VM's process, and by page the frame that is mapped there.
pub(super) fn mapped_frames(vm: &ScannedVm) -> Option<(u64, BTreeMap<u64, Frame>)> {
    let store = vm.store.file_id().ok()?;
    let text = fs::read_to_string(format!("/proc/{}/maps", vm.pid())).ok()?;
    let mut mapped = BTreeMap::new();
    let areas = text.lines().filter_map(Area::parse);
    for area in areas.filter(|area| area.file == store) {
        for (address, frame) in area.pages() {
            mapped.insert(vm.page_at(address)?, Frame(u32::try_from(frame).ok()?));
        }
    }
    Some((text.lines().count() as u64, mapped))
}

/// Of pages over which a frame is mapped, those that their guest has written to.
pub(super) fn anonymous_pages(
    vm: &ScannedVm,
    mapped: &BTreeMap<u64, Frame>,
) -> Option<BTreeSet<u64>> {
    let mut anonymous = BTreeSet::new();
    let blocks: BTreeSet<u64> = mapped
        .keys()
        .map(|page| page / BLOCK_PAGES as u64)
        .collect();
    for block in blocks {
        let first = block * BLOCK_PAGES as u64;
        let pages = first..(first + BLOCK_PAGES as u64).min(vm.size().0);
        let scanned = vm.anonymous(pages, |run| {
            let first = vm.page_at(run.start).unwrap_or(u64::MAX);
            let count = (run.end - run.start) / PAGE_SIZE;
            anonymous.extend(
                (first..first.saturating_add(count)).filter(|page| mapped.contains_key(page)),
            );
        });
        scanned.ok()?;
    }
    Some(anonymous)
}
