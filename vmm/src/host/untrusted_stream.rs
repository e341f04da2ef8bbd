//! A stream to somebody who may send anything: a VM process at its console, a client.

use super::drop_elsewhere::DropElsewhere;
use protocol::{ChannelError, take_bytes};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Takes no descriptors, and neither reading nor closing waits for what the other side does.
#[derive(Debug)]
pub(super) struct UntrustedStream(DropElsewhere<UnixStream>);

impl From<UnixStream> for UntrustedStream {
    fn from(stream: UnixStream) -> Self {
        Self(stream.into())
    }
}

/// The next bytes; none at the end.
fn take(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    match take_bytes(stream, bytes) {
        Ok(count) => Ok(count),
        Err(ChannelError::Closed) => Ok(0),
        Err(ChannelError::Socket(error)) => Err(error.into()),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

impl AsyncRead for UntrustedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            let bytes = buffer.initialize_unfilled();
            match self
                .0
                .try_io(Interest::READABLE, || take(&self.0, &mut *bytes))
            {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for UntrustedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
