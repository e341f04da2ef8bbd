//! Without any one step a page is lost in some order.

use crate::left_out::{Step, leave_out};
use crate::life::life;
use crate::{LOST, ORDERS, SEED, by_chance, by_rank, config};
use shuttle::scheduler::{RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};
use std::cell::RefCell;
use std::panic::{self, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::thread;

/// The first order that fails: how many were tried, and why it did.
struct Failed {
    tried: usize,
    why: String,
}

thread_local! {
    /// Why a thread panicked first, if it may.
    static WHY: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of threads that may are kept to be looked at, instead of printed.
fn hear_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Shuttle hears them, too, from its first run on.
        let once = RandomScheduler::new_from_seed(SEED, 1);
        Runner::new(once, config()).run(|| ());
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let said = panic.payload_as_str().unwrap_or_default();
            let is_heard = WHY.with_borrow_mut(|why| match why {
                Some(why) if why.is_empty() => {
                    said.clone_into(why);
                    true
                }
                why => why.is_some(),
            });
            if !is_heard {
                print(panic);
            }
        }));
    });
}

fn without(step: Step, scheduler: impl Scheduler + Send + 'static) -> Option<Failed> {
    hear_panics();
    // Who fails under shuttle leaves its thread as one that panics.
    let tries = thread::spawn(move || {
        WHY.set(Some(String::new()));
        leave_out(Some(step));
        first_that_fails(scheduler)
    });
    tries.join().unwrap()
}

fn first_that_fails(scheduler: impl Scheduler + 'static) -> Option<Failed> {
    let tried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tried);
    let run = catch_unwind(panic::AssertUnwindSafe(|| {
        Runner::new(scheduler, quiet()).run(move || {
            count.fetch_add(1, Ordering::Relaxed);
            life();
        })
    }));
    run.is_err().then(|| Failed {
        tried: tried.load(Ordering::Relaxed),
        why: WHY.take().unwrap_or_default(),
    })
}

/// A failure is no news.
fn quiet() -> Config {
    let mut config = config();
    config.failure_persistence = FailurePersistence::None;
    config
        .ungraceful_shutdown_config
        .immediately_return_on_panic = true;
    config
}

fn is_missed(step: Step) {
    let failed = without(step, by_chance()).or_else(|| {
        let after = |failed: Failed| Failed {
            tried: failed.tried + ORDERS,
            ..failed
        };
        without(step, by_rank()).map(after)
    });
    let Some(Failed { tried, why }) = failed else {
        panic!("nobody misses {step:?}");
    };
    println!("{step:?} left out, in order {tried}: {why}");
    assert!(why.contains(LOST), "{step:?}: {why}");
}

macro_rules! a_page_is_lost_unless {
    ($($claim:ident: $step:ident,)*) => {
        mod a_page_is_lost_unless {
            $(#[test]
            fn $claim() {
                super::is_missed(super::Step::$step);
            })*
        }
    };
}

a_page_is_lost_unless! {
    who_touches_a_hole_waits: HolesWait,
    who_writes_behind_the_fence_waits: WritersWait,
    none_comes_where_all_are_kept_out: NoneComes,
    what_comes_to_be_read_is_protected: ReadComesProtected,
    it_stays_protected_when_the_fence_is_lowered: StaysProtected,
    it_is_forgotten_when_it_is_written: WrittenIsForgotten,
    it_is_forgotten_where_memory_is_let_go: LetGoIsForgotten,
    it_is_forgotten_when_it_is_given_up: GivenUpIsForgotten,
    it_is_forgotten_when_it_lies_elsewhere: MovedIsForgotten,
    what_is_out_is_not_compared: OutIsNotCompared,
    no_page_is_made_where_a_frame_is_shown: FrameStays,
    the_pager_knows_of_the_fence_before_writers_wait: FencedFirst,
    the_pager_lets_nobody_write_behind_the_fence: FencedWait,
    no_fence_is_raised_while_the_pager_lets_a_writer_in: LiftedUnderFence,
    no_fence_is_raised_while_the_pager_makes_a_page: MadeUnderFence,
    none_comes_protected_while_the_fence_is_lowered: LoweredUnderFence,
    only_the_newest_is_brought: BroughtIsNewest,
    it_is_in_memory_as_soon_as_it_is_not_out: BroughtUnderLog,
    none_goes_out_while_its_place_is_filled_with_zeros: ZeroedUnderLog,
    what_is_still_there_stays_out: ThereStaysOut,
    what_is_given_up_is_forgotten_before_it_is_punched: ForgottenFirst,
    only_what_is_as_it_was_read_is_left_to_a_disk: LeftAsRead,
    only_what_is_left_to_a_disk_still_is_brought_from_there: OnDiskStill,
}
