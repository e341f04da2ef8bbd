//! Why a VM holds what it holds, and what it would take to hold more.
//!
//! The figures come from the same functions that decide: what it would take is found by asking what the
//! targets would be then. [`explain`] gives them as data, and [`Explanation::text`] says them in plain
//! sentences. It is made for one VM when somebody asks, and costs some hundred divisions.

use crate::balloon::Ask;
use crate::targets::{by_shares_alone, taxed};
use crate::tax::{Taxed, tenths};
use crate::{
    ActiveSet, BalloonBound, BalloonHealth, BrokenBlocks, Capabilities, LargePages, MemoryState,
    Plan, SharesSpec, Snapshot, Source, Stage, Step, TaxRate, TouchLimit, VmSettings, VmSnapshot,
    Witness, admit_change, balloon, targets,
};
use page::{PageCount, VmId, total};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::{self, Write};
use std::num::NonZeroU32;
use utoipa::ToSchema;

/// Everything that decided on one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Which VM.
    pub id: VmId,
    /// What its guest sees.
    pub size: PageCount,
    /// What it holds now.
    pub held: PageCount,
    /// What it should hold.
    pub target: PageCount,
    /// What it is told that it may hold now.
    pub grant: PageCount,
    /// Its weight.
    pub shares: u64,
    /// The weight of all VMs together.
    pub all_shares: u64,
    /// What its shares would bring it if nothing were taxed and it had no min, max or pin of its own.
    pub by_shares_alone: PageCount,
    /// What it uses, if that is known.
    pub active: Option<ActiveSet>,
    /// The rate at which it is taxed.
    pub tax: TaxRate,
    /// The pages of its target that are taxed.
    pub taxed: PageCount,
    /// What it pays for its memory. Nothing if it is to hold none.
    pub price: Option<Price>,
    /// Who pays least of those that hold more than their min, so that memory is taken there first.
    pub first_to_give: Option<(VmId, Price)>,
    /// Which limits decide, rather than the price.
    pub bounds: Vec<Bound>,
    /// How short memory is.
    pub state: MemoryState,
    /// How its guest's word compares with its touches.
    pub witness: Witness,
    /// How its balloon follows.
    pub balloon: BalloonHealth,
    /// What it holds above its target that its balloon will not bring.
    pub by_other_means: PageCount,
    /// What of it the kernel takes into its own swap now.
    #[serde(default)]
    pub kernel_reclaim: PageCount,
    /// What it may hold beyond its grant, as its compressed pool makes up for it.
    #[serde(default)]
    pub pooled: PageCount,
    /// What its guest may have touched before it is stopped.
    #[serde(default)]
    pub touch_limit: Option<TouchLimit>,
    /// Whether what it holds above that goes out of its memory.
    #[serde(default)]
    pub has_swap: bool,
    /// Whether its guest waits because that finds no room there.
    #[serde(default)]
    pub waits_for_room: bool,
    /// What it has touched and still has.
    #[serde(default)]
    pub backed: PageCount,
    /// Whether its guest has no driver for its balloon.
    #[serde(default)]
    pub has_no_driver: bool,
    /// Which large pages it makes.
    #[serde(default)]
    pub large_pages: LargePages,
    /// Which of them are broken to share pages.
    #[serde(default)]
    pub broken_blocks: BrokenBlocks,
    /// Why it makes no others.
    #[serde(default)]
    pub large_pages_because: LargePagesReason,
    /// What can be done to it.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// What more memory would take, if that was asked.
    pub more: Option<More>,
}

/// A price per page, as min-funding revocation compares them: shares per active MiB, with an idle page
/// counted as the k that it costs. In thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Price(pub u64);

/// What decides which large pages a VM makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LargePagesReason {
    /// An administrator wants none, of this VM or of all.
    #[default]
    Settings,
    /// How short memory is.
    State,
    /// So much of what VMs may have by their settings is not there; zero where there is enough for all.
    Lacking(PageCount),
}

/// A limit that decides on a target or on the way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// It gets its min though its shares earn less.
    Min,
    /// It gets no more than its max though its shares earn more.
    Max,
    /// An administrator fixed what it holds.
    Pin,
    /// Its balloon stops above its target.
    Balloon(BalloonBound),
    /// Others have not yet given up what it is to get.
    NotFreeYet,
    /// What it is to get is held by others whose balloons do not bring it.
    NobodyGives {
        /// So much.
        kept: PageCount,
        /// By this VM most.
        most_by: VmId,
    },
}

