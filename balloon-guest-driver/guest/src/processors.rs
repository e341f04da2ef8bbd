//! Starting the other CPUs, and what they do: a [`Pool`] whose members sleep in the halt gate and
//! wake one another by interrupts.
//!
//! A CPU's number is that of its local APIC, and the command line says how many there are, from 0
//! on. One that does not begin in time is no member; should it begin later, it has its own area
//! all the same, and sleeps for good.

use core::hint::spin_loop;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use balloon_guest_driver::PAGE_SIZE;
use balloon_guest_driver::pool::{Lead, Machine, PROCESSORS_MAX, Pool};

use crate::ram::Arena;
use crate::serial::println;
use crate::start_info::Ram;
use crate::{apic, rt};

/// The page of the trampoline. Below 1 MiB is only what loaders left, which was copied, for
/// frames begin behind the image.
const TRAMPOLINE_PAGE: u8 = 8;
/// So long the others have to begin, and after so long those that have not are told once more.
const PATIENCE_US: u64 = 200_000;
const SECOND_CALL_US: u64 = 10_000;

static POOL: Pool = Pool::new();
static BY_INTERRUPT: ByInterrupt = ByInterrupt {
    lead: AtomicU64::new(0),
};

/// How CPUs sleep and wake one another.
struct ByInterrupt {
    /// The boot CPU's number.
    lead: AtomicU64,
}

impl Machine for ByInterrupt {
    fn wake_workers(&self) {
        apic::wake_all_others();
    }

    fn wake_lead(&self) {
        apic::wake(self.lead.load(Ordering::Relaxed).to_le_bytes()[0]);
    }

    fn sleep_while_zero(&self, word: &AtomicU64) {
        rt::halt_while_zero(word);
    }
}

/// Starts the CPUs beside this one. Returns the lead over those that came.
///
/// # Safety
/// Once only, when nobody uses RAM below 1 MiB.
pub(crate) unsafe fn start(count: u32, ram: &[Ram], arena: &mut Arena) -> Lead<'static> {
    let lead = apic::id();
    BY_INTERRUPT.lead.store(lead.into(), Ordering::Relaxed);
    let others = || {
        (0..8_u8)
            .take(count as usize)
            .filter(move |&cpu| cpu != lead)
    };
    if others().next().is_some() && trampoline_is_ram(ram) {
        // SAFETY: the caller says that the page is nobody's, and it was found to be RAM.
        unsafe { copy_trampoline() };
        for cpu in others() {
            // SAFETY: any contents are valid.
            let area = unsafe { arena.cut(1) };
            // SAFETY: the caller says once, so it was not started.
            unsafe { rt::prepare_worker(cpu.into(), &mut area[0]) };
            apic::init(cpu);
        }
        begin(others);
    }
    Lead::new(&POOL, &BY_INTERRUPT)
}

fn begin<I: Iterator<Item = u8>>(others: impl Fn() -> I) {
    let absent = || others().filter(|&cpu| !POOL.has_joined(cpu.into()));
    apic::run_timer();
    for patience_us in [SECOND_CALL_US, PATIENCE_US] {
        absent().for_each(|cpu| apic::startup(cpu, TRAMPOLINE_PAGE));
        while absent().next().is_some() && apic::timer_us() < patience_us {
            (0..1000).for_each(|_| spin_loop());
        }
    }
    apic::stop_timer();
}

fn trampoline_is_ram(ram: &[Ram]) -> bool {
    let start = u64::from(TRAMPOLINE_PAGE) * PAGE_SIZE;
    ram.iter()
        .any(|piece| piece.start <= start && start + PAGE_SIZE <= piece.end)
}

/// # Safety
/// The page must be RAM and nobody else's.
unsafe fn copy_trampoline() {
    let code = rt::trampoline_code();
    assert!(code.len() as u64 <= PAGE_SIZE);
    let page = (usize::from(TRAMPOLINE_PAGE) << 12) as *mut u8;
    // SAFETY: the caller's page is as long, and mapped where it is.
    unsafe { ptr::copy_nonoverlapping(code.as_ptr(), page, code.len()) };
}

/// Says so if there are fewer CPUs than the command line has.
pub(crate) fn tell_missing(count: u32, lead: &Lead<'_>) {
    let running = 1 + lead.workers();
    if count as usize > PROCESSORS_MAX {
        println!("error: {count} cpus: {PROCESSORS_MAX} are the most");
    } else if running < count {
        println!("error: {} of {count} cpus did not start", count - running);
    }
}

/// Where the start of another CPU leads, with its number.
#[unsafe(no_mangle)]
extern "C" fn worker_main(cpu: usize) -> ! {
    apic::start();
    POOL.join(cpu);
    loop {
        POOL.serve(cpu, &BY_INTERRUPT);
    }
}

/// Leaves this CPU asleep for good.
pub(crate) fn stop() -> ! {
    loop {
        rt::halt_while_zero(&AtomicU64::new(0));
    }
}
