//! From a scenario to the runs that it takes: every combination of what varies, as often as wanted, each
//! with a host, and with what happens at which time.
//!
//! The last variation varies fastest, and every second repetition goes backwards, so that two runs that
//! are compared lie next to each other and what drifts (heat, neighbours) hits both alike.

use super::active::Active;
use super::scenario::{
    HostText, MOST_COPIES, MOST_RUNS, PhaseText, Places, Problem, Scenario, ScenarioError, VmText,
};
use super::setting::{Setting, Value, Values};
use crate::api::{HostChange, RunRequest, ScanPriority, VmChange, VmIdleTax};
use crate::name::VmName;
use crate::protocol::OnHostDeath;
use crate::size::Size;
use page::PageCount;
use policy::{PERIOD_RANGE_S, REBALANCE_INTERVAL, SAMPLE_PERIOD, SharesSpec, TaxRate, VmSettings};
use serde::Serialize;
use sharing::RateSettings;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Time between rounds, unless a scenario says otherwise.
const INTERVAL_MS: u32 = 1000;

/// What the variations are in a run, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Combination(pub Vec<(String, String)>);

impl Combination {
    /// The value of a variation.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        pairs
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether all that is asked for is so.
    #[must_use]
    pub fn has(&self, conditions: &BTreeMap<String, Value>) -> bool {
        conditions
            .iter()
            .all(|(name, value)| self.get(name) == Some(&value.0))
    }