/// Each of these alone would bring a VM that much more. None where nothing would, or where it does not
/// apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct More {
    /// How much more.
    pub pages: PageCount,
    /// The most that its size allows, if that is less: then the rest of this is about that.
    pub most: Option<PageCount>,
    /// The max that it needs before anything else helps.
    pub max: Option<PageCount>,
    /// A pin of so much.
    pub pin: Option<PageCount>,
    /// So many shares.
    pub shares: Option<u32>,
    /// So large a min, where it can be promised.
    pub min: Option<PageCount>,
    /// So large an active set.
    pub active: Option<PageCount>,
    /// So large a budget of the host.
    pub budget: Option<PageCount>,
}

/// Why the VM gets what the plan for this snapshot gives it; with `more`, also what would bring it so
/// much more. None if there is no such VM.
#[must_use]
pub fn explain(
    snapshot: &Snapshot,
    plan: &Plan,
    id: VmId,
    more: Option<PageCount>,
) -> Option<Explanation> {
    let (index, (vm, step)) = snapshot
        .vms
        .iter()
        .zip(&plan.steps)
        .enumerate()
        .find(|(_, (vm, _))| vm.id == id)?;
    let taxed = taxed(vm, snapshot.idle_tax);
    let size = vm.settings.effective_size();
    let guest = vm.evidence.guest.unwrap_or_default();
    let untaxed = by_shares_alone(snapshot)[index].pages;
    Some(Explanation {
        id,
        size,
        held: vm.held(),
        target: step.target,
        grant: step.grant,
        shares: shares(vm),
        all_shares: snapshot.vms.iter().map(shares).fold(0, u64::saturating_add),
        by_shares_alone: by_its_shares(snapshot, index),
        active: vm.evidence.active,
        tax: vm.settings.idle_tax.unwrap_or(snapshot.idle_tax),
        taxed: taxed_pages(vm, taxed, step.target),
        price: price(vm, taxed, step.target),
        first_to_give: first_to_give(snapshot, plan),
        bounds: bounds(snapshot, plan, (vm, step), untaxed),
        state: snapshot.state,
        witness: guest.witness(vm.evidence.active.as_ref()),
        balloon: vm.evidence.balloon_health(),
        by_other_means: step.by_other_means,
        kernel_reclaim: step.kernel_reclaim,
        pooled: step.pooled,
        touch_limit: step.touch_limit,
        has_swap: vm.evidence.has_swap,
        waits_for_room: vm.evidence.waits_for_room,
        backed: vm.backed(),
        has_no_driver: vm.evidence.has_no_driver,
        large_pages: plan.large_pages_of(&vm.settings),
        broken_blocks: plan.broken_blocks_of(&vm.settings),
        large_pages_because: match snapshot.state {
            _ if snapshot.small_pages_only || !vm.settings.large_pages => {
                LargePagesReason::Settings
            }
            MemoryState::High => LargePagesReason::Lacking(snapshot.lacking()),
            _ => LargePagesReason::State,
        },
        capabilities: vm.evidence.capabilities,
        more: more.map(|pages| what_it_takes(snapshot, index, step.target, pages)),
    })
}

fn by_its_shares(snapshot: &Snapshot, index: usize) -> PageCount {
    let mut unbound = snapshot.clone();
    let vm = &mut unbound.vms[index];
    vm.pinned = None;
    vm.settings.min = PageCount::ZERO;
    vm.settings.max = vm.settings.size;
    by_shares_alone(&unbound)[index].pages
}

fn shares(vm: &VmSnapshot) -> u64 {
    let size = vm.settings.effective_size();
    vm.settings.shares.resolve(size).0.get()
}

fn taxed_pages(vm: &VmSnapshot, taxed: Taxed, target: PageCount) -> PageCount {
    match vm.evidence.active {
        Some(_) if taxed.rate > TaxRate::NONE => target.saturating_sub(taxed.active),
        _ => PageCount::ZERO,
    }
}

/// Shares for a MiB: S · k' / cost, where the cost counts an active page as k' and an idle one as 1000.
fn price(vm: &VmSnapshot, taxed: Taxed, target: PageCount) -> Option<Price> {
    let cost = u128::from(taxed.cost(target));
    let pages_per_mebibyte = u128::from(PageCount::from_mebibytes(1).0);
    let weight = u128::from(shares(vm)) * u128::from(taxed.rate.kept_permille());
    let price = (weight * pages_per_mebibyte * 1000).checked_div(cost)?;
    Some(Price(u64::try_from(price).unwrap_or(u64::MAX)))
}

