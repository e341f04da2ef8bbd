//! Finds out whether the discipline is kept by which the threads of a VM process share its guest's pages: a lockset check after
//! Eraser (Savage, Burrows, Nelson, Sobalvarro and Anderson, "Eraser: A Dynamic Data Race Detector for Multithreaded Programs",
//! 1997).
//!
//! A race shows only when two threads meet; that nothing keeps them apart shows each time that one of them comes by. So for each
//! page is kept what *everybody* had who touched it so far ([`Cell`]): a step of the fence, a lock, the guest's own word. When
//! nothing of that is left, nothing keeps them apart, and it is told where the two were ([`Race`]).
//!
//! Three things differ from locks in a program:
//!
//! * **Who is there unseen.** The guest's processors write to a page whenever nothing keeps them out, and the kernel makes pages
//!   of holes. Nobody sees them do it. So who gives a page to one of them says so, and what they would have had is the
//!   candidates from then on (`rules`).
//! * **Ownership goes over with a page's state.** A page that was taken out is its taker's until it is punched, and the
//!   pager's after that. Each time it goes over, the candidates are new ones.
//! * **Three things are shared of each page**, each with candidates of its own ([`Aspect`]): what its guest sees there, what
//!   backs it, and what the log has of it.
//!
//! Nothing here does I/O, knows a thread or a clock. [`Page`] hears what is done with one page, in the order in which it is done.

#![forbid(unsafe_code)]

mod cell;
mod page;
mod race;
mod rules;

pub use cell::{Access, Cell};
pub use page::Page;
pub use race::{Race, Visit};
pub use rules::{Aspect, Protections};
