//! Compares what the host believes with what the kernel's page tables say, page by page.

use super::vm::ScannedVm;
use page::{Gfn, PAGE_SIZE, VmId};
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
    /// VMs whose memory maps were walked.
    pub vms: u64,
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
    /// How many things were not as the books say.
    pub disagreements: u64,
    /// The first of them, in words.
    pub told: Vec<String>,
}

impl Audit {
    fn disagree(&mut self, what: String) {
        self.disagreements += 1;
        if self.told.len() < MOST_TOLD {
            self.told.push(what);
        }
    }
}

/// Walks the maps of all VMs, but for those whose agents hang.
pub(super) fn audit(sharing: &Sharing, vms: &BTreeMap<VmId, ScannedVm>) -> Audit {
    let mut result = Audit::default();
    if let Err(error) = sharing.audit() {
        result.disagree(error.to_string());
    }
    let mut stored = BTreeMap::new();
    // What an agent is at work on is between two states.
    for (&id, vm) in vms.iter().filter(|(_, vm)| vm.pending == 0) {
        result.vms += 1;
        audit_vm(sharing, id, vm, &mut result);
        if let (Ok(inode), Ok(frames)) = (vm.store.inode(), vm.store.allocated()) {
            stored.insert(inode, frames.0);
        }
    }
    let is_whole = vms.values().all(|vm| vm.pending == 0);
    result.frames = sharing.counts().common;
    result.stored_frames = stored.values().sum();
    if is_whole && result.frames != result.stored_frames {
        result.disagree(format!(
            "{} frames are in use, the stores hold {}",
            result.frames, result.stored_frames
        ));
    }
    result
}

fn audit_vm(sharing: &Sharing, id: VmId, vm: &ScannedVm, result: &mut Audit) {
    let Some((areas, mapped)) = mapped_frames(vm) else {
        result.disagree(format!("the map of VM {id} cannot be read"));
        return;
    };
    result.areas += areas;
    result.mapped_pages += mapped.len() as u64;
    let anonymous = anonymous_pages(vm, &mapped);
    result.anonymous_pages += anonymous.len() as u64;
    for number in 0..vm.blocks() {
        let first = u64::from(number) * BLOCK_PAGES as u64;
        for gfn in first..(first + BLOCK_PAGES as u64).min(vm.size().0) {
            let page = Page {
                vm: id,
                gfn: Gfn(gfn),
            };
            let (believed, found) = (sharing.mapped_frame(page), mapped.get(&gfn).copied());
            if believed != found {
                result.disagree(format!(
                    "page {gfn} of VM {id}: {believed:?} by the books, {found:?} by the kernel"
                ));
            }
            // The other way round is no disagreement: a guest may have written since.
            let is_broken = believed.is_some() && sharing.frame_of(page).is_none();
            if is_broken && !anonymous.contains(&gfn) {
                result.disagree(format!(
                    "page {gfn} of VM {id}: broken by the books, not by the kernel"
                ));
            }
        }
    }
}

/// The areas of a VM's process, and by page the frame that is mapped there.
fn mapped_frames(vm: &ScannedVm) -> Option<(u64, BTreeMap<u64, Frame>)> {
    let inode = vm.store.inode().ok()?;
    let text = fs::read_to_string(format!("/proc/{}/maps", vm.pid())).ok()?;
    let mut mapped = BTreeMap::new();
    for line in text.lines() {
        let Some(area) = Area::parse(line).filter(|area| area.inode == inode) else {
            continue;
        };
        for address in (area.start..area.end).step_by(4096) {
            let frame = (area.offset + (address - area.start)) / PAGE_SIZE;
            let frame = Frame(u32::try_from(frame).ok()?);
            mapped.insert(vm.page_at(address)?, frame);
        }
    }
    Some((text.lines().count() as u64, mapped))
}

fn anonymous_pages(vm: &ScannedVm, mapped: &BTreeMap<u64, Frame>) -> BTreeSet<u64> {
    let mut anonymous = BTreeSet::new();
    let blocks: BTreeSet<u64> = mapped
        .keys()
        .map(|page| page / BLOCK_PAGES as u64)
        .collect();
    for block in blocks {
        let first = block * BLOCK_PAGES as u64;
        let pages = first..(first + BLOCK_PAGES as u64).min(vm.size().0);
        let found = vm.anonymous(pages, |run| {
            let first = vm.page_at(run.start).unwrap_or(u64::MAX);
            let count = (run.end - run.start) / PAGE_SIZE;
            anonymous.extend(
                (first..first.saturating_add(count)).filter(|page| mapped.contains_key(page)),
            );
        });
        if found.is_err() {
            break;
        }
    }
    anonymous
}

/// A line of `/proc/PID/maps` (proc_pid_maps(5)): `start-end perms offset dev inode path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
}

impl Area {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let offset = words.nth(1)?;
        let inode = words.nth(1)?;
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            offset: u64::from_str_radix(offset, 16).ok()?,
            inode: inode.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_understood() {
        let line =
            "7f1c00200000-7f1c00400000 rw-p 00600000 00:01 1029  /memfd:ballonet-store (deleted)";
        let area = Area {
            start: 0x7f1c_0020_0000,
            end: 0x7f1c_0040_0000,
            offset: 0x60_0000,
            inode: 1029,
        };
        assert_eq!(Area::parse(line), Some(area));
        assert_eq!(Area::parse("nonsense"), None);
    }
}
