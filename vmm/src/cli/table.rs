//! Tables for people. Sizes are MiB, because that is what a glance can compare.

use super::counters::with_sign;
use crate::host::sharing::Audit;
use api::{
    DefinitionState, DiskView, EventView, HostView, NetView, Overview, QueuedView, SharingPace,
    SharingView, TokenView, VmKind, VmPhase, VmSharingView, VmView, WaitView,
};
use protocol::{JailReport, VmName};

/// Events shown below an overview.
const EVENTS: usize = 5;

/// A line for each VM, and with `all` for each that is to come back and is not there.
pub(super) fn processes(overview: &Overview, all: bool) -> String {
    let mut header = vec![
        "NAME", "STATE", "PID", "SIZE", "HOLDS", "TARGET", "BALLOON", "SHARES", "UP",
    ];
    // Last, so that those before it keep their places, and only where there is something to tell apart.
    let has_others = overview.vms.iter().any(|vm| vm.kind != VmKind::Ballonet);
    header.extend(has_others.then_some("KIND"));
    let kind = |vm: &VmView| match vm.kind {
        VmKind::Ballonet => "ballonet".to_owned(),
        VmKind::Qemu => "qemu".to_owned(),
    };
    let vms = overview.vms.iter().map(|vm| {
        let mut cells = row(&[
            vm.name.as_str(),
            state(vm),
            &vm.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            &mebibytes(vm.size_bytes),
            &mebibytes(vm.used_bytes),
            &mebibytes(vm.target_bytes),
            &mebibytes(vm.balloon.held),
            &vm.shares.to_string(),
            &duration(vm.uptime_s),
        ]);
        cells.extend(has_others.then(|| kind(vm)));
        cells
    });
    let queued = overview.queue.iter().map(|queued| {
        let size = mebibytes(queued.memory_bytes);
        let waited = duration(queued.waited_s as f64);
        let name = queued.name.as_str();
        row(&[name, "queued", "-", &size, "-", "-", "-", "-", &waited])
    });
    let is_shown = |name: &VmName| {
        overview.vms.iter().any(|vm| vm.name == *name)
            || overview.queue.iter().any(|queued| queued.name == *name)
    };
    let absent = overview.definitions.iter();
    let absent = absent.filter(|view| all && !is_shown(&view.name));
    let absent = absent.map(|view| {
        let size = mebibytes(view.memory_bytes);
        let state = definition_state(view.state);
        row(&[
            view.name.as_str(),
            state,
            "-",
            &size,
            "-",
            "-",
            "-",
            "-",
            "-",
        ])
    });
    let whole = |mut cells: Vec<String>| {
        cells.resize(header.len(), "-".into());
        cells
    };
    aligned(&header, vms.chain(queued).chain(absent).map(whole))
}

fn definition_state(state: DefinitionState) -> &'static str {
    match state {
        DefinitionState::Running => "running",
        DefinitionState::Coming => "restarting",
        DefinitionState::Stopped => "stopped",
        DefinitionState::SwitchedOff => "off",
    }
}

/// A line for each token; `now_ms` is in milliseconds since 1970.
pub(super) fn tokens(tokens: &[TokenView], now_ms: u64) -> String {
    let header = ["NAME", "ROLE", "MADE", "EXPIRES", "LAST USED"];
    let span = |ms: u64| duration(ms as f64 / 1000.0);
    let ago = |ms: u64| format!("{} ago", span(now_ms.saturating_sub(ms)));
    let lines = tokens.iter().map(|token| {
        let expires = match token.expires_ms {
            _ if !token.valid => "worth nothing".into(),
            Some(at) => format!("in {}", span(at.saturating_sub(now_ms))),
            None if token.kept => "never".into(),
            None => "with the host".into(),
        };
        let used = token.used_ms.map_or_else(|| "-".into(), ago);
        row(&[
            &token.name,
            token.role.word(),
            &ago(token.made_ms),
            &expires,
            &used,
        ])
    });
    aligned(&header, lines)
}

