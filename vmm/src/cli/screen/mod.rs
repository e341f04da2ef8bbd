//! `ballonet top` on a terminal: esxtop's memory panel, with keys.
//!
//! What a key or a sample changes is decided in `model`, without a terminal; `draw` shows a model and
//! changes nothing.

mod bars;
mod draw;
mod model;
mod vm_page;

#[cfg(test)]
pub(super) use model::tests::{blocked as blocked_figures, vm as vm_figures};

use super::terminal::RawTerminal;
use super::{Unwritten, print};
use crate::cli::client::Client;
use anyhow::{Context, Result};
use api::{EventView, Figures, HistoryView};
use model::{Details, Model, Next};
use protocol::VmName;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::{DefaultTerminal, Terminal};
use std::mem::ManuallyDrop;
use std::thread;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

/// Keys that wait to be looked at.
const WAITING_KEYS: usize = 64;
/// To a screen beside the one that was there.
const ENTER: &str = "\x1b[?1049h";
/// Back to that one, with a cursor.
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// Shows the host until somebody leaves.
pub(super) async fn watch(client: &Client, seconds: f64) -> Result<()> {
    // A host that is not there is an error in plain text, before the screen changes.
    let model = Model::new(client.figures().await?);
    let _raw = RawTerminal::take(rustix::stdio::stdout(), LEAVE)?;
    print(ENTER)?;
    let terminal = Terminal::new(CrosstermBackend::new(std::io::stdout()))
        .context("cannot use this terminal: try --count 1")?;
    // Dropped, it would restore the cursor and panic where neither that nor the error can be written.
    run(client, seconds, model, &mut ManuallyDrop::new(terminal)).await
}

async fn run(
    client: &Client,
    seconds: f64,
    mut model: Model,
    terminal: &mut DefaultTerminal,
) -> Result<()> {
    let mut keys = keys();
    let (want, wanted) = watch::channel(closer_wanted(&model));
    let mut looks = looks(client.clone(), seconds, wanted);
    loop {
        let mut furthest = 0;
        let drawn = terminal.draw(|frame| furthest = draw::draw(frame, &model));
        drawn.map_err(Unwritten)?;
        model.scroll_at_most(furthest);
        tokio::select! {
            event = keys.recv() => {
                let mut typed = event;
                if typed.is_none() {
                    return Ok(());
                }
                // All that was typed before the screen is drawn anew.
                while let Some(event) = typed {
                    if let Event::Key(key) = event && model.press(key) == Next::Leave {
                        return Ok(());
                    }
                    typed = keys.try_recv().ok();
                }
            }
            Some(look) = looks.recv() => look.show(&mut model),
        }
        want.send_replace(closer_wanted(&model));
    }
}

/// What the page shows beside the figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Closer {
    /// The host's history.
    bars: bool,
    /// One VM.
    vm: Option<VmName>,
}

fn closer_wanted(model: &Model) -> Closer {
    match model.is_paused {
        true => Closer::default(),
        false => Closer {
            bars: model.has_bars,
            vm: model.wanted_vm(),
        },
    }
}

/// What the host answered.
#[derive(Debug)]
struct Look {
    /// None when only more of something was wanted; an error when no host answered.
    figures: Option<Result<Figures, String>>,
    history: Option<HistoryView>,
    details: Option<Details>,
}

impl Look {
    fn show(self, model: &mut Model) {
        match self.figures {
            Some(Ok(figures)) => model.see(figures),
            Some(Err(why)) => model.lose(why),
            None => {}
        }
        if !model.is_paused {
            model.history = self.history.filter(|_| model.has_bars);
        }
        if let Some(details) = self.details {
            model.see_details(Some(details));
        }
    }
}

/// Asks the host again and again, and at once when more is wanted. A task of its own: a host that does not answer
/// holds up no key.
fn looks(
    client: Client,
    seconds: f64,
    mut wanted: watch::Receiver<Closer>,
) -> mpsc::Receiver<Look> {
    let (send, looks) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut tick = interval(Duration::from_secs_f64(seconds));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Closer::default();
        loop {
            let is_time = tokio::select! {
                _ = tick.tick() => true,
                Ok(()) = wanted.changed() => false,
                else => return,
            };
            let closer = wanted.borrow_and_update().clone();
            if !is_time && closer == last {
                continue;
            }
            let look = look(&client, is_time, &closer).await;
            if send.send(look).await.is_err() {
                return;
            }
            last = closer;
        }
    });
    looks
}

async fn look(client: &Client, with_figures: bool, closer: &Closer) -> Look {
    let mut look = Look {
        figures: None,
        history: None,
        details: None,
    };
    if with_figures {
        let figures = client.figures().await;
        look.figures = Some(figures.map_err(|error| crate::error_chain(&error)));
    }
    if closer.bars {
        look.history = client.history(None).await.ok();
    }
    if let Some(vm) = &closer.vm {
        look.details = details(client, vm).await;
    }
    look
}

async fn details(client: &Client, vm: &VmName) -> Option<Details> {
    let why = match client.explanation(vm, None).await {
        Ok(explanation) => explanation.text,
        Err(error) => crate::error_chain(&error),
    };
    let events = client.events().await.ok()?;
    let its_own = |event: &EventView| event.vm.as_ref() == Some(vm);
    Some(Details {
        name: vm.clone(),
        history: client.history(Some(vm)).await.ok()?,
        why,
        events: events.into_iter().filter(its_own).collect(),
    })
}

/// What is typed. The thread ends with the program: nothing wakes it from waiting for a key.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(WAITING_KEYS);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}
