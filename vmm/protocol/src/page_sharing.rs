//! What the host's scanner and a VM's agent say to each other, on a socket of their own.
//!
//! A scan can ask for hundreds of pages at once, so these packets are bytes, not text; both ends are
//! the same build of one program (a VM process is started from its host's own file). The first packet
//! carries the descriptor of the store; then the scanner asks, and the agent answers each request once,
//! in any order, and says without being asked what it took away from the store.

use super::cursor::Cursor;
use super::{ChannelError, packets, take_bytes};
use page::{Gfn, GfnRange, PageCount};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::SocketFlags;
use sharing::{BLOCK_PAGES, Frame, Outcome, PageSet, Request, Span, Ticket};

/// Room for the largest request: 512 spans of one page each, all with copied pages.
const LARGEST_REQUEST: usize = 64 << 10;
/// Room for the largest answer: an outcome.
const LARGEST_ANSWER: usize = 512;

/// What the scanner says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// The store from which pages will be mapped: the packet's descriptor, of this many frames.
    Store {
        /// How many frames it can have.
        frames: u64,
    },
    /// Do this with one block.
    Request(Box<BlockRequest>),
    /// Drop the mappings of these pages, so that a touch shows.
    Sample {
        /// Names the sample in the answer.
        number: u64,
        /// Their places in the memory file; at most [`MOST_SAMPLED`].
        pages: Vec<u32>,
        /// Blocks whose mappings are dropped as a whole where they are large pages; at most as many.
        blocks: Vec<u32>,
    },
    /// Answer with [`FromAgent::Synced`] once all that was done before has been told.
    Sync {
        /// Comes back with the answer.
        number: u64,
    },
}

/// Pages, and blocks, in a sample at most: enough for an interval of four points either way.
pub const MOST_SAMPLED: usize = BLOCK_PAGES;

/// A [`Request`] without its VM, which is the one that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// Names the request in the answer.
    pub ticket: Ticket,
    /// Which block of the memory file.
    pub number: u32,
    /// See [`Request::drops`].
    pub drops: PageSet,
    /// See [`Request::zeros`].
    pub zeros: PageSet,
    /// See [`Request::spans`].
    pub spans: Vec<Span>,
    /// See [`Request::rehomes`].
    pub rehomes: PageSet,
}

/// What the agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// What became of a request.
    Outcome {
        /// Which request.
        ticket: Ticket,
        /// What became of it.
        outcome: Outcome,
        /// Pages of the block that the step left alone or copied, and that are armed as they were before it: nobody
        /// has written to them. A write in the moment in which the fence goes up or down is missed, so the
        /// host may take nothing but the use of looking at such a page from this.
        unwritten: PageSet,
    },
    /// Nothing of the store is mapped over these pages of the memory file any more.
    Unmapped(GfnRange),
    /// What became of a sample.
    Sampled {
        /// Which sample.
        number: u64,
        /// The pages whose mappings were dropped, by their places in the list that was sent.
        dropped: PageSet,
        /// The blocks whose mappings were dropped, by their places in theirs.
        blocks: PageSet,
    },
    /// All that was done before [`ToAgent::Sync`] came has been told.
    Synced {
        /// Which.
        number: u64,
        /// How the agent's own books stand.
        table: TableCheck,
    },
}

/// What an agent finds when it compares its table of pages with the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCheck {
    /// Pages that are mapped by large pages.
    pub large: PageCount,
    /// Pages that are elsewhere than the table says.
    pub wrong: PageCount,
    /// The first of them, by its place in the memory file.
    pub first_wrong: Option<u64>,
}

impl From<&Request> for BlockRequest {
    fn from(request: &Request) -> Self {
        Self {
            ticket: request.ticket,
            number: request.block.number,
            drops: request.drops,
            zeros: request.zeros,
            spans: request.spans.clone(),
            rehomes: request.rehomes,
        }
    }
}

const STORE: u8 = 0;
const REQUEST: u8 = 1;
const OUTCOME: u8 = 2;
const UNMAPPED: u8 = 3;
const SAMPLE: u8 = 4;
const SAMPLED: u8 = 5;
const SYNC: u8 = 6;
const SYNCED: u8 = 7;

