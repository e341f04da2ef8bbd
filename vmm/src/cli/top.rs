//! A table that refreshes itself.

use super::args::TopArgs;
use super::{print, table};
use crate::api::Overview;
use crate::api::client::Client;
use anyhow::Result;
use std::time::Duration;
use tokio::signal::ctrl_c;
use tokio::time::sleep;

/// To the upper left corner; what is left of older lines is erased as each line is written.
const HOME: &str = "\x1b[H";
const ERASE_BELOW: &str = "\x1b[J";
const ERASE_REST_OF_LINE: &str = "\x1b[K\n";
const CLEAR: &str = "\x1b[2J";

pub(super) async fn top(args: TopArgs, client: &Client) -> Result<()> {
    let terminal = rustix::termios::isatty(rustix::stdio::stdout());
    if terminal && !args.json {
        print(CLEAR)?;
    }
    let mut shown = 0;
    loop {
        let overview: Overview = client.get("/v1/overview").await?;
        print(&frame(&overview, args.json, terminal)?)?;
        shown += 1;
        if args.count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        tokio::select! {
            () = sleep(Duration::from_secs_f64(args.interval)) => {}
            _ = ctrl_c() => return Ok(()),
        }
    }
}

fn frame(overview: &Overview, json: bool, terminal: bool) -> Result<String> {
    if json {
        return Ok(format!("{}\n", serde_json::to_string(overview)?));
    }
    let text = table::overview(overview);
    Ok(if terminal {
        on_screen(&text)
    } else {
        format!("{text}\n")
    })
}

/// Text that replaces what the screen shows, without flicker.
pub(super) fn on_screen(text: &str) -> String {
    format!(
        "{HOME}{}{ERASE_BELOW}",
        text.replace('\n', ERASE_REST_OF_LINE)
    )
}
