//! Zipf-distributed ranks by rejection-inversion: no table, so the number of ranks may change at
//! any time.
//!
//! Source: W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone
//! discrete distributions", ACM TOMACS 6 (1996).

use libm::{exp, expm1, log, log1p};

use crate::random::Random;

/// Draws ranks below `count`, rank r in proportion to 1 / (r + 1)^theta.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zipf {
    theta: f64,
    count: u32,
    /// The integral of the hat function at its two ends.
    integral_first: f64,
    integral_last: f64,
    /// Where a draw may be accepted without looking further.
    shortcut: f64,
}

impl Zipf {
    pub(super) fn new(count: u32, theta: f64) -> Self {
        let mut zipf = Self {
            theta,
            count,
            integral_first: 0.0,
            integral_last: 0.0,
            shortcut: 0.0,
        };
        zipf.integral_first = zipf.integral(1.5) - 1.0;
        zipf.integral_last = zipf.integral(f64::from(count) + 0.5);
        zipf.shortcut = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.hat(2.0));
        zipf
    }

    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// The next rank, from 0.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the ranks before"
    )]
    #[inline]
    pub(super) fn draw(&self, random: &mut Random) -> u32 {
        loop {
            let span = self.integral_first - self.integral_last;
            let area = self.integral_last + random.unit() * span;
            let x = self.inverse(area);
            let rank = (x + 0.5).clamp(1.0, f64::from(self.count)) as u32;
            let k = f64::from(rank);
            if k - x <= self.shortcut || area >= self.integral(k + 0.5) - self.hat(k) {
                return rank - 1;
            }
        }
    }

    fn hat(&self, x: f64) -> f64 {
        exp(-self.theta * log(x))
    }

    fn integral(&self, x: f64) -> f64 {
        let log_x = log(x);
        expm1_over(((1.0 - self.theta) * log_x, log_x))
    }

    fn inverse(&self, area: f64) -> f64 {
        let scaled = (area * (1.0 - self.theta)).max(-1.0);
        exp(log1p_over(scaled) * area)
    }
}

/// (e^t - 1) / t times the second, well behaved at t = 0.
fn expm1_over((t, times): (f64, f64)) -> f64 {
    if t.abs() > 1e-8 {
        expm1(t) / t * times
    } else {
        (1.0 + t / 2.0) * times
    }
}

/// ln(1 + t) / t, well behaved at t = 0.
fn log1p_over(t: f64) -> f64 {
    if t.abs() > 1e-8 {
        log1p(t) / t
    } else {
        1.0 - t / 2.0
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    #[test]
    fn ranks_come_as_often_as_the_law_says() {
        for theta in [0.5, 0.99, 1.0, 1.5] {
            const RANKS: u32 = 100;
            const DRAWS: u32 = 400_000;
            let zipf = Zipf::new(RANKS, theta);
            let mut random = Random::new(7);
            let mut seen = vec![0_u32; RANKS as usize];
            (0..DRAWS).for_each(|_| seen[zipf.draw(&mut random) as usize] += 1);
            let weight = |rank: u32| f64::from(rank + 1).powf(-theta);
            let total: f64 = (0..RANKS).map(weight).sum();
            for rank in 0..RANKS {
                let expected = f64::from(DRAWS) * weight(rank) / total;
                let found = f64::from(seen[rank as usize]);
                let tolerance = 5.0 * expected.sqrt() + 1.0;
                assert!(
                    (found - expected).abs() < tolerance,
                    "theta {theta} rank {rank}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn one_rank_is_always_drawn() {
        let zipf = Zipf::new(1, 0.99);
        let mut random = Random::new(1);
        assert!((0..100).all(|_| zipf.draw(&mut random) == 0));
    }
}
