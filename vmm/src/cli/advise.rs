//! `ballonet advise`: what a host would do to QEMUs that run, which are looked at and not changed.
//!
//! A host of its own does as any host, but for its monitors: those send nothing that would change a QEMU
//! ([`Leave`]), and its guests' balloons are supposed to follow (`policy`, `advice`).

use super::args::AdviseArgs;
use super::host::{end_signal, start_log};
use super::private_host::{PrivateFolder, with_private_host};
use super::savings::{SavingsView, VmSavingsView, gib_h};
use super::top::on_screen;
use super::{print, printable, table};
use crate::host::recording::Decision;
use crate::host::runtime_dir::create_new_private_file;
use crate::host::{Host, HostOptions, Leave};
use anyhow::{Context, Result, bail};
use api::{EventView, VmView};
use page::{PageCount, VmId, total};
use policy::{MemoryState, Savings, Snapshot, Step, VmSnapshot};
use protocol::VmName;
use serde::Serialize;
use std::ffi::c_int;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Decisions are recorded so often, whenever targets change, and at the end.
const RECORD_EVERY: Duration = Duration::from_secs(5);
/// Bytes of a recording: as many as are read again.
const LARGEST_RECORDING: u64 = super::replay::LARGEST;
/// Events that are shown below.
const EVENTS: usize = 5;

/// What would be done, and what that has come to so far.
#[derive(Debug, Serialize)]
struct Advice {
    seconds: u64,
    /// What the VMs would have to share.
    budget_bytes: u64,
    /// What they use now.
    used_bytes: u64,
    /// What of that they would have given up.
    saved_bytes: u64,
    /// How short memory would be.
    state: MemoryState,
    /// Over all the time.
    savings: SavingsView,
    vms: Vec<VmAdvice>,
    events: Vec<EventView>,
}

#[derive(Debug, Serialize)]
struct VmAdvice {
    name: VmName,
    id: VmId,
    size_bytes: u64,
    /// What its guest uses now, by the kernel's count.
    used_bytes: u64,
    /// What its guest cannot do without, by its own word.
    needs_bytes: Option<u64>,
    /// What it should hold.
    target_bytes: u64,
    /// What it would hold.
    would_hold_bytes: u64,
    /// What it uses and would have given up.
    saved_bytes: u64,
    /// Whether what its guest says is too old to go by.
    stale: bool,
    /// In a word.
    because: &'static str,
    /// In sentences.
    why: String,
    #[serde(flatten)]
    savings: VmSavingsView,
}

pub(super) async fn advise(args: AdviseArgs) -> Result<()> {
    if args.json {
        start_log(None)?;
    }
    let folder = PrivateFolder::make("advise")?;
    let leave = match args.poll {
        true => Leave::LookAndPoll,
        false => Leave::Look,
    };
    let qmp_dir = args.qmp_dir.as_deref();
    let options = HostOptions {
        leave,
        libvirt: args.libvirt.clone(),
        qmp_dir: qmp_dir.map(std::path::absolute).transpose()?,
        ..HostOptions::new(args.memory.0)
    };
    let record = args.record.as_deref().map(Recording::create).transpose()?;
    // Its end is no interruption: what was seen until then is what it is for.
    let end = end_signal()?;
    let script = async |host: &Host| look(host, args, record, end).await;
    with_private_host(&folder, &options, std::future::pending(), script).await
}

async fn look(
    host: &Host,
    args: AdviseArgs,
    mut record: Option<Recording>,
    end: impl Future<Output = c_int>,
) -> Result<()> {
    let mut end = pin!(end);
    for qmp in &args.qmp {
        let request = qmp.request()?;
        tokio::select! {
            adopted = host.adopt(request) => drop(adopted?),
            // So far nothing was changed that its end does not set back.
            _ = &mut end => return let_go(host, args.poll).await,
        }
    }
    let may_come = args.libvirt.is_some() || args.qmp_dir.is_some();
    let is_live = !args.json && rustix::termios::isatty(rustix::stdio::stdout());
    let interval = Duration::from_secs_f64(args.interval);
    let length = args.seconds.map_or(Duration::MAX, Duration::from_secs);
    let (begin, mut savings) = (Instant::now(), Savings::default());
    let mut rounds = host.rounds();
    let mut shown: Option<Instant> = None;
    loop {
        let left = length.saturating_sub(begin.elapsed());
        let is_over = tokio::select! {
            _ = &mut end => true,
            () = sleep_at_most(left) => true,
            // Whoever looked last is told of the newest.
            changed = rounds.changed() => changed.is_err(),
        };
        let advice = match host.decision() {
            Some(decision) => {
                savings.see(decision.at_ms, &decision.snapshot);
                if let Some(record) = &mut record {
                    record.take(&decision, is_over)?;
                }
                Some(advice(host, &decision, &savings))
            }
            None => None,
        };
        let is_due = shown.is_none_or(|at| at.elapsed() >= interval);
        if let Some(advice) = advice.filter(|_| is_over || (is_due && (args.json || is_live))) {
            show(&advice, args.json, is_live && !is_over, shown.is_none())?;
            shown = Some(Instant::now());
        }
        if is_over {
            return let_go(host, args.poll).await;
        }
        if !may_come && host.overview().vms.is_empty() {
            bail!("all of these QEMUs have ended");
        }
    }
}

