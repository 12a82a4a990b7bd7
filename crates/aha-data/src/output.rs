//! A query's answer, written for people and for other programs.

use std::io::Write;
use std::sync::Arc;

use aha_rollout::part::properties;
use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, FieldRef, Float32Type, Float64Type, Schema, SchemaRef,
};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::WriterBuilder;
use arrow::json::writer::{Encoder, EncoderFactory, EncoderOptions, JsonArray, NullableEncoder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::parquet::arrow::ArrowWriter;

use crate::{Error, Result};

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: a table with lines.
    Table,
    /// With a header line; lists as text.
    Csv,
    /// One array of objects; every object has every column.
    Json,
    /// An object of `columns`, each with its name and its Arrow type, and `rows` as of `Json`.
    TypedJson,
    /// A Parquet file.
    Parquet,
    /// A stream in Arrow's IPC format.
    Arrow,
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "table" => Ok(Self::Table),
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            "typed-json" => Ok(Self::TypedJson),
            "parquet" => Ok(Self::Parquet),
            "arrow" => Ok(Self::Arrow),
            _ => Err(Error::input(
                format!("no format `{name}`"),
                "there are: table, csv, json, typed-json, parquet, arrow",
            )),
        }
    }
}

/// Writes `batches`, all of which have `schema`, to `writer`.
pub fn write_result(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    format: Format,
    writer: &mut (impl Write + Send),
) -> Result<()> {
    match format {
        Format::Table => write_table(schema, batches, writer),
        Format::Csv => write_csv(schema, batches, writer),
        Format::Json => write_json(batches, writer).map_err(|error| failed(&error)),
        Format::TypedJson => write_typed_json(schema, batches, writer),
        Format::Parquet => write_parquet(schema, batches, writer),
        Format::Arrow => write_arrow(schema, batches, writer).map_err(|error| failed(&error)),
    }
}

fn write_arrow(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    writer: &mut impl Write,
) -> Result<(), ArrowError> {
    let mut stream = StreamWriter::try_new(writer, schema)?;
    for batch in batches {
        stream.write(batch)?;
    }
    stream.finish()
}

