//! `ballonet demo`: four guests that were promised twice the memory there is. Each in its turn has
//! most of the shares, so memory moves to it; every guest checks every byte it reads.

use super::args::DemoArgs;
use super::guest_report::ask_for_report;
use super::host::{end_signal, start_log};
use super::private_host::{PrivateFolder, with_private_host};
use super::top::on_screen;
use super::{print, show, table};
use crate::api::{EventView, Overview, RunRequest, StatesView, VmChange, VmView};
use crate::host::{Host, HostOptions};
use crate::name::VmName;
use crate::protocol::OnHostDeath;
use anyhow::{Context, Result, bail};
use page::PageCount;
use policy::SharesSpec;
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
/// How long a guest may take to answer.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

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
}

/// The figures of a guest's `report` that are of interest here.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct GuestReport {
    checks: u64,
    errors: u64,
    leaks: u64,
}

/// What is remembered of a VM while it runs.
#[derive(Clone, Debug)]
struct Track {
    view: VmView,
    report: GuestReport,
    largest_samples: u64,
    alive: bool,
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
            favour(host, &names, now);
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
            track.report = ask_for_report(&console, REPORT_PATIENCE)
                .await
                .with_context(|| format!("VM '{name}'"))?;
        }
    }
    Ok(summarize(&overview, &tracks, begin.elapsed()))
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

fn favour(host: &Host, names: &[VmName], turn: usize) {
    for (index, name) in names.iter().enumerate() {
        let count = NonZeroU32::new(if index == turn { FAVOURED } else { OTHERS });
        let change = VmChange {
            shares: count.map(SharesSpec::Count),
            ..VmChange::default()
        };
        // A VM that somebody has killed is missed by nobody: the others go on.
        if let Err(error) = host.set(name.as_str(), &change) {
            tracing::debug!("{error}");
        }
    }
}

fn follow(tracks: &mut BTreeMap<VmName, Track>, vms: &[VmView]) {
    let largest = vms
        .iter()
        .max_by_key(|vm| vm.memory_file_bytes)
        .map(|vm| vm.name.clone());
    tracks.values_mut().for_each(|track| track.alive = false);
    for view in vms {
        let track = tracks.entry(view.name.clone()).or_insert_with(|| Track {
            view: view.clone(),
            report: GuestReport::default(),
            largest_samples: 0,
            alive: true,
        });
        track.view = view.clone();
        track.alive = true;
        track.largest_samples += u64::from(largest.as_ref() == Some(&view.name));
    }
}

fn summarize(overview: &Overview, tracks: &BTreeMap<VmName, Track>, elapsed: Duration) -> Summary {
    let samples: u64 = tracks.values().map(|track| track.largest_samples).sum();
    let vms: Vec<VmSummary> = tracks
        .values()
        .map(|track| track.summary(samples))
        .collect();
    let moved: u64 = tracks
        .values()
        .map(|track| track.view.balloon.counters)
        .map(|counters| counters.inflated + counters.deflated)
        .sum();
    Summary {
        budget_bytes: overview.host.budget_bytes,
        configured_bytes: vms.iter().map(|vm| vm.size_bytes).sum(),
        used_max_bytes: overview.host.used_max_bytes,
        samples: overview.host.samples,
        state_sum_violations: overview.host.state_sum_violations,
        moved_bytes: PageCount(moved).bytes(),
        verify_checks: vms.iter().map(|vm| vm.verify_checks).sum(),
        verify_errors: vms.iter().map(|vm| vm.verify_errors).sum(),
        seconds: elapsed.as_secs_f64(),
        vms,
        events: overview.host.events.clone(),
    }
}

impl Track {
    #[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
    fn summary(&self, samples: u64) -> VmSummary {
        VmSummary {
            name: self.view.name.clone(),
            size_bytes: self.view.size_bytes,
            states: self.view.states,
            balloon_target_bytes: self.view.balloon.target,
            balloon_held_bytes: self.view.balloon.held,
            used_bytes: self.view.used_bytes,
            largest_holder: self.largest_samples as f64 / samples.max(1) as f64,
            verify_checks: self.report.checks,
            verify_errors: self.report.errors + self.report.leaks,
            alive: self.alive,
        }
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
    if summary.verify_errors > 0 {
        bail!(
            "guests read {} wrong pages: this is a bug in ballonet, please report it",
            summary.verify_errors
        );
    }
    if summary.verify_checks == 0 {
        bail!(
            "the guests checked nothing in {:.0} s: give it more --seconds or less --memory",
            summary.seconds
        );
    }
    if summary.used_max_bytes > summary.budget_bytes {
        bail!(
            "{} bytes were used and {} were there: this is a bug in ballonet, please report it",
            summary.used_max_bytes,
            summary.budget_bytes
        );
    }
    if summary.state_sum_violations > 0 {
        bail!(
            "page states did not add up {} times: this is a bug in ballonet, please report it",
            summary.state_sum_violations
        );
    }
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
