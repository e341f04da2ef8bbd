//! The VMs that are scanned, and what each trust domain of theirs has: a store for its frames and a key for its hashes.
//!
//! The stores are seen by the host too, which counts their memory. One that no VM shows any more is dropped. Each is noted in
//! the host's folder, so that a later host knows it from whatever a VM process may show it.

use super::hash::PageHash;
use super::store_notes::StoreNotes;
use super::vm::{ScannedVm, ScannedVmSpec};
use crate::error_chain;
use crate::memory::MemoryError;
use crate::memory::areas::{Area, FileId};
use crate::memory::store::Store;
use page::{PageCount, VmId};
use sharing::{Areas, Domain, FrameRange, Sharing, VmSpec};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The part of `vm.max_map_count`, in percent, that sharing and all else in a VM process may use.
const AREAS_PERCENT: u64 = 95;
/// The kernel's default of `vm.max_map_count`.
const DEFAULT_AREAS: u64 = 65_530;

/// The stores of all domains, for their memory to be counted.
#[derive(Clone, Debug)]
pub(super) struct Stores {
    notes: StoreNotes,
    all: Arc<Mutex<AllStores>>,
}

#[derive(Debug, Default)]
struct AllStores {
    of_domains: BTreeMap<Domain, Arc<Store>>,
    /// Those of another host whose VMs are not taken over yet.
    arriving: BTreeMap<FileId, Arc<Store>>,
}

impl Stores {
    pub(super) fn new(notes: StoreNotes) -> Self {
        let all = Arc::default();
        Self { notes, all }
    }

    /// Machine memory that they hold, as the kernel counts it.
    pub(super) fn allocated(&self) -> PageCount {
        let all = self.lock();
        let stores = all.of_domains.values().chain(all.arriving.values());
        stores.filter_map(|store| store.allocated().ok()).sum()
    }

    /// A VM of another host shows frames of this store.
    ///
    /// # Errors
    /// When it is none of this place, or may not be written.
    pub(super) fn arrives(&self, file: &File) -> Result<FileId, MemoryError> {
        let id = FileId::of(file).map_err(MemoryError::Store)?;
        if !self.notes.has(id) {
            return Err(MemoryError::ForeignStore);
        }
        let mut all = self.lock();
        if let Entry::Vacant(place) = all.arriving.entry(id) {
            place.insert(Arc::new(Store::taken_over(file)?));
        }
        Ok(id)
    }

    fn lock(&self) -> MutexGuard<'_, AllStores> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
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
                used: own_areas(spec.pid, spec.store),
                limit: self.areas_limit,
            },
        };
        let domain = books.add_vm(to_books).map_err(|error| error.to_string())?;
        let store = self.store(domain, spec.store);
        let store = store.map_err(|error| error_chain(&error))?;
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

    /// The store of a domain, of which a VM that has come may show frames of `shown`.
    fn store(&self, domain: Domain, shown: Option<FileId>) -> Result<Arc<Store>, MemoryError> {
        let mut stores = self.stores.lock();
        let arrived = shown.and_then(|id| stores.arriving.remove(&id));
        if let Some(store) = stores.of_domains.get(&domain) {
            return match shown {
                Some(id) if store.file_id()? != id => Err(MemoryError::ForeignStore),
                _ => Ok(Arc::clone(store)),
            };
        }
        let store = match (arrived, shown) {
            (Some(store), _) if store.frames()? == u64::from(self.frames) => store,
            (None, None) => Arc::new(Store::new(self.frames.into())?),
            _ => return Err(MemoryError::ForeignStore),
        };
        self.stores.notes.add(store.file_id()?)?;
        stores.of_domains.insert(domain, Arc::clone(&store));
        Ok(store)
    }

    /// All VMs of the host before have come or have ended: other stores are nobody's.
    pub(super) fn all_have_come(&self) {
        let stores = self.stores.lock();
        let own = stores.of_domains.values();
        let own = own.filter_map(|store| store.file_id().ok());
        let kept = own.chain(stores.arriving.keys().copied());
        self.stores.notes.keep(kept);
    }

    /// VMs that have come with this store cannot be taken in. It stays as it is, for they show frames of it.
    pub(super) fn leave_as_it_is(&self, store: Arc<Store>) {
        let mut stores = self.stores.lock();
        stores
            .of_domains
            .retain(|_, other| !Arc::ptr_eq(other, &store));
        if let Ok(id) = store.file_id() {
            stores.arriving.insert(id, store);
        }
    }

    /// A domain without VMs has no frames either; its number is never used again.
    pub(super) fn remove(&mut self, id: VmId) {
        self.vms.remove(&id);
        let vms = &self.vms;
        let is_used = |store: &Arc<Store>| vms.values().any(|vm| Arc::ptr_eq(&vm.store, store));
        let mut stores = self.stores.lock();
        let unused = stores.of_domains.extract_if(.., |_, store| !is_used(store));
        for (_, store) in unused {
            self.stores.notes.remove(&store);
        }
        let is_known = |domain: &Domain| stores.of_domains.contains_key(domain);
        self.hashes.retain(|domain, _| is_known(domain));
    }

    /// Frees the memory of frames.
    pub(super) fn punch(&self, freed: Vec<FrameRange>) {
        let stores = self.stores.lock();
        for range in freed {
            // A frame lies in one store, and the others have a hole there: punching it is quick.
            for store in stores.of_domains.values() {
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

/// The memory areas of a process, but for those of a store.
fn own_areas(pid: u32, store: Option<FileId>) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let is_own = |line: &&str| store.is_none() || Area::parse(line).map(|area| area.file) != store;
    maps.lines().filter(is_own).count() as u64
}
