//! The device under a fake driver, in real guest memory.

mod honest;
mod hostile;
mod threads;

use crate::virtio::fake_driver::FakeDriver;
use crate::virtio::mmio::register;
use page::PageCount;

/// A guest of 2 MiB.
const SMALL: PageCount = PageCount(512);

fn device_offers(driver: &FakeDriver) -> u64 {
    let half = |sel: u32| {
        driver.write(register::DEVICE_FEATURES_SEL, sel);
        u64::from(driver.read(register::DEVICE_FEATURES))
    };
    half(0) | half(1) << 32
}

/// The guest's pages that the kernel holds memory for.
fn allocated(driver: &FakeDriver) -> u64 {
    driver.ram.allocated().unwrap().0
}

/// One entry of a statistics buffer.
fn statistic(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}
