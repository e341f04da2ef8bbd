//! The virtio entropy device (virtio 1.2, section 5.4): random bytes of the host's kernel for the
//! guest's.

use super::chain::Chain;
use super::{Device, Interrupt, Served, lock};
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestMemoryMmap};

const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
const QUEUE_SIZES: [u16; 1] = [128];
/// Bytes for one chain, where Linux asks for 64. The standard lets a device give fewer than asked.
const MOST_BYTES_IN_CHAIN: usize = 4096;
/// Chains served before other work of the VM process gets its turn.
const CHAINS_IN_A_ROW: usize = 16;

/// The device.
#[derive(Debug)]
pub struct Rng {
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    queue: Mutex<Option<Queue>>,
    malformed: AtomicU64,
}

impl Rng {
    /// How many queues it has.
    pub const QUEUES: usize = QUEUE_SIZES.len();

    /// One for a guest with that memory.
    #[must_use]
    pub fn new(memory: GuestMemoryMmap, interrupt: Interrupt) -> Self {
        Self {
            memory,
            interrupt,
            queue: Mutex::new(None),
            malformed: AtomicU64::new(0),
        }
    }

    /// Chains that could not be filled, and queues that became unusable.
    #[cfg(test)]
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    fn count_malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// False if the queue is empty, an error where its driver has made it unusable.
    fn serve_next(&self, queue: &mut Queue) -> Result<bool, virtio_queue::Error> {
        let Some(chain) = Chain::take(queue, &self.memory)? else {
            return Ok(false);
        };
        let head = chain.head();
        let written = self.fill(chain);
        if written == 0 {
            self.count_malformed();
        }
        self.interrupt.answer(queue, &self.memory, head, written);
        Ok(true)
    }

    /// Fills a chain's buffers up to the first that cannot be; how many bytes were written.
    fn fill(&self, chain: Chain<'_>) -> u32 {
        let mut left = MOST_BYTES_IN_CHAIN;
        let mut written = 0;
        for descriptor in chain {
            let Ok(buffer) = descriptor else { break };
            let count = left.min(buffer.len() as usize);
            if !buffer.is_write_only() || count == 0 {
                break;
            }
            let mut bytes = vec![0; count];
            let random = getrandom(&mut bytes, GetRandomFlags::empty());
            // Up to 256 bytes come whole; more may be cut short by a signal.
            let random = &bytes[..random.unwrap_or(0)];
            if random.is_empty() || self.memory.write_slice(random, buffer.addr()).is_err() {
                break;
            }
            written += u32::try_from(random.len()).unwrap_or(0);
            left -= random.len();
            if random.len() < buffer.len() as usize {
                break;
            }
        }
        written
    }
}

impl Device for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        Vec::new()
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {
        self.count_malformed();
    }

    fn activate(&self, _features: u64, queues: Vec<Queue>) {
        *lock(&self.queue) = queues.into_iter().next();
    }

    fn reset(&self) {
        *lock(&self.queue) = None;
    }
}

impl Served for Rng {
    fn serve(&self, _queue: usize) -> bool {
        let mut ready = lock(&self.queue);
        for _ in 0..CHAINS_IN_A_ROW {
            let Some(queue) = &mut *ready else {
                return false;
            };
            match self.serve_next(queue) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) => {
                    *ready = None;
                    self.count_malformed();
                    self.interrupt.demand_reset();
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::*;
    use page::{PAGE_SIZE, PageCount};

    const BUFFER: u64 = FIRST_FREE_PAGE * PAGE_SIZE;

    fn started() -> FakeDriver<Rng> {
        let mut driver = FakeDriver::with_device(PageCount(512), |ram, interrupt| {
            Rng::new(ram.memory().clone(), interrupt.clone())
        });
        driver.start(VERSION_1);
        driver
    }

    /// The length that a chain came back with.
    fn used_length(driver: &FakeDriver<Rng>, slot: u64) -> u32 {
        u32::from_le_bytes(driver.get(used_address(0) + 8 + slot * 8))
    }

    #[test]
    fn buffers_come_back_full_of_what_nobody_knew() {
        let mut driver = started();
        for round in 0..2 {
            driver.offer(
                0,
                0,
                &[(BUFFER + round * 64, 32, WRITE), (BUFFER + 4096, 32, WRITE)],
            );
            driver.notify(0);
            assert_eq!(driver.take_returned(0), [0]);
            assert_eq!(used_length(&driver, round), 64);
        }
        let (first, second) = (driver.get::<32>(BUFFER), driver.get::<32>(BUFFER + 64));
        assert!(first != second && first != [0; 32] && second != [0; 32]);
        assert_ne!(driver.interrupt.status() & 1, 0, "the guest is told");
        assert_eq!(driver.transport.device().malformed(), 0);
    }

    #[test]
    fn a_guest_gets_a_page_at_a_time_however_much_it_asks_for() {
        let mut driver = started();
        driver.put(BUFFER, &[0; 16384]);
        driver.offer(0, 0, &[(BUFFER, 16384, WRITE), (BUFFER + 16384, 16, WRITE)]);
        driver.notify(0);
        assert_eq!(used_length(&driver, 0), 4096);
        assert_eq!(driver.get::<4096>(BUFFER + 4096), [0; 4096]);
    }

    #[test]
    fn what_cannot_be_filled_comes_back_empty_and_is_counted() {
        let outside = 512 * PAGE_SIZE;
        let chains: [&[(u64, u32, u16)]; 4] = [
            &[(BUFFER, 16, 0)],
            &[(BUFFER, 0, WRITE)],
            &[(outside, 16, WRITE)],
            &[(BUFFER, 16, WRITE | INDIRECT)],
        ];
        for chain in chains {
            let mut driver = started();
            driver.offer(0, 0, chain);
            driver.notify(0);
            assert_eq!(driver.take_returned(0), [0], "{chain:?}");
            assert_eq!(used_length(&driver, 0), 0, "{chain:?}");
            assert_eq!(driver.transport.device().malformed(), 1, "{chain:?}");
        }
    }

    #[test]
    fn a_queue_whose_index_jumps_needs_a_reset() {
        let mut driver = started();
        driver.set_avail_index(0, 5000);
        driver.notify(0);
        assert!(driver.interrupt.needs_reset());
        driver.start(VERSION_1);
        driver.offer(0, 0, &[(BUFFER, 8, WRITE)]);
        driver.notify(0);
        assert_eq!(driver.take_returned(0), [0]);
    }
}
