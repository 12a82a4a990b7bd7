//! The LM head: logits, log-softmax, the log-prob of a target, the entropy and, beside the head of another model, the
//! divergence from what that predicts, as one op.
//!
//! ```text
//! l_tj   = inv_temperature (h_t . w_j)   d_tj = l_tj - max_j l_tj   s_t = sum_j exp(d_tj)
//! log p_tj = d_tj - ln s_t               H_t  = -sum_j p_tj log p_tj = ln s_t - sum_j exp(d_tj) d_tj / s_t
//! dl_tj  = inv_temperature (dlogp_t (1[j = target_t] - p_tj) - dH_t p_tj (log p_tj + H_t))
//! dh_t   = sum_j dl_tj w_j               dw_j = sum_t dl_tj h_t
//! ```
//!
//! Beside another model, whose logits are `m_tj = inv_temperature (g_t . u_j)`:
//!
//! ```text
//! D_t    = KL(p_t || q_t) = sum_j p_tj (log p_tj - log q_tj)          log q_tj from m_tj as log p_tj from l_tj
//! dl_tj  += inv_temperature dD_t p_tj (log p_tj - log q_tj - D_t)
//! ```
//!
//! Where the vocabularies have other sizes, which happens where models of a family are padded to other multiples,
//! both distributions are those of the tokens that they have in common.
//!
//! | buffer                | shape  | unit             | written by                            |
//! |-----------------------|--------|------------------|---------------------------------------|
//! | `hidden`              | (T, C) | activation       | caller                                |
//! | `head` `w`            | (V, C) | weight           | caller; `head` is `w`, packed         |
//! | `targets`             | (T)    | index below V    | caller                                |
//! | `out`                 | (T, V) | logit            | [`logits`] `=`                        |
//! | `logp` `entropy`      | (T)    | nats             | [`forward`] `=`                       |
//! | `other.hidden` `g`    | (T, D) | activation       | caller; a constant                    |
//! | `other.head` `u`      | (U, D) | weight, packed   | caller; a constant                    |
//! | `divergence`          | (T)    | nats             | [`forward_beside`] `=`                |
//! | `dlogp` `dentropy`    | (T)    | loss per nat     | caller                                |
//! | `ddivergence`         | (T)    | loss per nat     | caller                                |
//! | `dhidden`             | (T, C) | loss per unit    | [`backward`] `=`                      |
//! | `dw`                  | (V, C) | loss per unit    | [`backward`] `+=`                     |
//!
//! [`forward`] and [`backward`] go through the tokens in chunks, and only one chunk's logits, of both models, exist
//! at a time. Both run what the sampler runs, [`logits`] and [`row_stats`], on their chunks, so a token's
//! log-prob has the same bits in either. [`forward_backward`] does the work of both at once, with the same bits, where
//! a token's gradients follow from its own log-prob and entropy: then logits are computed once and not twice.
//!
//! # Order of sums
//! A logit is one chain over `C`. Sums over `V` have 16 lanes, lane `j mod 16`; each lane adds up blocks
//! of 32 terms, which keeps the rounding error of large vocabularies small. `dh_t` is one chain over `j`.
//! `dw_j` is one chain over `t` that starts at the stored value, so neither chunks nor micro-batches in
//! order change a bit.
//!
//! # Map
//! - [`reference`](mod@reference): the formulas above as scalar loops.
//! - `kernel`: a row of logits at a time, vectorised.

pub mod cuda;
mod kernel;
pub mod reference;

#[cfg(test)]
mod tests;

pub use kernel::{BLOCK_LEN, MAXIMA_PART_LEN, RowStats, maxima, row_stats, row_sums, weights};

use std::ops::Range;

use super::matmul::{self, Out, Packed};
use crate::cuda::Context;
use crate::tensor::{self, Shards, Values};
use crate::{Device, Dtype, Tensor};

/// Logits of a chunk, where the vocabulary is small: 4 MiB stay in a last-level cache.
const CHUNK_LEN: usize = 1 << 20;
/// Chunks have a multiple of as many rows as the matrix products work on at once. With fewer than these,
/// reading the weight and its gradient anew for each chunk takes longer than the arithmetic: at 49152
/// tokens, the backward pass takes 1.3 times as long with 64.
const CHUNK_ROWS_UNIT: usize = 192;
/// Fewest logits that are worth a thread.
const THREAD_LEN_MIN: usize = 1 << 14;