fn first_to_give(snapshot: &Snapshot, plan: &Plan) -> Option<(VmId, Price)> {
    let priced = |(vm, target): (&VmSnapshot, PageCount)| {
        let price = price(vm, taxed(vm, snapshot.idle_tax), target)?;
        Some((vm.id, price))
    };
    let vms = snapshot.vms.iter();
    vms.zip(plan.steps.iter().map(|step| step.target))
        .filter(|(vm, target)| *target > vm.settings.effective_min() && vm.pinned.is_none())
        .filter_map(priced)
        .min_by_key(|&(id, price)| (price, id))
}

fn bounds(
    snapshot: &Snapshot,
    plan: &Plan,
    (vm, step): (&VmSnapshot, &Step),
    untaxed: PageCount,
) -> Vec<Bound> {
    let Step { target, grant, .. } = *step;
    let (min, max) = (vm.settings.effective_min(), vm.settings.effective_max());
    let on_target = match vm.pinned {
        Some(_) => Some(Bound::Pin),
        None if target == max => Some(Bound::Max),
        None if target == min => Some(Bound::Min),
        None => None,
    };
    let round = snapshot.balloon.filter(|_| vm.stage == Stage::Running);
    let ask = Ask {
        target,
        untaxed,
        pace: snapshot.state.orders().balloon,
    };
    let floor = round.map(|round| balloon::floor(vm, &ask, &round.settings));
    let on_balloon = floor
        .filter(|&(floor, _)| floor > target && vm.held() > target)
        .map(|(_, bound)| Bound::Balloon(bound));
    let on_grant = (grant < target).then(|| what_is_lacking(snapshot, plan, vm.id));
    [on_target, on_balloon, on_grant]
        .into_iter()
        .flatten()
        .collect()
}

/// Whether others are to give up what a VM lacks, or cannot.
fn what_is_lacking(snapshot: &Snapshot, plan: &Plan, id: VmId) -> Bound {
    let steps = snapshot.vms.iter().zip(&plan.steps);
    let others = steps.filter(|(vm, _)| vm.id != id);
    let (mut kept, mut most) = (PageCount::ZERO, None);
    for (vm, step) in others {
        let stays = total([step.target, step.by_other_means]);
        if vm.exposure() > stays {
            return Bound::NotFreeYet;
        }
        kept = total([kept, step.by_other_means]);
        most = most.max(Some((step.by_other_means, vm.id)));
    }
    match most {
        Some((pages, most_by)) if pages > PageCount::ZERO => Bound::NobodyGives { kept, most_by },
        _ => Bound::NotFreeYet,
    }
}

/// The snapshot with one VM's settings changed, and what that VM would get.
struct Trial<'a> {
    snapshot: &'a Snapshot,
    index: usize,
    wanted: PageCount,
}

impl Trial<'_> {
    /// The least number up to `most` with which the VM would get what is wanted. More of it must never
    /// bring less.
    fn least(&self, most: u64, set: impl Fn(&mut Snapshot, u64)) -> Option<u64> {
        let suffices = |number: u64| {
            let mut changed = self.snapshot.clone();
            set(&mut changed, number);
            targets(&changed)[self.index].pages >= self.wanted
        };
        if !suffices(most) {
            return None;
        }
        let (mut too_little, mut enough) = (0, most);
        while enough - too_little > 1 {
            let middle = too_little.midpoint(enough);
            if suffices(middle) {
                enough = middle;
            } else {
                too_little = middle;
            }
        }
        Some(enough)
    }

    fn shares(&self) -> Option<u32> {
        let shares = self.least(u32::MAX.into(), |snapshot, shares| {
            let shares = u32::try_from(shares).ok().and_then(NonZeroU32::new);
            let shares = SharesSpec::Count(shares.unwrap_or(NonZeroU32::MIN));
            snapshot.vms[self.index].settings.shares = shares;
        })?;
        u32::try_from(shares).ok()
    }

    fn budget(&self) -> Option<PageCount> {
        let snapshot = self.snapshot;
        let most = |vm: &VmSnapshot| total([vm.settings.effective_max(), vm.overhead]);
        let all = total(snapshot.vms.iter().map(most));
        let most = total([all, snapshot.kept, snapshot.keep_free]);
        let budget = self.least(most.0, |snapshot, budget| {
            snapshot.budget = PageCount(budget)
        })?;
        (budget > snapshot.budget.0).then_some(PageCount(budget))
    }

    fn active(&self) -> Option<PageCount> {
        let vm = &self.snapshot.vms[self.index];
        let now = vm.evidence.active?;
        let active = self.least(vm.settings.effective_size().0, |snapshot, pages| {
            snapshot.vms[self.index].evidence.active = Some(ActiveSet {
                pages: PageCount(pages),
                ..now
            });
        })?;
        (active > now.pages.0).then_some(PageCount(active))
    }

    /// A min is had whatever others are worth, but must be promised.
    fn min(&self) -> Option<PageCount> {
        let vm = &self.snapshot.vms[self.index];
        let settings = VmSettings {
            min: self.wanted,
            ..vm.settings.clone()
        };
        let can_be_promised = admit_change(self.snapshot, vm.id, &settings).is_ok();
        can_be_promised.then_some(self.wanted)
    }

    fn pin(&self) -> Option<PageCount> {
        let mut pinned = self.snapshot.clone();
        pinned.vms[self.index].pinned = Some(self.wanted);
        let suffices = targets(&pinned)[self.index].pages >= self.wanted;
        suffices.then_some(self.wanted)
    }
}

