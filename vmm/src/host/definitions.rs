//! VMs that are to come back: what they are started from, and what becomes of each when it has ended.
//!
//! | it ended | `on-failure` | `always` |
//! | --- | --- | --- |
//! | by `stop` | stays stopped | stays stopped until the next host |
//! | because its guest switched itself off | stays so | is started again |
//! | in any other way, or it did not start | is started again | is started again |
//! | with its host, however that ended | comes back with the next host | comes back with the next host |
//!
//! A VM that keeps ending is started again ever more rarely. One of which nobody said that it should come back is not among
//! these, and is forgotten when it has ended.

use super::state_store::{Definition, Kept, Standing};
use api::{
    DefinitionState, DefinitionView, NetRequest, RestartPolicy, RunRequest, VmChange, VmIdleTax,
};
use protocol::{NetConfig, VmConfig, VmName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinHandle;

/// VMs that may be defined at the same time.
pub(super) const MOST_DEFINED: usize = 1024;

/// All of a host.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    all: BTreeMap<VmName, Defined>,
    next_order: u64,
    /// Names of VMs that are being started anew: nobody else gets them meanwhile.
    held: BTreeSet<VmName>,
}

/// One, and how it stands with it.
#[derive(Debug)]
pub(super) struct Defined {
    pub(super) definition: Definition,
    pub(super) standing: Standing,
    /// Nobody was told yet that it runs: it goes again if it does not.
    pub(super) is_new: bool,
    /// What will have it started, if something is under way to that.
    coming: Option<JoinHandle<()>>,
    back_off: BackOff,
    restarts: u64,
}

impl Defined {
    fn new(definition: Definition, standing: Standing, is_new: bool) -> Self {
        Self {
            definition,
            standing,
            is_new,
            coming: None,
            back_off: BackOff::default(),
            restarts: 0,
        }
    }
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HowEnded {
    /// Its host told it to.
    Told,
    /// Its guest switched itself off.
    SwitchedOff,
    /// In any other way, or it did not start.
    Failed,
}

/// What follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is started again, after that time.
    StartAgain(Duration),
    /// It stays as it is, and stands so from now on, which is to be kept.
    Stand(Standing),
    /// Nothing.
    Nothing,
}

