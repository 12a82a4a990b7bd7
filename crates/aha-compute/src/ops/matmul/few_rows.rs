//! Products of few rows of activations, as decoding has them, on a device.
//!
//! The library's kernel is chosen for many rows whatever there are, so that sampler and learner have the same bits. Its
//! tiles have a hundred columns and more: with few rows, all that counts is how fast the weight is read, and a weight
//! of 896 outputs keeps 7 of 132 multiprocessors busy. The kernel here gives each eight outputs a warp, and has as much
//! of the weight under way as a multiprocessor's shared memory holds. It adds as tensor cores do, sixteen terms at a
//! time and in order.
//!
//! # The same bits
//! Almost every kernel of the library for bf16 adds in that order too, but none promises it. So it is tried: before the
//! first product of a shape, both kernels multiply the same made-up operands, whose sums show their order in every kind
//! of result, and all bits are compared. Where they are equal, few rows go through this kernel; where one differs, the
//! library multiplies them, slowly. Either way the rows have the bits of the learner's. The answer is kept by the
//! [`Context`] ([`Probes`](crate::cuda::Probes)), and is the same in each process on a machine: operands depend on
//! nothing but the shape.
//!
//! Up to three weights that multiply the same activations, such as those of queries, keys and values, go through one
//! launch: at few rows a launch takes longer than the smaller ones.
//!
//! An answer takes memory for a weight and 128 rows of results for a moment, on a stream of its own. It can't be got
//! while work is captured: [`Context::capture`] does the work once before, and then it is known.
//!
//! # What to expect
//! On an H100 (132 multiprocessors at 1.755 GHz, 3.35 TB/s), by this arithmetic and not measured: a warp reads 256
//! bytes for each product of sixteen terms, which the next waits for, about 33 cycles; reading takes 0.8 µs, so that
//! 2.7 MB must be under way in all, 20 KiB for each multiprocessor. In µs, at one row, without what a launch takes:
//!
//! | weight               | shape        | warps | under way, MB | at full bandwidth | one chain | share of it |
//! |----------------------|--------------|-------|---------------|-------------------|-----------|-------------|
//! | Qwen2.5 0.5B q, k, v | 1152 × 896   | 144   | 2.1           | 0.6               | 1.1       | 59 %        |
//! | o                    | 896 × 896    | 112   | 1.6           | 0.5               | 1.1       | 46 %        |
//! | gate, up             | 9728 × 896   | 1216  | 15            | 5.2               | 1.1       | all         |
//! | down                 | 896 × 4864   | 112   | 1.8           | 2.6               | 5.7       | 46 %        |
//! | Qwen2.5 1.5B q, k, v | 2048 × 1536  | 256   | 4.2           | 1.9               | 1.8       | all         |
//! | o                    | 1536 × 1536  | 192   | 3.1           | 1.4               | 1.8       | 78 %        |
//! | gate, up             | 17920 × 1536 | 2240  | 17            | 16.4              | 1.8       | all         |
//! | down                 | 1536 × 8960  | 192   | 3.1           | 8.2               | 10.5      | 78 %        |
//! | Qwen2.5 3B o         | 2048 × 2048  | 256   | 4.2           | 2.5               | 2.4       | all         |
//! | down                 | 2048 × 11008 | 256   | 4.2           | 13.5              | 12.9      | all         |
//! | Qwen2.5 7B q, k, v   | 4608 × 3584  | 576   | 9.4           | 9.9               | 4.2       | all         |
//! | o                    | 3584 × 3584  | 448   | 7.3           | 7.7               | 4.2       | all         |
//! | gate, up             | 37888 × 3584 | 4736  | 17            | 81.1              | 4.2       | all         |
//! | down                 | 3584 × 18944 | 448   | 7.3           | 40.5              | 22.3      | all         |
//! | Llama 3.1 8B q, k, v | 6144 × 4096  | 768   | 13            | 15.0              | 4.8       | all         |
//! | gate, up             | 28672 × 4096 | 3584  | 17            | 70.1              | 4.8       | all         |
//! | down                 | 4096 × 14336 | 512   | 8.4           | 35.1              | 16.8      | all         |
//!
//! What one chain takes is a floor that no kernel with these bits gets below; with fewer than about 250 warps it also
//! bounds the rate: 256 bytes in 33 cycles each. So the smallest model's products read at about two thirds of the
//! bandwidth at best, and those of models from 3B on at all of it. What is between launches comes on top.

use half::bf16;

