//! A virtio balloon driver that never blocks.
//!
//! The kernel's event loop calls [`Balloon::on_interrupt`] when the device interrupts and
//! [`Balloon::poll`] whenever it has time. Each call does what can be done at once: it takes
//! answers, sends batches, and returns.
//!
//! What stays true:
//! * A page leaves the balloon only after the host was told and has answered, whether or not it
//!   insists (`MUST_TELL_HOST`).
//! * A page is in the allocator, in the balloon's set, or in one batch in flight; never in two.
//! * Whatever the device says, the driver does not panic. Where the device breaks the rules, the
//!   driver stops talking to it and keeps what the device may still have.

mod allocator;
#[cfg(test)]
mod fake;
mod level;
mod page_queue;
mod report_queue;
mod stats_queue;
#[cfg(test)]
mod tests;

pub use allocator::{MemoryFigures, PageAllocator};
pub use level::Change;
pub use page_queue::{BatchStorage, PAGES_PER_BATCH_MAX};
use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use self::level::{Level, Step};
use self::page_queue::PageQueue;
use self::report_queue::ReportQueue;
use self::stats_queue::{StatsBuffer, StatsQueue};
use crate::set::FrameSet;
use crate::wire::{CONFIG_ACTUAL, CONFIG_NUM_PAGES, Features, QueueNumbers};

const SUPPORTED: Features = Features::MUST_TELL_HOST
    .union(Features::STATS)
    .union(Features::DEFLATE_ON_OOM)
    // Taken only because devices count its queue; the queue stays unused.
    .union(Features::FREE_PAGE_HINT)
    .union(Features::REPORTING)
    .union(Features::VERSION_1);

/// Acknowledging one interrupt may uncover another; a device that never ends is left alone.
const ACKNOWLEDGEMENTS_MAX: u32 = 8;

/// The device broke the rules; nothing more is sent to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Broken(
    /// What the queue saw.
    pub virtio_drivers::Error,
);

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the balloon device broke the protocol: {}", self.0)
    }
}

/// Memory that the device reads; static, because it may do so when the driver is long gone.
#[derive(Debug)]
pub struct Storage {
    inflate: BatchStorage,
    deflate: BatchStorage,
    stats: StatsBuffer,
}

impl Storage {
    /// Empty storage.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            inflate: BatchStorage::new(),
            deflate: BatchStorage::new(),
            stats: stats_queue::EMPTY,
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self::new()
    }
}

/// What a driver is made of.
#[derive(Debug)]
pub struct Setup<T> {
    /// The way to the device.
    pub transport: T,
    /// Buffers for the device.
    pub storage: &'static mut Storage,
    /// An empty set with room for every frame of the guest.
    pub inside: FrameSet<'static>,
    /// Pages in a batch, at most [`PAGES_PER_BATCH_MAX`]. Some devices refuse more than Linux
    /// sends, which is 256.
    pub batch_pages: usize,
}

/// How far the balloon is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// The balloon is as it should be.
    Settled,
    /// Batches are with the device.
    Moving,
    /// The device wants more pages than are to be had.
    Starved,
}

/// The driver's figures, in pages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Pages that the device wants in the balloon.
    pub target: u32,
    /// Pages that are in it.
    pub actual: u32,
    /// The last completed move to a new target.
    pub last_change: Change,
    /// Pages that the guest took back because it ran out of memory.
    pub oom_deflated: u64,
    /// Pages reported free.
    pub reported: u64,
}

/// The driver of one balloon device.
#[derive(Debug)]
pub struct Balloon<H: Hal, T: Transport> {
    transport: T,
    features: Features,
    inflate: PageQueue<H>,
    deflate: PageQueue<H>,
    stats: Option<StatsQueue<H>>,
    reporting: Option<ReportQueue<H>>,
    /// Pages in the balloon, but for those in a batch to deflate.
    inside: FrameSet<'static>,
    level: Level,
    /// What the device was last told is in the balloon.
    told_actual: u32,
    target_changed: bool,
    oom_deflated: u64,
    broken: Option<Broken>,
}

impl<H: Hal, T: Transport> Balloon<H, T> {
    /// Starts the device.
    ///
    /// # Errors
    /// If the device's inflate or deflate queue cannot be had. What else it lacks is done without.
    pub fn new(setup: Setup<T>) -> virtio_drivers::Result<Self> {
        let Setup {
            mut transport,
            storage,
            inside,
            batch_pages,
        } = setup;
        let features = transport.begin_init(SUPPORTED);
        let numbers = QueueNumbers::of(features);
        let inflate = PageQueue::new(
            &mut transport,
            numbers.inflate,
            &mut storage.inflate,
            batch_pages,
        )?;
        let deflate = PageQueue::new(
            &mut transport,
            numbers.deflate,
            &mut storage.deflate,
            batch_pages,
        )?;
        let stats = numbers
            .stats
            .and_then(|number| StatsQueue::new(&mut transport, number, &mut storage.stats).ok());
        let reporting = numbers
            .reporting
            .and_then(|number| ReportQueue::new(&mut transport, number).ok());
        transport.finish_init();
        Ok(Self {
            transport,
            features,
            inflate,
            deflate,
            stats,
            reporting,
            inside,
            level: Level::default(),
            told_actual: 0,
            target_changed: true,
            oom_deflated: 0,
            broken: None,
        })
    }

