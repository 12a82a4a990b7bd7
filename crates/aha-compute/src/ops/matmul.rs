//! Matrix products with a weight: `y = x·wᵀ + b`, and the gradients of `x`, `w` and `b`.
//!
//! | buffer    | shape  | written by                                                   |
//! |-----------|--------|--------------------------------------------------------------|
//! | `x` `y`   | (T, K) (T, N) | caller; forward `=`, or `+=` by [`forward_add`]       |
//! | `w` `b`   | (N, K) (N)    | caller; [`Packed`] is a copy of `w` in the kernel's order |
//! | `dx`      | (T, K) | [`backward_input`] `=`, or `+=` where asked: `dy·w`          |
//! | `dw`      | (N, K) | [`backward_weight`] `+=`: `dyᵀ·x`                            |
//! | `db`      | (N)    | [`backward_bias`] `+=`: column sums of `dy`                  |
//!
//! Every output element is one chain of fused multiply-adds over its contraction index in order, which
//! starts at zero or, where it accumulates, at the stored value. Blocking over the contraction stores the
//! accumulator and loads it again, which changes no bit; so nothing depends on rows, tiles, blocks,
//! threads or the instruction set, and micro-batches in order give the gradient of one batch.
//!
//! # bf16
//! Where the left operand is bf16, the right one is rounded to it too, and every output is the same chain
//! over the rounded operands: bit for bit the `f32` product of them. (A processor with an instruction for pairs of
//! bf16 numbers takes denormals for zero in it, and might round a pair once; then the law holds to the last places,
//! and still nothing depends on rows, blocks or threads.) `y` may be bf16 as well, rounded from the finished
//! sum; gradients
//! are `f32`.
//!
//! # Bytes
//! A weight can be packed as int8, for sampling: each row `n` has the scale `s_n = max_k |w_nk| / 127` and quanta
//! `q_nk = round(w_nk / s_n)`, ties to even, so that `|s_n q_nk - w_nk|` is at most `s_n / 2`. An output is
//! `s_n Σ_k x_k q_nk + b_n`: the chain of the `f32` product of `x`, rounded to bf16 or not, and the quanta, in order of
//! `k`, and then the product with the scale. It has the same bits on every instruction set.
//!
//! # FP8
//! On a CUDA device, all three products can be those of [`fp8`].

mod block;
mod cuda;
pub mod few_rows;
pub mod fp8;
mod kernel;
mod pack;
mod pairs;

#[cfg(test)]
mod bf16_tests;
#[cfg(test)]
mod int8_tests;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::simd::{LANES, simd_fn};
use crate::tensor::{self, Shards, Values};
use crate::{Device, Dtype, Tensor};

pub(crate) use block::Out;
use block::{Left, Product, Right};
use pack::{Aligned, Steps, Tile};

/// Elements of `dy` below which [`backward_bias`] stays on the caller's thread.
const BIAS_ALONE_LEN: usize = 1 << 16;

/// A weight `(N, K)` in the order in which the kernel reads it, for products with rows of activations of the
/// same dtype, or of either if it is int8.
///
/// Panels of as many outputs as a tile of the device's instruction set is wide, each `K` deep, the last
/// one filled up with zeros. In bf16, two steps of `K` are one word; in int8, a step is a byte. On a CUDA device it is
/// the weight as it is, of the dtype that it is multiplied in.
pub struct Packed {
    out_len: usize,
    in_len: usize,
    place: Place,
}

enum Place {
    Host(Panels),
    Gpu(Tensor),
    /// None where the device failed before or while it was made.
    Fp8(Option<fp8::Weight>),
}

struct Panels {
    panels: Aligned,
    tile: Tile,
    form: Form,
}

/// What the panels hold.
enum Form {
    Dtype(Dtype),
    /// Quanta, and the scale of each output.
    Int8(Vec<f32>),
}