fn what_it_takes(snapshot: &Snapshot, index: usize, target: PageCount, pages: PageCount) -> More {
    let vm = &snapshot.vms[index];
    let size = vm.settings.effective_size();
    let room = size.saturating_sub(target);
    let wanted = total([target, pages.min(room)]);
    let mut with_max = snapshot.clone();
    let settings = &mut with_max.vms[index].settings;
    let max = (wanted > settings.effective_max()).then_some(wanted);
    settings.max = settings.max.max(wanted);
    let trial = Trial {
        snapshot: &with_max,
        index,
        wanted,
    };
    let unpinned = vm.pinned.is_none() && room > PageCount::ZERO;
    More {
        pages,
        most: (pages > room).then_some(room),
        max,
        pin: trial.pin().filter(|_| vm.pinned.is_some()),
        shares: trial.shares().filter(|_| unpinned),
        min: trial.min().filter(|_| unpinned),
        active: trial.active().filter(|_| unpinned),
        budget: trial.budget().filter(|_| unpinned),
    }
}

/// With one decimal.
impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", tenths(self.0.div_ceil(100)))
    }
}

impl Explanation {
    /// The same in sentences, in which VMs have names.
    #[must_use]
    pub fn text(&self, name_of: impl Fn(VmId) -> String) -> String {
        let mut text = String::new();
        self.write(&mut text, &name_of)
            .expect("a text in memory takes everything");
        text
    }

    fn write(&self, f: &mut String, name_of: &dyn Fn(VmId) -> String) -> fmt::Result {
        let Self {
            size, target, held, ..
        } = self;
        let name = name_of(self.id);
        write!(
            f,
            "'{name}' should hold {target} of its {size}, and its balloon leaves it {held} now."
        )?;
        self.write_worth(f)?;
        self.write_use(f)?;
        self.write_price(f, name_of)?;
        for bound in &self.bounds {
            write!(f, " {}", self.sentence(*bound, name_of))?;
        }
        write!(
            f,
            " The host's memory is {}: {}.",
            self.state,
            meaning(self.state)
        )?;
        if self.capabilities.large_pages {
            self.write_large_pages(f)?;
        }
        let lacking: Vec<&str> = self.capabilities.lacking().collect();
        if !lacking.is_empty() {
            write!(f, " It cannot {}.", lacking.join("; "))?;
        }
        self.write_witness(f)?;
        self.write_balloon(f)?;
        if self.kernel_reclaim > PageCount::ZERO {
            let taken = self.kernel_reclaim;
            write!(f, " The kernel takes {taken} of it into its swap now.")?;
        }
        self.more.map_or(Ok(()), |more| self.write_more(f, &more))
    }

