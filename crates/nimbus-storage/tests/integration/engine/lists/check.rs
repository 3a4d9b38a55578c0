//! Judges a history: what it says against itself, and cycles among what it says depends on what.
//! Believes the clients and the documents at the end, and must not ask the store.
//!
//! Time and memory grow with the elements in all lists that were read, so histories of a million operations are
//! judged in rounds, each on documents of its own (`rounds`).

use std::collections::{BTreeMap, HashMap};

use super::cycles::{Dependencies, Why};
use super::{Anomaly, Element, History, Key, Kind, Put, Seen, Told};

/// Elements at the end of a list that a message shows.
const SHOWN: usize = 8;

/// Everything that no order of the transactions explains; empty if all is well.
pub fn anomalies(history: &History) -> Vec<Anomaly> {
    let (documents, mut found) = Documents::of(history);
    let mut dependencies = Dependencies::among(history.told.len());
    documents.orders(&mut dependencies);
    for (number, told) in history.told.iter().enumerate() {
        if told.committed {
            let mut judged = Judged {
                documents: &documents,
                number,
                told,
                dependencies: &mut dependencies,
                found: &mut found,
            };
            judged.judge();
        }
    }
    let committed = history.told.iter().enumerate().filter(|(_, t)| t.committed);
    dependencies.add_time(committed.map(|(number, told)| (number, told.began, told.ended)));
    for (kind, cycle) in dependencies.cycles() {
        let what = describe(history, &cycle);
        found.push(Anomaly { kind, what });
    }
    found
}

/// What each kind was found how often.
pub fn count(found: &[Anomaly]) -> BTreeMap<Kind, usize> {
    let mut counts = BTreeMap::new();
    for anomaly in found {
        *counts.entry(anomaly.kind).or_default() += 1;
    }
    counts
}

fn describe(history: &History, cycle: &[(usize, Why)]) -> String {
    let said = cycle.iter().map(|&(number, why)| {
        let label = &history.told[number].label;
        match why {
            Why::Overwritten => format!("[{label}] was overwritten by"),
            Why::Seen => format!("[{label}] was seen by"),
            Why::Missed => format!("[{label}] did not see"),
            Why::Earlier => format!("[{label}] had its answer before"),
        }
    });
    let mut text = said.collect::<Vec<_>>().join(" ");
    text.push_str(" the first");
    text
}

/// The end of a list, for messages.
fn shown(list: &[Element]) -> String {
    let from = list.len().saturating_sub(SHOWN);
    let dots = if from > 0 { ".. " } else { "" };
    format!("{dots}{:?} ({} long)", &list[from..], list.len())
}

/// Who wrote an element.
#[derive(Clone, Copy)]
struct Writer {
    transaction: usize,
    committed: bool,
    amount: i64,
}

/// One document: its elements in order, which is the order of its writes.
struct Document<'a> {
    list: &'a [Element],
    /// Who wrote each element; `None` for nobody.
    writers: Vec<Option<usize>>,
    /// The balance before each element, and at the end.
    balances: Vec<i64>,
}

/// All documents at the end of a history.
struct Documents<'a> {
    each: Vec<Document<'a>>,
    puts: HashMap<(Key, Element), Writer>,
    /// Which elements are in a list.
    kept: HashMap<(Key, Element), usize>,
}

impl<'a> Documents<'a> {
    fn of(history: &'a History) -> (Documents<'a>, Vec<Anomaly>) {
        let mut puts = HashMap::new();
        for (transaction, told) in history.told.iter().enumerate() {
            for step in &told.steps {
                if let Some(Put { element, amount }) = step.put {
                    let writer = Writer {
                        transaction,
                        committed: told.committed,
                        amount,
                    };
                    let before = puts.insert((step.key, element), writer);
                    assert!(before.is_none(), "elements are used once");
                }
            }
        }
        let mut documents = Documents {
            each: Vec::new(),
            puts,
            kept: HashMap::new(),
        };
        let mut found = Vec::new();
        for (key, last) in history.last.iter().enumerate() {
            let document = documents.document(key, last, history.initial, &mut found);
            documents.each.push(document);
        }
        let sum: i64 = history.last.iter().map(|last| last.balance).sum();
        let count = i64::try_from(history.last.len()).unwrap();
        if sum != history.initial * count {
            found.push(Anomaly {
                kind: Kind::MoneyCreated,
                what: format!("{count} balances of {} are {sum} now", history.initial),
            });
        }
        (documents, found)
    }

    fn document(
        &mut self,
        key: Key,
        last: &'a Seen,
        initial: i64,
        found: &mut Vec<Anomaly>,
    ) -> Document<'a> {
        let (mut writers, mut balances) = (Vec::new(), vec![initial]);
        let mut balance = initial;
        for (index, &element) in last.list.iter().enumerate() {
            let writer = self.puts.get(&(key, element)).copied();
            let known = writer.filter(|writer| writer.committed);
            writers.push(known.map(|writer| writer.transaction));
            balance += writer.map_or(0, |writer| writer.amount);
            balances.push(balance);
            let twice = self.kept.insert((key, element), index);
            let kind = match (twice, writer) {
                (Some(_), _) => Kind::DuplicatedAppend,
                (None, None) => Kind::InventedElement,
                (None, Some(writer)) if !writer.committed => Kind::RefusedAppend,
                (None, Some(_)) => continue,
            };
            let what = format!("element {element} of document {key}, at {index}");
            found.push(Anomaly { kind, what });
        }
        if last.balance != balance {
            found.push(Anomaly {
                kind: Kind::WrongBalance,
                what: format!("document {key} ends with {}, not {balance}", last.balance),
            });
        }
        Document {
            list: &last.list,
            writers,
            balances,
        }
    }

    /// Each writer of a document came before the next one.
    fn orders(&self, dependencies: &mut Dependencies) {
        for document in &self.each {
            for pair in document.writers.windows(2) {
                if let [Some(before), Some(after)] = *pair {
                    dependencies.add(before, after, Why::Overwritten);
                }
            }
        }
    }
}

