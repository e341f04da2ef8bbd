//! Requests under way, and how long a disk would take for them.
//!
//! What the guest takes for a disk is a file in the host's page cache and answers in a fraction of a
//! millisecond; the machines of the experiments that this is for had arms that moved. So a request can
//! be given a *seek time*: it is carried out at once, but counts as done only when a disk would have
//! done it. The model is a number of arms (`depth`), each of which serves one request at a time and
//! takes the seek time for it, wherever it goes; requests wait for the first arm that is free, in their
//! order. Bytes cost nothing beside that, for a request is 64 KiB at most. An arm is free again when its
//! request should have been done, not when the guest was awake to see it, so that a busy machine does
//! not make the disk slow, unless it keeps the guest from running for longer than all requests under
//! way take: seven seek times.
#![expect(unsafe_code, reason = "frames are lent to the disk by number")]

use super::{Action, Block, Disk, DiskError, REQUESTS_MAX, Request};
use crate::Gfn;

/// How long the disk takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Service {
    /// What a request takes at least, in microseconds.
    pub seek_us: u32,
    /// Requests that are served at a time, from 1 to [`REQUESTS_MAX`].
    pub depth: u8,
}

impl Service {
    /// As long as the device takes, and no longer.
    pub const AT_ONCE: Self = Self {
        seek_us: 0,
        depth: 1,
    };
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    action: Action,
    first: Block,
    count: u32,
    due_us: u64,
    /// What the device has answered.
    result: Option<Result<(), DiskError>>,
}

/// A request that is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Done {
    /// What was to be done.
    pub action: Action,
    /// The first block.
    pub first: Block,
    /// How many blocks.
    pub count: u32,
    /// Whether it was.
    pub result: Result<(), DiskError>,
}

/// The requests under way.
#[derive(Debug)]
pub struct Requests {
    pending: [Option<Pending>; REQUESTS_MAX],
    service: Service,
    /// When each arm is free.
    free_at_us: [u64; REQUESTS_MAX],
}

impl Requests {
    /// None yet.
    #[must_use]
    pub const fn new(service: Service) -> Self {
        Self {
            pending: [None; REQUESTS_MAX],
            service,
            free_at_us: [0; REQUESTS_MAX],
        }
    }

    /// From now on requests take so long.
    pub const fn set_service(&mut self, service: Service) {
        self.service = service;
        self.free_at_us = [0; REQUESTS_MAX];
    }

    /// Whether another can be started.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending.iter().any(Option::is_none)
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.iter().all(Option::is_none)
    }

    /// Starts a request. The frames are lent to the disk until it is done.
    ///
    /// # Safety
    /// The frames are RAM that nobody uses until then.
    ///
    /// # Panics
    /// If there is no room.
    pub unsafe fn start(
        &mut self,
        disk: &mut dyn Disk,
        (action, first, gfns): (Action, Block, &[Gfn]),
        now_us: u64,
    ) {
        let tag = self.pending.iter().position(Option::is_none);
        let tag = tag.expect("the caller asked for room");
        self.pending[tag] = Some(Pending {
            action,
            first,
            count: u32::try_from(gfns.len()).unwrap_or(u32::MAX),
            due_us: self.serve(now_us),
            result: None,
        });
        let request = Request {
            tag,
            action,
            first,
            gfns,
        };
        // SAFETY: the caller's promise.
        unsafe { disk.start(&request) };
    }

    /// Has the first free arm serve a request. Returns when it will be done.
    fn serve(&mut self, now_us: u64) -> u64 {
        let arms = &mut self.free_at_us[..usize::from(self.service.depth)];
        let Some(arm) = arms.iter_mut().min() else {
            return now_us;
        };
        *arm = now_us.max(*arm) + u64::from(self.service.seek_us);
        *arm
    }

    /// A request that is done by now.
    pub fn take_done(&mut self, disk: &mut dyn Disk, now_us: u64) -> Option<Done> {
        while let Some(answer) = disk.take_answer() {
            if let Some(Some(pending)) = self.pending.get_mut(answer.tag) {
                pending.result = Some(answer.result);
            }
        }
        self.pending.iter_mut().find_map(|slot| {
            let Pending {
                action,
                first,
                count,
                due_us,
                result: Some(result),
            } = (*slot)?
            else {
                return None;
            };
            (due_us <= now_us).then(|| {
                *slot = None;
                Done {
                    action,
                    first,
                    count,
                    result,
                }
            })
        })
    }

    /// When a request will be done, of those that the device has answered; for the others it interrupts.
    #[must_use]
    pub fn wake_at_us(&self) -> Option<u64> {
        let answered = |pending: &&Pending| pending.result.is_some();
        let pending = self.pending.iter().flatten().filter(answered);
        pending.map(|pending| pending.due_us).min()
    }
}
