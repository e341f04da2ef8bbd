//! Starts VMs again that are to come back, starts others anew, and forgets them.
//!
//! Whatever a client is told to be done here is kept before (`state_store`), and refused where it cannot be.

use super::definitions::{HowEnded, MOST_DEFINED, Next, request_for};
use super::queue::Place;
use super::state::State;
use super::state_store::{Definition, Standing, Step};
use super::vm::{Admitted, Vm, Wanted};
use super::{Host, HostError};
use api::{DefinitionView, RestartPolicy, RunRequest, VmView};
use protocol::VmName;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long a VM that is started anew may wait to be admitted, in seconds: what it had is free again, unless others came.
const RESTART_WAIT_S: u64 = 30;

/// A definition of which nobody was told yet. Dropped, it is gone again.
#[derive(Debug)]
pub(in crate::host) struct NewDefinition {
    host: Host,
    name: VmName,
    is_settled: bool,
}

impl NewDefinition {
    /// Its VM runs.
    pub(in crate::host) fn settle(mut self) {
        self.is_settled = true;
        if let Some(defined) = self.host.lock().definitions.get_mut(&self.name) {
            defined.is_new = false;
        }
    }

    /// Its VM does not run. Returns when nothing of it is kept.
    pub(in crate::host) async fn take_back(mut self) {
        self.is_settled = true;
        self.host.lock().definitions.remove(&self.name);
        let forgotten = self.host.keep(vec![Step::Forget(self.name.clone())]);
        if let Err(error) = forgotten.await {
            tracing::warn!(vm = %self.name, "{}", crate::error_chain(&error));
        }
    }
}

impl Drop for NewDefinition {
    fn drop(&mut self) {
        if !self.is_settled {
            self.host.lock().definitions.remove(&self.name);
            // Nobody was told anything, and nobody waits for it.
            drop(
                self.host
                    .shared
                    .store
                    .commit(vec![Step::Forget(self.name.clone())]),
            );
        }
    }
}

impl Host {
    /// Has steps kept.
    pub(in crate::host) async fn keep(&self, steps: Vec<Step>) -> Result<(), HostError> {
        let commit = self.shared.store.commit(steps);
        commit.done().await.map_err(HostError::NotKept)
    }

    /// Has a change of a VM kept, if it is to come back.
    pub(in crate::host) async fn redefine(
        &self,
        name: &VmName,
        change: impl FnOnce(&mut Definition),
    ) -> Result<(), HostError> {
        let Some(mut definition) = self.lock().definitions.definition(name) else {
            return Ok(());
        };
        change(&mut definition);
        let step = Step::Define(name.clone(), Box::new(definition.clone()));
        self.keep(vec![step]).await?;
        if let Some(defined) = self.lock().definitions.get_mut(name) {
            defined.definition = definition;
        }
        Ok(())
    }

    /// Defines a VM that is to come back, under its name, which the request has then. None if it is not to.
    pub(in crate::host) async fn define(
        &self,
        request: &mut RunRequest,
    ) -> Result<Option<NewDefinition>, HostError> {
        if request.restart == RestartPolicy::No {
            return Ok(None);
        }
        let _turn = self.shared.changes.lock().await;
        let (new, step) = {
            let mut state = self.lock();
            if state.definitions.len() >= MOST_DEFINED {
                return Err(HostError::TooManyDefined(MOST_DEFINED));
            }
            let name = state.free_name(request)?;
            state.check_name(&name)?;
            request.name = Some(name.clone());
            let definition = state.definitions.add(name.clone(), request.clone());
            let step = Step::Define(name.clone(), Box::new(definition));
            let host = self.clone();
            let is_settled = false;
            (
                NewDefinition {
                    host,
                    name,
                    is_settled,
                },
                step,
            )
        };
        self.keep(vec![step]).await?;
        Ok(Some(new))
    }

    /// Starts what an earlier host has left to be started, in its order. Called once, before clients are served. VMs that
    /// are there already are left as they are, as are those of which an `orphan` lives, a process without its host.
    pub(in crate::host) fn bring_back(&self, orphans: &[String]) {
        let names = self.lock().definitions.come_back();
        for name in names {
            let step = Step::Stand(name.clone(), Standing::Wanted);
            // If it is not kept, it is started again all the same.
            drop(self.shared.store.commit(vec![step]));
            if self.lock().has_vm(&name) {
                continue;
            }
            if orphans.iter().any(|orphan| orphan == name.as_str()) {
                let why = "is not started: it still runs, in a process of an earlier host";
                self.lock().events.warn(&name, why);
                continue;
            }
            let place = self.wanted(&name).map(|wanted| Place::keep(self, &wanted));
            let task = self.bring_up(&name, Duration::ZERO, place);
            let mut state = self.lock();
            state.definitions.set_coming(&name, task);
            self.shared.count.send_replace(state.count());
        }
    }

    /// What a definition asks for.
    fn wanted(&self, name: &VmName) -> Option<Wanted> {
        let definition = self.lock().definitions.definition(name)?;
        Some(Wanted {
            request: RunRequest {
                name: Some(name.clone()),
                ..definition.request
            },
            balloon_bytes: definition.balloon_bytes,
            holds_name: true,
        })
    }

