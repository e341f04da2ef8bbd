//! The VMs that take part, and the short numbers by which index entries name them.

use crate::block::{BLOCK_PAGES, PageSet};
use crate::content::Domain;
use crate::cost::Areas;
use crate::history::History;
use crate::ledger::Ledger;
use crate::trust::TrustGroup;
use page::{PageCount, VmId};
use std::collections::BTreeMap;
use thiserror::Error;

/// 15 bits for a VM that is alive; given to another one once its entries have been swept out. Never
/// zero, so that an entry of zeros can mean an empty place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VmSlot(u16);

impl VmSlot {
    const LAST: u16 = 0x7fff;

    pub(crate) fn new(slot: u16) -> Self {
        assert!(slot != 0 && slot <= Self::LAST, "slot {slot} of no VM");
        Self(slot)
    }

    pub(crate) fn get(self) -> u16 {
        self.0
    }
}

/// A VM that comes to share.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Which.
    pub id: VmId,
    /// With whom it may share; with itself alone if none.
    pub group: Option<TrustGroup>,
    /// Its size.
    pub size: PageCount,
    /// The memory areas of its process: `used` is what it has without sharing.
    pub areas: Areas,
}

/// Why a VM cannot take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CannotShare {
    /// It takes part already.
    #[error("VM {0} shares pages already: end it before it starts again")]
    IsKnown(VmId),
    /// There is no number left to name it by.
    #[error("{0} VMs share pages already: no more can")]
    TooMany(usize),
    /// Its pages cannot be numbered.
    #[error("a VM of {0} is too large to share pages: 16 TiB is the most")]
    TooLarge(PageCount),
}

#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) id: VmId,
    pub(crate) domain: Domain,
    pub(crate) size: PageCount,
    pub(crate) block_count: u32,
    own_areas: Areas,
    pub(crate) ledger: Ledger,
    pub(crate) history: History,
    /// Pages by block that may have become equal to others without having been written.
    pub(crate) revisits: BTreeMap<u32, PageSet>,
    /// Pages by block that were found broken and not read since.
    pub(crate) unread: BTreeMap<u32, PageSet>,
    /// Pages that its agent was asked to map, so far.
    pub(crate) asked: u64,
}

impl Vm {
    pub(crate) fn areas(&self) -> Areas {
        Areas {
            used: self.own_areas.used + self.ledger.counts().areas,
            limit: self.own_areas.limit,
        }
    }

    /// Whether this is the first look at what a page holds since it was found broken.
    pub(crate) fn take_unread(&mut self, block: u32, index: usize) -> bool {
        let Some(pages) = self.unread.get_mut(&block) else {
            return false;
        };
        let is_first = pages.contains(index);
        pages.remove(index);
        if pages.is_empty() {
            self.unread.remove(&block);
        }
        is_first
    }
}

#[derive(Debug, Default)]
pub(crate) struct Vms {
    slots: BTreeMap<VmId, VmSlot>,
    /// By slot; the first is never used.
    vms: Vec<Option<Vm>>,
    /// Of the VMs that are there, no others: names come from clients.
    groups: BTreeMap<String, Domain>,
    domain_count: u32,
}

impl Vms {
    pub(crate) fn add(&mut self, spec: VmSpec) -> Result<Domain, CannotShare> {
        if self.slots.contains_key(&spec.id) {
            return Err(CannotShare::IsKnown(spec.id));
        }
        let blocks = spec.size.0.div_ceil(BLOCK_PAGES as u64);
        let block_count = u32::try_from(blocks)
            .ok()
            .filter(|_| spec.size.0 <= 1 << 32)
            .ok_or(CannotShare::TooLarge(spec.size))?;
        let slot = self.free_slot()?;
        let domain = self.domain_of(spec.group);
        let vm = Vm {
            id: spec.id,
            domain,
            size: spec.size,
            block_count,
            own_areas: spec.areas,
            ledger: Ledger::new(block_count as usize),
            history: History::new(block_count as usize),
            revisits: BTreeMap::new(),
            unread: BTreeMap::new(),
            asked: 0,
        };
        let entry = usize::from(slot.get());
        self.vms.resize_with(self.vms.len().max(entry + 1), || None);
        self.vms[entry] = Some(vm);
        self.slots.insert(spec.id, slot);
        Ok(domain)
    }

