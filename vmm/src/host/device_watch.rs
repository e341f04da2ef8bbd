//! Notices that the host's side of a VM's disks and network cards fails, and finds the words for it.
//!
//! A guest may repeat what fails as fast as it can. So it is told when errors begin, and of those that
//! follow all together, after some time.

use protocol::{DiskFigures, DiskSpec, NetConfig, Observation, VmConfig};
use rustix::io::Errno;
use std::io;
use std::time::{Duration, Instant};

/// Between two words about one device.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// What was told of a VM's devices.
#[derive(Debug, Default)]
pub(super) struct DeviceWatch {
    disks: Vec<ErrorWatch>,
    nets: Vec<ErrorWatch>,
}

/// What was told of one.
#[derive(Clone, Copy, Debug, Default)]
struct ErrorWatch {
    told: u64,
    at: Option<Instant>,
}

impl ErrorWatch {
    /// How many errors are to be told of now.
    fn look(&mut self, errors: u64, now: Instant) -> Option<u64> {
        let new = errors.saturating_sub(self.told);
        let was_just_told = self
            .at
            .is_some_and(|at| now.saturating_duration_since(at) < TELL_EVERY);
        if new == 0 || was_just_told {
            return None;
        }
        *self = Self {
            told: errors,
            at: Some(now),
        };
        Some(new)
    }
}

impl DeviceWatch {
    /// What there is to tell of a VM's devices.
    pub(super) fn look(
        &mut self,
        config: &VmConfig,
        seen: &Observation,
        now: Instant,
    ) -> Vec<String> {
        self.disks.resize_with(config.disks.len(), Default::default);
        self.nets.resize_with(config.nets.len(), Default::default);
        let disks = config.disks.iter().zip(&seen.disks).zip(&mut self.disks);
        let disks = disks.filter_map(|((spec, figures), watch)| {
            let failed = watch.look(figures.counters.errors, now)?;
            Some(about_disk(spec, figures, failed))
        });
        let nets = config.nets.iter().zip(&seen.nets).zip(&mut self.nets);
        let nets = nets.filter_map(|((net, state), watch)| {
            let lost = watch.look(state.counters.sent_refused, now)?;
            Some(about_net(net, lost))
        });
        disks.chain(nets).collect()
    }
}

fn about_disk(spec: &DiskSpec, figures: &DiskFigures, failed: u64) -> String {
    let path = spec.path.display();
    let error = figures.last_error;
    let why = error.map_or_else(String::new, |number| {
        format!(", the last: {}", io::Error::from_raw_os_error(number))
    });
    format!(
        "I/O errors on its disk '{path}': {failed}{why}{}",
        remedy(error)
    )
}

fn remedy(error: Option<i32>) -> &'static str {
    let is = |errno: Errno| error == Some(errno.raw_os_error());
    if is(Errno::NOSPC) || is(Errno::DQUOT) {
        "; make room on the file system that it lies on"
    } else if is(Errno::NXIO) {
        "; its file was cut while it is used: stop the VM and put the image back"
    } else if is(Errno::IO) {
        "; `dmesg` may tell what the device suffers from"
    } else {
        ""
    }
}

fn about_net(net: &NetConfig, lost: u64) -> String {
    let tap = &net.tap;
    format!(
        "packets of its network card that the tap '{tap}' did not take: {lost}; see with `ip link show {tap}` whether it is there and up"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_when_they_begin_and_then_together_as_long_as_they_go_on() {
        let (mut watch, begin) = (ErrorWatch::default(), Instant::now());
        let mut told = Vec::new();
        // One a second for 25 minutes, then none.
        for second in 0..3600 {
            let now = begin + Duration::from_secs(second);
            if let Some(new) = watch.look(second.min(1500), now) {
                told.push((second, new));
            }
        }
        assert_eq!(told, [(1, 1), (601, 600), (1201, 600), (1801, 299)]);
    }

    #[test]
    fn errors_that_come_back_long_after_are_told_at_once() {
        let (mut watch, begin) = (ErrorWatch::default(), Instant::now());
        let at = |second| begin + Duration::from_secs(second);
        assert_eq!(watch.look(0, at(0)), None);
        assert_eq!(watch.look(7, at(1)), Some(7));
        assert_eq!(watch.look(7, at(5000)), None);
        assert_eq!(watch.look(8, at(5001)), Some(1));
    }

    /// What a VM process says is a claim.
    #[test]
    fn a_count_that_falls_and_an_error_that_does_not_exist_harm_nobody() {
        let (mut watch, now) = (ErrorWatch::default(), Instant::now());
        assert_eq!(watch.look(u64::MAX, now), Some(u64::MAX));
        assert_eq!(watch.look(3, now + 2 * TELL_EVERY), None);
        let spec: DiskSpec = "a.img".parse().unwrap();
        let figures = |number| DiskFigures {
            size_bytes: 0,
            counters: Default::default(),
            last_error: number,
        };
        for number in [i32::MIN, -1, 0, i32::MAX] {
            let told = about_disk(&spec, &figures(Some(number)), 1);
            assert!(told.contains("'a.img': 1"), "{told}");
        }
        let full = about_disk(&spec, &figures(Some(28)), 7);
        assert!(full.contains("No space left"), "{full}");
        assert!(full.contains("make room"), "{full}");
    }
}
