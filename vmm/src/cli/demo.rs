//! `ballonet demo`: four guests that were promised twice the memory there is. Each in its turn has
//! most of the shares, so memory moves to it; every guest checks every byte it reads.

use super::args::DemoArgs;
use super::guest_report::ask_for_report;
use super::host::{end_signal, start_log};
use super::private_host::{PrivateFolder, with_private_host};
use super::top::on_screen;
use super::{print, show, table};
use crate::host::{Host, HostOptions};
use anyhow::{Context, Result, ensure};
use api::{EventView, Overview, RunRequest, StatesView, VmChange, VmView};
use page::PageCount;
use policy::SharesSpec;
use protocol::{OnHostDeath, VmName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const NAMES: [&str; 4] = ["anna", "bert", "cora", "dirk"];
/// Every guest may have all the memory it gets, and checks and rewrites pages in it.
const WORKLOAD: &str = "verify:size=max,rate=10000,write=50";
/// Shares of the VM whose turn it is, and of the others.
const FAVOURED: u32 = 8000;
const OTHERS: u32 = 1000;
/// Time between samples.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long a guest may take to answer: what it read is what a demonstration is for, and machines have other work.
const REPORT_PATIENCE: Duration = Duration::from_secs(60);

/// What a demonstration showed.
#[derive(Debug, Serialize)]
struct Summary {
    /// Machine memory for all VMs together.
    budget_bytes: u64,
    /// What the VMs were promised.
    configured_bytes: u64,
    /// The most machine memory used at any sample, as the kernel counts it.
    used_max_bytes: u64,
    /// Samples taken.
    samples: u64,
    /// Samples in which page states did not add up to a VM's size.
    state_sum_violations: u64,
    /// Pages that went into or out of balloons, in bytes.
    moved_bytes: u64,
    /// Pages that guests checked whole.
    verify_checks: u64,
    /// Wrong bytes found, and pages of the balloon that came back with another's content.
    verify_errors: u64,
    seconds: f64,
    vms: Vec<VmSummary>,
    events: Vec<EventView>,
}

#[derive(Debug, Serialize)]
struct VmSummary {
    name: VmName,
    size_bytes: u64,
    /// Its pages by state at the end.
    states: StatesView,
    balloon_target_bytes: u64,
    balloon_held_bytes: u64,
    used_bytes: u64,
    /// Share of samples at which it held more than any other VM.
    largest_holder: f64,
    verify_checks: u64,
    verify_errors: u64,
    /// Whether it ran to the end.
    alive: bool,
    #[serde(skip)]
    largest_samples: u64,
    #[serde(skip)]
    moved: u64,
}

/// The figures of a guest's `report` that are of interest here.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct GuestReport {
    checks: u64,
    errors: u64,
    leaks: u64,
}

pub(super) async fn demo(args: DemoArgs) -> Result<()> {
    if args.json {
        start_log(None)?;
    }
    let folder = PrivateFolder::make("demo")?;
    let options = HostOptions {
        interval: INTERVAL,
        ..HostOptions::new(args.memory.0)
    };
    let script = async |host: &Host| play(host, &args).await;
    let summary = with_private_host(&folder, &options, end_signal()?, script).await?;
    show(args.json, &summary, describe)?;
    judge(&summary)
}

async fn play(host: &Host, args: &DemoArgs) -> Result<Summary> {
    let names = start_vms(host, args.memory.0).await?;
    let begin = Instant::now();
    let length = Duration::from_secs(args.seconds);
    let mut tracks = BTreeMap::new();
    let mut turn = None;
    while begin.elapsed() < length {
        let now = turn_at(begin.elapsed(), length);
        if turn != Some(now) {
            turn = Some(now);
            favour(host, &names, now).await;
        }
        sleep(INTERVAL).await;
        let overview = host.overview();
        follow(&mut tracks, &overview.vms);
        if !args.json {
            show_progress(&overview, begin.elapsed(), length)?;
        }
    }
    let overview = host.overview();
    for name in &names {
        if let (Some(track), Ok(console)) = (tracks.get_mut(name), host.console(name.as_str())) {
            let report = ask_for_report(&console, REPORT_PATIENCE).await;
            let report: GuestReport = report.with_context(|| format!("VM '{name}'"))?;
            track.verify_checks = report.checks;
            track.verify_errors = report.errors + report.leaks;
        }
    }
    Ok(summarize(overview, tracks, begin.elapsed()))
}

async fn start_vms(host: &Host, budget: PageCount) -> Result<Vec<VmName>> {
    let mut names = Vec::new();
    for name in NAMES {
        let request = RunRequest {
            name: Some(name.parse()?),
            memory_bytes: budget.bytes() / 2,
            min_bytes: Some(PageCount(budget.0 / 10).bytes()),
            workload: Some(WORKLOAD.into()),
            on_host_death: OnHostDeath::Stop,
            ..RunRequest::default()
        };
        names.push(host.run(request).await?.name);
    }
    Ok(names)
}

/// Whose turn it is: each VM has a quarter of the time.
fn turn_at(elapsed: Duration, length: Duration) -> usize {
    let turn = elapsed.as_millis() * NAMES.len() as u128 / length.as_millis().max(1);
    usize::try_from(turn)
        .unwrap_or(usize::MAX)
        .min(NAMES.len() - 1)
}