/// Text in the table, names of columns included, is what a model or a file holds: control characters
/// are shown, not sent to the terminal, where they could move the cursor or worse.
fn write_table(schema: &SchemaRef, batches: &[RecordBatch], writer: &mut impl Write) -> Result<()> {
    let fields = schema.fields().iter().map(|field| {
        let mut name = String::new();
        escaped(field.name(), &mut name);
        Field::new(name, DataType::Utf8, true)
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let shown = batches.iter().map(|batch| {
        let columns = batch.columns().iter().map(|column| texts(column, escaped));
        RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
    });
    let mut shown = shown.collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
    if shown.is_empty() {
        shown.push(RecordBatch::new_empty(schema));
    }
    let table = pretty_format_batches(&shown).map_err(|error| failed(&error))?;
    writeln!(writer, "{table}").map_err(|error| refused(&error))
}

fn write_csv(schema: &SchemaRef, batches: &[RecordBatch], writer: &mut impl Write) -> Result<()> {
    let flat = as_text(schema, DataType::is_nested);
    let mut csv = arrow::csv::WriterBuilder::new().with_header(true).build(writer);
    for batch in batches {
        let columns = batch.columns().iter().map(|column| {
            if column.data_type().is_nested() {
                texts(column, |text, out| out.push_str(text))
            } else {
                Ok(column.clone())
            }
        });
        let batch = columns
            .collect::<Result<Vec<_>, _>>()
            .and_then(|columns| RecordBatch::try_new(flat.clone(), columns));
        batch.and_then(|batch| csv.write(&batch)).map_err(|error| failed(&error))?;
    }
    if batches.is_empty() {
        let header = csv.write(&RecordBatch::new_empty(flat));
        header.map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn write_json(batches: &[RecordBatch], writer: &mut impl Write) -> Result<(), ArrowError> {
    let mut json = WriterBuilder::new()
        .with_explicit_nulls(true)
        .with_encoder_factory(Arc::new(WithWords))
        .build::<_, JsonArray>(&mut *writer);
    for batch in batches {
        json.write(batch)?;
    }
    json.finish()?;
    writer.write_all(b"\n")?;
    Ok(())
}

fn write_typed_json(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    writer: &mut impl Write,
) -> Result<()> {
    let columns = schema.fields().iter().map(
        |field| serde_json::json!({ "name": field.name(), "type": field.data_type().to_string() }),
    );
    let columns = serde_json::Value::from_iter(columns);
    write!(writer, "{{\"columns\":{columns},\"rows\":").map_err(|error| refused(&error))?;
    write_json(batches, writer).map_err(|error| failed(&error))?;
    writer.write_all(b"}\n").map_err(|error| refused(&error))
}

/// JSON has no number for what is not finite: a null there would look like a value that is missing, so it is
/// one of the texts "NaN", "Infinity" and "-Infinity".
#[derive(Debug)]
struct WithWords;

impl EncoderFactory for WithWords {
    fn make_default_encoder<'a>(
        &self,
        _: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Float64 => Box::new(Floats(array.as_primitive::<Float64Type>())),
            DataType::Float32 => Box::new(Floats(array.as_primitive::<Float32Type>())),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct Floats<'a, T: ArrowPrimitiveType>(&'a PrimitiveArray<T>);

impl<T: ArrowPrimitiveType> Encoder for Floats<'_, T>
where
    T::Native: Into<f64> + serde::Serialize,
{
    fn encode(&mut self, idx: usize, out: &mut Vec<u8>) {
        let value = self.0.value(idx);
        match value.into() {
            x if x.is_nan() => out.extend_from_slice(b"\"NaN\""),
            f64::INFINITY => out.extend_from_slice(b"\"Infinity\""),
            f64::NEG_INFINITY => out.extend_from_slice(b"\"-Infinity\""),
            _ => serde_json::to_writer(out, &value).expect("a finite number is JSON"),
        }
    }
}

fn write_parquet(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    writer: &mut (impl Write + Send),
) -> Result<()> {
    let write = || {
        let mut parquet = ArrowWriter::try_new(writer, schema.clone(), Some(properties(schema)))?;
        for batch in batches {
            parquet.write(batch)?;
        }
        parquet.close()
    };
    write().map(drop).map_err(|error| Error::Environment {
        message: format!("can't write the answer as Parquet: {error}"),
        hint: None,
        is_full: aha_rollout::is_full(&error),
    })
}

fn as_text(schema: &SchemaRef, is_text: impl Fn(&DataType) -> bool) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        if is_text(field.data_type()) {
            Arc::new(Field::new(field.name(), DataType::Utf8, true))
        } else {
            field.clone()
        }
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The values of `column` as texts, each passed through `write`; nulls stay nulls.
fn texts(column: &ArrayRef, write: impl Fn(&str, &mut String)) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let texts = (0..column.len()).map(|row| {
        if column.is_null(row) {
            return Ok(None);
        }
        let mut text = String::new();
        write(&formatter.value(row).try_to_string()?, &mut text);
        Ok(Some(text))
    });
    Ok(Arc::new(StringArray::from(texts.collect::<Result<Vec<_>, ArrowError>>()?)))
}

fn escaped(text: &str, out: &mut String) {
    for c in text.chars() {
        // Besides control characters: marks that turn the direction of the text around.
        let is_hidden =
            c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if is_hidden {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

fn failed(error: &ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => refused(error),
        error => Error::Input {
            message: format!("the answer can't be written: {error}"),
            hint: Some("try `--format parquet`, which holds every type".to_owned()),
            location: None,
        },
    }
}

fn refused(error: &std::io::Error) -> Error {
    Error::Environment {
        message: format!("can't write the answer: {error}"),
        hint: None,
        is_full: false,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, Float64Array, Int64Array, ListArray, UInt32Array};
    use arrow::buffer::OffsetBuffer;
    use expect_test::{Expect, expect};

    use super::*;

    fn answer() -> RecordBatch {
        let item = Arc::new(Field::new("item", DataType::UInt32, false));
        let offsets = OffsetBuffer::from_lengths([2, 0]);
        let ids = ListArray::new(item, offsets, Arc::new(UInt32Array::from(vec![7, 8])), None);
        let columns: [(&str, ArrayRef); 4] = [
            ("step", Arc::new(Int64Array::from(vec![1, 2]))),
            ("reward", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
            ("completion", Arc::new(StringArray::from(vec!["a\u{1b}[2J,\n\"b\"", "wait…"]))),
            ("ids", Arc::new(ids)),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap()
    }

    fn check(format: Format, batches: &[RecordBatch], expected: Expect) {
        let mut out = Vec::new();
        write_result(&answer().schema(), batches, format, &mut out).unwrap();
        expected.assert_eq(&String::from_utf8(out).unwrap());
    }

    #[test]
    fn a_table_shows_control_characters_instead_of_sending_them() {
        check(
            Format::Table,
            &[answer()],
            expect![[r#"
            +------+--------+------------------+--------+
            | step | reward | completion       | ids    |
            +------+--------+------------------+--------+
            | 1    | 0.5    | a\u{1b}[2J,\n"b" | [7, 8] |
            | 2    |        | wait…            | []     |
            +------+--------+------------------+--------+
        "#]],
        );
        check(
            Format::Table,
            &[],
            expect![[r#"
            +------+--------+------------+-----+
            | step | reward | completion | ids |
            +------+--------+------------+-----+
            +------+--------+------------+-----+
        "#]],
        );
    }

    #[test]
    fn a_table_shows_control_characters_in_names_of_columns() {
        let schema = Arc::new(Schema::new(vec![Field::new("a\u{1b}[2J", DataType::Utf8, true)]));
        let mut out = Vec::new();
        write_result(&schema, &[], Format::Table, &mut out).unwrap();
        let shown = String::from_utf8(out).unwrap();
        assert!(shown.contains("| a\\u{1b}[2J |") && !shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn csv_quotes_and_writes_lists_as_text() {
        check(
            Format::Csv,
            &[answer()],
            expect![[r#"
            step,reward,completion,ids
            1,0.5,"a[2J,
            ""b""","[7, 8]"
            2,,wait…,[]
        "#]],
        );
        check(
            Format::Csv,
            &[],
            expect![[r#"
            step,reward,completion,ids
        "#]],
        );
    }

    #[test]
    fn json_is_one_array_with_every_column() {
        check(
            Format::Json,
            &[answer()],
            expect![[r#"
            [{"step":1,"reward":0.5,"completion":"a\u001b[2J,\n\"b\"","ids":[7,8]},{"step":2,"reward":null,"completion":"wait…","ids":[]}]
        "#]],
        );
        check(
            Format::Json,
            &[],
            expect![[r#"
            []
        "#]],
        );
    }

    #[test]
    fn typed_json_says_what_its_columns_are() {
        let answered = |batches: &[RecordBatch]| -> serde_json::Value {
            let mut out = Vec::new();
            write_result(&answer().schema(), batches, Format::TypedJson, &mut out).unwrap();
            serde_json::from_slice(&out).unwrap()
        };
        let found = answered(&[answer()]);
        assert_eq!(found["columns"][1], serde_json::json!({ "name": "reward", "type": "Float64" }));
        assert_eq!(found["rows"][1]["completion"], "wait…");
        let none = answered(&[]);
        assert_eq!((&none["columns"], none["rows"].as_array()), (&found["columns"], Some(&vec![])));
    }

    /// In lists as well, and in either width; what is missing stays null.
    #[test]
    fn json_has_words_for_numbers_that_it_can_not_write() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let item = Arc::new(Field::new("item", DataType::Float32, false));
        let values = Arc::new(Float32Array::from(vec![nan, -inf, 0.1, inf, 1.0]));
        let lists = ListArray::new(item, OffsetBuffer::from_lengths([4, 1]), values, None);
        let value = Float64Array::from(vec![Some(f64::NAN), None]);
        let columns: [(&str, ArrayRef); 2] =
            [("value", Arc::new(value)), ("list", Arc::new(lists))];
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap();
        check(
            Format::Json,
            &[batch],
            expect![[r#"
            [{"value":"NaN","list":["NaN","-Infinity",0.1,"Infinity"]},{"value":null,"list":[1.0]}]
        "#]],
        );
    }

    #[test]
    fn parquet_reads_back() {
        let mut out = Vec::new();
        let batch = answer();
        write_result(&batch.schema(), std::slice::from_ref(&batch), Format::Parquet, &mut out)
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        fs_err::write(&path, out).unwrap();
        assert_eq!(aha_rollout::read::read_part(&path).unwrap(), [batch]);
    }

    #[test]
    fn an_arrow_stream_reads_back() {
        let mut out = Vec::new();
        let batch = answer();
        let schema = batch.schema();
        write_result(&schema, std::slice::from_ref(&batch), Format::Arrow, &mut out).unwrap();
        let reader = arrow::ipc::reader::StreamReader::try_new(out.as_slice(), None).unwrap();
        assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), [batch]);
        let mut out = Vec::new();
        write_result(&schema, &[], Format::Arrow, &mut out).unwrap();
        let reader = arrow::ipc::reader::StreamReader::try_new(out.as_slice(), None).unwrap();
        assert_eq!(reader.schema(), schema);
    }

    #[test]
    fn a_format_is_read_by_name() {
        assert_eq!("json".parse::<Format>().unwrap(), Format::Json);
        assert!("xml".parse::<Format>().unwrap_err().hint().unwrap().contains("parquet"));
    }
}
