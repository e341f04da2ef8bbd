//! What the log holds, and what it has done.

/// Columns of a histogram of utilisation: from 0 to 10 %, and so on.
pub const COLUMNS: usize = 10;

/// Records and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// How many.
    pub records: u64,
    /// Their bytes, headers and tags too.
    pub bytes: u64,
}

impl Flow {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes as u64;
    }
}

/// What lies in memory, or in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// Segments, whole or not.
    pub segments: u64,
    /// All records in them, dead ones too: what a tier in memory takes of it.
    pub bytes: u64,
    /// Pages that are out.
    pub needed: Flow,
    /// Pages that came back and were not written since.
    pub kept: Flow,
    /// Full segments by the part of them that is needed.
    pub utilisation: [u64; COLUMNS],
}

/// What happened since the log was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records of pages that went out.
    pub appended: Flow,
    /// Pages of one repeated word that went out.
    pub filled_pages: u64,
    /// Pages that went out and were left to the guest's disks.
    pub disk_pages: u64,
    /// Pages that went out again with the record they had.
    pub kept_used: u64,
    /// Kept records that were given up for room.
    pub dropped_kept: u64,
    /// Records that the cleaner moved within memory.
    pub moved_in_memory: Flow,
    /// Records that it moved from the file.
    pub moved_from_file: Flow,
    /// Segments that it freed.
    pub cleaned_segments: u64,
    /// What it read of the file, in bytes.
    pub read_bytes: u64,
    /// Segments written to the file.
    pub written_segments: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Those of them that had been in the file before.
    pub rewritten_bytes: u64,
    /// Writes that failed.
    pub failed_writes: u64,
}

impl Totals {
    pub(crate) fn moved(&mut self, bytes: usize, is_from_file: bool) {
        if is_from_file {
            self.moved_from_file.add(bytes);
        } else {
            self.moved_in_memory.add(bytes);
        }
    }

    pub(crate) fn written(&mut self, bytes: usize, is_moved: bool) {
        self.written_segments += 1;
        self.written_bytes += bytes as u64;
        if is_moved {
            self.rewritten_bytes += bytes as u64;
        }
    }

    /// Bytes moved to and from the disk for each byte that was new in the file; 1 where nothing had to be cleaned, 0 if nothing
    /// was written. Rosenblum and Ousterhout 1992, section 3.4: (read by the cleaner + written) / written new.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
    pub fn write_cost(&self) -> f64 {
        match self.written_bytes - self.rewritten_bytes {
            0 => 0.0,
            new => (self.read_bytes + self.written_bytes) as f64 / new as f64,
        }
    }

    /// Bytes written to the file for each byte of a record that went out: below 1 where pages come back before they are
    /// written. 0 if nothing went out.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
    pub fn write_amplification(&self) -> f64 {
        match self.appended.bytes {
            0 => 0.0,
            appended => self.written_bytes as f64 / appended as f64,
        }
    }
}

/// The slots of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotFigures {
    /// All.
    pub total: u64,
    /// That can be written.
    pub free: u64,
    /// That can be once reads have ended.
    pub waiting: u64,
    /// That could not be written and will not be again.
    pub retired: u64,
}

/// All of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The pool.
    pub memory: Tier,
    /// The swap file.
    pub file: Tier,
    /// Pages of one repeated word that are out.
    pub filled_pages: u64,
    /// Pages that are out and on the guest's disks.
    pub disk_pages: u64,
    /// What the pages that are out in records were, in bytes.
    pub original_bytes: u64,
    /// What their records are.
    pub stored_bytes: u64,
    /// The file's slots.
    pub slots: SlotFigures,
    /// Memory that the index takes.
    pub index_bytes: u64,
    /// What happened so far.
    pub totals: Totals,
}