async fn favour(host: &Host, names: &[VmName], turn: usize) {
    for (index, name) in names.iter().enumerate() {
        let count = NonZeroU32::new(if index == turn { FAVOURED } else { OTHERS });
        let change = VmChange {
            shares: count.map(SharesSpec::Count),
            ..VmChange::default()
        };
        // A VM that somebody has killed is missed by nobody: the others go on.
        if let Err(error) = host.set(name.as_str(), &change).await {
            tracing::debug!("{error}");
        }
    }
}

fn follow(tracks: &mut BTreeMap<VmName, VmSummary>, vms: &[VmView]) {
    let largest = vms.iter().max_by_key(|vm| vm.memory_file_bytes);
    tracks.values_mut().for_each(|track| track.alive = false);
    for view in vms {
        let before = tracks.get(&view.name).map(|track| track.largest_samples);
        let is_largest = largest.is_some_and(|largest| largest.name == view.name);
        let counters = view.balloon.counters;
        let track = VmSummary {
            name: view.name.clone(),
            size_bytes: view.size_bytes,
            states: view.states,
            balloon_target_bytes: view.balloon.target,
            balloon_held_bytes: view.balloon.held,
            used_bytes: view.used_bytes,
            largest_holder: 0.0,
            verify_checks: 0,
            verify_errors: 0,
            alive: true,
            largest_samples: before.unwrap_or(0) + u64::from(is_largest),
            moved: counters.inflated + counters.deflated,
        };
        tracks.insert(view.name.clone(), track);
    }
}

#[expect(clippy::cast_precision_loss, reason = "shares for people to read")]
fn summarize(
    overview: Overview,
    tracks: BTreeMap<VmName, VmSummary>,
    elapsed: Duration,
) -> Summary {
    let samples: u64 = tracks.values().map(|vm| vm.largest_samples).sum();
    let mut vms: Vec<VmSummary> = tracks.into_values().collect();
    for vm in &mut vms {
        vm.largest_holder = vm.largest_samples as f64 / samples.max(1) as f64;
    }
    Summary {
        budget_bytes: overview.host.budget_bytes,
        configured_bytes: vms.iter().map(|vm| vm.size_bytes).sum(),
        used_max_bytes: overview.host.used_max_bytes,
        samples: overview.host.samples,
        state_sum_violations: overview.host.state_sum_violations,
        moved_bytes: PageCount(vms.iter().map(|vm| vm.moved).sum()).bytes(),
        verify_checks: vms.iter().map(|vm| vm.verify_checks).sum(),
        verify_errors: vms.iter().map(|vm| vm.verify_errors).sum(),
        seconds: elapsed.as_secs_f64(),
        vms,
        events: overview.host.events,
    }
}

fn show_progress(overview: &Overview, elapsed: Duration, length: Duration) -> Result<()> {
    if !rustix::termios::isatty(rustix::stdio::stdout()) {
        return Ok(());
    }
    let clear = if elapsed < INTERVAL * 2 {
        "\x1b[2J"
    } else {
        ""
    };
    let (done, all) = (elapsed.as_secs(), length.as_secs());
    let text = format!(
        "ballonet demo: four VMs promised {:.1} times the memory there is; {done} of {all} s\n\n{}",
        overview.host.overcommit + 1.0,
        table::overview(overview)
    );
    print(&format!("{clear}{}", on_screen(&text)))
}

fn describe(summary: &Summary) -> String {
    let mebibytes = |bytes: u64| bytes >> 20;
    let mut text = format!(
        "\n{:.0} s: {} MiB of memory for VMs that were promised {} MiB; at most {} MiB used in {} samples.\n\
         {} MiB moved through balloons; {} pages checked by the guests, {} wrong.\n",
        summary.seconds,
        mebibytes(summary.budget_bytes),
        mebibytes(summary.configured_bytes),
        mebibytes(summary.used_max_bytes),
        summary.samples,
        mebibytes(summary.moved_bytes),
        summary.verify_checks,
        summary.verify_errors,
    );
    for vm in &summary.vms {
        let end = if vm.alive {
            ""
        } else {
            "; it ended before the rest"
        };
        text.push_str(&format!(
            "  {:<6} held the most for {:.0} % of the time{end}\n",
            vm.name.as_str(),
            vm.largest_holder * 100.0
        ));
    }
    text
}

/// The demonstration has failed if a promise was broken.
fn judge(summary: &Summary) -> Result<()> {
    let Summary {
        seconds,
        budget_bytes: budget,
        used_max_bytes: used,
        verify_errors: wrong,
        state_sum_violations: violations,
        ..
    } = summary;
    let bug = "this is a bug in ballonet, please report it";
    ensure!(*wrong == 0, "guests read {wrong} wrong pages: {bug}");
    ensure!(
        summary.verify_checks > 0,
        "the guests checked nothing in {seconds:.0} s: give it more --seconds or less --memory"
    );
    ensure!(
        used <= budget,
        "{used} bytes were used and {budget} were there: {bug}"
    );
    ensure!(
        *violations == 0,
        "page states did not add up {violations} times: {bug}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vm_has_its_turn() {
        let length = Duration::from_secs(20);
        let turns: Vec<usize> = [0, 4, 5, 12, 19, 20]
            .iter()
            .map(|&s| turn_at(Duration::from_secs(s), length))
            .collect();
        assert_eq!(turns, [0, 0, 1, 2, 3, 3]);
    }
}
