//! A browser that a test drives, through Chromium's own driver.

use crate::wait::{patience, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Keys that are no signs, as WebDriver has them.
pub const TAB: &str = "\u{e004}";
/// The enter key.
pub const ENTER: &str = "\u{e007}";

/// What the driver calls an element's number.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one page. It is closed when this is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _folder: TempDir,
}

impl Browser {
    /// Starts one with a window of that size.
    ///
    /// # Panics
    /// If Chromium or its driver is missing: tests/run installs them.
    #[must_use]
    pub fn start(width: u32, height: u32) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("TMPDIR", folder.path())
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver can be run: Debian's package chromium-driver has it");
        let port = port_of(&mut driver);
        let mut browser = Self {
            driver,
            port,
            session: String::new(),
            _folder: folder,
        };
        let profile = browser._folder.path().join("profile");
        let args = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={}", profile.display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": args},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.call("POST", "/session", &wanted);
        browser.session = session["sessionId"]
            .as_str()
            .expect("a session has a name")
            .into();
        browser
    }

    /// Goes to an address.
    pub fn go(&self, url: &str) {
        self.act("/url", &json!({"url": url}));
    }

    /// Runs a script in the page; what it returns.
    #[must_use]
    pub fn eval(&self, script: &str) -> Value {
        self.act("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a script returns true.
    pub fn wait_until(&self, what: &str, script: &str) {
        wait_for(what, || {
            (self.eval(script) == Value::Bool(true)).then_some(())
        });
    }

    /// Replaces what a field says, by keys.
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.act(&format!("/element/{element}/clear"), &json!({}));
        self.act(&format!("/element/{element}/value"), &json!({"text": text}));
    }

    /// Clicks.
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.act(&format!("/element/{element}/click"), &json!({}));
    }

    /// Presses keys one after the other, wherever the focus is. WebDriver has code points for those that are
    /// no signs: [`TAB`] and [`ENTER`].
    pub fn press(&self, keys: &str) {
        let act = |key: char| {
            let step = |kind: &str| json!({"type": kind, "value": key.to_string()});
            [step("keyDown"), step("keyUp")]
        };
        let actions: Vec<Value> = keys.chars().flat_map(act).collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.act("/actions", &json!({"actions": [keyboard]}));
    }

    /// Runs a script in each page before the page's own.
    pub fn prepare(&self, script: &str) {
        self.tell(
            "Page.addScriptToEvaluateOnNewDocument",
            &json!({"source": script}),
        );
    }

    /// Makes pages believe that the person likes `light` or `dark` ones.
    pub fn prefer(&self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.tell(
            "Emulation.setEmulatedMedia",
            &json!({"features": [feature]}),
        );
    }

    /// A command of Chromium's own protocol.
    fn tell(&self, command: &str, parameters: &Value) {
        let body = json!({"cmd": command, "params": parameters});
        self.act("/goog/cdp/execute", &body);
    }

    /// What the page's console said is wrong since this was asked last.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let entries = self.act("/se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().into_iter().flatten();
        let errors = entries.filter(|entry| entry["level"] == "SEVERE");
        errors.map(|entry| entry["message"].to_string()).collect()
    }

    fn element(&self, selector: &str) -> String {
        let wanted = json!({"using": "css selector", "value": selector});
        let element = self.act("/element", &wanted);
        element[ELEMENT]
            .as_str()
            .unwrap_or_else(|| panic!("no {selector}: {element}"))
            .into()
    }

    fn act(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("/session/{}{path}", self.session), body)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.ask(method, path, body);
        let value = answer.get("value").cloned().unwrap_or_default();
        assert!(value.get("error").is_none(), "{method} {path}: {value:#}");
        value
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the driver listens");
        stream
            .set_read_timeout(Some(patience()))
            .expect("it is not zero");
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .expect("the driver listens");
        let answer = read_body(&mut BufReader::new(stream));
        serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }
}

/// The driver may keep the connection open, so that only the length tells where the body ends.
fn read_body(stream: &mut impl BufRead) -> Vec<u8> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("the driver answers");
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().expect("a length is a number");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream
        .read_exact(&mut body)
        .expect("the driver answers in full");
    body
}

fn port_of(driver: &mut Child) -> u16 {
    let stdout = driver.stdout.take().expect("it is piped");
    for line in BufReader::new(stdout).lines() {
        let line = line.expect("the driver prints text");
        let port = line
            .split_once("started successfully on port ")
            .map(|(_, rest)| rest);
        if let Some(port) = port.and_then(|rest| rest.trim_end_matches('.').parse().ok()) {
            return port;
        }
    }
    panic!("the driver does not say where it listens")
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            drop(self.ask("DELETE", &format!("/session/{}", self.session), &json!({})));
        }
        // The browser ends with its driver.
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}
