//! A VM's console as the host holds it: the newest output is kept, and whoever is attached gets
//! what comes. Neither a chatty guest nor a slow reader takes more than a fixed amount of memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::broadcast;

/// Bytes of output that are kept for those who come later.
pub const KEPT_BYTES: usize = 64 << 10;
/// Pieces of output that a slow reader may be behind before it loses some.
const PIECES: usize = 256;

/// A console; clones are the same one.
#[derive(Clone, Debug)]
pub struct Console {
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// The sender belongs to who reads from the VM, so that it goes when the VM does.
    pieces: broadcast::WeakSender<Arc<[u8]>>,
    input: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
}

impl Console {
    /// A console over the host's end of a VM's console socket. Must be called inside a runtime.
    pub(super) fn new(socket: UnixStream) -> Self {
        let (mut output, input) = socket.into_split();
        let pieces = broadcast::Sender::new(PIECES);
        let console = Self {
            kept: Arc::default(),
            pieces: pieces.downgrade(),
            input: Arc::new(tokio::sync::Mutex::new(input)),
        };
        let kept = Arc::clone(&console.kept);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer).await {
                let mut kept = lock(&kept);
                keep(&mut kept, &buffer[..count]);
                // An error says that nobody is attached.
                drop(pieces.send(Arc::from(&buffer[..count])));
            }
        });
        console
    }

    /// Up to `replay` bytes of what was printed before, and all that will be.
    #[must_use]
    pub fn attach(&self, replay: usize) -> (Vec<u8>, broadcast::Receiver<Arc<[u8]>>) {
        // Under the lock no piece can come between the two.
        let kept = lock(&self.kept);
        let receiver = match self.pieces.upgrade() {
            Some(pieces) => pieces.subscribe(),
            None => broadcast::Sender::new(1).subscribe(),
        };
        let skip = kept.len().saturating_sub(replay);
        (kept.iter().skip(skip).copied().collect(), receiver)
    }

    /// Types something. Waits while the guest does not read.
    ///
    /// # Errors
    /// When the VM has ended.
    pub async fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.input.lock().await.write_all(bytes).await
    }
}

fn keep(kept: &mut VecDeque<u8>, bytes: &[u8]) {
    kept.extend(bytes);
    let surplus = kept.len().saturating_sub(KEPT_BYTES);
    kept.drain(..surplus);
}

fn lock(kept: &Mutex<VecDeque<u8>>) -> MutexGuard<'_, VecDeque<u8>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_output_is_kept() {
        let mut kept = VecDeque::new();
        for round in 0..100u8 {
            keep(&mut kept, &[round; 1000]);
        }
        assert_eq!(kept.len(), KEPT_BYTES);
        assert_eq!(kept.back(), Some(&99));
    }
}
