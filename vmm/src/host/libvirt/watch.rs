//! Puts libvirt's domains under the host as they appear, and follows what their descriptions say.
//!
//! Nobody lets go of one that ends: its task does so by the kernel's word.

use super::{Claims, Definition, Domain, Libvirt, Poll, Uuid, VirshError};
use crate::host::asides::Asides;
use crate::host::vm::DomainWish;
use crate::host::{Host, HostError};
use protocol::VmName;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Descriptions that are read again with each poll, in turn.
const READ_AT_ONCE: usize = 8;

/// For as long as the host lives.
pub(in crate::host) async fn watch(host: Host, libvirt: Libvirt) {
    let mut polls = libvirt.polls.clone();
    let mut watcher = Watcher {
        host,
        libvirt,
        asides: Asides::default(),
        last_read: None,
        is_reached: None,
    };
    while polls.changed().await.is_ok() {
        let poll = polls.borrow_and_update().clone();
        if let Some(poll) = poll {
            watcher.look(&poll).await;
        }
    }
}

struct Watcher {
    host: Host,
    libvirt: Libvirt,
    /// Domains that cannot be managed now.
    asides: Asides<Uuid>,
    /// Whose description was read last.
    last_read: Option<Uuid>,
    /// Whether libvirt was reached, as was told last.
    is_reached: Option<bool>,
}

impl Watcher {
    async fn look(&mut self, poll: &Arc<Poll>) {
        let domains = match &poll.domains {
            Ok(domains) => domains,
            Err(error) => {
                let why = match error {
                    VirshError::Ended(said) | VirshError::Refused(said) => said.clone(),
                    _ => crate::error_chain(error),
                };
                let what = format!(
                    "libvirt is not reached: {why}. Its domains stay as they are, and count as they were, until it is"
                );
                return self.tell_reached(false, &what);
            }
        };
        let is_known = self.is_reached.is_some();
        self.tell_reached(
            true,
            match (is_known, self.libvirt.virsh.leave().looks_only()) {
                (true, _) => "libvirt is reached again",
                (false, false) => "libvirt is reached: its running domains are put under this host",
                (false, true) => "libvirt is reached: its running domains are looked at",
            },
        );
        self.asides.keep(|uuid| domains.contains_key(uuid));
        let adopted = self.host.adopted_domains(self.libvirt.virsh.uri());
        for (&uuid, domain) in domains {
            let is_new = domain.is_running && !adopted.contains_key(&uuid);
            if is_new && self.asides.is_due(&uuid, Instant::now()) {
                self.consider(uuid, domain).await;
            }
        }
        self.read_in_turn(&adopted).await;
    }

    fn tell_reached(&mut self, is_reached: bool, what: &str) {
        if self.is_reached.replace(is_reached) != Some(is_reached) {
            self.host.lock().events.add(None, what);
        }
    }

    async fn consider(&mut self, uuid: Uuid, domain: &Domain) {
        let wish = DomainWish::Found;
        match self
            .host
            .adopt_domain(&self.libvirt, uuid, domain, wish)
            .await
        {
            Ok(_) => self.asides.forget(&uuid),
            Err(error) => {
                let why = crate::error_chain(&error);
                let what = match &error {
                    HostError::NotAdopted { .. } => why,
                    _ => format!("libvirt's domain '{}' is not adopted: {why}", domain.name),
                };
                let is_news = self.asides.put(uuid, &what, Instant::now());
                if is_news && !error.is_wanted_so() {
                    self.host.lock().events.warn_of_all(what);
                }
            }
        }
    }

    /// What an administrator changed in a domain's metadata holds from then on.
    async fn read_in_turn(&mut self, adopted: &BTreeMap<Uuid, (VmName, Claims)>) {
        let after = adopted
            .iter()
            .filter(|(uuid, _)| Some(**uuid) > self.last_read);
        let before = adopted
            .iter()
            .filter(|(uuid, _)| Some(**uuid) <= self.last_read);
        let turn: Vec<_> = after.chain(before).take(READ_AT_ONCE).collect();
        for (&uuid, (name, claims)) in turn {
            self.last_read = Some(uuid);
            let Ok(xml) = self.libvirt.virsh.description(uuid).await else {
                // It has ended, or is asked again with the next poll.
                continue;
            };
            let refused = match Definition::read(&xml) {
                Ok(definition) if definition.claims == *claims => None,
                Ok(definition) => {
                    let followed = self.host.follow(name, definition.claims).await;
                    followed.err().map(|error| crate::error_chain(&error))
                }
                Err(unfit) => Some(crate::error_chain(&unfit)),
            };
            let Some(why) = refused else {
                self.asides.forget(&uuid);
                continue;
            };
            let what = format!("its settings stay as they are: {why}");
            if self.asides.put(uuid, &what, Instant::now()) {
                self.host.lock().events.warn(name, what);
            }
        }
    }
}
