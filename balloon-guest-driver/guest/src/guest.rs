//! The event loop: console, balloon, disk and workload in turn, and sleep when none has anything to
//! do.

use core::fmt;

use balloon_guest_driver::balloon::Progress;
use balloon_guest_driver::command_line::CommandLine;
use balloon_guest_driver::console::{Command, HELP, LineEditor, Typed};
use balloon_guest_driver::pauses::Pauses;
use balloon_guest_driver::pool::Lead;
use balloon_guest_driver::report::Report;
use balloon_guest_driver::workload::Rest;
use balloon_guest_driver::workload::spec::Spec;

use crate::device::GuestBalloon;
use crate::resources::Resources;
use crate::serial::{print, println};
use crate::{apic, clock, power, rt, serial};

pub(crate) const TIMER_LINE: u8 = 0;
pub(crate) const SERIAL_LINE: u8 = 1;
pub(crate) const BALLOON_LINE: u8 = 2;
pub(crate) const DISK_LINE: u8 = 3;

/// How long the workload may keep the others waiting.
const SLICE_US: u64 = 1000;
/// The same while the balloon moves: the device should never wait for the next batch.
const SLICE_MOVING_US: u64 = 100;

/// The running guest.
#[derive(Debug)]
pub(crate) struct Guest {
    id: u32,
    quiet: bool,
    resources: Resources,
    lead: Lead<'static>,
    balloon: Option<GuestBalloon>,
    /// What runs once the balloon has its size.
    at_start: Option<Spec>,
    editor: LineEditor,
    timer_at_us: Option<u64>,
    growth: Growth,
    pauses: Pauses,
}

/// How the running workload came to hold what it holds.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    started_us: u64,
    /// In pages.
    held: u32,
    /// How long after its start it held more than before for the last time.
    grown_us: u64,
}

impl Guest {
    pub(crate) fn new(
        line: &CommandLine<'_>,
        resources: Resources,
        lead: Lead<'static>,
        balloon: Option<GuestBalloon>,
    ) -> Self {
        let spec = line.workload.map_or(Ok(Spec::IDLE), Spec::parse);
        if let Err(error) = &spec {
            println!("error: {error}");
        }
        Self {
            id: line.id,
            quiet: line.quiet,
            resources,
            lead,
            balloon,
            at_start: Some(spec.unwrap_or(Spec::IDLE)),
            editor: LineEditor::new(),
            timer_at_us: None,
            growth: Growth::default(),
            pauses: Pauses::new(clock::now_us()),
        }
    }

    /// Runs until power-off.
    pub(crate) fn run(&mut self) -> ! {
        self.prompt();
        // What was typed before the pin was connected made no interrupt.
        self.read_console();
        loop {
            self.pauses.turn(clock::now_us());
            if rt::take_pending(SERIAL_LINE.into()) {
                self.read_console();
            }
            let progress = self.serve_balloon();
            if progress != Progress::Moving
                && let Some(spec) = self.at_start.take()
            {
                self.start(spec);
            }
            if rt::take_pending(DISK_LINE.into())
                && let Some(disk) = &mut self.resources.disk
            {
                disk.on_interrupt();
            }
            match self.run_workload(progress) {
                Rest::No => {}
                Rest::Until(time_us) => self.sleep(Some(time_us)),
                Rest::Asleep => self.sleep(None),
            }
        }
    }

    fn serve_balloon(&mut self) -> Progress {
        let Some(balloon) = &mut self.balloon else {
            return Progress::Settled;
        };
        if rt::take_pending(BALLOON_LINE.into()) {
            balloon.on_interrupt();
        }
        match balloon.poll(&mut self.resources, clock::now_us()) {
            Ok(progress) => progress,
            Err(broken) => {
                self.tell(format_args!("error: {broken}; going on without it"));
                // Kept from being dropped, for the device may still use its memory.
                core::mem::forget(self.balloon.take());
                Progress::Settled
            }
        }
    }

