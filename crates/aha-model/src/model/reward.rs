//! Reward models: a decoder whose head makes one number of a whole sequence.
//!
//! The score of a sequence is `score.weight` times the normalised final hidden state of its last token,
//! without bias: what transformers' sequence classification gives for a single label. Whoever encodes a
//! sequence decides what its last token is; the end token belongs to it.
//!
//! transformers looks for that token from the right, past whatever equals `pad_token_id`: that must be no
//! token that a sequence ends in, and [`Model::set_pad`] says which.

use std::path::Path;

use aha_compute::random::Philox;
use aha_compute::{Device, ParamId, Params, Tape, Tensor, Var};
use serde_json::{Value, json};

use super::{Batch, Model};
use crate::config::{Head, LM_HEAD_WEIGHT, SCORE_WEIGHT};
use crate::error::{Error, Result};

impl Model {
    /// Loads a model, which must have that head.
    pub fn load_with_head(path: &Path, device: &Device, head: Head) -> Result<Model> {
        let model = Model::load_any(path, device)?;
        model.check_head(head).map_err(|error| error.at(path))?;
        Ok(model)
    }

    /// Fails for a model that has another head.
    pub fn check_head(&self, head: Head) -> Result<()> {
        match (head, self.config.head) {
            (Head::Language, Head::Score) => {
                Err(Error::input("a reward model, where one that writes text is expected")
                    .hint("a reward model is for rewards of kind `model`"))
            }
            (Head::Score, Head::Language) => {
                Err(Error::input("a language model, where a reward model is expected")
                    .hint("train one with a stage of kind `reward-model`"))
            }
            _ => Ok(()),
        }
    }

    /// Whether this is a reward model.
    pub fn is_reward(&self) -> bool {
        self.config.head == Head::Score
    }

    /// A reward model of a language model: the same weights, and a new head in place of its own, drawn from
    /// a normal distribution with the config's `initializer_range`, as transformers does.
    pub fn to_reward(&self, random: Philox) -> Result<Model> {
        let std = f64::from(self.config.initializer_range);
        let family = random.derive(SCORE_WEIGHT);
        let draw = |i: usize| (family.normal(i as u64) * std) as f32;
        self.with_score_head((0..self.config.hidden_size).map(draw).collect())
    }

    /// A critic of a language model: the same weights, and a head of zeros in place of its own, so that it expects
    /// nothing before it has learnt anything.
    pub fn to_critic(&self) -> Result<Model> {
        self.with_score_head(vec![0.0; self.config.hidden_size])
    }

    fn with_score_head(&self, values: Vec<f32>) -> Result<Model> {
        let mut config = self.config.clone();
        config.head = Head::Score;
        config.extra.insert("id2label".to_owned(), json!({"0": "LABEL_0"}));
        config.extra.insert("label2id".to_owned(), json!({"LABEL_0": 0}));
        let mut params = Params::default();
        for id in self.params.ids().filter(|id| self.params.name(*id) != LM_HEAD_WEIGHT) {
            params.push(self.params.name(id), self.params.value(id).clone());
        }
        params.push(SCORE_WEIGHT, Tensor::from_slice(&self.device, &[1, values.len()], &values));
        let model = Model::over(config, &self.device, params, None)?;
        Ok(Model { origin: self.origin.clone(), ..model })
    }

    /// Sets the token that transformers is to fill a batch with. No scored sequence may end in it.
    pub fn set_pad(&mut self, id: Option<u32>) {
        self.config.pad_id = id;
    }

    /// Sets a key of our own in the config, which is written with the model.
    pub fn annotate(&mut self, key: &str, value: Value) {
        self.config.extra.insert(key.to_owned(), value);
    }

    fn score_head(&self) -> ParamId {
        assert!(self.is_reward(), "a language model has no head that scores");
        self.head
    }

    /// Scores `(S, 1)` of `S` whole sequences, packed one after the other and none of them empty.
    pub fn score<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        ids: &[u32],
        lens: &[usize],
        checkpointing: bool,
    ) -> Var {
        assert!(lens.iter().all(|&len| len > 0), "an empty sequence has no last token");
        let mut end = 0;
        let ends = lens.iter().map(|len| {
            end += len;
            end - 1
        });
        let ends: Vec<usize> = ends.collect();
        let hidden = self.hidden(tape, Batch::packed(ids, lens.iter().copied()), checkpointing);
        let last = tape.select_rows(&hidden, &ends.into());
        self.score_hidden(tape, &last)
    }

    /// Scores `(T, 1)` of final hidden states `(T, C)`, which a critic gives at any token of a sequence.
    pub fn score_hidden<'m>(&'m self, tape: &mut Tape<'m>, hidden: &Var) -> Var {
        tape.head_product(hidden, self.score_head())
    }

    /// Scores of whole sequences that run through the model at once. The same sequence has the same bits
    /// whatever is beside it.
    pub fn scores(&self, sequences: &[&[u32]]) -> Result<Vec<f32>> {
        self.check_ids(sequences.iter().flat_map(|s| s.iter().copied()))?;
        self.check_lens(sequences.iter().map(|s| s.len()))?;
        if sequences.iter().any(|s| s.is_empty()) {
            return Err(Error::input("an empty sequence: expected at least one token to score"));
        }
        let lens: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        let mut tape = Tape::inference(&self.device, &self.params);
        let scores = self.score(&mut tape, &sequences.concat(), &lens, false);
        let scores = scores.value().host().into_owned();
        self.check_device()?;
        Ok(scores)
    }
}
