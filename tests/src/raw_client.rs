//! A client of the host's socket that need not keep to any protocol.

use crate::wait::patience;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to the socket.
#[derive(Debug)]
pub struct RawClient(UnixStream);

impl RawClient {
    /// Connects.
    ///
    /// # Panics
    /// If nobody listens.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("a host listens");
        stream
            .set_read_timeout(Some(patience()))
            .expect("it is not zero");
        stream
            .set_write_timeout(Some(patience()))
            .expect("it is not zero");
        Self(stream)
    }

    /// Sends bytes. The host may hang up in their middle.
    pub fn send(&mut self, bytes: &[u8]) {
        drop(self.0.write_all(bytes));
    }

    /// Sends a request with a body.
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        self.send(head.as_bytes());
        self.send(body);
    }

    /// All that the host answers until it hangs up.
    ///
    /// # Panics
    /// If it neither answers nor hangs up.
    #[must_use]
    pub fn answer(mut self) -> String {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("the host neither goes on nor hangs up: {bytes:?}")
            }
            // A reset is a way of hanging up.
            _ => String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}

/// Sends one request and reads the answer.
#[must_use]
pub fn ask(socket: &Path, method: &str, path: &str, body: &[u8]) -> String {
    let mut client = RawClient::connect(socket);
    client.request(method, path, body);
    client.answer()
}