impl Packed {
    /// Packs `w (N, K)`, an `f32` tensor, on all threads; for bf16 its elements are rounded.
    pub fn of_weight(w: &Tensor, dtype: Dtype) -> Packed {
        let (device, out_len, in_len) = (w.device(), w.rows(), w.cols());
        if device.is_cuda() {
            return Packed { out_len, in_len, place: Place::Gpu(w.to_dtype(dtype)) };
        }
        let tile = Tile::of(device.isa());
        let steps = match dtype {
            Dtype::F32 => Steps::Floats,
            Dtype::Bf16 => Steps::Words,
        };
        let panel_len = steps.rows(in_len) * tile.cols;
        let panel_count = out_len.div_ceil(tile.cols);
        let mut panels = Aligned::uninit(device, panel_count * panel_len);
        let shards = Shards::new(panels.as_mut_slice());
        let block = panel_count.div_ceil(4 * device.threads()).max(1);
        device.run_blocks(panel_count, block, |start, end| {
            let mut rounded = (dtype == Dtype::Bf16)
                .then(|| Tensor::uninit_as(device, Dtype::Bf16, &[tile.cols, in_len]));
            for panel in start..end {
                let rows = panel * tile.cols..((panel + 1) * tile.cols).min(out_len);
                let from = &w.as_slice()[rows.start * in_len..rows.end * in_len];
                // SAFETY: each panel belongs to one call.
                let to = unsafe { shards.slice(panel * panel_len, (panel + 1) * panel_len) };
                let from = match &mut rounded {
                    None => Values::F32(from),
                    Some(rounded) => {
                        let to = &mut rounded.as_mut_bf16()[..from.len()];
                        tensor::round(device.isa(), to, from);
                        Values::Bf16(to)
                    }
                };
                pack::panel_of_rows(to, from, in_len, tile.cols);
            }
        });
        let panels = Panels { panels, tile, form: Form::Dtype(dtype) };
        Packed { out_len, in_len, place: Place::Host(panels) }
    }

    /// Packs `w (N, K)`, an `f32` tensor, on all threads, as int8 with a scale for each row. For a processor only.
    pub fn as_int8(w: &Tensor) -> Packed {
        let (device, out_len, in_len) = (w.device(), w.rows(), w.cols());
        let tile = Tile::of(device.isa());
        let panel_len = Steps::Bytes.rows(in_len) * tile.cols;
        let panel_count = out_len.div_ceil(tile.cols);
        let mut panels = Aligned::uninit(device, panel_count * panel_len);
        let mut scales = vec![0.0; out_len];
        let (to, scales_to) = (Shards::new(panels.as_mut_slice()), Shards::new(&mut scales));
        let block = panel_count.div_ceil(4 * device.threads()).max(1);
        device.run_blocks(panel_count, block, |start, end| {
            let mut rounded = Tensor::uninit(device, &[tile.cols, in_len]);
            for panel in start..end {
                let rows = panel * tile.cols..((panel + 1) * tile.cols).min(out_len);
                let from = &w.as_slice()[rows.start * in_len..rows.end * in_len];
                // SAFETY: each panel, and the scales of its rows, belong to one call.
                let (to, scales) = unsafe {
                    let to = to.slice(panel * panel_len, (panel + 1) * panel_len);
                    (to, scales_to.slice(rows.start, rows.end))
                };
                let (isa, rounded) = (device.isa(), rounded.as_mut_slice());
                pack::quantized_panel(isa, to, scales, from, rounded, in_len, tile.cols);
            }
        });
        let panels = Panels { panels, tile, form: Form::Int8(scales) };
        Packed { out_len, in_len, place: Place::Host(panels) }
    }

    /// Packs `w (N, K)`, an `f32` tensor, as quanta of [`fp8`]. For a CUDA device only.
    pub fn as_fp8(w: &Tensor) -> Packed {
        let (out_len, in_len) = (w.rows(), w.cols());
        let gpu = w.gpu().expect("FP8 is for CUDA devices");
        let weight = gpu.ask(|cx| fp8::Weight::new(cx, w.view(), [out_len, in_len]));
        Packed { out_len, in_len, place: Place::Fp8(weight) }
    }

    /// Outputs: `N`.
    pub fn out_len(&self) -> usize {
        self.out_len
    }

    /// Inputs: `K`.
    pub fn in_len(&self) -> usize {
        self.in_len
    }

    /// Memory that the panels, and the scales of int8, take.
    pub fn bytes(&self) -> usize {
        let Panels { panels, form, .. } = match &self.place {
            Place::Host(panels) => panels,
            Place::Gpu(weight) => return weight.len() * weight.dtype().bytes(),
            Place::Fp8(weight) => return weight.as_ref().map_or(0, fp8::Weight::bytes),
        };
        let scales = match form {
            Form::Dtype(_) => 0,
            Form::Int8(scales) => size_of_val(scales.as_slice()),
        };
        size_of_val(panels.as_slice()) + scales
    }

