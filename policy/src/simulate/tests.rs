//! What the policy does to whole loads.

use super::*;
use crate::{BalloonHealth, SharesSpec, TaxRate};
use proptest::prelude::*;
use std::iter;

fn vm(name: &str, size_mib: u64, phases: &[(u32, u64)]) -> VmModel {
    let phase = |&(at_s, working_set_mib)| Phase {
        at_s,
        working_set_mib,
        touched_percent_per_s: 100,
        write_percent: 20,
    };
    VmModel {
        name: name.into(),
        count: 1,
        size_mib,
        min_mib: None,
        max_mib: None,
        shares: SharesSpec::Normal,
        idle_tax_permille: None,
        start_s: 0,
        apart_s: 0,
        life_s: None,
        driver: Driver::Willing,
        leaves: Leaves::Cache,
        phases: phases.iter().map(phase).collect(),
    }
}

fn scenario(seconds: u32, memory_mib: u64, vms: Vec<VmModel>) -> Scenario {
    Scenario {
        seed: 1,
        seconds,
        record_every_s: 1,
        measured_from_s: 0,
        host: HostModel {
            memory_mib,
            idle_tax_permille: TaxRate::default(),
            scale: crate::Scale::Sliding,
            swap_mib: 0,
            sample_period_s: 30,
            rebalance_interval_s: 15,
            balloon: crate::BalloonSettings::default(),
            swap_order: SwapOrder::Proportional,
            swap_fault_us: 100,
            proxmox: ProxmoxSettings::default(),
        },
        vms,
    }
}

fn run(scenario: &Scenario) -> Trace {
    simulate(scenario, Rules::Ours).unwrap()
}

fn at(trace: &Trace, vm: usize, at_s: u32) -> VmPoint {
    let mut points = trace.vms[vm].points.iter();
    *points.find(|point| point.at_s == at_s).unwrap()
}

/// The last so many seconds, on average.
fn throughput(trace: &Trace, vm: usize, seconds: usize) -> u64 {
    let points = trace.vms[vm].points.iter().rev().take(seconds);
    points.map(|point| point.throughput_permille).sum::<u64>() / seconds as u64
}

/// The paper's Figure 7: two VMs of 256 MiB with equal shares in about 360 MiB, one of which has gone idle.
fn figure_7(tax_permille: u16) -> Trace {
    let idle = vm("idle", 256, &[(0, 220), (60, 8)]);
    let busy = vm("busy", 256, &[(0, 220)]);
    let mut scenario = scenario(600, 400, vec![idle, busy]);
    scenario.host.idle_tax_permille = TaxRate::from_permille(tax_permille).unwrap();
    run(&scenario)
}

#[test]
fn the_idle_tax_speeds_a_busy_vm_up_by_what_an_idle_one_leaves() {
    let (without, with) = (figure_7(0), figure_7(750));
    let last = |trace: &Trace, vm| at(trace, vm, 599);
    assert!(last(&without, 0).held.0.abs_diff(last(&without, 1).held.0) <= 1);
    assert!(last(&with, 1).held > last(&with, 1).working_set);
    assert!(last(&with, 0).held >= PageCount::from_mebibytes(89));
    let gain = throughput(&with, 1, 60) * 100 / throughput(&without, 1, 60);
    assert!(gain > 130, "{gain} %");
    assert_eq!(
        throughput(&with, 0, 60),
        1000,
        "the idle one does not notice"
    );
}

#[test]
fn a_vm_that_wakes_up_has_its_working_set_back_within_two_periods() {
    let sleeper = vm("sleeper", 512, &[(0, 300), (60, 4), (600, 300)]);
    let other = vm("other", 512, &[(0, 300), (500, 4)]);
    let trace = run(&scenario(700, 640, vec![sleeper, other]));
    assert!(at(&trace, 0, 590).held < PageCount::from_mebibytes(300));
    let awake = at(&trace, 0, 660);
    assert!(awake.held >= awake.working_set, "{awake:?}");
}