use crate::cuda::{
    Agreement, Arg, Buffer, Context, Error, FewRows, Kind, Plan, Source, View, ViewMut,
};
use crate::ops::cuda::convert;

pub(crate) static SOURCE: Source =
    Source { name: "few_rows.cu", text: include_str!("few_rows.cu") };

/// The most rows.
pub const ROWS_MAX: usize = 64;
/// The most outputs: from about here on, the library's tiles keep every multiprocessor busy.
const OUTPUTS_MAX: usize = 1 << 15;
/// Elements of sixteen bytes, which rows must be whole multiples of.
const CHUNK: usize = 8;
/// Rows that a kernel is made for, and stages of its ring: as many as the least device has memory for.
const KERNELS: [(usize, usize); 4] = [(8, 9), (16, 8), (32, 6), (64, 4)];
/// The most weights of one launch.
pub(super) const PARTS_MAX: usize = 3;
/// Terms of a stage.
const DEPTH: usize = 128;
/// Outputs of a warp.
const WARP_OUTPUTS: usize = 8;
/// Rows that the library multiplies when it is tried: a tile of most kernels.
const PROBE_ROWS: usize = 128;
/// What values of a product that is tried are: the kernel's numbers of them.
#[derive(Clone, Copy)]
enum MadeUp {
    Activations,
    Weight,
    Bias,
}

/// A product `c (m, n) = x (m, k) · wᵀ + bias`, but for `x`.
pub(super) struct Part<'a> {
    pub(super) c: ViewMut<'a>,
    pub(super) n: usize,
    pub(super) w: View<'a>,
    /// Of the kind of the result.
    pub(super) bias: Option<View<'a>>,
}

/// Activations `(m, k)`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) x: View<'a>,
    pub(super) m: usize,
    pub(super) k: usize,
}

/// Multiplies few rows with up to [`PARTS_MAX`] weights, if the kernel for them has the library's bits. Else nothing is
/// done, and it is false.
pub(super) fn multiply(cx: &Context, x: Rows<'_>, parts: &[Part<'_>]) -> Result<bool, Error> {
    let is_one_launch = (1..=PARTS_MAX).contains(&parts.len())
        && parts.iter().all(|part| part.c.kind() == parts[0].c.kind());
    if !is_one_launch {
        return Ok(false);
    }
    for part in parts {
        let Some(shape) = shape_of(x, part) else { return Ok(false) };
        if answer(cx, shape)? != Agreement::Equal {
            return Ok(false);
        }
    }
    launch(cx, x, parts)?;
    Ok(true)
}

/// What the kernel can multiply; none for what the library has to. Where a buffer begins is part of what the library
/// chooses by.
fn shape_of(x: Rows<'_>, part: &Part<'_>) -> Option<FewRows> {
    let (Rows { x, m, k }, Part { c, n, w, bias }) = (x, part);
    let is_few = (1..=ROWS_MAX).contains(&m) && (1..=OUTPUTS_MAX).contains(n);
    let is_whole = k > 0 && k.is_multiple_of(CHUNK);
    let is_aligned = [x.at(), w.at(), c.at()].iter().all(|at| at.0.is_multiple_of(16));
    let are_kinds =
        [x.kind(), w.kind()] == [Kind::Bf16; 2] && [Kind::F32, Kind::Bf16].contains(&c.kind());
    (is_few && is_whole && is_aligned && are_kinds).then_some(FewRows {
        n: *n,
        k,
        c_kind: c.kind(),
        has_bias: bias.is_some(),
    })
}

/// How this kernel compares with the library's, for a shape that it can multiply: as it is known, or tried now.
pub fn answer(cx: &Context, shape: FewRows) -> Result<Agreement, Error> {
    if let Some(known) = cx.probes().get(shape) {
        return Ok(known);
    }
    let answer = match compare(&cx.aside()?, shape) {
        Err(Error::OutOfMemory { .. }) => Agreement::NoRoom,
        other => other?,
    };
    Ok(cx.probes().keep(shape, answer))
}

