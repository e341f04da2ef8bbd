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

use crate::api::client::Client;
use crate::api::{EventView, ExplanationView, Figures};
use crate::name::VmName;
use anyhow::{Context, Result};
use model::{Details, Model, Next};
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
        look_closer(client, model).await;
        let mut furthest = 0;
        terminal.draw(|frame| furthest = draw::draw(frame, model))?;
        model.scroll_at_most(furthest);
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

/// Asks for what the page shows beside the figures. Where there is none, less is shown.
async fn look_closer(client: &Client, model: &mut Model) {
    if model.is_paused {
        return;
    }
    model.history = match model.has_bars {
        true => client.get("/v1/history").await.ok(),
        false => None,
    };
    if let Some(vm) = model.wanted_vm() {
        let details = details(client, &vm).await;
        model.see_details(details);
    }
}

async fn details(client: &Client, vm: &VmName) -> Option<Details> {
    let path = format!("/v1/vms/{vm}/explanation");
    let why = match client.get::<ExplanationView>(&path).await {
        Ok(explanation) => explanation.text,
        Err(error) => crate::error_chain(&error),
    };
    let events: Vec<EventView> = client.get("/v1/events").await.ok()?;
    let its_own = |event: &EventView| event.vm.as_ref() == Some(vm);
    Some(Details {
        name: vm.clone(),
        history: client.get(&format!("/v1/history?vm={vm}")).await.ok()?,
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
