//! `ballonet console`: a terminal on a guest.
//!
//! What is typed and what is shown go their ways side by side: a guest that takes no input holds up neither its
//! output nor the key that leaves it.

use super::terminal::RawTerminal;
use super::{print_bytes, tell};
use crate::cli::client::Client;
use anyhow::Result;
use protocol::VmName;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

/// Ctrl-], as telnet has it.
const DETACH: u8 = 0x1d;
/// After the end of what was typed, an answer is waited for this long, and before the console is left, the guest
/// to take it.
const LINGER: Duration = Duration::from_millis(500);
/// What is read at once of what is typed.
const PIECE: usize = 1024;
/// Pieces that wait for the guest to take them.
const WAITING_PIECES: usize = 1024;

/// Connects the terminal to a VM's console until the detach key or the VM's end. Input from a file or pipe is passed
/// on whole, and output that follows is shown: for a while, or, if so wished or if there was no input, until the end.
pub(super) async fn console(
    client: &Client,
    name: &VmName,
    replay: usize,
    follow: bool,
) -> Result<()> {
    let connection = client.console(name, replay).await?;
    let (mut from_guest, to_guest) = tokio::io::split(connection);
    let terminal = RawTerminal::take(stdin(), b"")?;
    let is_terminal = terminal.is_some();
    let note = |text: &str| {
        if is_terminal {
            tell(text);
        }
    };
    note(&format!("[console of {name}; Ctrl-] leaves it]\r\n"));
    let left = Arc::new(Notify::new());
    let input = match is_terminal {
        true => keys(Arc::clone(&left)),
        false => piped(),
    };
    let mut typing = pin!(pass_on(input, to_guest));
    let unread = reader_gone();
    let mut typed = None;
    let mut buffer = vec![0; 4096];
    loop {
        let limit = match typed {
            Some(Typed::Something) if !follow => LINGER,
            _ => Duration::MAX,
        };
        tokio::select! {
            what = &mut typing, if typed.is_none() => typed = Some(what),
            () = unread.notified() => return Ok(()),
            () = left.notified() => {
                if typed.is_none() {
                    drop(timeout(LINGER, &mut typing).await);
                }
                note("\r\n[left the console; the VM runs on]\r\n");
                return Ok(());
            }
            read = timeout(limit, from_guest.read(&mut buffer)) => match read {
                Ok(Ok(count @ 1..)) => print_bytes(&buffer[..count])?,
                Ok(ended) => {
                    ended?;
                    note("\r\n[the VM has ended]\r\n");
                    return Ok(());
                }
                Err(_silent) => return Ok(()),
            },
        }
    }
}

/// Told when whoever reads the output has gone. A silent guest would never let us find out by writing. A thread of
/// its own waits, which the end of the program ends.
fn reader_gone() -> Arc<Notify> {
    let gone = Arc::new(Notify::new());
    let told = Arc::clone(&gone);
    std::thread::spawn(move || {
        let stdout = stdout();
        // Errors and hang-ups are told unasked.
        let mut output = [PollFd::new(&stdout, PollFlags::empty())];
        while matches!(poll(&mut output, None), Ok(0) | Err(Errno::INTR)) {}
        told.notify_one();
    });
    gone
}

/// Whether there was anything to be typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typed {
    Nothing,
    Something,
}

/// Passes on what is typed until there is no more, or nobody takes it: that the VM has ended shows in its output.
async fn pass_on(
    mut input: mpsc::Receiver<Vec<u8>>,
    mut to_guest: impl AsyncWrite + Unpin,
) -> Typed {
    let mut typed = Typed::Nothing;
    while let Some(piece) = input.recv().await {
        typed = Typed::Something;
        if to_guest.write_all(&piece).await.is_err() {
            break;
        }
    }
    typed
}

/// What comes from a file or a pipe. A thread of its own reads, which the end of the program ends.
fn piped() -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel(WAITING_PIECES);
    std::thread::spawn(move || {
        let mut buffer = [0; PIECE];
        while let Ok(count @ 1..) = rustix::io::read(stdin(), &mut buffer) {
            if send.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}

/// What is typed, up to the key that leaves or the end of the terminal. A thread of its own reads: a terminal cannot
/// be waited for without changing it for every program that has it open. It never waits for the guest, or the key
/// that leaves would: of what is typed far ahead of a guest that takes nothing, the rest is lost.
fn keys(left: Arc<Notify>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel(WAITING_PIECES);
    std::thread::spawn(move || {
        let mut buffer = [0; PIECE];
        while let Ok(count @ 1..) = rustix::io::read(stdin(), &mut buffer) {
            let typed = &buffer[..count];
            let detach = typed.iter().position(|&byte| byte == DETACH);
            drop(send.try_send(typed[..detach.unwrap_or(count)].to_vec()));
            if detach.is_some() {
                break;
            }
        }
        left.notify_one();
    });
    receive
}
