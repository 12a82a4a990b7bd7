//! A tape of coarse ops: a model is written forwards, and the tape plays it backwards.
//!
//! A [`Var`] owns its value. While the tape records, each op keeps exactly what its backward pass reads;
//! while it doesn't, values are freed as soon as the model lets go of them, so that the same forward pass
//! serves the sampler.
//!
//! Activations are stored in the weights' [`Dtype`], except for the residual stream and what is added to it, which
//! are `f32`, as are log-probs and all gradients.

mod play;

#[cfg(test)]
mod cuda_tests;

use std::sync::Arc;

use crate::ops::attention::{self, KvCache, Layout, PagedSeqs};
use crate::ops::matmul::Packed;
use crate::ops::{embedding, lm_head, lora, matmul, rms_norm, rope, select, swiglu};
use crate::profile::{self, bytes, moving, multiplying};
use play::{Slots, play};

use crate::step::Step;
use crate::{Device, Dtype, Grads, ParamId, Params, Tensor, WeightForm};

/// The value of an op's output, and its place on the tape.
#[derive(Clone, Debug)]
pub struct Var {
    value: Arc<Tensor>,
    slot: usize,
}

impl Var {
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
}

/// What is added to the products with a weight: see [`lora`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adapter {
    /// The first matrix `(R, K)`.
    pub a: ParamId,
    /// The second matrix `(N, R)`.
    pub b: ParamId,
    /// What their product is multiplied by.
    pub scale: f32,
}

/// Which rows belong together in attention, and where their keys and values are.
pub enum Rows<'a> {
    /// All rows of sequences, which may have their first rows in common.
    Packed {
        /// Which rows make a sequence.
        layout: Layout,
    },
    /// New tokens of sequences whose earlier keys and values are in a cache. Can't be recorded.
    Paged {
        /// The cache; it takes the new keys and values.
        cache: &'a mut KvCache,
        /// The sequences.
        seqs: &'a mut PagedSeqs,
    },
}

type Segment<'p> = Box<dyn Fn(&mut Tape<'p>, &[Var]) -> Vec<Var> + 'p>;

enum Op<'p> {
    Embedding {
        table: ParamId,
        ids: Arc<[u32]>,
    },
    Linear {
        x: Var,
        w: ParamId,
        bias: Option<ParamId>,
        is_layer: bool,
    },
    Adapted {
        x: Var,
        w: ParamId,
        adapter: Adapter,
        u: Tensor,
    },
    RmsNorm {
        x: Var,
        w: ParamId,
        r: Tensor,
    },
    /// Outputs the sum and its norm; `sum` is the saved sum.
    AddRmsNorm {
        x: usize,
        residual: usize,
        sum: Arc<Tensor>,
        w: ParamId,
        r: Tensor,
    },
    Rope {
        x: usize,
        positions: Arc<[u32]>,
        table: Arc<rope::Table>,
    },
    Attention {
        q: Var,
        k: Var,
        v: Var,
        out: Arc<Tensor>,
        lse: Tensor,
        layout: Layout,
        layer: usize,
        dims: attention::Dims,
        scale: f32,
    },
    Swiglu {
        gate: Var,
        up: Var,
    },
    SelectRows {
        x: Var,
        rows: Arc<[usize]>,
        layout: Option<Layout>,
    },
    LogProbs {
        x: Var,
        head: ParamId,
        targets: Arc<[u32]>,
        inv_temperature: f32,
        beside: Option<Predictions<'p>>,
    },
    Checkpoint {
        inputs: Vec<Var>,
        segment: Segment<'p>,
    },
}

/// What a model predicts after some rows, for another to be held against. A constant to whoever is.
#[derive(Clone)]
pub struct Predictions<'p> {
    hidden: Arc<Tensor>,
    head: &'p Packed,
}

impl Predictions<'_> {
    fn of(&self) -> lm_head::Other<'_> {
        lm_head::Other { hidden: &self.hidden, head: self.head }
    }
}

struct Node<'p> {
    op: Op<'p>,
    /// Slots of the outputs, in the op's order.
    outputs: Vec<usize>,
}

