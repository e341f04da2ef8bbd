//! What is over one guest page, in four bytes.

use crate::frames::Frame;

/// What the host believes is over a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The VM's own memory file, whatever that holds there.
    Own,
    /// The VM's own memory file, with nothing there since the page was found zero.
    Zero,
    /// The frame shows.
    Shared(Frame),
    /// An anonymous page, over a mapping of the frame.
    Broken(Frame),
}

impl Place {
    /// The frame that is mapped here, showing or not.
    pub(crate) fn frame(self) -> Option<Frame> {
        match self {
            Self::Own | Self::Zero => None,
            Self::Shared(frame) | Self::Broken(frame) => Some(frame),
        }
    }
}

/// 0 and 1 are `Own` and `Zero`; else a frame's number and one, and whether it is broken.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedPlace(u32);

impl PackedPlace {
    pub(super) const OWN: Self = Self(0);

    pub(super) fn pack(place: Place) -> Self {
        match place {
            Place::Own => Self::OWN,
            Place::Zero => Self(1),
            Place::Shared(frame) => Self((frame.0 + 1) << 1),
            Place::Broken(frame) => Self((frame.0 + 1) << 1 | 1),
        }
    }

    pub(super) fn unpack(self) -> Place {
        match (self.0 >> 1, self.0 & 1) {
            (0, 0) => Place::Own,
            (0, _) => Place::Zero,
            (frame, 0) => Place::Shared(Frame(frame - 1)),
            (frame, _) => Place::Broken(Frame(frame - 1)),
        }
    }
}
