//! The decoder as one forward pass over the ops of `aha-compute`.
//!
//! Llama, Qwen2 (bias on q, k, v) and Qwen3 (RMSNorm over query and key heads) differ by switches of the
//! [`Config`]; learner, sampler and scorer all call [`Model::hidden`]. What is different in a reward model,
//! which has a scalar head in place of the LM head, is in `reward`; low-rank adapters are in [`lora`]; steps of
//! decoding on a CUDA device, captured once and done again, are in [`decode`].

pub mod decode;
pub mod lora;
mod reward;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aha_compute::ops::attention::{self, Layout};
use aha_compute::ops::rope;
use aha_compute::random::Philox;
use aha_compute::tape::Rows;
use aha_compute::{Adapter, Device, Dtype, ParamId, Params, Tape, Tensor, Var};

use crate::config::{Config, Head, LM_HEAD_WEIGHT, SCORE_WEIGHT};
use crate::error::{Error, Result};
use crate::weights;
use lora::{Lora, Target};

/// Random weights that a thread draws at a time.
const DRAWS_LEN: usize = 1 << 16;

/// A decoder with its weights.
#[derive(Clone, Debug)]
pub struct Model {
    config: Config,
    device: Device,
    params: Params,
    embedding: ParamId,
    layers: Vec<Layer>,
    final_norm: ParamId,
    head: ParamId,
    rope: Arc<rope::Table>,
    lora: Option<Lora>,
    pub(crate) origin: Option<Arc<Path>>,
}

/// Places of one layer's weights.
#[derive(Clone, Debug)]
struct Layer {
    attention_norm: ParamId,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    q_norm: Option<ParamId>,
    k_norm: Option<ParamId>,
    mlp_norm: ParamId,
    gate: Projection,
    up: Projection,
    down: Projection,
}

impl Layer {
    fn projection(&self, target: Target) -> &Projection {
        match target {
            Target::Q => &self.q,
            Target::K => &self.k,
            Target::V => &self.v,
            Target::O => &self.o,
            Target::Gate => &self.gate,
            Target::Up => &self.up,
            Target::Down => &self.down,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Projection {
    weight: ParamId,
    bias: Option<ParamId>,
    adapter: Option<Adapter>,
}

/// Tokens to run through the model: row `i` is `ids[i]` at `positions[i]` of its sequence.
pub struct Batch<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Positions inside the tokens' sequences.
    pub positions: Arc<[u32]>,
    /// Which rows belong together.
    pub rows: Rows<'a>,
}

impl Batch<'_> {
    /// Whole sequences, one after the other and without padding.
    pub fn packed<'a>(ids: &'a [u32], lengths: impl IntoIterator<Item = usize>) -> Batch<'a> {
        Batch::laid_out(ids, Layout::sequences(lengths))
    }

    /// Sequences that may have their first tokens in common, which then are there once.
    pub fn laid_out<'a>(ids: &'a [u32], layout: Layout) -> Batch<'a> {
        assert_eq!(layout.row_count(), ids.len(), "lengths must add up to the ids");
        Batch { ids, positions: layout.positions(), rows: Rows::Packed { layout } }
    }
}

impl Model {
    /// Loads a language model: a Hugging Face directory or a GGUF file.
    pub fn load(path: &Path, device: &Device) -> Result<Model> {
        Model::load_with_head(path, device, Head::Language)
    }

    /// Loads a language model or a reward model, whichever it is.
    pub fn load_any(path: &Path, device: &Device) -> Result<Model> {
        let mut source = weights::open(path)?;
        let config = source.config().clone();
        let model = Model::build(config, device, |name, values| source.tensor(name, values))?;
        Ok(Model { origin: Some(path.into()), ..model })
    }

