//! Cycles among transactions that depend on each other, and what each kind of cycle is called.
//! Knows no documents: only who must have come before whom, and why.
//!
//! A history without anomalies costs one search for strongly connected components, in time and memory that
//! grow with the number of transactions and dependencies. What comes after it runs only for what was found.

use std::collections::VecDeque;

use super::Kind;

/// Why one transaction must have come before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The other wrote next on the same document.
    Overwritten,
    /// The other saw what it wrote.
    Seen,
    /// It did not see what the other wrote.
    Missed,
    /// Its answer had come before the other began.
    Earlier,
}

type Node = u32;

/// Transactions, and who must have come before whom. Nodes beyond the transactions are moments in time.
pub struct Dependencies {
    edges: Vec<Vec<(Node, Why)>>,
    transactions: usize,
}

/// What a kind of cycle is made of: one dependency of one kind, and for the rest of the way any of others.
struct Shape {
    kind: Kind,
    must: Why,
    may: &'static [Why],
}

/// From the plainest contradiction to the mildest.
const SHAPES: [Shape; 5] = [
    Shape {
        kind: Kind::DirtyWrite,
        must: Why::Overwritten,
        may: &[Why::Overwritten],
    },
    Shape {
        kind: Kind::CircularInformation,
        must: Why::Seen,
        may: &[Why::Overwritten, Why::Seen],
    },
    // No second one of its kind: the rest of the way is without.
    Shape {
        kind: Kind::ReadSkew,
        must: Why::Missed,
        may: &[Why::Overwritten, Why::Seen],
    },
    Shape {
        kind: Kind::WriteSkew,
        must: Why::Missed,
        may: &[Why::Overwritten, Why::Seen, Why::Missed],
    },
    Shape {
        kind: Kind::StaleRead,
        must: Why::Earlier,
        may: &[Why::Overwritten, Why::Seen, Why::Missed, Why::Earlier],
    },
];

impl Dependencies {
    pub fn among(transactions: usize) -> Dependencies {
        Dependencies {
            edges: vec![Vec::new(); transactions],
            transactions,
        }
    }

    pub fn add(&mut self, before: usize, after: usize, why: Why) {
        if before != after {
            self.edges[before].push((node(after), why));
        }
    }

    /// Says who had the answer before whom began, given when each began and ended. A chain of moments stands
    /// for the pairs, which would be quadratic in number.
    pub fn add_time(&mut self, spans: impl Iterator<Item = (usize, u64, u64)>) {
        let mut events: Vec<(u64, bool, usize)> = Vec::new();
        for (transaction, began, ended) in spans {
            events.extend([(began, false, transaction), (ended, true, transaction)]);
        }
        events.sort_unstable();
        let mut moment = None;
        for (_, is_end, transaction) in events {
            if is_end {
                let next = self.edges.len();
                self.edges.push(Vec::new());
                self.add(transaction, next, Why::Earlier);
                if let Some(moment) = moment {
                    self.add(moment, next, Why::Earlier);
                }
                moment = Some(next);
            } else if let Some(moment) = moment {
                self.add(moment, transaction, Why::Earlier);
            }
        }
    }

    /// The plainest cycle of each knot of transactions that no order explains: the transactions in turn, and
    /// why each came before the next.
    pub fn cycles(&self) -> Vec<(Kind, Vec<(usize, Why)>)> {
        let mut found = Vec::new();
        for knot in self.knots() {
            let plainest = SHAPES.iter().find_map(|shape| {
                let cycle = self.cycle(&knot, shape)?;
                Some((shape.kind, cycle))
            });
            found.extend(plainest);
        }
        found
    }

    /// A shortest way around that begins with a dependency of the shape's own reason.
    fn cycle(&self, knot: &[Node], shape: &Shape) -> Option<Vec<(usize, Why)>> {
        let mut inside = vec![false; self.edges.len()];
        for &member in knot {
            inside[member as usize] = true;
        }
        for &from in knot {
            for &(to, why) in &self.edges[from as usize] {
                if why != shape.must || !inside[to as usize] {
                    continue;
                }
                if let Some(way) = self.way(to, from, &inside, shape.may) {
                    let mut cycle = vec![(from as usize, why)];
                    cycle.extend(way);
                    // Moments in time are nobody's doing.
                    cycle.retain(|&(at, _)| at < self.transactions);
                    return Some(cycle);
                }
            }
        }
        None
    }

    /// The shortest way between two nodes by dependencies of these kinds: each node but the last, and why it
    /// came before the next.
    fn way(&self, from: Node, to: Node, inside: &[bool], may: &[Why]) -> Option<Vec<(usize, Why)>> {
        let mut came_from: Vec<Option<(Node, Why)>> = vec![None; self.edges.len()];
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                let mut way = Vec::new();
                let mut at = to;
                while at != from {
                    let (before, why) = came_from[at as usize]?;
                    way.push((before as usize, why));
                    at = before;
                }
                way.reverse();
                return Some(way);
            }
            for &(next, why) in &self.edges[at as usize] {
                let new = next != from && came_from[next as usize].is_none();
                if new && inside[next as usize] && may.contains(&why) {
                    came_from[next as usize] = Some((at, why));
                    queue.push_back(next);
                }
            }
        }
        None
    }

    /// Strongly connected components of more than one node (Tarjan's algorithm, without recursion).
    fn knots(&self) -> Vec<Vec<Node>> {
        const NEW: u32 = u32::MAX;
        let size = self.edges.len();
        let (mut number, mut low) = (vec![NEW; size], vec![0; size]);
        let (mut on_stack, mut stack) = (vec![false; size], Vec::new());
        let (mut next, mut knots) = (0, Vec::new());
        // Each node on the way down, and which of its edges comes next.
        let mut path: Vec<(usize, usize)> = Vec::new();
        for root in 0..size {
            if number[root] != NEW {
                continue;
            }
            path.push((root, 0));
            while let Some((at, edge)) = path.pop() {
                if edge == 0 {
                    (number[at], low[at]) = (next, next);
                    next += 1;
                    stack.push(at);
                    on_stack[at] = true;
                }
                if let Some(&(to, _)) = self.edges[at].get(edge) {
                    let to = to as usize;
                    path.push((at, edge + 1));
                    if number[to] == NEW {
                        path.push((to, 0));
                    } else if on_stack[to] {
                        low[at] = low[at].min(number[to]);
                    }
                    continue;
                }
                if low[at] == number[at] {
                    let begin = stack.iter().rposition(|&member| member == at).unwrap();
                    let knot: Vec<Node> = stack.drain(begin..).map(node).collect();
                    for &member in &knot {
                        on_stack[member as usize] = false;
                    }
                    if knot.len() > 1 {
                        knots.push(knot);
                    }
                }
                if let Some(&(above, _)) = path.last() {
                    low[above] = low[above].min(low[at]);
                }
            }
        }
        knots
    }
}

fn node(index: usize) -> Node {
    Node::try_from(index).unwrap()
}
