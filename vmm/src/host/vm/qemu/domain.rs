//! Puts libvirt's domains under a host, and follows what their descriptions claim.

use super::adopt::{AdoptError, Found, FoundProcess};
use super::by_libvirt::ByLibvirt;
use super::lever::Lever;
use crate::host::libvirt::{
    Claims, Definition, Domain, Libvirt, LibvirtUri, Uuid, VirshError, find_process,
};
use crate::host::state_store::{Adoption, KeptDomain, Step, Way};
use crate::host::{Host, HostError, settings};
use api::{AdoptRequest, RunRequest, VmView};
use page::PAGE_SIZE;
use protocol::VmName;
use std::collections::BTreeMap;
use std::io;

/// Why a domain is adopted.
#[derive(Clone, Debug)]
pub(in crate::host) enum DomainWish {
    /// It was found among libvirt's.
    Found,
    /// Somebody asked for it, in these words.
    Asked(Box<AdoptRequest>),
}

impl DomainWish {
    fn is_found(&self) -> bool {
        matches!(self, Self::Found)
    }
}

impl Host {
    /// Puts the domain of that name or UUID under this host.
    pub(super) async fn adopt_named_domain(
        &self,
        named: &str,
        request: AdoptRequest,
    ) -> Result<VmView, HostError> {
        if request.reclaim {
            return Err(not_adopted(named, AdoptError::ReclaimOfDomain));
        }
        let uri = self.lock().libvirt.clone().unwrap_or_default();
        let libvirt = self.libvirt(&uri);
        let not_adopted = |source| not_adopted(named, source);
        let poll = libvirt.reached().await;
        let poll = poll.map_err(|error| not_adopted(error.into()))?;
        let domains = poll.domains.as_ref().ok();
        let is_named =
            |(uuid, domain): &(&Uuid, &Domain)| domain.name == named || uuid.to_string() == named;
        let found = domains.and_then(|domains| domains.iter().find(is_named));
        let (&uuid, domain) = found.ok_or_else(|| not_adopted(AdoptError::NotRunning))?;
        let wish = DomainWish::Asked(Box::new(request));
        self.adopt_domain(&libvirt, uuid, domain, wish).await
    }

    /// Puts a domain under this host.
    pub(in crate::host) async fn adopt_domain(
        &self,
        libvirt: &Libvirt,
        uuid: Uuid,
        domain: &Domain,
        wish: DomainWish,
    ) -> Result<VmView, HostError> {
        let found = look(libvirt, uuid, domain, &wish).await;
        let (found, claims) = found.map_err(|source| not_adopted(&domain.name, source))?;
        let is_found = wish.is_found();
        let given = match wish {
            DomainWish::Found => AdoptRequest::default(),
            DomainWish::Asked(request) => *request,
        };
        let wishes = AdoptRequest {
            min_bytes: given.min_bytes.or(claims.min_bytes),
            max_bytes: given.max_bytes.or_else(|| {
                let besides = found.process.besides.bytes();
                claims.max_bytes(found.size_bytes, found.held_bytes, besides)
            }),
            shares: given.shares.or(claims.shares),
            idle_tax_permille: given.idle_tax_permille.or(claims.idle_tax),
            ..given
        };
        self.take(found, wishes, is_found).await
    }

    /// Domains of that libvirt that are adopted, with what their descriptions claimed when they were last read.
    pub(in crate::host) fn adopted_domains(
        &self,
        uri: &LibvirtUri,
    ) -> BTreeMap<Uuid, (VmName, Claims)> {
        let state = self.lock();
        let of_libvirt = state
            .adoptions()
            .filter_map(|adoption| match &adoption.way {
                Way::Domain(domain) if domain.uri == *uri => {
                    let known = (adoption.name.clone(), domain.claims.clone());
                    Some((domain.uuid, known))
                }
                _ => None,
            });
        of_libvirt.collect()
    }

