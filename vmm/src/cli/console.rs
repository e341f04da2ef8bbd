//! `ballonet console`: a terminal on a guest.

use super::host::end_signal;
use crate::api::client::Client;
use crate::name::VmName;
use anyhow::Result;
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io::Write;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Ctrl-], as telnet has it.
const DETACH: u8 = 0x1d;
/// After the end of input that is not typed, output is waited for this long.
const LINGER: Duration = Duration::from_millis(500);

/// Connects the terminal to a VM's console until the detach key or the VM's end. Input from a file
/// or pipe is passed on whole, and output that follows is shown.
pub(super) async fn console(client: &Client, name: &VmName, replay: usize) -> Result<()> {
    let connection = client.console(name, replay).await?;
    let (mut from_guest, mut to_guest) = tokio::io::split(connection);
    let raw = RawTerminal::enter()?;
    if raw.is_some() {
        note(&format!("[console of {name}; Ctrl-] leaves it]\r\n"));
    }
    let mut input = keys();
    let mut buffer = vec![0; 4096];
    let mut typing = true;
    // Told to end, the terminal must be given back first.
    let end = end_signal()?;
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            typed = input.recv(), if typing => match typed {
                Some(bytes) => {
                    let end = if raw.is_some() { bytes.iter().position(|&byte| byte == DETACH) } else { None };
                    to_guest.write_all(&bytes[..end.unwrap_or(bytes.len())]).await?;
                    if end.is_some() {
                        note("\r\n[left the console; the VM runs on]\r\n");
                        return Ok(());
                    }
                }
                None => typing = false,
            },
            read = read_while(typing, &mut from_guest, &mut buffer) => match read? {
                Some(0) => {
                    if raw.is_some() { note("\r\n[the VM has ended]\r\n"); }
                    return Ok(());
                }
                Some(count) => show(&buffer[..count])?,
                None => return Ok(()),
            },
        }
    }
}

/// Reads; `None` when input has ended and nothing came for a while.
async fn read_while(
    typing: bool,
    from_guest: &mut (impl AsyncReadExt + Unpin),
    buffer: &mut [u8],
) -> std::io::Result<Option<usize>> {
    if typing {
        return from_guest.read(buffer).await.map(Some);
    }
    match timeout(LINGER, from_guest.read(buffer)).await {
        Ok(read) => read.map(Some),
        Err(_) => Ok(None),
    }
}

fn show(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// What is said beside the guest's output goes to standard error.
fn note(text: &str) {
    eprint!("{text}");
}

/// What is typed. A thread of its own reads: a terminal cannot be waited for without changing it
/// for every program that has it open.
fn keys() -> tokio::sync::mpsc::Receiver<Vec<u8>> {
    let (send, receive) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = rustix::io::read(stdin(), &mut buffer) {
            if send.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}

/// A terminal that passes every key on, until it is dropped.
#[derive(Debug)]
struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` if input is not typed.
    fn enter() -> Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(stdin(), OptionalActions::Now, &self.0) {
            note(&format!(
                "the terminal stays raw, `reset` helps: {error}\r\n"
            ));
        }
    }
}
