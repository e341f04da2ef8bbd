//! One page of a guest: where it is, and what each step that is done with it needs.
//!
//! **In which order a step and its note come matters**, for others may follow at once. What lets others in (a hole is punched,
//! protection lifted, memory registered no more, mapped anew) is noted before it is done; what keeps others out, or takes from
//! them, after.

use crate::cell::{Access, Cell};
use crate::race::{Race, Visit};
use crate::rules::{Aspect, Protections, Unseen};
use std::panic::Location;

/// Where a page is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lies {
    /// In the memory file, or nowhere.
    #[default]
    Home,
    /// The log has it, and the memory file too: it is about to be punched.
    Taken,
    /// The log has it, and it is a hole.
    Out,
    /// A frame of the store is mapped over it.
    Shown,
}

/// Around a page.
#[derive(Clone, Copy, Debug)]
struct Fence {
    /// Whose.
    thread: u32,
    /// Whether it keeps those out, too, who touch a hole.
    keeps_all: bool,
}

/// A page of a guest. It is whoever's comes first, until its guest runs ([`Page::opened`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct Page {
    content: Cell,
    backing: Cell,
    record: Cell,
    lies: Lies,
    fence: Option<Fence>,
    is_protected: bool,
    holes_wait: bool,
    /// By so many who wait for the answer.
    given_up: u8,
    /// It came back as it left, and what the log has of it is worth something until it is written.
    is_kept: bool,
}

impl Page {
    /// The guest runs from here on.
    pub fn opened(&mut self, visit: Visit) {
        self.open(visit.place);
    }

    /// The fence is about to be raised around it.
    pub fn fenced(&mut self, visit: Visit, keeps_all: bool) {
        let thread = visit.thread;
        self.fence = Some(Fence { thread, keeps_all });
    }

    /// The fence is about to be lowered: whatever is not protected may be written.
    ///
    /// # Errors
    /// When a record is kept of what may be.
    pub fn unfenced(&mut self, visit: Visit) -> Result<(), Race> {
        self.fence = None;
        self.is_heard_of(visit)
    }

    /// Writers wait from here on.
    ///
    /// # Errors
    /// When that is another's page.
    pub fn protected(&mut self, visit: Visit) -> Result<(), Race> {
        self.is_protected = true;
        match (self.is_fenced_by(visit), self.lies) {
            (true, Lies::Home | Lies::Shown) => self.visit(Aspect::Content, visit, Access::Read),
            _ => Ok(()),
        }
    }

    /// Writers wait no longer.
    ///
    /// # Errors
    /// When somebody else keeps them out, or nobody will hear of what they write.
    pub fn lifted(&mut self, visit: Visit) -> Result<(), Race> {
        if self.fence.is_some() && !self.is_fenced_by(visit) {
            self.visit(Aspect::Content, visit, Access::Write)?;
        }
        self.is_protected = false;
        if self.lies != Lies::Out {
            self.let_guest_in(visit.place);
        }
        match self.fence {
            Some(_) => Ok(()),
            None => self.is_heard_of(visit),
        }
    }

    /// Whoever touches a hole waits from here on, or no longer.
    ///
    /// # Errors
    /// When the page is out, and its hole is filled with zeros by who touches it.
    pub fn registered(&mut self, visit: Visit, holes_wait: bool) -> Result<(), Race> {
        self.holes_wait = holes_wait;
        if self.lies == Lies::Taken {
            return Ok(());
        }
        self.is_not_filled(visit)?;
        self.open_backing(visit.place);
        Ok(())
    }

    /// Nobody waits any longer, at a hole or to write.
    ///
    /// # Errors
    /// When the page is out, or a record is kept of it.
    pub fn unregistered(&mut self, visit: Visit) -> Result<(), Race> {
        (self.is_protected, self.holes_wait) = (false, false);
        self.is_not_filled(visit)?;
        self.open(visit.place);
        self.is_heard_of(visit)
    }

    /// Its guest gives it up, and waits for the answer.
    pub fn given_up(&mut self, visit: Visit) {
        self.given_up = self.given_up.saturating_add(1);
        self.open_if_there(visit.place);
    }

    /// Its guest has the answer.
    pub fn answered(&mut self, visit: Visit) {
        self.given_up = self.given_up.saturating_sub(1);
        self.open_if_there(visit.place);
    }

    /// What it holds is looked at, to be acted upon.
    ///
    /// # Errors
    /// When it may change meanwhile.
    pub fn looked_at(&mut self, visit: Visit) -> Result<(), Race> {
        self.visit(Aspect::Content, visit, Access::Read)
    }

    /// It is written to by way of the guest's own mapping, as the guest would, or past all that keeps the guest out.
    ///
    /// # Errors
    /// When that is past it.
    pub fn written_by_device(&mut self, visit: Visit, waits: bool) -> Result<(), Race> {
        match waits {
            // It comes as the guest does.
            true => Ok(()),
            false => self.visit(Aspect::Content, visit, Access::Write),
        }
    }

