//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).
//!
//! ```text
//! g = scale · gradient
//! m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g²
//! w = w (1 - lr decay) - lr / (1 - beta1^t) · m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```
//!
//! Weights with one dimension, which are norms and biases, are not decayed.

pub mod cuda;

use std::fmt;
use std::str::FromStr;

use crate::simd::{LANES, Simd, simd_fn};
use crate::tensor::Shards;
use crate::{Error, Grads, ParamId, Params, Tensor, profile};

/// Elements that one call of the kernel takes.
const BLOCK_LEN: usize = 1 << 14;

/// Constants of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients, in [0, 1).
    pub beta1: f64,
    /// Decay of the mean of squared gradients, in [0, 1).
    pub beta2: f64,
    /// What is added to the root of the mean square.
    pub eps: f64,
    /// Decay of the weights per unit of learning rate.
    pub weight_decay: f64,
}

/// Where the optimizer's state is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StatePlace {
    /// In the memory of the device that has the weights.
    #[default]
    Device,
    /// In the host's memory. On a CUDA device each step takes it there in slices and back again: slower, and with the
    /// same bits.
    Host,
}

impl fmt::Display for StatePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StatePlace::Device => "device",
            StatePlace::Host => "host",
        })
    }
}

impl FromStr for StatePlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<StatePlace, Error> {
        match text {
            "device" => Ok(StatePlace::Device),
            "host" => Ok(StatePlace::Host),
            _ => {
                Err(Error::Environment { what: format!("unknown place `{text}`: device or host") })
            }
        }
    }
}

/// The optimizer's state: two moments per weight that is trained, and the number of steps.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// None for a frozen weight.
    moments: Vec<Option<(Tensor, Tensor)>>,
    step_count: u64,
    /// For moments in the host's memory.
    streams: Option<cuda::Streams>,
}

/// What a step does with a weight.
struct Weight<'a> {
    value: &'a mut Tensor,
    copy: Option<&'a mut Tensor>,
    m: &'a mut Tensor,
    v: &'a mut Tensor,
    gradient: &'a Tensor,
}

impl Weight<'_> {
    fn decays(&self) -> bool {
        self.value.shape().len() > 1
    }
}

impl AdamW {
    /// No steps yet, all moments zero, on the device of the weights.
    pub fn new(params: &Params) -> AdamW {
        AdamW::placed(params, StatePlace::Device)
    }

    /// As [`AdamW::new`], with the moments in this place.
    pub fn placed(params: &Params, place: StatePlace) -> AdamW {
        let zeros = |id: ParamId| {
            let value = params.value(id);
            match place {
                StatePlace::Device => Tensor::zeros(value.device(), value.shape()),
                StatePlace::Host => Tensor::pinned_zeros(value.device(), value.shape()),
            }
        };
        let of = |id| params.is_trained(id).then(|| (zeros(id), zeros(id)));
        AdamW { moments: params.ids().map(of).collect(), step_count: 0, streams: None }
    }

    /// The same state for the same weights on another device.
    pub fn copy_for(&self, params: &Params, place: StatePlace) -> AdamW {
        let mut copy = AdamW::placed(params, place);
        if self.step_count == 0 {
            return copy;
        }
        for (to, from) in copy.moments.iter_mut().zip(&self.moments) {
            if let (Some((to_m, to_v)), Some((m, v))) = (to, from) {
                to_m.write(&m.host());
                to_v.write(&v.host());
            }
        }
        copy.step_count = self.step_count;
        copy
    }

    /// Where the moments are. On a processor there is one place only.
    pub fn place(&self) -> StatePlace {
        let is_pinned = |(m, _): &(Tensor, Tensor)| m.is_pinned();
        match self.moments.iter().flatten().any(is_pinned) {
            true => StatePlace::Host,
            false => StatePlace::Device,
        }
    }

