//! The console: a 16550 at 0x3f8.

use core::fmt;

use crate::port;

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = DATA + 1;
const FIFO_CONTROL: u16 = DATA + 2;
const MODEM_CONTROL: u16 = DATA + 4;
const LINE_STATUS: u16 = DATA + 5;
const RECEIVED: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x20;
const FIFO_BYTES: usize = 16;
/// The pin of the I/O APIC.
pub(crate) const PIN: u8 = 4;
/// Where no UART answers, all bits read as one.
const ABSENT: u8 = 0xff;

/// Sets the FIFO up, and interrupts for input.
pub(crate) fn start() {
    port::write(FIFO_CONTROL, 0x07);
    port::write(MODEM_CONTROL, 0x0b);
    port::write(INTERRUPT_ENABLE, 0x01);
}

/// The next byte typed, if there is one.
pub(crate) fn read() -> Option<u8> {
    let status = port::read(LINE_STATUS);
    (status != ABSENT && status & RECEIVED != 0).then(|| port::read(DATA))
}

/// Writes in bursts of one FIFO each, so that few exits are paid.
pub(crate) fn write(bytes: &[u8]) {
    for burst in bytes.chunks(FIFO_BYTES) {
        while port::read(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
            core::hint::spin_loop();
        }
        port::write_all(DATA, burst);
    }
}

/// Collects a text in a buffer and writes it in full bursts; ends lines with CR LF.
pub(crate) struct Writer {
    buffer: [u8; 256],
    length: usize,
}

impl Writer {
    pub(crate) const fn new() -> Self {
        Self {
            buffer: [0; 256],
            length: 0,
        }
    }

    fn push(&mut self, byte: u8) {
        if self.length == self.buffer.len() {
            self.flush();
        }
        self.buffer[self.length] = byte;
        self.length += 1;
    }

    fn flush(&mut self) {
        write(&self.buffer[..self.length]);
        self.length = 0;
    }
}

impl fmt::Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Prints to the console.
macro_rules! print {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // The writer itself never fails.
        write!($crate::serial::Writer::new(), $($argument)*).unwrap_or_default()
    }};
}

/// Prints a line to the console.
macro_rules! println {
    ($($argument:tt)*) => { $crate::serial::print!("{}\n", format_args!($($argument)*)) };
}

pub(crate) use {print, println};
