//! The transactions of a workload, as TiDB would write them. Pure but for the randomness given to it.

use bytes::Bytes;
use rand::Rng;
use schemas::binlog::{PrewriteValue, TableMutation};
use tidb::binlog::MutationBuilder;
use tidb::datum::Datum;
use tidb::key::{self, Handle};
use tidb::model::TableInfo;
use tidb::row::{BuildRowError, Collation, RowImage, encode_insert, encode_update};
use tidb::value::Value;

use super::tables::Schema;

/// What load does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Transfers between accounts; the sum of all balances is the same at every commit timestamp.
    #[default]
    Bank,
    /// New orders with three items each.
    Orders,
}

/// Accounts of the bank.
pub const ACCOUNTS: usize = 1000;
/// What each begins with.
pub const OPENING_BALANCE: i64 = 100;
/// Accounts opened in one transaction.
const OPENED_AT_ONCE: usize = 100;
const ITEMS: i64 = 3;

/// The contents of a transaction.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Primary key.
    pub primary: Bytes,
    /// The changes.
    pub value: PrewriteValue,
}

/// A workload over its tables.
#[derive(Clone, Debug)]
pub struct Workload {
    kind: Kind,
    /// The tables.
    pub schema: Schema,
    filler: usize,
}

impl Workload {
    /// `payload`: about how many bytes a prewrite shall have.
    pub fn new(kind: Kind, payload: usize) -> Self {
        // A transfer holds two rows before and after; an order one row and its items.
        let filler = match kind {
            Kind::Bank => payload.saturating_sub(150) / 4,
            Kind::Orders => payload.saturating_sub(80),
        };
        let length = (filler as i64).max(1);
        let schema = match kind {
            Kind::Bank => Schema::bank(length),
            Kind::Orders => Schema::orders(length),
        };
        Self { kind, schema, filler }
    }

    /// What it does.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The transactions that fill the tables before the load begins.
    pub fn opening(&self) -> Result<Vec<Contents>, BuildRowError> {
        if self.kind != Kind::Bank {
            return Ok(Vec::new());
        }
        let account = &self.schema.tables[0];
        let accounts: Vec<i64> = (1..=ACCOUNTS as i64).collect();
        let open = |ids: &[i64]| -> Result<Contents, BuildRowError> {
            let mut rows = MutationBuilder::new(account.id);
            for id in ids {
                rows.insert(insert(account, &self.account(*id, OPENING_BALANCE))?);
            }
            Ok(self.contents(record_key(account, ids[0]), vec![rows.build()]))
        };
        accounts.chunks(OPENED_AT_ONCE).map(open).collect()
    }

    /// Moves `amount` between two accounts with these balances.
    pub fn transfer(&self, from: (i64, i64), to: (i64, i64), amount: i64) -> Result<Contents, BuildRowError> {
        let account = &self.schema.tables[0];
        let mut rows = MutationBuilder::new(account.id);
        for ((id, balance), change) in [(from, -amount), (to, amount)] {
            let image = |balance| RowImage::for_change(account, &self.account(id, balance), None, false);
            rows.update(encode_update(&image(balance)?, &image(balance + change)?));
        }
        Ok(self.contents(record_key(account, from.0), vec![rows.build()]))
    }

    /// A new order.
    pub fn order(&self, id: i64, rng: &mut impl Rng) -> Result<Contents, BuildRowError> {
        let [orders, items] = &self.schema.tables[..] else {
            return Err(BuildRowError::Definition("orders".into()));
        };
        let customer = Value::Int(rng.random_range(1..10_000));
        let order = [(1, Value::Int(id)), (2, customer), (3, self.filler(id))];
        let mut rows = MutationBuilder::new(orders.id);
        rows.insert(insert(orders, &order)?);
        let mut lines = MutationBuilder::new(items.id);
        for line in 1..=ITEMS {
            let (product, quantity) = (rng.random_range(1..5_000), rng.random_range(1..10));
            let item =
                [id, line, product, quantity].into_iter().zip(1..).map(|(v, column)| (column, Value::Int(v)));
            lines.insert(insert(items, &item.collect::<Vec<_>>())?);
        }
        Ok(self.contents(record_key(orders, id), vec![rows.build(), lines.build()]))
    }