    /// The log has it from here on, and it is about to be punched.
    ///
    /// # Errors
    /// When it may be written meanwhile.
    pub fn taken_out(&mut self, visit: Visit) -> Result<(), Race> {
        self.visit(Aspect::Content, visit, Access::Read)?;
        (self.lies, self.is_kept) = (Lies::Taken, false);
        self.content.goes_to(visit);
        self.backing.goes_to(visit);
        self.record.is_open_to(Unseen::Log, visit.place);
        Ok(())
    }

    /// It is about to be freed.
    ///
    /// # Errors
    /// When others may rely on it, or make it anew.
    pub fn punched(&mut self, visit: Visit) -> Result<(), Race> {
        if self.lies == Lies::Shown {
            // It lies under the frame, where nobody sees it.
            return self.visit(Aspect::Backing, visit, Access::Write);
        }
        if self.lies == Lies::Taken && !self.holes_wait {
            let earlier = self.backing.last();
            return self.is_found(Aspect::Backing, visit, earlier);
        }
        self.visit(Aspect::Backing, visit, Access::Write)?;
        match self.lies {
            Lies::Taken => {
                (self.lies, self.is_protected) = (Lies::Out, false);
                self.content.is_open_to(Unseen::Log, visit.place);
                self.open_backing(visit.place);
            }
            Lies::Out => self.open_backing(visit.place),
            Lies::Home | Lies::Shown => {
                self.visit(Aspect::Content, visit, Access::Write)?;
                // Behind a fence there is time until it is lowered.
                if self.is_kept && !self.is_fenced_by(visit) {
                    self.visit(Aspect::Record, visit, Access::Write)?;
                }
                self.is_protected = false;
                self.open(visit.place);
            }
        }
        Ok(())
    }

    /// A page was made of a hole.
    ///
    /// # Errors
    /// When another may be looking at the hole, or changes what it means.
    pub fn made(&mut self, visit: Visit, is_protected: bool) -> Result<(), Race> {
        self.visit(Aspect::Backing, visit, Access::Write)?;
        if matches!(self.lies, Lies::Out | Lies::Taken) {
            self.visit(Aspect::Record, visit, Access::Write)?;
        }
        if self.lies == Lies::Taken {
            // Whoever has taken it will find out that it was there.
            return Ok(());
        }
        (self.lies, self.is_protected) = (Lies::Home, is_protected);
        self.open(visit.place);
        Ok(())
    }

    /// It came as it left: what the log has of it is kept until it is written.
    ///
    /// # Errors
    /// When a write is not heard of.
    pub fn kept(&mut self, visit: Visit) -> Result<(), Race> {
        self.is_kept = true;
        self.is_heard_of(visit)?;
        self.record.is_open_to(Unseen::Log, visit.place);
        Ok(())
    }

    /// The log has let go by itself of what it kept, or has kept nothing.
    pub fn not_kept(&mut self) {
        if std::mem::take(&mut self.is_kept) {
            self.record = Cell::default();
        }
    }

    /// What the log had of it is worth nothing from here on.
    ///
    /// # Errors
    /// When others may be at it.
    pub fn forgotten(&mut self, visit: Visit) -> Result<(), Race> {
        let is_in_log = matches!(self.lies, Lies::Taken | Lies::Out);
        if self.lies == Lies::Out && self.given_up == 0 {
            // It is nowhere else.
            let earlier = self.record.last();
            return self.is_found(Aspect::Record, visit, earlier);
        }
        if self.is_kept || is_in_log {
            self.visit(Aspect::Record, visit, Access::Write)?;
        }
        (self.is_kept, self.record) = (false, Cell::default());
        if is_in_log {
            self.lies = Lies::Home;
            self.open(visit.place);
        }
        Ok(())
    }

    /// A frame is about to be mapped over it.
    ///
    /// # Errors
    /// When its guest may write to it meanwhile, or somebody make it anew.
    pub fn mapped_from_store(&mut self, visit: Visit) -> Result<(), Race> {
        self.visit(Aspect::Content, visit, Access::Write)?;
        self.visit(Aspect::Backing, visit, Access::Write)?;
        self.lies = Lies::Shown;
        self.is_mapped_anew(visit);
        Ok(())
    }

    /// The memory file is about to be mapped over it.
    ///
    /// # Errors
    /// When something else is there that others may change, or the page is out.
    pub fn mapped_home(&mut self, visit: Visit) -> Result<(), Race> {
        if self.lies == Lies::Shown {
            self.visit(Aspect::Content, visit, Access::Write)?;
            self.lies = Lies::Home;
        }
        self.visit(Aspect::Backing, visit, Access::Write)?;
        self.holes_wait = false;
        self.is_not_filled(visit)?;
        self.is_mapped_anew(visit);
        Ok(())
    }

