//! Who runs a scenario's VMs: this host, or QEMU, whose guests the run's host adopts. Of those it knows less and can do less,
//! so a scenario may ask for what is lost on them. What it claims of them must be known of them; the rest is told.

use super::plan::{Action, Run};
use super::scenario::{Problem, Scenario, Variation};
use super::series::Series;
use super::setting::{Setting, Value};
use api::VmKind;
use toml::Spanned;

/// The variation that says who runs VMs, where several do.
pub(crate) const VARIATION: &str = "vmm";

/// As scenarios and commands call it.
#[must_use]
pub const fn name(kind: VmKind) -> &'static str {
    match kind {
        VmKind::Ballonet => "ballonet",
        VmKind::Qemu => "qemu",
    }
}

/// Whether a series is known of VMs that are run so, and of a host that has none but those.
#[must_use]
pub const fn is_known(kind: VmKind, series: Series) -> bool {
    use Series::{
        Covered, Current, Estimate, EstimateError, EstimateHigh, EstimateLow, Fast, Reclaimed,
        ReclaimedPercent, Shared, SharedPercent, Slow, Zero, ZeroPercent,
    };
    match kind {
        VmKind::Ballonet => true,
        VmKind::Qemu => !matches!(
            series,
            Covered
                | Current
                | Estimate
                | EstimateError
                | EstimateHigh
                | EstimateLow
                | Fast
                | Reclaimed
                | ReclaimedPercent
                | Shared
                | SharedPercent
                | Slow
                | Zero
                | ZeroPercent
        ),
    }
}

impl Scenario {
    /// Has its VMs run by these instead of what it says itself: where they are several, each combination by one after the other.
    pub fn run_by(&mut self, kinds: &[VmKind]) {
        let values = kinds.iter().map(|&kind| Value(name(kind).into())).collect();
        let is_it = |variation: &Spanned<Variation>| variation.get_ref().name == VARIATION;
        let has_it = self.variations.iter().any(is_it);
        self.variations.retain(|variation| !is_it(variation));
        self.vmm = Some(match kinds {
            [kind] if !has_it => Setting::in_full(name(*kind)),
            _ => {
                let name = VARIATION.into();
                let variation = Variation { name, values };
                // Last, so that two runs that are compared lie next to each other.
                self.variations.push(Spanned::new(0..0, variation));
                Setting::of_variation(VARIATION)
            }
        });
    }

    /// What it asks for that is lost on guests of QEMU, in sentences; nothing where QEMU runs none of them.
    #[must_use]
    pub fn lost_on_qemu(&self, runs: &[Run]) -> Vec<String> {
        let mut of_qemu = runs.iter().filter(|run| run.vmm == VmKind::Qemu);
        let Some(run) = of_qemu.next() else {
            return Vec::new();
        };
        let host = &self.host;
        let phases = || self.phases.iter().map(Spanned::get_ref);
        let vms = run.events.iter().filter_map(|event| match &event.action {
            Action::Start(vm) => Some(vm),
            _ => None,
        });
        let measures = self.measures.iter().map(Spanned::get_ref);
        let unknown = measures.filter(|measure| !is_known(VmKind::Qemu, measure.series));
        let unknown: Vec<&str> = unknown.map(|measure| measure.name.as_str()).collect();
        let asked = [
            (
                run.host.settings.sharing
                    && (host.sharing.is_some() || phases().any(|phase| phase.sharing.is_some())),
                "sharing: none of their pages are shared by this host".into(),
            ),
            (
                vms.into_iter().any(|vm| vm.request.trust_group.is_some()),
                "trust_group: they share with nobody".into(),
            ),
            (
                host.scan != Default::default(),
                "scan: none of their pages are looked at".into(),
            ),
            (
                host.compression.is_some(),
                "compression: none of their pages are compressed or swapped by this host".into(),
            ),
            (
                host.large_pages.is_some() || phases().any(|phase| phase.large_pages.is_some()),
                "large_pages: which of theirs are large is up to the kernel and QEMU".into(),
            ),
            (
                host.sample_period_s.is_some()
                    || phases().any(|phase| phase.sample_period_s.is_some()),
                "sample_period_s: they are not sampled; what they need is their own word, asked for every 2 s"
                    .into(),
            ),
            (
                !unknown.is_empty(),
                format!("not known of them: {}", unknown.join(", ")),
            ),
        ];
        let lost = asked.into_iter().filter(|(is_asked, _)| *is_asked);
        lost.map(|(_, what)| what).collect()
    }