#[test]
fn what_is_believed_to_be_active_is_what_is() {
    let trace = run(&scenario(
        400,
        600,
        vec![vm("a", 400, &[(0, 200)]), vm("b", 400, &[(0, 40)])],
    ));
    let active = |vm| at(&trace, vm, 399).active.unwrap();
    let (a, b) = (
        PageCount::from_mebibytes(200),
        PageCount::from_mebibytes(40),
    );
    assert!(active(0).low <= a && a <= active(0).high, "{:?}", active(0));
    assert!(active(1).low <= b && b <= active(1).high, "{:?}", active(1));
}

#[test]
fn a_guest_that_gives_nothing_up_is_found_out_and_breaks_nothing() {
    let mut driverless = vm("driverless", 512, &[(0, 480), (30, 4)]);
    driverless.driver = Driver::Absent;
    let mut late = vm("late", 512, &[(0, 400)]);
    late.start_s = 60;
    let scenario = scenario(300, 760, vec![driverless, late]);
    let trace = run(&scenario);
    assert_eq!(at(&trace, 0, 299).balloon, BalloonHealth::Stuck);
    assert!(trace.host[299].by_other_means > PageCount::ZERO);
    assert!(at(&trace, 1, 299).held >= PageCount::from_mebibytes(512 * 35 / 100));
    assert!(trace.most_exposed <= PageCount::from_mebibytes(760));
}

#[test]
fn a_host_that_has_promised_everything_is_short_and_blocks_nobody() {
    let mut full = vm("full", 200, &[(0, 190)]);
    full.min_mib = Some(200);
    full.count = 3;
    let trace = run(&scenario(120, 3 * 206, vec![full.clone(), full]));
    assert_eq!(trace.refused.len(), 3);
    assert!(trace.refused[0].why.contains("the budget is 618 MiB"));
    assert_eq!(trace.host[119].state, MemoryState::Low);
    assert_eq!(trace.host[119].throughput_permille, 1000);
    assert!(
        trace
            .vms
            .iter()
            .flat_map(|vm| &vm.points)
            .all(|point| !point.is_blocked)
    );
}

#[test]
fn memory_follows_activity_from_vm_to_vm() {
    let busy_at = |turn: u32| {
        vm(
            &format!("vm-{turn}"),
            256,
            &[(0, 4), (turn * 300, 200), (turn * 300 + 300, 4)],
        )
    };
    let trace = run(&scenario(1200, 560, (0..4).map(busy_at).collect()));
    for turn in 0..4usize {
        let end = u32::try_from(turn).unwrap() * 300 + 290;
        let busy = at(&trace, turn, end);
        assert_eq!(busy.throughput_permille, 1000, "turn {turn}: {busy:?}");
    }
}

#[test]
fn thousands_of_vms_are_simulated_within_their_budget() {
    let sizes = [(128, 20), (256, 100), (512, 200), (1024, 900)];
    let many = |(size, used): (u64, u64)| VmModel {
        count: 500,
        ..vm(&format!("size-{size}"), size, &[(0, used), (40, used / 2)])
    };
    let memory_mib = 500 * (128 + 256 + 512 + 1024) / 2;
    let trace = run(&Scenario {
        record_every_s: 10,
        ..scenario(60, memory_mib, sizes.map(many).into())
    });
    let last = trace.host.last().unwrap();
    assert_eq!((last.running, last.waiting), (2000, 0));
    assert!(trace.most_exposed <= PageCount::from_mebibytes(memory_mib));
}

#[test]
fn a_scenario_is_read_as_people_write_it() {
    let scenario: Scenario = serde_json::from_str(
        r#"{
            "seconds": 90, "record_every_s": 30,
            "host": { "memory_mib": 300, "idle_tax_permille": 500, "scale": "paper" },
            "vms": [
                { "name": "web", "count": 2, "size_mib": 128, "shares": "high",
                  "phases": [{ "working_set_mib": 30 }, { "at_s": 60, "working_set_mib": 90 }] },
                { "name": "late", "size_mib": 64, "start_s": 31, "driver": "absent" }
            ]
        }"#,
    )
    .unwrap();
    let trace = run(&scenario);
    let names: Vec<&str> = trace.vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["web-1", "web-2", "late"]);
    let times = |vm: usize| {
        trace.vms[vm]
            .points
            .iter()
            .map(|point| point.at_s)
            .collect::<Vec<_>>()
    };
    assert_eq!((times(0), times(2)), (vec![0, 30, 60], vec![60]));
}

