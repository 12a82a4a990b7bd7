//! Training of a byte-level BPE tokenizer, for models made from nothing.
//!
//! The trainer is our own: the one in `tokenizers` breaks ties between merges by the order of a
//! randomly seeded hash table, so that two runs could give two vocabularies.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use crate::config::VOCAB_SIZE_MAX;
use crate::error::{Error, Result};
use crate::tokenizer::{Parts, Tokenizer, byte_chars};

/// Which single bytes get a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alphabet {
    /// All 256: every text can be encoded.
    #[default]
    Full,
    /// Those of the corpus: a smaller vocabulary; encoding any other character is an error.
    Seen,
}

/// What to train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainOptions {
    /// Tokens at most, special ones and single bytes included. Fewer if the corpus has no more
    /// pairs to merge.
    pub vocab_size: usize,
    /// Tokens that are never split, such as `<think>`. They get the first ids in this order. Those
    /// with a role below are left out where a text is decoded without special tokens; all others
    /// are text of the model and stay.
    pub special_tokens: Vec<String>,
    /// Which of them begins a text, if any.
    pub bos_token: Option<String>,
    /// Which of them ends a completion, if any.
    pub eos_token: Option<String>,
    /// Which of them fills, if any.
    pub pad_token: Option<String>,
    /// Split numbers into single digits.
    pub split_digits: bool,
    /// Which single bytes get a token.
    pub alphabet: Alphabet,
    /// A pair must occur this often to become a token.
    pub pair_count_min: u64,
    /// A chat template to go with it.
    pub chat_template: Option<String>,
}

impl TrainOptions {
    /// The tokens with a role, each with its key in `tokenizer_config.json`.
    fn roles(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let roles = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("pad_token", &self.pad_token),
        ];
        roles.into_iter().filter_map(|(key, token)| Some((key, token.as_ref()?)))
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            vocab_size: 4096,
            special_tokens: vec!["<|end|>".to_owned()],
            bos_token: None,
            eos_token: Some("<|end|>".to_owned()),
            pad_token: None,
            split_digits: true,
            alphabet: Alphabet::Full,
            pair_count_min: 2,
            chat_template: None,
        }
    }
}

/// Trains a tokenizer on texts. The same texts (in any order) and options give the same tokenizer.
pub fn train<S: AsRef<str>>(
    texts: impl IntoIterator<Item = S>,
    options: &TrainOptions,
) -> Result<Tokenizer> {
    let pre_tokenizer = pre_tokenizer_json(options.split_digits);
    let words = count_words(texts, options, &pre_tokenizer)?;
    let mut vocab = first_tokens(&words, options)?;
    let merges = merge(&words, &mut vocab, options);

    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                            "use_regex": true});
    let ids: Map<String, Value> =
        vocab.tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added_tokens(options),
        "normalizer": null, "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": ids, "merges": merges,
        },
    });
    let settings = options.roles().map(|(key, token)| (key.to_owned(), json!(token))).collect();
    let chat_template = options.chat_template.clone();
    Tokenizer::from_parts(Parts { json, settings, chat_template, eos_ids: Vec::new() })
}

fn added_tokens(options: &TrainOptions) -> Vec<Value> {
    let has_role = |token: &String| options.roles().any(|(_, with_role)| with_role == token);
    let added = options.special_tokens.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": has_role(token)})
    });
    added.collect()
}

fn pre_tokenizer_json(split_digits: bool) -> Value {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                            "use_regex": true});
    if !split_digits {
        return byte_level;
    }
    let digits = json!({"type": "Digits", "individual_digits": true});
    json!({"type": "Sequence", "pretokenizers": [digits, byte_level]})
}