    /// Changes the weights that are trained by one step along gradients times `scale`.
    pub fn step(&mut self, params: &mut Params, grads: &Grads, hyper: &Hyper, scale: f32) {
        let _span = profile::span("adamw", || profile::Work {
            flop: 0.0,
            // Reads weight, gradient and both moments; writes all but the gradient.
            bytes: (7 * size_of::<f32>() * params.trained_element_count()) as f64,
        });
        self.step_count += 1;
        let moments = self.moments.iter_mut().flatten();
        let weights = params.stepped().zip(moments).map(|((id, value, copy), (m, v))| {
            let gradient = grads.get(id);
            let len = value.len();
            assert_eq!(
                gradient.len(),
                len,
                "the gradient has {} elements: expected {len}",
                gradient.len()
            );
            assert_eq!((m.len(), v.len()), (len, len), "the moments must be as long as the weight");
            Weight { value, copy, m, v, gradient }
        });
        let mut weights: Vec<Weight<'_>> = weights.collect();
        let Some(gpu) = weights.first().and_then(|weight| weight.value.gpu()) else {
            for weight in &mut weights {
                let factors = Factors::new(hyper, self.step_count, weight.decays(), scale);
                update(weight, factors);
            }
            return;
        };
        let is_on_device = weights.iter().all(|weight| weight.m.gpu().is_some());
        let step = cuda::Step { hyper, scale, step: self.step_count };
        gpu.run(|cx| match is_on_device {
            true => cuda::step_all(cx, &mut weights, &step),
            false => {
                let streams = cuda::Streams::of(&mut self.streams, cx)?;
                cuda::step_from_host(cx, streams, &mut weights, &step, cuda::SLICE_LEN)
            }
        });
        params.requantize();
    }

    /// The means of gradients and of squared gradients of a trained weight.
    #[track_caller]
    pub fn moments(&self, id: ParamId) -> (&Tensor, &Tensor) {
        let (m, v) = self.moments[id.0].as_ref().expect(FROZEN);
        (m, v)
    }

    /// As [`AdamW::moments`], to read saved ones into.
    #[track_caller]
    pub fn moments_mut(&mut self, id: ParamId) -> (&mut Tensor, &mut Tensor) {
        let (m, v) = self.moments[id.0].as_mut().expect(FROZEN);
        (m, v)
    }

    /// Steps made.
    pub fn step_count(&self) -> u64 {
        self.step_count
    }

    /// Sets the number of steps made.
    pub fn set_step_count(&mut self, step_count: u64) {
        self.step_count = step_count;
    }
}

const FROZEN: &str = "a frozen weight has no moments";

#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    keep: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    root_factor: f32,
    eps: f32,
    size: f32,
}

impl Factors {
    /// Of the `step`-th step, counted from 1.
    fn new(hyper: &Hyper, step: u64, decays: bool, scale: f32) -> Factors {
        let t = step as f64;
        let corrections = (1.0 - hyper.beta1.powf(t), 1.0 - hyper.beta2.powf(t));
        let decay = if decays { hyper.lr * hyper.weight_decay } else { 0.0 };
        Factors {
            scale,
            keep: (1.0 - decay) as f32,
            beta1: hyper.beta1 as f32,
            rest1: (1.0 - hyper.beta1) as f32,
            beta2: hyper.beta2 as f32,
            rest2: (1.0 - hyper.beta2) as f32,
            root_factor: (1.0 / corrections.1.sqrt()) as f32,
            eps: hyper.eps as f32,
            size: (hyper.lr / corrections.0) as f32,
        }
    }
}

fn update(weight: &mut Weight<'_>, factors: Factors) {
    let Weight { value, m, v, gradient, .. } = weight;
    let (device, len) = (value.device().clone(), value.len());
    let [value, m, v] = [value, m, v].map(|t| Shards::new(t.as_mut_slice()));
    device.run_blocks(len, BLOCK_LEN, |start, end| {
        // SAFETY: blocks are disjoint.
        let [value, m, v] = [&value, &m, &v].map(|shards| unsafe { shards.slice(start, end) });
        update_block(device.isa(), value, m, v, &gradient.as_slice()[start..end], factors);
    });
}

