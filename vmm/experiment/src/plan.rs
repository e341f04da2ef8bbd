//! From a scenario to the runs that it takes: every combination of what varies, as often as wanted, each
//! with a host, and with what happens at which time.
//!
//! The last variation varies fastest, and every second repetition goes backwards, so that two runs that
//! are compared lie next to each other and what drifts (heat, neighbours) hits both alike.

use super::active::Active;
use super::scenario::{
    HostText, MOST_COPIES, MOST_RUNS, PhaseText, Places, Problem, Scenario, ScenarioError, VmText,
    within,
};
use super::setting::{InvalidSetting, Setting, Value, Values};
use api::{HostChange, HostSettings, RunRequest, ScanChange, VmChange, VmIdleTax, VmKind};
use page::{PageCount, Size};
use policy::{SharesSpec, VmSettings};
use protocol::{OnHostDeath, VmName};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

impl Scenario {
    /// Reads a scenario and checks that its parts fit together.
    ///
    /// # Errors
    /// Names what is not understood, and where it stands.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario = Self::checked(text)?;
        plan(&scenario, text).map(|_| scenario)
    }
}

/// What the variations are in a run, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Combination(pub Vec<(String, String)>);

impl Combination {
    /// The value of a variation.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        pairs
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether all that is asked for is so.
    #[must_use]
    pub(crate) fn has(&self, conditions: &BTreeMap<String, Value>) -> bool {
        conditions
            .iter()
            .all(|(name, value)| self.get(name) == Some(&value.0))
    }

    /// The same with some variations left out.
    #[must_use]
    pub(crate) fn without(&self, left_out: impl Fn(&str) -> bool) -> Self {
        let pairs = self.0.iter().filter(|(name, _)| !left_out(name));
        Self(pairs.cloned().collect())
    }
}

/// As in `tau=25, way=born`; nothing if nothing varies.
impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{name}={value}")?;
        }
        Ok(())
    }
}

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Which repetition it belongs to, from 0 on.
    pub repetition: u32,
    /// What is varied in it.
    pub combination: Combination,
    /// Who runs its VMs.
    pub vmm: VmKind,
    /// Its host.
    pub host: PlannedHost,
    /// What happens, in order.
    pub events: Vec<Event>,
}

/// The host of a run.
#[derive(Clone, Debug)]
pub struct PlannedHost {
    /// What can be changed later.
    pub settings: HostSettings,
    /// Time between its rounds, if not the usual.
    pub interval: Option<Duration>,
}

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, after the beginning.
    pub at: Duration,
    /// What.
    pub action: Action,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Action {
    /// A VM starts.
    Start(Box<PlannedVm>),
    /// A VM is told something.
    Tell(VmName, Box<Order>),
    /// The host is changed.
    ChangeHost(HostChange),
}

/// What a VM is told. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Order {
    /// To do something else,
    pub workload: Option<String>,
    /// by which so much is active.
    pub active: Option<Active>,
    /// Other claims on memory.
    pub change: VmChange,
    /// A balloon that leaves it so much.
    pub hold: Option<PageCount>,
    /// To end.
    pub stop: bool,
}

/// A VM that is to start.
#[derive(Clone, Debug)]
pub struct PlannedVm {
    /// Its name.
    pub name: VmName,
    /// What the host is asked for; its disk is added when it is made.
    pub request: RunRequest,
    /// The size of that disk.
    pub disk: Option<PageCount>,
    /// What it is told at once.
    pub order: Order,
}

/// All runs of a scenario, in their order.
///
/// # Errors
/// Names what makes no sense in one of them, and where it stands in `text`.
pub fn plan(scenario: &Scenario, text: &str) -> Result<Vec<Run>, ScenarioError> {
    let combinations = combinations(scenario);
    let count = combinations
        .len()
        .saturating_mul(scenario.repetitions as usize);
    if count > MOST_RUNS {
        return Err(ScenarioError::TooManyRuns(count));
    }
    let mut runs = Vec::with_capacity(count);
    for repetition in 0..scenario.repetitions {
        let mut order = combinations.clone();
        if repetition % 2 == 1 {
            order.reverse();
        }
        for combination in order {
            let places = Places::new(text);
            let run = run(scenario, places, repetition, combination)?;
            if let Some((result, problem)) = scenario.unknown_claim(&run) {
                return Err(places.at("result", result)(problem));
            }
            runs.push(run);
        }
    }
    Ok(runs)
}

