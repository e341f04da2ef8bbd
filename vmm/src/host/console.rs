//! A VM's console as the host holds it: the newest output is kept, and whoever is attached reads on
//! in it at a pace of its own.
//!
//! A position counts bytes since the VM's start, so a reader is one number, and what it has not
//! read is what lies between that number and the end. Output comes in pieces of any size, often of
//! one byte: how far a reader may be behind is therefore a number of bytes, never of pieces. Who is
//! further behind than what is kept loses the difference, for neither a chatty guest nor a slow
//! reader may take more than a fixed amount of memory, and the guest waits for nobody.

use super::console_log::ConsoleLog;
use super::untrusted_stream::UntrustedStream;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf, split};
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

/// Bytes of output that are kept for those who come later or read slowly.
pub const KEPT_BYTES: usize = 64 << 10;

/// A console; clones are the same one.
#[derive(Clone, Debug)]
pub struct Console {
    /// The sender belongs to who reads from the VM, so that it goes when the VM does.
    output: watch::Receiver<Output>,
    input: Arc<tokio::sync::Mutex<WriteHalf<UntrustedStream>>>,
}

impl Console {
    /// A console over the host's end of a VM's console socket; `log` keeps its output on disk. Must be called inside a
    /// runtime.
    pub(super) fn new(socket: UnixStream, mut log: Option<ConsoleLog>) -> Self {
        let (mut from_vm, input) = split(UntrustedStream::from(socket));
        let (sender, output) = watch::channel(Output::default());
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = from_vm.read(&mut buffer).await {
                let printed = &buffer[..count];
                sender.send_modify(|output| output.keep(printed));
                if let Some(log) = &mut log {
                    log.keep(printed);
                }
            }
        });
        Self {
            output,
            input: Arc::new(tokio::sync::Mutex::new(input)),
        }
    }

    /// Up to `replay` bytes of what was printed before, and who reads all that will be.
    #[must_use]
    pub fn attach(&self, replay: usize) -> (Vec<u8>, Reader) {
        // Of one and the same output, or bytes could come between the two.
        let output = self.output.borrow();
        let before = output.since(output.end - replay.min(output.kept.len()));
        let reader = Reader {
            position: output.end,
            output: self.output.clone(),
        };
        (before, reader)
    }

    /// Types something. Waits while the guest does not read.
    ///
    /// # Errors
    /// When the VM has ended.
    pub async fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.input.lock().await.write_all(bytes).await
    }
}

/// One who is attached to a console.
#[derive(Debug)]
pub struct Reader {
    position: usize,
    output: watch::Receiver<Output>,
}

impl Reader {
    /// All output since the last call, up to [`KEPT_BYTES`]; waits for some. A call that is given
    /// up takes nothing.
    ///
    /// # Errors
    /// `Lagged` with the number of bytes that came and went since the last call: the next goes on
    /// from the oldest that is kept. `Closed` when the VM has ended and all output was taken.
    pub async fn recv(&mut self) -> Result<Vec<u8>, RecvError> {
        loop {
            let piece = self.take()?;
            if !piece.is_empty() {
                return Ok(piece);
            }
            let changed = self.output.changed().await;
            changed.map_err(|_ended| RecvError::Closed)?;
        }
    }

    fn take(&mut self) -> Result<Vec<u8>, RecvError> {
        let output = self.output.borrow_and_update();
        let lost = output.oldest().saturating_sub(self.position);
        if lost > 0 {
            self.position = output.oldest();
            return Err(RecvError::Lagged(lost as u64));
        }
        let piece = output.since(self.position);
        self.position = output.end;
        Ok(piece)
    }
}

/// The newest output.
#[derive(Debug, Default)]
struct Output {
    kept: VecDeque<u8>,
    /// The position after the newest byte.
    end: usize,
}

