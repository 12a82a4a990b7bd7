//! The LM head: log-probs, entropies, divergences.

use aha_compute::ops::lm_head::{self, Other};
use aha_compute::{Device, Dtype, Params, Tensor};

use super::{Case, Outputs};
use crate::Size;
use crate::inputs::{noise, tensor};

const INV_TEMPERATURE: f32 = 1.25;

pub(super) fn cases(size: Size) -> Vec<Case> {
    // Rows, width, vocabulary.
    let small = [[1, 32, 16], [37, 64, 1032]];
    let full = [[130, 896, 50_000], [65, 1536, 151_936]];
    let shapes = small.iter().chain(if size == Size::Full { &full[..] } else { &[] });
    let of = |&[rows, cols, vocab]: &[usize; 3]| {
        let named = |what: &str| format!("lm_head {rows}x{cols}->{vocab}{what}");
        [
            Case::new(named(""), move |d, t| plain(d, t, [rows, cols, vocab])),
            Case::new(named(" in one pass"), move |d, t| fused(d, t, [rows, cols, vocab])),
            Case::new(named(" beside another"), move |d, t| beside(d, t, [rows, cols, vocab])),
        ]
    };
    shapes.flat_map(of).collect()
}

/// A head whose logits have a spread of about two, and rows.
struct Inputs {
    params: Params,
    hidden: Tensor,
    targets: Vec<u32>,
}

impl Inputs {
    fn new(device: &Device, dtype: Dtype, [rows, cols, vocab]: [usize; 3], seed: u64) -> Inputs {
        let scale = 6.0 / (cols as f32).sqrt();
        let values: Vec<f32> = noise(seed, vocab * cols).into_iter().map(|x| scale * x).collect();
        let mut params = Params::default();
        params.push("head", Tensor::from_slice(device, &[vocab, cols], &values));
        let hidden = tensor(device, seed + 1, &[rows, cols], dtype);
        let targets = (0..rows).map(|i| (i * 7919 % vocab) as u32).collect();
        Inputs { params, hidden, targets }
    }

    fn values(&self, device: &Device) -> [Tensor; 3] {
        [0; 3].map(|_| Tensor::uninit(device, &[self.targets.len()]))
    }
}

fn plain(device: &Device, dtype: Dtype, shape: [usize; 3]) -> Outputs {
    let inputs = Inputs::new(device, dtype, shape, 1);
    let Inputs { params, hidden, targets } = &inputs;
    let head = params.ids().next().expect("a head");
    let [mut logp, mut entropy, _] = inputs.values(device);
    let (packed, w) = (params.packed(head), params.value(head));
    lm_head::forward(&mut logp, &mut entropy, hidden, packed, targets, INV_TEMPERATURE);
    let mut dhidden = Tensor::uninit(device, hidden.shape());
    let mut dw = tensor(device, 5, w.shape(), Dtype::F32);
    let (dlogp, dentropy) = (noise(6, targets.len()), noise(7, targets.len()));
    let grads = lm_head::Grads { dlogp: &dlogp, dentropy: Some(&dentropy), ddivergence: None };
    let (to, of) = (&mut dhidden, hidden);
    lm_head::backward(to, Some(&mut dw), grads, of, packed, w, targets, INV_TEMPERATURE);
    Outputs::of([("log-probs", &logp), ("entropies", &entropy), ("dx", &dhidden), ("dw", &dw)])
}

fn fused(device: &Device, dtype: Dtype, shape: [usize; 3]) -> Outputs {
    let inputs = Inputs::new(device, dtype, shape, 1);
    let Inputs { params, hidden, targets } = &inputs;
    let head = params.ids().next().expect("a head");
    let [mut logp, mut entropy, _] = inputs.values(device);
    let (packed, w) = (params.packed(head), params.value(head));
    let mut dhidden = Tensor::uninit(device, hidden.shape());
    let mut dw = tensor(device, 5, w.shape(), Dtype::F32);
    let slopes = |token: usize, logp: f32, entropy: f32| {
        [0.5 + 0.01 * (token % 7) as f32 + 0.01 * logp, 0.02 * entropy]
    };
    let to = [&mut logp, &mut entropy, &mut dhidden];
    let scale = INV_TEMPERATURE;
    lm_head::forward_backward(to, Some(&mut dw), &slopes, hidden, packed, w, targets, scale);
    Outputs::of([("log-probs", &logp), ("entropies", &entropy), ("dx", &dhidden), ("dw", &dw)])
}

fn beside(device: &Device, dtype: Dtype, shape: [usize; 3]) -> Outputs {
    let inputs = Inputs::new(device, dtype, shape, 1);
    let against = Inputs::new(device, dtype, shape, 21);
    let Inputs { params, hidden, targets } = &inputs;
    let head = params.ids().next().expect("a head");
    let other = Other { hidden: &against.hidden, head: against.params.packed(head) };
    let [mut logp, mut entropy, mut divergence] = inputs.values(device);
    let (packed, w) = (params.packed(head), params.value(head));
    let to = [&mut logp, &mut entropy, &mut divergence];
    lm_head::forward_beside(to, other, hidden, packed, targets, INV_TEMPERATURE);
    let mut dhidden = Tensor::uninit(device, hidden.shape());
    let mut dw = tensor(device, 5, w.shape(), Dtype::F32);
    let (dlogp, ddivergence) = (noise(6, targets.len()), noise(7, targets.len()));
    let ddivergence = Some((&ddivergence[..], other));
    let grads = lm_head::Grads { dlogp: &dlogp, dentropy: None, ddivergence };
    let to = &mut dhidden;
    lm_head::backward(to, Some(&mut dw), grads, hidden, packed, w, targets, INV_TEMPERATURE);
    Outputs::of([
        ("log-probs", &logp),
        ("entropies", &entropy),
        ("divergences", &divergence),
        ("dx", &dhidden),
        ("dw", &dw),
    ])
}