impl Definitions {
    /// Those that an earlier host has left.
    pub(super) fn of(kept: &Kept) -> Self {
        let entries = kept.definitions.iter();
        let all: BTreeMap<_, _> = entries
            .map(|(name, (definition, standing))| {
                (
                    name.clone(),
                    Defined::new(definition.clone(), *standing, false),
                )
            })
            .collect();
        let orders = all.values().map(|defined| defined.definition.order + 1);
        Self {
            next_order: orders.max().unwrap_or_default(),
            all,
            held: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether a VM of that name is being started anew.
    pub(super) fn is_held(&self, name: &VmName) -> bool {
        self.held.contains(name)
    }

    /// The name of one, as it is kept, of which somebody was told that it runs.
    pub(super) fn name(&self, name: &str) -> Option<VmName> {
        let mut all = self.all.iter();
        let found = all.find(|(own, defined)| own.as_str() == name && !defined.is_new);
        found.map(|(own, _)| own.clone())
    }

    pub(super) fn get_mut(&mut self, name: &VmName) -> Option<&mut Defined> {
        self.all.get_mut(name)
    }

    /// What one is started from.
    pub(super) fn definition(&self, name: &VmName) -> Option<Definition> {
        Some(self.all.get(name)?.definition.clone())
    }

    /// A new one, behind all others. Nobody was told that it runs.
    pub(super) fn add(&mut self, name: VmName, request: RunRequest) -> Definition {
        let definition = Definition {
            order: self.next_order,
            request,
            balloon_bytes: None,
        };
        self.next_order += 1;
        let defined = Defined::new(definition.clone(), Standing::Wanted, true);
        self.all.insert(name, defined);
        definition
    }

    pub(super) fn remove(&mut self, name: &VmName) -> Option<Defined> {
        self.all.remove(name)
    }

    /// Keeps a name for a VM that is started anew. Whether nobody does already.
    pub(super) fn hold(&mut self, name: VmName) -> bool {
        self.held.insert(name)
    }

    pub(super) fn let_go(&mut self, name: &VmName) {
        self.held.remove(name);
    }

    /// When a VM of that name is started again.
    pub(super) fn policy(&self, name: &VmName) -> RestartPolicy {
        let defined = self.all.get(name);
        defined.map_or(RestartPolicy::No, |defined| defined.definition.policy())
    }

    /// Those that a host which starts is to start, in their order. They are wanted from here on.
    pub(super) fn come_back(&mut self) -> Vec<VmName> {
        let comes = |(_, defined): &(&VmName, &mut Defined)| {
            defined.standing.comes_back(defined.definition.policy())
        };
        let mut back: Vec<_> = self.all.iter_mut().filter(comes).collect();
        back.sort_by_key(|(_, defined)| defined.definition.order);
        let want = |(name, defined): (&VmName, &mut Defined)| {
            defined.standing = Standing::Wanted;
            name.clone()
        };
        back.into_iter().map(want).collect()
    }

    /// Something has it started from here on.
    pub(super) fn set_coming(&mut self, name: &VmName, task: JoinHandle<()>) {
        if let Some(defined) = self.all.get_mut(name) {
            defined.coming = Some(task);
        }
    }

    /// What has it started, for whoever ends that or carries on.
    pub(super) fn take_coming(&mut self, name: &VmName) -> Option<JoinHandle<()>> {
        self.all.get_mut(name)?.coming.take()
    }

    pub(super) fn take_all_coming(&mut self) -> Vec<JoinHandle<()>> {
        let all = self.all.values_mut();
        all.filter_map(|defined| defined.coming.take()).collect()
    }

    /// Whether something is under way to start it.
    pub(super) fn is_coming(&self, name: &VmName) -> bool {
        let defined = self.all.get(name);
        defined.is_some_and(|defined| defined.coming.is_some())
    }

    /// VMs that will be there, unless something comes between.
    pub(super) fn count_coming(&self) -> usize {
        let all = self.all.values();
        all.filter(|defined| defined.coming.is_some()).count() + self.held.len()
    }

    /// A VM of that name has ended, whose guest has run for so long, if it ran at all.
    pub(super) fn ended(&mut self, name: &VmName, how: HowEnded, ran: Option<Duration>) -> Next {
        let Some(defined) = self.all.get_mut(name).filter(|defined| !defined.is_new) else {
            return Next::Nothing;
        };
        match (how, defined.definition.policy()) {
            (HowEnded::Told, _) | (_, RestartPolicy::No) => Next::Nothing,
            (HowEnded::SwitchedOff, RestartPolicy::OnFailure) => {
                defined.standing = Standing::SwitchedOff;
                Next::Stand(Standing::SwitchedOff)
            }
            (HowEnded::SwitchedOff | HowEnded::Failed, _) => {
                defined.restarts += 1;
                Next::StartAgain(defined.back_off.after(ran.unwrap_or_default()))
            }
        }
    }

    /// All, in their order; `is_there` says whether a VM of that name is.
    pub(super) fn views(&self, is_there: impl Fn(&VmName) -> bool) -> Vec<DefinitionView> {
        let mut all: Vec<_> = self.all.iter().collect();
        all.sort_by_key(|(_, defined)| defined.definition.order);
        let view = |(name, defined): (&VmName, &Defined)| DefinitionView {
            name: name.clone(),
            restart: defined.definition.policy(),
            memory_bytes: defined.definition.request.memory_bytes,
            state: match defined.standing {
                _ if is_there(name) => DefinitionState::Running,
                Standing::Wanted => DefinitionState::Coming,
                Standing::Stopped => DefinitionState::Stopped,
                Standing::SwitchedOff => DefinitionState::SwitchedOff,
            },
            restarts: defined.restarts,
        };
        all.into_iter().map(view).collect()
    }
}

/// How long to wait before a VM is started again, as it is usual with containers: twice as long each time, and as
/// at first once it has run for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BackOff {
    next: Duration,
}

impl BackOff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(60);
    /// A VM that ran for so long had started well.
    const WELL: Duration = Duration::from_secs(10);

    fn after(&mut self, ran: Duration) -> Duration {
        if ran >= Self::WELL {
            *self = Self::default();
        }
        let now = self.next;
        self.next = (now * 2).min(Self::LONGEST);
        now
    }
}

impl Default for BackOff {
    fn default() -> Self {
        Self { next: Self::FIRST }
    }
}

/// A request with a change.
pub(super) fn with_change(request: &RunRequest, change: &VmChange) -> RunRequest {
    let VmChange {
        min_bytes,
        max_bytes,
        shares,
        idle_tax,
        large_pages,
    } = *change;
    RunRequest {
        min_bytes: min_bytes.or(request.min_bytes),
        max_bytes: max_bytes.or(request.max_bytes),
        shares: shares.or(request.shares),
        idle_tax_permille: match idle_tax {
            None => request.idle_tax_permille,
            Some(VmIdleTax::Host) => None,
            Some(VmIdleTax::Permille(rate)) => Some(rate),
        },
        large_pages: large_pages.or(request.large_pages),
        ..request.clone()
    }
}

