//! How many pages may come while a VM holds more than it may.
//!
//! A limit that is lowered takes time to be kept: pages leave one after another. **Meanwhile half of the room that is made goes
//! to pages that are touched**, so that their guest goes on, more slowly, rather than standing still until all that is too
//! much has left. What the VM holds falls all the same, never rises, and comes to its limit in twice the time.
//!
//! Pure: what room there is is told.

/// Of the room that was gained this part is for pages that come.
const PART: i64 = 2;
/// Pages that may come before it is looked again how many there are.
pub(super) const AT_ONCE: i64 = 32;

/// How far a VM has come down to a limit, from when that was set. Room is in pages: negative where it holds too many.
#[derive(Debug, Default)]
pub(super) struct Descent {
    /// Room of which there is not to be less; never positive. None before anybody has asked.
    floor: Option<i64>,
}

impl Descent {
    /// How many pages may come, of a VM that has so much room.
    pub(super) fn may_come(&mut self, room: i64) -> i64 {
        if room > 0 {
            self.floor = Some(0);
            return room;
        }
        let floor = *self.floor.get_or_insert(room);
        let may_come = ((room - floor) / PART).clamp(0, AT_ONCE);
        if may_come > 0 {
            self.floor = Some(room - may_come);
        }
        may_come
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_what_leaves_half_may_come() {
        let mut descent = Descent::default();
        assert_eq!(descent.may_come(-1000), 0, "it is not known what it gained");
        assert_eq!(descent.may_come(-980), 10);
        assert_eq!(descent.may_come(-990), 0);
        assert_eq!(descent.may_come(-1200), 0);
        assert_eq!(descent.may_come(-989), 0);
        assert_eq!(descent.may_come(-988), 1);
        assert_eq!(descent.may_come(-500), 32);
    }

    #[test]
    fn at_the_limit_nothing_comes_beyond_it() {
        let mut descent = Descent::default();
        assert_eq!(descent.may_come(3), 3);
        assert_eq!(descent.may_come(0), 0);
        assert_eq!(descent.may_come(-1), 0);
    }

    proptest! {
        /// Whoever touches takes all that he may; pages leave in any steps; the limit moves up and down.
        #[test]
        fn what_is_held_never_rises_above_what_it_was_and_comes_to_the_limit(
            held in 0_i64..100_000,
            limits in prop::collection::vec(100_i64..50_000, 1..5),
            leave in prop::collection::vec(1_i64..500, 1..50),
        ) {
            let mut held = held;
            for limit in limits {
                let (mut descent, most, mut steps) = (Descent::default(), held.max(limit), 0);
                for gone in leave.iter().cycle() {
                    held += descent.may_come(limit - held).min(AT_ONCE);
                    prop_assert!(held <= most, "{held} of {limit}");
                    steps += 1;
                    if held <= limit || steps > 1_000_000 {
                        break;
                    }
                    held -= gone;
                }
                prop_assert!(held <= limit, "{held} of {limit} after {steps}");
            }
        }
    }
}