/// The corpus as words in GPT-2's byte characters, with how often each occurs; sorted.
fn count_words<S: AsRef<str>>(
    texts: impl IntoIterator<Item = S>,
    options: &TrainOptions,
    pre_tokenizer: &Value,
) -> Result<BTreeMap<String, u64>> {
    let pre_tokenizer: PreTokenizerWrapper = serde_json::from_value(pre_tokenizer.clone())
        .map_err(|error| Error::Bug(format!("our own pre-tokenizer is refused: {error}")))?;
    let mut words = BTreeMap::new();
    for text in texts {
        for part in without_specials(text.as_ref(), &options.special_tokens) {
            let mut split = PreTokenizedString::from(part);
            pre_tokenizer
                .pre_tokenize(&mut split)
                .map_err(|error| Error::input("a text could not be split").caused_by(error))?;
            for (word, _, _) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
                match words.get_mut(word) {
                    Some(count) => *count += 1,
                    None => drop(words.insert(word.to_owned(), 1)),
                }
            }
        }
    }
    Ok(words)
}

/// The parts of a text between special tokens.
fn without_specials<'a>(text: &'a str, specials: &[String]) -> Vec<&'a str> {
    let mut parts = vec![text];
    for special in specials.iter().filter(|special| !special.is_empty()) {
        parts = parts.into_iter().flat_map(|part| part.split(special.as_str())).collect();
    }
    parts.retain(|part| !part.is_empty());
    parts
}

struct Vocab {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocab {
    /// The id of a token, which is added if it is new.
    fn intern(&mut self, token: String) -> u32 {
        if let Some(id) = self.ids.get(&token) {
            return *id;
        }
        let id = self.tokens.len() as u32;
        self.tokens.push(token.clone());
        self.ids.insert(token, id);
        id
    }
}

/// Special tokens, then single bytes.
fn first_tokens(words: &BTreeMap<String, u64>, options: &TrainOptions) -> Result<Vocab> {
    let mut vocab = Vocab { tokens: Vec::new(), ids: HashMap::new() };
    for (i, special) in options.special_tokens.iter().enumerate() {
        if special.is_empty() || vocab.intern(special.clone()) as usize != i {
            return Err(Error::input(format!("special token {special:?} is empty or given twice")));
        }
    }
    for (role, token) in options.roles() {
        if !options.special_tokens.contains(token) {
            return Err(Error::input(format!("`{role}` is {token:?}, which is no special token"))
                .hint("list it among the special tokens"));
        }
    }
    let alphabet: BTreeSet<char> = match options.alphabet {
        Alphabet::Full => byte_chars().into_iter().collect(),
        Alphabet::Seen => words.keys().flat_map(|word| word.chars()).collect(),
    };
    for c in alphabet {
        vocab.intern(c.to_string());
    }
    if vocab.tokens.len() > options.vocab_size || options.vocab_size > VOCAB_SIZE_MAX {
        return Err(Error::input(format!(
            "the vocabulary size is {}: expected from {} (special tokens and single bytes) to \
             {VOCAB_SIZE_MAX}",
            options.vocab_size,
            vocab.tokens.len()
        )));
    }
    Ok(vocab)
}

type Pair = (u32, u32);

/// The words as tokens so far, with the index from pairs to words.
struct Corpus {
    words: Vec<(Vec<u32>, u64)>,
    pair_counts: HashMap<Pair, u64>,
    /// Words in which the pair occurs, or once did.
    pair_words: HashMap<Pair, Vec<u32>>,
    /// Candidates: how often, then the smallest pair first. Counts may be out of date.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
}

/// Merges the most frequent pair until the vocabulary is full; returns the merges in order.
fn merge(
    words: &BTreeMap<String, u64>,
    vocab: &mut Vocab,
    options: &TrainOptions,
) -> Vec<(String, String)> {
    let mut corpus = Corpus::new(words, vocab);
    let mut merges = Vec::new();
    let mut merged = HashSet::new();
    while vocab.tokens.len() < options.vocab_size {
        let Some((count, Reverse(pair))) = corpus.heap.pop() else { break };
        let count_now = corpus.pair_counts.get(&pair).copied().unwrap_or(0);
        if count_now != count {
            corpus.heap.extend((count_now > 0).then_some((count_now, Reverse(pair))));
            continue;
        }
        if count < options.pair_count_min.max(1) {
            break;
        }
        let (left, right) =
            (vocab.tokens[pair.0 as usize].clone(), vocab.tokens[pair.1 as usize].clone());
        let id = vocab.intern(format!("{left}{right}"));
        // A token that two pairs make can bring a merged pair back; it keeps its first rank.
        if merged.insert(pair) {
            merges.push((left, right));
        }
        corpus.apply(pair, id);
    }
    merges
}

impl Corpus {
    fn new(words: &BTreeMap<String, u64>, vocab: &Vocab) -> Self {
        let words = words
            .iter()
            .map(|(word, count)| {
                let ids = word.chars().map(|c| vocab.ids[c.encode_utf8(&mut [0; 4]) as &str]);
                (ids.collect(), *count)
            })
            .collect();
        let mut corpus = Corpus {
            words,
            pair_counts: HashMap::new(),
            pair_words: HashMap::new(),
            heap: BinaryHeap::new(),
        };
        for word_idx in 0..corpus.words.len() {
            corpus.count(word_idx);
        }
        let candidates = corpus.pair_counts.iter().map(|(pair, count)| (*count, Reverse(*pair)));
        corpus.heap = candidates.collect();
        corpus
    }