    /// Where all that kernels of a CUDA device read of it is; nothing on a processor.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> {
        let (weight, quanta) = match &self.place {
            Place::Gpu(weight) => (Some(weight.address()), None),
            Place::Fp8(weight) => (None, weight.as_ref().map(fp8::Weight::addresses)),
            Place::Host(_) => (None, None),
        };
        weight.into_iter().chain(quanta.into_iter().flatten())
    }

    /// The weight as kernels of a CUDA device read it.
    #[track_caller]
    pub(crate) fn on_gpu(&self) -> &Tensor {
        match &self.place {
            Place::Gpu(weight) => weight,
            Place::Host(_) => panic!("a weight packed for a processor"),
            Place::Fp8(_) => panic!("a weight as quanta"),
        }
    }

    /// As gradients of activations are multiplied with it on a CUDA device.
    pub(crate) fn factor(&self) -> Factor<'_> {
        match &self.place {
            Place::Fp8(_) => Factor::Fp8(self),
            _ => Factor::Value(self.on_gpu()),
        }
    }

    /// The quanta, for what is asked of a device: nothing failed there, so they are there.
    #[track_caller]
    fn quanta(&self) -> &fp8::Weight {
        match &self.place {
            Place::Fp8(Some(weight)) => weight,
            _ => panic!("a weight as quanta on a CUDA device"),
        }
    }

    /// Whether it is for a CUDA device.
    pub(crate) fn is_on_gpu(&self) -> bool {
        matches!(self.place, Place::Gpu(_))
    }

    /// As [`Packed::on_gpu`], to write.
    #[track_caller]
    pub(crate) fn on_gpu_mut(&mut self) -> &mut Tensor {
        match &mut self.place {
            Place::Gpu(weight) => weight,
            Place::Host(_) => panic!("a weight packed for a processor"),
            Place::Fp8(_) => panic!("a weight as quanta"),
        }
    }

    /// Writes the quanta of `w (N, K)` in place of those that are there.
    #[track_caller]
    pub(crate) fn requantize(&mut self, w: &Tensor) {
        let (gpu, shape) = (w.gpu().expect("FP8 is for CUDA devices"), [self.out_len, self.in_len]);
        match &mut self.place {
            // None: the device has failed, and nothing is done there any more.
            Place::Fp8(weight) => gpu.run(|cx| match weight {
                Some(weight) => weight.write(cx, w.view(), shape),
                None => Ok(()),
            }),
            _ => panic!("a weight as quanta"),
        }
    }

    /// Memory for another weight of this shape on the same CUDA device, with unspecified contents.
    #[track_caller]
    pub(crate) fn uninit_like(&self) -> Packed {
        let weight = self.on_gpu();
        let fresh = Tensor::uninit_as(weight.device(), weight.dtype(), weight.shape());
        Packed { place: Place::Gpu(fresh), ..*self }
    }

    #[track_caller]
    fn panels(&self) -> &Panels {
        match &self.place {
            Place::Host(panels) => panels,
            Place::Gpu(_) | Place::Fp8(_) => panic!("a weight on a CUDA device"),
        }
    }

    #[track_caller]
    fn check_tile(&self, device: &Device) {
        let tile = self.panels().tile;
        assert_eq!(tile, Tile::of(device.isa()), "w is packed for another instruction set");
    }

    fn right(&self) -> Right<'_> {
        let Panels { panels, form, .. } = self.panels();
        let panels = panels.as_slice();
        match form {
            Form::Dtype(Dtype::F32) => Right::Panels(panels),
            Form::Dtype(Dtype::Bf16) => Right::Words(panels),
            Form::Int8(scales) => Right::Bytes { panels, scales },
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed[{}, {}] ", self.out_len, self.in_len)?;
        match &self.place {
            Place::Host(Panels { form: Form::Dtype(dtype), .. }) => write!(f, "{dtype}"),
            Place::Host(Panels { form: Form::Int8(_), .. }) => f.write_str("int8"),
            Place::Gpu(weight) => write!(f, "{} on a CUDA device", weight.dtype()),
            Place::Fp8(_) => f.write_str("FP8 on a CUDA device"),
        }
    }
}

/// `y = x·wᵀ + bias` for `x (T, K)` and `y (T, N)`; the bias is added after the sum.
pub fn forward(y: &mut Tensor, x: &Tensor, w: &Packed, bias: Option<&Tensor>) {
    let (device, row_count) = (x.device().clone(), rows_of("x", x, w.in_len));
    if let Some(gpu) = x.gpu() {
        return gpu.run(|cx| cuda::forward_all(cx, std::slice::from_mut(y), x, &[(w, bias)]));
    }
    forward_rows(&device, &Out::of(y), x.values(), row_count, w, bias.map(Tensor::as_slice));
}