    /// Has a VM started after some time, once it is admitted, with a place in the queue if it has one.
    fn bring_up(&self, name: &VmName, delay: Duration, place: Option<Place>) -> JoinHandle<()> {
        let (host, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let Some(wanted) = host.wanted(&name) else {
                return;
            };
            let admitted = match place {
                Some(place) => place.admit(wanted, None).await,
                None => host.admit_some_day(wanted).await,
            };
            // Neither is broken off any more.
            match admitted {
                Ok(admitted) => host.go_on(name, admitted),
                Err(error) => host.come_again(&name, &error),
            }
        })
    }

    /// It is admitted: whether it starts is not for who brought it up.
    fn go_on(&self, name: VmName, admitted: Admitted) {
        drop(self.lock().definitions.take_coming(&name));
        self.shared.round_wanted.notify_one();
        let host = self.clone();
        tokio::spawn(async move {
            if let Err(error) = host.start_admitted(admitted).await {
                let what = crate::error_chain(&error);
                host.lock().events.warn(&name, what);
            }
        });
    }

    /// It was not started.
    fn come_again(&self, name: &VmName, error: &HostError) {
        let mut state = self.lock();
        state.events.warn(name, crate::error_chain(error));
        self.after(&mut state, name, HowEnded::Failed, None);
        state.publish_change();
        self.shared.count.send_replace(state.count());
    }

    /// A VM is gone: what becomes of it.
    pub(in crate::host) fn after_end(&self, state: &mut State, vm: &Vm) {
        let ran = vm.running().map(|running| running.since.elapsed());
        self.after(state, &vm.config.name, vm.how_ended(), ran);
    }

    fn after(&self, state: &mut State, name: &VmName, how: HowEnded, ran: Option<Duration>) {
        // With its host it comes back.
        if state.stopping {
            return;
        }
        match state.definitions.ended(name, how, ran) {
            Next::StartAgain(delay) => {
                let what = format!("is started again in {} ms", delay.as_millis());
                state.events.add(Some(name), what);
                let task = self.bring_up(name, delay, None);
                state.definitions.set_coming(name, task);
            }
            // If it is not kept, the next host starts it once more.
            Next::Stand(standing) => {
                let step = Step::Stand(name.clone(), standing);
                drop(self.shared.store.commit(vec![step]));
            }
            Next::Nothing => {}
        }
    }

    /// VMs that are to come back, whether they run or not.
    #[must_use]
    pub fn definitions(&self) -> Vec<DefinitionView> {
        self.published().overview.definitions.clone()
    }

    /// Has a VM that is defined stay stopped. Whether there is one.
    ///
    /// # Errors
    /// When it cannot be stopped now, or that cannot be kept.
    pub(in crate::host) async fn stay_stopped(&self, name: &str) -> Result<bool, HostError> {
        let _turn = self.shared.changes.lock().await;
        let defined = {
            let mut state = self.lock();
            if let Ok(vm) = state.find(name)
                && vm.running().is_none()
            {
                return Err(HostError::NotRunningYet(vm.config.name.clone()));
            }
            state.definitions.name(name)
        };
        match defined {
            Some(name) => self.stand(&name, Standing::Stopped).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// A VM that is defined stands so from now on, and nothing is under way any more to start it.
    async fn stand(&self, name: &VmName, standing: Standing) -> Result<(), HostError> {
        self.keep(vec![Step::Stand(name.clone(), standing)]).await?;
        if let Some(defined) = self.lock().definitions.get_mut(name) {
            defined.standing = standing;
        }
        self.give_up(name).await;
        Ok(())
    }

    /// Ends what is under way to start a VM. Returns when nothing of it is left.
    async fn give_up(&self, name: &VmName) {
        let coming = self.lock().definitions.take_coming(name);
        if let Some(task) = coming {
            task.abort();
            // It was broken off, or has come to its end.
            drop(task.await);
        }
        let mut state = self.lock();
        state.publish_change();
        self.shared.count.send_replace(state.count());
    }

    /// Ends all that is under way to start VMs.
    pub(in crate::host) async fn give_up_all(&self) {
        let coming = self.lock().definitions.take_all_coming();
        for task in coming {
            task.abort();
            drop(task.await);
        }
    }

    /// Forgets a VM that does not run, or with `force` stops it first.
    ///
    /// # Errors
    /// When there is none of that name, it runs, or that cannot be kept.
    pub async fn forget(&self, name: &str, force: bool) -> Result<(), HostError> {
        let runs = self.lock().runs(name);
        match &runs {
            Some(name) if !force => return Err(HostError::StillRuns(name.clone())),
            Some(name) => self.stop(name.as_str()).await?,
            None => {}
        }
        let _turn = self.shared.changes.lock().await;
        let defined = self.lock().definitions.name(name);
        let Some(name) = defined else {
            // One that was not to come back is forgotten with its end.
            return runs.map(drop).ok_or_else(|| HostError::unknown_vm(name));
        };
        if self.lock().has_vm(&name) {
            return Err(HostError::StillRuns(name));
        }
        self.keep(vec![Step::Forget(name.clone())]).await?;
        self.give_up(&name).await;
        let mut state = self.lock();
        state.definitions.remove(&name);
        state.events.add(Some(&name), "is forgotten");
        state.publish_change();
        Ok(())
    }

    /// Ends a VM in order and starts it anew; starts one that is defined and does not run. Returns when its guest
    /// runs.
    ///
    /// # Errors
    /// When there is none of that name, or it does not start.
    pub async fn restart(&self, name: &str) -> Result<VmView, HostError> {
        let name = self.hold_to_restart(name)?;
        let host = self.clone();
        // A task of its own: a client that hangs up does not leave it stopped.
        let restarting = tokio::spawn(async move {
            let result = host.restart_held(&name).await;
            let mut state = host.lock();
            state.definitions.let_go(&name);
            // Where its start failed that has been seen to.
            if result.is_err() && state.runs(name.as_str()).is_none() {
                host.after(&mut state, &name, HowEnded::Failed, None);
            }
            host.shared.count.send_replace(state.count());
            result
        });
        restarting.await.map_err(|_ended| HostError::Stopping)?
    }

    /// Keeps the name of a VM that can be started anew for that.
    fn hold_to_restart(&self, name: &str) -> Result<VmName, HostError> {
        let mut state = self.lock();
        if state.stopping {
            return Err(HostError::Stopping);
        }
        let defined = state.definitions.name(name);
        let held = match state.find(name) {
            Ok(vm) if vm.running().is_none() => {
                return Err(HostError::NotRunningYet(vm.config.name.clone()));
            }
            Ok(vm) => {
                vm.check_stop()?;
                vm.config.name.clone()
            }
            Err(unknown) => defined.ok_or(unknown)?,
        };
        match state.definitions.hold(held.clone()) {
            true => Ok(held),
            false => Err(HostError::NotRunningYet(held)),
        }
    }

    async fn restart_held(&self, name: &VmName) -> Result<VmView, HostError> {
        let is_defined = self.lock().definitions.name(name.as_str()).is_some();
        if is_defined {
            let _turn = self.shared.changes.lock().await;
            self.stand(name, Standing::Wanted).await?;
        }
        let as_it_is = self.as_it_is(name);
        if self.lock().has_vm(name) {
            self.end(name.as_str()).await?;
            // It may have ended by itself before.
            self.give_up(name).await;
        }
        let wanted = self.wanted(name).or(as_it_is);
        let mut wanted = wanted.ok_or_else(|| HostError::unknown_vm(name.as_str()))?;
        wanted.request.wait_s.get_or_insert(RESTART_WAIT_S);
        let admitted = self.admit_in_turn(wanted).await?;
        self.shared.round_wanted.notify_one();
        self.start_admitted(admitted).await?;
        self.published_anew(name)
    }

    /// What asks for a VM once more that is there and not defined.
    fn as_it_is(&self, name: &VmName) -> Option<Wanted> {
        let mut state = self.lock();
        let vm = state.find(name.as_str()).ok()?;
        let ballooned = |pinned| vm.config.settings.size.saturating_sub(pinned).bytes();
        Some(Wanted {
            request: request_for(&vm.config),
            balloon_bytes: vm.pinned.map(ballooned),
            holds_name: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostOptions;
    use crate::host::runtime_dir::Claim;
    use crate::host::state_store::StateStore;
    use page::PageCount;

    #[tokio::test]
    async fn what_still_runs_without_its_host_is_not_started_beside_itself() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take(&folder.path().join("x.sock")).unwrap();
        let state = folder.path().join("state");
        let (store, _) = StateStore::open(&state, claim.place()).unwrap();
        let steps = ["orphan", "other"].map(|text| {
            let name: VmName = text.parse().unwrap();
            let definition = Definition {
                order: 0,
                request: RunRequest {
                    restart: RestartPolicy::Always,
                    memory_bytes: 32 << 20,
                    ..RunRequest::default()
                },
                balloon_bytes: None,
            };
            Step::Define(name, Box::new(definition))
        });
        store.commit(steps.into()).done().await.unwrap();
        store.close().await;

        let mut options = HostOptions::new(PageCount::from_mebibytes(64));
        options.settings.sharing = false;
        options.state = Some(state);
        let host = Host::start(&options, claim.place()).unwrap();
        host.bring_back(&["orphan".into()]);
        let overview = host.overview();
        let queue = overview.queue.iter().map(|queued| queued.name.as_str());
        assert_eq!(queue.collect::<Vec<_>>(), ["other"]);
        let events = host.lock().events.list();
        let is_told = |event: &api::EventView| {
            let of = event.vm.as_ref().map(VmName::as_str);
            of == Some("orphan") && event.what.contains("still runs")
        };
        assert!(events.iter().any(is_told), "{events:?}");
        host.give_up_all().await;
    }
}