/// The host above its VMs.
pub(super) fn overview(overview: &Overview) -> String {
    let mut text = host(&overview.host);
    text.push('\n');
    text.push_str(&holdings(&overview.vms));
    text.push_str(&queue(&overview.queue));
    if !overview.host.events.is_empty() {
        text.push('\n');
        let skip = overview.host.events.len().saturating_sub(EVENTS);
        for EventView { vm, what, .. } in &overview.host.events[skip..] {
            let who = vm.as_ref().map_or("host", |vm| vm.as_str());
            text.push_str(&format!("{who}: {what}\n"));
        }
    }
    text
}

/// A line for each VM that waits to be admitted.
fn queue(queue: &[QueuedView]) -> String {
    let told = |queued: &QueuedView| {
        format!(
            "{} ({} MiB) has waited for {}: {}\n",
            queued.name,
            mebibytes(queued.memory_bytes),
            duration(queued.waited_s as f64),
            queued.why
        )
    };
    queue.iter().map(told).collect()
}

/// The host's memory in two lines.
pub(super) fn host(host: &HostView) -> String {
    format!(
        "host  {} MiB budget: {} used (peak {}), {} free, {} promised\n      {} MiB configured, {:.0} % overcommitted, up {}\n",
        mebibytes(host.budget_bytes),
        mebibytes(host.used_bytes),
        mebibytes(host.used_max_bytes),
        mebibytes(host.free_bytes),
        mebibytes(host.promised_bytes),
        mebibytes(host.configured_bytes),
        (host.overcommit * 100.0).max(0.0),
        duration(host.uptime_s),
    ) + &memory_state(host)
        + &sharing(&host.sharing)
}

fn memory_state(host: &HostView) -> String {
    let tax = host.idle_tax_permille;
    let large = match host.large_pages {
        true => "",
        false => "; no large pages",
    };
    format!(
        "      memory {}: {} MiB should be free; idle tax {tax}, samples of {} s, targets for {} s{large}\n",
        host.state,
        mebibytes(host.min_free_bytes),
        host.sample_period_s,
        host.rebalance_interval_s,
    )
}

/// Page sharing in two lines.
fn sharing(sharing: &SharingView) -> String {
    let how = match (sharing.on, sharing.pace) {
        (false, _) if sharing.missing_bytes > 0 => format!(
            " (off; {} more are needed to bring the rest home)",
            with_unit(sharing.missing_bytes)
        ),
        (false, _) => " (off)".into(),
        (true, SharingPace::GoOn) => String::new(),
        (true, SharingPace::SlowDown) => " (slow: little is free)".into(),
        (true, SharingPace::Stop) => " (stopped: nothing is free)".into(),
    };
    format!(
        "      sharing{how}: {} MiB in {}, saving {}, {} zero, {} broken; reserve {}, lent {}\n      scan: {} pages/s, {} read, {}.{} % of a core; {} merges/s, {} breaks/s\n",
        mebibytes(sharing.shared_bytes),
        mebibytes(sharing.common_bytes),
        with_sign(sharing.saving_bytes, mebibytes),
        mebibytes(sharing.zero_bytes),
        mebibytes(sharing.broken_bytes),
        mebibytes(sharing.reserve_bytes),
        mebibytes(sharing.lent_bytes),
        sharing.covered_per_s,
        sharing.read_per_s,
        sharing.core_permille / 10,
        sharing.core_permille % 10,
        sharing.merges_per_s,
        sharing.breaks_per_s,
    )
}

/// What an audit found.
pub(super) fn audit(audit: &Audit) -> String {
    let missed = audit.not_compared.len() as u64;
    let compared = match missed {
        0 => format!("{} VMs", audit.vms),
        _ => format!("{} of {} VMs compared", audit.vms, audit.vms + missed),
    };
    let mut text = format!(
        "{compared}, {} pages mapped from the store, {} of them broken, {} frames, {} pages mapped large, {} memory areas: {} disagreements\n",
        audit.mapped_pages,
        audit.anonymous_pages,
        audit.frames,
        audit.large_pages,
        audit.areas,
        audit.disagreements,
    );
    for what in &audit.told {
        text.push_str(&format!("  {what}\n"));
    }
    for vm in &audit.not_compared {
        text.push_str(&format!("  {} was not compared: {}\n", vm.name, vm.why));
    }
    text
}

