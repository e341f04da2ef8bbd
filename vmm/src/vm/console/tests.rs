//! Claims about a console whose other side reads late, or never.

use super::output::BACKLOG_LIMIT;
use super::*;
use proptest::prelude::*;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread;

const DATA: u16 = 0;

fn console() -> (Console, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("sockets can be made");
    theirs.set_nonblocking(true).expect("it is a socket");
    let console = Console::new(ours.into()).expect("there are descriptors");
    (console, theirs)
}

/// `count` bytes in which no piece of some length is repeated.
fn text(count: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_le_bytes).take(count).collect()
}

/// As a guest's string instruction does.
fn print_each(console: &Console, bytes: &[u8]) {
    for byte in bytes {
        console.write(DATA, &[*byte]);
    }
}

/// Reads what is there, up to `limit` bytes.
fn read(reader: &mut UnixStream, limit: usize) -> Vec<u8> {
    let mut bytes = vec![0; limit];
    let count = reader.read(&mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

/// Reads all there is, and sends what waits until nothing does.
fn read_all(console: &Console, reader: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let piece = read(reader, 1 << 16);
        if piece.is_empty() && console.send_backlog() == Backlog::Empty {
            all.extend(read(reader, 1 << 16));
            return all;
        }
        all.extend(piece);
    }
}

fn waiting(console: &Console) -> usize {
    console.lock().writer().waiting()
}

#[test]
fn a_reader_that_comes_late_gets_every_byte_in_order() {
    let (console, mut reader) = console();
    print_each(&console, &text(5000));
    assert_eq!(read_all(&console, &mut reader), text(5000));
    assert_eq!(console.lost_bytes(), 0);
}

#[test]
fn what_does_not_fit_into_the_backlog_is_lost_and_counted_and_the_rest_is_whole() {
    let (console, mut reader) = console();
    let printed = text(200 << 10);
    print_each(&console, &printed);
    assert_eq!(waiting(&console), BACKLOG_LIMIT);
    let read = read_all(&console, &mut reader);
    assert!(read.len() > BACKLOG_LIMIT, "{}", read.len());
    assert_eq!(read, printed[..read.len()]);
    assert_eq!(console.lost_bytes(), (printed.len() - read.len()) as u64);
}

#[test]
fn a_backlog_is_announced_when_it_begins_and_not_for_each_byte() {
    let (console, mut reader) = console();
    print_each(&console, &text(100));
    assert!(!console.backlog().drain(), "nothing waits");
    print_each(&console, &text(5000));
    assert!(console.backlog().drain(), "something waits");
    print_each(&console, &text(5000));
    assert!(!console.backlog().drain(), "it was said before");
    assert_eq!(read_all(&console, &mut reader).len(), 10_100);
    print_each(&console, &text(5000));
    assert!(console.backlog().drain(), "something waits again");
}

#[test]
fn a_backlog_for_nobody_is_given_up_and_counted() {
    let (console, reader) = console();
    print_each(&console, &text(5000));
    let unsent = waiting(&console);
    assert!(unsent > 0);
    drop(reader);
    assert_eq!(console.send_backlog(), Backlog::Empty);
    assert_eq!(console.lost_bytes(), unsent as u64);
    print_each(&console, &text(100));
    assert_eq!(waiting(&console), 0);
    assert_eq!(console.lost_bytes(), unsent as u64 + 100);
}

#[test]
fn last_words_wait_for_a_reader_who_comes() {
    let (console, mut reader) = console();
    print_each(&console, &text(50_000));
    reader.set_nonblocking(false).expect("it is a socket");
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map(|_| all)
    });
    console.send_backlog_within(Duration::from_secs(20));
    drop(console);
    let read = late.join().expect("it does not panic");
    assert_eq!(read.expect("it can be read"), text(50_000));
}

#[test]
fn last_words_do_not_wait_for_a_reader_who_does_not_come() {
    let (console, _reader) = console();
    print_each(&console, &text(5000));
    let begin = Instant::now();
    console.send_backlog_within(Duration::from_millis(20));
    assert!(begin.elapsed() >= Duration::from_millis(20));
    assert!(waiting(&console) > 0);
}

/// What happens to a console, by a guest, by its reader and by who waits for the socket's room.
#[derive(Clone, Debug)]
enum Step {
    Print { count: usize, at_once: usize },
    Read { limit: usize },
    Send,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..20_000usize, prop_oneof![Just(1), 1..5000usize])
            .prop_map(|(count, at_once)| Step::Print { count, at_once }),
        2 => prop_oneof![1..300usize, 1..50_000usize].prop_map(|limit| Step::Read { limit }),
        1 => Just(Step::Send),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order, the reader sees all that was printed, in order, except
    /// for the tails that were counted as lost, each while the backlog was full.
    #[test]
    fn each_byte_is_read_in_order_or_counted(steps in steps()) {
        let (console, mut reader) = console();
        let (mut expected, mut seen, mut lost) = (Vec::<u8>::new(), Vec::new(), 0);
        let mut source = text(600_000).into_iter();
        for step in steps {
            match step {
                Step::Print { count, at_once } => {
                    let printed: Vec<u8> = source.by_ref().take(count).collect();
                    for piece in printed.chunks(at_once) {
                        console.write(DATA, piece);
                    }
                    let lost_now = usize::try_from(console.lost_bytes()).unwrap() - lost;
                    prop_assert!(lost_now == 0 || waiting(&console) == BACKLOG_LIMIT);
                    lost += lost_now;
                    expected.extend(&printed[..printed.len() - lost_now]);
                }
                Step::Read { limit } => seen.extend(read(&mut reader, limit)),
                Step::Send => drop(console.send_backlog()),
            }
            prop_assert!(waiting(&console) <= BACKLOG_LIMIT);
        }
        seen.extend(read_all(&console, &mut reader));
        prop_assert!(seen == expected, "{} bytes seen of {}", seen.len(), expected.len());
    }
}