/// Has set back what was set, which is told if it is not.
async fn let_go(host: &Host, polls: bool) -> Result<()> {
    if !polls {
        return Ok(());
    }
    let left = host.release_all().await;
    let left: Vec<String> = left.iter().map(|why| crate::error_chain(why)).collect();
    match left.is_empty() {
        true => Ok(()),
        false => bail!(
            "how often these ask their guests for their figures is not set back, if it was set: {}. Once they answer, qom-set of \
             guest-stats-polling-interval to 0 does so (or virsh dommemstat --period 0)",
            left.join(", ")
        ),
    }
}

async fn sleep_at_most(time: Duration) {
    match time.as_secs() > 1 << 30 {
        true => std::future::pending().await,
        false => sleep(time).await,
    }
}

fn show(advice: &Advice, json: bool, is_live: bool, is_first: bool) -> Result<()> {
    if json {
        return print(&format!("{}\n", serde_json::to_string(advice)?));
    }
    let text = printable(&describe(advice));
    match (is_live, is_first) {
        (true, true) => print(&format!("\x1b[2J{}", on_screen(&text))),
        (true, false) => print(&on_screen(&text)),
        (false, _) => print(&format!("{text}\n{}", printable(&reasons(advice)))),
    }
}

fn advice(host: &Host, decision: &Decision, savings: &Savings) -> Advice {
    let overview = host.overview();
    let view = |id: VmId| overview.vms.iter().find(|vm| vm.id == id);
    let snapshot = &decision.snapshot;
    let steps = snapshot.vms.iter().zip(&decision.plan.steps);
    let vms = steps.filter_map(|(vm, step)| Some(vm_advice(host, vm, step, view(vm.id)?, savings)));
    let saved = saved(snapshot);
    let mut events = overview.host.events;
    let skip = events.len().saturating_sub(EVENTS);
    Advice {
        seconds: savings.ms() / 1000,
        budget_bytes: overview.host.budget_bytes,
        used_bytes: overview.host.used_bytes + saved.bytes(),
        saved_bytes: saved.bytes(),
        state: snapshot.state,
        savings: SavingsView::of(savings),
        vms: vms.collect(),
        events: events.split_off(skip),
    }
}

fn saved(snapshot: &Snapshot) -> PageCount {
    let supposed = snapshot.vms.iter().filter_map(|vm| vm.evidence.supposed);
    total(supposed.map(|supposed| supposed.saved))
}

fn vm_advice(
    host: &Host,
    vm: &VmSnapshot,
    step: &Step,
    view: &VmView,
    savings: &Savings,
) -> VmAdvice {
    let supposed = vm.evidence.supposed.unwrap_or_default();
    let explained = host.explain(view.name.as_str(), None).ok();
    let of_vm = savings.vms().find(|(id, _)| *id == vm.id);
    VmAdvice {
        name: view.name.clone(),
        id: vm.id,
        size_bytes: vm.settings.size.bytes(),
        used_bytes: total([vm.backed(), supposed.saved]).bytes(),
        needs_bytes: supposed.needs.map(PageCount::bytes),
        target_bytes: step.target.bytes(),
        would_hold_bytes: vm.held().bytes(),
        saved_bytes: supposed.saved.bytes(),
        stale: vm.evidence.is_stale,
        because: because(vm, step, explained.as_ref().map(|view| &view.explanation)),
        why: explained.map(|view| view.text).unwrap_or_default(),
        savings: of_vm
            .map(|(_, vm)| VmSavingsView::of(vm))
            .unwrap_or_default(),
    }
}

