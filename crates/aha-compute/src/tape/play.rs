//! The tape backwards: what each op adds to the gradients of its inputs and weights.

use super::{Adapter, Op, Predictions, Segment, Tape, Var, adapted_product, product, scores};
use crate::ops::attention::{self, Layout};
use crate::ops::{embedding, lm_head, lora, matmul, rms_norm, rope, select, swiglu};
use crate::profile::{moving, multiplying};
use crate::{Device, Grads, ParamId, Params, Tensor};

/// Gradients of vars, while the tape is played backwards.
pub(super) struct Slots {
    pub(super) device: Device,
    pub(super) grads: Vec<Option<Tensor>>,
}

impl Slots {
    pub(super) fn add(&mut self, slot: usize, gradient: Tensor) {
        match &mut self.grads[slot] {
            Some(sum) => {
                let _span = moving("grads.add", &[sum, sum, &gradient]);
                sum.add_assign(&gradient);
            }
            empty => *empty = Some(gradient),
        }
    }

    fn take(&mut self, slot: usize, shape: &[usize]) -> Tensor {
        self.grads[slot].take().unwrap_or_else(|| Tensor::zeros(&self.device, shape))
    }

    fn zeros_like(&self, value: &Tensor) -> Tensor {
        Tensor::zeros(&self.device, value.shape())
    }

    fn uninit_like(&self, value: &Tensor) -> Tensor {
        Tensor::uninit(&self.device, value.shape())
    }
}

/// Adds the gradients of an op's inputs and weights.
pub(super) fn play<'p>(
    op: Op<'p>,
    outputs: &[usize],
    slots: &mut Slots,
    params: &'p Params,
    grads: &mut Grads,
) {
    match op {
        Op::Embedding { table, ids } => {
            let dy = slots.take(outputs[0], &[ids.len(), params.value(table).cols()]);
            if let Some(lookups) = grads.lookups_mut(table) {
                let _span = moving("embedding.backward", &[&dy, &dy, &dy]);
                embedding::backward(lookups, &dy, &ids);
            }
        }
        Op::Linear { x, w, bias, is_layer } => {
            play_linear(&x, (w, bias, is_layer), outputs[0], slots, params, grads);
        }
        Op::Adapted { x, w, adapter, u } => {
            play_adapted(&x, w, adapter, &u, outputs[0], slots, params, grads);
        }
        Op::RmsNorm { x, w, r } => {
            let dy = slots.take(outputs[0], x.value.shape());
            let mut dx = slots.grads[x.slot].take().unwrap_or_else(|| slots.zeros_like(&x.value));
            let _span = moving("rms_norm.backward", &[&dx, &dx, &dy, &x.value, &r]);
            rms_norm::backward(&mut dx, grads.find_mut(w), &dy, &x.value, params.value(w), &r);
            slots.grads[x.slot] = Some(dx);
        }
        Op::AddRmsNorm { x, residual, sum, w, r } => {
            let dy = slots.take(outputs[1], sum.shape());
            let mut dsum = slots.take(outputs[0], sum.shape());
            let span = moving("rms_norm.backward", &[&dsum, &dsum, &dy, &sum, &r]);
            rms_norm::backward(&mut dsum, grads.find_mut(w), &dy, &sum, params.value(w), &r);
            drop(span);
            slots.add(x, dsum.clone());
            slots.add(residual, dsum);
        }
        Op::Rope { x, positions, table } => play_rope(x, &positions, &table, outputs[0], slots),
        Op::Attention { q, k, v, out, lse, layout, layer, dims, scale } => {
            let results = (&*out, &lse);
            let place = (&layout, layer, outputs[0]);
            play_attention([q, k, v], results, place, dims, scale, slots, grads);
        }
        Op::Swiglu { gate, up } => play_swiglu(&gate, &up, outputs[0], slots),
        Op::SelectRows { x, rows, layout } => {
            play_select_rows(&x, &rows, layout.as_ref(), outputs[0], slots, grads);
        }
        Op::LogProbs { x, head, targets, inv_temperature, beside } => {
            let beside = beside.as_ref().map(Predictions::of);
            play_log_probs(
                &x,
                head,
                (&*targets, inv_temperature),
                beside,
                outputs,
                slots,
                params,
                grads,
            );
        }
        Op::Checkpoint { inputs, segment } => {
            play_checkpoint(&inputs, &segment, outputs, slots, params, grads);
        }
    }
}