/// What asks for such a VM once more.
pub(super) fn request_for(config: &VmConfig) -> RunRequest {
    let settings = &config.settings;
    let card = |card: &NetConfig| NetRequest {
        tap: card.tap.clone(),
        mac: Some(card.mac),
        bytes_per_s: card.bytes_per_s,
    };
    RunRequest {
        name: Some(config.name.clone()),
        memory_bytes: settings.size.bytes(),
        vcpus: Some(config.vcpus),
        min_bytes: Some(settings.min.bytes()),
        max_bytes: Some(settings.max.bytes()),
        shares: Some(settings.shares),
        idle_tax_permille: settings.idle_tax,
        large_pages: Some(settings.large_pages),
        wait_s: None,
        trust_group: config.trust_group.clone(),
        kernel: config.kernel.clone(),
        initrd: config.initrd.clone(),
        nets: config.nets.iter().map(card).collect(),
        // With its workload.
        cmdline: Some(config.cmdline.clone()),
        disks: config.disks.clone(),
        workload: None,
        console_log: config.console_log.clone(),
        on_host_death: config.on_host_death,
        restart: RestartPolicy::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VmName {
        text.parse().unwrap()
    }

    fn request(restart: RestartPolicy) -> RunRequest {
        RunRequest {
            restart,
            ..RunRequest::default()
        }
    }

    fn running(restart: RestartPolicy) -> Definitions {
        let mut definitions = Definitions::default();
        definitions.add(name("a"), request(restart));
        definitions.get_mut(&name("a")).unwrap().is_new = false;
        definitions
    }

    #[test]
    fn who_has_ended_stays_so_or_is_started_again_as_with_containers() {
        use HowEnded::{Failed, SwitchedOff, Told};
        use RestartPolicy::{Always, OnFailure};
        let again = Next::StartAgain(BackOff::FIRST);
        for (policy, how, next) in [
            (OnFailure, Told, Next::Nothing),
            (OnFailure, SwitchedOff, Next::Stand(Standing::SwitchedOff)),
            (OnFailure, Failed, again),
            (Always, Told, Next::Nothing),
            (Always, SwitchedOff, again),
            (Always, Failed, again),
        ] {
            let mut definitions = running(policy);
            assert_eq!(
                definitions.ended(&name("a"), how, None),
                next,
                "{policy} {how:?}"
            );
            assert_eq!(definitions.ended(&name("b"), how, None), Next::Nothing);
            definitions.get_mut(&name("a")).unwrap().is_new = true;
            assert_eq!(definitions.ended(&name("a"), how, None), Next::Nothing);
        }
    }

    #[test]
    fn the_next_host_starts_what_was_to_run_and_what_always_is_in_their_order() {
        let mut kept = Kept::default();
        let all = [
            ("z", 0, RestartPolicy::Always, Standing::Stopped),
            ("b", 3, RestartPolicy::OnFailure, Standing::Wanted),
            ("c", 2, RestartPolicy::OnFailure, Standing::Stopped),
            ("d", 1, RestartPolicy::OnFailure, Standing::SwitchedOff),
            ("a", 7, RestartPolicy::Always, Standing::Wanted),
            ("n", 4, RestartPolicy::No, Standing::Wanted),
        ];
        for (word, order, restart, standing) in all {
            let definition = Definition {
                order,
                request: request(restart),
                balloon_bytes: None,
            };
            kept.definitions.insert(name(word), (definition, standing));
        }
        let mut definitions = Definitions::of(&kept);
        assert_eq!(definitions.come_back(), ["z", "b", "a"].map(name));
        assert_eq!(
            definitions
                .add(name("new"), request(RestartPolicy::Always))
                .order,
            8
        );
        let views = definitions.views(|name| name.as_str() == "b");
        let states: Vec<_> = views
            .iter()
            .map(|view| (view.name.as_str(), view.state))
            .collect();
        assert_eq!(
            states[..5],
            [
                ("z", DefinitionState::Coming),
                ("d", DefinitionState::SwitchedOff),
                ("c", DefinitionState::Stopped),
                ("b", DefinitionState::Running),
                ("n", DefinitionState::Coming),
            ]
        );
    }

    #[test]
    fn a_vm_that_keeps_ending_is_started_ever_more_rarely_and_soon_once_it_ran_well() {
        let mut back_off = BackOff::default();
        let waits: Vec<_> = (0..12)
            .map(|_| back_off.after(Duration::from_secs(9)))
            .collect();
        let expected = [
            100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000,
        ];
        assert_eq!(waits, expected.map(Duration::from_millis));
        assert_eq!(back_off.after(BackOff::WELL), BackOff::FIRST);
        assert_eq!(back_off.after(Duration::ZERO), BackOff::FIRST * 2);
    }

    #[test]
    fn a_change_is_part_of_what_a_vm_is_started_from() {
        let old = RunRequest {
            min_bytes: Some(1),
            max_bytes: Some(2),
            ..RunRequest::default()
        };
        let change = VmChange {
            max_bytes: Some(3),
            idle_tax: Some(VmIdleTax::Host),
            ..VmChange::default()
        };
        let new = with_change(&old, &change);
        assert_eq!((new.min_bytes, new.max_bytes), (Some(1), Some(3)));
        assert_eq!(new.idle_tax_permille, None);
    }
}