/// `out = hidden·headᵀ · inv_temperature`.
pub fn logits(out: &mut Tensor, hidden: &Tensor, head: &Packed, inv_temperature: f32) {
    let rows = check_hidden(hidden, head);
    check_len("out", out.len(), rows, head.out_len());
    if let Some(gpu) = hidden.gpu() {
        return gpu.run(|cx| {
            let (hidden, w) = (hidden.view(), head.on_gpu().view());
            cuda::logits(cx, &mut out.view_mut(), hidden, w, rows, inv_temperature)
        });
    }
    let device = hidden.device();
    logits_of(device, out.as_mut_slice(), hidden.values(), head, inv_temperature);
}

/// The log-prob of token `id`, in nats, from its row of logits and their statistics.
pub fn log_prob(row: &[f32], stats: &RowStats, id: u32) -> f32 {
    (row[id as usize] - stats.max) - stats.log_sum
}

/// Log-probs of the targets and entropies of the whole distributions, in nats.
pub fn forward(
    logp: &mut Tensor,
    entropy: &mut Tensor,
    hidden: &Tensor,
    head: &Packed,
    targets: &[u32],
    inv_temperature: f32,
) {
    if let Some(gpu) = hidden.gpu() {
        check_targets(targets, check_hidden(hidden, head), head.out_len());
        return gpu.run(|cx| {
            let (logp, entropy) = (&mut logp.view_mut(), &mut entropy.view_mut());
            let (hidden, w) = (hidden.view(), head.on_gpu().view());
            let targets = cx.upload(targets)?;
            let asked = cuda::Asked { hidden, w, targets: targets.view(), inv_temperature };
            cuda::forward(cx, [logp, entropy], None, asked)
        });
    }
    let chunk_rows = chunk_rows(head.out_len());
    forward_in_chunks(logp, entropy, None, hidden, head, targets, inv_temperature, chunk_rows);
}

/// Another model's activations and head: distributions that those here are held against.
#[derive(Clone, Copy)]
pub struct Other<'a> {
    /// Activations, a row for each of the tokens.
    pub hidden: &'a Tensor,
    /// The weight, packed.
    pub head: &'a Packed,
}

impl<'a> Other<'a> {
    #[track_caller]
    fn check(&self, rows: usize) {
        let Other { hidden, head } = self;
        assert!(head.out_len() > 0, "`other.head` has no rows: a distribution needs a token");
        check_len("other.hidden", hidden.len(), rows, head.in_len());
    }

    fn on_gpu(self) -> cuda::Other<'a> {
        cuda::Other { hidden: self.hidden.view(), w: self.head.on_gpu().view() }
    }
}

/// As [`forward`], with the same bits, and the divergences from the distributions of `other`, in nats.
pub fn forward_beside(
    [logp, entropy, divergence]: [&mut Tensor; 3],
    other: Other<'_>,
    hidden: &Tensor,
    head: &Packed,
    targets: &[u32],
    inv_temperature: f32,
) {
    if let Some(gpu) = hidden.gpu() {
        let rows = check_hidden(hidden, head);
        check_targets(targets, rows, head.out_len());
        other.check(rows);
        return gpu.run(|cx| {
            let targets = cx.upload(targets)?;
            let (hidden, w) = (hidden.view(), head.on_gpu().view());
            let asked = cuda::Asked { hidden, w, targets: targets.view(), inv_temperature };
            let [logp, entropy, divergence] =
                &mut [logp, entropy, divergence].map(Tensor::view_mut);
            cuda::forward(cx, [logp, entropy], Some((divergence, other.on_gpu())), asked)
        });
    }
    let rows = chunk_rows(head.out_len());
    let beside = Some((divergence, other));
    forward_in_chunks(logp, entropy, beside, hidden, head, targets, inv_temperature, rows);
}

/// Gradients of `hidden` and, added to what is there and unless it is frozen, of the weight. `w` is what `head` was
/// packed from.
///
/// The logits are computed again, since keeping them would take more memory than all the rest.
pub fn backward(
    dhidden: &mut Tensor,
    dw: Option<&mut Tensor>,
    grads: Grads<'_>,
    hidden: &Tensor,
    head: &Packed,
    w: &Tensor,
    targets: &[u32],
    inv_temperature: f32,
) {
    if let Some(gpu) = hidden.gpu() {
        check_targets(targets, check_hidden(hidden, head), head.out_len());
        return gpu
            .run(|cx| backward_on(cx, dhidden, dw, grads, hidden, head, targets, inv_temperature));
    }
    let chunk_rows = chunk_rows(head.out_len());
    backward_in_chunks(dhidden, dw, grads, hidden, head, w, targets, inv_temperature, chunk_rows);
}

