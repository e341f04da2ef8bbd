//! Waits for whatever comes first: a message, console input or room for output, a notified queue, a signal or the
//! guest's end.
//!
//! A signal that tells the process to end does what the host's `stop` does: a kernel's power button is pressed and
//! it has some time, the embedded guest has nothing to put in order.

use super::door::{Door, NewHost};
use super::ignore_gone_host;
use crate::event::Event as Wake;
use crate::memory::agent::{AgentHandle, LargePageOrder};
use crate::memory::ram::GuestRam;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::Disk;
use crate::vm::bus::Bus;
use crate::vm::console::{Backlog, InputState};
use crate::vm::devices::{RunningNet, ServedQueue};
use crate::vm::end_signals::EndSignals;
use crate::vm::error::VmError;
use crate::vm::gate::Gate;
use crate::vm::machine::Machine;
use crate::vm::throttle::Throttle;
use crate::vm::vcpu::Ending;
use policy::LargePages;
use protocol::{
    BalloonView, BlockedTime, Channel, ChannelError, Description, FromVm, JailReport, Observation,
    OnHostDeath, SwapCounters, ToVm, UNASKED, VmConfig, VmCounters,
};
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// How long a kernel has to switch itself off when its power button is pressed.
pub const POWER_OFF_PATIENCE: Duration = Duration::from_secs(20);
/// How long a VM's end may wait for whoever reads the guest's last words.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(100);

/// What the main thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Message,
    ConsoleInput,
    ConsoleRoom,
    ConsoleOutput,
    Ending,
    EndSignal,
    /// A page that is out cannot be had again.
    LostPage,
    /// Another host comes,
    Door,
    /// and speaks.
    NewHost,
    Queue(usize),
}

impl Source {
    /// Sources as the numbers that the kernel hands back.
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Message => 0,
            Self::ConsoleInput => 1,
            Self::ConsoleRoom => 2,
            Self::ConsoleOutput => 3,
            Self::Ending => 4,
            Self::EndSignal => 5,
            Self::LostPage => 6,
            Self::Door => 7,
            Self::NewHost => 8,
            Self::Queue(index) => 9 + index as u64,
        })
    }

    fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Message,
            1 => Self::ConsoleInput,
            2 => Self::ConsoleRoom,
            3 => Self::ConsoleOutput,
            4 => Self::Ending,
            5 => Self::EndSignal,
            6 => Self::LostPage,
            7 => Self::Door,
            8 => Self::NewHost,
            queue => Self::Queue(usize::try_from(queue - 9).unwrap_or(usize::MAX)),
        }
    }
}

/// A VM that is built, and runs.
pub(super) struct Process<'a> {
    pub(super) channel: &'a mut Channel,
    /// None if its host wants no other to come.
    pub(super) door: Option<Door>,
    pub(super) config: VmConfig,
    pub(super) start_us: u64,
    /// What holds of it.
    pub(super) jail: JailReport,
    pub(super) ram: GuestRam,
    pub(super) agent: AgentHandle,
    pub(super) bus: Arc<Bus>,
    pub(super) balloon: Arc<Balloon>,
    pub(super) nets: Vec<RunningNet>,
    pub(super) disks: Vec<Arc<Disk>>,
    pub(super) queues: Vec<ServedQueue>,
    pub(super) power_button: Wake,
    pub(super) gate: Arc<Gate>,
    pub(super) throttle: Throttle,
    pub(super) endings: Receiver<Ending>,
    pub(super) ended: Wake,
    pub(super) signals: EndSignals,
    /// When a guest that was told to switch itself off has had its time.
    pub(super) power_off_by: Option<Instant>,
    pub(super) epoll: OwnedFd,
    // KVM's side of the machine lives as long as this.
    pub(super) _machine: Machine,
}

