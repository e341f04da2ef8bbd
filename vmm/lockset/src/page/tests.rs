//! Lives of a page: as they are led, and with one step left out.

use super::*;
use proptest::prelude::*;

type Step = Result<(), Race>;

#[track_caller]
fn agent() -> Visit {
    Visit {
        thread: 1,
        has: Protections::AGENT,
        place: Location::caller(),
    }
}

#[track_caller]
fn agent_with_log() -> Visit {
    let has = Protections::AGENT | Protections::LOG;
    Visit { has, ..agent() }
}

#[track_caller]
fn pager(has: Protections) -> Visit {
    Visit {
        thread: 2,
        has,
        place: Location::caller(),
    }
}

#[track_caller]
fn device() -> Visit {
    Visit {
        thread: 3,
        has: Protections::empty(),
        place: Location::caller(),
    }
}

const BOTH: Protections = Protections::LOG.union(Protections::FENCE_LOCK);

fn new() -> Page {
    let mut page = Page::default();
    page.opened(agent());
    page
}

fn guarded() -> Page {
    let mut page = new();
    page.unregistered(agent()).unwrap();
    page.registered(agent(), true).unwrap();
    page
}

fn raise(page: &mut Page, keeps_all: bool) -> Step {
    page.fenced(agent(), keeps_all);
    page.protected(agent())
}

fn lower(page: &mut Page) -> Step {
    if !page.is_kept {
        page.lifted(agent())?;
    }
    page.unfenced(agent())
}

fn take_out(page: &mut Page) -> Step {
    raise(page, false)?;
    page.looked_at(agent())?;
    page.taken_out(agent())?;
    page.punched(agent())?;
    lower(page)
}

fn bring(page: &mut Page, is_kept: bool) -> Step {
    page.made(pager(BOTH), is_kept)?;
    match is_kept {
        true => page.kept(pager(BOTH)),
        false => page.forgotten(pager(BOTH)),
    }
}

fn let_write(page: &mut Page) -> Step {
    page.forgotten(pager(BOTH))?;
    page.lifted(pager(Protections::FENCE_LOCK))
}

fn share(page: &mut Page) -> Step {
    let is_guarded = page.holes_wait;
    raise(page, true)?;
    page.looked_at(agent())?;
    page.mapped_from_store(agent())?;
    page.punched(agent())?;
    page.forgotten(agent_with_log())?;
    if is_guarded {
        page.registered(agent(), false)?;
    }
    lower(page)
}

fn bring_home(page: &mut Page, is_guarded: bool) -> Step {
    raise(page, true)?;
    page.looked_at(agent())?;
    page.written_home(agent())?;
    page.mapped_home(agent())?;
    if is_guarded {
        page.registered(agent(), true)?;
    }
    lower(page)
}

fn give_up(page: &mut Page, is_guarded: bool) -> Step {
    page.given_up(device());
    if page.lies == Lies::Shown {
        page.mapped_home(agent())?;
        page.registered(agent(), is_guarded)?;
    }
    page.forgotten(agent_with_log())?;
    page.punched(agent())?;
    page.answered(device());
    Ok(())
}

/// As it may be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    There,
    Hole,
    Out,
    Shown,
}

proptest! {
    /// Nothing is told of a page with which all is done as it should be, in whatever order.
    #[test]
    fn who_keeps_to_the_rules_is_not_accused(
        steps in prop::collection::vec((0u8..7, any::<bool>()), 0..60), is_guarded in any::<bool>()
    ) {
        let mut page = if is_guarded { guarded() } else { new() };
        let mut seen = Seen::There;
        for (step, flag) in steps {
            let (done, after) = match (step, seen) {
                (0, Seen::There) if is_guarded => (take_out(&mut page), Seen::Out),
                (1, Seen::Out) => (bring(&mut page, flag), Seen::There),
                (2, Seen::Hole) if is_guarded => (page.made(pager(BOTH), false), Seen::There),
                (3, Seen::There) if page.is_kept => (let_write(&mut page), Seen::There),
                (4, Seen::There | Seen::Hole) => (share(&mut page), Seen::Shown),
                (5, Seen::Shown) => (bring_home(&mut page, is_guarded), Seen::There),
                (6, _) => (give_up(&mut page, is_guarded), Seen::Hole),
                _ => (Ok(()), seen),
            };
            prop_assert!(done.is_ok(), "step {step} of {seen:?}: {}", done.unwrap_err());
            seen = after;
        }
    }
}

#[track_caller]
fn is_told_of(done: Step, aspect: Aspect) -> Race {
    let race = done.expect_err("it is told");
    assert_eq!(race.aspect, aspect, "{race}");
    assert!(race.earlier.is_some(), "{race}");
    race
}

#[test]
fn looking_without_a_fence_is_told_with_both_places() {
    let (mut page, guest) = (Page::default(), agent());
    page.opened(guest);
    let visit = agent();
    let race = is_told_of(page.looked_at(visit), Aspect::Content);
    assert_eq!(
        (race.place.line(), race.earlier.unwrap().line()),
        (visit.place.line(), guest.place.line())
    );
    assert_eq!(race.held, Protections::AGENT);
    let mut page = new();
    page.fenced(agent(), true);
    is_told_of(page.mapped_from_store(agent()), Aspect::Content);
}

