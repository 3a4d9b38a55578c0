//! Anomalies that are planted through two servers, each of which the checker must find and call by its name.
//!
//! Two are holes in the engine: with validation off, transactions of two servers overwrite each other. The others
//! are what a broken store would do to its clients, made with transactions that do something else than what is
//! then told of them.

use std::sync::Arc;

use nimbus_storage::{Tenant, Transaction};

use super::check::{anomalies, count};
use super::clients::run;
use super::transact::{INITIAL, Lists, Order};
use super::{Anomaly, History, Key, Kind, Put, Step, Told};
use crate::engine::servers::Servers;

/// What is planted, and what it must be called.
const PLANTS: [(&str, Kind); 16] = [
    ("lost update", Kind::LostUpdate),
    ("write skew", Kind::WriteSkew),
    ("lost append", Kind::LostAppend),
    ("duplicated append", Kind::DuplicatedAppend),
    ("append of a refused transaction", Kind::RefusedAppend),
    ("element of nobody", Kind::InventedElement),
    ("two orders of one list", Kind::ForkedList),
    ("half of a transaction", Kind::IntermediateRead),
    ("unrepeatable read", Kind::UnrepeatableRead),
    ("balance that does not follow", Kind::WrongBalance),
    ("money created", Kind::MoneyCreated),
    ("interleaved writes", Kind::DirtyWrite),
    ("circular information", Kind::CircularInformation),
    ("fractured read", Kind::ReadSkew),
    ("long fork", Kind::WriteSkew),
    ("stale read", Kind::StaleRead),
];

/// Three documents, two servers, and what is told about them.
struct Plot {
    a: Tenant,
    b: Tenant,
    lists: Arc<Lists>,
    history: History,
}

const X: Key = 0;
const Y: Key = 1;

impl Plot {
    async fn on(a: &Tenant, b: &Tenant) -> Plot {
        let mut plot = Plot {
            a: a.clone(),
            b: b.clone(),
            lists: Lists::create(a, 3).await,
            history: History {
                initial: INITIAL,
                ..History::default()
            },
        };
        // Something honest first, so that lists are not empty.
        for tenant in [a, b] {
            let began = plot.lists.now();
            let orders = [
                Order::Append(X),
                Order::Transfer {
                    from: X,
                    to: Y,
                    amount: 3,
                },
            ];
            let steps = plot.commit(tenant, &orders).await;
            plot.tell("honest", began, true, steps);
        }
        plot
    }

    fn tell(&mut self, label: &str, began: u64, committed: bool, steps: Vec<Step>) {
        self.history.told.push(Told {
            label: label.to_owned(),
            began,
            ended: self.lists.now(),
            committed,
            operations: steps.len(),
            steps,
        });
    }