impl Output {
    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let surplus = self.kept.len().saturating_sub(KEPT_BYTES);
        self.kept.drain(..surplus);
        self.end += bytes.len();
    }

    /// The position of the oldest byte that is kept.
    fn oldest(&self) -> usize {
        self.end - self.kept.len()
    }

    /// All bytes from a position on that is still kept.
    fn since(&self, position: usize) -> Vec<u8> {
        let skip = position - self.oldest();
        self.kept.range(skip..).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (Console, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("sockets can be made");
        (Console::new(ours, None), theirs)
    }

    /// `count` bytes in which no piece of some length is repeated.
    fn text(count: usize) -> Vec<u8> {
        (0u32..).flat_map(u32::to_le_bytes).take(count).collect()
    }

    /// Prints a text in pieces; each is with the host before the next is printed.
    async fn print(vm: &mut UnixStream, console: &Console, text: &[u8], piece_size: usize) {
        let mut printed = 0;
        for piece in text.chunks(piece_size) {
            vm.write_all(piece).await.expect("the host reads");
            printed += piece.len();
            let tail = &text[printed.saturating_sub(8)..printed];
            while console.attach(8).0 != tail {
                tokio::task::yield_now().await;
            }
        }
    }

    /// What a reader gets until the VM's end, and how many bytes it is told that it lost.
    async fn read_to_end(mut reader: Reader) -> (Vec<u8>, u64) {
        let (mut read, mut lost) = (Vec::new(), 0);
        loop {
            match reader.recv().await {
                Ok(piece) => read.extend_from_slice(&piece),
                Err(RecvError::Lagged(count)) => lost += count,
                Err(RecvError::Closed) => return (read, lost),
            }
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_many_small_pieces_behind_loses_nothing() {
        let (console, mut vm) = console();
        let (_, reader) = console.attach(0);
        print(&mut vm, &console, &text(5000), 1).await;
        drop(vm);
        assert_eq!(read_to_end(reader).await, (text(5000), 0));
    }

    #[tokio::test]
    async fn a_reader_that_is_too_far_behind_goes_on_from_the_oldest_that_is_kept() {
        let (console, mut vm) = console();
        let (_, reader) = console.attach(0);
        let printed = text(200 << 10);
        print(&mut vm, &console, &printed, 4096).await;
        drop(vm);
        let (read, lost) = read_to_end(reader).await;
        assert_eq!(read, printed[printed.len() - KEPT_BYTES..]);
        assert_eq!(lost, (printed.len() - KEPT_BYTES) as u64);
    }

    #[tokio::test]
    async fn what_is_replayed_and_what_is_read_are_all_that_was_printed() {
        let (console, mut vm) = console();
        let printed = text(10_000);
        print(&mut vm, &console, &printed[..6000], 1000).await;
        let (all, reader) = console.attach(usize::MAX);
        let (newest, _) = console.attach(100);
        print(&mut vm, &console, &printed[6000..], 1000).await;
        drop(vm);
        assert_eq!(all, printed[..6000]);
        assert_eq!(newest, printed[5900..6000]);
        assert_eq!(read_to_end(reader).await, (printed[6000..].to_vec(), 0));
    }

    #[tokio::test]
    async fn a_console_whose_vm_has_ended_still_tells_its_last_words() {
        let (console, mut vm) = console();
        let (_, early) = console.attach(0);
        print(&mut vm, &console, b"farewell", 8).await;
        drop(vm);
        assert_eq!(read_to_end(early).await, (b"farewell".to_vec(), 0));
        let (before, late) = console.attach(usize::MAX);
        assert_eq!(before, b"farewell");
        assert_eq!(read_to_end(late).await, (Vec::new(), 0));
    }

    #[tokio::test]
    async fn a_reader_takes_all_that_waits_in_one_piece() {
        let (console, mut vm) = console();
        let (_, mut reader) = console.attach(0);
        print(&mut vm, &console, &text(5000), 1).await;
        assert_eq!(reader.recv().await, Ok(text(5000)));
    }

    #[test]
    fn only_the_newest_output_is_kept() {
        let mut output = Output::default();
        for round in 0..100u8 {
            output.keep(&[round; 1000]);
        }
        assert_eq!(output.kept.len(), KEPT_BYTES);
        assert_eq!(output.oldest(), 100_000 - KEPT_BYTES);
        assert_eq!(output.kept.back(), Some(&99));
    }
}