fn play_rope(x: usize, positions: &[u32], table: &rope::Table, output: usize, slots: &mut Slots) {
    let Some(dy) = slots.grads[output].take() else { return };
    let mut dx = slots.uninit_like(&dy);
    let span = moving("rope.backward", &[&dx, &dy]);
    rope::backward(&mut dx, &dy, positions, table);
    drop(span);
    slots.add(x, dx);
}

/// Records the segment once more, and plays that.
fn play_checkpoint<'p>(
    inputs: &[Var],
    segment: &Segment<'p>,
    outputs: &[usize],
    slots: &mut Slots,
    params: &'p Params,
    grads: &mut Grads,
) {
    let mut tape = Tape::recording(&slots.device, params);
    let again: Vec<Var> = inputs.iter().map(|v| tape.leaf(v)).collect();
    let results = segment(&mut tape, &again);
    let seeds = results
        .into_iter()
        .zip(outputs)
        .filter_map(|(var, &slot)| slots.grads[slot].take().map(|gradient| (var, gradient)))
        .collect();
    for (input, gradient) in inputs.iter().zip(tape.backward_to(seeds, &again, grads)) {
        if let Some(gradient) = gradient {
            slots.add(input.slot, gradient);
        }
    }
}

/// `results` are the output and the softmax's sums; `place` is the layout, the layer and the output's slot.
fn play_attention(
    [q, k, v]: [Var; 3],
    (out, lse): (&Tensor, &Tensor),
    (layout, layer, output): (&Layout, usize, usize),
    dims: attention::Dims,
    scale: f32,
    slots: &mut Slots,
    grads: &mut Grads,
) {
    let dout = slots.take(output, out.shape());
    let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| slots.uninit_like(&x.value));
    // Scores once more, then the gradients of weights, values, queries and keys.
    let span = multiplying(
        "attention.backward",
        || 5.0 * scores(layout, dims),
        &[&q.value, &k.value, &v.value, out, lse, &dout, &dq, &dk, &dv],
    );
    let [q_in, k_in, v_in] = [&q, &k, &v].map(|x| attention::input(&x.value));
    let begun = layout.begun_rows().and_then(|_| grads.open.kv.remove(&layer));
    let handed_on = attention::backward(
        [&mut dq, &mut dk, &mut dv],
        &dout,
        [&*q_in, &*k_in, &*v_in],
        &attention::input(out),
        lse,
        layout,
        dims,
        scale,
        begun,
    );
    grads.open.kv.extend(handed_on.map(|sums| (layer, sums)));
    drop(span);
    for (var, gradient) in [(q, dq), (k, dk), (v, dv)] {
        slots.add(var.slot, gradient);
    }
}

fn play_log_probs(
    x: &Var,
    head: ParamId,
    (targets, inv_temperature): (&[u32], f32),
    beside: Option<lm_head::Other<'_>>,
    outputs: &[usize],
    slots: &mut Slots,
    params: &Params,
    grads: &mut Grads,
) {
    let dlog_probs = slots.take(outputs[0], &[targets.len()]);
    let dentropies = slots.grads[outputs[1]].take();
    let dentropies = dentropies.as_ref().map(Tensor::host);
    let ddivergences = outputs.get(2).and_then(|&slot| slots.grads[slot].take());
    let ddivergences = ddivergences.as_ref().map(Tensor::host);
    let mut dx = slots.uninit_like(&x.value);
    let head_value = params.value(head);
    let dhead = grads.find_mut(head);
    // Logits once more, then the gradients of rows and weights.
    let products = if dhead.is_some() { 3.0 } else { 2.0 };
    let span = multiplying(
        "lm_head.backward",
        || products * product(&x.value, head_value),
        &[&x.value, &dx, head_value, head_value, head_value],
    );
    lm_head::backward(
        &mut dx,
        dhead,
        lm_head::Grads {
            dlogp: &dlog_probs.host(),
            dentropy: dentropies.as_deref(),
            ddivergence: ddivergences.as_deref().zip(beside),
        },
        &x.value,
        params.packed(head),
        head_value,
        targets,
        inv_temperature,
    );
    drop(span);
    slots.add(x.slot, dx);
}