simd_fn! {
    fn update_block<S>(value: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], factors: Factors) {
        let total = value.len();
        assert!([m.len(), v.len(), gradient.len()] == [total; 3]);
        let [scale, keep, beta1, rest1, beta2, rest2] =
            [factors.scale, factors.keep, factors.beta1, factors.rest1, factors.beta2, factors.rest2]
                .map(|x| splat::<S>(x));
        let [root_factor, eps, size] = [factors.root_factor, factors.eps, -factors.size].map(|x| splat::<S>(x));
        for at in (0..total).step_by(LANES) {
            let len = (total - at).min(LANES);
            let g = S::mul(S::load_part(gradient.as_ptr().add(at), len), scale);
            let mean = S::load_part(m.as_ptr().add(at), len);
            let mean = S::fma(mean, beta1, S::mul(g, rest1));
            let square = S::load_part(v.as_ptr().add(at), len);
            let square = S::fma(square, beta2, S::mul(S::mul(g, g), rest2));
            let denominator = S::fma(S::sqrt(square), root_factor, eps);
            let kept = S::mul(S::load_part(value.as_ptr().add(at), len), keep);
            let next = S::fma(S::div(mean, denominator), size, kept);
            S::store_part(m.as_mut_ptr().add(at), mean, len);
            S::store_part(v.as_mut_ptr().add(at), square, len);
            S::store_part(value.as_mut_ptr().add(at), next, len);
        }
    }
}

