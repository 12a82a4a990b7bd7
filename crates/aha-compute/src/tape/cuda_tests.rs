//! A tape on a device against the same tape on the processor.

use std::sync::Arc;

use super::*;
use crate::ops::adamw::{AdamW, Hyper};
use crate::ops::check::{Tol, assert_close, assert_same_bits, contexts, noise_f32, wide};

const IDS: [u32; 7] = [3, 0, 10, 3, 7, 3, 1];
const TARGETS: [u32; 5] = [1, 2, 3, 10, 0];
const ROWS: [usize; 5] = [6, 0, 2, 2, 5];

/// A model of all ops but attention: embedding, two norms, a rotation, a gated layer, and a head.
struct Model {
    params: Params,
    table: ParamId,
    norm: ParamId,
    gate: ParamId,
    up: ParamId,
    bias: ParamId,
    down: ParamId,
    head: ParamId,
    rope: Arc<rope::Table>,
}

impl Model {
    fn new(device: &Device) -> Model {
        let mut params = Params::default();
        let mut push = |name: &str, seed, shape: &[usize]| {
            let values = noise_f32(seed, shape.iter().product());
            params.push(name, Tensor::from_slice(device, shape, &values))
        };
        let [table, norm] = [push("table", 1, &[11, 16]), push("norm", 2, &[16])];
        let [gate, up] = [push("gate", 3, &[24, 16]), push("up", 4, &[24, 16])];
        let [bias, down] = [push("bias", 5, &[24]), push("down", 6, &[16, 24])];
        let head = push("head", 7, &[11, 16]);
        let rope = Arc::new(rope::Table::new(device, &[1.0, 0.1, 0.01, 0.001], 1.0, 100));
        Model { params, table, norm, gate, up, bias, down, head, rope }
    }

    /// Activations whose log-probs are wanted.
    fn forward<'p>(&'p self, tape: &mut Tape<'p>) -> Var {
        let x = tape.embedding(self.table, &IDS);
        let y = tape.rms_norm(&x, self.norm, 1e-5);
        let positions: Arc<[u32]> = (0..IDS.len() as u32).map(|i| 3 * i).collect();
        let y = tape.rope(&y, &positions, &self.rope);
        let (gate, up, down, bias) = (self.gate, self.up, self.down, self.bias);
        let layer = move |tape: &mut Tape<'p>, inputs: &[Var]| {
            let gate = tape.linear(&inputs[0], gate, Some(bias));
            let up = tape.linear(&inputs[0], up, None);
            let gated = tape.swiglu(&gate, &up);
            vec![tape.linear_as(&gated, down, None, Dtype::F32)]
        };
        let down = tape.checkpoint(&[y], layer).remove(0);
        let (_, y) = tape.add_rms_norm(&down, &x, self.norm, 1e-5);
        tape.select_rows(&y, &ROWS.into())
    }
}

/// What a step computes.
struct Got {
    log_probs: Vec<f32>,
    entropies: Vec<f32>,
    /// By weight.
    grads: Vec<Vec<f32>>,
    weights: Vec<Vec<f32>>,
}

fn slopes(token: usize, log_prob: f32, entropy: f32) -> [f32; 2] {
    [0.5 + 0.1 * token as f32 + 0.01 * log_prob, 0.02 * entropy]
}

/// One optimizer step; the head's backward pass with the forward pass, or after it.
fn step(device: &Device, is_fused: bool) -> Got {
    let mut model = Model::new(device);
    let mut grads = Grads::zeros(device, &model.params);
    let targets: Arc<[u32]> = TARGETS.into();
    let mut tape = Tape::recording(device, &model.params);
    let x = model.forward(&mut tape);
    let [log_probs, entropies] = if is_fused {
        let found = tape.log_probs_learning(&x, model.head, &targets, 0.8, &slopes, &mut grads);
        tape.backward(Vec::new(), &mut grads);
        found.map(|tensor| tensor.host().into_owned())
    } else {
        let (log_probs, entropies) = tape.log_probs(&x, model.head, &targets, 0.8);
        let values = [&log_probs, &entropies].map(|var| var.value().host().into_owned());
        let of = |token| slopes(token, values[0][token], values[1][token]);
        let slopes: Vec<[f32; 2]> = (0..TARGETS.len()).map(of).collect();
        let seed = |side: usize| {
            let values: Vec<f32> = slopes.iter().map(|slopes| slopes[side]).collect();
            Tensor::from_slice(device, &[values.len()], &values)
        };
        tape.backward(vec![(log_probs, seed(0)), (entropies, seed(1))], &mut grads);
        values
    };
    grads.finish();
    let all = |of: &dyn Fn(ParamId) -> Vec<f32>| model.params.ids().map(of).collect();
    let grads_found = all(&|id| grads.get(id).host().into_owned());
    let hyper = Hyper { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    AdamW::new(&model.params).step(&mut model.params, &grads, &hyper, 0.7);
    assert!(model.params.is_finite());
    let weights = model.params.ids().map(|id| model.params.value(id).host().into_owned()).collect();
    device.check().unwrap();
    Got { log_probs, entropies, grads: grads_found, weights }
}

#[track_caller]
fn assert_alike(got: &Got, want: &Got, tol: Tol) {
    assert_close("log-probs", &got.log_probs, &wide(&want.log_probs), tol);
    assert_close("entropies", &got.entropies, &wide(&want.entropies), tol);
    for (i, (got, want)) in got.grads.iter().zip(&want.grads).enumerate() {
        assert_close(&format!("gradient {i}"), got, &wide(want), tol);
    }
}

#[test]
fn a_step_on_a_device_is_that_on_the_processor_and_the_same_each_time() {
    for (dtype, tol) in
        [(Dtype::F32, Tol { abs: 2e-5, rel: 2e-5 }), (Dtype::Bf16, Tol { abs: 2e-2, rel: 2e-2 })]
    {
        let want = step(&Device::cpu(1).with_dtype(dtype), false);
        let mut first: Option<Got> = None;
        for cx in contexts() {
            for is_fused in [false, true] {
                let device = Device::cpu(1).with_context(cx.clone()).with_dtype(dtype);
                let got = step(&device, is_fused);
                assert_alike(&got, &want, tol);
                let Some(first) = &first else {
                    first = Some(got);
                    continue;
                };
                let pairs = got.grads.iter().zip(&first.grads);
                for (got, first) in pairs.chain(got.weights.iter().zip(&first.weights)) {
                    assert_same_bits("gradients and weights", got, first);
                }
            }
        }
    }
}