/// What decides on it before all else.
fn because(
    vm: &VmSnapshot,
    step: &Step,
    explanation: Option<&policy::Explanation>,
) -> &'static str {
    use policy::{BalloonBound, Bound};
    let bounds = explanation.map_or(&[][..], |explanation| &explanation.bounds);
    let balloon = bounds.iter().find_map(|bound| match bound {
        Bound::Balloon(bound) => Some(*bound),
        _ => None,
    });
    match balloon {
        Some(BalloonBound::GuestSilent) => return "guest silent",
        Some(BalloonBound::GuestNeeds) => return "guest needs it",
        Some(BalloonBound::GuestStalls) => return "guest stalls",
        Some(BalloonBound::Pressure) => return "pressure",
        Some(BalloonBound::Limit) => return "65 % at most",
        None => {}
    }
    match bounds {
        _ if bounds.contains(&Bound::Min) => "its min",
        _ if step.target >= vm.settings.size => "enough for all",
        _ if bounds.contains(&Bound::Max) => "its max",
        _ if explanation.is_some_and(|explanation| explanation.taxed > PageCount::ZERO) => {
            "idle, taxed"
        }
        _ => "shares",
    }
}

fn mebibytes(bytes: u64) -> String {
    (bytes >> 20).to_string()
}

fn describe(advice: &Advice) -> String {
    let Advice {
        seconds,
        budget_bytes,
        used_bytes,
        saved_bytes,
        state,
        savings,
        vms,
        events,
    } = advice;
    let mut text = format!(
        "nothing is changed; {} MiB are used, {} MiB would be there; after {seconds} s\n\
         {} MiB would be saved now, {} GiB·h so far of {} GiB·h used; memory would be {state}\n\n",
        mebibytes(*used_bytes),
        mebibytes(*budget_bytes),
        mebibytes(*saved_bytes),
        gib_h(savings.saved_mib_s),
        gib_h(savings.used_mib_s),
    );
    text.push_str(&table::aligned(&HEADER, vms.iter().map(row)));
    if !events.is_empty() {
        text.push('\n');
    }
    for EventView { vm, what, .. } in events {
        let who = vm.as_ref().map_or("host", |vm| vm.as_str());
        text.push_str(&format!("{who}: {what}\n"));
    }
    text
}

/// Sizes in MiB.
const HEADER: [&str; 10] = [
    "NAME", "SIZE", "USED", "NEEDS", "TARGET", "HOLDS", "SAVED", "SQUEEZED", "FAULTS", "BECAUSE",
];

fn row(vm: &VmAdvice) -> Vec<String> {
    vec![
        vm.name.to_string(),
        mebibytes(vm.size_bytes),
        mebibytes(vm.used_bytes),
        vm.needs_bytes.map_or_else(|| "?".into(), mebibytes),
        mebibytes(vm.target_bytes),
        mebibytes(vm.would_hold_bytes),
        mebibytes(vm.saved_bytes),
        vm.savings.squeezes.to_string(),
        vm.savings.faults.to_string(),
        vm.because.into(),
    ]
}

fn reasons(advice: &Advice) -> String {
    let lines = advice.vms.iter().map(|vm| format!("{}\n", vm.why));
    lines.collect()
}

/// A file of decisions that somebody named.
#[derive(Debug)]
struct Recording {
    path: PathBuf,
    file: File,
    size: u64,
    recorded: Option<Instant>,
}

impl Recording {
    fn create(path: &Path) -> Result<Self> {
        let file = create_new_private_file(path).with_context(|| {
            format!(
                "cannot record in {}: name a file that is not there yet",
                path.display()
            )
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            size: 0,
            recorded: None,
        })
    }

    fn take(&mut self, decision: &Decision, is_last: bool) -> Result<()> {
        let is_due = is_last || self.recorded.is_none_or(|at| at.elapsed() >= RECORD_EVERY);
        if !is_due && decision.reason.is_none() {
            return Ok(());
        }
        let mut line = serde_json::to_vec(decision)?;
        line.push(b'\n');
        self.size += line.len() as u64;
        if self.size > LARGEST_RECORDING {
            bail!("the recording is full: go on in another file");
        }
        self.recorded = Some(Instant::now());
        self.file.write_all(&line).context("cannot record")
    }
}

/// One in which nothing was recorded is not left behind: the next try may have its name.
impl Drop for Recording {
    fn drop(&mut self) {
        if self.size == 0
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("{} stays behind: {error}", self.path.display());
        }
    }
}
