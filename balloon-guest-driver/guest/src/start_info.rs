//! What the PVH loader tells: the command line and the memory map.

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const COMMAND_LINE_MAX: usize = 4096;
const RAM_PIECES_MAX: usize = 32;

#[repr(C)]
struct RawStartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct RawMemory {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// A piece of RAM, in bytes; `end` is the first byte after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ram {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The loader's words, copied out of memory that will be given to others.
#[derive(Debug)]
pub(crate) struct StartInfo {
    command_line: [u8; COMMAND_LINE_MAX],
    command_line_length: usize,
    ram: [Ram; RAM_PIECES_MAX],
    ram_count: usize,
}

impl StartInfo {
    /// Copies what the loader left at `address`. A wrong magic number means that this is no PVH
    /// loader and nothing is known; then memory is empty.
    pub(crate) fn read(address: u64) -> Self {
        let mut info = Self {
            command_line: [0; COMMAND_LINE_MAX],
            command_line_length: 0,
            ram: [Ram { start: 0, end: 0 }; RAM_PIECES_MAX],
            ram_count: 0,
        };
        // SAFETY: the PVH entry says that this is the address of the structure; all memory below
        // 4 GiB is mapped where it is, and reading any of it is harmless.
        let raw = unsafe { &*(address as *const RawStartInfo) };
        if raw.magic == MAGIC {
            info.read_command_line(raw);
            info.read_memory_map(raw);
        }
        info
    }

    fn read_command_line(&mut self, raw: &RawStartInfo) {
        if raw.command_line == 0 {
            return;
        }
        while self.command_line_length < COMMAND_LINE_MAX {
            let address = raw.command_line + self.command_line_length as u64;
            // SAFETY: the loader put a string there, and its final zero was not yet reached.
            let byte = unsafe { *(address as *const u8) };
            if byte == 0 {
                return;
            }
            self.command_line[self.command_line_length] = byte;
            self.command_line_length += 1;
        }
    }

    fn read_memory_map(&mut self, raw: &RawStartInfo) {
        for n in 0..u64::from(raw.memory_map_entries) {
            let entry = raw.memory_map + n * size_of::<RawMemory>() as u64;
            // SAFETY: the loader put that many entries there.
            let memory = unsafe { &*(entry as *const RawMemory) };
            if memory.kind == RAM && self.ram_count < RAM_PIECES_MAX {
                self.ram[self.ram_count] = Ram {
                    start: memory.address,
                    end: memory.address + memory.size,
                };
                self.ram_count += 1;
            }
        }
    }

    /// The command line; the part before the first byte that is not UTF-8.
    pub(crate) fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_length];
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }

    /// The RAM pieces in the loader's order.
    pub(crate) fn ram(&self) -> &[Ram] {
        &self.ram[..self.ram_count]
    }

    /// All RAM, in MiB.
    pub(crate) fn ram_mib(&self) -> u64 {
        self.ram()
            .iter()
            .map(|ram| ram.end - ram.start)
            .sum::<u64>()
            >> 20
    }
}