/// [`forward`] with several weights and their biases, which have the same number of inputs. On a CUDA device, few rows
/// take one launch.
pub fn forward_all(ys: &mut [Tensor], x: &Tensor, weights: &[(&Packed, Option<&Tensor>)]) {
    assert_eq!(ys.len(), weights.len(), "as many results as weights");
    for (w, _) in weights {
        rows_of("x", x, w.in_len);
    }
    if let Some(gpu) = x.gpu() {
        return gpu.run(|cx| cuda::forward_all(cx, ys, x, weights));
    }
    ys.iter_mut().zip(weights).for_each(|(y, (w, bias))| forward(y, x, w, *bias));
}

/// `y += x·wᵀ` for `x (T, K)` and `y (T, N)`, an `f32` tensor: the sums go on from what it holds.
pub fn forward_add(y: &mut Tensor, x: &Tensor, w: &Packed) {
    let (device, row_count) = (x.device().clone(), rows_of("x", x, w.in_len));
    if let Some(gpu) = x.gpu() {
        return gpu.run(|cx| cuda::forward_add(cx, y, x, w));
    }
    w.check_tile(&device);
    check_len("y", y.len(), row_count * w.out_len);
    let product = Product {
        rows: row_count,
        cols: w.out_len,
        depth: w.in_len,
        left: Left::Rows(x.values()),
        right: w.right(),
        accumulate: true,
        bias: None,
    };
    block::run(&device, &Out::of(y), &product);
}

/// A weight `(N, K)` as gradients of activations are multiplied with it.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// On a processor an `f32` tensor; on a CUDA device of the kind of the gradients.
    Value(&'a Tensor),
    /// Quanta, for gradients of either kind on a CUDA device.
    Fp8(&'a Packed),
}

impl<'a> From<&'a Tensor> for Factor<'a> {
    fn from(value: &'a Tensor) -> Factor<'a> {
        Factor::Value(value)
    }
}

/// `dx = dy·w`, or `dx += dy·w` if it accumulates, for `dy (T, N)`, `w (N, K)` and `dx (T, K)`. For `w` see
/// [`Params::factor`](crate::Params::factor).
pub fn backward_input<'a>(
    dx: &mut Tensor,
    dy: &Tensor,
    w: impl Into<Factor<'a>>,
    accumulate: bool,
) {
    let w = match w.into() {
        Factor::Value(w) => w,
        Factor::Fp8(w) => {
            rows_of("dy", dy, w.out_len);
            let gpu = dy.gpu().expect("FP8 is for CUDA devices");
            return gpu.run(|cx| fp8::backward_input(cx, dx, dy, w.quanta(), accumulate));
        }
    };
    let dims = Dims { rows: rows_of("dy", dy, w.rows()), out: w.rows(), inp: w.cols() };
    if let Some(gpu) = dy.gpu() {
        return gpu.run(|cx| cuda::backward_input(cx, dx, dy, w, accumulate));
    }
    backward_input_rows(
        dy.device(),
        dx.as_mut_slice(),
        dy.values(),
        w.as_slice(),
        dims,
        accumulate,
    );
}

/// `dw += dyᵀ·x` for `dy (T, N)`, `x (T, K)` and `dw (N, K)`.
pub fn backward_weight(dw: &mut Tensor, dy: &Tensor, x: &Tensor) {
    let dims = Dims { rows: rows_of("dy", dy, dw.rows()), out: dw.rows(), inp: dw.cols() };
    if let Some(gpu) = dy.gpu() {
        return gpu.run(|cx| cuda::backward_weight(cx, dw, dy, x));
    }
    backward_weight_rows(dy.device(), dw.as_mut_slice(), dy.values(), x.values(), dims);
}

/// `db += Σ dy` over the rows of `dy (T, N)`.
pub fn backward_bias(db: &mut Tensor, dy: &Tensor) {
    let row_count = rows_of("dy", dy, db.len());
    if let Some(gpu) = dy.gpu() {
        return gpu.run(|cx| cuda::backward_bias(cx, db, dy));
    }
    backward_bias_rows(dy.device(), db.as_mut_slice(), dy.as_slice(), row_count);
}

/// Sizes of a product with a weight `(out, inp)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    /// Rows of activations: `T`.
    pub(crate) rows: usize,
    /// Outputs: `N`.
    pub(crate) out: usize,
    /// Inputs: `K`.
    pub(crate) inp: usize,
}