/// One committed transaction that is being judged.
struct Judged<'a> {
    documents: &'a Documents<'a>,
    number: usize,
    told: &'a Told,
    dependencies: &'a mut Dependencies,
    found: &'a mut Vec<Anomaly>,
}

/// What a transaction found in a document, and what it put there until now.
#[derive(Default)]
struct Visit<'a> {
    found: &'a [Element],
    own: Vec<Element>,
}

impl<'a> Judged<'a> {
    fn judge(&mut self) {
        let told = self.told;
        let mut visits: BTreeMap<Key, Visit<'a>> = BTreeMap::new();
        for step in &told.steps {
            let first = || Visit {
                found: &step.seen.list,
                ..Visit::default()
            };
            let new = !visits.contains_key(&step.key);
            let visit = visits.entry(step.key).or_insert_with(first);
            let (before, own) = step
                .seen
                .list
                .split_at_checked(visit.found.len())
                .unwrap_or_default();
            if before != visit.found || own != visit.own {
                let what = format!(
                    "document {}: {} after {} and own {:?}",
                    step.key,
                    shown(&step.seen.list),
                    shown(visit.found),
                    visit.own
                );
                self.found(Kind::UnrepeatableRead, &what);
            }
            if new {
                self.place(step.key, &step.seen);
            }
            self.balance(step.key, &step.seen);
            if let (Some(put), Some(visit)) = (step.put, visits.get_mut(&step.key)) {
                visit.own.push(put.element);
            }
        }
        for (key, visit) in visits {
            self.writes(key, &visit);
        }
    }

    fn found(&mut self, kind: Kind, what: &str) {
        let what = format!("[{}] {what}", self.told.label);
        self.found.push(Anomaly { kind, what });
    }

    /// What was found in a document must be a beginning of its list, between two transactions' writes.
    fn place(&mut self, key: Key, seen: &Seen) {
        let document = &self.documents.each[key];
        let length = seen.list.len();
        if !document.list.starts_with(&seen.list) {
            let same = document.list.iter().zip(&seen.list);
            let at = same.take_while(|(a, b)| a == b).count();
            let kind = match seen
                .list
                .get(at)
                .map(|e| self.documents.puts.get(&(key, *e)))
            {
                Some(None) => Kind::InventedElement,
                Some(Some(writer)) if !writer.committed => Kind::RefusedAppend,
                _ => Kind::ForkedList,
            };
            let what = format!(
                "document {key}: saw {}, which parts at {at} from {}",
                shown(&seen.list),
                shown(document.list)
            );
            return self.found(kind, &what);
        }
        let last = length.checked_sub(1).and_then(|at| document.writers[at]);
        let next = document.writers.get(length).copied().flatten();
        if last.is_some() && last == next && last != Some(self.number) {
            let what = format!("document {key}: saw {} of more", shown(&seen.list));
            self.found(Kind::IntermediateRead, &what);
        }
        if let Some(last) = last {
            self.dependencies.add(last, self.number, Why::Seen);
        }
        if let Some(next) = next {
            self.dependencies.add(self.number, next, Why::Missed);
        }
    }

    /// The balance must follow from the list.
    fn balance(&mut self, key: Key, seen: &Seen) {
        let document = &self.documents.each[key];
        let expected = if document.list.starts_with(&seen.list) {
            document.balances[seen.list.len()]
        } else {
            // A list that is none of this document's was reported already; its balance is one more question.
            let amount = |e: &Element| self.documents.puts.get(&(key, *e)).map_or(0, |w| w.amount);
            document.balances[0] + seen.list.iter().map(amount).sum::<i64>()
        };
        if seen.balance != expected {
            let what = format!(
                "document {key}: balance {} with {}, which makes {expected}",
                seen.balance,
                shown(&seen.list)
            );
            self.found(Kind::WrongBalance, &what);
        }
    }

    /// What it wrote must follow, all together, on what it found.
    fn writes(&mut self, key: Key, visit: &Visit<'_>) {
        if visit.own.is_empty() {
            return;
        }
        let document = &self.documents.each[key];
        let at = visit.found.len();
        if document.list.get(at..at + visit.own.len()) == Some(visit.own.as_slice()) {
            return;
        }
        let missing = visit
            .own
            .iter()
            .find(|e| !self.documents.kept.contains_key(&(key, **e)));
        let in_its_place = document.list.get(at);
        let what = format!(
            "document {key}: put {:?} behind {}, which is {} at the end",
            visit.own,
            shown(visit.found),
            shown(document.list)
        );
        let kind = match (missing, in_its_place) {
            (Some(_), Some(_)) if document.list.starts_with(visit.found) => Kind::LostUpdate,
            (Some(_), _) => Kind::LostAppend,
            (None, _) => Kind::ForkedList,
        };
        self.found(kind, &what);
    }
}