    fn sentence(&self, bound: Bound, name_of: &dyn Fn(VmId) -> String) -> Cow<'static, str> {
        let by_shares = self.by_shares_alone.cmp(&self.target);
        let sentence = match bound {
            Bound::Min => match by_shares {
                Ordering::Less => "Its min decides: its shares would bring it less.",
                Ordering::Equal => "Its min is as much.",
                Ordering::Greater => {
                    "Its min decides: as what is idle is taxed, it would get less."
                }
            },
            Bound::Max if self.target == self.size => "That is all that it can hold.",
            Bound::Max => match by_shares {
                Ordering::Less => "Its max decides: as what is idle is taxed, it would get more.",
                Ordering::Equal => "Its max is as much.",
                Ordering::Greater => "Its max decides: its shares would bring it more.",
            },
            Bound::Pin => "An administrator pinned it.",
            Bound::Balloon(BalloonBound::Limit | BalloonBound::GuestSilent)
                if self.has_no_driver =>
            {
                "There is no driver for its balloon."
            }
            Bound::Balloon(BalloonBound::Limit) => {
                "Its balloon has taken the largest part of a VM that a balloon may."
            }
            Bound::Balloon(BalloonBound::GuestNeeds) => {
                "Its balloon stops where its guest says that it would have to swap."
            }
            Bound::Balloon(BalloonBound::GuestStalls) => {
                "Its balloon waits, because its guest waits for memory."
            }
            Bound::Balloon(BalloonBound::GuestSilent) => {
                "Its balloon takes no more, because its guest has not reported its memory for too long."
            }
            Bound::Balloon(BalloonBound::Pressure) => {
                "Its balloon takes no more, because it waits for memory that the host has taken already."
            }
            Bound::NotFreeYet => "It gets the rest as soon as others have given it up.",
            Bound::NobodyGives { kept, most_by } => {
                let name = name_of(most_by);
                return Cow::Owned(format!(
                    "It does not get the rest: others hold {kept} above their targets that their balloons do \
                 not bring, '{name}' most of it (`ballonet explain {name}`). To change that, stop one of \
                 them, or give the host more (`ballonet set host memory=…`)."
                ));
            }
        };
        Cow::Borrowed(sentence)
    }

    fn write_large_pages(&self, f: &mut String) -> fmt::Result {
        if self.has_swap && self.touch_limit.is_some() {
            return write!(
                f,
                " As long as it has a limit only what it uses whole is made large pages."
            );
        }
        let which = match self.large_pages {
            LargePages::Fill => {
                "All that it may touch is to be large pages, as far as the machine has any"
            }
            LargePages::Full => match self.broken_blocks {
                BrokenBlocks::None | BrokenBlocks::Cold => {
                    "Only what is there anyway is made large pages, and to share pages those are broken that it does \
                     not use"
                }
                BrokenBlocks::ColdFirst | BrokenBlocks::All => {
                    "Only what is there anyway is made large pages, and to share pages they are broken, first those \
                     that it does not use"
                }
            },
            LargePages::Off => "No more large pages are made of its memory",
        };
        write!(f, " {which}")?;
        match self.large_pages_because {
            LargePagesReason::Settings => write!(f, ", as was set."),
            LargePagesReason::State => write!(f, ", for memory is {}.", self.state),
            LargePagesReason::Lacking(PageCount::ZERO) => {
                write!(f, ", for there is memory for all that VMs may have.")
            }
            LargePagesReason::Lacking(pages) => {
                write!(f, ", for VMs may have {pages} more than there is.")
            }
        }
    }

    fn write_worth(&self, f: &mut String) -> fmt::Result {
        let Self {
            shares,
            all_shares,
            by_shares_alone,
            ..
        } = self;
        write!(
            f,
            " It has {shares} of all VMs' {all_shares} shares, which alone would bring it {by_shares_alone}."
        )
    }

    fn write_use(&self, f: &mut String) -> fmt::Result {
        let Some(ActiveSet {
            pages,
            likely,
            low,
            high,
            source,
            ..
        }) = self.active
        else {
            return write!(
                f,
                " How much it uses is not known yet, so nothing of it is taxed as idle."
            );
        };
        match source {
            Source::Touches => write!(
                f,
                " It uses {likely} (with 95 % confidence {low} to {high})"
            )?,
            Source::GuestWord => write!(
                f,
                " It uses {likely} by its guest's own word and faults, which nobody can check"
            )?,
        }
        if pages != likely {
            write!(
                f,
                "; the policy counts {pages} as used, the largest of this estimate and its recent averages"
            )?;
        }
        if self.taxed == PageCount::ZERO {
            return write!(f, ". Nothing of what it should hold is taxed as idle.");
        }
        let times = 10_000u64.div_ceil(self.tax.kept_permille());
        let (taxed, tax) = (self.taxed, self.tax);
        let times = tenths(times);
        write!(
            f,
            ". Of what it should hold, {taxed} are idle: at an idle tax of {tax} each idle page costs it as much \
             as {times} that it uses."
        )
    }

    fn write_price(&self, f: &mut String, name_of: &dyn Fn(VmId) -> String) -> fmt::Result {
        let Some(price) = self.price else {
            return Ok(());
        };
        write!(f, " It pays {price} shares for a MiB.")?;
        match self.first_to_give {
            Some((id, _)) if id == self.id => {
                write!(
                    f,
                    " No VM that could give memory up pays less, so memory is taken from it first."
                )
            }
            Some((id, least)) => {
                let name = name_of(id);
                write!(
                    f,
                    " Memory is taken first from '{name}', which pays {least}."
                )
            }
            None => Ok(()),
        }
    }

    fn write_witness(&self, f: &mut String) -> fmt::Result {
        match self.witness {
            Witness::Silent | Witness::Agrees => Ok(()),
            Witness::Senseless => write!(f, " What its guest says of its memory makes no sense."),
            Witness::SaysIdler { by } => write!(
                f,
                " Its guest touches {by} more than it says are in use; its touches count."
            ),
            Witness::SaysBusier { by } => write!(
                f,
                " Its guest says that it needs {by} more than it touches; its touches count."
            ),
        }
    }

    fn write_balloon(&self, f: &mut String) -> fmt::Result {
        if self.balloon == BalloonHealth::Stuck && !self.has_no_driver {
            write!(
                f,
                " Its balloon is stuck: it was asked for memory and makes no progress."
            )?;
        }
        if self.by_other_means > PageCount::ZERO {
            let by_other_means = self.by_other_means;
            write!(
                f,
                " Its balloon will not bring {by_other_means} of what it holds above its target."
            )?;
        }
        if self.pooled > PageCount::ZERO {
            let pooled = self.pooled;
            write!(
                f,
                " Nothing of its memory is free, so its balloon leaves it {pooled} more, and what it uses least is compressed \
                 instead."
            )?;
        }
        self.touch_limit
            .map_or(Ok(()), |limit| self.write_limit(f, limit))
    }

    fn write_limit(&self, f: &mut String, limit: TouchLimit) -> fmt::Result {
        let TouchLimit {
            slow_above,
            stop_above,
        } = limit;
        let why = match self.balloon {
            _ if self.has_no_driver => {
                "no driver for its balloon keeps its guest from touching more than there is"
            }
            BalloonHealth::Stuck => {
                "its balloon does not keep its guest from touching more than there is"
            }
            _ if self.pooled > PageCount::ZERO => {
                "its pool makes up for what its balloon leaves it"
            }
            _ if self.has_swap => "it is above its target, and its balloon does not follow in time",
            _ => "it is above its target while memory is at its shortest",
        };
        let backed = self.backed;
        if self.has_swap {
            write!(
                f,
                " It has {backed} in memory, and what it holds above {slow_above} goes out of it, compressed or swapped, \
                 because {why}."
            )?;
            return match self.waits_for_room {
                true => f.write_str(
                    " But no more of it finds room outside of memory now, so its guest waits: what it has does not shrink and the \
                     host has no swap folder (`ballonet host --swap DIR`), or its swap file takes nothing.",
                ),
                false => Ok(()),
            };
        }
        write!(
            f,
            " It has touched {backed} and is blocked most of the time beyond {slow_above}, all the time beyond \
             {stop_above}, because {why}."
        )
    }

    fn write_more(&self, f: &mut String, more: &More) -> fmt::Result {
        let wanted = more.most.unwrap_or(more.pages);
        if wanted == PageCount::ZERO {
            return write!(f, " It cannot hold more: its size is {}.", self.size);
        }
        write!(f, " To hold {wanted} more, ")?;
        if let Some(max) = more.max {
            write!(f, "its max must be {max}; then ")?;
        }
        let ways = [
            more.pin.map(|pin| format!("pinning it at {pin}")),
            more.shares.map(|shares| format!("{shares} shares")),
            more.min.map(|min| format!("a min of {min}")),
            more.active.map(|active| format!("using {active}")),
            more.budget
                .map(|budget| format!("a budget of {budget} for the host")),
        ];
        let ways: Vec<String> = ways.into_iter().flatten().collect();
        match ways.as_slice() {
            [] => write!(
                f,
                "no single change suffices while the others have what they are promised."
            ),
            [only] => write!(f, "{only} would suffice."),
            ways => write!(f, "any of these would suffice: {}.", ways.join(", ")),
        }
    }
}