    fn count(&mut self, word_idx: usize) {
        let (ids, count) = &self.words[word_idx];
        for pair in ids.windows(2).map(|pair| (pair[0], pair[1])) {
            *self.pair_counts.entry(pair).or_default() += count;
            self.pair_words.entry(pair).or_default().push(word_idx as u32);
        }
    }

    fn uncount(&mut self, word_idx: usize) {
        let (ids, count) = &self.words[word_idx];
        for pair in ids.windows(2).map(|pair| (pair[0], pair[1])) {
            let total = self.pair_counts.get_mut(&pair).expect("the pair was counted");
            *total -= count;
        }
    }

    /// Replaces a pair by a token in every word, and makes candidates of the pairs that arise.
    fn apply(&mut self, pair: Pair, id: u32) {
        let mut word_idxs = self.pair_words.remove(&pair).unwrap_or_default();
        word_idxs.sort_unstable();
        word_idxs.dedup();
        let mut changed = BTreeSet::new();
        for word_idx in word_idxs.into_iter().map(|idx| idx as usize) {
            self.uncount(word_idx);
            let ids = &mut self.words[word_idx].0;
            *ids = replaced(ids, pair, id);
            let with_id = ids.windows(2).filter(|window| window.contains(&id));
            changed.extend(with_id.map(|window| (window[0], window[1])));
            self.count(word_idx);
        }
        for pair in changed {
            self.heap.push((self.pair_counts[&pair], Reverse(pair)));
        }
    }
}

fn replaced(ids: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(ids.len());
    let mut rest = ids;
    while let [first, after @ ..] = rest {
        if *first == pair.0 && after.first() == Some(&pair.1) {
            out.push(id);
            rest = &after[1..];
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vocab_size: usize, alphabet: Alphabet) -> TrainOptions {
        TrainOptions { vocab_size, alphabet, ..TrainOptions::default() }
    }

    const TEXTS: [&str; 3] =
        ["the cat and the hat", "the theme of the thesis: 1234<|end|>", "naïve café, the end"];

    #[test]
    fn the_most_frequent_pair_becomes_the_first_token() {
        let tokenizer = train(TEXTS, &options(300, Alphabet::Full)).unwrap();
        assert_eq!(tokenizer.token_id("<|end|>"), Some(0));
        assert_eq!(tokenizer.token_id("!"), Some(1));
        // "th" is as frequent; `h` has the smaller id.
        assert_eq!(tokenizer.token_bytes(257), b"he");
        assert_eq!(tokenizer.token_bytes(258), b"the");
        assert_eq!(tokenizer.eos_ids(), [0]);
    }

    #[test]
    fn only_tokens_with_a_role_are_left_out_of_decoded_text() {
        let added = ["<|bos|>", "<think>", "</think>", "<|end|>", "<answer>", "</answer>", "<pad>"];
        let options = TrainOptions {
            special_tokens: added.map(String::from).to_vec(),
            bos_token: Some("<|bos|>".into()),
            pad_token: Some("<pad>".into()),
            ..options(300, Alphabet::Full)
        };
        let dir = tempfile::tempdir().unwrap();
        train(TEXTS, &options).unwrap().save(dir.path()).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let text = "<|bos|><think>the cat</think> <answer>12</answer><|end|><pad>";
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids.iter().filter(|id| (**id as usize) < added.len()).count(), added.len());
        let kept = "<think>the cat</think> <answer>12</answer>";
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), kept);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        let special: Vec<u32> = (0..300).filter(|id| tokenizer.is_special(*id)).collect();
        assert_eq!(special, [0, 3, 6]);
    }

    #[test]
    fn tokenizers_differ_where_an_id_stands_for_other_bytes() {
        let of = |texts: [&str; 3], size| train(texts, &options(size, Alphabet::Full)).unwrap();
        let tokenizer = of(TEXTS, 260);
        assert_eq!(tokenizer.difference(&of(TEXTS, 260)), None);
        let found = tokenizer.difference(&of(TEXTS, 259)).unwrap();
        assert_eq!(found, "it has 259 tokens, not 260");
        let other = of(["zzzz zzzz", "yyyy yyyy", "xxxx xxxx"], 260);
        let spelled = |of: &Tokenizer, id| of.decode(&[id], false).unwrap();
        // Below are single bytes, which are the same in both.
        let is_merged =
            |&id: &u32| spelled(&tokenizer, id).len() > 1 || spelled(&other, id).len() > 1;
        let id =
            (0..260).filter(is_merged).find(|&id| spelled(&tokenizer, id) != spelled(&other, id));
        let id = id.unwrap();
        let [others, own] = [&other, &tokenizer].map(|of| spelled(of, id));
        let found = tokenizer.difference(&other).unwrap();
        assert_eq!(found, format!("its token {id} is {others:?}, not {own:?}"));
    }

    #[test]
    fn a_role_without_its_token_is_refused() {
        let pad_token = Some("<pad>".to_owned());
        let error = train(TEXTS, &TrainOptions { pad_token, ..options(300, Alphabet::Full) });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`pad_token` is \"<pad>\""), "{error}");
    }

    #[test]
    fn every_text_comes_back() {
        let tokenizer = train(TEXTS, &options(280, Alphabet::Full)).unwrap();
        for text in ["the cat", "你好 🎉 \u{0}\t", "12 345<|end|>", ""] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
            let bytes: Vec<u8> =
                ids.iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect();
            assert_eq!(bytes, text.as_bytes());
        }
    }

    #[test]
    fn digits_stay_single() {
        let texts = ["1234 1234 1234 1234"];
        let tokenizer = train(texts, &options(300, Alphabet::Full)).unwrap();
        assert_eq!(tokenizer.encode("1234", false).unwrap().len(), 4);
        let whole = TrainOptions { split_digits: false, ..options(300, Alphabet::Full) };
        assert_eq!(train(texts, &whole).unwrap().encode("1234", false).unwrap().len(), 1);
    }

    #[test]
    fn what_a_seen_alphabet_lacks_is_an_error_and_not_lost() {
        let tokenizer = train(["1+2=3", "4*5"], &options(64, Alphabet::Seen)).unwrap();
        assert_eq!(tokenizer.vocab_len(), 1 + 8);
        let ids = tokenizer.encode("5+1<|end|>", true).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "5+1");
        let error = tokenizer.encode("5-1", true).unwrap_err().to_string();
        assert!(error.contains("'-'"), "{error}");
    }

    #[test]
    fn training_is_deterministic() {
        let corpus: Vec<String> =
            (0..400u32).map(|i| format!("{} aba abab baba {}", i * i % 97, i % 7)).collect();
        let json = |texts: Vec<&String>| {
            let dir = tempfile::tempdir().unwrap();
            let tokenizer = train(texts, &options(330, Alphabet::Full)).unwrap();
            tokenizer.save(dir.path()).unwrap();
            std::fs::read(dir.path().join("tokenizer.json")).unwrap()
        };
        let first = json(corpus.iter().collect());
        assert!(first == json(corpus.iter().collect()));
        assert!(first == json(corpus.iter().rev().collect()));
    }

    #[test]
    fn a_vocabulary_without_room_is_refused() {
        let error = train(TEXTS, &options(256, Alphabet::Full)).unwrap_err().to_string();
        assert!(error.contains("expected from 257"), "{error}");
    }
}
