//! The report: all figures of the guest in one line of JSON.

use core::fmt;

use crate::balloon;
use crate::workload::Counters;
use crate::workload::spec::Spec;

/// The figures of a guest. Memory is in pages, counters are since boot.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The guest's identity.
    pub guest: u32,
    /// Time since boot.
    pub uptime_ms: u64,
    /// Processors that work.
    pub cpus: u32,
    /// The workload that runs.
    pub workload: Spec,
    /// Pages that the guest manages, wherever they are.
    pub pages_total: u32,
    /// Pages that are free.
    pub pages_free: u32,
    /// Pages that the workload holds.
    pub held: u32,
    /// How long after its start it held more than before for the last time.
    pub grown_us: u64,
    /// The longest time in which the guest stood still since the report before.
    pub pause_us: u64,
    /// The balloon's figures; zero without one.
    pub balloon: balloon::Figures,
    /// What workloads have done.
    pub counters: Counters,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            guest,
            uptime_ms,
            cpus,
            workload,
            pages_total,
            pages_free,
            held,
            grown_us,
            pause_us,
            balloon,
            counters,
        } = self;
        // A workload's text has no character that JSON would want escaped.
        write!(
            f,
            "report {{\"guest\":{guest},\"uptime_ms\":{uptime_ms},\"workload\":\"{workload}\""
        )?;
        let figures: [(&str, u64); 32] = [
            ("cpus", u64::from(*cpus)),
            ("pages_total", u64::from(*pages_total)),
            ("pages_free", u64::from(*pages_free)),
            ("balloon_target", u64::from(balloon.target)),
            ("balloon_actual", u64::from(balloon.actual)),
            ("balloon_change_pages", u64::from(balloon.last_change.pages)),
            ("balloon_change_us", balloon.last_change.us),
            ("oom_deflated", balloon.oom_deflated),
            ("reported", balloon.reported),
            ("checks", counters.checks),
            ("errors", counters.errors),
            ("leaks", counters.leaks),
            ("held", u64::from(*held)),
            ("grown_us", *grown_us),
            ("pause_us", *pause_us),
            ("touches", counters.touches),
            ("touches_written", counters.touches_written),
            ("rewritten", counters.rewritten),
            ("breaks", counters.breaks),
            ("break_writes", counters.last_break.writes),
            ("break_p50_ns", counters.last_break.p50_ns),
            ("break_p99_ns", counters.last_break.p99_ns),
            ("break_max_ns", counters.last_break.max_ns),
            ("break_total_us", counters.last_break.total_us),
            ("break_elapsed_us", counters.last_break.elapsed_us),
            ("operations", counters.operations),
            ("read_bytes", counters.read_bytes),
            ("written_bytes", counters.written_bytes),
            ("hits", counters.hits),
            ("misses", counters.misses),
            ("disk_errors", counters.disk_errors),
            ("transactions", counters.transactions),
        ];
        for (name, value) in figures {
            write!(f, ",\"{name}\":{value}")?;
        }
        for (name, latencies) in [
            ("operation_time", &counters.operation_time),
            ("transaction_time", &counters.transaction_time),
        ] {
            // A console is slow, and most workloads have none.
            if !latencies.buckets().is_empty() {
                write!(f, ",\"{name}\":{:?}", latencies.buckets())?;
            }
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_report_is_one_line_of_json() {
        let report = Report {
            guest: 3,
            uptime_ms: 1500,
            cpus: 2,
            workload: Spec::parse("verify").unwrap(),
            pages_total: 10,
            pages_free: 4,
            held: 5,
            grown_us: 6,
            pause_us: 8,
            balloon: balloon::Figures {
                target: 1,
                actual: 1,
                ..Default::default()
            },
            counters: Counters {
                checks: 7,
                ..Default::default()
            },
        };
        let text = report.to_string();
        assert!(text.starts_with(
            "report {\"guest\":3,\"uptime_ms\":1500,\"workload\":\"verify:size=max,rate=20000,write=50,common=0\",\
             \"cpus\":2,\"pages_total\":10,\"pages_free\":4,\"balloon_target\":1,"
        ), "{text}");
        assert!(text.ends_with('}') && !text.contains('\n'));
    }
}