fn backward_on(
    cx: &Context,
    dhidden: &mut Tensor,
    dw: Option<&mut Tensor>,
    grads: Grads<'_>,
    hidden: &Tensor,
    head: &Packed,
    targets: &[u32],
    inv_temperature: f32,
) -> Result<(), crate::cuda::Error> {
    let dlogp = cx.upload(grads.dlogp)?;
    let dentropy = grads.dentropy.map(|dentropy| cx.upload(dentropy)).transpose()?;
    let ddivergence = match grads.ddivergence {
        Some((slopes, other)) => {
            other.check(hidden.rows());
            Some((cx.upload(slopes)?, other.on_gpu()))
        }
        None => None,
    };
    let (targets, mut dw) = (cx.upload(targets)?, dw.map(Tensor::view_mut));
    let (hidden, w, targets) = (hidden.view(), head.on_gpu().view(), targets.view());
    let grads = cuda::Grads {
        dlogp: dlogp.view(),
        dentropy: dentropy.as_ref().map(|of| of.view()),
        ddivergence: ddivergence.as_ref().map(|(slopes, other)| (slopes.view(), *other)),
    };
    let asked = cuda::Asked { hidden, w, targets, inv_temperature };
    cuda::backward(cx, &mut dhidden.view_mut(), dw.as_mut(), grads, asked)
}

/// The gradients of a token's log-prob and entropy, from the token's place, its log-prob and its entropy.
pub type Slopes<'a> = &'a (dyn Fn(usize, f32, f32) -> [f32; 2] + Sync);

/// [`forward`] and [`backward`] in one pass, with the same bits, for a loss that is a sum over tokens.
pub fn forward_backward(
    [logp, entropy, dhidden]: [&mut Tensor; 3],
    dw: Option<&mut Tensor>,
    slopes: Slopes<'_>,
    hidden: &Tensor,
    head: &Packed,
    w: &Tensor,
    targets: &[u32],
    inv_temperature: f32,
) {
    if let Some(gpu) = hidden.gpu() {
        check_targets(targets, check_hidden(hidden, head), head.out_len());
        return gpu.run(|cx| {
            let outputs = [logp, entropy, dhidden].map(Tensor::view_mut);
            let dw = dw.map(Tensor::view_mut);
            let (hidden, w) = (hidden.view(), head.on_gpu().view());
            cuda::forward_backward(cx, outputs, dw, slopes, hidden, w, targets, inv_temperature)
        });
    }
    let chunk_rows = chunk_rows(head.out_len());
    let outputs = [logp, entropy, dhidden];
    both_in_chunks(outputs, dw, slopes, hidden, head, w, targets, inv_temperature, chunk_rows);
}

/// Gradients of what [`forward`] or [`forward_beside`] writes.
#[derive(Clone, Copy)]
pub struct Grads<'a> {
    /// Of the log-probs.
    pub dlogp: &'a [f32],
    /// Of the entropies; 0 where absent.
    pub dentropy: Option<&'a [f32]>,
    /// Of the divergences, and what they are from; 0 where absent.
    pub ddivergence: Option<(&'a [f32], Other<'a>)>,
}

/// Rows of a chunk: as many have their logits in memory at once.
pub fn chunk_rows(vocab_size: usize) -> usize {
    (CHUNK_LEN / (CHUNK_ROWS_UNIT * vocab_size.max(1))).max(1) * CHUNK_ROWS_UNIT
}