    /// The same with some variations left out.
    #[must_use]
    pub fn without(&self, left_out: impl Fn(&str) -> bool) -> Self {
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
    /// Its host.
    pub host: PlannedHost,
    /// What happens, in order.
    pub events: Vec<Event>,
}

/// A host, but for its folder.
#[derive(Clone, Debug)]
pub struct PlannedHost {
    pub budget: PageCount,
    pub sharing: bool,
    pub idle_tax: TaxRate,
    pub sample_period: Duration,
    pub rebalance_interval: Duration,
    pub interval: Duration,
    pub rates: RateSettings,
    pub scan_priority: ScanPriority,
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
            runs.push(run(scenario, Places::new(text), repetition, combination)?);
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
    let host = host(&scenario.host, &values).map_err(ScenarioError::Host)?;
    let mut events = Vec::new();
    let mut names = Vec::new();
    for vm in &scenario.vms {
        let text = vm.get_ref();
        if !combination.has(&text.only) {
            continue;
        }
        let planned = vms(text, &values, &combination).map_err(places.at("vm", vm))?;
        let at = Duration::from_secs_f64(text.start_s);
        for vm in planned {
            names.push((text.name.clone(), vm.name.clone()));
            let action = Action::Start(Box::new(vm));
            events.push(Event { at, action });
        }
    }
    for phase in &scenario.phases {
        let actions =
            actions(phase.get_ref(), &names, &values).map_err(places.at("phase", phase))?;
        let at = Duration::from_secs_f64(phase.get_ref().at_s);
        events.extend(actions.into_iter().map(|action| Event { at, action }));
    }
    // Stable: what is written first happens first.
    events.sort_by_key(|event| event.at);
    Ok(Run {
        repetition,
        combination,
        host,
        events,
    })
}

/// A field's value in a run.
fn get<T: FromStr<Err: fmt::Display>>(
    field: &'static str,
    setting: &Setting<T>,
    values: &Values,
) -> Result<T, Problem> {
    setting
        .resolve(values)
        .map_err(|why| Problem::Setting { field, why })
}

/// The same of one that may be absent.
fn get_if<T: FromStr<Err: fmt::Display>>(
    field: &'static str,
    setting: Option<&Setting<T>>,
    values: &Values,
) -> Result<Option<T>, Problem> {
    setting
        .map(|setting| get(field, setting, values))
        .transpose()
}

/// The same as pages.
fn pages_if(
    field: &'static str,
    setting: Option<&Setting<Size>>,
    values: &Values,
) -> Result<Option<PageCount>, Problem> {
    Ok(get_if(field, setting, values)?.map(|Size(pages)| pages))
}

fn host(text: &HostText, values: &Values) -> Result<PlannedHost, Problem> {
    let default = RateSettings::default();
    let scan = |field, setting: &Option<Setting<u64>>, otherwise| {
        Ok::<u64, Problem>(get_if(field, setting.as_ref(), values)?.unwrap_or(otherwise))
    };
    let rates = RateSettings {
        pass_s: scan("pass_s", &text.scan.pass_s, default.pass_s)?,
        vm_pages_per_s: scan(
            "vm_pages_per_s",
            &text.scan.vm_pages_per_s,
            default.vm_pages_per_s,
        )?,
        host_pages_per_s: scan(
            "host_pages_per_s",
            &text.scan.host_pages_per_s,
            default.host_pages_per_s,
        )?,
        core_share_permille: scan(
            "core_share_permille",
            &text.scan.core_share_permille,
            default.core_share_permille,
        )?,
        ..default
    };
    let interval_ms = get_if("interval_ms", text.interval_ms.as_ref(), values)?;
    let seconds = |field, setting: &Option<Setting<u32>>, default: Duration| {
        let default = u32::try_from(default.as_secs()).unwrap_or(u32::MAX);
        let (least, most) = PERIOD_RANGE_S.into_inner();
        let seconds = get_if(field, setting.as_ref(), values)?.unwrap_or(default);
        Ok::<_, Problem>(Duration::from_secs(
            within(field, seconds, least, most)?.into(),
        ))
    };
    Ok(PlannedHost {
        budget: get("memory", &text.memory, values)?.0,
        sharing: get_if("sharing", text.sharing.as_ref(), values)?.unwrap_or(true),
        idle_tax: get_if("idle_tax", text.idle_tax.as_ref(), values)?.unwrap_or_default(),
        sample_period: seconds("sample_period_s", &text.sample_period_s, SAMPLE_PERIOD)?,
        rebalance_interval: seconds(
            "rebalance_interval_s",
            &text.rebalance_interval_s,
            REBALANCE_INTERVAL,
        )?,
        interval: Duration::from_millis(
            within(
                "interval_ms",
                interval_ms.unwrap_or(INTERVAL_MS),
                50,
                60_000,
            )?
            .into(),
        ),
        rates,
        scan_priority: text.scan.priority.unwrap_or_default(),
    })
}

fn within(field: &'static str, value: u32, least: u32, most: u32) -> Result<u32, Problem> {
    match (least..=most).contains(&value) {
        true => Ok(value),
        false => Err(Problem::Value {
            field,
            value: value.to_string(),
            wanted: format!("{least} to {most}"),
        }),
    }
}

/// A VM, or several alike.
fn vms(
    text: &VmText,
    values: &Values,
    combination: &Combination,
) -> Result<Vec<PlannedVm>, Problem> {
    let names = match get_if("count", text.count.as_ref(), values)? {
        None => vec![text.name.clone()],
        Some(count) => {
            let count = within("count", count, 0, MOST_COPIES)?;
            let name = |number| VmName::try_from(format!("{}-{number}", text.name));
            let names = (1..=count).map(name);
            names
                .collect::<Result<_, _>>()
                .map_err(|_long| Problem::Value {
                    field: "name",
                    value: text.name.to_string(),
                    wanted: "a shorter one, as numbers follow it".into(),
                })?
        }
    };
    names
        .into_iter()
        .map(|name| vm(name, text, values, combination))
        .collect()
}

fn vm(
    name: VmName,
    text: &VmText,
    values: &Values,
    combination: &Combination,
) -> Result<PlannedVm, Problem> {
    let Size(size) = get("memory", &text.memory, values)?;
    let min = pages_if("min", text.min.as_ref(), values)?;
    let max = pages_if("max", text.max.as_ref(), values)?;
    let shares = get_if("shares", text.shares.as_ref(), values)?.unwrap_or(SharesSpec::Normal);
    VmSettings::new(size, min, max, shares).map_err(|why| Problem::Settings {
        variation: format!("VM '{name}' {combination}").trim_end().into(),
        why,
    })?;
    let workload = get_if("workload", text.workload.as_ref(), values)?;
    let workload = workload.map_or_else(|| "idle".into(), |workload| workload.0);
    let active = get_if("active", text.active.as_ref(), values)?;
    let idle_tax = get_if("idle_tax", text.idle_tax.as_ref(), values)?;
    Ok(PlannedVm {
        request: RunRequest {
            name: Some(name.clone()),
            memory_bytes: size.bytes(),
            vcpus: get_if("vcpus", text.vcpus.as_ref(), values)?,
            min_bytes: min.map(PageCount::bytes),
            max_bytes: max.map(PageCount::bytes),
            shares: Some(shares),
            trust_group: get_if("trust_group", text.trust_group.as_ref(), values)?,
            workload: Some(workload.clone()),
            on_host_death: OnHostDeath::Stop,
            ..RunRequest::default()
        },
        name,
        disk: pages_if("disk", text.disk.as_ref(), values)?,
        order: Order {
            active: Some(active.unwrap_or_else(|| Active::of_workload(&workload))),
            change: VmChange {
                idle_tax: idle_tax.map(VmIdleTax::Permille),
                ..VmChange::default()
            },
            hold: pages_if("hold", text.hold.as_ref(), values)?,
            ..Order::default()
        },
    })
}

fn actions(
    phase: &PhaseText,
    names: &[(VmName, VmName)],
    values: &Values,
) -> Result<Vec<Action>, Problem> {
    let Some(vm) = &phase.vm else {
        return Ok(vec![Action::ChangeHost(host_change(phase, values)?)]);
    };
    let order = order(phase, values)?;
    let meant = names
        .iter()
        .filter(|(group, name)| group == vm || name == vm);
    let tell = |(_, name): &(VmName, VmName)| Action::Tell(name.clone(), Box::new(order.clone()));
    Ok(meant.map(tell).collect())
}

fn host_change(phase: &PhaseText, values: &Values) -> Result<HostChange, Problem> {
    let memory = pages_if("memory", phase.memory.as_ref(), values)?;
    Ok(HostChange {
        memory_bytes: memory.map(PageCount::bytes),
        sharing: get_if("sharing", phase.sharing.as_ref(), values)?,
        idle_tax_permille: get_if("idle_tax", phase.idle_tax.as_ref(), values)?,
        sample_period_s: get_if("sample_period_s", phase.sample_period_s.as_ref(), values)?,
        rebalance_interval_s: get_if(
            "rebalance_interval_s",
            phase.rebalance_interval_s.as_ref(),
            values,
        )?,
        ..HostChange::default()
    })
}

fn order(phase: &PhaseText, values: &Values) -> Result<Order, Problem> {
    let workload = get_if("workload", phase.workload.as_ref(), values)?;
    let workload = workload.map(|workload| workload.0);
    let active = get_if("active", phase.active.as_ref(), values)?;
    let bytes = |field, setting: &Option<Setting<Size>>| {
        Ok::<_, Problem>(pages_if(field, setting.as_ref(), values)?.map(PageCount::bytes))
    };
    let idle_tax = get_if("idle_tax", phase.idle_tax.as_ref(), values)?;
    Ok(Order {
        active: active.or(workload.as_deref().map(Active::of_workload)),
        workload,
        change: VmChange {
            min_bytes: bytes("min", &phase.min)?,
            max_bytes: bytes("max", &phase.max)?,
            shares: get_if("shares", phase.shares.as_ref(), values)?,
            idle_tax: idle_tax.map(VmIdleTax::Permille),
        },
        hold: pages_if("hold", phase.hold.as_ref(), values)?,
        stop: phase.stop,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(runs[0].host.idle_tax, TaxRate::NONE);
        assert_eq!(runs[2].host.idle_tax, TaxRate::default());
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
