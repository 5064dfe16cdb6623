//! Rows under ids that a DDL takes from their table, gives to another, or gives back.

use serde_json::json;

use super::{Cluster, SHAPE, TableMutation, column, insert, inserts};

/// After EXCHANGE PARTITION, rows under the plain table's old id are rows of the partitioned table; those of its new id
/// are its own.
#[test]
fn late_rows_after_an_exchange() {
    let mut cluster = Cluster::new();
    let columns = [column(1, json!({}))];
    let parted = |ids: &[i64]| {
        let definitions: Vec<_> = ids.iter().map(|id| json!({"id": id, "name": format!("p{id}")})).collect();
        json!({"partition": {"type": 1, "enable": true, "definitions": definitions}})
    };
    cluster.table(&columns, parted(&[60, 61]));
    let plain =
        json!({"id": 70, "name": {"O": "plain", "L": "plain"}, "cols": columns, "pk_is_handle": true});
    cluster.run(3, 70, json!({"TableInfo": plain}));
    let row = |table_id: i64| TableMutation { table_id: Some(table_id), ..inserts(vec![insert(1, &[])]) };
    let table_of = |cluster: &Cluster, id: i64| cluster.changes(vec![row(id)])[0].table.clone();
    assert_eq!(table_of(&cluster, 70), "plain");
    let mut after = json!({"id": 50, "name": {"O": "T", "L": "t"}, "cols": columns, "pk_is_handle": true});
    after.as_object_mut().unwrap().extend(parted(&[60, 70]).as_object().unwrap().clone());
    cluster.run(42, 70, json!({"TableInfo": after}));
    assert_eq!(table_of(&cluster, 70), "T");
    assert_eq!(table_of(&cluster, 61), "plain");
    assert_eq!(table_of(&cluster, 50), "T");

    // Partitions come and go without a word about rows: they are under the logical id.
    for kind in [19, 20, 23, 64] {
        let mut next = after.clone();
        next.as_object_mut()
            .unwrap()
            .extend(parted(&[60, 70, i64::from(kind) + 100]).as_object().unwrap().clone());
        cluster.run(kind, 50, json!({"TableInfo": next}));
        assert_eq!(table_of(&cluster, 50), "T", "{kind}");
    }
}

/// PARTITION BY and REMOVE PARTITIONING give a table a new id; a TiDB that has not seen the job's last state writes under the
/// old one, and what it writes is there.
#[test]
fn late_rows_after_a_table_is_partitioned_anew() {
    let mut cluster = Cluster::new();
    let columns = [column(1, json!({}))];
    cluster.table(&columns, json!({}));
    let row = |table_id: i64| TableMutation { table_id: Some(table_id), ..inserts(vec![insert(1, &[])]) };
    for (kind, old_id, new_id) in [(71, 50, 51), (71, 51, 52), (72, 52, 53)] {
        let after =
            json!({"id": new_id, "name": {"O": "T", "L": "t"}, "cols": columns, "pk_is_handle": true});
        cluster.run(kind, old_id, json!({"TableInfo": after}));
        for table_id in [old_id, new_id] {
            let mut rows = cluster.rows(vec![row(table_id)]).unwrap();
            assert_eq!((rows.changes(), rows.discarded()), (1, 0), "{kind}: {table_id}");
            assert_eq!(rows.next_slice(&SHAPE, usize::MAX).unwrap()[0].table_id, new_id);
        }
    }
}

/// A recovered table goes on under the id it had; a truncated one does not.
#[test]
fn tables_that_come_back() {
    let mut cluster = Cluster::new();
    let columns = [column(1, json!({}))];
    cluster.table(&columns, json!({}));
    let row = |table_id: i64| TableMutation { table_id: Some(table_id), ..inserts(vec![insert(1, &[])]) };
    cluster.run(4, 50, json!({}));
    assert_eq!(cluster.rows(vec![row(50)]).unwrap().discarded(), 1);
    let back = |id: i64, name: &str| json!({"TableInfo": {"id": id, "name": {"O": name, "L": name}, "cols": columns, "pk_is_handle": true}});
    cluster.run(25, 50, back(50, "again"));
    assert_eq!(cluster.changes(vec![row(50)])[0].table, "again");
    cluster.run(11, 50, back(51, "again"));
    let mut rows = cluster.rows(vec![row(50), row(51)]).unwrap();
    assert_eq!((rows.changes(), rows.discarded()), (1, 1));
    assert_eq!(rows.next_slice(&SHAPE, usize::MAX).unwrap()[0].table_id, 51);
}
