//! What a driver has agreed to, and what follows from it.

use super::wire::*;

/// Everything that is offered, besides the MTU where it is not known.
pub(super) const OFFERED: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_MAC
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN
    | F_MRG_RXBUF
    | F_STATUS
    | F_EVENT_IDX;

/// Each of these is worth nothing without one of those beside it (virtio 1.2, section 5.1.3.1).
/// In an order in which nothing falls after what needs it was looked at.
const NEEDS: [(u64, u64); 6] = [
    (F_HOST_TSO4, F_CSUM),
    (F_HOST_TSO6, F_CSUM),
    (F_GUEST_TSO4, F_GUEST_CSUM),
    (F_GUEST_TSO6, F_GUEST_CSUM),
    (F_HOST_ECN, F_HOST_TSO4 | F_HOST_TSO6),
    (F_GUEST_ECN, F_GUEST_TSO4 | F_GUEST_TSO6),
];

// The tap's offloads, from the kernel's include/uapi/linux/if_tun.h.
const TAP_CSUM: u32 = 0x01;
const TAP_TSO4: u32 = 0x02;
const TAP_TSO6: u32 = 0x04;
const TAP_TSO_ECN: u32 = 0x08;

/// Features that both sides have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed(u64);

impl Agreed {
    /// What the driver accepted, without features whose ground it did not accept.
    pub(super) fn of(features: u64) -> Self {
        let kept = NEEDS.into_iter().fold(features, |kept, (feature, ground)| {
            if kept & ground == 0 {
                kept & !feature
            } else {
                kept
            }
        });
        Self(kept)
    }

    pub(super) fn has(self, feature: u64) -> bool {
        self.0 & feature != 0
    }

    /// What the tap may leave undone for such a driver, in the kernel's bits.
    pub(super) fn tap_offloads(self) -> u32 {
        let pairs = [
            (F_GUEST_CSUM, TAP_CSUM),
            (F_GUEST_TSO4, TAP_TSO4),
            (F_GUEST_TSO6, TAP_TSO6),
            (F_GUEST_ECN, TAP_TSO_ECN),
        ];
        let bits = pairs.into_iter().filter(|(feature, _)| self.has(*feature));
        bits.fold(0, |offloads, (_, bit)| offloads | bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tap_is_never_asked_to_leave_more_undone_than_the_driver_finishes() {
        assert_eq!(Agreed::of(OFFERED).tap_offloads(), 0xf);
        assert_eq!(Agreed::of(OFFERED & !F_GUEST_CSUM).tap_offloads(), 0);
        let no_tso = OFFERED & !F_GUEST_TSO4 & !F_GUEST_TSO6;
        assert_eq!(Agreed::of(no_tso).tap_offloads(), TAP_CSUM);
        assert_eq!(Agreed::of(0).tap_offloads(), 0);
    }

    /// The rule of the standard, each feature for itself, against all that can be accepted.
    #[test]
    fn a_feature_without_its_ground_is_not_there() {
        for accepted in 0..1u64 << 14 {
            let agreed = Agreed::of(accepted);
            let has = |feature| accepted & feature != 0;
            let host_tso = |feature| has(feature) && has(F_CSUM);
            let guest_tso = |feature| has(feature) && has(F_GUEST_CSUM);
            assert_eq!(agreed.has(F_HOST_TSO4), host_tso(F_HOST_TSO4));
            assert_eq!(agreed.has(F_GUEST_TSO6), guest_tso(F_GUEST_TSO6));
            assert_eq!(
                agreed.has(F_HOST_ECN),
                has(F_HOST_ECN) && (host_tso(F_HOST_TSO4) || host_tso(F_HOST_TSO6))
            );
            assert_eq!(
                agreed.has(F_GUEST_ECN),
                has(F_GUEST_ECN) && (guest_tso(F_GUEST_TSO4) || guest_tso(F_GUEST_TSO6))
            );
        }
    }
}