fn meaning(state: MemoryState) -> &'static str {
    match state {
        MemoryState::High => "there is enough",
        MemoryState::Clear => "there is enough, and equal pages are looked for faster",
        MemoryState::Soft => "it is short, and balloons inflate as fast as guests can",
        MemoryState::Hard => "it is short, and what balloons cannot take is compressed and swapped",
        MemoryState::Low => {
            "it is very short, and VMs above their targets are blocked if they touch more"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BalloonRound, generate, plan};
    use proptest::prelude::*;

    fn mebibytes(count: u64) -> PageCount {
        PageCount::from_mebibytes(count)
    }

    fn using(id: u32, active: u64) -> VmSnapshot {
        let mut vm = generate::vm_of_size(id, mebibytes(256).0);
        vm.stage = Stage::Running;
        vm.ballooned = mebibytes(256 - 180);
        vm.granted = mebibytes(180);
        let pages = |active: u64| mebibytes(active);
        vm.evidence.active = Some(ActiveSet {
            pages: pages(active),
            likely: pages(active),
            low: pages(active.saturating_sub(10)),
            high: pages(active + 10),
            held: pages(180),
            ..ActiveSet::default()
        });
        vm
    }

    /// The paper's Figure 7: an idle VM and a busy one in memory for 0.7 of both.
    fn figure_7() -> Snapshot {
        Snapshot {
            budget: mebibytes(360),
            vms: vec![using(1, 20), using(2, 150)],
            ..Snapshot::default()
        }
    }

    fn text(explanation: &Explanation) -> String {
        explanation.text(|id| format!("vm-{id}"))
    }

    fn explained(snapshot: &Snapshot, id: u32, more: u64) -> Explanation {
        explain(snapshot, &plan(snapshot), VmId(id), Some(mebibytes(more))).unwrap()
    }

    #[test]
    fn an_idle_vm_is_told_what_its_idleness_costs() {
        let text = text(&explained(&figure_7(), 1, 40));
        for part in [
            "'vm-1' should hold",
            "leaves it 180 MiB now",
            "2560 of all VMs' 5120 shares, which alone would bring it 180 MiB",
            "It uses 20 MiB (with 95 % confidence 10 MiB to 30 MiB)",
            "at an idle tax of 75 % each idle page costs it as much as 4 that it uses",
            "The host's memory is high: there is enough.",
            "To hold 40 MiB more, any of these would suffice",
            "a min of",
            "using",
            "a budget of",
        ] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }

    #[test]
    fn other_vms_are_called_by_their_names() {
        let text = text(&explained(&figure_7(), 2, 40));
        assert!(text.contains("taken first from 'vm-1'"), "{text}");
    }

    #[test]
    fn a_limit_that_decides_is_said() {
        let mut snapshot = figure_7();
        snapshot.vms[0].pinned = Some(mebibytes(50));
        snapshot.vms[1].settings.max = mebibytes(200);
        assert_eq!(explained(&snapshot, 1, 1).bounds, [Bound::Pin]);
        let limited = explained(&snapshot, 2, 40);
        assert_eq!(limited.bounds, [Bound::Max, Bound::NotFreeYet]);
        assert_eq!(limited.more.unwrap().max, Some(mebibytes(240)));
        assert!(text(&limited).contains("To hold 40 MiB more, its max must be 240 MiB; then"));
    }

    /// A VM of 280 MiB that is idle and one that is to have 180 MiB, which the other holds.
    fn beside_a_full_balloon(held: u64) -> Snapshot {
        let mut snapshot = figure_7();
        snapshot.budget = mebibytes(220);
        snapshot.balloon = Some(BalloonRound::default());
        for (vm, min) in snapshot.vms.iter_mut().zip([16, 180]) {
            vm.settings.size = mebibytes(280);
            vm.settings.max = mebibytes(280);
            vm.settings.min = mebibytes(min);
        }
        for (vm, held) in snapshot.vms.iter_mut().zip([held, 100]) {
            vm.ballooned = mebibytes(280 - held);
            vm.granted = mebibytes(held);
        }
        snapshot
    }

    #[test]
    fn what_decides_does_not_contradict_what_shares_bring() {
        let said = |change: &dyn Fn(&mut Snapshot), id| {
            let mut snapshot = figure_7();
            change(&mut snapshot);
            text(&explained(&snapshot, id, 1))
        };
        // Shares alone bring each 180 MiB, the tax moves some of it to the busy one.
        let below = said(&|snapshot| snapshot.vms[0].settings.min = mebibytes(170), 1);
        assert!(below.contains("alone would bring it 180 MiB"), "{below}");
        assert!(
            below.contains("min decides: as what is idle is taxed, it would get less"),
            "{below}"
        );
        let above = said(&|snapshot| snapshot.vms[0].settings.min = mebibytes(200), 1);
        assert!(above.contains("alone would bring it 180 MiB"), "{above}");
        assert!(
            above.contains("min decides: its shares would bring it less"),
            "{above}"
        );
        let low_max = said(&|snapshot| snapshot.vms[1].settings.max = mebibytes(100), 2);
        assert!(
            low_max.contains("alone would bring it 180 MiB"),
            "{low_max}"
        );
        assert!(
            low_max.contains("max decides: its shares would bring it more"),
            "{low_max}"
        );
        let taxed = said(&|snapshot| snapshot.vms[1].settings.max = mebibytes(190), 2);
        assert!(taxed.contains("alone would bring it 180 MiB"), "{taxed}");
        assert!(
            taxed.contains("max decides: as what is idle is taxed, it would get more"),
            "{taxed}"
        );
        let all = said(&|snapshot| snapshot.budget = mebibytes(1000), 1);
        assert!(all.contains("That is all that it can hold."), "{all}");
        assert!(!all.contains("decides"), "{all}");
    }

    #[test]
    fn it_is_said_when_nobody_can_give_and_what_to_do() {
        let snapshot = beside_a_full_balloon(98);
        let explanation = explained(&snapshot, 2, 1);
        let text = text(&explanation);
        for part in [
            "does not get the rest: others hold",
            "'vm-1' most of it",
            "stop one of them",
            "set host memory=",
        ] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
        assert!(!text.contains("as soon as others"), "{text}");
    }

    #[test]
    fn who_waits_for_room_outside_of_memory_is_told_what_makes_some() {
        let mut explanation = explained(&figure_7(), 1, 1);
        explanation.touch_limit = Some(TouchLimit {
            slow_above: mebibytes(100),
            stop_above: mebibytes(120),
        });
        explanation.has_swap = true;
        assert!(!text(&explanation).contains("finds room"));
        explanation.waits_for_room = true;
        let text = text(&explanation);
        assert!(
            text.contains("so its guest waits: what it has does not shrink"),
            "{text}"
        );
        assert!(text.contains("host --swap DIR"), "{text}");
    }

    #[test]
    fn one_whose_balloon_can_give_is_waited_for() {
        let text = text(&explained(&beside_a_full_balloon(120), 2, 1));
        assert!(
            text.contains("as soon as others have given it up"),
            "{text}"
        );
    }

    #[test]
    fn a_vm_that_may_hold_all_its_size_cannot_hold_more() {
        let mut snapshot = figure_7();
        snapshot.budget = mebibytes(1000);
        let text = text(&explained(&snapshot, 1, 40));
        assert!(
            text.ends_with("It cannot hold more: its size is 256 MiB."),
            "{text}"
        );
    }

    #[test]
    fn there_is_nothing_to_say_of_a_vm_that_is_not_there() {
        let snapshot = figure_7();
        assert_eq!(explain(&snapshot, &plan(&snapshot), VmId(9), None), None);
    }

    proptest! {
        /// Each way is tried: with it the VM gets what was asked, and with a little less it does not.
        #[test]
        fn what_it_takes_suffices_and_nothing_less_does(
            snapshot in generate::informed_snapshot(), which: prop::sample::Index, more in 1u64..3000
        ) {
            prop_assume!(!snapshot.vms.is_empty());
            let index = which.index(snapshot.vms.len());
            let vm = &snapshot.vms[index];
            let more = Some(PageCount(more));
            let explanation = explain(&snapshot, &plan(&snapshot), vm.id, more).unwrap();
            let takes = explanation.more.unwrap();
            let wanted = explanation.target + takes.most.unwrap_or(takes.pages);
            let gets = |change: &dyn Fn(&mut Snapshot)| {
                let mut changed = snapshot.clone();
                let settings = &mut changed.vms[index].settings;
                settings.max = settings.max.max(wanted);
                change(&mut changed);
                targets(&changed)[index].pages
            };
            if let Some(shares) = takes.shares.and_then(NonZeroU32::new) {
                let with = |shares| gets(&|snapshot| snapshot.vms[index].settings.shares = SharesSpec::Count(shares));
                prop_assert!(with(shares) >= wanted);
                if let Some(less) = NonZeroU32::new(shares.get() - 1) {
                    prop_assert!(with(less) < wanted);
                }
            }
            if let Some(budget) = takes.budget {
                let with = |budget| gets(&|snapshot| snapshot.budget = budget);
                prop_assert!(with(budget) >= wanted && with(budget - PageCount(1)) < wanted);
            }
            if let Some(min) = takes.min {
                prop_assert!(gets(&|snapshot| snapshot.vms[index].settings.min = min) >= wanted);
            }
            if let Some(pin) = takes.pin {
                prop_assert!(gets(&|snapshot| snapshot.vms[index].pinned = Some(pin)) >= wanted);
            }
        }

        #[test]
        fn everything_can_be_explained(snapshot in generate::senseless_snapshot(), more: u64) {
            let plan = plan(&snapshot);
            for vm in &snapshot.vms {
                let explanation = explain(&snapshot, &plan, vm.id, Some(PageCount(more)));
                prop_assert!(text(&explanation.unwrap()).ends_with('.'));
            }
        }
    }
}
