//! What SQL can ask about a text. Each function takes text of any kind, columns or literals, and
//! gives null where an argument is null.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, StringBuilder,
};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::cast::as_string_array;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

use crate::error::HINT;

/// Counts the tokens of a text. The error is a message for people.
pub type Tokenizer = Arc<dyn Fn(&str) -> Result<usize, String> + Send + Sync>;

/// The functions that need nothing but their arguments.
pub(crate) fn all() -> Vec<ScalarUDF> {
    vec![
        function("extract_boxed", 1, DataType::Utf8, |texts| {
            strings(texts[0].iter().map(|text| aha_reward::extract_boxed(text?)))
        }),
        function("extract_tag", 2, DataType::Utf8, |texts| {
            strings(pairs(texts).map(|pair| {
                let (text, tag) = pair?;
                aha_reward::extract_tag(text, tag)
            }))
        }),
        function("math_equal", 2, DataType::Boolean, |texts| {
            let equal = pairs(texts).map(|pair| pair.map(|(a, b)| aha_reward::math_equal(a, b)));
            Ok(Arc::new(BooleanArray::from_iter(equal)))
        }),
        function("language_share", 2, DataType::Float64, |texts| {
            let shares = pairs(texts).map(|pair| {
                let (text, language) = pair?;
                aha_reward::language_share(text, language)
            });
            Ok(Arc::new(Float64Array::from_iter(shares)))
        }),
        function("reflection_count", 1, DataType::Int64, |texts| {
            let counts = texts[0].iter();
            let counts = counts.map(|text| text.map(|t| aha_reward::reflection_count(t) as i64));
            Ok(Arc::new(Int64Array::from_iter(counts)))
        }),
    ]
}

/// `token_count(text)`. Without a tokenizer, calling it is an error that says what to do.
pub(crate) fn token_count(tokenizer: Option<Tokenizer>) -> ScalarUDF {
    function("token_count", 1, DataType::Int64, move |texts| {
        let Some(tokenizer) = &tokenizer else {
            return Err(DataFusionError::Execution(format!(
                "token_count: no tokenizer is set{HINT}ask a run that has made a model, or put the \
                 query after a stage that has one; length(text) counts characters"
            )));
        };
        let counts = texts[0].iter().map(|text| {
            let Some(text) = text else { return Ok(None) };
            let count = tokenizer(text)
                .map_err(|why| DataFusionError::Execution(format!("token_count: {why}")))?;
            Ok(Some(count as i64))
        });
        let counts: Int64Array = counts.collect::<DataFusionResult<Vec<_>>>()?.into();
        Ok(Arc::new(counts))
    })
}

/// A function of `arity` texts. DataFusion casts what isn't `Utf8` before it calls, so that
/// `LargeUtf8`, `Utf8View`, dictionaries and numbers come as text too.
fn function(
    name: &'static str,
    arity: usize,
    output: DataType,
    body: impl Fn(&[StringArray]) -> DataFusionResult<ArrayRef> + Send + Sync + 'static,
) -> ScalarUDF {
    let call = move |args: &[ColumnarValue]| {
        let is_scalar = args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let texts = arrays.iter().map(|array| Ok(as_string_array(array)?.clone()));
        let answer = body(&texts.collect::<DataFusionResult<Vec<_>>>()?)?;
        if is_scalar {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&answer, 0)?));
        }
        Ok(ColumnarValue::Array(answer))
    };
    // Each function is one of its arguments alone; a tokenizer is set before queries are planned.
    create_udf(name, vec![DataType::Utf8; arity], output, Volatility::Immutable, Arc::new(call))
}

/// Rows of two columns; none where either is null.
fn pairs(texts: &[StringArray]) -> impl Iterator<Item = Option<(&str, &str)>> {
    texts[0].iter().zip(texts[1].iter()).map(|(a, b)| a.zip(b))
}

fn strings<'a>(values: impl Iterator<Item = Option<&'a str>>) -> DataFusionResult<ArrayRef> {
    let mut builder = StringBuilder::new();
    values.for_each(|value| builder.append_option(value));
    Ok(Arc::new(builder.finish()) as Arc<dyn Array>)
}