#[test]
fn a_scenario_that_makes_no_sense_is_refused_with_a_remedy() {
    let refused = |change: fn(&mut Scenario)| {
        let mut scenario = scenario(60, 400, vec![vm("a", 100, &[(0, 10), (30, 20)])]);
        change(&mut scenario);
        simulate(&scenario, Rules::Ours).unwrap_err().to_string()
    };
    assert!(refused(|scenario| scenario.seconds = 0).contains("seconds is 0"));
    assert!(refused(|scenario| scenario.vms[0].count = 30_000).contains("30000 VMs"));
    assert!(refused(|scenario| scenario.seconds = u32::MAX).contains("record_every_s"));
    assert!(
        refused(|scenario| scenario.vms[0].phases[0].at_s = 40).contains("\"a\" are not in order")
    );
    assert!(refused(|scenario| scenario.vms[0].size_mib = 0).contains("size is 0"));
    assert!(refused(|scenario| scenario.host.memory_mib = u64::MAX).contains("give less"));
    assert!(refused(|scenario| scenario.host.swap_fault_us = 0).contains("swap_fault_us is 0"));
    assert!(refused(|scenario| scenario.host.proxmox.every_s = 0).contains("proxmox.every_s is 0"));
}

/// `cargo nextest run -p policy --release --run-ignored only --no-capture`
#[test]
#[ignore = "a measurement, for a release build on a calm machine"]
fn measure_an_hour_of_a_thousand_vms() {
    let many = VmModel {
        count: 1000,
        apart_s: 1,
        ..vm("vm", 512, &[(0, 60), (600, 300), (1800, 10)])
    };
    let start = std::time::Instant::now();
    let trace = run(&Scenario {
        record_every_s: 60,
        ..scenario(3600, 300 * 1024, vec![many])
    });
    let last = trace.host.last().unwrap();
    println!(
        "an hour of 1,000 VMs: {} ms; {last:?}",
        start.elapsed().as_millis()
    );
}

