//! A VM process from its first message to its end: builds the machine, then waits for whatever
//! comes first, a message, console input or room for output, a notified queue, a signal or the guest's end.
//!
//! A signal that tells the process to end does what the host's `stop` does: a kernel's power button is pressed and
//! it has some time, the embedded guest has nothing to put in order.

use crate::event::Event as Wake;
use crate::memory::agent::AgentHandle;
use crate::memory::ram::GuestRam;
use crate::protocol::page_sharing::SharingSocket;
use crate::protocol::{
    BalloonView, Channel, ChannelError, Description, FromVm, Observation, OnHostDeath, Received,
    ToVm, UNASKED, VmConfig, VmCounters,
};
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::Disk;
use crate::vm::boot;
use crate::vm::bus::Bus;
use crate::vm::console::{Backlog, Console, InputState};
use crate::vm::devices::{Devices, RunningNet, ServedQueue, Wires};
use crate::vm::end_signals::EndSignals;
use crate::vm::error::VmError;
use crate::vm::gate::Gate;
use crate::vm::machine::Machine;
use crate::vm::vcpu::{self, Ending};
use crate::vm::warden::Warden;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a kernel has to switch itself off when its power button is pressed.
pub const POWER_OFF_PATIENCE: Duration = Duration::from_secs(20);
/// How long a VM's end may wait for whoever reads the guest's last words.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(100);

/// Runs the VM that the host at `channel` describes; its console is at `console`.
///
/// # Errors
/// When the VM cannot start or go on. The host has been told then, if it is still there.
pub fn main(channel: Channel, console: OwnedFd) -> Result<(), VmError> {
    let result = EndSignals::take()
        .map_err(VmError::StartThread)
        .and_then(|signals| start(&channel, console, signals)?.run());
    if let Err(error) = &result {
        let error = crate::error_chain(error);
        ignore_gone_host(channel.send(&FromVm::Failed { error }, &[]));
    }
    result
}

/// The host may have died: the VM's own end is the same then.
fn ignore_gone_host(sent: Result<(), ChannelError>) {
    if let Err(error) = sent {
        tracing::debug!("the host is not there: {error}");
    }
}

/// What the main thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Message,
    ConsoleInput,
    ConsoleRoom,
    ConsoleOutput,
    Ending,
    EndSignal,
    Queue(usize),
}

impl Source {
    /// Sources as the numbers that the kernel hands back.
    fn number(self) -> u64 {
        match self {
            Self::Message => 0,
            Self::ConsoleInput => 1,
            Self::ConsoleRoom => 2,
            Self::ConsoleOutput => 3,
            Self::Ending => 4,
            Self::EndSignal => 5,
            Self::Queue(index) => 6 + index as u64,
        }
    }

    fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Message,
            1 => Self::ConsoleInput,
            2 => Self::ConsoleRoom,
            3 => Self::ConsoleOutput,
            4 => Self::Ending,
            5 => Self::EndSignal,
            queue => Self::Queue(usize::try_from(queue - 6).unwrap_or(usize::MAX)),
        }
    }
}

/// A running VM.
struct Process<'a> {
    channel: &'a Channel,
    config: VmConfig,
    start_us: u64,
    ram: GuestRam,
    agent: AgentHandle,
    bus: Arc<Bus>,
    balloon: Arc<Balloon>,
    nets: Vec<RunningNet>,
    disks: Vec<Arc<Disk>>,
    queues: Vec<ServedQueue>,
    power_button: Wake,
    warden: Warden,
    endings: Receiver<Ending>,
    ended: Wake,
    signals: EndSignals,
    /// When a guest that was told to switch itself off has had its time.
    power_off_by: Option<Instant>,
    epoll: OwnedFd,
    // KVM's side of the machine lives as long as this.
    _machine: Machine,
}

