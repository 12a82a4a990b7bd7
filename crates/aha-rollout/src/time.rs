//! The wall clock, and comparing tables in everything but it.
//!
//! Exact resume promises that a run which was killed and resumed ends with the tables of an
//! uninterrupted one. When a row was finished can't be the same, so the promise leaves those
//! columns out: they are marked `wall_clock` in their metadata, and [`equal_but_for_time`]
//! compares the rest, bit by bit.

use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::{Array, RecordBatch};
use arrow::compute::concat_batches;

use crate::schema::is_wall_clock;

/// Now, in microseconds since 1970, UTC: what the columns of the wall clock hold.
pub fn now_us() -> i64 {
    // A clock set before 1970 counts as 1970: a wrong time in a table is no reason to stop a run.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Whether two tables hold the same rows in the same order, but for columns of the wall clock;
/// floats by their bits. The error says where they first differ.
pub fn equal_but_for_time(a: &[RecordBatch], b: &[RecordBatch]) -> Result<(), String> {
    let (rows_a, rows_b) = (rows_count(a), rows_count(b));
    if rows_a != rows_b {
        return Err(format!("one table has {rows_a} rows, the other {rows_b}"));
    }
    let (Some(first_a), Some(first_b)) = (a.first(), b.first()) else {
        return Ok(());
    };
    if first_a.schema().fields() != first_b.schema().fields() {
        return Err("the tables have different columns".to_owned());
    }
    let whole = |table: &[RecordBatch], first: &RecordBatch| {
        concat_batches(&first.schema(), table).map_err(|error| error.to_string())
    };
    let (a, b) = (whole(a, first_a)?, whole(b, first_b)?);
    for (idx, field) in a.schema().fields().iter().enumerate() {
        let (x, y) = (a.column(idx), b.column(idx));
        if is_wall_clock(field) || x.to_data() == y.to_data() {
            continue;
        }
        let differs = |&row: &usize| x.slice(row, 1).to_data() != y.slice(row, 1).to_data();
        let row = (0..rows_a).find(differs).unwrap_or_default();
        return Err(format!(
            "column `{}` differs in row {row}: {:?} and {:?}",
            field.name(),
            x.slice(row, 1),
            y.slice(row, 1)
        ));
    }
    Ok(())
}

fn rows_count(table: &[RecordBatch]) -> usize {
    table.iter().map(RecordBatch::num_rows).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{self, MetricRow};

    fn table(value: f64, at_us: i64) -> RecordBatch {
        let row = MetricRow { stage: "zero", step: 1, name: "loss", value, at_us };
        rows::metrics(&[row.clone(), row])
    }

    #[test]
    fn time_is_left_out_and_nothing_else() {
        assert_eq!(equal_but_for_time(&[table(0.5, 1)], &[table(0.5, 2)]), Ok(()));
        let message = equal_but_for_time(&[table(0.5, 1)], &[table(0.25, 1)]).unwrap_err();
        assert!(message.starts_with("column `value` differs in row 0"), "{message}");
        assert_eq!(equal_but_for_time(&[table(f64::NAN, 1)], &[table(f64::NAN, 1)]), Ok(()));
        assert!(equal_but_for_time(&[table(0.0, 1)], &[table(-0.0, 1)]).is_err());
    }

    #[test]
    fn how_rows_are_batched_does_not_matter_but_how_many_does() {
        let whole = table(0.5, 1);
        let halves = [whole.slice(0, 1), whole.slice(1, 1)];
        assert_eq!(equal_but_for_time(std::slice::from_ref(&whole), &halves), Ok(()));
        assert!(equal_but_for_time(&[whole], &halves[..1]).is_err());
        assert_eq!(equal_but_for_time(&[], &[]), Ok(()));
    }
}