    fn free_slot(&self) -> Result<VmSlot, CannotShare> {
        let taken = |slot: &u16| {
            let vm = self.vms.get(usize::from(*slot));
            vm.is_some_and(Option::is_some)
        };
        (1..=VmSlot::LAST)
            .find(|slot| !taken(slot))
            .map(VmSlot::new)
            .ok_or(CannotShare::TooMany(self.slots.len()))
    }

    fn domain_of(&mut self, group: Option<TrustGroup>) -> Domain {
        let new = Domain(self.domain_count);
        let domain = match group {
            Some(group) => *self.groups.entry(group.into()).or_insert(new),
            None => new,
        };
        self.domain_count += u32::from(domain == new);
        domain
    }

    /// Takes a VM out. Its slot may be used again at once, so its entries must be gone by then.
    pub(crate) fn remove(&mut self, slot: VmSlot) {
        let Some(vm) = self.vms[usize::from(slot.get())].take() else {
            return;
        };
        self.slots.remove(&vm.id);
        let is_used = self.all().any(|(_, other)| other.domain == vm.domain);
        self.groups
            .retain(|_, &mut domain| is_used || domain != vm.domain);
    }

    pub(crate) fn slot(&self, id: VmId) -> Option<VmSlot> {
        self.slots.get(&id).copied()
    }

    pub(crate) fn get(&self, slot: VmSlot) -> Option<&Vm> {
        self.vms.get(usize::from(slot.get()))?.as_ref()
    }

    /// # Panics
    /// If no VM has the slot.
    pub(crate) fn of(&self, slot: VmSlot) -> &Vm {
        self.get(slot).expect("a VM has this slot")
    }

    /// # Panics
    /// If no VM has the slot.
    pub(crate) fn of_mut(&mut self, slot: VmSlot) -> &mut Vm {
        let vm = self.vms[usize::from(slot.get())].as_mut();
        vm.expect("a VM has this slot")
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (VmSlot, &Vm)> {
        self.slots.values().map(|&slot| (slot, self.of(slot)))
    }

    /// The pages of all.
    pub(crate) fn pages(&self) -> usize {
        let pages: PageCount = self.all().map(|(_, vm)| vm.size).sum();
        usize::try_from(pages.0).expect("as many pages as can be indexed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(id: u32, group: &str) -> VmSpec {
        VmSpec {
            id: VmId(id),
            group: group.parse().ok(),
            size: PageCount(1000),
            areas: Areas { used: 0, limit: 1 },
        }
    }

    #[test]
    fn a_group_is_one_domain_while_it_has_a_vm_and_a_vm_without_is_its_own() {
        let mut vms = Vms::default();
        let web = vms.add(spec(1, "web")).unwrap();
        assert_eq!(vms.add(spec(2, "web")), Ok(web));
        let alone = vms.add(spec(3, "")).unwrap();
        assert!(alone != web && vms.add(spec(4, "")).unwrap() != alone);
        for id in [1, 2] {
            vms.remove(vms.slot(VmId(id)).unwrap());
        }
        assert!(vms.groups.is_empty());
        assert_ne!(
            vms.add(spec(5, "web")).unwrap(),
            web,
            "a domain is never used again"
        );
    }

    #[test]
    fn what_cannot_take_part_is_told_why() {
        let mut vms = Vms::default();
        vms.add(spec(1, "")).unwrap();
        assert_eq!(vms.add(spec(1, "")), Err(CannotShare::IsKnown(VmId(1))));
        let size = PageCount((1 << 32) + 1);
        let large = VmSpec {
            size,
            ..spec(2, "")
        };
        assert_eq!(vms.add(large), Err(CannotShare::TooLarge(size)));
    }
}