    /// What driver and device agreed on.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Takes note of what the device interrupted for. Asks until nothing is left, so that no edge
    /// is lost where interrupts are edges.
    pub fn on_interrupt(&mut self) {
        for _ in 0..ACKNOWLEDGEMENTS_MAX {
            let status = self.transport.ack_interrupt();
            self.target_changed |= status.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
            if status == InterruptStatus::empty() {
                return;
            }
        }
    }

    /// Does all that can be done now.
    ///
    /// # Errors
    /// Once, and then always, if the device broke the protocol.
    pub fn poll(
        &mut self,
        pages: &mut impl PageAllocator,
        now_us: u64,
    ) -> Result<Progress, Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let result = self.work(pages, now_us);
        self.broken = result.err();
        result
    }

    fn work(&mut self, pages: &mut impl PageAllocator, now_us: u64) -> Result<Progress, Broken> {
        self.take_answers(pages)?;
        self.read_target(now_us)?;
        let starved = self.send_batches(pages, now_us)?;
        self.tell_actual(now_us)?;
        if let Some(stats) = &mut self.stats {
            stats.poll(&mut self.transport, || pages.figures())?;
        }
        if let Some(reporting) = &mut self.reporting {
            reporting.poll(&mut self.transport, pages, now_us)?;
        }
        Ok(if self.inflate.in_flight() + self.deflate.in_flight() > 0 {
            Progress::Moving
        } else if starved {
            Progress::Starved
        } else {
            Progress::Settled
        })
    }

    fn take_answers(&mut self, pages: &mut impl PageAllocator) -> Result<(), Broken> {
        while let Some(gfns) = self.inflate.reap()? {
            for &gfn in gfns {
                self.inside.insert(gfn);
            }
        }
        while let Some(gfns) = self.deflate.reap()? {
            pages.give_back(gfns);
        }
        Ok(())
    }

    fn read_target(&mut self, now_us: u64) -> Result<(), Broken> {
        if core::mem::take(&mut self.target_changed) {
            let target = self
                .transport
                .read_config_space(CONFIG_NUM_PAGES)
                .map_err(Broken)?;
            self.level
                .set_target(u32::from_le(target), self.actual(), now_us);
        }
        Ok(())
    }

    /// Sends what there is room for. True if pages are wanted that cannot be had.
    fn send_batches(
        &mut self,
        pages: &mut impl PageAllocator,
        now_us: u64,
    ) -> Result<bool, Broken> {
        loop {
            let sent = match self
                .level
                .step(self.coming(), pages.available_count(), now_us)
            {
                Step::Inflate(count) if self.inflate.has_room() => {
                    let take = |out: &mut [u32]| pages.take(out);
                    let sent = self.inflate.send(&mut self.transport, count, take)?;
                    if sent == 0 {
                        return Ok(true);
                    }
                    sent
                }
                Step::Deflate(count) => {
                    let take = |out: &mut [u32]| self.inside.take_highest(out);
                    self.deflate.send(&mut self.transport, count, take)?
                }
                Step::Inflate(_) | Step::Hold => 0,
            };
            if sent == 0 {
                return Ok(false);
            }
        }
    }

    fn tell_actual(&mut self, now_us: u64) -> Result<(), Broken> {
        let actual = self.actual();
        if actual != self.told_actual {
            self.transport
                .write_config_space(CONFIG_ACTUAL, actual.to_le())
                .map_err(Broken)?;
            self.told_actual = actual;
        }
        self.level.note_actual(actual, now_us);
        Ok(())
    }

    /// The guest needs `pages` pages and none are free. Takes them from the balloon, if that was
    /// negotiated; they are free after the host has answered. Returns how many will be.
    pub fn relieve(&mut self, pages: u32, now_us: u64) -> u32 {
        if !self.features.contains(Features::DEFLATE_ON_OOM) || self.deflate.in_flight() > 0 {
            return 0;
        }
        let relief = self.level.relieve(pages, self.coming(), now_us);
        self.oom_deflated += u64::from(relief);
        relief
    }

    /// Pages that are in the balloon as far as both sides agree.
    fn actual(&self) -> u32 {
        self.inside.count() + self.deflate.in_flight()
    }

    /// Pages that will be in the balloon when everything in flight has arrived.
    fn coming(&self) -> u32 {
        self.inside.count() + self.inflate.in_flight()
    }

    /// When [`poll`](Self::poll) has something to do even if the device stays silent.
    #[must_use]
    pub fn wake_at_us(&self, now_us: u64) -> Option<u64> {
        if self.broken.is_some() {
            return None;
        }
        let reporting = self.reporting.as_ref().and_then(ReportQueue::wake_at_us);
        let level = self.level.wake_at_us(now_us);
        reporting.into_iter().chain(level).min()
    }

    /// The figures so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            target: self.level.target(),
            actual: self.actual(),
            last_change: self.level.last_change(),
            oom_deflated: self.oom_deflated,
            reported: self
                .reporting
                .as_ref()
                .map_or(0, ReportQueue::reported_pages),
        }
    }
}

impl<H: Hal, T: Transport> Drop for Balloon<H, T> {
    /// Resets the device, for its queues' memory goes now.
    fn drop(&mut self) {
        self.transport.set_status(DeviceStatus::empty());
    }
}
