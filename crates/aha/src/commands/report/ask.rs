//! A query's answer as typed rows, and names and texts as SQL has them.

use aha_data::{Format, Session, write_result};
use anyhow::Context;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::Number;

/// What the parts of a table that a query is about are registered as: a name that no table of a run has.
pub const SHOWN: &str = "(shown)";

/// The rows of an answer, a column by its name.
pub async fn rows<T: DeserializeOwned>(session: &Session, sql: &str) -> anyhow::Result<Vec<T>> {
    let (schema, batches) = session.query(sql).await?;
    let mut json = Vec::new();
    write_result(&schema, &batches, Format::Json, &mut json)?;
    serde_json::from_slice(&json)
        .with_context(|| format!("the report can't read the answer to `{sql}`"))
}

/// A name of a table or column in a query.
pub fn name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in a query.
pub fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A number that need not be finite: as [`Number`] both ways, and rounded to six digits for the page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Num(pub f64);

impl Serialize for Num {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Number(format!("{:.5e}", self.0).parse().unwrap_or(self.0)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Num {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Word(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(value) => Ok(Self(value)),
            Written::Word(word) => match word.as_str() {
                "NaN" => Ok(Self(f64::NAN)),
                "Infinity" => Ok(Self(f64::INFINITY)),
                "-Infinity" => Ok(Self(f64::NEG_INFINITY)),
                _ => Err(D::Error::custom(format!("`{word}` is no number"))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_end_where_they_should() {
        assert_eq!(name(r#"a"; DROP"#), r#""a""; DROP""#);
        assert_eq!(text("it's"), "'it''s'");
    }

    #[test]
    fn what_is_not_finite_goes_there_and_back() {
        let json = r#"[0.5,"NaN","Infinity","-Infinity",3]"#;
        let numbers: Vec<Num> = serde_json::from_str(json).unwrap();
        assert!(numbers[1].0.is_nan() && numbers[4] == Num(3.0), "{numbers:?}");
        let again = serde_json::to_string(&numbers).unwrap();
        assert_eq!(again, r#"[0.5,"NaN","Infinity","-Infinity",3.0]"#);
        assert_eq!(serde_json::to_string(&Num(1.0 / 3.0)).unwrap(), "0.333333");
        assert!(serde_json::from_str::<Num>(r#""much""#).is_err());
    }
}