/// Runs ops over `params` and, if asked to, records them.
pub struct Tape<'p> {
    device: Device,
    params: &'p Params,
    weights: WeightForm,
    recording: bool,
    nodes: Vec<Node<'p>>,
    slot_count: usize,
    /// Gradients of vars that are there before the tape is played backwards.
    begun: Vec<(usize, Tensor)>,
    /// Where ids and positions are on a CUDA device already.
    step: Option<&'p Step>,
}

impl<'p> Tape<'p> {
    /// A tape that records, for training.
    pub fn recording(device: &Device, params: &'p Params) -> Tape<'p> {
        Tape {
            device: device.clone(),
            params,
            weights: WeightForm::Same,
            recording: true,
            nodes: Vec::new(),
            slot_count: 0,
            begun: Vec::new(),
            step: None,
        }
    }

    /// A tape that only computes, for sampling and scoring.
    pub fn inference(device: &Device, params: &'p Params) -> Tape<'p> {
        Tape { recording: false, ..Tape::recording(device, params) }
    }

    /// A tape that only computes, and multiplies with weights of this form. The embedding table is looked up as it
    /// is.
    pub fn inference_with(device: &Device, params: &'p Params, weights: WeightForm) -> Tape<'p> {
        Tape { weights, ..Tape::inference(device, params) }
    }

    /// The same tape for rows whose ids and positions are on a CUDA device already.
    pub fn of_step(self, step: &'p Step) -> Tape<'p> {
        Tape { step: Some(step), ..self }
    }

    /// Rows of the embedding table: `(T, C)` for `T` ids.
    pub fn embedding(&mut self, table: ParamId, ids: &[u32]) -> Var {
        let weights = self.params.table(table);
        let mut y = self.uninit(&[ids.len(), weights.cols()]);
        let span = moving("embedding.forward", &[&y, &y]);
        match self.step {
            Some(step) => embedding::forward_at(&mut y, weights, ids, &step.ids),
            None => embedding::forward(&mut y, weights, ids),
        }
        // The table's rows are rounded as those of the head are, which may be the same.
        let y = match weights.dtype() {
            Dtype::F32 => y.into_dtype(self.params.dtype()).into_dtype(Dtype::F32),
            Dtype::Bf16 => y,
        };
        drop(span);
        self.record(y, || Op::Embedding { table, ids: ids.into() })
    }

    /// `x · wᵀ + bias`: `(T, N)` from `x` `(T, K)` and `w` `(N, K)`.
    pub fn linear(&mut self, x: &Var, w: ParamId, bias: Option<ParamId>) -> Var {
        self.linear_as(x, w, bias, self.params.dtype())
    }

    /// As [`Tape::linear`], with a result of this kind: `f32` for what is added to the residual stream.
    pub fn linear_as(&mut self, x: &Var, w: ParamId, bias: Option<ParamId>, dtype: Dtype) -> Var {
        let [y] = self.linears_as(x, [(w, bias)], dtype);
        y
    }

    /// As [`Tape::linear_as`], with several weights `(N, K)` and their biases, `K` being the same.
    pub fn linears_as<const COUNT: usize>(
        &mut self,
        x: &Var,
        weights: [(ParamId, Option<ParamId>); COUNT],
        dtype: Dtype,
    ) -> [Var; COUNT] {
        self.products(x, weights, dtype, true)
    }

    /// `x · wᵀ`, for a head: an `f32` result, and never in FP8, which is for layers.
    pub fn head_product(&mut self, x: &Var, w: ParamId) -> Var {
        let [y] = self.products(x, [(w, None)], Dtype::F32, false);
        y
    }

    fn products<const COUNT: usize>(
        &mut self,
        x: &Var,
        weights: [(ParamId, Option<ParamId>); COUNT],
        dtype: Dtype,
        is_layer: bool,
    ) -> [Var; COUNT] {
        let factors = weights.map(|(w, bias)| {
            let packed = if is_layer { self.packed_for_layer(w) } else { self.packed(w) };
            (packed, bias.map(|bias| self.params.bias(bias, dtype)))
        });
        let rows = x.value.rows();
        let mut ys = factors
            .map(|(packed, _)| Tensor::uninit_as(&self.device, dtype, &[rows, packed.out_len()]));
        let span = profile::span("matmul.forward", || {
            let flop = weights.iter().map(|(w, _)| product(&x.value, self.params.value(*w))).sum();
            let weight_bytes = factors.iter().map(|(packed, _)| packed.bytes() as f64);
            let results = ys.iter().map(bytes).sum::<f64>();
            profile::Work { flop, bytes: bytes(&x.value) + results + weight_bytes.sum::<f64>() }
        });
        matmul::forward_all(&mut ys, &x.value, &factors);
        drop(span);
        let mut idx = 0;
        ys.map(|y| {
            let (w, bias) = weights[idx];
            idx += 1;
            self.record(y, || Op::Linear { x: x.clone(), w, bias, is_layer })
        })
    }

    /// As [`Tape::linear_as`] with a frozen weight and bias, and an adapter, which is trained. The adapter is never
    /// multiplied with as int8 or in FP8.
    pub fn adapted_as(
        &mut self,
        x: &Var,
        (w, bias): (ParamId, Option<ParamId>),
        adapter: Adapter,
        dtype: Dtype,
    ) -> Var {
        let packed = self.packed_for_layer(w);
        let two = [adapter.a, adapter.b].map(|id| self.packed_as(id, WeightForm::Same));
        let mut y = self.uninit(&[x.value.rows(), packed.out_len()]);
        let span = profile::span("lora.forward", || {
            let weights = [packed, two[0], two[1]].map(Packed::bytes).iter().sum::<usize>();
            let flop = adapted_product(&x.value, self.params, w, adapter);
            profile::Work { flop, bytes: bytes(&x.value) + bytes(&y) + weights as f64 }
        });
        let bias = bias.map(|b| self.params.value(b));
        let u = lora::forward(&mut y, &x.value, packed, bias, two, adapter.scale);
        let y = y.into_dtype(dtype);
        drop(span);
        self.record(y, || Op::Adapted { x: x.clone(), w, adapter, u })
    }

    /// RMSNorm over groups of as many columns as `w` has: the whole row, or each head.
    pub fn rms_norm(&mut self, x: &Var, w: ParamId, eps: f32) -> Var {
        let weights = self.params.value(w);
        let mut y = self.activation(x.value.shape());
        let mut r = self.uninit(&[x.value.len() / weights.len()]);
        let span = moving("rms_norm.forward", &[&x.value, weights, &y, &r]);
        rms_norm::forward(&mut y, &mut r, &x.value, weights, eps);
        drop(span);
        self.record(y, || Op::RmsNorm { x: x.clone(), w, r })
    }

    /// `x + residual`, and its RMSNorm.
    pub fn add_rms_norm(&mut self, x: &Var, residual: &Var, w: ParamId, eps: f32) -> (Var, Var) {
        let mut y = self.activation(x.value.shape());
        let mut sum = self.uninit(x.value.shape());
        let mut r = self.uninit(&[x.value.rows()]);
        let weights = self.params.value(w);
        let span = moving("rms_norm.forward", &[&x.value, &residual.value, weights, &sum, &y, &r]);
        rms_norm::forward_add(&mut y, &mut r, &mut sum, &x.value, &residual.value, weights, eps);
        drop(span);
        let (sum, y) = (self.var(sum), self.var(y));
        if self.recording {
            let saved = Arc::clone(&sum.value);
            let op = Op::AddRmsNorm { x: x.slot, residual: residual.slot, sum: saved, w, r };
            self.nodes.push(Node { op, outputs: vec![sum.slot, y.slot] });
        }
        (sum, y)
    }

    /// Rotates pairs of each head's columns by angles that grow with the row's position.
    pub fn rope(&mut self, x: &Var, positions: &Arc<[u32]>, table: &Arc<rope::Table>) -> Var {
        self.rope_as(x, positions, table, self.params.dtype())
    }

    /// As [`Tape::rope`], with a result of this kind.
    pub fn rope_as(
        &mut self,
        x: &Var,
        positions: &Arc<[u32]>,
        table: &Arc<rope::Table>,
        dtype: Dtype,
    ) -> Var {
        let mut y = Tensor::uninit_as(&self.device, dtype, x.value.shape());
        let span = moving("rope.forward", &[&x.value, &y]);
        match self.step {
            Some(step) => rope::forward_at(&mut y, &x.value, positions, &step.positions, table),
            None => rope::forward(&mut y, &x.value, positions, table),
        }
        drop(span);
        let (positions, table) = (Arc::clone(positions), Arc::clone(table));
        self.record(y, || Op::Rope { x: x.slot, positions, table })
    }

    /// Causal attention of `q` `(T, H·D)` over `k`, `v` `(T, KV·D)`; `layer` addresses the cache, and sums that a
    /// batch hands on to the next.
    pub fn attention(
        &mut self,
        [q, k, v]: [&Var; 3],
        rows: &mut Rows<'_>,
        layer: usize,
        dims: attention::Dims,
        scale: f32,
    ) -> Var {
        let dtype = self.params.dtype();
        let mut o = Tensor::uninit_as(&self.device, attention::dtype(&q.value), q.value.shape());
        let q_in = attention::input(&q.value);
        match rows {
            Rows::Packed { layout } => {
                let mut lse = self.uninit(&[q.value.rows(), dims.heads]);
                let span = multiplying(
                    "attention.forward",
                    || 2.0 * scores(layout, dims),
                    &[&q.value, &k.value, &v.value, &o, &lse],
                );
                let [k_in, v_in] = [k, v].map(|x| attention::input(&x.value));
                attention::forward(&mut o, &mut lse, &q_in, &k_in, &v_in, layout, dims, scale);
                let o = self.var(o.into_dtype(dtype));
                drop(span);
                if self.recording {
                    let op = Op::Attention {
                        q: q.clone(),
                        k: k.clone(),
                        v: v.clone(),
                        out: Arc::clone(&o.value),
                        lse,
                        layout: layout.clone(),
                        layer,
                        dims,
                        scale,
                    };
                    self.nodes.push(Node { op, outputs: vec![o.slot] });
                }
                o
            }
            Rows::Paged { cache, seqs } => {
                assert!(!self.recording, "attention over a cache can't be recorded");
                let span = moving("cache.append", &[&k.value, &v.value, &k.value, &v.value]);
                cache.append(layer, &k.value, &v.value, seqs);
                drop(span);
                let span =
                    profile::span("attention.paged", || seqs.work(dims, self.device.kv_dtype()));
                attention::attend(&mut o, &q_in, cache, layer, seqs, dims, scale);
                drop(span);
                self.var(o.into_dtype(dtype))
            }
        }
    }

    /// `silu(gate) * up`.
    pub fn swiglu(&mut self, gate: &Var, up: &Var) -> Var {
        let mut y = self.activation(gate.value.shape());
        let span = moving("swiglu.forward", &[&gate.value, &up.value, &y]);
        swiglu::forward(&mut y, &gate.value, &up.value);
        drop(span);
        self.record(y, || Op::Swiglu { gate: gate.clone(), up: up.clone() })
    }

    /// The given rows of `x`; gradients of one that is given more than once are added in order.
    pub fn select_rows(&mut self, x: &Var, rows: &Arc<[usize]>) -> Var {
        self.select_rows_as(x, rows, None)
    }

    /// As [`Tape::select_rows`], of the last layer's rows in this layout, of which a segment may be split.
    pub fn select_rows_of(&mut self, x: &Var, rows: &Arc<[usize]>, layout: &Layout) -> Var {
        self.select_rows_as(x, rows, Some(layout))
    }

    fn select_rows_as(&mut self, x: &Var, rows: &Arc<[usize]>, layout: Option<&Layout>) -> Var {
        let (cols, dtype) = (x.value.cols(), x.value.dtype());
        let mut y = Tensor::uninit_as(&self.device, dtype, &[rows.len(), cols]);
        let span = moving("select_rows.forward", &[&y, &y]);
        select::forward(&mut y, &x.value, rows);
        drop(span);
        self.record(y, || Op::SelectRows {
            x: x.clone(),
            rows: Arc::clone(rows),
            layout: layout.cloned(),
        })
    }

    /// Log-probs of `targets` after each row of `x` under `softmax(x · headᵀ · inv_temperature)`, and the
    /// entropies of those distributions, in nats.
    pub fn log_probs(
        &mut self,
        x: &Var,
        head: ParamId,
        targets: &Arc<[u32]>,
        inv_temperature: f32,
    ) -> (Var, Var) {
        let [mut log_probs, mut entropies] = [0, 1].map(|_| self.uninit(&[targets.len()]));
        let (packed, span) = self.head(x, head);
        let (log_probs_of, entropies_of) = (&mut log_probs, &mut entropies);
        lm_head::forward(log_probs_of, entropies_of, &x.value, packed, targets, inv_temperature);
        drop(span);
        let [log_probs, entropies] = [log_probs, entropies].map(|value| self.var(value));
        self.record_log_probs(x, head, targets, inv_temperature, None, &[&log_probs, &entropies]);
        (log_probs, entropies)
    }

    /// As [`Tape::log_probs`], with the same bits, for a loss that is a sum over tokens: `slopes` gives the gradients
    /// of a token's log-prob and entropy from these two. The head's backward pass is done with the forward pass, so the
    /// results have no gradients to be given; the tape is then played backwards from `x`.
    pub fn log_probs_learning(
        &mut self,
        x: &Var,
        head: ParamId,
        targets: &[u32],
        inv_temperature: f32,
        slopes: lm_head::Slopes<'_>,
        grads: &mut Grads,
    ) -> [Tensor; 2] {
        assert!(self.recording, "gradients are of a tape that records");
        let [mut log_probs, mut entropies] = [0, 1].map(|_| self.uninit(&[targets.len()]));
        let mut dx = self.uninit(x.value.shape());
        let (packed, weight, dhead) =
            (self.packed(head), self.params.value(head), grads.find_mut(head));
        let products = if dhead.is_some() { 3.0 } else { 2.0 };
        let span = multiplying(
            "lm_head.forward_backward",
            || products * product(&x.value, weight),
            &[&x.value, &dx, weight, weight, weight],
        );
        lm_head::forward_backward(
            [&mut log_probs, &mut entropies, &mut dx],
            dhead,
            slopes,
            &x.value,
            packed,
            weight,
            targets,
            inv_temperature,
        );
        drop(span);
        self.begun.push((x.slot, dx));
        [log_probs, entropies]
    }

    /// As [`Tape::log_probs`], with the same bits, and the divergences `KL(own || beside)` of those distributions from
    /// what another model predicts in their places, in nats.
    pub fn log_probs_beside(
        &mut self,
        x: &Var,
        head: ParamId,
        targets: &Arc<[u32]>,
        inv_temperature: f32,
        beside: &Predictions<'p>,
    ) -> [Var; 3] {
        let mut values = [0, 1, 2].map(|_| self.uninit(&[targets.len()]));
        let (packed, span) = self.head(x, head);
        lm_head::forward_beside(
            values.each_mut(),
            beside.of(),
            &x.value,
            packed,
            targets,
            inv_temperature,
        );
        drop(span);
        let vars = values.map(|value| self.var(value));
        let beside = Some(beside.clone());
        self.record_log_probs(x, head, targets, inv_temperature, beside, &vars.each_ref());
        vars
    }

    /// What `softmax(x · headᵀ · inv_temperature)` predicts after each row of `x`, for another model's tape.
    pub fn predictions(&self, x: &Var, head: ParamId) -> Predictions<'p> {
        Predictions { hidden: Arc::clone(&x.value), head: self.packed(head) }
    }

    /// The packed weight of the LM head, and the span of its forward pass.
    fn head(&self, x: &Var, head: ParamId) -> (&'p Packed, profile::Span) {
        let packed = self.packed(head);
        let weight = self.params.value(head);
        let span = profile::span("lm_head.forward", || profile::Work {
            flop: product(&x.value, weight),
            bytes: bytes(&x.value) + packed.bytes() as f64,
        });
        (packed, span)
    }

    fn record_log_probs(
        &mut self,
        x: &Var,
        head: ParamId,
        targets: &Arc<[u32]>,
        inv_temperature: f32,
        beside: Option<Predictions<'p>>,
        outputs: &[&Var],
    ) {
        if self.recording {
            let (x, targets) = (x.clone(), Arc::clone(targets));
            let op = Op::LogProbs { x, head, targets, inv_temperature, beside };
            self.nodes.push(Node { op, outputs: outputs.iter().map(|var| var.slot).collect() });
        }
    }

    /// Runs `segment` and keeps only its inputs; the backward pass runs it again. The bits of the results
    /// and gradients are those of running it plainly.
    pub fn checkpoint(
        &mut self,
        inputs: &[Var],
        segment: impl Fn(&mut Tape<'p>, &[Var]) -> Vec<Var> + 'p,
    ) -> Vec<Var> {
        if !self.recording {
            return segment(self, inputs);
        }
        self.recording = false;
        let outputs = segment(self, inputs);
        self.recording = true;
        let slots = outputs.iter().map(|v| v.slot).collect();
        let op = Op::Checkpoint { inputs: inputs.to_vec(), segment: Box::new(segment) };
        self.nodes.push(Node { op, outputs: slots });
        outputs
    }

    /// Plays the tape backwards from `seeds`, gradients of the loss with respect to vars, and from what
    /// [`Tape::log_probs_learning`] left, and adds the gradients of the weights to `grads`.
    pub fn backward(self, seeds: Vec<(Var, Tensor)>, grads: &mut Grads) {
        self.backward_to(seeds, &[], grads);
    }

    /// As [`Tape::backward`], and returns the gradients of `inputs`; none where nothing depends on one.
    fn backward_to(
        mut self,
        seeds: Vec<(Var, Tensor)>,
        inputs: &[Var],
        grads: &mut Grads,
    ) -> Vec<Option<Tensor>> {
        assert!(self.recording, "only a recording tape can be played backwards");
        let mut slots = Slots {
            device: self.device.clone(),
            grads: (0..self.slot_count).map(|_| None).collect(),
        };
        let seeds = seeds.into_iter().map(|(var, gradient)| (var.slot, gradient));
        for (slot, gradient) in std::mem::take(&mut self.begun).into_iter().chain(seeds) {
            slots.add(slot, gradient);
        }
        while let Some(Node { op, outputs }) = self.nodes.pop() {
            if outputs.iter().any(|&slot| slots.grads[slot].is_some()) {
                play(op, &outputs, &mut slots, self.params, grads);
            }
        }
        inputs.iter().map(|var| slots.grads[var.slot].take()).collect()
    }

    /// The weight, packed now if it isn't yet: after each change of it, the first use waits for that.
    fn packed(&self, id: ParamId) -> &'p Packed {
        self.packed_as(id, self.weights)
    }

    /// As [`Tape::packed`], of a linear layer, which may be multiplied in FP8.
    fn packed_for_layer(&self, id: ParamId) -> &'p Packed {
        if self.weights != WeightForm::Same {
            return self.packed(id);
        }
        let _span = moving("matmul.pack", &[]);
        self.params.packed_for_layer(id)
    }

    fn packed_as(&self, id: ParamId, form: WeightForm) -> &'p Packed {
        let _span = moving("matmul.pack", &[]);
        self.params.packed_as(id, form)
    }

    fn uninit(&self, shape: &[usize]) -> Tensor {
        Tensor::uninit(&self.device, shape)
    }

    fn activation(&self, shape: &[usize]) -> Tensor {
        Tensor::uninit_as(&self.device, self.params.dtype(), shape)
    }

    fn var(&mut self, value: Tensor) -> Var {
        self.slot_count += 1;
        Var { value: Arc::new(value), slot: self.slot_count - 1 }
    }

    fn record(&mut self, value: Tensor, op: impl FnOnce() -> Op<'p>) -> Var {
        let var = self.var(value);
        if self.recording {
            let op = op();
            self.nodes.push(Node { op, outputs: vec![var.slot] });
        }
        var
    }
}

/// FLOPs of a product of rows with a weight.
fn product(x: &Tensor, weight: &Tensor) -> f64 {
    2.0 * x.rows() as f64 * weight.len() as f64
}

/// FLOPs of a product of rows with a weight and its adapter.
fn adapted_product(x: &Tensor, params: &Params, w: ParamId, adapter: Adapter) -> f64 {
    [w, adapter.a, adapter.b].iter().map(|id| product(x, params.value(*id))).sum()
}

/// FLOPs of the scores of packed sequences: each row with its own key and those before it.
fn scores(layout: &Layout, dims: attention::Dims) -> f64 {
    let pairs = |s: &attention::Segment| {
        (s.row_count * s.position + s.row_count * (s.row_count + 1) / 2) as f64
    };
    2.0 * layout.segments().iter().map(pairs).sum::<f64>() * (dims.heads * dims.head_dim) as f64
}

impl Tape<'_> {
    /// A var of this tape with the value of another tape's.
    fn leaf(&mut self, of: &Var) -> Var {
        self.slot_count += 1;
        Var { value: Arc::clone(&of.value), slot: self.slot_count - 1 }
    }
}
