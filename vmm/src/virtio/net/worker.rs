//! The thread that serves a card.

use super::{FramePort, Net, Wait};
use crate::event::Event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The thread of one card. Ends, and is waited for, when this is dropped.
#[derive(Debug)]
pub struct NetThread {
    quit: Event,
    thread: Option<JoinHandle<()>>,
}

impl NetThread {
    /// Serves `net`, whose driver notifies its queues through `notified`. The name is for lists of
    /// threads.
    ///
    /// # Errors
    /// When the process gets no thread or event descriptor.
    pub fn start<P: FramePort>(
        name: &str,
        net: Arc<Net<P>>,
        notified: &[Event],
    ) -> io::Result<Self> {
        let quit = Event::new()?;
        let worker = Worker {
            notified: notified.to_vec(),
            quit: quit.clone(),
            net,
        };
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || worker.run())?;
        Ok(Self {
            quit,
            thread: Some(thread),
        })
    }
}

impl Drop for NetThread {
    fn drop(&mut self) {
        self.quit.signal();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("a network card's thread has panicked");
        }
    }
}

struct Worker<P> {
    net: Arc<Net<P>>,
    notified: Vec<Event>,
    quit: Event,
}

/// What wakes the thread besides its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alarm {
    tap: PollFlags,
    after: Option<Duration>,
}

impl Alarm {
    fn of(waits: impl IntoIterator<Item = Wait>) -> Self {
        let none = Self {
            tap: PollFlags::empty(),
            after: None,
        };
        waits.into_iter().fold(none, Self::with)
    }

    fn with(mut self, wait: Wait) -> Self {
        let mut within = |time: Duration| {
            self.after = Some(self.after.map_or(time, |after| after.min(time)));
        };
        match wait {
            Wait::Turn => within(Duration::ZERO),
            Wait::Time(time) => within(time),
            Wait::Frames => self.tap |= PollFlags::IN,
            Wait::TapRoom => self.tap |= PollFlags::OUT,
            Wait::Notice | Wait::TapGone => {}
        }
        self
    }
}

impl<P: FramePort> Worker<P> {
    fn run(&self) {
        let begin = Instant::now();
        let mut paces = self.net.paces();
        loop {
            let waits = self.net.serve(&mut paces, begin.elapsed());
            match self.sleep(Alarm::of(waits.into_iter().flatten())) {
                Ok(()) if !self.quit.drain() => {}
                Ok(()) => return,
                Err(error) => {
                    // With descriptors that are open for as long as we are, only for want of memory.
                    tracing::error!("a network card ends: cannot wait for events: {error}");
                    return;
                }
            }
        }
    }

    /// Until something happens.
    fn sleep(&self, alarm: Alarm) -> Result<(), Errno> {
        let events = [&self.quit, &self.net.changed];
        let events = events.into_iter().chain(&self.notified);
        let mut sources: Vec<PollFd<'_>> = events
            .clone()
            .map(|event| PollFd::new(event, PollFlags::IN))
            .collect();
        // Only when it is waited for: a tap that is gone would wake us again and again.
        if !alarm.tap.is_empty() {
            sources.push(PollFd::new(&self.net.port, alarm.tap));
        }
        let limit = alarm.after.map(timespec);
        match poll(&mut sources, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        // What has happened is looked for anew; but whether to end is asked by the caller.
        for event in events.skip(1) {
            event.drain();
        }
        Ok(())
    }
}

fn timespec(time: Duration) -> Timespec {
    // What no clock can count is as good as a day.
    Timespec::try_from(time).unwrap_or(Timespec {
        tv_sec: 86_400,
        tv_nsec: 0,
    })
}
