//! Adding columns to a batch, and bringing a batch into a table's shape.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{Field, Schema, SchemaRef};

use crate::{Error, Result};

/// `batch` with `columns` to the right of its own. Docs and other metadata are kept.
pub fn with_columns(batch: &RecordBatch, columns: Vec<(Field, ArrayRef)>) -> Result<RecordBatch> {
    let schema = batch.schema();
    let mut fields: Vec<Arc<Field>> = schema.fields().to_vec();
    let mut arrays = batch.columns().to_vec();
    for (field, array) in columns {
        if fields.iter().any(|f| f.name() == field.name()) {
            return Err(Error::bug(format!("column `{}` is there already", field.name())));
        }
        if array.len() != batch.num_rows() {
            return Err(Error::bug(format!(
                "column `{}` has {} rows, the batch it is added to has {}",
                field.name(),
                array.len(),
                batch.num_rows()
            )));
        }
        fields.push(Arc::new(field));
        arrays.push(array);
    }
    let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    RecordBatch::try_new(schema, arrays)
        .map_err(|error| Error::bug(format!("columns don't fit their fields: {error}")))
}

/// The columns of `schema` from `batch`, by name, cast where a value keeps its meaning.
///
/// For rows that come from outside, such as a query, where a string may be a `Utf8View` and a
/// count an `Int32`. A cast that would lose a value is an error.
pub fn conform(batch: &RecordBatch, schema: &SchemaRef, table: &str) -> Result<RecordBatch> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = batch
            .column_by_name(field.name())
            .ok_or_else(|| missing_column(table, field, &batch.schema()))?;
        let cast = cast_with_options(column, field.data_type(), &options).map_err(|error| {
            Error::input(
                format!(
                    "column `{}` of `{table}`: expected {}, found {}: {error}",
                    field.name(),
                    field.data_type(),
                    column.data_type()
                ),
                format!("cast it to {} where the table is made", field.data_type()),
            )
        })?;
        refuse_nulls(table, field, &cast)?;
        columns.push(cast);
    }
    RecordBatch::try_new(schema.clone(), columns)
        .map_err(|error| Error::bug(format!("columns of `{table}` don't fit: {error}")))
}

/// The error for a column that isn't there.
pub(crate) fn missing_column(table: &str, expected: &Field, found: &Schema) -> Error {
    let names: Vec<&str> = found.fields().iter().map(|f| f.name().as_str()).collect();
    Error::input(
        format!("`{table}` has no column `{}` ({})", expected.name(), expected.data_type()),
        format!("it has: {}", names.join(", ")),
    )
}

/// Refuses nulls in a column that has none by its schema.
pub(crate) fn refuse_nulls(table: &str, field: &Field, column: &dyn Array) -> Result<()> {
    if field.is_nullable() || column.null_count() == 0 {
        return Ok(());
    }
    let row = (0..column.len()).find(|&i| column.is_null(i)).unwrap_or_default();
    Err(Error::input(
        format!(
            "column `{}` of `{table}`: expected a value, found null in row {row}",
            field.name()
        ),
        "leave such rows out where the table is made",
    ))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, StringViewArray};
    use arrow::datatypes::DataType;

    use super::*;
    use crate::{rows, schema};

    #[test]
    fn added_columns_are_to_the_right_and_docs_stay() {
        let batch = rows::tests::examples(1, 3);
        let field = Field::new("x", DataType::Float64, true);
        let more = with_columns(&batch, vec![(field, rows::numbers([None; 3].into_iter()))]);
        let more = more.unwrap();
        let fields = more.schema().fields().clone();
        assert_eq!(&fields[..fields.len() - 1], &schema::sampled().fields()[..]);
        assert_eq!(fields[fields.len() - 1].name(), "x");
    }

    #[test]
    fn a_second_column_of_a_name_or_of_another_length_is_refused() {
        let batch = rows::tests::examples(1, 3);
        let add = |name: &str, rows_count: usize| {
            let column = rows::numbers((0..rows_count).map(|_| None));
            with_columns(&batch, vec![(Field::new(name, DataType::Float64, true), column)])
                .unwrap_err()
                .to_string()
        };
        assert!(add("step", 3).contains("`step` is there already"));
        assert!(add("x", 2).contains("`x` has 2 rows, the batch it is added to has 3"));
    }

    #[test]
    fn conform_casts_by_name_and_names_what_is_wrong() {
        let want = Arc::new(Schema::new(vec![
            Field::new("n", DataType::Int64, false),
            Field::new("s", DataType::Utf8, true),
        ]));
        let batch = |n: Vec<Option<i32>>| {
            let s: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a"), None]));
            let n: ArrayRef = Arc::new(Int32Array::from(n));
            RecordBatch::try_from_iter_with_nullable([("s", s, true), ("n", n, true)]).unwrap()
        };
        let good = conform(&batch(vec![Some(1), Some(2)]), &want, "t").unwrap();
        assert_eq!(good.schema(), want);
        let error = conform(&batch(vec![Some(1), None]), &want, "t").unwrap_err();
        assert_eq!(error.to_string(), "column `n` of `t`: expected a value, found null in row 1");
        let narrow = batch(vec![Some(1), Some(2)]).project(&[0]).unwrap();
        let error = conform(&narrow, &want, "t").unwrap_err();
        assert_eq!(error.to_string(), "`t` has no column `n` (Int64)");
        assert_eq!(error.hint(), Some("it has: s"));
        let swapped = Arc::new(Schema::new(vec![Field::new("s", DataType::Int64, true)]));
        let error = conform(&narrow, &swapped, "t").unwrap_err().to_string();
        assert!(error.starts_with("column `s` of `t`: expected Int64, found Utf8View"), "{error}");
    }
}
