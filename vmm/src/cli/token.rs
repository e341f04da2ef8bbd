//! `ballonet token`: who may do what over TCP.

use super::args::TokenCommand;
use super::client::Client;
use super::{show, table};
use crate::host::now_ms;
use anyhow::Result;
use api::TokenRequest;
use std::str::FromStr;

/// Makes, lists and withdraws tokens.
pub(super) async fn token(command: TokenCommand, client: &Client) -> Result<()> {
    match command {
        TokenCommand::Add {
            name,
            role,
            expires,
            json,
        } => {
            let request = TokenRequest {
                name,
                role,
                expires_s: expires.map(|Lifetime(seconds)| seconds),
            };
            let made = client.add_token(&request).await?;
            show(json, &made, |made| format!("{}\n", made.token))
        }
        TokenCommand::List { json } => show(json, &client.tokens().await?, |tokens| {
            table::tokens(tokens, now_ms())
        }),
        TokenCommand::Rm { names } => {
            for name in names {
                client.remove_token(&name).await?;
            }
            Ok(())
        }
    }
}

/// How long a token lives, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime(u64);

/// What a letter behind a number stands for, in seconds.
const UNITS: [(char, u64); 5] = [
    ('s', 1),
    ('m', 60),
    ('h', 3600),
    ('d', 86_400),
    ('w', 7 * 86_400),
];

impl FromStr for Lifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit));
        let (unit, number) = match unit {
            Some((_, unit)) => (unit, &text[..text.len() - 1]),
            None => (1, text),
        };
        let number = number.parse::<u64>().ok();
        let seconds = number.and_then(|number| number.checked_mul(unit));
        seconds
            .filter(|&seconds| seconds > 0)
            .map(Self)
            .ok_or_else(|| "write a time as in 30d, 12h, 90m or 45s".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_seconds() {
        for (text, seconds) in [("45", 45), ("45s", 45), ("90m", 5400), ("2d", 172_800)] {
            assert_eq!(text.parse(), Ok(Lifetime(seconds)), "{text}");
        }
        for text in [
            "",
            "d",
            "0",
            "0d",
            "-1d",
            "1y",
            "1.5h",
            "99999999999999999d",
            "1ü",
        ] {
            assert!(text.parse::<Lifetime>().is_err(), "{text}");
        }
    }
}