/// Every combination of the variations' values, the last varying fastest.
fn combinations(scenario: &Scenario) -> Vec<Combination> {
    let mut all = vec![Combination::default()];
    for variation in &scenario.variations {
        let variation = variation.get_ref();
        // One more than is allowed is enough to be refused.
        all.truncate(MOST_RUNS + 1);
        let extended = all.iter().flat_map(|combination| {
            variation.values.iter().map(|Value(value)| {
                let mut pairs = combination.0.clone();
                pairs.push((variation.name.clone(), value.clone()));
                Combination(pairs)
            })
        });
        all = extended.collect();
    }
    all
}

fn run(
    scenario: &Scenario,
    places: Places<'_>,
    repetition: u32,
    combination: Combination,
) -> Result<Run, ScenarioError> {
    let mut values: Values = combination.0.iter().cloned().collect();
    let seed = scenario.seed.saturating_add(repetition.into());
    values.insert("seed".into(), seed.to_string());
    let in_run = InRun(&values);
    let host = host(&scenario.host, in_run).map_err(ScenarioError::Host)?;
    let vmm = in_run.get_if("vmm", &scenario.vmm);
    let vmm = vmm.map_err(ScenarioError::Number)?.unwrap_or_default();
    let mut events = Vec::new();
    let mut names = Vec::new();
    for vm in &scenario.vms {
        let text = vm.get_ref();
        if !combination.has(&text.only) {
            continue;
        }
        let planned = vms(text, in_run, &combination).map_err(places.at("vm", vm))?;
        let at = Duration::from_secs_f64(text.start_s);
        for vm in planned {
            names.push((text.name.clone(), vm.name.clone()));
            let action = Action::Start(Box::new(vm));
            events.push(Event { at, action });
        }
    }
    for phase in &scenario.phases {
        let actions =
            actions(phase.get_ref(), &names, in_run).map_err(places.at("phase", phase))?;
        let at = Duration::from_secs_f64(phase.get_ref().at_s);
        events.extend(actions.into_iter().map(|action| Event { at, action }));
    }
    // Stable: what is written first happens first.
    events.sort_by_key(|event| event.at);
    Ok(Run {
        repetition,
        combination,
        vmm,
        host,
        events,
    })
}

/// The fields of a scenario as they are in a run.
#[derive(Clone, Copy)]
struct InRun<'a>(&'a Values);

impl InRun<'_> {
    fn get<T>(self, field: &'static str, setting: &Setting<T>) -> Result<T, Problem>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let value = setting.resolve(self.0);
        value.map_err(|why| Problem::Setting { field, why })
    }

    fn get_if<T>(
        self,
        field: &'static str,
        setting: &Option<Setting<T>>,
    ) -> Result<Option<T>, Problem>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let value = setting.as_ref().map(|setting| self.get(field, setting));
        value.transpose()
    }

    fn pages_if(
        self,
        field: &'static str,
        setting: &Option<Setting<Size>>,
    ) -> Result<Option<PageCount>, Problem> {
        Ok(self.get_if(field, setting)?.map(|Size(pages)| pages))
    }

    fn bytes_if(
        self,
        field: &'static str,
        setting: &Option<Setting<Size>>,
    ) -> Result<Option<u64>, Problem> {
        Ok(self.pages_if(field, setting)?.map(PageCount::bytes))
    }
}

fn host(text: &HostText, run: InRun<'_>) -> Result<PlannedHost, Problem> {
    let default = HostSettings::new(run.get("memory", &text.memory)?.0);
    let scan = &text.scan;
    let change = HostChange {
        memory_bytes: None,
        sharing: run.get_if("sharing", &text.sharing)?,
        large_pages: run.get_if("large_pages", &text.large_pages)?,
        compression: run.get_if("compression", &text.compression)?,
        scan: ScanChange {
            pass_s: run.get_if("pass_s", &scan.pass_s)?,
            vm_pages_per_s: run.get_if("vm_pages_per_s", &scan.vm_pages_per_s)?,
            host_pages_per_s: run.get_if("host_pages_per_s", &scan.host_pages_per_s)?,
            core_share_permille: run.get_if("core_share_permille", &scan.core_share_permille)?,
            priority: scan.priority,
        },
        idle_tax_permille: run.get_if("idle_tax", &text.idle_tax)?,
        sample_period_s: run.get_if("sample_period_s", &text.sample_period_s)?,
        rebalance_interval_s: run.get_if("rebalance_interval_s", &text.rebalance_interval_s)?,
    };
    let settings = default.with(&change);
    let settings = settings.map_err(|error| Problem::Setting {
        field: "host",
        why: InvalidSetting::Meaning(error.to_string()),
    })?;
    let interval = match run.get_if("interval_ms", &text.interval_ms)? {
        None => None,
        Some(ms) => Some(Duration::from_millis(
            within("interval_ms", ms, 50..=60_000)?.into(),
        )),
    };
    Ok(PlannedHost { settings, interval })
}