/// [`forward`] of `row_count` rows.
pub(crate) fn forward_rows(
    device: &Device,
    y: &Out<'_>,
    x: Values<'_>,
    row_count: usize,
    w: &Packed,
    bias: Option<&[f32]>,
) {
    w.check_tile(device);
    check_len("y", y.len(), row_count * w.out_len);
    check_len("x", x.len(), row_count * w.in_len);
    if let Some(bias) = bias {
        check_len("bias", bias.len(), w.out_len);
    }
    let product = Product {
        rows: row_count,
        cols: w.out_len,
        depth: w.in_len,
        left: Left::Rows(x),
        right: w.right(),
        accumulate: false,
        bias,
    };
    block::run(device, y, &product);
}

/// [`backward_input`] of `dims.rows` rows.
pub(crate) fn backward_input_rows(
    device: &Device,
    dx: &mut [f32],
    dy: Values<'_>,
    w: &[f32],
    dims: Dims,
    accumulate: bool,
) {
    check_len("dx", dx.len(), dims.rows * dims.inp);
    check_len("dy", dy.len(), dims.rows * dims.out);
    check_len("w", w.len(), dims.out * dims.inp);
    let product = Product {
        rows: dims.rows,
        cols: dims.inp,
        depth: dims.out,
        left: Left::Rows(dy),
        right: Right::Rows(Values::F32(w)),
        accumulate,
        bias: None,
    };
    block::run(device, &Out::F32(Shards::new(dx)), &product);
}

/// [`backward_weight`] of `dims.rows` rows.
pub(crate) fn backward_weight_rows(
    device: &Device,
    dw: &mut [f32],
    dy: Values<'_>,
    x: Values<'_>,
    dims: Dims,
) {
    check_len("dw", dw.len(), dims.out * dims.inp);
    check_len("dy", dy.len(), dims.rows * dims.out);
    check_len("x", x.len(), dims.rows * dims.inp);
    let product = Product {
        rows: dims.out,
        cols: dims.inp,
        depth: dims.rows,
        left: Left::Columns(dy),
        right: Right::Rows(x),
        accumulate: true,
        bias: None,
    };
    block::run(device, &Out::F32(Shards::new(dw)), &product);
}

/// [`backward_bias`] of `row_count` rows.
pub(crate) fn backward_bias_rows(device: &Device, db: &mut [f32], dy: &[f32], row_count: usize) {
    check_len("dy", dy.len(), row_count * db.len());
    let width = db.len();
    if row_count == 0 || width == 0 {
        return;
    }
    let parts = if dy.len() < BIAS_ALONE_LEN { 1 } else { 2 * device.threads() };
    let block = width.div_ceil(parts).next_multiple_of(BIAS_VECTORS * LANES);
    let db = Shards::new(db);
    device.run_blocks(width, block, |start, end| {
        // SAFETY: blocks of columns are disjoint.
        add_rows(device.isa(), unsafe { db.slice(start, end) }, &dy[start..], width, row_count);
    });
}

/// Vectors of column sums that are kept in registers.
const BIAS_VECTORS: usize = 4;

simd_fn! {
    /// `sums[j] += Σ rows[i * stride + j]`, in order of `i`.
    #[expect(clippy::needless_range_loop, reason = "vectors are indices")]
    fn add_rows<S>(sums: &mut [f32], rows: &[f32], stride: usize, row_count: usize) {
        assert!(rows.len() >= (row_count - 1) * stride + sums.len());
        let mut at = 0;
        while at < sums.len() {
            let to = sums.as_mut_ptr().add(at);
            let from = rows.as_ptr().add(at);
            if sums.len() - at >= BIAS_VECTORS * LANES {
                let mut sum = [S::splat(0.0); BIAS_VECTORS];
                for v in 0..BIAS_VECTORS {
                    sum[v] = S::load(to.add(v * LANES));
                }
                for i in 0..row_count {
                    for v in 0..BIAS_VECTORS {
                        sum[v] = S::add(sum[v], S::load(from.add(i * stride + v * LANES)));
                    }
                }
                for v in 0..BIAS_VECTORS {
                    S::store(to.add(v * LANES), sum[v]);
                }
                at += BIAS_VECTORS * LANES;
            } else {
                let len = (sums.len() - at).min(LANES);
                let mut sum = S::load_part(to, len);
                for i in 0..row_count {
                    sum = S::add(sum, S::load_part(from.add(i * stride), len));
                }
                S::store_part(to, sum, len);
                at += len;
            }
        }
    }
}

