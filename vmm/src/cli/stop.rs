//! `ballonet stop`: ends VMs, all at once. Who cannot be ended holds up none of the others.

use crate::cli::client::{Client, ClientError};
use anyhow::{Result, bail};
use api::ProblemKind;
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
    let mut failures = stop_each(client, names).await;
    if is_all {
        // Who ended meanwhile by itself has ended.
        failures.retain(|failure| !is_unknown(failure));
    }
    let told: Vec<String> = failures
        .iter()
        .map(|error| crate::error_chain(error))
        .collect();
    match told.is_empty() {
        true => Ok(()),
        false => bail!("{}", told.join("\nballonet: ")),
    }
}

async fn all(client: &Client) -> Result<BTreeSet<VmName>, ClientError> {
    let vms = client.vms().await?;
    Ok(vms.into_iter().map(|vm| vm.name).collect())
}

/// Why some could not be stopped.
async fn stop_each(client: &Client, names: BTreeSet<VmName>) -> Vec<ClientError> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut stopping = JoinSet::new();
    for name in names {
        let (client, places) = (client.clone(), Arc::clone(&places));
        stopping.spawn(async move {
            // It is never closed.
            let _place = places.acquire_owned().await;
            client.stop(&name).await
        });
    }
    let stopped = stopping.join_all().await;
    stopped.into_iter().filter_map(Result::err).collect()
}

fn is_unknown(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(problem) if problem.is(ProblemKind::UnknownVm))
}