#[inline(always)]
unsafe fn splat<S: Simd>(x: f32) -> S::V {
    // SAFETY: the caller runs where the instruction set is.
    unsafe { S::splat(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::ops::check::{
        F32, Tol, assert_close, assert_same_bits, devices, noise, noise_tensor,
    };

    const HYPER: Hyper = Hyper { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

    /// Four steps of a hundredth and a few roundings each; `v` is as small as 1e-6, so the bound is mostly
    /// relative.
    const STEPS: Tol = Tol { abs: 2e-7, rel: 2e-6 };

    /// Factors on the gradients, one per step. The corrected moments of a constant gradient are the
    /// gradient and its square whatever the betas, and their quotient is the same for every factor: only
    /// gradients that change show an error in either.
    const SCALES: [f32; 4] = [0.5, 1.0, 0.03125, 2.0];

    struct Trajectory {
        w: Vec<f64>,
        m: Vec<f64>,
        v: Vec<f64>,
    }

    /// The formulas of the module's docs in `f64`, with gradients of seed `seed + t` at step `t`.
    fn reference(w: Vec<f64>, seed: u64, decays: bool, hyper: Hyper) -> Trajectory {
        let Hyper { lr, beta1, beta2, eps, weight_decay } = hyper;
        let decay = if decays { lr * weight_decay } else { 0.0 };
        let zeros = vec![0.0; w.len()];
        let mut at = Trajectory { w, m: zeros.clone(), v: zeros };
        for (t, scale) in (1..).zip(SCALES) {
            let gradient = noise(seed + t as u64, at.w.len());
            for (i, g) in gradient.iter().map(|g| g * f64::from(scale)).enumerate() {
                at.m[i] = beta1 * at.m[i] + (1.0 - beta1) * g;
                at.v[i] = beta2 * at.v[i] + (1.0 - beta2) * g * g;
                let root = (at.v[i] / (1.0 - beta2.powi(t))).sqrt();
                let step = at.m[i] / (1.0 - beta1.powi(t)) / (root + eps);
                at.w[i] = at.w[i] * (1.0 - decay) - lr * step;
            }
        }
        at
    }

    fn run(device: &Device, hyper: &Hyper) -> (Params, AdamW) {
        let mut params = Params::default();
        let matrix = params.push("matrix", noise_tensor(device, 1, &[300, 67]));
        let vector = params.push("vector", noise_tensor(device, 2, &[37]));
        let mut grads = Grads::zeros(device, &params);
        let mut adamw = AdamW::new(&params);
        for (t, scale) in (1..).zip(SCALES) {
            *grads.get_mut(matrix) = noise_tensor(device, 10 + t, &[300, 67]);
            *grads.get_mut(vector) = noise_tensor(device, 20 + t, &[37]);
            adamw.step(&mut params, &grads, hyper, scale);
        }
        (params, adamw)
    }

    #[test]
    fn every_device_follows_the_reference_and_the_others() {
        // An `eps` that small gradients feel, next to the usual one.
        for hyper in [HYPER, Hyper { eps: 0.01, ..HYPER }] {
            let want = [
                reference(noise(1, 300 * 67), 10, true, hyper),
                reference(noise(2, 37), 20, false, hyper),
            ];
            let mut first: Option<(Params, AdamW)> = None;
            for device in devices() {
                let (params, adamw) = run(&device, &hyper);
                let (first_params, first_adamw) =
                    first.get_or_insert_with(|| (params.clone(), adamw.clone()));
                assert_eq!(adamw.step_count(), 4);
                for (id, want) in params.ids().zip(&want) {
                    let (m, v) = adamw.moments(id);
                    let (first_m, first_v) = first_adamw.moments(id);
                    for (name, got, want, first) in [
                        ("w", params.value(id), &want.w, first_params.value(id)),
                        ("m", m, &want.m, first_m),
                        ("v", v, &want.v, first_v),
                    ] {
                        assert_close(name, got.as_slice(), want, STEPS);
                        assert_same_bits(name, got.as_slice(), first.as_slice());
                    }
                }
            }
        }
    }

    #[test]
    fn a_first_step_is_the_sign_of_the_gradient_times_the_rate() {
        let device = Device::cpu(1);
        let mut params = Params::default();
        let id = params.push("vector", Tensor::zeros(&device, &[3]));
        let mut grads = Grads::zeros(&device, &params);
        grads.get_mut(id).as_mut_slice().copy_from_slice(&[3.0, -1e-3, 0.0]);
        AdamW::new(&params).step(&mut params, &grads, &HYPER, 1.0);
        assert_close("w", params.value(id).as_slice(), &[-0.01, 0.01, 0.0], F32);
    }

    #[test]
    #[should_panic(expected = "the gradient has 4 elements: expected 3")]
    fn a_wrong_length_of_a_gradient_panics() {
        let device = Device::cpu(1);
        let mut params = Params::default();
        let id = params.push("vector", Tensor::zeros(&device, &[3]));
        let mut grads = Grads::zeros(&device, &params);
        *grads.get_mut(id) = Tensor::zeros(&device, &[4]);
        AdamW::new(&params).step(&mut params, &grads, &HYPER, 1.0);
    }

    #[test]
    fn saved_state_goes_on_as_if_never_saved() {
        let device = Device::cpu(1);
        let (mut params, mut adamw) = run(&device, &HYPER);
        let mut restored = AdamW::new(&params);
        for id in params.ids() {
            let (m, v) = adamw.moments(id);
            let (to_m, to_v) = restored.moments_mut(id);
            to_m.as_mut_slice().copy_from_slice(m.as_slice());
            to_v.as_mut_slice().copy_from_slice(v.as_slice());
        }
        restored.set_step_count(adamw.step_count());
        let mut copy = params.clone();
        let mut grads = Grads::zeros(&device, &params);
        params.ids().for_each(|id| grads.get_mut(id).fill(0.3));
        adamw.step(&mut params, &grads, &HYPER, 1.0);
        restored.step(&mut copy, &grads, &HYPER, 1.0);
        for id in params.ids() {
            assert_same_bits("weights", params.value(id).as_slice(), copy.value(id).as_slice());
        }
    }
}