/// Who holds what, a line for each VM, with a bar. Fits into 80 columns with short names.
pub(super) fn holdings(vms: &[VmView]) -> String {
    let header = [
        "NAME", "STATE", "SIZE", "MIN", "MAX", "SHARES", "TARGET", "HOLDS", "SHARED", "BALLOON", "",
    ];
    let line = |vm: &VmView| {
        row(&[
            vm.name.as_str(),
            state(vm),
            &mebibytes(vm.size_bytes),
            &mebibytes(vm.min_bytes),
            &mebibytes(vm.max_bytes),
            &vm.shares_count.to_string(),
            &mebibytes(vm.target_bytes),
            &mebibytes(vm.used_bytes),
            &mebibytes(vm.states.shared),
            &mebibytes(vm.states.ballooned),
            &bar(vm),
        ])
    };
    aligned(&header, vms.iter().map(line))
}

/// Everything about one VM.
pub(super) fn vm(vm: &VmView) -> String {
    let doubt = match vm.credible {
        true => "",
        false => ": its process has said what cannot be true; its last good figures stand",
    };
    let none = || "none: shares with itself alone".into();
    let group = vm.trust_group.as_ref();
    let pid = vm.pid.map(|pid| pid.to_string());
    let fixed = vm.pinned_bytes.map_or("", |_| " (fixed by hand)");
    let (min, max) = (with_unit(vm.min_bytes), with_unit(vm.max_bytes));
    let held = [vm.used_bytes, vm.memory_file_bytes, vm.anonymous_bytes];
    let [used, file, anonymous] = held.map(with_unit);
    let mut lines = vec![
        ("state", format!("{}{doubt}", state(vm))),
        ("run by", run_by(vm)),
        ("process", pid.unwrap_or_else(|| "none yet".into())),
        ("up", duration(vm.uptime_s)),
        ("restart", vm.restart.to_string()),
        ("processors", vm.vcpus.to_string()),
        ("trust group", group.map_or_else(none, ToString::to_string)),
        ("size", with_unit(vm.size_bytes)),
        ("min, max", format!("{min}, {max}")),
        ("shares", format!("{} ({})", vm.shares_count, vm.shares)),
        ("target", with_unit(vm.target_bytes) + fixed),
        ("may hold", with_unit(vm.granted_bytes)),
        (
            "holds",
            format!("{used} ({file} guest, {anonymous} process)"),
        ),
        ("pages", pages(vm)),
        ("sharing", vm_sharing(&vm.sharing)),
        ("large pages", large_pages(vm)),
        ("balloon", balloon(vm)),
        ("balloon traffic", traffic(vm)),
        ("limit", limit(vm)),
        ("out of memory", out_of_memory(vm)),
        ("uses", working_set(vm)),
    ];
    lines.extend(vm.jail.iter().map(|report| ("jail", jail(report))));
    lines.extend(vm.disks.iter().map(|of_vm| ("disk", disk(of_vm))));
    lines.extend(vm.nets.iter().map(|net| ("network", network(net))));
    let console_log = vm.console_log.iter();
    lines.extend(console_log.map(|path| ("console log", path.display().to_string())));
    if let Some(guest) = &vm.guest {
        let figures = [
            (guest.free, "free"),
            (guest.available, "available"),
            (guest.total, "in all"),
        ];
        let said = |(bytes, name): (Option<u64>, _)| Some(format!("{} {name}", with_unit(bytes?)));
        let said: Vec<String> = figures.into_iter().filter_map(said).collect();
        lines.push(("guest says", said.join(", ")));
    }
    let mut text = format!("{}\n", vm.name);
    for (name, value) in lines {
        text.push_str(&format!("  {name:<16} {value}\n"));
    }
    text
}

