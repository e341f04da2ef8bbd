//! What QEMU's monitor sends, taken apart: JSON objects, one a line (QEMU's docs/interop/qmp-spec).
//!
//! Whoever listens at the other end may be no QEMU at all. So a line is bounded before it is read as anything, its
//! nesting by `serde_json` (128 levels), and what it says in words is cut and cleaned before anybody sees it.

use crate::host::claim;
use serde_json::{Map, Value};
use thiserror::Error;

/// Bytes of a line: more than any answer has that is asked for here. A guest of 288 processors is told of in 60 KiB, and its
/// disks in some 2 KiB each.
pub(super) const LONGEST_LINE: usize = 1 << 20;
/// Empty lines before a message: QEMU sends one at most.
const MOST_EMPTY: u32 = 16;
/// Characters of a name that QEMU has for an error or an event.
const LONGEST_NAME: usize = 80;

/// Why bytes are not what a monitor sends.
#[derive(Debug, Error)]
pub(in crate::host) enum NotQmp {
    #[error("it sends a line of more than {LONGEST_LINE} bytes")]
    TooLong,
    #[error("it sends what is no JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("it sends JSON that is no message of QMP")]
    NoMessage,
    #[error("it sends empty lines")]
    Empty,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    /// The first: it is a monitor, of this version of QEMU.
    Greeting { version: String },
    /// A command was carried out.
    Return { id: Option<u64>, value: Value },
    /// A command was refused.
    Error {
        id: Option<u64>,
        class: String,
        said: String,
    },
    /// Something happened.
    Event(Event),
}

/// Something that happened in QEMU, by its own word.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::host) struct Event {
    pub(in crate::host) name: String,
}

impl Message {
    fn parse(line: &[u8]) -> Result<Self, NotQmp> {
        let object: Map<String, Value> = serde_json::from_slice(line).map_err(NotQmp::NotJson)?;
        let id = object.get("id").and_then(Value::as_u64);
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(claim::words);
        if let Some(greeting) = object.get("QMP") {
            let number = |part| greeting.pointer(&format!("/version/qemu/{part}"));
            let parts =
                ["major", "minor", "micro"].map(|part| number(part).and_then(Value::as_u64));
            return match parts {
                [Some(major), Some(minor), Some(micro)] => Ok(Self::Greeting {
                    version: format!("{major}.{minor}.{micro}"),
                }),
                _ => Err(NotQmp::NoMessage),
            };
        }
        if let Some(value) = object.get("return") {
            let value = value.clone();
            return Ok(Self::Return { id, value });
        }
        if let Some(error) = object.get("error") {
            let class = text(error.get("class")).ok_or(NotQmp::NoMessage)?;
            return Ok(Self::Error {
                id,
                class: class.chars().take(LONGEST_NAME).collect(),
                said: text(error.get("desc")).unwrap_or_default(),
            });
        }
        let name = text(object.get("event")).ok_or(NotQmp::NoMessage)?;
        Ok(Self::Event(Event {
            name: name.chars().take(LONGEST_NAME).collect(),
        }))
    }
}

/// Bytes as they come, which become messages line by line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// How many of these are known to hold no end of a line.
    searched: usize,
    /// Empty lines since the last message.
    empty: u32,
}

impl Lines {
    pub(super) fn take_in(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, if all of it has come. Empty lines are none.
    ///
    /// # Errors
    /// When what has come is no message. There is no way past that.
    pub(super) fn next(&mut self) -> Result<Option<Message>, NotQmp> {
        loop {
            let rest = &self.bytes[self.searched..];
            let end = rest.iter().position(|&byte| byte == b'\n');
            let Some(end) = end.map(|end| self.searched + end) else {
                self.searched = self.bytes.len();
                return match self.bytes.len() > LONGEST_LINE {
                    true => Err(NotQmp::TooLong),
                    false => Ok(None),
                };
            };
            if end > LONGEST_LINE {
                return Err(NotQmp::TooLong);
            }
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            self.searched = 0;
            let line = line.trim_ascii();
            if !line.is_empty() {
                self.empty = 0;
                return Message::parse(line).map(Some);
            }
            self.empty += 1;
            if self.empty > MOST_EMPTY {
                return Err(NotQmp::Empty);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn all(bytes: &[u8]) -> Vec<Message> {
        let mut lines = Lines::default();
        lines.take_in(bytes);
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    #[test]
    fn what_qemu_sends_is_understood() {
        let sent = concat!(
            r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
            "\r\n\r\n",
            r#"{"return": {"actual": 7}, "id": 3}"#,
            "\r\n",
            r#"{"id": 4, "error": {"class": "DeviceNotActive", "desc": "no\nballoon"}}"#,
            "\n",
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
            "\r\n{\"ret",
        );
        let expected = [
            Message::Greeting {
                version: "7.2.22".into(),
            },
            Message::Return {
                id: Some(3),
                value: json!({"actual": 7}),
            },
            Message::Error {
                id: Some(4),
                class: "DeviceNotActive".into(),
                said: "no balloon".into(),
            },
            Message::Event(Event {
                name: "STOP".into(),
            }),
        ];
        assert_eq!(all(sent.as_bytes()), expected);
    }

    #[test]
    fn what_is_nested_too_deep_or_too_long_is_refused_and_not_kept() {
        let deep = "[".repeat(100_000);
        for hostile in [
            format!("{{\"return\": {deep}\n"),
            format!("{{\"event\": {deep}\n"),
            "SSH-2.0-OpenSSH_9.2\r\n".into(),
            "[]\n".into(),
            "{}\n".into(),
            "{\"QMP\": 7}\n".into(),
            "{\"error\": []}\n".into(),
            "\u{0}\n".into(),
        ] {
            let mut lines = Lines::default();
            lines.take_in(hostile.as_bytes());
            assert!(lines.next().is_err(), "{:.60}", hostile);
        }
        let mut lines = Lines::default();
        for _ in 0..=LONGEST_LINE / 1024 {
            lines.take_in(&[b' '; 1024]);
        }
        assert!(matches!(lines.next(), Err(NotQmp::TooLong)));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            ".{0,9}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 20, 4, |inner| {
            let key = prop_oneof![
                Just("QMP"),
                Just("return"),
                Just("error"),
                Just("event"),
                Just("id"),
                Just("class"),
                Just("version"),
                Just("qemu"),
                Just("data"),
                Just("desc")
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..4).prop_map(|pairs| pairs
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect()),
            ]
        })
    }

    proptest! {
        /// However it is cut into pieces, the same comes out.
        #[test]
        fn pieces_make_no_difference(values in prop::collection::vec(value(), 0..6), piece in 1usize..20) {
            let text: String = values.iter().map(|value| format!("{value}\n")).collect();
            let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
                let mut lines = Lines::default();
                let mut said = Vec::new();
                for piece in pieces {
                    lines.take_in(piece);
                    loop {
                        match lines.next() {
                            Ok(Some(message)) => said.push(message),
                            Ok(None) => break,
                            Err(_) => return (said, true),
                        }
                    }
                }
                (said, false)
            };
            let whole = read(&mut std::iter::once(text.as_bytes()));
            prop_assert_eq!(read(&mut text.as_bytes().chunks(piece)), whole);
        }

        #[test]
        fn no_bytes_make_it_panic_or_keep_more_than_a_line(pieces in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let mut lines = Lines::default();
            for piece in pieces {
                lines.take_in(&piece);
                while let Ok(Some(_)) = lines.next() {}
                prop_assert!(lines.bytes.len() <= LONGEST_LINE + piece.len());
            }
        }
    }
}