    fn contents(&self, primary: Bytes, mutations: Vec<TableMutation>) -> Contents {
        Contents { primary, value: PrewriteValue { schema_version: Some(self.schema.version()), mutations } }
    }

    fn account(&self, id: i64, balance: i64) -> [(i64, Value); 3] {
        [(1, Value::Int(id)), (2, Value::Int(balance)), (3, self.filler(id))]
    }

    /// The same for the same row at all times, and hardly compressible.
    fn filler(&self, id: i64) -> Value {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut state = id as u64 ^ 0x9e37_79b9_7f4a_7c15;
        let letters = (0..self.filler).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            LETTERS[(state >> 32) as usize % LETTERS.len()]
        });
        Value::Text(letters.collect())
    }
}

fn insert(table: &TableInfo, values: &[(i64, Value)]) -> Result<Vec<u8>, BuildRowError> {
    Ok(encode_insert(&RowImage::for_insert(table, values, None, Collation::New)?))
}

fn record_key(table: &TableInfo, id: i64) -> Bytes {
    let handle = if table.is_common_handle { key::common_handle(&[Datum::Int(id)]) } else { Handle::Int(id) };
    key::record(table.id, &handle).into()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use tidb::binlog::{Change, changes};
    use tidb::row::{decode_insert, decode_update};

    use super::*;

    #[test]
    fn a_transfer_reads_back() {
        let bank = Workload::new(Kind::Bank, 1024);
        let contents = bank.transfer((7, 90), (9, 110), 15).unwrap();
        let table = &bank.schema.tables[0];
        let mut seen = Vec::new();
        for change in changes(&contents.value.mutations[0]) {
            let Ok(Change::Update(blob)) = change else { panic!("{change:?}") };
            let (before, after) = decode_update(table, blob).unwrap();
            seen.push([before.get(1), before.get(2), after.get(2)].map(|value| value.unwrap().to_string()));
            assert_eq!(before.get(3), after.get(3));
        }
        assert_eq!(seen, [["7", "90", "75"], ["9", "110", "125"]]);
        assert!((900..1150).contains(&contents.value.encoded_len()), "{}", contents.value.encoded_len());
        assert_eq!(key::table_id(&contents.primary), Some(table.id));
    }

    #[test]
    fn the_opening_adds_up() {
        let bank = Workload::new(Kind::Bank, 300);
        let opening = bank.opening().unwrap();
        let table = &bank.schema.tables[0];
        let mut sum = 0;
        for change in opening.iter().flat_map(|contents| changes(&contents.value.mutations[0])) {
            let Ok(Change::Insert(blob)) = change else { panic!("{change:?}") };
            let Some(Value::Int(balance)) = decode_insert(table, blob).unwrap().get(2).cloned() else {
                panic!()
            };
            sum += balance;
        }
        assert_eq!(sum, ACCOUNTS as i64 * OPENING_BALANCE);
    }

    #[test]
    fn an_order_reads_back() {
        let shop = Workload::new(Kind::Orders, 400);
        let contents = shop.order(5, &mut StdRng::seed_from_u64(1)).unwrap();
        let [orders, items] = &contents.value.mutations[..] else { panic!() };
        assert_eq!((orders.inserted_rows.len(), items.inserted_rows.len()), (1, 3));
        let item = decode_insert(&shop.schema.tables[1], &items.inserted_rows[2]).unwrap();
        assert_eq!((item.get(1), item.get(2)), (Some(&Value::Int(5)), Some(&Value::Int(3))));
        assert!((350..450).contains(&contents.value.encoded_len()), "{}", contents.value.encoded_len());
    }

    #[test]
    fn the_jobs_are_what_a_drainer_expects() {
        let jobs = Workload::new(Kind::Orders, 400).schema.jobs();
        let statements: Vec<&str> = jobs.iter().map(|job| job.query.as_str()).collect();
        assert_eq!(statements[0], "CREATE DATABASE `orders`;");
        assert!(
            statements[2].starts_with("CREATE TABLE `orders`.`items` (`order_id` bigint NOT NULL,"),
            "{statements:?}"
        );
        assert!(statements[2].contains("PRIMARY KEY(`order_id`,`line`)"), "{statements:?}");
        let catalog = crate::catalog::Catalog::after(jobs.iter(), jobs.iter());
        assert_eq!(catalog.tables("orders").unwrap().count(), 2);
    }
}