fn play_linear(
    x: &Var,
    (w, bias, is_layer): (ParamId, Option<ParamId>, bool),
    output: usize,
    slots: &mut Slots,
    params: &Params,
    grads: &mut Grads,
) {
    let weight = params.value(w);
    let dy = slots.take(output, &[x.value.rows(), weight.rows()]);
    if let Some(dbias) = bias.and_then(|bias| grads.find_mut(bias)) {
        let _span = moving("matmul.backward_bias", &[&dy]);
        matmul::backward_bias(dbias, &dy);
    }
    // Quanta are of what was computed, and not of what that is rounded to.
    let is_fp8 = is_layer && weight.device().is_fp8();
    let dy = if is_fp8 { dy } else { dy.into_dtype(params.dtype()) };
    let flop = || product(&x.value, weight);
    if let Some(dw) = grads.find_mut(w) {
        let _span = multiplying("matmul.backward_weight", flop, &[&x.value, &dy, dw, dw]);
        match is_fp8 {
            true => matmul::fp8::backward_weight(dw, &dy, &x.value),
            false => matmul::backward_weight(dw, &dy, &x.value),
        }
    }
    let (mut dx, accumulate) = match slots.grads[x.slot].take() {
        Some(dx) => (dx, true),
        None => (slots.uninit_like(&x.value), false),
    };
    let span = multiplying("matmul.backward_input", flop, &[&dx, &dy, weight]);
    let factor = if is_layer { params.factor_for_layer(w) } else { params.factor(w) };
    matmul::backward_input(&mut dx, &dy, factor, accumulate);
    drop(span);
    slots.grads[x.slot] = Some(dx);
}

fn play_adapted(
    x: &Var,
    w: ParamId,
    adapter: Adapter,
    u: &Tensor,
    output: usize,
    slots: &mut Slots,
    params: &Params,
    grads: &mut Grads,
) {
    let weight = params.value(w);
    let dy = slots.take(output, &[x.value.rows(), weight.rows()]).into_dtype(params.dtype());
    let (mut dx, accumulate) = match slots.grads[x.slot].take() {
        Some(dx) => (dx, true),
        None => (slots.uninit_like(&x.value), false),
    };
    let flop = || {
        let all = adapted_product(&x.value, params, w, adapter);
        2.0 * all - product(&x.value, weight)
    };
    let span = multiplying("lora.backward", flop, &[&dx, &dy, &x.value, u, weight]);
    let two = [adapter.a, adapter.b];
    lora::backward(
        &mut dx,
        grads.two_mut(two),
        &dy,
        &x.value,
        u,
        params.factor_for_layer(w),
        two.map(|id| params.factor(id)),
        adapter.scale,
        accumulate,
    );
    drop(span);
    slots.grads[x.slot] = Some(dx);
}

fn play_swiglu(gate: &Var, up: &Var, output: usize, slots: &mut Slots) {
    let dy = slots.take(output, gate.value.shape());
    let (mut dgate, mut dup) = (slots.uninit_like(&gate.value), slots.uninit_like(&up.value));
    let span = moving("swiglu.backward", &[&dgate, &dup, &dy, &gate.value, &up.value]);
    swiglu::backward(&mut dgate, &mut dup, &dy, &gate.value, &up.value);
    drop(span);
    slots.add(gate.slot, dgate);
    slots.add(up.slot, dup);
}

fn play_select_rows(
    x: &Var,
    rows: &[usize],
    layout: Option<&Layout>,
    output: usize,
    slots: &mut Slots,
    grads: &mut Grads,
) {
    let dy = slots.take(output, &[rows.len(), x.value.cols()]);
    let mut dx = slots.zeros_like(&x.value);
    let span = moving("select_rows.backward", &[&dy, &dy]);
    if let Some(begun) = layout.and_then(Layout::begun_rows) {
        let sums = grads.open.hidden.take().expect("the batch before left this segment open");
        dx.set_rows(begun, &sums);
    }
    select::backward(&mut dx, &dy, rows);
    if let Some(open) = layout.and_then(Layout::open_rows) {
        let sums = dx.rows_range(open.clone());
        dx.set_rows(open, &Tensor::zeros(&slots.device, sums.shape()));
        grads.open.hidden = Some(sums);
    }
    drop(span);
    slots.add(x.slot, dx);
}
