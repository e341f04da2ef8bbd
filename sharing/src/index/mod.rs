//! Finds, by its hash, a page's equal: a frame that holds it, or a hint to a page that held it.
//!
//! One entry a page would be the largest table of the whole host, so it is an open-addressed one of
//! 10-byte entries, six to a cache line, at most 80 % full by plan: 13.3 bytes a page. An entry keeps
//! 32 bits of the hash; the bucket is found from the same 32 bits, so that the table can be laid out
//! anew at any size. A wrong nomination costs one hash or one refused comparison and is then removed.
//!
//! What must stay true:
//! * An entry of another domain is never returned: who owns an entry is asked of the living VM or the
//!   store's window every time, not remembered here.
//! * A frame's entry gives way to nothing while its frame lives. Hints do: a lost hint is found again
//!   on the next pass.
//! * The table lies in segments and moves segment by segment, the old one freed as it is emptied, so
//!   that a change of size never needs both.

mod bucket;

use crate::content::{ContentHash, Domain};
use crate::frames::FrameKey;
use crate::vms::VmSlot;
use bucket::{Bucket, SLOTS, tag};
use std::hint::black_box;

/// Buckets to a segment: 64 KiB.
const SEGMENT_BUCKETS: usize = 1024;
/// An entry lies in its own bucket or in one of the next seven. Most lookups see one or two.
const PROBED_BUCKETS: usize = 8;
/// How full the table is meant to be, in percent.
const LOAD_PERCENT: usize = 80;
/// Hints kept for one hash. Two pages of one content meet at the second; more wait here only while
/// sharing them does not pay or is refused.
const HINTS_PER_HASH: usize = 4;

/// What the index knows under a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// A page that had this hash when it was last seen.
    Hint {
        slot: VmSlot,
        gfn: u32,
    },
    Frame(FrameKey),
}

/// Knows to whom the pages and frames belong that entries name.
pub(crate) trait Owners {
    /// The domain of a VM.
    fn of_vm(&self, slot: VmSlot) -> Option<Domain>;
    /// The domain of a frame, if it still is the one that the key was made for.
    fn of_frame(&self, key: FrameKey) -> Option<Domain>;

    /// The domain that an entry belongs to, or none if it is of no use any more.
    fn of_entry(&self, entry: Entry) -> Option<Domain> {
        match entry {
            Entry::Hint { slot, .. } => self.of_vm(slot),
            Entry::Frame(key) => self.of_frame(key),
        }
    }
}

/// How the index stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Pages that it is meant to hold.
    pub capacity: usize,
    /// Hints that it holds.
    pub hints: usize,
    /// Entries of frames, those of freed frames included until their place is needed.
    pub frames: usize,
    /// Hints that gave way to others because the index was full.
    pub replaced_hints: u64,
    /// Frames that could not be entered, so that they gain no more references.
    pub lost_frames: u64,
    /// Memory that it takes.
    pub bytes: usize,
}

type Segment = Box<[Bucket]>;

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    bucket: usize,
    slot: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    /// A segment is made when its first entry comes.
    segments: Vec<Option<Segment>>,
    /// Buckets that hashes are spread over. A few more follow, for what the last ones spill.
    home_count: usize,
    capacity: usize,
    hints: usize,
    /// How many of them are of each VM, by its slot.
    hints_of: Vec<usize>,
    frames: usize,
    replaced_hints: u64,
    lost_frames: u64,
}

impl Index {
    pub(crate) fn new(capacity: usize) -> Self {
        let mut index = Self::default();
        index.lay_out(capacity);
        index
    }

    fn lay_out(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.home_count = (capacity * 100).div_ceil(LOAD_PERCENT * SLOTS).max(1);
        let buckets = self.home_count + PROBED_BUCKETS - 1;
        self.segments = Vec::new();
        self.segments
            .resize_with(buckets.div_ceil(SEGMENT_BUCKETS), || None);
        (self.hints, self.frames) = (0, 0);
        self.hints_of.clear();
    }

    pub(crate) fn stats(&self) -> IndexStats {
        let segment_count = self.segments.iter().flatten().count();
        IndexStats {
            capacity: self.capacity,
            hints: self.hints,
            frames: self.frames,
            replaced_hints: self.replaced_hints,
            lost_frames: self.lost_frames,
            bytes: segment_count * SEGMENT_BUCKETS * size_of::<Bucket>()
                + self.segments.capacity() * size_of::<Option<Segment>>(),
        }
    }

    /// Hints to pages of one VM.
    pub(crate) fn hints_of(&self, slot: VmSlot) -> usize {
        let count = self.hints_of.get(usize::from(slot.get()));
        count.copied().unwrap_or_default()
    }

    /// Up to `N` entries for `hash` in `domain`.
    pub(crate) fn find<const N: usize>(
        &self,
        hash: ContentHash,
        domain: Domain,
        owners: &impl Owners,
    ) -> Found<N> {
        let mut found = Found::default();
        self.each_match(hash, |bucket, slot, _| {
            if let Some(entry) = bucket.get(slot)
                && owners.of_entry(entry) == Some(domain)
            {
                found.push(entry);
            }
        });
        found
    }