    fn run_workload(&mut self, progress: Progress) -> Rest {
        // Waking the others is not worth it for a short slice.
        let rest = match progress {
            Progress::Moving => self.resources.run_workload(SLICE_MOVING_US, None),
            _ => self.resources.run_workload(SLICE_US, Some(&self.lead)),
        };
        let held = self.resources.workload.held();
        if held > self.growth.held {
            self.growth.held = held;
            self.growth.grown_us = clock::now_us() - self.growth.started_us;
        }
        if let Some(failure) = self.resources.workload.take_failure() {
            self.tell(format_args!("{failure}"));
        }
        if let Some(done) = self.resources.workload.take_done() {
            self.tell(format_args!("{done}"));
        }
        let lacks = self.resources.workload.lacks(&self.resources.frames);
        if lacks > 0
            && let Some(balloon) = &mut self.balloon
            && balloon.relieve(lacks, clock::now_us()) > 0
        {
            return Rest::No;
        }
        rest
    }

    /// Halts until an interrupt or until the workload or the balloon want to go on.
    fn sleep(&mut self, wake_at_us: Option<u64>) {
        let now_us = clock::now_us();
        let balloon = self
            .balloon
            .as_ref()
            .and_then(|balloon| balloon.wake_at_us(now_us));
        let wake_at_us = wake_at_us.into_iter().chain(balloon).min();
        if wake_at_us.is_some_and(|time_us| time_us <= now_us) {
            return;
        }
        if rt::take_pending(TIMER_LINE.into()) {
            self.timer_at_us = None;
        }
        if wake_at_us != self.timer_at_us {
            match wake_at_us {
                Some(time_us) => apic::arm_timer(TIMER_LINE, time_us - now_us),
                None => apic::stop_timer(),
            }
            self.timer_at_us = wake_at_us;
        }
        self.pauses.rest(now_us, wake_at_us);
        rt::halt();
    }

    fn read_console(&mut self) {
        while let Some(byte) = serial::read() {
            self.typed(byte);
        }
    }

    fn typed(&mut self, byte: u8) {
        match self.editor.push(byte) {
            Typed::Nothing => {}
            Typed::Echo(byte) => serial::write(&[byte]),
            Typed::Erase(count) => erase(count),
            Typed::Complete => {
                serial::write(b"\r\n");
                self.obey();
                self.prompt();
            }
        }
    }

    fn obey(&mut self) {
        match Command::parse(self.editor.line()) {
            Command::Nothing => {}
            Command::Help => print!("{HELP}"),
            Command::Workload(text) => match Spec::parse(text) {
                Ok(spec) => self.start(spec),
                Err(error) => println!("error: {error}"),
            },
            Command::Order(order) => {
                if let Err(error) = self.resources.workload.tell(order) {
                    println!("error: {error}");
                }
            }
            Command::Stop => self.start(Spec::IDLE),
            Command::Report => {
                let report = self.report();
                println!("{report}");
            }
            Command::Off => power::off(),
            Command::Unknown(line) => println!("error: no command `{line}`; try help"),
        }
    }

    fn start(&mut self, spec: Spec) {
        self.at_start = None;
        self.growth = Growth {
            started_us: clock::now_us(),
            ..Growth::default()
        };
        if let Err(error) = self.resources.start(spec) {
            println!("error: {error}");
        }
    }

    /// Prints a message that nobody asked for in place of the line that is being typed, and that line again.
    fn tell(&self, message: fmt::Arguments<'_>) {
        let typed = self.editor.incomplete();
        erase(typed.len());
        if !self.quiet {
            // The message is longer than the prompt.
            print!("\r");
        }
        println!("{message}");
        self.prompt();
        print!("{typed}");
    }

    fn prompt(&self) {
        if !self.quiet {
            print!("> ");
        }
    }

    fn report(&mut self) -> Report {
        let workload = &self.resources.workload;
        Report {
            guest: self.id,
            uptime_ms: clock::now_us() / 1000,
            cpus: 1 + self.lead.workers(),
            workload: self.at_start.unwrap_or(workload.spec()),
            pages_total: self.resources.frames.total(),
            pages_free: self.resources.frames.free_count(),
            held: workload.held(),
            grown_us: self.growth.grown_us,
            pause_us: self.pauses.take_longest_us(),
            balloon: self
                .balloon
                .as_ref()
                .map(GuestBalloon::figures)
                .unwrap_or_default(),
            counters: workload.counters(),
        }
    }
}

/// Takes so many bytes back from the end of the line.
fn erase(count: usize) {
    (0..count).for_each(|_| serial::write(b"\x08 \x08"));
}