    /// Whether a result claims of a run what is not known there.
    pub(crate) fn unknown_claim(
        &self,
        run: &Run,
    ) -> Option<(&Spanned<super::scenario::ResultText>, Problem)> {
        self.results.iter().find_map(|result| {
            let text = result.get_ref();
            let measure = self.measure(&text.measure)?;
            let is_meant = run.combination.has(&text.at);
            (is_meant && !is_known(run.vmm, measure.series)).then(|| {
                let (measure, series) = (measure.name.clone(), measure.series.name());
                (result, Problem::UnknownOfQemu { measure, series })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::BUILT_IN;
    use crate::plan::plan;

    fn built_in(name: &str) -> (Scenario, &'static str) {
        let found = BUILT_IN.iter().find(|built_in| built_in.name == name);
        let text = found.unwrap().text;
        (Scenario::parse(text).unwrap(), text)
    }

    #[test]
    fn what_is_run_by_both_is_run_by_one_after_the_other() {
        let (mut scenario, text) = built_in("idle-tax");
        scenario.run_by(&[VmKind::Ballonet, VmKind::Qemu]);
        let runs = plan(&scenario, text).unwrap();
        let shown: Vec<String> = runs[..3]
            .iter()
            .map(|run| run.combination.to_string())
            .collect();
        assert_eq!(
            shown,
            [
                "tau=0, vmm=ballonet",
                "tau=0, vmm=qemu",
                "tau=25, vmm=ballonet"
            ]
        );
        assert_eq!((runs.len(), runs[1].vmm), (8, VmKind::Qemu));
        scenario.run_by(&[VmKind::Qemu]);
        assert_eq!(plan(&scenario, text).unwrap().len(), 4);
        let lost = scenario.lost_on_qemu(&plan(&scenario, text).unwrap());
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert!(lost[0].contains("sampled"), "{lost:?}");
    }

    #[test]
    fn those_of_sharing_and_of_sampling_are_refused_for_qemu_and_the_others_are_not() {
        for (name, refused) in [
            ("idle-tax", None),
            ("reallocation", None),
            ("balloon-overhead", None),
            ("sharing-best-case", Some("'reclaimed'")),
            ("active-sampling", Some("'error'")),
        ] {
            let (mut scenario, text) = built_in(name);
            assert!(
                scenario
                    .lost_on_qemu(&plan(&scenario, text).unwrap())
                    .is_empty()
            );
            scenario.run_by(&[VmKind::Qemu]);
            match (plan(&scenario, text), refused) {
                (Ok(_), None) => {}
                (Err(error), Some(word)) => {
                    let error = error.to_string();
                    assert!(
                        error.contains(word) && error.contains("--vmm ballonet"),
                        "{error}"
                    );
                }
                (other, _) => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_scenario_says_itself_who_runs_its_vms() {
        let (_, text) = built_in("idle-tax");
        let by = |value: &str| {
            let text = text.replacen("seconds = 44", &format!("vmm = {value}\nseconds = 44"), 1);
            Scenario::parse(&text).map(|scenario| plan(&scenario, &text).unwrap()[0].vmm)
        };
        assert_eq!(by("\"qemu\"").unwrap(), VmKind::Qemu);
        let refused = by("\"xen\"").unwrap_err().to_string();
        assert!(refused.contains("ballonet or qemu"), "{refused}");
    }
}