/// Rows of a tensor whose last dimension must be `width`.
#[track_caller]
fn rows_of(name: &str, tensor: &Tensor, width: usize) -> usize {
    let rows = tensor.len().checked_div(width).unwrap_or(0);
    assert_eq!(tensor.len(), rows * width, "{name} {:?} needs rows of {width}", tensor.shape());
    rows
}

#[track_caller]
fn check_len(name: &str, buffer_len: usize, len: usize) {
    assert_eq!(buffer_len, len, "length of {name}");
}

/// The definitions, in scalar loops.
pub mod reference {
    use super::super::Real;

    /// `y (T, N) = x (T, K)·w (N, K)ᵀ + bias (N)`.
    pub fn forward<R: Real>(y: &mut [R], x: &[R], w: &[R], bias: Option<&[R]>, in_len: usize) {
        let out_len = w.len() / in_len;
        for (y, x) in y.chunks_exact_mut(out_len).zip(x.chunks_exact(in_len)) {
            for (n, (y, w)) in y.iter_mut().zip(w.chunks_exact(in_len)).enumerate() {
                let sum = x.iter().zip(w).fold(R::of(0.0), |sum, (&x, &w)| x.mul_add(w, sum));
                *y = bias.map_or(sum, |bias| sum + bias[n]);
            }
        }
    }

    /// The quanta `(N, K)` and the scales `(N)` of an int8 weight.
    pub fn quantize(w: &[f32], in_len: usize) -> (Vec<f32>, Vec<f32>) {
        let scale = |row: &[f32]| row.iter().fold(0.0, |max: f32, w| max.max(w.abs())) / 127.0;
        let scales: Vec<f32> = w.chunks_exact(in_len).map(scale).collect();
        let rows = w.chunks_exact(in_len).zip(&scales);
        let quanta = rows.flat_map(|(row, scale)| {
            row.iter().map(move |w| match scale {
                0.0 => 0.0,
                scale => (w / scale).round_ties_even().clamp(-127.0, 127.0),
            })
        });
        (quanta.collect(), scales)
    }

    /// `y (T, N) = scales (N) · (x (T, K)·quanta (N, K)ᵀ) + bias (N)`.
    pub fn forward_int8(
        y: &mut [f32],
        x: &[f32],
        (quanta, scales): (&[f32], &[f32]),
        bias: Option<&[f32]>,
        in_len: usize,
    ) {
        forward(y, x, quanta, None, in_len);
        for y in y.chunks_exact_mut(scales.len()) {
            for (n, (y, scale)) in y.iter_mut().zip(scales).enumerate() {
                let scaled = *y * scale;
                *y = bias.map_or(scaled, |bias| scaled + bias[n]);
            }
        }
    }

    /// `dx (T, K) (=|+=) dy (T, N)·w (N, K)`.
    pub fn backward_input<R: Real>(
        dx: &mut [R],
        dy: &[R],
        w: &[R],
        in_len: usize,
        accumulate: bool,
    ) {
        let out_len = w.len() / in_len;
        for (dx, dy) in dx.chunks_exact_mut(in_len).zip(dy.chunks_exact(out_len)) {
            for (k, dx) in dx.iter_mut().enumerate() {
                let start = if accumulate { *dx } else { R::of(0.0) };
                *dx = (0..out_len).fold(start, |sum, n| dy[n].mul_add(w[n * in_len + k], sum));
            }
        }
    }

    /// `dw (N, K) += dy (T, N)ᵀ·x (T, K)`, over the rows in order.
    pub fn backward_weight<R: Real>(dw: &mut [R], dy: &[R], x: &[R], in_len: usize) {
        let out_len = dw.len() / in_len;
        for (dy, x) in dy.chunks_exact(out_len).zip(x.chunks_exact(in_len)) {
            for (dw, &dy) in dw.chunks_exact_mut(in_len).zip(dy) {
                for (dw, &x) in dw.iter_mut().zip(x) {
                    *dw = dy.mul_add(x, *dw);
                }
            }
        }
    }

    /// `db (N) += Σ dy (T, N)`, over the rows in order.
    pub fn backward_bias<R: Real>(db: &mut [R], dy: &[R]) {
        for dy in dy.chunks_exact(db.len()) {
            for (db, &dy) in db.iter_mut().zip(dy) {
                *db += dy;
            }
        }
    }
}