fn forward_in_chunks(
    logp: &mut Tensor,
    entropy: &mut Tensor,
    beside: Option<(&mut Tensor, Other<'_>)>,
    hidden: &Tensor,
    head: &Packed,
    targets: &[u32],
    inv_temperature: f32,
    chunk_rows: usize,
) {
    let rows = check_hidden(hidden, head);
    check_len("logp", logp.len(), rows, 1);
    check_len("entropy", entropy.len(), rows, 1);
    check_targets(targets, rows, head.out_len());
    let device = hidden.device();
    let (logp, entropy) = (Shards::new(logp.as_mut_slice()), Shards::new(entropy.as_mut_slice()));
    let (divergence, other) = beside.unzip();
    let divergence = divergence.map(|divergence| {
        check_len("divergence", divergence.len(), rows, 1);
        Shards::new(divergence.as_mut_slice())
    });
    let mut others = other.map(|other| Others::new(other, rows, inv_temperature, chunk_rows));
    for_each_chunk(hidden, head, inv_temperature, chunk_rows, |chunk, logits| {
        let logits: &[f32] = logits;
        let others = others.as_mut().map(|others| &*others.of(chunk.clone()));
        run_rows(device, chunk.len(), head.out_len(), |part| {
            let tokens = chunk.start + part.start..chunk.start + part.end;
            // SAFETY: each token belongs to one call.
            let (logp, entropy) = unsafe {
                (logp.slice(tokens.start, tokens.end), entropy.slice(tokens.start, tokens.end))
            };
            for (i, row) in part.enumerate() {
                let row = &logits[row * head.out_len()..][..head.out_len()];
                let stats = row_stats(device.isa(), row);
                logp[i] = log_prob(row, &stats, targets[tokens.start + i]);
                entropy[i] = stats.entropy;
            }
            if let (Some(divergence), Some(others)) = (&divergence, others) {
                // SAFETY: as above.
                let divergence = unsafe { divergence.slice(tokens.start, tokens.end) };
                let size = others.len() / chunk.len();
                for (i, divergence) in divergence.iter_mut().enumerate() {
                    let at = tokens.start - chunk.start + i;
                    let row = &logits[at * head.out_len()..][..head.out_len()];
                    let (own, other) = in_common(row, &others[at * size..][..size]);
                    *divergence = kernel::divergence(
                        device.isa(),
                        own,
                        other,
                        &stats_of(device, [own, other]),
                    );
                }
            }
        });
    });
}

/// The statistics of two rows.
fn stats_of(device: &Device, rows: [&[f32]; 2]) -> [RowStats; 2] {
    rows.map(|row| row_stats(device.isa(), row))
}

/// The logits of the tokens that both rows have.
fn in_common<'a>(own: &'a [f32], other: &'a [f32]) -> (&'a [f32], &'a [f32]) {
    let size = own.len().min(other.len());
    (&own[..size], &other[..size])
}

/// The logits of another model, a chunk at a time.
struct Others<'a> {
    other: Other<'a>,
    inv_temperature: f32,
    scratch: Tensor,
}

impl<'a> Others<'a> {
    fn new(other: Other<'a>, rows: usize, inv_temperature: f32, chunk_rows: usize) -> Self {
        other.check(rows);
        let Other { hidden, head } = other;
        let scratch = Tensor::uninit(hidden.device(), &[chunk_rows.min(rows), head.out_len()]);
        Self { other, inv_temperature, scratch }
    }

    /// Those of the rows `chunk`, to be overwritten.
    fn of(&mut self, chunk: Range<usize>) -> &mut [f32] {
        let Other { hidden, head } = self.other;
        let logits = &mut self.scratch.as_mut_slice()[..chunk.len() * head.out_len()];
        let x = hidden.values().slice(chunk.start * head.in_len()..chunk.end * head.in_len());
        logits_of(hidden.device(), logits, x, head, self.inv_temperature);
        logits
    }
}

fn backward_in_chunks(
    dhidden: &mut Tensor,
    dw: Option<&mut Tensor>,
    grads: Grads<'_>,
    hidden: &Tensor,
    head: &Packed,
    w: &Tensor,
    targets: &[u32],
    inv_temperature: f32,
    chunk_rows: usize,
) {
    let (rows, vocab_size) = (check_hidden(hidden, head), head.out_len());
    let mut products = Products::new(dhidden, dw, hidden, head, w);
    check_len("dlogp", grads.dlogp.len(), rows, 1);
    if let Some(dentropy) = grads.dentropy {
        check_len("dentropy", dentropy.len(), rows, 1);
    }
    if let Some((ddivergence, _)) = grads.ddivergence {
        check_len("ddivergence", ddivergence.len(), rows, 1);
    }
    check_targets(targets, rows, vocab_size);
    let device = hidden.device();
    let (ddivergence, other) = grads.ddivergence.unzip();
    let mut others = other.map(|other| Others::new(other, rows, inv_temperature, chunk_rows));
    for_each_chunk(hidden, head, inv_temperature, chunk_rows, |chunk, logits| {
        let shards = Shards::new(&mut *logits);
        let size = other.map_or(0, |other| other.head.out_len());
        let others = others.as_mut().map(|others| Shards::new(others.of(chunk.clone())));
        run_rows(device, chunk.len(), vocab_size, |part| {
            for row in part {
                let token = chunk.start + row;
                let dlogp = grads.dlogp[token] * inv_temperature;
                let dentropy = grads.dentropy.map_or(0.0, |d| d[token]) * inv_temperature;
                // SAFETY: each row belongs to one call.
                let (row, other) = unsafe {
                    let other = others.as_ref().map(|o| o.slice(row * size, (row + 1) * size));
                    (shards.slice(row * vocab_size, (row + 1) * vocab_size), other)
                };
                let stats = row_stats(device.isa(), row);
                let of_divergence = other.zip(ddivergence).map(|(other, ddivergence)| {
                    let factor = ddivergence[token] * inv_temperature;
                    divergence_gradient(device, row, other, factor)
                });
                kernel::gradient(device.isa(), row, &stats, dlogp, dentropy);
                row[targets[token] as usize] += dlogp;
                if let Some(of_divergence) = of_divergence {
                    kernel::add(device.isa(), &mut row[..of_divergence.len()], of_divergence);
                }
            }
        });
        products.add(chunk, logits);
    });
}

