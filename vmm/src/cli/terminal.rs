//! A terminal that is taken over, and given back as it was in every way out: when the command ends, when it panics,
//! and when a signal ends it.
//!
//! A command that holds no terminal leaves signals to the kernel, which ends it whatever it waits for. One that
//! does must undo first what it did, and may be waiting itself, for a host that does not answer or for a reader of
//! its output. So a thread that does nothing else waits for the signals, gives the terminal back and ends the
//! process. What was ignored at the start, as by nohup, stays ignored.

use super::tell;
use crate::signals::{ENDING, first_of, harmless, listen};
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::stdio::stdout;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io;
use std::panic;
use std::process;
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::thread;
use tokio::runtime;

/// How long a terminal may take until it takes a few bytes.
const FAREWELL_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 300_000_000,
};

/// What gives the terminal back. Of the whole process, for whoever ends it.
static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

#[derive(Debug)]
struct Taken {
    terminal: BorrowedFd<'static>,
    before: Termios,
    /// What takes back on the screen what was written to it.
    farewell: &'static [u8],
}

/// A terminal that passes every key on, until this is dropped.
#[derive(Debug)]
pub(super) struct RawTerminal(());

impl RawTerminal {
    /// Takes over the terminal at a descriptor; `None` if it is none. When it is given back, `farewell` is written.
    pub(super) fn take(
        terminal: BorrowedFd<'static>,
        farewell: &'static [u8],
    ) -> Result<Option<Self>> {
        if !isatty(terminal) {
            return Ok(None);
        }
        let failed = "cannot take over the terminal";
        let before = tcgetattr(terminal).context(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        watch_over_ends().context(failed)?;
        *taken() = Some(Taken {
            terminal,
            before,
            farewell,
        });
        let guard = Self(());
        tcsetattr(terminal, OptionalActions::Now, &raw).context(failed)?;
        Ok(Some(guard))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        give_back();
    }
}

fn taken() -> std::sync::MutexGuard<'static, Option<Taken>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn give_back() {
    // Held until it is done: whoever finds nothing to give back may end the process.
    let mut held = taken();
    let Some(taken) = held.take() else { return };
    let set = tcsetattr(taken.terminal, OptionalActions::Now, &taken.before);
    say_farewell(taken.farewell);
    drop(held);
    // One that was closed has nothing to be restored.
    if let Err(error) = set
        && error != rustix::io::Errno::IO
    {
        tell(&format!(
            "ballonet: the terminal stays raw, `reset` helps: {error}\r\n"
        ));
    }
}

/// Past the lock of the standard output, whose holder may be waiting for a terminal that takes nothing.
fn say_farewell(farewell: &[u8]) {
    let stdout = stdout();
    let mut ready = [PollFd::new(&stdout, PollFlags::OUT)];
    if !farewell.is_empty() && matches!(poll(&mut ready, Some(&FAREWELL_PATIENCE)), Ok(1..)) {
        // A terminal that was closed needs none.
        let _written = rustix::io::write(stdout, farewell);
    }
}

/// From now on a panic or a signal gives back what is taken. Once for the process.
fn watch_over_ends() -> io::Result<()> {
    static HOOKED: Once = Once::new();
    let mut watched = Ok(());
    HOOKED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
        watched = watch_signals();
    });
    watched
}

/// Starts the thread; returns when it listens.
fn watch_signals() -> io::Result<()> {
    let (listens, listening) = mpsc::channel();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let ended = runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .and_then(|runtime| {
                    let _entered = runtime.enter();
                    // All that would end the command.
                    let mut signals = listen(&[&ENDING[..], &harmless()].concat())?;
                    // Whoever started this waits for it.
                    drop(listens.send(Ok(())));
                    Ok(runtime.block_on(first_of(&mut signals)))
                });
            match ended {
                Ok(signal) => {
                    give_back();
                    process::exit(128 + signal);
                }
                Err(error) => drop(listens.send(Err(error))),
            }
        })?;
    listening
        .recv()
        .unwrap_or_else(|_ended| Err(io::Error::other("the thread for signals ended")))
}
