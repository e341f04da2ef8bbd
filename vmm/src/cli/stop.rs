//! `ballonet stop`, `restart` and `rm`: each for several VMs, all at once. Who cannot be ended holds up none of the others.

use crate::cli::client::{Client, ClientError};
use anyhow::{Result, bail};
use api::{DefinitionState, DefinitionView, ProblemKind};
use protocol::VmName;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// VMs that are being ended at the same time: a host has places for so many clients and others.
const AT_ONCE: usize = 32;

/// Stops VMs of these names; all of the host's if none are given.
pub(super) async fn stop(client: &Client, names: Vec<VmName>) -> Result<()> {
    let is_all = names.is_empty();
    let names: BTreeSet<VmName> = match is_all {
        true => all(client).await?,
        false => names.into_iter().collect(),
    };
    let stop = |client: Client, name: VmName| async move { client.stop(&name).await };
    let mut failures = each(client, names, stop).await;
    if is_all {
        // Who ended meanwhile by itself has ended.
        failures.retain(|failure| !is_unknown(failure));
    }
    tell(&failures)
}

/// Starts VMs anew.
pub(super) async fn restart(client: &Client, names: Vec<VmName>) -> Result<()> {
    let restart =
        |client: Client, name: VmName| async move { client.restart(&name).await.map(drop) };
    tell(&each(client, names.into_iter().collect(), restart).await)
}

/// Forgets VMs that are to come back; with `force` those that run, too.
pub(super) async fn forget(client: &Client, names: Vec<VmName>, force: bool) -> Result<()> {
    let forget = |client: Client, name: VmName| async move { client.forget(&name, force).await };
    tell(&each(client, names.into_iter().collect(), forget).await)
}

fn tell(failures: &[ClientError]) -> Result<()> {
    let told: Vec<String> = failures
        .iter()
        .map(|error| crate::error_chain(error))
        .collect();
    match told.is_empty() {
        true => Ok(()),
        false => bail!("{}", told.join("\nballonet: ")),
    }
}

/// Those that are there, and those that are about to be.
async fn all(client: &Client) -> Result<BTreeSet<VmName>, ClientError> {
    let overview = client.overview().await?;
    let is_coming = |view: &DefinitionView| view.state == DefinitionState::Coming;
    let coming = overview.definitions.into_iter().filter(is_coming);
    let there = overview.vms.into_iter();
    let there = there.filter(|vm| vm.capabilities.stop).map(|vm| vm.name);
    Ok(there.chain(coming.map(|view| view.name)).collect())
}

/// Does the same with each, and returns what went wrong.
async fn each<F>(
    client: &Client,
    names: BTreeSet<VmName>,
    act: impl Fn(Client, VmName) -> F,
) -> Vec<ClientError>
where
    F: Future<Output = Result<(), ClientError>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut acting = JoinSet::new();
    for name in names {
        let (act, places) = (act(client.clone(), name), Arc::clone(&places));
        acting.spawn(async move {
            // It is never closed.
            let _place = places.acquire_owned().await;
            act.await
        });
    }
    let done = acting.join_all().await;
    done.into_iter().filter_map(Result::err).collect()
}

fn is_unknown(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(problem) if problem.is(ProblemKind::UnknownVm))
}