fn start(channel: &Channel, console: OwnedFd, signals: EndSignals) -> Result<Process<'_>, VmError> {
    let first: Received<ToVm> = channel.receive().map_err(VmError::Channel)?;
    let ToVm::Boot(config) = first.message else {
        return Err(VmError::NoBoot);
    };
    let scanner = first
        .descriptors
        .into_iter()
        .next()
        .map(SharingSocket::from);
    let begin = Instant::now();
    let ram = GuestRam::new(config.settings.size)?;
    let machine = Machine::new(&ram)?;
    let agent = AgentHandle::start(&ram, scanner)?;
    let mut devices = Devices::new(&machine, &ram);
    let wires = Wires::new(Balloon::QUEUES)?;
    let balloon = Arc::new(Balloon::new(
        ram.clone(),
        agent.clone(),
        wires.interrupt.clone(),
        config.balloon_target,
    ));
    devices.add_served(&balloon, &wires)?;
    let disks = devices.add_disks(&config.disks)?;
    let nets = devices.add_nets(&config.nets)?;
    if config.kernel.is_some() {
        devices.add_rng()?;
    }
    let slots = devices.slots();
    let (devices, queues) = devices.finish();
    let bus = Arc::new(Bus {
        console: Console::new(console).map_err(VmError::StartThread)?,
        devices,
    });
    machine.connect_console(bus.console.line())?;
    let power_button = Wake::new().map_err(VmError::StartThread)?;
    machine.connect_power_button(&power_button)?;
    let entry = boot::load(&config, &ram, &slots)?;
    let vcpus = machine.vcpus(config.vcpus, entry)?;
    let ended = Wake::new().map_err(VmError::StartThread)?;
    let (tell, endings) = mpsc::channel();
    let gate = Arc::new(Gate::closed());
    let vcpus = (0..)
        .zip(vcpus)
        .map(|(index, vcpu)| {
            let run = {
                let (bus, gate) = (Arc::clone(&bus), Arc::clone(&gate));
                move || vcpu::run(vcpu, &bus, &gate)
            };
            start_vcpu(index, run, tell.clone(), ended.clone())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let warden =
        Warden::start(ram.clone(), Arc::clone(&gate), vcpus).map_err(VmError::StartThread)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(VmError::Wait)?;
    let start_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    let process = Process {
        channel,
        config: *config,
        start_us,
        ram,
        agent,
        bus,
        balloon,
        nets,
        disks,
        queues,
        power_button,
        warden,
        endings,
        ended,
        signals,
        power_off_by: None,
        epoll,
        _machine: machine,
    };
    process.watch_all()?;
    process.announce()?;
    gate.open();
    Ok(process)
}

fn start_vcpu(
    index: usize,
    run: impl FnOnce() -> Ending + Send + 'static,
    tell: Sender<Ending>,
    ended: Wake,
) -> Result<JoinHandle<()>, VmError> {
    let body = move || {
        // Nobody listens any more only when the process is ending already.
        if tell.send(run()).is_ok() {
            ended.signal();
        }
    };
    thread::Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(body)
        .map_err(VmError::StartThread)
}

impl Process<'_> {
    fn watch_all(&self) -> Result<(), VmError> {
        self.watch(self.channel, Source::Message)?;
        self.watch(self.bus.console.input(), Source::ConsoleInput)?;
        self.watch(self.bus.console.room(), Source::ConsoleRoom)?;
        self.watch(self.bus.console.backlog(), Source::ConsoleOutput)?;
        self.watch_console_output()?;
        self.watch(&self.ended, Source::Ending)?;
        self.watch(self.signals.event(), Source::EndSignal)?;
        for (index, queue) in self.queues.iter().enumerate() {
            self.watch(&queue.notified, Source::Queue(index))?;
        }
        Ok(())
    }

    fn watch(&self, fd: impl AsFd, source: Source) -> Result<(), VmError> {
        epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(source.number()),
            EventFlags::IN,
        )
        .map_err(VmError::Wait)
    }

    /// Not for room yet, for mostly there is some: that is asked for when something waits for it.
    fn watch_console_output(&self) -> Result<(), VmError> {
        epoll::add(
            &self.epoll,
            self.bus.console.output(),
            EventData::new_u64(Source::ConsoleOutput.number()),
            EventFlags::ONESHOT,
        )
        .map_err(VmError::Wait)
    }

    /// Once: neither a socket with room nor one whose other side is gone wakes us again and again.
    fn ask_for_console_room(&self) -> Result<(), VmError> {
        epoll::modify(
            &self.epoll,
            self.bus.console.output(),
            EventData::new_u64(Source::ConsoleOutput.number()),
            EventFlags::OUT | EventFlags::ONESHOT,
        )
        .map_err(VmError::Wait)
    }

    fn unwatch(&self, fd: impl AsFd) {
        // Fails only for what is not watched.
        if let Err(error) = epoll::delete(&self.epoll, fd) {
            tracing::debug!("was not watched: {error}");
        }
    }

    fn announce(&self) -> Result<(), VmError> {
        let started = FromVm::Started(Box::new(self.description()));
        self.channel
            .send(&started, &[self.ram.file().as_fd()])
            .map_err(VmError::Channel)
    }

    fn run(&mut self) -> Result<(), VmError> {
        self.signals.let_in();
        let result = self.handle_all();
        // The processors run on until the process ends; their requests are not answered any more.
        self.disks.iter().for_each(|disk| disk.close());
        self.tell_of_disk_errors();
        self.bus.console.send_backlog_within(LAST_WORDS_PATIENCE);
        result
    }

    /// There may be some of which nobody will ask any more: what was written may be lost only when the disk is
    /// closed.
    fn tell_of_disk_errors(&self) {
        let mut figures = self.disks.iter().map(|disk| disk.figures());
        if !figures.any(|figures| figures.counters.errors > 0) {
            return;
        }
        let told = self
            .observation(UNASKED, false)
            .and_then(|last| self.answer(&FromVm::Observation(Box::new(last))));
        if let Err(error) = told {
            tracing::debug!("nobody hears of the disks' errors: {error}");
        }
    }

    fn handle_all(&mut self) -> Result<(), VmError> {
        loop {
            for source in self.wait()? {
                if self.handle(source)? == Next::End {
                    return Ok(());
                }
            }
            if self.time_to_switch_off() == Some(Duration::ZERO) {
                self.say_ended("its process was told to end by a signal, and its guest did not switch itself off");
                return Ok(());
            }
        }
    }

    /// What is left of it, if the guest was told to.
    fn time_to_switch_off(&self) -> Option<Duration> {
        let by = self.power_off_by?;
        Some(by.saturating_duration_since(Instant::now()))
    }

    fn wait(&self) -> Result<Vec<Source>, VmError> {
        let mut events = [MaybeUninit::<Event>::uninit(); 16];
        let time = self.time_to_switch_off().map(Timespec::try_from);
        let time = time.transpose().unwrap_or_default();
        match epoll::wait(&self.epoll, &mut events, time.as_ref()) {
            Ok((events, _)) => Ok(events
                .iter()
                .map(|event| Source::from_number(event.data.u64()))
                .collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(VmError::Wait(error)),
        }
    }

    fn handle(&mut self, source: Source) -> Result<Next, VmError> {
        match source {
            Source::Message => return self.take_message(),
            Source::ConsoleInput => self.take_console_input(),
            Source::ConsoleRoom => {
                self.bus.console.room().drain();
                self.unwatch(self.bus.console.input());
                self.watch(self.bus.console.input(), Source::ConsoleInput)?;
            }
            Source::ConsoleOutput => self.send_console_output()?,
            Source::Queue(index) => self.serve(index),
            Source::Ending => return Ok(self.take_ending()),
            Source::EndSignal => return Ok(self.take_end_signal()),
        }
        Ok(Next::GoOn)
    }

    fn serve(&self, index: usize) {
        let queue = &self.queues[index];
        queue.notified.drain();
        if queue.device.serve(queue.queue) {
            queue.notified.signal();
        }
    }

    fn take_console_input(&self) {
        match self.bus.console.take_input() {
            InputState::Open => {}
            InputState::Full | InputState::Closed => self.unwatch(self.bus.console.input()),
        }
    }

    fn send_console_output(&self) -> Result<(), VmError> {
        // First: what begins to wait from here on is announced anew.
        self.bus.console.backlog().drain();
        match self.bus.console.send_backlog() {
            Backlog::Empty => Ok(()),
            Backlog::Waiting => self.ask_for_console_room(),
        }
    }

    fn take_ending(&self) -> Next {
        self.ended.drain();
        let Ok(ending) = self.endings.try_recv() else {
            return Next::GoOn;
        };
        self.say_ended(&ending.reason());
        Next::End
    }

    fn take_end_signal(&mut self) -> Next {
        self.signals.event().drain();
        if self.config.kernel.is_none() {
            self.say_ended("its process was told to end by a signal");
            return Next::End;
        }
        self.power_button.signal();
        self.power_off_by
            .get_or_insert_with(|| Instant::now() + POWER_OFF_PATIENCE);
        Next::GoOn
    }

    fn say_ended(&self, reason: &str) {
        let reason = reason.to_owned();
        ignore_gone_host(self.channel.send(&FromVm::Ended { reason }, &[]));
    }

    fn take_message(&mut self) -> Result<Next, VmError> {
        match self.channel.receive() {
            Ok(received) => self.obey(received.message),
            Err(ChannelError::Closed) => Ok(self.outlive_host()),
            Err(error) => Err(VmError::Channel(error)),
        }
    }

    fn outlive_host(&self) -> Next {
        if self.config.on_host_death == OnHostDeath::Stop {
            return Next::End;
        }
        self.unwatch(self.channel);
        // Nobody would ever lift a limit.
        self.warden.set(None);
        Next::GoOn
    }

    fn obey(&mut self, message: ToVm) -> Result<Next, VmError> {
        match message {
            ToVm::Boot(_) => return Err(VmError::BootTwice),
            ToVm::SetBalloon { target } => {
                self.config.balloon_target = target;
                self.balloon.set_target(target);
            }
            ToVm::SetLimit(limit) => self.warden.set(limit),
            ToVm::SetSettings(settings) => self.config.settings = settings,
            ToVm::Observe {
                sequence,
                recount,
                statistics,
            } => {
                if statistics {
                    self.balloon.request_statistics();
                }
                let observation = self.observation(sequence, recount)?;
                self.answer(&FromVm::Observation(Box::new(observation)))?;
            }
            ToVm::Describe => {
                let description = FromVm::Description(Box::new(self.description()));
                self.channel
                    .send(&description, &[self.ram.file().as_fd()])
                    .map_err(VmError::Channel)?;
            }
            ToVm::PressPowerButton => self.power_button.signal(),
            ToVm::Stop => return Ok(Next::End),
        }
        Ok(Next::GoOn)
    }

    /// A host that has died in the meantime is noticed at the next message.
    fn answer(&self, message: &FromVm) -> Result<(), VmError> {
        match self.channel.send(message, &[]) {
            Ok(()) | Err(ChannelError::Closed) => Ok(()),
            Err(error) => Err(VmError::Channel(error)),
        }
    }

    fn description(&self) -> Description {
        Description {
            config: self.config.clone(),
            pid: std::process::id(),
            start_us: self.start_us,
            userfault_pages: self.ram.layout().size(),
            mappings: self.ram.mappings(),
        }
    }

    fn observation(&self, sequence: u64, recount: bool) -> Result<Observation, VmError> {
        let balloon = &self.balloon;
        let states = balloon.page_states(recount)?;
        Ok(Observation {
            sequence,
            states,
            balloon: BalloonView {
                has_driver: balloon.has_driver(),
                target: balloon.target(),
                held: states.ballooned,
                claimed: balloon.claimed(),
                counters: balloon.counters(),
            },
            statistics: balloon.statistics(),
            blocked: self.warden.blocked(),
            counters: VmCounters {
                given_back: self.agent.counters().given_back(),
                refused: self.agent.counters().refused(),
                write_protect_faults: self.agent.counters().write_protect_faults(),
                sharing: self.agent.counters().sharing(),
                register_violations: self.bus.violations(),
                console_lost_bytes: self.bus.console.lost_bytes(),
            },
            nets: self.nets.iter().map(RunningNet::state).collect(),
            disks: self.disks.iter().map(|disk| disk.figures()).collect(),
        })
    }
}

/// Whether the VM goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}