    /// Commits a transaction that does this.
    async fn commit(&self, tenant: &Tenant, orders: &[Order]) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut tx = tenant.begin().await.unwrap();
        self.lists
            .perform(&mut tx, orders, &mut steps)
            .await
            .unwrap();
        tenant.commit(tx).await.unwrap();
        steps
    }

    /// A state of the second server, to be read later.
    async fn state(&self) -> Transaction {
        self.b.begin_read(None).await.unwrap()
    }

    async fn read(&self, state: &mut Transaction, key: Key) -> Step {
        self.lists.read(state, key).await.unwrap()
    }

    /// Two transactions, one on each server, that have both begun before either commits. Whether the second
    /// one was allowed to.
    async fn overlap(&mut self, first: &[Order], second: &[Order]) -> bool {
        let began = self.lists.now();
        let (mut one, mut two) = (self.a.begin().await.unwrap(), self.b.begin().await.unwrap());
        let (mut saw, mut saw_too) = (Vec::new(), Vec::new());
        self.lists.perform(&mut one, first, &mut saw).await.unwrap();
        self.lists
            .perform(&mut two, second, &mut saw_too)
            .await
            .unwrap();
        self.a.commit(one).await.unwrap();
        self.tell("first", began, true, saw);
        let allowed = self.b.commit(two).await.is_ok();
        self.tell("second", began, allowed, saw_too);
        allowed
    }

    async fn judge(mut self) -> Vec<Anomaly> {
        let tenants = [self.a.clone(), self.b.clone()];
        self.history.end(&self.lists, &tenants).await;
        anomalies(&self.history)
    }

    async fn plant(&mut self, which: &str) {
        let (a, b, began) = (self.a.clone(), self.b.clone(), self.lists.now());
        let append = |key| [Order::Append(key)];
        match which {
            "lost update" => {
                self.overlap(&append(X), &append(X)).await;
            }
            "write skew" => {
                let looks = [Order::Read(X), Order::Read(Y)];
                let first = [looks[0], looks[1], Order::Append(X)];
                let second = [looks[0], looks[1], Order::Append(Y)];
                self.overlap(&first, &second).await;
            }
            "lost append" => {
                let (mut tx, mut steps) = (a.begin().await.unwrap(), Vec::new());
                self.lists
                    .perform(&mut tx, &append(X), &mut steps)
                    .await
                    .unwrap();
                self.tell("dropped", began, true, steps);
            }
            "duplicated append" => {
                let steps = self.commit(&a, &append(X)).await;
                let put = steps[0].put.unwrap();
                let mut again = b.begin().await.unwrap();
                self.lists.put_this(&mut again, X, put).await.unwrap();
                b.commit(again).await.unwrap();
                self.tell("done twice", began, true, steps);
            }
            "append of a refused transaction" => {
                let steps = self.commit(&a, &append(X)).await;
                self.tell("refused", began, false, steps);
            }
            "element of nobody" => drop(self.commit(&a, &append(X)).await),
            "two orders of one list" => {
                let mut step = self.read(&mut self.state().await, X).await;
                step.seen.list.reverse();
                self.tell("reader", began, true, vec![step]);
            }
            "half of a transaction" => {
                let mut steps = self.commit(&a, &append(X)).await;
                let half = self.read(&mut self.state().await, X).await;
                steps.extend(self.commit(&a, &append(X)).await);
                self.tell("writer", began, true, steps);
                self.tell("reader", began, true, vec![half]);
            }
            "unrepeatable read" => {
                let before = self.read(&mut self.state().await, X).await;
                let steps = self.commit(&a, &append(X)).await;
                let after = self.read(&mut self.state().await, X).await;
                self.tell("writer", began, true, steps);
                self.tell("reader", began, true, vec![before, after]);
            }
            "balance that does not follow" => {
                let mut step = self.read(&mut self.state().await, X).await;
                step.seen.balance += 1;
                self.tell("reader", began, true, vec![step]);
            }
            "money created" => self.half_a_transfer(began).await,
            _ => self.plant_cycle(which, began).await,
        }
    }

    /// The credit is committed, the debit is not.
    async fn half_a_transfer(&mut self, began: u64) {
        let mut tx = self.a.begin().await.unwrap();
        let credit = self.lists.put(&mut tx, Y, 5).await.unwrap();
        self.a.commit(tx).await.unwrap();
        let mut debit = self.read(&mut self.state().await, X).await;
        debit.put = Some(Put {
            amount: -5,
            ..credit.put.unwrap()
        });
        self.tell("transfer", began, true, vec![debit, credit]);
    }

    /// Transactions that are each plausible, and impossible together.
    async fn plant_cycle(&mut self, which: &str, began: u64) {
        let (a, b) = (self.a.clone(), self.b.clone());
        let (x, y) = ([Order::Append(X)], [Order::Append(Y)]);
        match which {
            "interleaved writes" => {
                let mut first = self.commit(&a, &x).await;
                let mut second = self.commit(&b, &x).await;
                second.extend(self.commit(&b, &y).await);
                first.extend(self.commit(&a, &y).await);
                self.tell("first", began, true, first);
                self.tell("second", began, true, second);
            }
            "circular information" => {
                let mut first = self.commit(&a, &x).await;
                let second = self.commit(&b, &[Order::Read(X), Order::Append(Y)]).await;
                first.push(self.read(&mut self.state().await, Y).await);
                self.tell("first", began, true, first);
                self.tell("second", began, true, second);
            }
            "fractured read" => {
                let before = self.read(&mut self.state().await, X).await;
                let transfer = Order::Transfer {
                    from: X,
                    to: Y,
                    amount: 5,
                };
                let steps = self.commit(&a, &[transfer]).await;
                let after = self.read(&mut self.state().await, Y).await;
                self.tell("transfer", began, true, steps);
                self.tell("reader", began, true, vec![before, after]);
            }
            "long fork" => {
                let mut before = self.state().await;
                let first = self.commit(&a, &x).await;
                let mut one = self.state().await;
                let second = self.commit(&b, &y).await;
                let mut both = self.state().await;
                let saw_x = vec![self.read(&mut one, X).await, self.read(&mut one, Y).await];
                let saw_y = vec![
                    self.read(&mut before, X).await,
                    self.read(&mut both, Y).await,
                ];
                let told = [
                    ("x", first),
                    ("y", second),
                    ("saw x", saw_x),
                    ("saw y", saw_y),
                ];
                for (label, steps) in told {
                    self.tell(label, began, true, steps);
                }
            }
            "stale read" => {
                let mut old = self.state().await;
                let steps = self.commit(&a, &x).await;
                self.tell("writer", began, true, steps);
                let began = self.lists.now();
                let step = self.read(&mut old, X).await;
                self.tell("reader", began, true, vec![step]);
            }
            other => panic!("no plant {other}"),
        }
    }
}

/// Each plant is found; the same transactions on servers that validate are clean.
pub async fn planted_anomalies_are_found(servers: Servers) {
    let (a, b) = servers.tenant("honest").await;
    let found = Plot::on(&a, &b).await.judge().await;
    assert!(found.is_empty(), "nothing was planted: {found:#?}");
    for (which, _) in &PLANTS[..2] {
        let mut plot = Plot::on(&a, &b).await;
        plot.plant(which).await;
        let found = plot.judge().await;
        assert!(found.is_empty(), "{which} was not prevented: {found:#?}");
    }
    let (c, d) = servers.tenant("reckless").await;
    for tenant in [&c, &d] {
        tenant.without_validation_for_tests();
    }
    for (number, (which, kind)) in PLANTS.into_iter().enumerate() {
        let (a, b) = if number < 2 { (&c, &d) } else { (&a, &b) };
        let mut plot = Plot::on(a, b).await;
        plot.plant(which).await;
        let found = plot.judge().await;
        assert!(
            found.iter().any(|anomaly| anomaly.kind == kind),
            "{which} was planted, and found was {found:#?}"
        );
    }
    // In the crowd too, and not only where two transactions meet on purpose.
    let found = anomalies(&run(&[c.clone(), d.clone()], 7, 2_000).await);
    let updates = count(&found).get(&Kind::LostUpdate).copied();
    assert!(
        updates > Some(5),
        "{updates:?} of {} anomalies",
        found.len()
    );
    drop((a, b, c, d));
    servers.close().await;
}
