//! `ballonet top` on a terminal: esxtop's memory panel, with keys.
//!
//! What a key or a sample changes is decided in `model`, without a terminal; `draw` shows a model and
//! changes nothing.

mod columns;
mod draw;
mod model;

use crate::api::Figures;
use crate::api::client::Client;
use anyhow::{Context, Result};
use model::{Model, Next};
use ratatui::crossterm::event::{self, Event};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// Keys that wait to be looked at.
const WAITING_KEYS: usize = 64;

/// Shows the host until somebody leaves.
pub(super) async fn watch(client: &Client, seconds: f64) -> Result<()> {
    // A host that is not there is an error in plain text, before the screen changes.
    let mut model = Model::new(client.get("/v1/figures").await?);
    let mut terminal = ratatui::try_init().context("cannot use this terminal: try --count 1")?;
    let result = run(client, seconds, &mut model, &mut terminal).await;
    ratatui::restore();
    result
}

async fn run(
    client: &Client,
    seconds: f64,
    model: &mut Model,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<()> {
    let mut keys = keys();
    let mut end = std::pin::pin!(super::host::end_signal()?);
    let mut tick = interval(Duration::from_secs_f64(seconds));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| draw::draw(frame, model))?;
        tokio::select! {
            event = keys.recv() => match event {
                Some(Event::Key(key)) if model.press(key) == Next::Leave => return Ok(()),
                // A new size is drawn.
                Some(_) => {}
                None => return Ok(()),
            },
            _ = tick.tick() => match client.get::<Figures>("/v1/figures").await {
                Ok(figures) => model.see(figures),
                Err(error) => model.lose(crate::error_chain(&error)),
            },
            () = &mut end => return Ok(()),
        }
    }
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
