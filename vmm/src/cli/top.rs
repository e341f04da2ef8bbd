//! Who holds what, again and again: on a terminal a screen with keys, else plain text.

use super::args::TopArgs;
use super::batch::Batch;
use super::{print, screen, table};
use crate::cli::client::Client;
use anyhow::Result;
use api::Overview;
use std::time::Duration;
use tokio::time::sleep;

/// To the upper left corner; what is left of older lines is erased as each line is written.
const HOME: &str = "\x1b[H";
const ERASE_BELOW: &str = "\x1b[J";
const ERASE_REST_OF_LINE: &str = "\x1b[K\n";
const CLEAR: &str = "\x1b[2J";

pub(super) async fn top(args: TopArgs, client: &Client) -> Result<()> {
    let terminal = rustix::termios::isatty(rustix::stdio::stdout());
    if terminal && args.count.is_none() && !args.json && !args.batch {
        return screen::watch(client, args.interval).await;
    }
    if terminal && !args.json && !args.batch {
        print(CLEAR)?;
    }
    let mut batch = args.batch.then(|| Batch::new(machine()));
    let mut shown = 0;
    loop {
        match &mut batch {
            Some(batch) => print(&batch.rows(&client.figures().await?)?)?,
            None => {
                let overview = client.overview().await?;
                print(&frame(&overview, args.json, terminal)?)?;
            }
        }
        shown += 1;
        if args.count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        sleep(Duration::from_secs_f64(args.interval)).await;
    }
}

/// The machine's name.
fn machine() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
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

/// Text that replaces what the screen shows, without flicker. What does not fit is cut off, so
/// that no line takes two.
pub(super) fn on_screen(text: &str) -> String {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok();
    let (columns, rows) = size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()));
    format!("{HOME}{}{ERASE_BELOW}", cut(text, columns, rows))
}

fn cut(text: &str, columns: usize, rows: usize) -> String {
    // The last row stays empty: a line end there would scroll the screen.
    let lines = text.lines().take(rows.max(2) - 1);
    let cut = |line: &str| {
        line.chars()
            .take(columns)
            .chain(ERASE_REST_OF_LINE.chars())
            .collect::<String>()
    };
    lines.map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_on_the_screen_is_cut_off() {
        let shown = cut("first line\nsecond\nthird\nfourth", 5, 3);
        assert_eq!(
            shown,
            format!("first{ERASE_REST_OF_LINE}secon{ERASE_REST_OF_LINE}")
        );
    }
}
