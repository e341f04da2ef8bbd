//! The store against a map of counts.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Take(u32, usize),
    TakeAfter(usize, usize),
    Image(u32),
    Add(usize),
    Release(usize),
    Cover(usize),
    Uncover(usize),
    Punch,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0u32..3, 1usize..200).prop_map(|(domain, count)| Op::Take(domain, count)),
        2 => (any::<usize>(), 1usize..50).prop_map(|(near, count)| Op::TakeAfter(near, count)),
        1 => (0u32..3).prop_map(Op::Image),
        3 => any::<usize>().prop_map(Op::Add),
        8 => any::<usize>().prop_map(Op::Release),
        1 => any::<usize>().prop_map(Op::Cover),
        1 => any::<usize>().prop_map(Op::Uncover),
        2 => Just(Op::Punch),
    ];
    prop::collection::vec(op, 0..300)
}

#[derive(Default)]
struct Model {
    live: BTreeMap<Frame, (u32, Domain)>,
    unpunched: Vec<Frame>,
    covered: Vec<Frame>,
}

impl Model {
    fn pick(&self, choice: usize) -> Option<Frame> {
        let count = self.live.len().max(1);
        self.live.keys().nth(choice % count).copied()
    }

    fn take(&mut self, domain: Domain, first: Frame, count: usize) {
        for frame in (0..count).map(|n| first.after(n)) {
            assert!(
                !self.unpunched.contains(&frame),
                "{frame:?} not punched yet"
            );
            let before = self.live.insert(frame, (1, domain));
            assert_eq!(before, None, "{frame:?} given out twice");
            let covered = self
                .covered
                .iter()
                .filter(|other| other.window() == frame.window());
            assert!(covered.count() == 0 || self.owner(frame) == Some(domain));
        }
    }

    fn owner(&self, frame: Frame) -> Option<Domain> {
        let mut others = self.live.iter();
        others
            .find(|(other, _)| other.window() == frame.window())
            .map(|(_, &(_, domain))| domain)
    }

    fn release(&mut self, frame: Frame) {
        let entry = self.live.get_mut(&frame).unwrap();
        entry.0 -= 1;
        if entry.0 == 0 {
            self.live.remove(&frame);
            self.unpunched.push(frame);
        }
    }

    fn step(&mut self, frames: &mut Frames, op: Op) {
        match op {
            Op::Take(domain, wanted) => {
                if let Some((first, count)) = frames.take_run(Domain(domain), wanted) {
                    assert!(count >= 1 && count <= wanted);
                    self.take(Domain(domain), first, count);
                }
            }
            Op::TakeAfter(near, wanted) => {
                let Some(near) = self.pick(near) else { return };
                let domain = self.live[&near].1;
                let count = frames.take_at(domain, near.after(1), wanted);
                self.take(domain, near.after(1), count);
            }
            Op::Image(domain) => {
                if let Some(first) = frames.reserve_window(Domain(domain)) {
                    assert_eq!(first.index(), 0);
                    assert_eq!(frames.take_at(Domain(domain), first.after(7), 3), 3);
                    self.take(Domain(domain), first.after(7), 3);
                }
            }
            Op::Add(choice) => {
                let Some(frame) = self.pick(choice) else {
                    return;
                };
                assert!(frames.add_reference(frame));
                self.live.get_mut(&frame).unwrap().0 += 1;
            }
            Op::Release(choice) => {
                let Some(frame) = self.pick(choice) else {
                    return;
                };
                frames.release(frame);
                self.release(frame);
            }
            Op::Cover(choice) => {
                let Some(frame) = self.pick(choice) else {
                    return;
                };
                frames.cover(frame);
                self.covered.push(frame);
            }
            Op::Uncover(choice) => {
                if !self.covered.is_empty() {
                    let frame = self.covered.swap_remove(choice % self.covered.len());
                    frames.uncover(frame);
                }
            }
            Op::Punch => {
                let ranges = frames.take_freed();
                let punched: u32 = ranges.iter().map(|range| range.count).sum();
                assert_eq!(punched as usize, self.unpunched.len());
                self.unpunched.clear();
            }
        }
    }
}

proptest! {
    #[test]
    fn counts_are_exact_and_no_frame_is_given_out_twice(ops in ops()) {
        let mut frames = Frames::new(5 * 512 + 100);
        let mut model = Model::default();
        for op in ops {
            model.step(&mut frames, op);
        }
        prop_assert_eq!(frames.live(), model.live.len() as u64);
        let counted: BTreeMap<Frame, u32> = frames.all_live().collect();
        let expected: BTreeMap<Frame, u32> =
            model.live.iter().map(|(&frame, &(count, _))| (frame, count)).collect();
        prop_assert_eq!(counted, expected);
        for (&frame, &(_, domain)) in &model.live {
            prop_assert_eq!(frames.domain(frame), Some(domain));
        }
    }

    #[test]
    fn when_all_is_released_the_whole_store_is_anyones(ops in ops()) {
        let mut frames = Frames::new(5 * 512);
        let mut model = Model::default();
        for op in ops {
            model.step(&mut frames, op);
        }
        for (frame, (count, _)) in model.live {
            (0..count).for_each(|_| frames.release(frame));
        }
        model.covered.into_iter().for_each(|frame| frames.uncover(frame));
        frames.take_freed();
        for _ in 0..5 {
            prop_assert!(frames.reserve_window(Domain(9)).is_some());
        }
    }
}

#[test]
fn a_run_is_whole_where_there_is_room() {
    let mut frames = Frames::new(2048);
    assert_eq!(frames.take_run(Domain(0), 300), Some((Frame(0), 300)));
    assert_eq!(frames.take_run(Domain(0), 300), Some((Frame(512), 300)));
    assert_eq!(frames.take_run(Domain(0), 200), Some((Frame(812), 200)));
    assert_eq!(frames.take_run(Domain(0), 200), Some((Frame(300), 200)));
}

#[test]
fn a_window_under_a_broken_page_stays_its_domains() {
    let mut frames = Frames::new(512);
    frames.take_run(Domain(0), 1);
    frames.cover(Frame(0));
    frames.release(Frame(0));
    frames.take_freed();
    assert_eq!(frames.take_run(Domain(1), 1), None);
    frames.uncover(Frame(0));
    assert_eq!(frames.take_run(Domain(1), 1), Some((Frame(0), 1)));
}

#[test]
fn a_frame_used_again_is_another() {
    let mut frames = Frames::new(512);
    frames.take_run(Domain(0), 1);
    let key = frames.key(Frame(0));
    assert!(frames.is_live(key));
    frames.release(Frame(0));
    frames.take_freed();
    assert_eq!(frames.take_run(Domain(0), 1), Some((Frame(0), 1)));
    assert!(!frames.is_live(key));
}
