//! Scalar functions for curation.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray};
use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::ScalarUDF;

use super::ngrams::{LEN_TERMS_MAX, ngram_jaccard};
use super::terms::{normalised, stable_hash, stable_share};
use crate::error::HINT;
use crate::functions::{Function, function, pairs};

const NORMALISED: Function = Function {
    name: "normalised",
    arguments: &["text"],
    output: DataType::Utf8,
    doc: "The text's words, numbers and signs in small letters, with a blank between them: what texts that say the same \
          have in common. Punctuation of sentences and marks of TeX and Markdown are left out; letters with accents \
          are composed (Unicode's form C), those of East Asian width are plain ones.",
};
const TEXT_HASH: Function = Function {
    name: "text_hash",
    arguments: &["text"],
    output: DataType::Int64,
    doc: "A hash of the text's bytes that is the same in every version and on every machine: XXH64 with seed 0, its \
          bits as a signed number. Of `normalised(text)` it is the same for texts that differ in punctuation, blanks \
          and capitals alone.",
};
const HASH_SHARE: Function = Function {
    name: "hash_share",
    arguments: &["id", "salt"],
    output: DataType::Float64,
    doc: "A number in [0, 1) that depends on both alone, in every version and on every machine, and is spread evenly \
          over ids: `hash_share(id, 'split') < 0.9` is a training set, `hash_share(id, 'mixture') < 0.25` a quarter of \
          the rows. Other salts give other, independent numbers. The upper 53 bits of XXH64 of `id`, with XXH64 of \
          `salt` as seed, divided by 2^53.",
};
const NGRAM_JACCARD: Function = Function {
    name: "ngram_jaccard",
    arguments: &["a", "b", "n"],
    output: DataType::Float64,
    doc: "How alike two texts are, in [0, 1]: the share of n-grams of `n` words, numbers and signs (as `normalised` has \
          them) that both have, of all that either has; a text with fewer is one n-gram as a whole. What \
          `mark_duplicates` compares. Null where a text has none.",
};
const LETTER_SHARE: Function = Function {
    name: "letter_share",
    arguments: &["text"],
    output: DataType::Float64,
    doc: "The share of the text's characters, blanks excepted, that are letters: low for tables, logs and noise. Null \
          where the text has only blanks.",
};
const MEAN_WORD_LEN: Function = Function {
    name: "mean_word_len",
    arguments: &["text"],
    output: DataType::Float64,
    doc: "Mean number of characters of the text's words, as `word_count` counts them: some 4 to 5 in plain English, far \
          more where blanks are missing. Null where the text has no words.",
};

/// What the functions are.
pub(crate) const REFERENCE: [Function; 6] =
    [NORMALISED, TEXT_HASH, HASH_SHARE, NGRAM_JACCARD, LETTER_SHARE, MEAN_WORD_LEN];

/// The functions.
pub(crate) fn all() -> [ScalarUDF; 6] {
    [
        function(NORMALISED, |texts| {
            let normal = texts[0].iter().map(|text| text.map(normalised));
            Ok(Arc::new(StringArray::from_iter(normal)))
        }),
        function(TEXT_HASH, |texts| {
            let hashes = texts[0].iter().map(|text| Some(stable_hash(text?.as_bytes()) as i64));
            Ok(Arc::new(Int64Array::from_iter(hashes)))
        }),
        function(HASH_SHARE, |texts| {
            let shares = pairs(texts).map(|pair| pair.map(|(id, salt)| stable_share(id, salt)));
            Ok(Arc::new(Float64Array::from_iter(shares)))
        }),
        function(NGRAM_JACCARD, |texts| {
            let alike = pairs(texts).zip(&texts[2]).map(|(pair, n)| {
                let Some(((a, b), n)) = pair.zip(n) else { return Ok(None) };
                let len = n.trim().parse().ok().filter(|n| (1..=LEN_TERMS_MAX).contains(n));
                let len = len.ok_or_else(|| {
                    DataFusionError::Execution(format!(
                        "ngram_jaccard: n is `{n}`{HINT}write a whole number from 1 to {LEN_TERMS_MAX}"
                    ))
                })?;
                Ok(ngram_jaccard(a, b, len))
            });
            Ok(Arc::new(alike.collect::<Result<Float64Array>>()?))
        }),
        function(LETTER_SHARE, |texts| Ok(shares(&texts[0], letter_share))),
        function(MEAN_WORD_LEN, |texts| Ok(shares(&texts[0], mean_word_len))),
    ]
}

fn shares(texts: &StringArray, share: fn(&str) -> Option<f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter(texts.iter().map(|text| share(text?))))
}

fn letter_share(text: &str) -> Option<f64> {
    let (mut letters_count, mut all_count) = (0_usize, 0_usize);
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        letters_count += usize::from(c.is_alphabetic());
        all_count += 1;
    }
    ratio(letters_count, all_count)
}

fn mean_word_len(text: &str) -> Option<f64> {
    let (mut chars_count, mut words_count) = (0, 0);
    for word in aha_reward::text::words(text) {
        chars_count += word.chars().count();
        words_count += 1;
    }
    ratio(chars_count, words_count)
}

fn ratio(count: usize, of: usize) -> Option<f64> {
    (of > 0).then(|| count as f64 / of as f64)
}