    /// The page that lies under a frame, or is about to come home, is written.
    ///
    /// # Errors
    /// When another may be at it.
    pub fn written_home(&mut self, visit: Visit) -> Result<(), Race> {
        self.visit(Aspect::Backing, visit, Access::Write)
    }

    /// What its guest has written over a frame is about to be dropped, if there is one.
    ///
    /// # Errors
    /// When its guest may write meanwhile.
    pub fn copy_dropped(&mut self, visit: Visit) -> Result<(), Race> {
        match self.lies {
            Lies::Shown => self.visit(Aspect::Content, visit, Access::Write),
            Lies::Home | Lies::Taken | Lies::Out => Ok(()),
        }
    }

    fn visit(&mut self, aspect: Aspect, visit: Visit, access: Access) -> Result<(), Race> {
        let held = self.held(visit);
        let cell = match aspect {
            Aspect::Content => &mut self.content,
            Aspect::Backing => &mut self.backing,
            Aspect::Record => &mut self.record,
        };
        let (earlier, candidates) = (cell.last(), cell.candidates());
        match cell.is_race(visit, held, access) {
            true => Err(Race {
                aspect,
                place: visit.place,
                held,
                earlier,
                candidates,
            }),
            false => {
                cell.came(visit.place);
                Ok(())
            }
        }
    }

    /// What whoever comes has at this page.
    fn held(&self, visit: Visit) -> Protections {
        let is_his = self.is_fenced_by(visit);
        let is_admitted = visit.has.contains(Protections::FENCE_LOCK) && !self.keeps_all();
        let mut held = visit.has - Protections::FENCE_LOCK;
        held.set(Protections::WRITERS_WAIT, is_his && self.is_protected);
        held.set(
            Protections::NONE_COMES,
            (is_his && self.keeps_all()) || is_admitted,
        );
        held.set(Protections::GIVEN_UP, self.given_up > 0);
        held
    }

    fn is_fenced_by(&self, visit: Visit) -> bool {
        self.fence.is_some_and(|fence| fence.thread == visit.thread)
    }

    fn keeps_all(&self) -> bool {
        self.fence.is_some_and(|fence| fence.keeps_all)
    }

    fn let_guest_in(&mut self, place: &'static Location<'static>) {
        let unseen = match self.given_up {
            0 => Unseen::Guest,
            _ => Unseen::GuestThatGaveUp,
        };
        self.content.is_open_to(unseen, place);
    }

    fn open_backing(&mut self, place: &'static Location<'static>) {
        let unseen = match (self.holes_wait, self.given_up) {
            (true, 0) => Unseen::Pager,
            (true, _) if self.lies == Lies::Out => Unseen::Pager,
            (true, _) => Unseen::PagerOfGivenUp,
            (false, _) if self.lies == Lies::Shown => Unseen::Nobody,
            (false, _) => Unseen::Kernel,
        };
        self.backing.is_open_to(unseen, place);
    }

    fn open(&mut self, place: &'static Location<'static>) {
        self.let_guest_in(place);
        self.open_backing(place);
    }

    /// What the log has is not the guest's to give.
    fn open_if_there(&mut self, place: &'static Location<'static>) {
        if matches!(self.lies, Lies::Home | Lies::Shown) {
            self.open(place);
        }
    }

    /// What is mapped anew is neither protected nor registered.
    fn is_mapped_anew(&mut self, visit: Visit) {
        (self.is_protected, self.holes_wait) = (false, false);
        self.open(visit.place);
    }

    /// A record is worth nothing once the guest writes and nobody hears of it.
    fn is_heard_of(&mut self, visit: Visit) -> Result<(), Race> {
        if !self.is_kept || self.is_protected {
            return Ok(());
        }
        let earlier = self.record.last();
        self.record.is_open_to(Unseen::GuestUnheard, visit.place);
        self.is_found(Aspect::Record, visit, earlier)
    }

    /// The hole of a page that is out must not be filled by who touches it.
    fn is_not_filled(&mut self, visit: Visit) -> Result<(), Race> {
        if self.lies != Lies::Out || self.holes_wait {
            return Ok(());
        }
        let earlier = self.backing.last();
        self.is_found(Aspect::Backing, visit, earlier)
    }

    fn is_found(
        &self,
        aspect: Aspect,
        visit: Visit,
        earlier: Option<&'static Location<'static>>,
    ) -> Result<(), Race> {
        let candidates = match aspect {
            Aspect::Backing => Protections::HOLES_WAIT,
            Aspect::Record if self.lies == Lies::Out => Protections::GIVEN_UP,
            Aspect::Content | Aspect::Record => Protections::WRITERS_WAIT,
        };
        Err(Race {
            aspect,
            place: visit.place,
            held: self.held(visit),
            earlier,
            candidates,
        })
    }
}

#[cfg(test)]
mod tests;