impl ToAgent {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Store { frames } => numbered(STORE, *frames),
            Self::Request(request) => {
                let mut bytes = numbered(REQUEST, request.ticket.0);
                bytes.extend(request.number.to_le_bytes());
                for set in [&request.drops, &request.zeros, &request.rehomes] {
                    put_set(&mut bytes, set);
                }
                for span in &request.spans {
                    put_span(&mut bytes, span);
                }
                bytes
            }
            Self::Sample {
                number,
                pages,
                blocks,
            } => {
                let mut bytes = numbered(SAMPLE, *number);
                for list in [pages, blocks] {
                    bytes.extend(small(list.len()).to_le_bytes());
                    bytes.extend(list.iter().flat_map(|place| place.to_le_bytes()));
                }
                bytes
            }
            Self::Sync { number } => numbered(SYNC, *number),
        }
    }

    /// None for what no scanner of this build says.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let (kind, number) = (cursor.u8()?, cursor.u64()?);
        let message = match kind {
            STORE => Self::Store { frames: number },
            REQUEST => {
                let mut request = BlockRequest {
                    ticket: Ticket(number),
                    number: cursor.u32()?,
                    drops: cursor.set()?,
                    zeros: cursor.set()?,
                    rehomes: cursor.set()?,
                    spans: Vec::new(),
                };
                while !cursor.0.is_empty() {
                    request.spans.push(cursor.span()?);
                }
                Self::Request(Box::new(request))
            }
            SAMPLE => {
                let pages = cursor.places()?;
                let blocks = cursor.places()?;
                Self::Sample {
                    number,
                    pages,
                    blocks,
                }
            }
            SYNC => Self::Sync { number },
            _ => return None,
        };
        cursor.0.is_empty().then_some(message)
    }
}

impl FromAgent {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Outcome {
                ticket,
                outcome,
                unwritten,
            } => {
                let mut bytes = numbered(OUTCOME, ticket.0);
                for set in [&outcome.done, &outcome.copied, &outcome.differed, unwritten] {
                    put_set(&mut bytes, set);
                }
                bytes
            }
            Self::Unmapped(range) => {
                let mut bytes = numbered(UNMAPPED, range.start.0);
                bytes.extend(range.count.0.to_le_bytes());
                bytes
            }
            Self::Sampled {
                number,
                dropped,
                blocks,
            } => {
                let mut bytes = numbered(SAMPLED, *number);
                put_set(&mut bytes, dropped);
                put_set(&mut bytes, blocks);
                bytes
            }
            Self::Synced { number, table } => {
                let mut bytes = numbered(SYNCED, *number);
                let first = table.first_wrong.unwrap_or(u64::MAX);
                for number in [table.large.0, table.wrong.0, first] {
                    bytes.extend(number.to_le_bytes());
                }
                bytes
            }
        }
    }

    /// None for what no agent of this build says.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let (kind, number) = (cursor.u8()?, cursor.u64()?);
        let message = match kind {
            OUTCOME => Self::Outcome {
                ticket: Ticket(number),
                outcome: Outcome {
                    done: cursor.set()?,
                    copied: cursor.set()?,
                    differed: cursor.set()?,
                },
                unwritten: cursor.set()?,
            },
            UNMAPPED => {
                let count = cursor.u64()?;
                // A process that a guest has taken over may say anything: no range has no end.
                number.checked_add(count)?;
                Self::Unmapped(GfnRange {
                    start: Gfn(number),
                    count: PageCount(count),
                })
            }
            SAMPLED => Self::Sampled {
                number,
                dropped: cursor.set()?,
                blocks: cursor.set()?,
            },
            SYNCED => Self::Synced {
                number,
                table: TableCheck {
                    large: PageCount(cursor.u64()?),
                    wrong: PageCount(cursor.u64()?),
                    first_wrong: Some(cursor.u64()?).filter(|&page| page != u64::MAX),
                },
            },
            _ => return None,
        };
        cursor.0.is_empty().then_some(message)
    }
}

/// Every message begins with its kind and a number.
fn numbered(kind: u8, number: u64) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(number.to_le_bytes());
    bytes
}

fn put_set(bytes: &mut Vec<u8>, set: &PageSet) {
    for word in set.words() {
        bytes.extend(word.to_le_bytes());
    }
}

fn small(number: usize) -> u16 {
    u16::try_from(number).expect("at most a block's pages")
}