#[test]
fn what_is_mapped_anew_is_protected_by_nobody() {
    let mut page = new();
    raise(&mut page, true).unwrap();
    page.looked_at(agent()).unwrap();
    page.mapped_from_store(agent()).unwrap();
    is_told_of(page.looked_at(agent()), Aspect::Content);
}

#[test]
fn a_copy_that_its_guest_made_is_dropped_behind_the_fence_alone() {
    let mut page = new();
    page.copy_dropped(agent()).unwrap();
    share(&mut page).unwrap();
    is_told_of(page.copy_dropped(agent()), Aspect::Content);
}

#[test]
fn pages_come_under_both_locks_and_where_nobody_is_kept_out() {
    let mut out = guarded();
    take_out(&mut out).unwrap();
    let made = |has| {
        let mut page = out;
        page.made(pager(has), false)
    };
    made(BOTH).unwrap();
    is_told_of(made(Protections::LOG), Aspect::Backing);
    is_told_of(made(Protections::FENCE_LOCK), Aspect::Record);
    let mut closed = out;
    closed.fenced(agent(), true);
    is_told_of(closed.made(pager(BOTH), false), Aspect::Backing);
    let mut shown = guarded();
    share(&mut shown).unwrap();
    is_told_of(shown.made(pager(BOTH), false), Aspect::Backing);
}

/// Somebody touched a hole before it was let go.
#[test]
fn the_last_zeros_may_come_when_nobody_waits_any_more() {
    let mut page = guarded();
    page.unregistered(agent()).unwrap();
    page.made(pager(BOTH), false).unwrap();
    page.given_up(device());
    page.punched(agent()).unwrap();
}

#[test]
fn what_is_taken_is_its_takers_until_it_is_punched() {
    let mut page = guarded();
    raise(&mut page, false).unwrap();
    page.taken_out(agent()).unwrap();
    page.made(pager(BOTH), false).unwrap();
    is_told_of(page.punched(agent()), Aspect::Backing);
}

#[test]
fn the_hole_of_a_page_that_is_out_is_heard_of() {
    let mut page = guarded();
    page.registered(agent(), false).unwrap();
    is_told_of(take_out(&mut page), Aspect::Backing);
    let mut page = guarded();
    take_out(&mut page).unwrap();
    is_told_of(page.unregistered(agent()), Aspect::Backing);
    let mut page = guarded();
    take_out(&mut page).unwrap();
    page.fenced(agent(), true);
    is_told_of(page.looked_at(agent()), Aspect::Content);
}

#[test]
fn what_is_out_is_forgotten_only_when_it_was_given_up() {
    let mut page = guarded();
    take_out(&mut page).unwrap();
    is_told_of(page.forgotten(agent_with_log()), Aspect::Record);
    let mut page = guarded();
    raise(&mut page, true).unwrap();
    page.taken_out(agent()).unwrap();
    page.forgotten(agent_with_log()).unwrap();
}

#[test]
fn protection_is_lifted_by_who_has_raised_it() {
    let mut page = guarded();
    raise(&mut page, false).unwrap();
    is_told_of(page.lifted(pager(Protections::FENCE_LOCK)), Aspect::Content);
}

#[test]
fn what_is_kept_is_kept_only_while_writes_are_heard_of() {
    let mut kept = guarded();
    take_out(&mut kept).unwrap();
    bring(&mut kept, true).unwrap();
    let mut page = kept;
    raise(&mut page, false).unwrap();
    page.lifted(agent()).unwrap();
    is_told_of(page.unfenced(agent()), Aspect::Record);
    let mut page = kept;
    is_told_of(page.lifted(pager(Protections::FENCE_LOCK)), Aspect::Record);
    let mut page = kept;
    page.not_kept();
    page.lifted(pager(Protections::FENCE_LOCK)).unwrap();
    let mut page = kept;
    is_told_of(page.unregistered(agent()), Aspect::Record);
    let mut page = kept;
    page.given_up(device());
    is_told_of(page.punched(agent()), Aspect::Record);
    let mut page = guarded();
    take_out(&mut page).unwrap();
    page.made(pager(BOTH), false).unwrap();
    is_told_of(page.kept(pager(BOTH)), Aspect::Record);
}

#[test]
fn what_is_given_up_is_freed_before_the_answer_and_forgotten() {
    let mut page = new();
    page.given_up(device());
    page.answered(device());
    is_told_of(page.punched(agent()), Aspect::Content);
    let mut page = guarded();
    take_out(&mut page).unwrap();
    page.given_up(device());
    is_told_of(page.punched(agent()), Aspect::Backing);
}

#[test]
fn a_device_that_does_not_wait_for_the_fence_is_told() {
    let mut page = new();
    page.written_by_device(device(), true).unwrap();
    is_told_of(page.written_by_device(device(), false), Aspect::Content);
}