fn run_by(vm: &VmView) -> String {
    let lacking: Vec<&str> = vm.capabilities.lacking().collect();
    match vm.kind {
        VmKind::Ballonet => "this host".into(),
        VmKind::Qemu => format!("QEMU, adopted; it cannot {}", lacking.join("; ")),
    }
}

fn jail(report: &JailReport) -> String {
    match report.lack() {
        None => report.mode.to_string(),
        Some(lack) => format!("{}; this machine cannot: {lack}", report.mode),
    }
}

fn large_pages(vm: &VmView) -> String {
    let large = &vm.counters.large;
    let off = match vm.large_pages {
        true => "",
        false => "off for this VM; ",
    };
    format!(
        "{off}{} in them; {} made; broken: {} by its balloon, {} to share, {} to watch pages; not to be had: {} for want of memory in one piece, {} refused by the kernel",
        with_unit(large.mapped.bytes()),
        large.made,
        large.broken_by_balloon,
        large.broken_by_sharing,
        large.broken_by_sampling,
        large.no_memory,
        large.refused,
    )
}

fn limit(vm: &VmView) -> String {
    let Some(limit) = vm.touch_limit else {
        return "none: its balloon keeps it within its memory".into();
    };
    if vm.swap.is_some() {
        let above = with_unit(limit.slow_above_bytes);
        return match vm.blocked_permille {
            0 => format!("holds up to {above}, what is above goes out of memory"),
            blocked => format!(
                "holds up to {above}; what is above finds no room outside of memory: blocked {:.0} % of the time",
                blocked as f64 / 10.0
            ),
        };
    }
    format!(
        "runs freely up to {}, stands still beyond {}; blocked {:.0} % of the time",
        with_unit(limit.slow_above_bytes),
        with_unit(limit.stop_above_bytes),
        vm.blocked_permille as f64 / 10.0
    )
}

/// What is compressed and swapped, how much of it moves, and how long a touch waits.
fn out_of_memory(vm: &VmView) -> String {
    let Some(swap) = vm.swap else {
        return "nothing can be: see `ballonet host --help` for --compression and --swap".into();
    };
    let (counters, wait) = (vm.counters.swap, |wait: WaitView| {
        match (wait.p50, wait.p99) {
            (Some(half), Some(most)) => {
                format!("half of the touches wait {half} µs, 99 % no longer than {most} µs")
            }
            _ => "never touched".into(),
        }
    });
    let cost = swap
        .write_cost
        .map(|cost| format!(", write cost {cost:.2}"));
    let left_to_disks = (counters.left_to_disks > 0).then(|| {
        format!(
            ", {} pages so far left to its read-only disks",
            counters.left_to_disks
        )
    });
    format!(
        "{} compressed in {} ({}); {} in the swap file ({}{}){}; {} pages went out, {} came back; a second: {} compressed, {} back, {} written, {} read",
        with_unit(vm.states.compressed),
        with_unit(swap.pool_bytes),
        wait(swap.pool_wait_us),
        with_unit(vm.states.swapped),
        wait(swap.file_wait_us),
        cost.unwrap_or_default(),
        left_to_disks.unwrap_or_default(),
        counters.out,
        counters.came_back(),
        with_unit(swap.zipped_per_s),
        with_unit(swap.unzipped_per_s),
        with_unit(swap.written_per_s),
        with_unit(swap.read_per_s),
    )
}

fn pages(vm: &VmView) -> String {
    let shown = vm.states.iter().filter(|(_, bytes)| *bytes > 0);
    shown
        .map(|(state, bytes)| format!("{} {}", with_unit(bytes), state.name()))
        .collect::<Vec<_>>()
        .join(", ")
}

fn vm_sharing(sharing: &VmSharingView) -> String {
    if let Some(problem) = &sharing.problem {
        return format!("none: {problem}");
    }
    format!(
        "{} shared (its part of the frames: {}), {} zero, {} broken; {} of {} areas; {} passes; {} merges/s, {} breaks/s",
        with_unit(sharing.shared_bytes),
        with_unit(sharing.charge_bytes),
        with_unit(sharing.zero_bytes),
        with_unit(sharing.broken_bytes),
        sharing.areas,
        sharing.areas_limit,
        sharing.passes,
        sharing.merges_per_s,
        sharing.breaks_per_s,
    )
}