    /// Touches what will be looked up. The loads do not wait for each other as those of lookups do, so
    /// that a block's worth of lookups finds its cache lines there: a third faster in a table beyond the caches.
    pub(crate) fn warm(&self, hashes: impl Iterator<Item = ContentHash>) {
        let buckets = hashes.filter_map(|hash| self.bucket(self.home(tag(hash))));
        black_box(buckets.filter(|bucket| bucket.is_spilled).count());
    }

    /// Enters a page or frame under `hash`. Entering what is there already changes nothing.
    pub(crate) fn insert(&mut self, hash: ContentHash, entry: Entry, owners: &impl Owners) {
        let (mut hints, mut first_hint, mut is_there) = (0, None, false);
        self.each_match(hash, |bucket, slot, number| {
            is_there |= bucket.get(slot) == Some(entry);
            if bucket.is_hint(slot) {
                hints += 1;
                let place = Place {
                    bucket: number,
                    slot,
                };
                first_hint = first_hint.or(Some(place));
            }
        });
        if is_there {
            return;
        }
        // The first is as good as any to give way: all had their chance.
        let surplus = first_hint.filter(|_| hints >= HINTS_PER_HASH);
        match (entry, surplus) {
            (Entry::Hint { .. }, Some(place)) => self.put(place, hash, entry),
            _ => self.insert_new(hash, entry, owners),
        }
    }

    fn insert_new(&mut self, hash: ContentHash, entry: Entry, owners: &impl Owners) {
        let place = self
            .free_place(tag(hash))
            .or_else(|| self.useless_place(hash, owners))
            .or_else(|| {
                let victim = self.victim(hash)?;
                self.replaced_hints += 1;
                Some(victim)
            });
        match (place, entry) {
            (Some(place), _) => {
                self.mark_spilled(tag(hash), place.bucket);
                self.put(place, hash, entry);
            }
            (None, Entry::Frame(_)) => self.lost_frames += 1,
            // All places are those of frames: a hint for a page is worth less than any.
            (None, Entry::Hint { .. }) => {}
        }
    }

    /// A place whose entry has no owner any more.
    fn useless_place(&self, hash: ContentHash, owners: &impl Owners) -> Option<Place> {
        let mut window = self.window(tag(hash));
        window.find(|&place| owners.of_entry(self.entry(place)).is_none())
    }

    /// A hint to give up, taken from a place that differs from hash to hash.
    fn victim(&self, hash: ContentHash) -> Option<Place> {
        let hints: Vec<Place> = self
            .window(tag(hash))
            .filter(|&place| self.is_hint(place))
            .collect();
        let choice = usize::try_from(hash.0 & 0xffff).expect("16 bits");
        (!hints.is_empty()).then(|| hints[choice % hints.len()])
    }

    /// Takes an entry out, if it is there.
    pub(crate) fn remove(&mut self, hash: ContentHash, entry: Entry) {
        let mut found = None;
        self.each_match(hash, |bucket, slot, number| {
            if bucket.get(slot) == Some(entry) {
                found = Some(Place {
                    bucket: number,
                    slot,
                });
            }
        });
        if let Some(place) = found {
            self.clear(place);
        }
    }

    /// Lays the table out anew for `capacity` pages and leaves out what `keep` does not want. Visits
    /// every entry: about 30 ns each. Where they do not fit any more, hints are lost.
    pub(crate) fn resize(&mut self, capacity: usize, keep: impl Fn(Entry) -> bool) {
        let old = std::mem::take(&mut self.segments);
        self.lay_out(capacity);
        // From the end, and each segment dropped before the next is visited.
        for segment in old.into_iter().rev().flatten() {
            for bucket in &segment {
                self.take_over(bucket, &keep);
            }
        }
    }

    fn take_over(&mut self, old: &Bucket, keep: &impl Fn(Entry) -> bool) {
        for slot in 0..SLOTS {
            let Some(entry) = old.get(slot).filter(|&entry| keep(entry)) else {
                continue;
            };
            let tag = old.tag(slot);
            let is_frame = matches!(entry, Entry::Frame(_));
            let place = self.free_place(tag).or_else(|| {
                let mut window = self.window(tag);
                window.find(|&place| is_frame && self.is_hint(place))
            });
            let Some(place) = place else {
                self.lost_frames += u64::from(is_frame);
                continue;
            };
            self.mark_spilled(tag, place.bucket);
            self.clear(place);
            self.bucket_mut(place.bucket).copy(place.slot, old, slot);
            self.count_in(entry);
        }
    }

    fn home(&self, tag: u32) -> usize {
        let spread = u64::from(tag) * self.home_count as u64;
        (spread >> 32) as usize
    }

