//! Pages that show frames already when they come: another host shared them.

use super::{Place, Sharing};
use crate::block::Page;
use crate::content::{ContentHash, Domain};
use crate::frames::{Frame, FrameRange, joined};
use crate::index::Entry;
use page::VmId;

impl Sharing {
    /// By the kernel's word a frame is mapped over a page of a VM that has come; the page shows it, or its guest has written
    /// over it. False if that cannot be true of a page and frame that may be together: it is not taken in then.
    pub fn take_over(&mut self, page: Page, frame: Frame, is_broken: bool) -> bool {
        let Some(slot) = self.vms.slot(page.vm) else {
            return false;
        };
        let (block, index) = (page.block().number, page.index());
        let vm = self.vms.of(slot);
        let is_new = page.gfn.0 < vm.size.0 && vm.ledger.place(block, index) == Place::Own;
        if !is_new || !self.frames.take_over(vm.domain, frame, !is_broken) {
            return false;
        }
        if is_broken {
            self.set_place(slot, block, index, Place::Broken(frame));
        } else {
            self.set_place(slot, block, index, Place::Shared(frame));
            self.vms.of_mut(slot).history.shared(block, index);
        }
        true
    }

    /// A VM that is to come has mapped these frames: nobody else is given a window that they lie in.
    pub fn expect(&mut self, range: FrameRange) {
        self.frames.expect(range);
    }

    /// Nobody is expected any more.
    pub fn all_have_come(&mut self) {
        self.frames.all_have_come();
    }

    /// With whom a VM shares.
    #[must_use]
    pub fn domain_of(&self, id: VmId) -> Option<Domain> {
        Some(self.vms.of(self.vms.slot(id)?).domain)
    }

    /// The frames of a domain that pages show, in their order.
    #[must_use]
    pub fn frames_of(&self, domain: Domain) -> Vec<FrameRange> {
        let live = self.frames.all_live().map(|(frame, _)| frame);
        joined(live.filter(|&frame| self.frames.domain(frame) == Some(domain)))
    }

    /// What a frame that was taken over holds: equal pages find it from now on.
    pub fn found_in_frame(&mut self, frame: Frame, hash: ContentHash) {
        if self.frames.references(frame) > 0 {
            self.enter(hash, Entry::Frame(self.frames.key(frame)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Block;
    use crate::cost::Areas;
    use crate::vms::VmSpec;
    use page::{Gfn, PageCount, VmId};
    use proptest::prelude::*;

    const PAGES: u64 = 1500;

    fn with_vms(groups: &[&str]) -> (Sharing, Vec<Domain>) {
        let mut sharing = Sharing::new(4096);
        let ids = (1..).zip(groups);
        let domains = ids.map(|(id, group)| {
            let spec = VmSpec {
                id: VmId(id),
                group: group.parse().ok(),
                size: PageCount(PAGES),
                areas: Areas {
                    used: 0,
                    limit: 1 << 16,
                },
            };
            sharing.add_vm(spec).unwrap()
        });
        let domains = domains.collect();
        (sharing, domains)
    }

    fn page(vm: u32, gfn: u64) -> Page {
        Page {
            vm: VmId(vm),
            gfn: Gfn(gfn),
        }
    }

    proptest! {
        #[test]
        fn the_books_are_right_whatever_is_taken_over(
            mapped in prop::collection::vec((1u32..4, 0..PAGES + 9, 0u32..5000, any::<bool>()), 0..300),
        ) {
            let (mut sharing, domains) = with_vms(&["web", "web", ""]);
            let (mut shown, mut broken) = (0, 0);
            for (vm, gfn, frame, is_broken) in mapped {
                if sharing.take_over(page(vm, gfn), Frame(frame), is_broken) {
                    prop_assert_eq!(sharing.mapped_frame(page(vm, gfn)), Some(Frame(frame)));
                    *if is_broken { &mut broken } else { &mut shown } += 1;
                }
                prop_assert_eq!(sharing.audit(), Ok(()));
            }
            let counts = sharing.counts();
            prop_assert_eq!((counts.shared, counts.broken), (shown, broken));
            let of = |domain| sharing.frames_of(domain).iter().map(|range| u64::from(range.count)).sum::<u64>();
            prop_assert_eq!(of(domains[0]) + of(domains[2]), counts.common);
            // All of it can go again, and nothing is left.
            for id in 1..4 {
                sharing.remove_vm(VmId(id));
            }
            drop(sharing.take_freed());
            prop_assert_eq!(sharing.audit(), Ok(()));
            prop_assert_eq!(sharing.counts().common, 0);
        }
    }

    #[test]
    fn frames_of_those_who_are_expected_are_kept_for_them() {
        let (mut sharing, domains) = with_vms(&["web", ""]);
        let start = Frame(512);
        sharing.expect(FrameRange { start, count: 600 });
        let runs = (0..6).map_while(|_| sharing.frames.take_run(domains[0], 512));
        let windows: Vec<u32> = runs.map(|(frame, _)| frame.0 / 512).collect();
        assert_eq!(windows, [0, 3, 4, 5, 6, 7]);
        assert!(sharing.take_over(page(2, 0), start, false));
        sharing.all_have_come();
        let (frame, _) = sharing.frames.take_run(domains[0], 512).unwrap();
        assert_eq!(frame, Frame(1024), "nobody came for that");
        assert!(sharing.frames.take_run(domains[0], 512).is_none());
    }

    #[test]
    fn what_another_domain_has_is_not_taken_over() {
        let (mut sharing, _) = with_vms(&["web", "web", ""]);
        assert!(sharing.take_over(page(1, 0), Frame(7), false));
        assert!(sharing.take_over(page(2, 600), Frame(7), false));
        assert!(
            !sharing.take_over(page(3, 0), Frame(8), false),
            "one window"
        );
        assert!(sharing.take_over(page(3, 0), Frame(512), true));
        for wrong in [page(1, 0), page(1, PAGES), page(9, 0)] {
            assert!(!sharing.take_over(wrong, Frame(7), false));
        }
        assert!(!sharing.take_over(page(1, 1), Frame(4096), false));
        let block = Block {
            vm: VmId(2),
            number: 1,
        };
        assert_eq!(sharing.mapped(block).count(), 1);
    }
}