fn working_set(vm: &VmView) -> String {
    let Some(uses) = vm.working_set else {
        return "not known yet".into();
    };
    format!(
        "{} ({} to {} with 95 % confidence; the policy takes it for {}), writes to {}; %ACTV {} %ACTVS {} %ACTVF {}; {} pages watched{}",
        with_unit(uses.estimate_bytes),
        with_unit(uses.low_bytes),
        with_unit(uses.high_bytes),
        with_unit(uses.believed_bytes),
        with_unit(uses.written_bytes),
        uses.actv_percent,
        uses.actvs_percent,
        uses.actvf_percent,
        uses.samples,
        vm.idle_tax_permille
            .map_or_else(String::new, |tax| format!("; idle tax {tax}")),
    )
}

fn balloon(vm: &VmView) -> String {
    if !vm.balloon.has_driver {
        return "the guest has no driver for it yet".into();
    }
    format!(
        "{} of {} wanted",
        with_unit(vm.balloon.held),
        with_unit(vm.balloon.target)
    )
}

fn traffic(vm: &VmView) -> String {
    let counters = vm.balloon.counters;
    format!(
        "{} pages in, {} out, {} reported free, {} touched without telling; refused: {} outside RAM, {} repeated, {} malformed",
        counters.inflated,
        counters.deflated,
        counters.reported,
        counters.popped,
        counters.outside,
        counters.repeated,
        counters.malformed
    )
}

/// A disk in a line.
pub(super) fn disk(disk: &DiskView) -> String {
    let counters = disk.counters;
    let manners = [
        (disk.read_only, ", read only"),
        (disk.direct, ", direct"),
        (disk.raw, ", raw"),
    ];
    let manners = manners.iter().filter(|(has_it, _)| *has_it);
    let errors = match &disk.last_error {
        Some(error) => format!("{} errors, the last: {error}", counters.errors),
        None => format!("{} errors", counters.errors),
    };
    format!(
        "{}, {}{}: {} reads ({}), {} writes ({}), {} flushes, {} discards, {} zeroings; {errors}; refused: {}, {} malformed",
        disk.path.display(),
        with_unit(disk.size_bytes),
        manners.map(|(_, word)| *word).collect::<String>(),
        counters.reads,
        with_unit(counters.read_bytes),
        counters.writes,
        with_unit(counters.written_bytes),
        counters.flushes,
        counters.discards,
        counters.zeroings,
        counters.refused,
        counters.malformed,
    )
}

/// A network card in a line.
pub(super) fn network(net: &NetView) -> String {
    let NetView {
        tap, mac, counters, ..
    } = net;
    if !net.has_driver {
        return format!("{tap}, {mac}: the guest has no driver for it yet");
    }
    format!(
        "{tap}, {mac}: {} packets in ({}), {} out ({}); dropped: {} without room, {} unwanted; refused: {} too long, {} bad headers, {} by the tap, {} malformed",
        counters.received_packets,
        with_unit(counters.received_bytes),
        counters.sent_packets,
        with_unit(counters.sent_bytes),
        counters.received_no_room,
        counters.received_unwanted,
        counters.sent_too_long,
        counters.sent_bad_header,
        counters.sent_refused,
        counters.malformed,
    )
}

fn state(vm: &VmView) -> &'static str {
    match vm.phase {
        VmPhase::Waiting => "waiting",
        VmPhase::Starting => "starting",
        VmPhase::Stopping => "stopping",
        VmPhase::Running if !vm.responding => "silent",
        VmPhase::Running if vm.paused => "paused",
        VmPhase::Running if vm.stale => "stale",
        VmPhase::Running if !vm.credible => "doubtful",
        VmPhase::Running if vm.blocked_permille > 0 => "blocked",
        VmPhase::Running => "running",
    }
}