    fn bucket(&self, bucket: usize) -> Option<&Bucket> {
        let segment = self.segments[bucket / SEGMENT_BUCKETS].as_ref()?;
        Some(&segment[bucket % SEGMENT_BUCKETS])
    }

    fn bucket_mut(&mut self, bucket: usize) -> &mut Bucket {
        let segment = self.segments[bucket / SEGMENT_BUCKETS]
            .get_or_insert_with(|| vec![Bucket::default(); SEGMENT_BUCKETS].into_boxed_slice());
        &mut segment[bucket % SEGMENT_BUCKETS]
    }

    /// Every place where an entry with this tag may lie.
    fn window(&self, tag: u32) -> impl Iterator<Item = Place> + use<> {
        let home = self.home(tag);
        (home..home + PROBED_BUCKETS)
            .flat_map(|bucket| (0..SLOTS).map(move |slot| Place { bucket, slot }))
    }

    fn free_place(&self, tag: u32) -> Option<Place> {
        let home = self.home(tag);
        (home..home + PROBED_BUCKETS).find_map(|bucket| {
            let slot = match self.bucket(bucket) {
                Some(bucket) => bucket.first_free()?,
                None => 0,
            };
            Some(Place { bucket, slot })
        })
    }

    /// Visits the entries that may be for `hash`: bucket, slot, the bucket's number. Looks into the next
    /// bucket only if one spilled.
    fn each_match(&self, hash: ContentHash, mut visit: impl FnMut(&Bucket, usize, usize)) {
        let home = self.home(tag(hash));
        for number in home..home + PROBED_BUCKETS {
            let Some(bucket) = self.bucket(number) else {
                return;
            };
            for slot in bucket.matching(hash) {
                visit(bucket, slot, number);
            }
            if !bucket.is_spilled {
                return;
            }
        }
    }

    /// # Panics
    /// If nothing lies there.
    fn entry(&self, place: Place) -> Entry {
        self.bucket(place.bucket)
            .and_then(|bucket| bucket.get(place.slot))
            .expect("an entry lies in a place that was found")
    }

    fn is_hint(&self, place: Place) -> bool {
        self.bucket(place.bucket)
            .is_some_and(|bucket| bucket.is_hint(place.slot))
    }

    fn mark_spilled(&mut self, tag: u32, until: usize) {
        for bucket in self.home(tag)..until {
            self.bucket_mut(bucket).is_spilled = true;
        }
    }

    fn count_in(&mut self, entry: Entry) {
        let Entry::Hint { slot, .. } = entry else {
            self.frames += 1;
            return;
        };
        let slot = usize::from(slot.get());
        if slot >= self.hints_of.len() {
            self.hints_of.resize(slot + 1, 0);
        }
        self.hints_of[slot] += 1;
        self.hints += 1;
    }

    fn count_out(&mut self, entry: Entry) {
        let Entry::Hint { slot, .. } = entry else {
            self.frames -= 1;
            return;
        };
        self.hints_of[usize::from(slot.get())] -= 1;
        self.hints -= 1;
    }

    fn put(&mut self, place: Place, hash: ContentHash, entry: Entry) {
        self.clear(place);
        self.bucket_mut(place.bucket).put(place.slot, hash, entry);
        self.count_in(entry);
    }

    fn clear(&mut self, place: Place) {
        let Some(entry) = self.bucket_mut(place.bucket).get(place.slot) else {
            return;
        };
        self.bucket_mut(place.bucket).clear(place.slot);
        self.count_out(entry);
    }
}

/// Up to `N` entries, without an allocation: a lookup is made for every page of the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<const N: usize> {
    entries: [Option<Entry>; N],
    count: usize,
}

impl<const N: usize> Default for Found<N> {
    fn default() -> Self {
        Self {
            entries: [None; N],
            count: 0,
        }
    }
}

impl<const N: usize> Found<N> {
    /// A frame pushes a hint out where there is no more room.
    fn push(&mut self, entry: Entry) {
        let is_frame = matches!(entry, Entry::Frame(_));
        let hint = || {
            let kept = self.entries.iter();
            kept.rev()
                .position(|kept| matches!(kept, Some(Entry::Hint { .. })))
        };
        if self.count < N {
            self.entries[self.count] = Some(entry);
            self.count += 1;
        } else if let Some(from_end) = hint().filter(|_| is_frame) {
            self.entries[N - 1 - from_end] = Some(entry);
        }
    }

    pub(crate) fn frames(&self) -> impl Iterator<Item = FrameKey> + Clone {
        self.entries
            .iter()
            .flatten()
            .filter_map(|entry| match entry {
                Entry::Frame(key) => Some(*key),
                Entry::Hint { .. } => None,
            })
    }

    pub(crate) fn hints(&self) -> impl Iterator<Item = (VmSlot, u32)> + Clone {
        self.entries
            .iter()
            .flatten()
            .filter_map(|entry| match entry {
                Entry::Hint { slot, gfn } => Some((*slot, *gfn)),
                Entry::Frame(_) => None,
            })
    }
}

#[cfg(test)]
mod tests;