/// A VM, or several alike.
fn vms(
    text: &VmText,
    run: InRun<'_>,
    combination: &Combination,
) -> Result<Vec<PlannedVm>, Problem> {
    let names = match run.get_if("count", &text.count)? {
        None => vec![text.name.clone()],
        Some(count) => {
            let count = within("count", count, 0..=MOST_COPIES)?;
            let name = |number| VmName::try_from(format!("{}-{number}", text.name));
            let names = (1..=count).map(name);
            let wanted = "a shorter one, as numbers follow it";
            names
                .collect::<Result<_, _>>()
                .map_err(|_long| Problem::value("name", &text.name, wanted))?
        }
    };
    names
        .into_iter()
        .map(|name| vm(name, text, run, combination))
        .collect()
}

fn vm(
    name: VmName,
    text: &VmText,
    run: InRun<'_>,
    combination: &Combination,
) -> Result<PlannedVm, Problem> {
    let Size(size) = run.get("memory", &text.memory)?;
    let min = run.pages_if("min", &text.min)?;
    let max = run.pages_if("max", &text.max)?;
    let shares = run
        .get_if("shares", &text.shares)?
        .unwrap_or(SharesSpec::Normal);
    VmSettings::new(size, min, max, shares).map_err(|why| Problem::Settings {
        variation: format!("VM '{name}' {combination}").trim_end().into(),
        why,
    })?;
    let workload = run.get_if("workload", &text.workload)?;
    let workload = workload.map_or_else(|| "idle".into(), |workload| workload.0);
    let active = run.get_if("active", &text.active)?;
    let idle_tax = run.get_if("idle_tax", &text.idle_tax)?;
    Ok(PlannedVm {
        request: RunRequest {
            name: Some(name.clone()),
            memory_bytes: size.bytes(),
            vcpus: run.get_if("vcpus", &text.vcpus)?,
            min_bytes: min.map(PageCount::bytes),
            max_bytes: max.map(PageCount::bytes),
            shares: Some(shares),
            trust_group: run.get_if("trust_group", &text.trust_group)?,
            workload: Some(workload.clone()),
            on_host_death: OnHostDeath::Stop,
            ..RunRequest::default()
        },
        name,
        disk: run.pages_if("disk", &text.disk)?,
        order: Order {
            active: Some(active.unwrap_or_else(|| Active::of_workload(&workload))),
            change: VmChange {
                idle_tax: idle_tax.map(VmIdleTax::Permille),
                ..VmChange::default()
            },
            hold: run.pages_if("hold", &text.hold)?,
            ..Order::default()
        },
    })
}

fn actions(
    phase: &PhaseText,
    names: &[(VmName, VmName)],
    run: InRun<'_>,
) -> Result<Vec<Action>, Problem> {
    let Some(vm) = &phase.vm else {
        return Ok(vec![Action::ChangeHost(host_change(phase, run)?)]);
    };
    let order = order(phase, run)?;
    let meant = names
        .iter()
        .filter(|(group, name)| group == vm || name == vm);
    let tell = |(_, name): &(VmName, VmName)| Action::Tell(name.clone(), Box::new(order.clone()));
    Ok(meant.map(tell).collect())
}

fn host_change(phase: &PhaseText, run: InRun<'_>) -> Result<HostChange, Problem> {
    Ok(HostChange {
        memory_bytes: run.bytes_if("memory", &phase.memory)?,
        sharing: run.get_if("sharing", &phase.sharing)?,
        large_pages: run.get_if("large_pages", &phase.large_pages)?,
        idle_tax_permille: run.get_if("idle_tax", &phase.idle_tax)?,
        sample_period_s: run.get_if("sample_period_s", &phase.sample_period_s)?,
        rebalance_interval_s: run.get_if("rebalance_interval_s", &phase.rebalance_interval_s)?,
        ..HostChange::default()
    })
}