fn put_span(bytes: &mut Vec<u8>, span: &Span) {
    bytes.extend(small(span.start).to_le_bytes());
    bytes.extend(small(span.count).to_le_bytes());
    bytes.extend(span.frame.0.to_le_bytes());
    bytes.push(u8::from(!span.copied.is_empty()));
    if !span.copied.is_empty() {
        put_set(bytes, &span.copied);
    }
}

impl Cursor<'_> {
    fn set(&mut self) -> Option<PageSet> {
        let mut words = [0; BLOCK_PAGES / 64];
        for word in &mut words {
            *word = self.u64()?;
        }
        Some(PageSet::from_words(words))
    }

    /// None for more than a sample has.
    fn places(&mut self) -> Option<Vec<u32>> {
        let count = usize::from(self.u16()?);
        (count <= MOST_SAMPLED)
            .then(|| (0..count).map(|_| self.u32()).collect())
            .flatten()
    }

    /// None for a span that reaches out of its block.
    fn span(&mut self) -> Option<Span> {
        let (start, count) = (usize::from(self.u16()?), usize::from(self.u16()?));
        let frame = Frame(self.u32()?);
        let copied = match self.u8()? {
            0 => PageSet::EMPTY,
            _ => self.set()?,
        };
        let is_inside = count > 0 && start + count <= BLOCK_PAGES;
        is_inside.then_some(Span {
            start,
            count,
            frame,
            copied,
        })
    }
}

/// One end of the socket between scanner and agent. Nothing blocks.
#[derive(Debug)]
pub struct SharingSocket(OwnedFd);

impl SharingSocket {
    /// Two connected ends.
    ///
    /// # Errors
    /// When the kernel gives no sockets.
    pub fn pair() -> Result<(Self, Self), ChannelError> {
        let (one, other) = packets::pair(SocketFlags::NONBLOCK)?;
        Ok((Self(one), Self(other)))
    }

    /// The scanner speaks.
    ///
    /// # Errors
    /// `Socket(Errno::AGAIN)` when the agent has not taken what was sent before: ask again later.
    pub fn ask(
        &self,
        message: &ToAgent,
        store: Option<BorrowedFd<'_>>,
    ) -> Result<(), ChannelError> {
        packets::send(&self.0, &message.encode(), store.as_slice())
    }

    /// The agent speaks.
    ///
    /// # Errors
    /// `Socket(Errno::AGAIN)` when the scanner has not taken what was sent before.
    pub fn answer(&self, message: &FromAgent) -> Result<(), ChannelError> {
        packets::send(&self.0, &message.encode(), &[])
    }

    /// What the scanner said next, with its descriptor if there is one.
    ///
    /// # Errors
    /// `Socket(Errno::AGAIN)` when there is nothing.
    pub fn hear_scanner(&self) -> Result<(ToAgent, Option<OwnedFd>), ChannelError> {
        let mut bytes = vec![0; LARGEST_REQUEST];
        let (length, descriptors) = packets::receive(&self.0, &mut bytes)?;
        let message = ToAgent::decode(&bytes[..length]).ok_or(ChannelError::NotUnderstood)?;
        Ok((message, descriptors.into_iter().next()))
    }

    /// What the agent said next.
    ///
    /// # Errors
    /// `Socket(Errno::AGAIN)` when there is nothing. After any other, nothing that it says is to be trusted.
    pub fn hear_agent(&self) -> Result<FromAgent, ChannelError> {
        let mut bytes = [0; LARGEST_ANSWER];
        let length = take_bytes(&self.0, &mut bytes)?;
        FromAgent::decode(&bytes[..length]).ok_or(ChannelError::NotUnderstood)
    }
}

impl From<OwnedFd> for SharingSocket {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<SharingSocket> for OwnedFd {
    fn from(socket: SharingSocket) -> Self {
        socket.0
    }
}

impl AsFd for SharingSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::io::Errno;

    fn set() -> impl Strategy<Value = PageSet> {
        any::<[u64; BLOCK_PAGES / 64]>().prop_map(PageSet::from_words)
    }

    fn span() -> impl Strategy<Value = Span> {
        (
            0..BLOCK_PAGES,
            1..=BLOCK_PAGES,
            any::<u32>(),
            set(),
            any::<bool>(),
        )
            .prop_map(|(start, count, frame, copied, is_window)| Span {
                start,
                count: count.min(BLOCK_PAGES - start),
                frame: Frame(frame),
                copied: if is_window { copied } else { PageSet::EMPTY },
            })
    }

