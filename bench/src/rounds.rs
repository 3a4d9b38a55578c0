//! Rounds of a comparison: the legs in turn, then in turn backwards, so that a drift of the
//! machine hits both sides alike (perf.md 8, item 4).
//!
//! A round during which something else kept the machine busy is repeated, and the quietest are
//! kept. Which rounds are kept depends on the noise alone, never on what they measured.

use anyhow::Result;
use serde_json::{Value, json};

use crate::machine::Watch;
use crate::plan::Plan;

/// CPUs busy with something else from which a round is repeated.
const NOISY: f64 = 0.25;

/// The rounds that were kept.
#[derive(Debug)]
pub(crate) struct Rounds<T> {
    pub(crate) kept: Vec<T>,
    foreign: Vec<f64>,
    tried: usize,
}

/// Runs `legs` legs in each round; `leg` is given the round, which starts at 0 and counts
/// repeated ones, and the leg.
pub(crate) fn run<T, L>(
    plan: &Plan,
    name: &str,
    pids: &[u32],
    legs: usize,
    mut leg: impl FnMut(u64, usize) -> Result<L>,
    gather: impl Fn(Vec<L>) -> T,
) -> Result<Rounds<T>> {
    let mut tried: Vec<(f64, T)> = Vec::new();
    let most = if plan.quick {
        plan.rounds
    } else {
        plan.rounds * 2
    };
    while tried.len() < most {
        let quiet = tried.iter().filter(|(foreign, _)| *foreign < NOISY).count();
        if quiet >= plan.rounds {
            break;
        }
        let round = tried.len();
        let watch = Watch::start(pids)?;
        let mut results: Vec<(usize, L)> = Vec::new();
        for at in order(round, legs) {
            results.push((at, leg(round as u64, at)?));
        }
        let foreign = watch.foreign()?;
        eprintln!(
            "{name}: round {}, others kept {foreign:.2} CPUs busy",
            round + 1
        );
        results.sort_by_key(|(at, _)| *at);
        let results = results.into_iter().map(|(_, result)| result).collect();
        tried.push((foreign, gather(results)));
    }
    Ok(keep(tried, plan.rounds))
}

/// Forward in even rounds, backward in odd ones.
fn order(round: usize, legs: usize) -> Vec<usize> {
    let forward = 0..legs;
    if round.is_multiple_of(2) {
        forward.collect()
    } else {
        forward.rev().collect()
    }
}

fn keep<T>(mut tried: Vec<(f64, T)>, wanted: usize) -> Rounds<T> {
    let count = tried.len();
    tried.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    tried.truncate(wanted);
    let (foreign, kept) = tried.into_iter().unzip();
    Rounds {
        kept,
        foreign,
        tried: count,
    }
}

impl<T> Rounds<T> {
    /// The rounds for which `map` gives something.
    pub(crate) fn filter_map<U>(self, map: impl FnMut(T) -> Option<U>) -> Rounds<U> {
        Rounds {
            kept: self.kept.into_iter().filter_map(map).collect(),
            foreign: self.foreign,
            tried: self.tried,
        }
    }

    /// What a reader must know to trust the rounds.
    pub(crate) fn noise(&self) -> Value {
        json!({ "rounds_tried": self.tried, "foreign_cpus": self.foreign })
    }

    /// Whether some of the kept rounds were noisy.
    pub(crate) fn noisy(&self) -> bool {
        self.foreign.iter().any(|foreign| *foreign >= NOISY)
    }

    /// One figure of every round.
    pub(crate) fn each(&self, figure: impl Fn(&T) -> f64) -> crate::stats::Spread {
        crate::stats::Spread::new(self.kept.iter().map(figure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_alternates() {
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [2, 1, 0]);
    }

    #[test]
    fn the_quietest_rounds_are_kept_whatever_they_measured() {
        let tried = vec![(0.9, 1), (0.1, 100), (0.0, 2), (0.3, 50)];
        let rounds = keep(tried, 2);
        assert_eq!(rounds.kept, [2, 100]);
        assert_eq!(rounds.tried, 4);
        assert!(!rounds.noisy());
        assert!(keep(vec![(0.9, 1)], 2).noisy());
    }

    #[test]
    fn legs_are_handed_over_in_their_own_order() {
        let plan = Plan::quick("nimbus".into(), ".".into());
        let plan = Plan { rounds: 2, ..plan };
        let mut ran = Vec::new();
        let leg = |round, at| {
            ran.push((round, at));
            Ok(at)
        };
        let rounds = run(&plan, "test", &[], 2, leg, |legs| legs).unwrap();
        assert_eq!(ran, [(0, 0), (0, 1), (1, 1), (1, 0)]);
        assert_eq!(rounds.kept, [[0, 1], [0, 1]]);
    }
}
