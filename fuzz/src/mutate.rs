//! Seeded mutations for the bounded tests. libFuzzer has better ones; these need no instrumentation.
//!
//! It must not know any format beyond the words that a target names.

/// Bytes that tend to matter to parsers.
const BYTES: &[u8] = b"\0\x01\x0a\x7f\x80\xff\"\\{}[],:$0-1.e_";

/// A mutation of one of `inputs`, the same for the same state of `rng`.
pub fn next(rng: &mut fastrand::Rng, inputs: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut input = rng.choice(inputs).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..=6) {
        step(rng, &mut input, inputs, words);
    }
    input
}

fn step(rng: &mut fastrand::Rng, input: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[&str]) {
    let at = rng.usize(0..=input.len());
    match rng.u8(0..10) {
        0 => input.truncate(at),
        1 => drop(input.drain(..at)),
        2 => flip(rng, input),
        3 => insert(input, at, &[*rng.choice(BYTES).unwrap_or(&0)]),
        4 => insert(input, at, &[rng.u8(..)]),
        5 | 6 => insert(input, at, rng.choice(words).unwrap_or(&"\0").as_bytes()),
        7 => repeat(rng, input),
        8 => splice(rng, input, inputs),
        _ => remove(rng, input),
    }
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    input.splice(at..at, part.iter().copied());
}

fn flip(rng: &mut fastrand::Rng, input: &mut [u8]) {
    if let Some(byte) = rng.choice(input.iter_mut()) {
        *byte ^= 1 << rng.u8(0..8);
    }
}

/// A part of the input.
fn part(rng: &mut fastrand::Rng, input: &[u8], most: usize) -> std::ops::Range<usize> {
    let start = rng.usize(0..=input.len());
    let end = input.len().min(start + rng.usize(0..=most));
    start..end
}

/// Repeats a part, at times often enough to go over a bound on depth or length.
fn repeat(rng: &mut fastrand::Rng, input: &mut Vec<u8>) {
    let range = part(rng, input, 12);
    let times = if rng.u8(0..8) == 0 { 120 } else { 2 };
    let repeated = input[range.clone()].repeat(times);
    insert(input, range.end, &repeated);
}

/// Puts a part of another input into this one.
fn splice(rng: &mut fastrand::Rng, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
    if let Some(other) = rng.choice(inputs) {
        let (from, to) = (part(rng, other, 64), part(rng, input, 64));
        input.splice(to, other[from].iter().copied());
    }
}

fn remove(rng: &mut fastrand::Rng, input: &mut Vec<u8>) {
    let range = part(rng, input, 8);
    input.drain(range);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_and_most_of_them_differ() {
        let inputs = [b"{\"a\":1}".to_vec(), b"[1,2]".to_vec()];
        let run = |seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            (0..1_000)
                .map(|_| next(&mut rng, &inputs, &["null"]))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let mut distinct = run(7);
        distinct.sort();
        distinct.dedup();
        assert!(distinct.len() > 700, "{}", distinct.len());
        assert!(distinct.iter().any(Vec::is_empty));
        assert!(distinct.iter().any(|input| input.len() > 300));
    }

    #[test]
    fn nothing_to_mutate_is_no_error() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100 {
            next(&mut rng, &[], &[]);
        }
    }
}