    fn request() -> impl Strategy<Value = BlockRequest> {
        let spans = prop::collection::vec(span(), 0..BLOCK_PAGES);
        (any::<u64>(), any::<u32>(), set(), set(), set(), spans).prop_map(
            |(ticket, number, drops, zeros, rehomes, spans)| BlockRequest {
                ticket: Ticket(ticket),
                number,
                drops,
                zeros,
                spans,
                rehomes,
            },
        )
    }

    proptest! {
        #[test]
        fn a_request_arrives_as_it_was_sent(request in request()) {
            let message = ToAgent::Request(Box::new(request));
            let bytes = message.encode();
            prop_assert!(bytes.len() <= LARGEST_REQUEST);
            prop_assert_eq!(ToAgent::decode(&bytes), Some(message));
        }

        #[test]
        fn an_answer_arrives_as_it_was_sent(ticket: u64, done in set(), copied in set(), differed in set(), unwritten in set()) {
            let outcome = Outcome { done, copied, differed };
            let message = FromAgent::Outcome { ticket: Ticket(ticket), outcome, unwritten };
            prop_assert!(message.encode().len() <= LARGEST_ANSWER);
            prop_assert_eq!(FromAgent::decode(&message.encode()), Some(message));
        }

        #[test]
        fn a_sample_and_its_answer_arrive_as_they_were_sent(
            number: u64, pages in prop::collection::vec(any::<u32>(), 0..=MOST_SAMPLED), dropped in set(),
            blocks in prop::collection::vec(any::<u32>(), 0..=MOST_SAMPLED), of_blocks in set(),
            large: u64, wrong: u64, first_wrong in prop::option::of(0..u64::MAX)
        ) {
            let message = ToAgent::Sample { number, pages, blocks };
            let bytes = message.encode();
            prop_assert!(bytes.len() <= LARGEST_REQUEST);
            prop_assert_eq!(ToAgent::decode(&bytes), Some(message));
            let answer = FromAgent::Sampled { number, dropped, blocks: of_blocks };
            prop_assert!(answer.encode().len() <= LARGEST_ANSWER);
            prop_assert_eq!(FromAgent::decode(&answer.encode()), Some(answer));
            let table = TableCheck { large: PageCount(large), wrong: PageCount(wrong), first_wrong };
            let (sync, synced) = (ToAgent::Sync { number }, FromAgent::Synced { number, table });
            prop_assert_eq!(ToAgent::decode(&sync.encode()), Some(sync));
            prop_assert_eq!(FromAgent::decode(&synced.encode()), Some(synced));
        }

        #[test]
        fn garbage_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(FromAgent::decode(&bytes).is_none_or(|message| message.encode() == bytes));
            drop(ToAgent::decode(&bytes));
        }
    }

    #[test]
    fn a_sample_of_too_many_pages_is_refused() {
        let lists = [MOST_SAMPLED + 1, 0];
        for [pages, blocks] in [lists, [lists[1], lists[0]]] {
            let message = ToAgent::Sample {
                number: 1,
                pages: vec![0; pages],
                blocks: vec![0; blocks],
            };
            assert_eq!(ToAgent::decode(&message.encode()), None);
        }
    }

    #[test]
    fn a_range_without_an_end_is_refused() {
        let range = GfnRange {
            start: Gfn(u64::MAX),
            count: PageCount(2),
        };
        assert_eq!(
            FromAgent::decode(&FromAgent::Unmapped(range).encode()),
            None
        );
    }

    #[test]
    fn the_store_comes_with_its_descriptor() {
        let (scanner, agent) = SharingSocket::pair().unwrap();
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(matches!(
            agent.hear_scanner(),
            Err(ChannelError::Socket(Errno::AGAIN))
        ));
        let message = ToAgent::Store { frames: 7 };
        scanner.ask(&message, Some(file.as_fd())).unwrap();
        let (heard, descriptor) = agent.hear_scanner().unwrap();
        assert_eq!(heard, message);
        assert!(descriptor.is_some());
        drop(scanner);
        assert!(matches!(agent.hear_scanner(), Err(ChannelError::Closed)));
    }
}
