//! Whatever a client sends as a body or a person types as a change is read without harm; and what is
//! understood means the same when it is written and read again, as it is between client and host.

use super::{
    BalloonRequest, HistoryQuery, HostChange, NetRequest, Problem, RunRequest, VmChange, object,
    parse_host_change, parse_vm_change,
};
use page::Size;
use protocol::DiskSpec;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Reads `bytes` as everything that clients may say.
///
/// # Panics
/// If something does not mean the same when it is read again.
pub fn run(bytes: &[u8]) {
    survives::<RunRequest>(bytes);
    survives::<VmChange>(bytes);
    survives::<HostChange>(bytes);
    survives::<BalloonRequest>(bytes);
    survives::<HistoryQuery>(bytes);
    survives::<Problem>(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Why a text is refused is for people; here it matters that it is said, not what.
    drop(text.parse::<Size>());
    drop(text.parse::<NetRequest>());
    drop(text.parse::<DiskSpec>());
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if let Ok(change) = parse_vm_change(&words) {
        reads_back(&change);
    }
    if let Ok(change) = parse_host_change(&words) {
        reads_back(&change);
    }
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    if let Ok(value) = object::<_, T>(&mut json) {
        reads_back(&value);
    }
}

fn reads_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let written = serde_json::to_vec(value).expect("requests have only text keys");
    let mut json = serde_json::Deserializer::from_slice(&written);
    let read = object::<_, T>(&mut json).expect("what was understood once is understood again");
    assert_eq!(read, *value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    #[test]
    fn no_stored_input_breaks_a_reader() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/api");
        let entries: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert!(entries.len() >= 4, "stored inputs are in their folder");
        for entry in entries {
            run(&std::fs::read(entry.unwrap().path()).unwrap());
        }
    }

    proptest! {
        #[test]
        fn no_random_text_breaks_a_reader(text in "[ -~äλ\\n]{0,80}") {
            run(text.as_bytes());
        }

        #[test]
        fn no_random_fields_break_a_reader(
            fields in prop::collection::vec(
                (
                    "(name|memory_bytes|restart|min_bytes|shares|idle_tax|scan|nets|disks|balloon_bytes)",
                    "(null|[0-9]{1,20}|\"[a-z0-9.]{0,5}\"|\\{\"(pass_s|path|tap|permille)\":[0-9\"x]{1,3}\\}|\\[\\])",
                ),
                0..5,
            ),
        ) {
            let fields: Vec<String> =
                fields.into_iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            run(format!("{{{}}}", fields.join(",")).as_bytes());
        }
    }
}