    /// A model made from nothing: matrices are normal with the config's `initializer_range`, scaled down
    /// by `1/sqrt(2 · layers)` where they write to the residual stream (as GPT-2 has it); norms are one,
    /// biases zero.
    pub fn random(config: Config, device: &Device, random: Philox) -> Result<Model> {
        let std = f64::from(config.initializer_range);
        let residual_std = std / (2.0 * config.layer_count as f64).sqrt();
        Model::build(config, device, |name, values| {
            let std = match name {
                _ if name.ends_with("norm.weight") => {
                    values.fill(1.0);
                    return Ok(());
                }
                _ if name.ends_with(".bias") => {
                    values.fill(0.0);
                    return Ok(());
                }
                _ if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                    residual_std
                }
                _ => std,
            };
            let family = random.derive(name);
            // A draw has an address, so that threads can share them out.
            let parts: Vec<Mutex<&mut [f32]>> =
                values.chunks_mut(DRAWS_LEN).map(Mutex::new).collect();
            device.run(parts.len(), |part| {
                let mut values = parts[part].lock().unwrap_or_else(PoisonError::into_inner);
                for (i, value) in values.iter_mut().enumerate() {
                    *value = (family.normal((part * DRAWS_LEN + i) as u64) * std) as f32;
                }
            });
            Ok(())
        })
    }

    fn build(
        config: Config,
        device: &Device,
        mut fill: impl FnMut(&str, &mut [f32]) -> Result<()>,
    ) -> Result<Model> {
        config.validate()?;
        check_head_dim(&config)?;
        let mut params = Params::default();
        for (name, shape) in config.param_shapes() {
            let mut tensor = Tensor::zeros(device, &shape);
            tensor.write_with(|values| fill(&name, values))?;
            params.push(name, tensor);
        }
        Model::over(config, device, params, None)
    }

    fn over(
        config: Config,
        device: &Device,
        mut params: Params,
        lora: Option<Lora>,
    ) -> Result<Model> {
        let find = |name: &str| {
            params
                .find(name)
                .ok_or_else(|| Error::Bug(format!("the config names no weight `{name}`")))
        };
        let projection = |layer_idx: usize, target: Target| -> Result<Projection> {
            let path = target.path(layer_idx);
            let (weight, bias) = (find(&format!("{path}.weight"))?, format!("{path}.bias"));
            let adapter = match lora.as_ref().filter(|lora| lora.targets.contains(&target)) {
                Some(lora) => {
                    let [a, b] = lora::matrix_names(&path);
                    Some(Adapter { a: find(&a)?, b: find(&b)?, scale: lora.scale() })
                }
                None => None,
            };
            Ok(Projection { weight, bias: find(&bias).ok(), adapter })
        };
        let layer = |i: usize| -> Result<Layer> {
            let prefix = format!("model.layers.{i}.");
            let at = |name: &str| find(&format!("{prefix}{name}.weight"));
            Ok(Layer {
                attention_norm: at("input_layernorm")?,
                q: projection(i, Target::Q)?,
                k: projection(i, Target::K)?,
                v: projection(i, Target::V)?,
                o: projection(i, Target::O)?,
                q_norm: at("self_attn.q_norm").ok(),
                k_norm: at("self_attn.k_norm").ok(),
                mlp_norm: at("post_attention_layernorm")?,
                gate: projection(i, Target::Gate)?,
                up: projection(i, Target::Up)?,
                down: projection(i, Target::Down)?,
            })
        };
        let layers = (0..config.layer_count).map(layer).collect::<Result<_>>()?;
        let embedding = find("model.embed_tokens.weight")?;
        let final_norm = find("model.norm.weight")?;
        let is_tied = config.head == Head::Language && config.tie_word_embeddings;
        let head = match config.head {
            Head::Score => find(SCORE_WEIGHT)?,
            Head::Language if is_tied => embedding,
            Head::Language => find(LM_HEAD_WEIGHT)?,
        };
        if is_tied {
            params.tie(embedding);
        }
        let (inv_freq, scale) = config.inv_freq();
        let positions_max = config.max_position_embeddings;
        let rope = Arc::new(rope::Table::new(device, &inv_freq, scale, positions_max));
        Ok(Model {
            config,
            device: device.clone(),
            params,
            embedding,
            layers,
            final_norm,
            head,
            rope,
            lora,
            origin: None,
        })
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the weights were read from that training begins with; none for one that was made from nothing or has an
    /// adapter merged into it.
    pub fn origin(&self) -> Option<&Path> {
        self.origin.as_deref()
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same model for `device`: weights that are trained are copied there, and frozen ones shared, since nobody
    /// changes them.
    pub fn copy_on(&self, device: &Device) -> Model {
        let mut copy = Model { device: device.clone(), ..self.clone() };
        copy.params = self.params.copy_on(device);
        copy
    }

    /// The same model on a device whose memory isn't this one's: all weights are copied, frozen ones too.
    pub fn replica_on(&self, device: &Device) -> Model {
        Model {
            device: device.clone(),
            params: self.params.replica_on(device),
            rope: Arc::new(self.rope.replica_on(device)),
            ..self.clone()
        }
    }

    /// The weights, under their Hugging Face names.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The weights, to change.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// The weight of the LM head `(V, C)`; the embedding where they are tied.
    pub fn head(&self) -> ParamId {
        assert!(self.config.head == Head::Language, "a reward model has no LM head");
        self.head
    }

    /// Heads of the attention.
    pub fn attention_dims(&self) -> attention::Dims {
        attention::Dims {
            heads: self.config.head_count,
            kv_heads: self.config.kv_head_count,
            head_dim: self.config.head_dim,
        }
    }

    /// The last layer's normalised hidden states `(T, C)`. With `checkpointing`, a recording tape keeps
    /// only each layer's inputs and computes the rest again in the backward pass.
    pub fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: Batch<'_>, checkpointing: bool) -> Var {
        let Batch { ids, positions, mut rows } = batch;
        let mut stream = vec![tape.embedding(self.embedding, ids)];
        for (idx, layer) in self.layers.iter().enumerate() {
            stream = match &rows {
                Rows::Packed { layout } if checkpointing => {
                    let (positions, layout) = (Arc::clone(&positions), layout.clone());
                    tape.checkpoint(&stream, move |tape, stream| {
                        let mut rows = Rows::Packed { layout: layout.clone() };
                        self.layer(tape, idx, layer, stream, &positions, &mut rows)
                    })
                }
                _ => self.layer(tape, idx, layer, &stream, &positions, &mut rows),
            };
        }
        self.norm(tape, &stream, self.final_norm).1
    }

    /// Log-probs of each sequence's tokens from the second on, packed one after the other.
    pub fn log_probs(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        self.check_ids(sequences.iter().flat_map(|s| s.iter().copied()))?;
        self.check_lens(sequences.iter().map(|s| s.len()))?;
        let ids: Vec<u32> = sequences.concat();
        let mut rows = Vec::new();
        let mut targets = Vec::new();
        let mut start = 0;
        for sequence in sequences {
            rows.extend(start..start + sequence.len().saturating_sub(1));
            targets.extend(sequence.iter().skip(1));
            start += sequence.len();
        }
        let mut tape = Tape::inference(&self.device, &self.params);
        let hidden =
            self.hidden(&mut tape, Batch::packed(&ids, sequences.iter().map(|s| s.len())), false);
        let hidden = tape.select_rows(&hidden, &rows.into());
        let (log_probs, _) = tape.log_probs(&hidden, self.head, &targets.into(), 1.0);
        let log_probs = log_probs.value().host();
        self.check_device()?;
        let mut rest = &log_probs[..];
        let split = |sequence: &&[u32]| {
            let (mine, others) = rest.split_at(sequence.len().saturating_sub(1));
            rest = others;
            mine.to_vec()
        };
        Ok(sequences.iter().map(split).collect())
    }

    /// Fails where the device has failed, and what was computed there can't be used.
    pub fn check_device(&self) -> Result<()> {
        Ok(self.device.check()?)
    }

    /// The checksum of the weights ([`Params::checksum`]). Fails where their device has failed: it says nothing then.
    pub fn checksum(&self) -> Result<u64> {
        let checksum = self.params.checksum();
        self.check_device()?;
        Ok(checksum)
    }

    /// Fails for a token id that the model has no embedding for.
    pub fn check_ids(&self, ids: impl IntoIterator<Item = u32>) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        match ids.into_iter().find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(Error::input(format!(
                "token id {id}: expected below the vocabulary size, {vocab_size}"
            ))
            .hint("use the tokenizer that belongs to this model")),
            None => Ok(()),
        }
    }

    /// Fails for a sequence that can't run through the model: for one of its ids, or for its length.
    pub fn check_sequence(&self, ids: &[u32]) -> Result<()> {
        self.check_ids(ids.iter().copied())?;
        self.check_lens([ids.len()])
    }

    /// Fails for a sequence that is longer than the model has positions.
    fn check_lens(&self, lens: impl IntoIterator<Item = usize>) -> Result<()> {
        let positions_max = self.config.max_position_embeddings;
        match lens.into_iter().find(|&len| len > positions_max) {
            Some(len) => Err(Error::input(format!(
                "a sequence of {len} tokens: the model has {positions_max} positions"
            ))
            .hint("cut it")),
            None => Ok(()),
        }
    }

    /// One decoder layer. The stream is the residual sum, or that sum and what is still to be added to it:
    /// so each addition is done together with the norm that follows.
    fn layer<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        idx: usize,
        layer: &'m Layer,
        stream: &[Var],
        positions: &Arc<[u32]>,
        rows: &mut Rows<'_>,
    ) -> Vec<Var> {
        let (residual, x) = self.norm(tape, stream, layer.attention_norm);
        let (dtype, kv_dtype) = (self.params.dtype(), self.device.kv_dtype());
        let [mut q, mut k, v] = match dtype == kv_dtype {
            true => project_all(tape, &x, [layer.q, layer.k, layer.v], dtype),
            false => {
                let [q, k] = project_all(tape, &x, [layer.q, layer.k], dtype);
                [q, k, project(tape, &x, layer.v, kv_dtype)]
            }
        };
        let eps = self.config.rms_norm_eps;
        if let (Some(q_norm), Some(k_norm)) = (layer.q_norm, layer.k_norm) {
            q = tape.rms_norm(&q, q_norm, eps);
            k = tape.rms_norm(&k, k_norm, eps);
        }
        q = tape.rope(&q, positions, &self.rope);
        k = tape.rope_as(&k, positions, &self.rope, kv_dtype);
        let scale = (self.config.head_dim as f32).sqrt().recip();
        let mixed = tape.attention([&q, &k, &v], rows, idx, self.attention_dims(), scale);
        let mixed = project(tape, &mixed, layer.o, Dtype::F32);
        let (residual, x) = tape.add_rms_norm(&mixed, &residual, layer.mlp_norm, eps);
        let [gate, up] = project_all(tape, &x, [layer.gate, layer.up], dtype);
        let x = tape.swiglu(&gate, &up);
        vec![project(tape, &x, layer.down, Dtype::F32), residual]
    }

    /// The residual sum of a stream, and its norm.
    fn norm<'m>(&'m self, tape: &mut Tape<'m>, stream: &[Var], weight: ParamId) -> (Var, Var) {
        let eps = self.config.rms_norm_eps;
        match stream {
            [delta, residual] => tape.add_rms_norm(delta, residual, weight, eps),
            [sum] => (sum.clone(), tape.rms_norm(sum, weight, eps)),
            _ => unreachable!("a stream is a sum, or a sum and an addend"),
        }
    }
}

/// The product with a weight, and with its adapter where it has one.
fn project(tape: &mut Tape<'_>, x: &Var, p: Projection, dtype: Dtype) -> Var {
    match p.adapter {
        None => tape.linear_as(x, p.weight, p.bias, dtype),
        Some(adapter) => tape.adapted_as(x, (p.weight, p.bias), adapter, dtype),
    }
}

/// The products of the same activations with several weights.
fn project_all<const COUNT: usize>(
    tape: &mut Tape<'_>,
    x: &Var,
    projections: [Projection; COUNT],
    dtype: Dtype,
) -> [Var; COUNT] {
    match projections.iter().all(|p| p.adapter.is_none()) {
        true => tape.linears_as(x, projections.map(|p| (p.weight, p.bias)), dtype),
        false => projections.map(|p| project(tape, x, p, dtype)),
    }
}

/// The attention kernels take sixteen lanes of a head at a time.
fn check_head_dim(config: &Config) -> Result<()> {
    if config.head_dim.is_multiple_of(16) {
        return Ok(());
    }
    Err(Error::input(format!("`head_dim` is {}: expected a multiple of 16", config.head_dim)))
}
