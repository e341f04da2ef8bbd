//! The VMs that are scanned, and what each trust domain of theirs has: a store for its frames and a key for its hashes.
//!
//! The stores are seen by the host too, which counts their memory. One that no VM shows any more is dropped.

use super::hash::PageHash;
use super::vm::{ScannedVm, ScannedVmSpec};
use crate::error_chain;
use crate::memory::MemoryError;
use crate::memory::store::Store;
use page::{PageCount, VmId};
use sharing::{Areas, Domain, FrameRange, Sharing, VmSpec};
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The part of `vm.max_map_count`, in percent, that sharing and all else in a VM process may use.
const AREAS_PERCENT: u64 = 95;
/// The kernel's default of `vm.max_map_count`.
const DEFAULT_AREAS: u64 = 65_530;

/// The stores of all domains, for their memory to be counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Stores(Arc<Mutex<BTreeMap<Domain, Arc<Store>>>>);

impl Stores {
    /// Machine memory that they hold, as the kernel counts it.
    pub(super) fn allocated(&self) -> PageCount {
        let stores = self.lock();
        stores
            .values()
            .filter_map(|store| store.allocated().ok())
            .sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Domain, Arc<Store>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Registry {
    pub(super) vms: BTreeMap<VmId, ScannedVm>,
    /// The most that there can be.
    pub(super) frames: u32,
    /// The memory areas that a VM process may have.
    pub(super) areas_limit: u64,
    stores: Stores,
    hashes: BTreeMap<Domain, Arc<PageHash>>,
}

impl Registry {
    /// Of no VMs yet. `machine` is how much memory there is: the most frames there can be.
    pub(super) fn new(machine: PageCount, stores: Stores) -> Self {
        Self {
            vms: BTreeMap::new(),
            frames: u32::try_from(machine.0).unwrap_or(1 << 30).min(1 << 30),
            areas_limit: areas_limit(),
            stores,
            hashes: BTreeMap::new(),
        }
    }

    pub(super) fn ids(&self) -> Vec<VmId> {
        self.vms.keys().copied().collect()
    }

    /// Adds a VM, here and in the books. `Err` says why it cannot share pages.
    pub(super) fn add(&mut self, spec: ScannedVmSpec, books: &mut Sharing) -> Result<(), String> {
        let id = spec.id;
        let to_books = VmSpec {
            id,
            group: spec.group.clone(),
            size: spec.size,
            areas: Areas {
                used: own_areas(spec.pid),
                limit: self.areas_limit,
            },
        };
        let domain = books.add_vm(to_books).map_err(|error| error.to_string())?;
        let store = self.store(domain).map_err(|error| error_chain(&error))?;
        let hash = match self.hashes.get(&domain) {
            Some(hash) => Arc::clone(hash),
            None => Arc::new(PageHash::new().map_err(|error| error.to_string())?),
        };
        self.hashes.insert(domain, Arc::clone(&hash));
        let vm = ScannedVm::new(spec, hash, store, self.frames.into());
        self.vms
            .insert(id, vm.map_err(|error| error_chain(&error))?);
        Ok(())
    }

    fn store(&self, domain: Domain) -> Result<Arc<Store>, MemoryError> {
        let mut stores = self.stores.lock();
        if let Some(store) = stores.get(&domain) {
            return Ok(Arc::clone(store));
        }
        let store = Arc::new(Store::new(self.frames.into())?);
        stores.insert(domain, Arc::clone(&store));
        Ok(store)
    }

    /// A domain without VMs has no frames either; its number is never used again.
    pub(super) fn remove(&mut self, id: VmId) {
        self.vms.remove(&id);
        let vms = &self.vms;
        let is_used = |store: &Arc<Store>| vms.values().any(|vm| Arc::ptr_eq(&vm.store, store));
        let mut stores = self.stores.lock();
        stores.retain(|_, store| is_used(store));
        self.hashes.retain(|domain, _| stores.contains_key(domain));
    }

    /// Frees the memory of frames.
    pub(super) fn punch(&self, freed: Vec<FrameRange>) {
        let stores = self.stores.lock();
        for range in freed {
            // A frame lies in one store, and the others have a hole there: punching it is quick.
            for store in stores.values() {
                if let Err(error) = store.punch(range) {
                    tracing::warn!("frames are not freed: {error}");
                }
            }
        }
    }
}

/// What a VM process may have of memory areas.
fn areas_limit() -> u64 {
    let limit = fs::read_to_string("/proc/sys/vm/max_map_count");
    let limit = limit.ok().and_then(|text| text.trim().parse::<u64>().ok());
    limit.unwrap_or(DEFAULT_AREAS) * AREAS_PERCENT / 100
}

/// The memory areas of a process that shares nothing yet.
fn own_areas(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"));
    maps.map_or(0, |text| text.lines().count() as u64)
}