fn compare(cx: &Context, shape: FewRows) -> Result<Agreement, Error> {
    let FewRows { n, k, c_kind, has_bias } = shape;
    let x = made_up(cx, MadeUp::Activations, [PROBE_ROWS, k])?;
    let w = made_up(cx, MadeUp::Weight, [n, k])?;
    let bias = match has_bias {
        true => {
            let mut bias = cx.buffer(c_kind, n)?;
            convert(cx, &mut bias.view_mut(), made_up(cx, MadeUp::Bias, [1, n])?.view())?;
            Some(bias)
        }
        false => None,
    };
    let bias = bias.as_ref().map(|bias| bias.view());
    let mut c = cx.buffer(c_kind, PROBE_ROWS * n)?;
    let factors = ((x.view(), false), (w.view(), true));
    let dims = [PROBE_ROWS, n, k];
    cx.product(&mut c.view_mut(), dims, factors.0, factors.1, bias, (1.0, 0.0))?;
    let want = bits(cx, c.view().slice(0..ROWS_MAX * n))?;
    let (mut differing, mut compared) = (0, 0);
    for (rows, _) in KERNELS {
        let mut c = cx.buffer(c_kind, rows * n)?;
        let x = Rows { x: x.view().slice(0..rows * k), m: rows, k };
        launch(cx, x, &[Part { c: c.view_mut(), n, w: w.view(), bias }])?;
        let got = bits(cx, c.view())?;
        differing += got.iter().zip(&want).filter(|(got, want)| got != want).count();
        compared += got.len();
    }
    Ok(match differing {
        0 => Agreement::Equal,
        _ => Agreement::Differs { differing, compared },
    })
}

/// Rows of values of the kernel `probe_values`.
fn made_up(cx: &Context, what: MadeUp, [rows, cols]: [usize; 2]) -> Result<Buffer, Error> {
    let len = rows * cols;
    let mut values = cx.buffer(Kind::Bf16, len)?;
    let (key, what) = (Arg::U64(0x0070_726f_6265 + what as u64), Arg::U32(what as u32));
    let args = [Arg::from(&values.view_mut()), Arg::U64(len as u64), key, Arg::size(cols), what];
    // SAFETY: the kernel writes so many elements.
    unsafe { cx.launch(&Plan::new(&SOURCE, "probe_values", len.div_ceil(256), 256), &args)? };
    Ok(values)
}

fn bits(cx: &Context, view: View<'_>) -> Result<Vec<u32>, Error> {
    Ok(match view.kind() {
        Kind::Bf16 => {
            cx.download::<bf16>(view)?.into_iter().map(|x| u32::from(x.to_bits())).collect()
        }
        _ => cx.download::<f32>(view)?.into_iter().map(f32::to_bits).collect(),
    })
}

/// Multiplies by the kernel for few rows, whatever the library would do.
fn launch(cx: &Context, Rows { x, m, k }: Rows<'_>, parts: &[Part<'_>]) -> Result<(), Error> {
    x.assert_is(Kind::Bf16, m * k);
    let kind = parts[0].c.kind();
    let mut args = vec![Arg::from(&x), Arg::size(m), Arg::size(k)];
    for Part { c, n, w, bias } in parts {
        c.assert_is(kind, m * n);
        w.assert_is(Kind::Bf16, n * k);
        if let Some(bias) = bias {
            bias.assert_is(kind, *n);
        }
        args.extend([Arg::from(c), Arg::from(w), Arg::of(*bias), Arg::size(*n)]);
    }
    for _ in parts.len()..PARTS_MAX {
        args.extend([Arg::NULL, Arg::NULL, Arg::NULL, Arg::U32(0)]);
    }
    let outputs: Vec<usize> = parts.iter().map(|part| part.n).collect();
    // SAFETY: kinds are those of the kernel's name, lengths are checked above.
    unsafe { cx.launch(&plan(m, &outputs, kind), &args) }
}

/// A warp for each eight outputs. Where there are enough, some share a block, and what it reads of the activations.
fn plan(m: usize, outputs: &[usize], c_kind: Kind) -> Plan {
    let (rows, stages) = KERNELS.into_iter().find(|(rows, _)| m <= *rows).unwrap_or(KERNELS[3]);
    assert!(m <= rows, "{m} rows are no few rows");
    let warps = || outputs.iter().map(|n| n.div_ceil(WARP_OUTPUTS));
    let warps_of_block: usize = match warps().sum::<usize>() {
        ..256 => 1,
        256..512 => 2,
        _ => 4,
    };
    let blocks = warps().map(|warps| warps.div_ceil(warps_of_block)).sum();
    let stage_bytes = (rows + warps_of_block * WARP_OUTPUTS) * DEPTH * Kind::Bf16.bytes();
    let name = format!("few_rows_{rows}_{c_kind}");
    let shared_bytes = (stages * stage_bytes) as u32;
    Plan { shared_bytes, ..Plan::new(&SOURCE, name, blocks, 32 * warps_of_block as u32) }
}

#[cfg(test)]
#[path = "few_rows_tests.rs"]
mod tests;
