//! Claims about the client: against who is no QEMU, and against a real one.

use super::*;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::UnixListener;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9}, "package": ""}, "capabilities": []}}"#;

/// Somebody who says this to each line that it hears, the first at once.
struct Stranger {
    folder: TempDir,
}

impl Stranger {
    fn saying(words: &'static [&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = [0; 1024];
            for words in words {
                if stream.write_all(words.as_bytes()).await.is_err()
                    || !matches!(stream.read(&mut heard).await, Ok(1..))
                {
                    return;
                }
            }
        });
        Self { folder }
    }

    async fn connect(&self) -> Result<Monitor, QmpError> {
        Monitor::connect(&self.folder.path().join("qmp"), Leave::Manage).await
    }
}

fn told(result: Result<impl std::fmt::Debug, QmpError>) -> String {
    crate::error_chain(&result.unwrap_err())
}

#[tokio::test]
async fn who_is_no_monitor_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(told(Monitor::connect(&file, Leave::Manage).await).contains("no socket"));
    let gone = folder.path().join("gone");
    drop(std::os::unix::net::UnixListener::bind(&gone).unwrap());
    assert!(told(Monitor::connect(&gone, Leave::Manage).await).contains("nobody listens"));
    let missing = folder.path().join("missing");
    assert!(told(Monitor::connect(&missing, Leave::Manage).await).contains("No such file"));
    for (words, part) in [
        (["HTTP/1.1 400 Bad Request\r\n"], "no JSON"),
        (["{}\n"], "no message of QMP"),
        (["{\"return\": {}}\n"], "no message of QMP"),
    ] {
        let words: &'static [&'static str] = Box::leak(Box::new(words));
        let told = told(Stranger::saying(words).connect().await);
        assert!(told.contains(part), "{told}");
    }
    assert!(told(Stranger::saying(&[]).connect().await).contains("hung up"));
}

#[tokio::test]
async fn a_monitor_that_somebody_else_holds_is_told_of_after_a_while() {
    let told = told(Stranger::saying(&[""]).connect().await);
    assert!(told.contains("another client"), "{told}");
}

#[tokio::test]
async fn a_command_that_is_not_answered_ends_and_a_late_answer_is_not_taken_for_another() {
    let stranger = Stranger::saying(Box::leak(Box::new([
        greeting(),
        "{\"return\": {}, \"id\": 1}\n",
        "{\"event\": \"STOP\"}\n",
        "{\"return\": 2, \"id\": 2}\n{\"return\": 3, \"id\": 3}\n",
    ])));
    let mut monitor = stranger.connect().await.unwrap();
    assert_eq!(monitor.version(), "9.0.0");
    let silent = monitor.execute("query-a", json!({})).await;
    assert!(matches!(silent, Err(QmpError::Silent { .. })), "{silent:?}");
    assert!(!silent.unwrap_err().is_final());
    assert_eq!(monitor.event().await.unwrap().name, "STOP");
    assert_eq!(monitor.execute("query-b", json!({})).await.unwrap(), 3);
    assert!(told(monitor.execute("query-c", json!({})).await).contains("hung up"));
}

/// The greeting as a line.
fn greeting() -> &'static str {
    Box::leak(format!("{GREETING}\r\n").into_boxed_str())
}

#[tokio::test]
async fn who_sends_events_without_end_is_given_up_and_few_are_kept() {
    let flood: String = (0..2 * MOST_BEFORE_ANSWER)
        .map(|_| "{\"event\": \"RTC_CHANGE\"}\n")
        .collect();
    let words: &'static [&'static str] = Box::leak(Box::new([
        greeting(),
        "{\"return\": {}, \"id\": 1}\n",
        Box::leak(flood.into_boxed_str()),
    ]));
    let mut monitor = Stranger::saying(words).connect().await.unwrap();
    let told = told(monitor.execute("query-a", json!({})).await);
    assert!(told.contains("does not answer 'query-a'"), "{told}");
    let kept = std::iter::from_fn(|| monitor.happened());
    assert_eq!(kept.count(), MOST_EVENTS);
}

#[tokio::test]
async fn who_sends_what_says_nothing_is_given_up() {
    for (nothing, word) in [
        ("\r\n", "empty lines"),
        ("{\"return\": {}}\n", "answers that nobody asked for"),
    ] {
        let words: &'static [&'static str] = Box::leak(Box::new([
            greeting(),
            "{\"return\": {}, \"id\": 1}\n",
            Box::leak(nothing.repeat(2 * MOST_BEFORE_ANSWER).into_boxed_str()),
        ]));
        let mut monitor = Stranger::saying(words).connect().await.unwrap();
        // It says each thing when it is asked something.
        monitor.stream.write_all(b"\n").await.unwrap();
        let told = told(monitor.event().await);
        assert!(told.contains(word), "{told}");
    }
}

struct Qemu {
    process: Child,
    folder: TempDir,
}

impl Qemu {
    /// One without a guest.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let process = Command::new("qemu-system-x86_64")
            .args(["-M", "none", "-nodefaults", "-display", "none", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("install qemu-system-x86");
        let qemu = Self { process, folder };
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        qemu
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test]
async fn a_real_qemu_answers_refuses_tells_and_ends() {
    let qemu = Qemu::start().await;
    let socket = qemu.folder.path().join("qmp");
    let mut monitor = Monitor::connect(&socket, Leave::Manage).await.unwrap();
    assert_eq!(monitor.pid(), Some(qemu.process.id()));
    let status = monitor.execute("query-status", json!({})).await.unwrap();
    assert!(status.get("status").is_some(), "{status}");
    let no_balloon = monitor.execute("query-balloon", json!({})).await;
    assert!(no_balloon.unwrap_err().is_no_device());
    assert!(told(monitor.execute("no-such", json!({})).await).contains("no-such"));
    let second = Monitor::connect(&socket, Leave::Manage).await;
    assert!(matches!(second, Err(QmpError::Held)), "{second:?}");
    monitor.execute("quit", json!({})).await.unwrap();
    assert_eq!(monitor.event().await.unwrap().name, "SHUTDOWN");
    assert!(monitor.event().await.unwrap_err().is_final());
}

#[tokio::test]
async fn a_monitor_that_may_only_look_sends_nothing_that_changes_anything() {
    let qemu = Qemu::start().await;
    let socket = qemu.folder.path().join("qmp");
    let polling = json!({"path": "/machine", "property": POLLING_INTERVAL, "value": 2});
    let other = json!({"path": "/machine", "property": "rom", "value": POLLING_INTERVAL});
    for (leave, may_poll) in [(Leave::Look, false), (Leave::LookAndPoll, true)] {
        let mut monitor = Monitor::connect(&socket, leave).await.unwrap();
        for (command, arguments) in [
            ("quit", json!({})),
            ("balloon", json!({"value": 4096})),
            ("human-monitor-command", json!({"command-line": "quit"})),
            ("qom-set", other.clone()),
            ("qom-list-types", json!({})),
        ] {
            let sent = monitor.execute(command, arguments).await;
            assert!(
                matches!(sent, Err(QmpError::LookedAtOnly(_))),
                "{command}: {sent:?}"
            );
        }
        let polled = monitor.execute("qom-set", polling.clone()).await;
        let is_sent = matches!(polled, Err(QmpError::Refused { .. }));
        assert_eq!(is_sent, may_poll, "{polled:?}");
        assert!(monitor.execute("query-status", json!({})).await.is_ok());
    }
}
