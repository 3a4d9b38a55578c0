//! Percentiles of one measurement and the spread of several.
//!
//! Plain arithmetic; it must not know what was measured.

use std::time::Duration;

/// Latencies of one measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    /// Nanoseconds; what takes longer than 4.29 s counts as that.
    nanos: Vec<u32>,
}

impl Latencies {
    pub(crate) fn push(&mut self, elapsed: Duration) {
        self.nanos
            .push(u32::try_from(elapsed.as_nanos()).unwrap_or(u32::MAX));
    }

    pub(crate) fn append(&mut self, mut other: Latencies) {
        self.nanos.append(&mut other.nanos);
    }

    pub(crate) fn len(&self) -> usize {
        self.nanos.len()
    }

    /// The latency in milliseconds that `share` (0 to 1) of all stay within; NaN without any.
    pub(crate) fn percentile_ms(&mut self, share: f64) -> f64 {
        if self.nanos.is_empty() {
            return f64::NAN;
        }
        self.nanos.sort_unstable();
        let rank = (share * self.nanos.len() as f64).ceil() as usize;
        let at = rank.clamp(1, self.nanos.len()) - 1;
        f64::from(self.nanos[at]) / 1e6
    }
}

/// One figure over several rounds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    /// In the order of the rounds.
    pub(crate) samples: Vec<f64>,
}

impl Spread {
    pub(crate) fn new(samples: impl IntoIterator<Item = f64>) -> Spread {
        Spread {
            samples: samples.into_iter().collect(),
        }
    }

    /// The middle sample, or the mean of the two in the middle; NaN without samples.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        match n {
            0 => f64::NAN,
            _ if n % 2 == 1 => sorted[n / 2],
            _ => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    pub(crate) fn min(&self) -> f64 {
        self.samples.iter().copied().fold(f64::NAN, f64::min)
    }

    pub(crate) fn max(&self) -> f64 {
        self.samples.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Round by round, this over the other.
    pub(crate) fn over(&self, other: &Spread) -> Spread {
        let pairs = self.samples.iter().zip(&other.samples);
        Spread::new(pairs.map(|(a, b)| a / b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut latencies = Latencies::default();
        assert!(latencies.percentile_ms(0.5).is_nan());
        for ms in (1..=100).rev() {
            latencies.push(Duration::from_millis(ms));
        }
        for (share, expected) in [
            (0.0, 1.0),
            (0.5, 50.0),
            (0.99, 99.0),
            (0.991, 100.0),
            (1.0, 100.0),
        ] {
            assert_eq!(latencies.percentile_ms(share), expected, "{share}");
        }
        latencies.push(Duration::from_secs(60));
        assert_eq!(latencies.percentile_ms(1.0), f64::from(u32::MAX) / 1e6);
    }

    #[test]
    fn a_spread_has_a_middle_and_two_ends() {
        let odd = Spread::new([3.0, 1.0, 2.0]);
        assert_eq!((odd.median(), odd.min(), odd.max()), (2.0, 1.0, 3.0));
        assert_eq!(Spread::new([4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert!(Spread::new([]).median().is_nan());
        assert_eq!(
            odd.over(&Spread::new([1.0, 2.0, 4.0])).samples,
            [3.0, 0.5, 0.5]
        );
    }
}