impl Process<'_> {
    fn watch_all(&self) -> Result<(), VmError> {
        self.watch(&*self.channel, Source::Message)?;
        if let Some(door) = &self.door {
            self.watch(door.listener(), Source::Door)?;
        }
        self.watch(self.bus.console.input(), Source::ConsoleInput)?;
        self.watch(self.bus.console.room(), Source::ConsoleRoom)?;
        self.watch(self.bus.console.backlog(), Source::ConsoleOutput)?;
        self.watch_console_output()?;
        self.watch(&self.ended, Source::Ending)?;
        if let Some(lost) = self.agent.lost_a_page() {
            self.watch(lost, Source::LostPage)?;
        }
        self.watch(self.signals.event(), Source::EndSignal)?;
        for (index, queue) in self.queues.iter().enumerate() {
            self.watch(&queue.notified, Source::Queue(index))?;
        }
        Ok(())
    }

    fn watch(&self, fd: impl AsFd, source: Source) -> Result<(), VmError> {
        epoll::add(&self.epoll, fd, source.data(), EventFlags::IN).map_err(VmError::Wait)
    }

    /// Not for room yet, for mostly there is some: that is asked for when something waits for it.
    fn watch_console_output(&self) -> Result<(), VmError> {
        let (output, data) = (self.bus.console.output(), Source::ConsoleOutput.data());
        epoll::add(&self.epoll, output, data, EventFlags::ONESHOT).map_err(VmError::Wait)
    }

    /// Once: neither a socket with room nor one whose other side is gone wakes us again and again.
    fn ask_for_console_room(&self) -> Result<(), VmError> {
        let (output, data) = (self.bus.console.output(), Source::ConsoleOutput.data());
        let once = EventFlags::OUT | EventFlags::ONESHOT;
        epoll::modify(&self.epoll, output, data, once).map_err(VmError::Wait)
    }

    fn unwatch(&self, fd: impl AsFd) {
        // Fails only for what is not watched.
        if let Err(error) = epoll::delete(&self.epoll, fd) {
            tracing::debug!("was not watched: {error}");
        }
    }

    fn announce(&self) -> Result<(), VmError> {
        let started = FromVm::Started(Box::new(self.description()));
        self.channel.send(&started, &[]).map_err(VmError::Channel)
    }

    /// Runs until its guest, its host or a signal ends it.
    pub(super) fn run(&mut self) -> Result<(), VmError> {
        self.watch_all()?;
        self.agent.keep_waiting_never();
        self.announce()?;
        self.gate.open();
        self.limit();
        self.order_large_pages();
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
            Source::Door => return self.let_a_host_in(),
            Source::NewHost => return self.hear_new_host(),
            Source::Ending => return Ok(self.take_ending()),
            Source::EndSignal => return Ok(self.take_end_signal()),
            Source::LostPage => {
                let why = self.agent.why_it_ends().unwrap_or_default();
                return Err(VmError::LostPage(why));
            }
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
        // One whose power button was pressed has done as it was told.
        let is_switched_off = ending == Ending::AskedTo && self.power_off_by.is_none();
        self.say_ended_so(&ending.reason(), is_switched_off);
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
        self.say_ended_so(reason, false);
    }

    fn say_ended_so(&self, reason: &str, is_switched_off: bool) {
        let ended = FromVm::Ended {
            reason: reason.to_owned(),
            is_switched_off,
        };
        ignore_gone_host(self.channel.send(&ended, &[]));
    }

    fn take_message(&mut self) -> Result<Next, VmError> {
        // What the host before had said, perhaps.
        if !self.channel.is_readable().map_err(VmError::Channel)? {
            return Ok(Next::GoOn);
        }
        match self.channel.receive() {
            Ok(received) => self.obey(received.message),
            Err(ChannelError::Closed) => Ok(self.outlive_host()),
            Err(error) => Err(VmError::Channel(error)),
        }
    }

    fn let_a_host_in(&mut self) -> Result<Next, VmError> {
        let Some(door) = &mut self.door else {
            return Ok(Next::GoOn);
        };
        // Who had come before and is gone now is watched no more.
        door.let_in();
        if let Some(guest) = self.door.as_ref().and_then(Door::guest) {
            self.watch(guest, Source::NewHost)?;
        }
        self.hear_new_host()
    }

    fn hear_new_host(&mut self) -> Result<Next, VmError> {
        match self.door.as_mut().and_then(Door::hear) {
            Some(host) => self.obey_new_host(host),
            None => Ok(Next::GoOn),
        }
    }

    /// What the host before has said and was not heard yet comes first: somebody may have been told that it holds.
    fn obey_new_host(&mut self, host: NewHost) -> Result<Next, VmError> {
        while matches!(self.channel.is_readable(), Ok(true))
            && let Ok(received) = self.channel.receive()
        {
            match self.obey(received.message)? {
                Next::GoOn => {}
                Next::End => return Ok(Next::End),
            }
        }
        self.unwatch(&*self.channel);
        self.unwatch(&host.channel);
        *self.channel = host.channel;
        self.watch(&*self.channel, Source::Message)?;
        self.agent.meet_scanner(host.scanner);
        let console = &self.bus.console;
        self.unwatch(console.input());
        self.unwatch(console.output());
        console
            .connect(host.console)
            .map_err(VmError::StartThread)?;
        self.watch(console.input(), Source::ConsoleInput)?;
        self.watch_console_output()?;
        self.send_console_output()?;
        if let Err(error) = rustix::stdio::dup2_stderr(&host.errors) {
            tracing::debug!("errors go nowhere: {error}");
        }
        self.answer(&FromVm::Description(Box::new(self.description())))?;
        Ok(Next::GoOn)
    }

    fn outlive_host(&mut self) -> Next {
        if self.config.on_host_death == OnHostDeath::Stop {
            return Next::End;
        }
        self.unwatch(&*self.channel);
        // Nobody would lift a limit that stops the guest, nor take large pages back.
        if !self.config.has_swap {
            self.config.touch_limit = None;
            self.limit();
        }
        self.config.large_pages = self.config.large_pages.min(LargePages::Full);
        self.order_large_pages();
        Next::GoOn
    }

    /// Pages go out for a limit, where they can; the guest is stopped where they cannot.
    fn limit(&self) {
        let limit = self.config.touch_limit;
        match self.config.has_swap {
            true => self.agent.limit_held(limit.map(|limit| limit.slow_above)),
            false => self.throttle.set(limit),
        }
    }

    fn order_large_pages(&self) {
        self.agent.order_large_pages(LargePageOrder {
            pages: self.config.large_pages,
            balloon_target: self.config.balloon_target,
            is_limited: self.config.touch_limit.is_some(),
        });
    }

    fn obey(&mut self, message: ToVm) -> Result<Next, VmError> {
        match message {
            ToVm::Boot(_) => return Err(VmError::BootTwice),
            // Hosts come through the door.
            ToVm::TakeOver { .. } => {}
            ToVm::SetBalloon { target } => {
                self.config.balloon_target = target;
                self.order_large_pages();
                self.balloon.set_target(target);
            }
            ToVm::SetTouchLimit(limit) => {
                self.config.touch_limit = limit;
                self.order_large_pages();
                self.limit();
            }
            ToVm::SetLargePages(pages) => {
                self.config.large_pages = pages;
                self.order_large_pages();
            }
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
                self.answer(&FromVm::Description(Box::new(self.description())))?;
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
            ram_address: self.ram.addresses(0..0).start,
            jail: self.jail.clone(),
        }
    }

    /// By the throttle, or because no page of it finds a place outside of memory.
    fn blocked(&self, swap: SwapCounters) -> BlockedTime {
        let by_throttle = self.throttle.blocked();
        let total_us = by_throttle.total_us.saturating_add(swap.stalled_us);
        BlockedTime {
            is_now: by_throttle.is_now || swap.is_stalled,
            total_us: total_us.min(by_throttle.at_us),
            at_us: by_throttle.at_us,
        }
    }

    fn observation(&self, sequence: u64, recount: bool) -> Result<Observation, VmError> {
        self.agent.watch_pager();
        let balloon = &self.balloon;
        let states = balloon.page_states(recount)?;
        let swap = self.agent.swap_counters();
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
            blocked: self.blocked(swap),
            counters: VmCounters {
                given_back: self.agent.counters().given_back(),
                refused: self.agent.counters().refused(),
                write_protect_faults: self.agent.counters().write_protect_faults(),
                sharing: self.agent.counters().sharing(),
                large: self.agent.counters().large(),
                swap,
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
