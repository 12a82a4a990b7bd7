//! Products in FP8 against their definition; the processor has none.

use aha_compute::ops::matmul::fp8::reference::{Quantized, product};
use aha_compute::ops::matmul::fp8::{TILE, backward_weight};
use aha_compute::ops::matmul::{backward_input, forward};
use aha_compute::{Device, Dtype, Params, Tensor};

use super::{Outputs, worst};
use crate::compare::Bound;
use crate::finding::Outcome;
use crate::inputs::{host, noise, tensor};
use crate::{Error, Findings, Part, Size, Subject};

/// Quanta have the definition's bits, and so their products; tensor cores keep some 14 bits of a sum of 128 of them,
/// which is 6e-5 of the greatest term (DeepSeek-V3, arXiv:2412.19437, section 3.3.2).
const BOUND: Bound = Bound { norm: 1e-3, max: 5e-3 };

const SMALL: [[usize; 3]; 2] = [[33, 64, 136], [130, 256, 72]];
/// There are blocks of each size in each product.
const FULL: [[usize; 3]; 4] =
    [[1, 896, 4864], [129, 896, 1152], [1536, 300, 1152], [200, 1152, 1536]];

pub(super) fn check(subject: &Subject, size: Size, findings: &mut Findings<'_>) {
    let full = if size == Size::Full { &FULL[..] } else { &[] };
    for shape @ [rows, inner, outer] in SMALL.iter().chain(full) {
        let name = format!("linear {rows}x{inner}->{outer}, FP8");
        findings.case(Part::Ops, name, || compare(subject, *shape));
    }
}

fn compare(subject: &Subject, shape: [usize; 3]) -> Result<Outcome, Error> {
    let Ok(device) = subject.device(Dtype::Bf16).with_fp8() else {
        return Ok(Outcome::none_of(0, "nothing to look at: the device has no FP8"));
    };
    let got = computed(&device, shape);
    device.check()?;
    Ok(worst(&got, &defined(&subject.host(Dtype::Bf16), shape), BOUND))
}

fn weights([_, inner, outer]: [usize; 3]) -> Vec<f32> {
    let scale = (3.0 / inner as f32).sqrt();
    noise(1, outer * inner).into_iter().map(|x| scale * x).collect()
}

fn computed(device: &Device, shape: [usize; 3]) -> Outputs {
    let [rows, inner, outer] = shape;
    let mut params = Params::default();
    let w = params.push("w", Tensor::from_slice(device, &[outer, inner], &weights(shape)));
    let x = tensor(device, 2, &[rows, inner], Dtype::Bf16);
    let mut y = Tensor::uninit(device, &[rows, outer]);
    forward(&mut y, &x, params.packed_for_layer(w), None);
    let dy = tensor(device, 3, &[rows, outer], Dtype::F32);
    let mut dw = tensor(device, 4, &[outer, inner], Dtype::F32);
    backward_weight(&mut dw, &dy, &x);
    let mut dx = Tensor::uninit(device, &[rows, inner]);
    backward_input(&mut dx, &dy, params.factor_for_layer(w), false);
    Outputs::of([("y", &y), ("dw", &dw), ("dx", &dx)])
}

fn defined(device: &Device, shape: [usize; 3]) -> Outputs {
    let [rows, inner, outer] = shape;
    let x = host(&tensor(device, 2, &[rows, inner], Dtype::Bf16));
    let (dy, mut dw) = (noise(3, rows * outer), noise(4, outer * inner));
    let weight = Quantized::new(&weights(shape), [outer, inner], TILE);
    let mut y = vec![0.0f32; rows * outer];
    product(&mut y, &Quantized::new(&x, [rows, inner], 1), &weight);
    let columns = |values: &[f32], cols: usize| {
        let turned: Vec<f32> =
            (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols).copied()).collect();
        Quantized::new(&turned, [cols, rows], 1)
    };
    product(&mut dw, &columns(&dy, outer), &columns(&x, inner));
    let mut dx = vec![0.0f32; rows * inner];
    product(&mut dx, &Quantized::new(&dy, [rows, outer], 1), &weight.transposed());
    Outputs(vec![("y", y), ("dw", dw), ("dx", dx)])
}