    /// A domain's description claims this from now on: it holds, whatever was set before.
    ///
    /// # Errors
    /// When that makes no sense or would break a promise. All stays as it is then.
    pub(in crate::host) async fn follow(
        &self,
        name: &VmName,
        claims: Claims,
    ) -> Result<(), HostError> {
        let _turn = self.shared.changes.lock().await;
        let (id, adoption) = {
            let mut state = self.lock();
            let (machine, snapshot) = (state.machine, state.snapshot());
            let vm = state.find(name.as_str())?;
            let Some(adoption) = vm.adoption().cloned() else {
                return Ok(());
            };
            let Way::Domain(domain) = &adoption.way else {
                return Ok(());
            };
            let size_bytes = adoption.settings.size.bytes();
            let run = RunRequest {
                memory_bytes: size_bytes,
                min_bytes: claims.min_bytes,
                max_bytes: claims.max_bytes(
                    size_bytes,
                    adoption.held_bytes,
                    adoption.besides.bytes(),
                ),
                shares: claims.shares,
                idle_tax_permille: claims.idle_tax,
                large_pages: Some(false),
                ..RunRequest::default()
            };
            let domain = KeptDomain {
                claims,
                ..domain.clone()
            };
            let id = vm.config.id;
            let settings = settings::of_vm(&run, machine, false)?;
            state.admitted(&snapshot, id, &settings)?;
            let adoption = Adoption {
                settings,
                way: Way::Domain(domain),
                ..adoption
            };
            (id, adoption)
        };
        self.keep(vec![Step::Adopt(Box::new(adoption.clone()))])
            .await?;
        let mut state = self.lock();
        let vm = state.vm_mut(id)?;
        vm.config.settings = adoption.settings.clone();
        vm.set_adoption(adoption);
        state.events.add(
            Some(name),
            "its settings are as its domain's description says now",
        );
        state.publish_change();
        drop(state);
        self.shared.round_wanted.notify_one();
        Ok(())
    }
}

fn not_adopted(name: &str, source: AdoptError) -> HostError {
    HostError::NotAdopted {
        what: format!("libvirt's domain '{}'", crate::host::claim::words(name)),
        source,
    }
}

/// Asks what a domain is, and changes nothing.
async fn look(
    libvirt: &Libvirt,
    uuid: Uuid,
    domain: &Domain,
    wish: &DomainWish,
) -> Result<(Found, Claims), AdoptError> {
    let name: Option<VmName> = domain.name.parse().ok();
    let is_named = match wish {
        DomainWish::Found => name.is_some(),
        DomainWish::Asked(request) => name.is_some() || request.name.is_some(),
    };
    let definition = Definition::read(&libvirt.virsh.description(uuid).await?)?;
    if wish.is_found() && !definition.is_wanted {
        return Err(AdoptError::NotWanted);
    }
    if !is_named {
        return Err(AdoptError::Name);
    }
    let (held_bytes, _) = domain.memory.ok_or(VirshError::Busy)?;
    let owner = definition.owner;
    let looking = tokio::task::spawn_blocking(move || find_process(uuid, owner));
    let pid = looking.await.map_err(|error| AdoptError::Process {
        pid: 0,
        source: io::Error::other(error),
    })??;
    let process = FoundProcess::look(pid, definition.size_bytes).await?;
    let uri = libvirt.virsh.uri().clone();
    let found = Found {
        lever: Lever::Libvirt(ByLibvirt::new(libvirt.clone(), uuid, definition.period_s)),
        process,
        name,
        size_bytes: definition.size_bytes,
        held_bytes: held_bytes.min(definition.size_bytes).max(PAGE_SIZE),
        vcpus: definition.vcpus,
        polling_interval_s: definition.period_s,
        version: format!("of libvirt's domain {uuid}"),
        way: Way::Domain(KeptDomain {
            uri,
            uuid,
            name: domain.name.clone(),
            claims: definition.claims.clone(),
        }),
    };
    Ok((found, definition.claims))
}
