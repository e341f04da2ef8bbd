//! A QEMU by the libvirt that has it: what is heard of it comes with the poll of all domains, and what it is told goes through
//! libvirt, which knows it then.

use super::lever::{Look, POLLING_INTERVAL_S, polls};
use super::statistics::Reported;
use crate::host::libvirt::{Libvirt, Uuid, VirshError};
use crate::host::state_store::Adoption;
use std::time::Instant;

/// A domain.
#[derive(Debug)]
pub(super) struct ByLibvirt {
    libvirt: Libvirt,
    uuid: Uuid,
    /// What its balloon was told to leave, and when that was done.
    told: Option<(u64, Instant)>,
    polling: Polling,
    /// What its guest reported before.
    before: Reported,
}

/// Whether libvirt was told to have its guest asked for its figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Polling {
    /// It is to do so as often as it does.
    Left,
    NotYet,
    Set,
    Refused,
}

const NO_FIGURES: &str = "libvirt cannot have its guest asked for its figures, as where its balloon is no PCI device: it is given memory, and \
     none is taken from it";

impl ByLibvirt {
    /// A domain whose guest was asked for its figures so often before.
    pub(super) fn new(libvirt: Libvirt, uuid: Uuid, period_s: u64) -> Self {
        let polling = match polls(libvirt.virsh.leave(), period_s) {
            true => Polling::NotYet,
            false => Polling::Left,
        };
        Self {
            libvirt,
            uuid,
            told: None,
            polling,
            before: Reported::default(),
        }
    }

    pub(super) async fn look(&mut self) -> Result<Look, VirshError> {
        let poll = self.libvirt.last()?;
        let domains = match &poll.domains {
            Ok(domains) => domains,
            Err(error) => return Err(VirshError::Ended(crate::error_chain(error))),
        };
        let domain = domains.get(&self.uuid).ok_or(VirshError::NoDomain)?;
        let (held, reported) = domain.memory.ok_or(VirshError::Busy)?;
        self.have_polled().await?;
        let before = std::mem::replace(&mut self.before, reported);
        let lack = (self.polling == Polling::Refused).then_some(NO_FIGURES);
        Ok(Look {
            held_bytes: Some(held.max(self.told_since(poll.begun))),
            is_new_balloon: false,
            is_running: domain.is_running,
            reported: match lack {
                Some(_) => Reported::default(),
                None => reported,
            },
            has_begun: reported.has_begun_since(&before),
            lack,
        })
    }

    /// What its guest may hold by now that it could not when the poll was made.
    fn told_since(&self, poll: Instant) -> u64 {
        let told = self.told.filter(|&(_, at)| at >= poll);
        told.map_or(0, |(bytes, _)| bytes)
    }

    async fn have_polled(&mut self) -> Result<(), VirshError> {
        if self.polling != Polling::NotYet {
            return Ok(());
        }
        let period = POLLING_INTERVAL_S;
        self.polling = match self.libvirt.virsh.set_period(self.uuid, period).await {
            Ok(()) => Polling::Set,
            Err(VirshError::Refused(said)) => {
                tracing::debug!(uuid = %self.uuid, "{said}");
                Polling::Refused
            }
            Err(error) => return Err(error),
        };
        Ok(())
    }

    pub(super) async fn leave(&mut self, bytes: u64) -> Result<(), VirshError> {
        if self.libvirt.virsh.leave().looks_only() {
            return Ok(());
        }
        self.libvirt.virsh.set_memory(self.uuid, bytes).await?;
        self.told = Some((bytes, Instant::now()));
        Ok(())
    }

    pub(super) async fn restore(&mut self, adoption: &Adoption) -> Result<(), VirshError> {
        if self.polling == Polling::Left {
            return Ok(());
        }
        let virsh = &self.libvirt.virsh;
        match virsh
            .set_period(self.uuid, adoption.polling_interval_s)
            .await
        {
            // As it was refused when it was to be set.
            Err(VirshError::Refused(_)) if self.polling != Polling::Set => {}
            other => other?,
        }
        self.leave(adoption.held_bytes).await
    }
}