prop_compose! {
    fn any_vm()(
        size_mib in 1u64..300,
        min in prop::option::of(0u64..=100),
        phases in prop::collection::vec((0u32..60, 0u64..400), 0..3),
        start_s in 0u32..40,
        life_s in prop::option::of(0u32..60),
        count in 1u32..3,
        is_driverless in prop::bool::weighted(0.2),
        leaves_free: bool,
    ) -> VmModel {
        let mut phases = phases;
        phases.sort_unstable();
        VmModel {
            min_mib: min.map(|percent| size_mib * percent / 100),
            start_s,
            life_s,
            count,
            driver: if is_driverless { Driver::Absent } else { Driver::Willing },
            leaves: if leaves_free { Leaves::Free } else { Leaves::Cache },
            ..vm("vm", size_mib, &phases)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever VMs come, do and go, together they never can touch more than the budget, none falls
    /// below its min, and the same scenario gives the same trace.
    #[test]
    fn no_load_breaks_the_budget_or_a_promise(
        vms in prop::collection::vec(any_vm(), 1..6), memory_mib in 20u64..700, seed: u64
    ) {
        let mut scenario = scenario(90, memory_mib, vms);
        scenario.seed = seed;
        scenario.host.sample_period_s = 10;
        let trace = run(&scenario);
        prop_assert!(trace.most_exposed <= PageCount::from_mebibytes(memory_mib));
        prop_assert_eq!(trace.outcome.most_swapped, PageCount::ZERO);
        let mins = scenario.vms.iter().flat_map(|vm| {
            iter::repeat_n(vm.settings().unwrap().min, vm.count as usize)
        });
        for (vm, min) in trace.vms.iter().zip(mins) {
            prop_assert!(vm.points.iter().all(|point| point.target >= min));
        }
        prop_assert_eq!(run(&scenario), trace);
    }
}

fn run_by(scenario: &Scenario, rules: Rules) -> Trace {
    simulate(scenario, rules).unwrap()
}

/// Three guests that leave 200 MiB of cache behind in 500 MiB, and one that wakes.
fn overcommitted() -> Scenario {
    let mut idle = vm("idle", 256, &[(0, 200), (60, 10)]);
    idle.count = 3;
    let sleeper = vm("sleeper", 256, &[(0, 10), (300, 200)]);
    scenario(600, 500, vec![idle, sleeper])
}

#[test]
fn without_rules_the_host_swaps_what_is_too_much_and_who_touches_it_waits() {
    let trace = run_by(&overcommitted(), Rules::None);
    let total = PageCount::from_mebibytes(500);
    // Three guests with 216 MiB each, and the sleeper's 26.
    let needed = 3 * 216 + 26;
    let overhead = PageCount(OVERHEAD.0 * 4);
    let swapped = PageCount::from_mebibytes(needed) + overhead - total;
    assert_eq!(trace.host[299].swapped, swapped);
    assert_eq!(trace.host[299].free, PageCount::ZERO);
    assert!(at(&trace, 0, 599).waited_for > PageCount::ZERO);
    assert!(trace.outcome.innocent_swapped > PageCount::ZERO);
}

#[test]
fn a_kernel_that_knows_the_coldest_pages_makes_nobody_wait_where_all_that_is_used_fits() {
    let mut scenario = overcommitted();
    scenario.measured_from_s = 120;
    let proportional = run_by(&scenario, Rules::None).outcome;
    scenario.host.swap_order = SwapOrder::Coldest;
    let coldest = run_by(&scenario, Rules::None).outcome;
    assert!(proportional.innocent_waited_for > PageCount::ZERO);
    assert_eq!(coldest.innocent_waited_for, PageCount::ZERO);
    assert!(coldest.innocent_swapped > PageCount::ZERO);
}

/// Its time divided among misses of 100 µs each.
#[test]
fn a_guest_waits_for_each_page_that_comes_from_the_hosts_swap() {
    let mut scenario = scenario(
        40,
        300,
        vec![vm("a", 256, &[(0, 200)]), vm("b", 256, &[(20, 200)])],
    );
    scenario.host.swap_order = SwapOrder::Coldest;
    let trace = run_by(&scenario, Rules::None);
    for vm in 0..2 {
        for second in trace.vms[vm].points.windows(2) {
            let waited_for = second[1].waited_for.0 - second[0].waited_for.0;
            let lost = 1000 - second[1].throughput_permille;
            let expected = waited_for * 49 * 1000 / 50 / 10_000;
            assert!(
                lost.abs_diff(expected) <= 1,
                "{waited_for} pages cost {lost}"
            );
        }
    }
    assert!(at(&trace, 0, 39).throughput_permille < 1000);
}

#[test]
fn a_slower_swap_makes_a_wake_take_longer() {
    // A guest whose working set is in swap when it comes back to it.
    let sleeper = vm("sleeper", 512, &[(0, 400), (60, 4), (300, 400)]);
    let other = vm("other", 512, &[(60, 480)]);
    let mut scenario = scenario(900, 700, vec![sleeper, other]);
    let busy = |scenario: &Scenario| {
        let outcome = run_by(scenario, Rules::None).outcome;
        outcome.busy_throughput_permille.unwrap()
    };
    let fast = busy(&scenario);
    scenario.host.swap_fault_us = 5000;
    assert!(busy(&scenario) < fast, "{} {fast}", busy(&scenario));
}

#[test]
fn a_reaction_is_the_time_from_a_wake_to_nine_tenths_of_what_is_needed() {
    let outcome = run_by(&overcommitted(), Rules::Mom).outcome;
    assert_eq!(outcome.reactions_s.len(), 1);
    // What the guest never gave up it has as soon as the host has it.
    let roomy = scenario(200, 4096, vec![vm("a", 256, &[(0, 10), (100, 200)])]);
    for rules in Rules::ALL {
        let outcome = run_by(&roomy, rules).outcome;
        assert_eq!(outcome.reactions_s, [Some(0)], "{rules}");
        assert_eq!(outcome.busy_throughput_permille, Some(1000), "{rules}");
    }
}

#[test]
fn a_wake_that_is_not_answered_is_no_reaction() {
    let outcome = Outcome {
        reactions_s: vec![Some(4), None, Some(2)],
        ..Outcome::default()
    };
    assert_eq!(outcome.wakes(), (3, 2));
    assert_eq!(outcome.median_reaction_s(), Some(4));
    assert_eq!(outcome.slowest_reaction_s(), None);
}

#[test]
fn others_rules_change_balloons_at_their_own_times_and_by_their_own_steps() {
    let scenario = overcommitted();
    let mebibytes = |pages: PageCount| pages.bytes() >> 20;
    for (rules, most) in [(Rules::Mom, 256 / 20), (Rules::Proxmox, 100)] {
        let trace = run_by(&scenario, rules);
        for vm in &trace.vms[..3] {
            let mut changes = 0;
            for second in vm.points.windows(2) {
                let (before, now) = (second[0].target, second[1].target);
                if before != now {
                    changes += 1;
                    assert!(
                        second[1].at_s.is_multiple_of(10),
                        "{rules}: {:?}",
                        second[1]
                    );
                    let down = before.saturating_sub(now);
                    assert!(mebibytes(down) <= most, "{rules}: by {down}");
                }
            }
            assert!(changes > 3, "{rules}: {changes} changes");
        }
    }
}

#[test]
fn a_guest_that_leaves_memory_free_is_shrunk_by_mom_and_one_that_leaves_cache_is_not() {
    let backed_in_the_end = |leaves| {
        let mut idle = vm("idle", 256, &[(0, 200), (60, 10)]);
        (idle.leaves, idle.count) = (leaves, 2);
        at(&run_by(&scenario(600, 500, vec![idle]), Rules::Mom), 0, 599).backed
    };
    assert!(backed_in_the_end(Leaves::Free) <= PageCount::from_mebibytes(200));
    assert_eq!(
        backed_in_the_end(Leaves::Cache),
        PageCount::from_mebibytes(216)
    );
}

fn rules() -> impl Strategy<Value = Rules> {
    prop::sample::select(Rules::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever decides: the host never uses more than there is; a guest's pages are in memory, in swap or given up, and
    /// never more than it holds; and equal scenarios give equal traces.
    #[test]
    fn no_rules_make_memory_appear_or_vanish(
        vms in prop::collection::vec(any_vm(), 1..6),
        memory_mib in 60u64..700,
        seed: u64,
        rules in rules(),
        coldest: bool,
    ) {
        let mut scenario = scenario(90, memory_mib, vms);
        scenario.seed = seed;
        scenario.host.sample_period_s = 10;
        scenario.host.swap_order = if coldest { SwapOrder::Coldest } else { SwapOrder::Proportional };
        let trace = run_by(&scenario, rules);
        let sizes: Vec<PageCount> = scenario.vms.iter().flat_map(|vm| {
            iter::repeat_n(vm.settings().unwrap().size, vm.count as usize)
        }).collect();
        let budget = PageCount::from_mebibytes(memory_mib);
        for host in &trace.host {
            // Processes' own memory is not swapped.
            let least = PageCount(OVERHEAD.0 * u64::from(host.running));
            prop_assert!(host.used <= budget.max(least));
            prop_assert_eq!(host.free, budget.saturating_sub(host.used));
            let of_vms = |count: fn(&VmPoint) -> PageCount| {
                let points = trace.vms.iter().flat_map(|vm| &vm.points);
                total(points.filter(|point| point.at_s == host.at_s).map(count))
            };
            prop_assert_eq!(of_vms(|point| point.swapped), host.swapped);
            let overhead = PageCount(OVERHEAD.0 * u64::from(host.running));
            prop_assert_eq!(of_vms(|point| point.backed) + overhead, host.used + host.swapped);
        }
        for (vm, size) in trace.vms.iter().zip(sizes) {
            for point in &vm.points {
                prop_assert!(point.swapped <= point.backed);
                prop_assert!(point.backed <= point.held && point.held <= size);
                prop_assert!(point.throughput_permille <= 1000);
            }
            prop_assert!(vm.points.is_sorted_by_key(|point| point.waited_for));
        }
        prop_assert_eq!(run_by(&scenario, rules), trace);
    }
}