fn order(phase: &PhaseText, run: InRun<'_>) -> Result<Order, Problem> {
    let workload = run.get_if("workload", &phase.workload)?;
    let workload = workload.map(|workload| workload.0);
    let active = run.get_if("active", &phase.active)?;
    let idle_tax = run.get_if("idle_tax", &phase.idle_tax)?;
    Ok(Order {
        active: active.or(workload.as_deref().map(Active::of_workload)),
        workload,
        change: VmChange {
            min_bytes: run.bytes_if("min", &phase.min)?,
            max_bytes: run.bytes_if("max", &phase.max)?,
            shares: run.get_if("shares", &phase.shares)?,
            idle_tax: idle_tax.map(VmIdleTax::Permille),
            large_pages: None,
        },
        hold: run.pages_if("hold", &phase.hold)?,
        stop: phase.stop,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::TaxRate;

    const TWO_BY_TWO: &str = r#"
        name = "x"
        title = "x"
        seconds = 10
        repetitions = 2
        seed = 5
        [host]
        memory = "256M"
        idle_tax = "$tau"
        [[variation]]
        name = "tau"
        values = [0, 75]
        [[variation]]
        name = "way"
        values = ["one", "two"]
        [[vm]]
        name = "a"
        memory = "64M"
        workload = "clone:seed=$seed"
        only = { way = "one" }
        [[vm]]
        name = "b"
        count = 2
        memory = "64M"
        start_s = 2
        [[phase]]
        at_s = 1
        idle_tax = 50
        [[phase]]
        at_s = 4
        vm = "b"
        workload = "toucher:size=8M"
    "#;

    fn planned(text: &str) -> Vec<Run> {
        plan(&Scenario::parse(text).unwrap(), text).unwrap()
    }

    fn started(run: &Run) -> Vec<String> {
        let names = run.events.iter().filter_map(|event| match &event.action {
            Action::Start(vm) => Some(vm.name.to_string()),
            _ => None,
        });
        names.collect()
    }

    #[test]
    fn every_combination_is_run_and_every_second_repetition_goes_backwards() {
        let runs = planned(TWO_BY_TWO);
        let combinations: Vec<String> =
            runs.iter().map(|run| run.combination.to_string()).collect();
        let forth = [
            "tau=0, way=one",
            "tau=0, way=two",
            "tau=75, way=one",
            "tau=75, way=two",
        ];
        assert_eq!(combinations[..4], forth);
        let back: Vec<&str> = forth.into_iter().rev().collect();
        assert_eq!(combinations[4..], back);
        let repetitions: Vec<u32> = runs.iter().map(|run| run.repetition).collect();
        assert_eq!(repetitions, [0, 0, 0, 0, 1, 1, 1, 1]);
    }

    #[test]
    fn a_variation_reaches_the_host_the_vms_and_their_seed() {
        let runs = planned(TWO_BY_TWO);
        assert_eq!(runs[0].host.settings.idle_tax, TaxRate::NONE);
        assert_eq!(runs[2].host.settings.idle_tax, TaxRate::default());
        assert_eq!(started(&runs[0]), ["a", "b-1", "b-2"]);
        assert_eq!(started(&runs[1]), ["b-1", "b-2"]);
        let seed = |run: &Run| match &run.events[0].action {
            Action::Start(vm) => vm.request.workload.clone().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(seed(&runs[0]), "clone:seed=5");
        assert_eq!(seed(&runs[5]), "clone:seed=6");
    }

    #[test]
    fn events_are_in_order_and_reach_all_copies() {
        let run = planned(TWO_BY_TWO).swap_remove(0);
        let times: Vec<u64> = run.events.iter().map(|event| event.at.as_secs()).collect();
        assert_eq!(times, [0, 1, 2, 2, 4, 4]);
        let Action::Tell(name, order) = &run.events[5].action else {
            panic!("{:?}", run.events[5]);
        };
        assert_eq!(name.as_str(), "b-2");
        assert_eq!(
            order.active,
            Some(Active::Pages(PageCount::from_mebibytes(8)))
        );
    }
}