/// What the VM holds, up to its target, of its size: `###-....`.
fn bar(vm: &VmView) -> String {
    const WIDTH: u64 = 8;
    let cells = |bytes: u64| (bytes * WIDTH).div_ceil(vm.size_bytes.max(1)).min(WIDTH);
    let held = cells(vm.memory_file_bytes);
    let target = cells(vm.target_bytes).max(held);
    (0..WIDTH)
        .map(|cell| match cell {
            cell if cell < held => '#',
            cell if cell < target => '-',
            _ => '.',
        })
        .collect()
}

fn mebibytes(bytes: u64) -> String {
    (bytes.saturating_add(1 << 19) >> 20).to_string()
}

fn with_unit(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + (1 << 19)) >> 20;
    if tenths.is_multiple_of(10) {
        format!("{} MiB", tenths / 10)
    } else {
        format!("{}.{} MiB", tenths / 10, tenths % 10)
    }
}

fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds are shown"
    )]
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Columns under a header.
pub(super) fn aligned(header: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    let mut rows = vec![row(header)];
    rows.extend(lines);
    align(&rows)
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

/// Columns as wide as their widest cell; numbers to the right.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let number = |column: usize| {
        rows.iter()
            .skip(1)
            .any(|row| row[column].starts_with(|c: char| c.is_ascii_digit()) && column > 0)
    };
    let numbers: Vec<bool> = (0..columns).map(number).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if numbers[column] {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sharing::NotCompared;

    #[test]
    fn columns_line_up_with_numbers_to_the_right() {
        let rows = [
            row(&["NAME", "SIZE"]),
            row(&["a", "5"]),
            row(&["longer", "512"]),
        ];
        assert_eq!(align(&rows), "NAME    SIZE\na          5\nlonger   512\n");
    }

    #[test]
    fn those_that_wait_to_be_admitted_are_told_with_the_reason() {
        let large = QueuedView {
            name: "large".parse().unwrap(),
            memory_bytes: 128 << 20,
            waited_s: 72,
            why: "there is no room".into(),
        };
        let told = "large (128 MiB) has waited for 1m12s: there is no room\n";
        assert_eq!(queue(&[large]), told);
    }

    #[test]
    fn an_audit_that_left_vms_out_says_so_in_its_first_line() {
        let mut found = Audit {
            vms: 2,
            ..Audit::default()
        };
        assert!(audit(&found).starts_with("2 VMs, "));
        found.not_compared.push(NotCompared {
            name: "web".into(),
            why: "its agent does not answer".into(),
        });
        let told = audit(&found);
        assert!(told.starts_with("2 of 3 VMs compared, "), "{told}");
        assert!(
            told.ends_with("  web was not compared: its agent does not answer\n"),
            "{told}"
        );
    }

    #[test]
    fn tokens_are_told_with_their_times() {
        let token = |name: &str, role, expires_ms, used_ms, kept| TokenView {
            name: name.into(),
            role,
            made_ms: 10_000,
            expires_ms,
            used_ms,
            valid: expires_ms.is_none_or(|at| at > 70_000),
            kept,
        };
        let told = tokens(
            &[
                token("ci", api::Role::Operate, Some(160_000), Some(65_000), true),
                token("host", api::Role::Admin, None, None, false),
                token("old", api::Role::Read, Some(60_000), None, true),
            ],
            70_000,
        );
        let words: Vec<Vec<&str>> = told
            .lines()
            .map(|line| line.split("  ").collect())
            .collect();
        let cells = |line: usize| {
            let cells = words[line].iter().map(|cell| cell.trim());
            cells.filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(
            cells(1),
            ["ci", "operate", "1m00s ago", "in 1m30s", "5s ago"]
        );
        assert_eq!(
            cells(2),
            ["host", "admin", "1m00s ago", "with the host", "-"]
        );
        assert_eq!(cells(3), ["old", "read", "1m00s ago", "worth nothing", "-"]);
    }

    #[test]
    fn sizes_and_times_read_at_a_glance() {
        assert_eq!(with_unit(512 << 20), "512 MiB");
        assert_eq!(with_unit((3 << 20) + (1 << 19)), "3.5 MiB");
        assert_eq!(duration(61.9), "1m01s");
    }
}
