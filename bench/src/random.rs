//! Seeded random numbers, so that every run asks for the same things in the same order.
//!
//! Not for secrets.

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Puts a list in random order.
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            list.swap(last, other);
        }
    }
}

/// Ranks by Zipf's law: rank k (from 0) has a weight of 1 / (k + 1)^exponent.
#[derive(Debug)]
pub(crate) struct Zipf {
    /// The share of all draws up to and including each rank.
    cumulative: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(ranks: usize, exponent: f64) -> Zipf {
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = (1..=ranks)
            .map(|k| {
                sum += (k as f64).powf(-exponent);
                sum
            })
            .collect();
        cumulative.iter_mut().for_each(|share| *share /= sum);
        Zipf { cumulative }
    }

    pub(crate) fn draw(&self, rng: &mut Rng) -> usize {
        let at = rng.unit();
        let rank = self.cumulative.partition_point(|share| *share <= at);
        rank.min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            [rng.next(), rng.next(), rng.below(10)]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn a_shuffled_list_has_the_same_items() {
        let mut list: Vec<u32> = (0..100).collect();
        Rng::new(7).shuffle(&mut list);
        assert_ne!(list, (0..100).collect::<Vec<_>>());
        list.sort_unstable();
        assert_eq!(list, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn zipf_prefers_low_ranks_by_its_law() {
        let (zipf, mut rng) = (Zipf::new(100_000, 1.5), Rng::new(1));
        let mut counts = [0_u32; 2];
        const DRAWS: u32 = 100_000;
        for _ in 0..DRAWS {
            if let Some(count) = counts.get_mut(zipf.draw(&mut rng)) {
                *count += 1;
            }
        }
        // zeta(1.5) is 2.612, less the tail beyond 100,000 ranks: 0.006.
        let expected = [1.0 / 2.606, 0.353_55 / 2.606];
        for (count, expected) in counts.iter().zip(expected) {
            let share = f64::from(*count) / f64::from(DRAWS);
            assert!((share - expected).abs() < 0.01, "{share} {expected}");
        }
    }
}