fn both_in_chunks(
    [logp, entropy, dhidden]: [&mut Tensor; 3],
    dw: Option<&mut Tensor>,
    slopes: Slopes<'_>,
    hidden: &Tensor,
    head: &Packed,
    w: &Tensor,
    targets: &[u32],
    inv_temperature: f32,
    chunk_rows: usize,
) {
    let (rows, vocab_size) = (check_hidden(hidden, head), head.out_len());
    check_len("logp", logp.len(), rows, 1);
    check_len("entropy", entropy.len(), rows, 1);
    check_targets(targets, rows, vocab_size);
    let mut products = Products::new(dhidden, dw, hidden, head, w);
    let device = hidden.device();
    let (logp, entropy) = (Shards::new(logp.as_mut_slice()), Shards::new(entropy.as_mut_slice()));
    for_each_chunk(hidden, head, inv_temperature, chunk_rows, |chunk, logits| {
        let shards = Shards::new(&mut *logits);
        run_rows(device, chunk.len(), vocab_size, |part| {
            for row in part {
                let token = chunk.start + row;
                // SAFETY: each row, and so each token, belongs to one call.
                let (row, logp, entropy) = unsafe {
                    let row = shards.slice(row * vocab_size, (row + 1) * vocab_size);
                    (row, logp.slice(token, token + 1), entropy.slice(token, token + 1))
                };
                let stats = row_stats(device.isa(), row);
                logp[0] = log_prob(row, &stats, targets[token]);
                entropy[0] = stats.entropy;
                let [dlogp, dentropy] =
                    slopes(token, logp[0], entropy[0]).map(|slope| slope * inv_temperature);
                kernel::gradient(device.isa(), row, &stats, dlogp, dentropy);
                row[targets[token] as usize] += dlogp;
            }
        });
        products.add(chunk, logits);
    });
}

/// From the gradients of logits to those of activations and weight.
struct Products<'a> {
    dhidden: &'a mut Tensor,
    dw: Option<&'a mut Tensor>,
    hidden: &'a Tensor,
    w: &'a Tensor,
    dims: matmul::Dims,
}

impl<'a> Products<'a> {
    fn new(
        dhidden: &'a mut Tensor,
        dw: Option<&'a mut Tensor>,
        hidden: &'a Tensor,
        head: &Packed,
        w: &'a Tensor,
    ) -> Self {
        let (rows, out, inp) = (hidden.rows(), head.out_len(), head.in_len());
        check_len("dhidden", dhidden.len(), rows, inp);
        if let Some(dw) = &dw {
            check_len("dw", dw.len(), out, inp);
        }
        check_len("w", w.len(), out, inp);
        Self { dhidden, dw, hidden, w, dims: matmul::Dims { rows, out, inp } }
    }

    /// Those of the rows `chunk`, from the gradients of their logits.
    fn add(&mut self, chunk: Range<usize>, dlogits: &[f32]) {
        let dims = matmul::Dims { rows: chunk.len(), ..self.dims };
        let device = self.hidden.device();
        let of_chunk = chunk.start * dims.inp..chunk.end * dims.inp;
        let x = self.hidden.values().slice(of_chunk.clone());
        let dx = &mut self.dhidden.as_mut_slice()[of_chunk];
        let rounded = rounded_like(self.hidden, dlogits);
        let dlogits = rounded.as_ref().map_or(Values::F32(dlogits), Tensor::values);
        matmul::backward_input_rows(device, dx, dlogits, self.w.as_slice(), dims, false);
        if let Some(dw) = &mut self.dw {
            matmul::backward_weight_rows(device, dw.as_mut_slice(), dlogits, x, dims);
        }
    }
}

