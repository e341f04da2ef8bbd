//! Asks an embedded guest for its figures, on its console.

use crate::host::console::Console;
use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

/// Types `report` on a guest's console and reads the figures of the line that it answers with.
pub(super) async fn ask_for_report<T: DeserializeOwned>(
    console: &Console,
    patience: Duration,
) -> Result<T> {
    let (_, mut pieces) = console.attach(0);
    console
        .write(b"report\n")
        .await
        .context("its console is closed")?;
    let answer = async {
        let mut text = Vec::new();
        loop {
            match pieces.recv().await {
                Ok(piece) => text.extend_from_slice(&piece),
                Err(RecvError::Lagged(_)) => text.clear(),
                Err(RecvError::Closed) => bail!("its console was closed"),
            }
            if let Some(report) = find_report(&text) {
                return Ok(report);
            }
        }
    };
    timeout(patience, answer)
        .await
        .map_err(|_late| anyhow!("its guest does not answer"))?
}

/// The newest whole line `report {…}`.
pub(super) fn find_report<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    let text = String::from_utf8_lossy(text);
    let whole = &text[..text.rfind('\n')?];
    let line = whole
        .lines()
        .rev()
        .find_map(|line| line.trim_end().split_once("report {"))?;
    serde_json::from_str(&format!("{{{}", line.1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_report_is_found_once_its_line_is_whole() {
        let text = b"> report\r\nreport {\"checks\":5,\"errors\":0}\r\n> ";
        let report: BTreeMap<String, u64> = find_report(text).unwrap();
        assert_eq!((report["checks"], report["errors"]), (5, 0));
        assert!(find_report::<BTreeMap<String, u64>>(&text[..30]).is_none());
    }
}
