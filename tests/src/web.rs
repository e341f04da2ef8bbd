//! A client of a host on TCP.

use crate::host::TestHost;
use crate::place::Place;
use crate::wait::{patience, wait_for};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Where a host serves HTTP, and what lets a client change things there.
#[derive(Clone, Debug)]
pub struct Web {
    /// The address.
    pub address: SocketAddr,
    /// The token.
    pub token: String,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head as it came.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Web {
    /// Starts a host with that budget that serves on a free port.
    ///
    /// # Panics
    /// If it does not say where.
    #[must_use]
    pub fn start(budget: &str) -> (TestHost, Self) {
        Self::start_with_rounds_of(200, budget)
    }

    /// The same, with so many milliseconds between two rounds.
    ///
    /// # Panics
    /// If it does not say where.
    #[must_use]
    pub fn start_with_rounds_of(interval_ms: u32, budget: &str) -> (TestHost, Self) {
        let place = Place::new();
        let interval_ms = interval_ms.to_string();
        let words = [
            "host",
            "--memory",
            budget,
            "--interval-ms",
            &interval_ms,
            "--http",
            "127.0.0.1:0",
        ];
        let command = place.command(&words);
        let host = TestHost::start_by(place, command);
        let web = Self::of(&host);
        (host, web)
    }

    /// What a host printed of where it serves.
    ///
    /// # Panics
    /// If it did not.
    #[must_use]
    pub fn of(host: &TestHost) -> Self {
        let address = wait_for("the host says where it serves", || {
            let log = fs::read_to_string(host.path().join("host.log")).ok()?;
            let (_, rest) = log.rsplit_once("dashboard at http://")?;
            rest.split_once('/')?.0.parse().ok()
        });
        let token = fs::read_to_string(host.host_folder().join("token"))
            .expect("the token is in the host's folder");
        Self {
            address,
            token: token.trim().into(),
        }
    }

    /// Sends a request with more lines for its head; the answer.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, head: &[&str], body: &str) -> Answer {
        let has_host = head
            .iter()
            .any(|line| line.to_ascii_lowercase().starts_with("host:"));
        let host = if has_host {
            String::new()
        } else {
            format!("Host: {}\r\n", self.address)
        };
        let mut lines: String = head.iter().map(|line| format!("{line}\r\n")).collect();
        lines.push_str(&host);
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{lines}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = self.connect();
        stream
            .write_all(request.as_bytes())
            .expect("the host listens");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the host answers");
        Answer::parse(&String::from_utf8_lossy(&answer))
    }

    /// Reads.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    /// The line of a head that carries the token.
    #[must_use]
    pub fn authorization(&self) -> String {
        bearer(&self.token)
    }

    /// Reads or changes with another token.
    #[must_use]
    pub fn ask_with(&self, token: Option<&str>, method: &str, path: &str, body: &str) -> Answer {
        let line = token.map(bearer);
        self.ask(method, path, line.as_deref().as_slice(), body)
    }

    /// Asks for the status alone, and what it may carry on with: a connection that the answer does not end.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn open(&self, path: &str, head: &[&str]) -> (u16, BufReader<TcpStream>) {
        let lines: String = head.iter().map(|line| format!("{line}\r\n")).collect();
        let mut stream = self.connect();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\n{lines}\r\n",
            self.address
        )
        .expect("the host listens");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).expect("the host answers");
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        (status.expect("a status"), stream)
    }

    /// A connection.
    ///
    /// # Panics
    /// If nobody listens.
    #[must_use]
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the host listens");
        stream
            .set_read_timeout(Some(patience()))
            .expect("it is not zero");
        stream
    }

    /// A connection to the stream of events.
    ///
    /// # Panics
    /// If nobody listens.
    #[must_use]
    pub fn follow(&self) -> BufReader<TcpStream> {
        let mut stream = self.connect();
        ask_to_follow(&mut stream, &self.address.to_string());
        BufReader::new(stream)
    }
}

/// The line of a head that carries a token.
#[must_use]
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// Asks a host, by that name, for its stream of events.
///
/// # Panics
/// If it does not listen.
pub fn ask_to_follow(stream: &mut impl Write, host: &str) {
    write!(
        stream,
        "GET /v1/events/stream HTTP/1.1\r\nHost: {host}\r\n\r\n"
    )
    .expect("the host listens");
}

/// The next message of a stream of events.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn next_moment(stream: &mut impl BufRead) -> Value {
    let mut line = String::new();
    loop {
        line.clear();
        let count = stream.read_line(&mut line).expect("the stream goes on");
        assert!(count > 0, "the stream ended");
        if let Some(data) = line.strip_prefix("data: ") {
            return json(data);
        }
    }
}

/// A body as JSON.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn json(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no status in {head:?}")),
            head: head.into(),
            body: body.into(),
        }
    }

    /// A line of the head by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}