/// Overwrites the logits of another model with what the divergence from them adds to the gradients of those here.
fn divergence_gradient<'a>(
    device: &Device,
    row: &[f32],
    other: &'a mut [f32],
    factor: f32,
) -> &'a [f32] {
    let size = row.len().min(other.len());
    let (own, other) = (&row[..size], &mut other[..size]);
    let stats = stats_of(device, [own, other]);
    let divergence = kernel::divergence(device.isa(), own, other, &stats);
    kernel::divergence_gradient(device.isa(), other, own, &stats, divergence, factor);
    other
}

/// A copy of the gradients as bf16, where that is what the products multiply.
fn rounded_like(hidden: &Tensor, dlogits: &[f32]) -> Option<Tensor> {
    let device = hidden.device();
    (hidden.dtype() == Dtype::Bf16).then(|| {
        let mut rounded = Tensor::uninit_as(device, Dtype::Bf16, &[dlogits.len()]);
        let to = Shards::new(rounded.as_mut_bf16());
        device.run_blocks(dlogits.len(), THREAD_LEN_MIN, |start, end| {
            // SAFETY: blocks are disjoint.
            tensor::round(device.isa(), unsafe { to.slice(start, end) }, &dlogits[start..end]);
        });
        rounded
    })
}

/// Calls `f` with chunk after chunk of tokens and their logits, which it may overwrite.
fn for_each_chunk(
    hidden: &Tensor,
    head: &Packed,
    inv_temperature: f32,
    chunk_rows: usize,
    mut f: impl FnMut(Range<usize>, &mut [f32]),
) {
    let (device, rows, width) = (hidden.device(), hidden.rows(), head.in_len());
    let mut scratch = Tensor::uninit(device, &[chunk_rows.min(rows), head.out_len()]);
    for start in (0..rows).step_by(chunk_rows) {
        let chunk = start..(start + chunk_rows).min(rows);
        let logits = &mut scratch.as_mut_slice()[..chunk.len() * head.out_len()];
        let x = hidden.values().slice(chunk.start * width..chunk.end * width);
        logits_of(device, logits, x, head, inv_temperature);
        f(chunk, logits);
    }
}

/// [`logits`] of some rows: the one way from activations to logits, for the sampler and the learner.
fn logits_of(device: &Device, out: &mut [f32], x: Values<'_>, head: &Packed, inv_temperature: f32) {
    let rows = out.len() / head.out_len();
    matmul::forward_rows(device, &Out::F32(Shards::new(out)), x, rows, head, None);
    // A product with one has the bits of the other factor.
    if inv_temperature != 1.0 {
        let len = out.len();
        let out = Shards::new(out);
        device.run_blocks(len, THREAD_LEN_MIN, |start, end| {
            // SAFETY: blocks are disjoint.
            kernel::scale(device.isa(), unsafe { out.slice(start, end) }, inv_temperature);
        });
    }
}

/// Calls `f` with parts of `0..rows`, spread over the threads.
fn run_rows(device: &Device, rows: usize, vocab_size: usize, f: impl Fn(Range<usize>) + Sync) {
    let worth_a_thread = THREAD_LEN_MIN.div_ceil(vocab_size);
    let block = rows.div_ceil(4 * device.threads()).max(worth_a_thread);
    device.run_blocks(rows, block, |start, end| f(start..end));
}

/// The rows of `hidden`, whose width must be that of the head.
#[track_caller]
fn check_hidden(hidden: &Tensor, head: &Packed) -> usize {
    assert!(head.out_len() > 0, "`head` has no rows: a distribution needs at least one token");
    let rows = hidden.rows();
    check_len("hidden", hidden.len(), rows, head.in_len());
    rows
}

#[track_caller]
fn check_targets(targets: &[u32], rows: usize, vocab_size: usize) {
    check_len("targets", targets.len(), rows, 1);
    if let Some(i) = targets.iter().position(|&id| id as usize >= vocab_size) {
        panic!("`targets[{i}]` is {}: the head has {vocab_size} tokens", targets[i]);
    }
}

/// Asserts that a buffer has as many elements as the rows and columns that it should have.
#[track_caller]
fn check_len(name: &str, len: usize, rows: usize, cols: usize) {
    assert_eq!(len, rows * cols, "`{name}` has {len} elements: expected {rows} rows of {cols}");
}
