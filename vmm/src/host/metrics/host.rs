//! Metrics of the host.

use super::metric::{Labels, Metric};
use api::{Figures, HOST_FIGURES, Reading};
use policy::MemoryState;

/// Over which time an average goes, in the order in which the figures have them.
const OVERCOMMIT_WINDOWS: [&str; 3] = ["1m", "5m", "15m"];

pub(super) fn metrics(figures: &Figures) -> Vec<Metric> {
    let host = &figures.host;
    let shared = host.pshare_common + host.pool + host.overhead;
    let uses = [
        ("guests", host.pmem_used.saturating_sub(shared)),
        ("common", host.pshare_common),
        ("pool", host.pool),
        ("overhead", host.overhead),
        ("free", host.pmem_free),
    ];
    let states = MemoryState::ALL.map(|state| {
        let is_now = host.state == Some(state);
        (one("state", state), Reading::Flag(is_now))
    });
    let below = host.state_below.unwrap_or_default();
    let thresholds = [
        ("clear", below.clear),
        ("soft", below.soft),
        ("hard", below.hard),
        ("low", below.low),
    ];
    let overcommit = OVERCOMMIT_WINDOWS.into_iter().zip(host.overcommit_avg);
    let mut metrics = Metric::of_table(HOST_FIGURES, &[(Labels::new(), host)]);
    metrics.extend([
        Metric::gauge(
            "host_memory",
            "Machine memory by use: adds up to the budget",
            uses.map(|(word, bytes)| (one("use", word), Reading::Size(bytes))),
        ),
        Metric::gauge(
            "host_overcommit",
            "Configured memory over the budget, less one: averages",
            overcommit.map(|(window, average)| (one("window", window), Reading::Ratio(average))),
        ),
        Metric::gauge(
            "host_memory_state",
            "How short memory is: the state that holds is 1",
            states,
        ),
        Metric::gauge(
            "host_state_threshold",
            "Free memory below which each state of memory begins; clear's is what should be free (minfree)",
            thresholds.map(|(state, bytes)| (one("state", state), Reading::Size(bytes))),
        ),
        Metric::total(
            "host_publications",
            "Which look at the machine these figures are: the same number as in the API",
            [(Labels::new(), Reading::Number(figures.publication))],
        ),
    ]);
    metrics
}

fn one(label: &'static str, value: impl ToString) -> Labels {
    vec![(label, value.to_string())]
}
