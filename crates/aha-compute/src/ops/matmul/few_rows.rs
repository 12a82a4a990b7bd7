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
//! first product of a shape, both kernels multiply the same made-up operands, with sums of which rounding shows in every
//! kind of result, and all bits are compared. Where they are equal, few rows go through this kernel; where one differs, the library multiplies them, slowly. Either way the rows
//! have the bits of the learner's. The answer is kept by the [`Context`] ([`Probes`](crate::cuda::Probes)), and is the
//! same in each process on a machine: operands depend on nothing but the shape.
//!
//! An answer takes memory for a weight and 128 rows of results for a moment, on a stream of its own. It can't be got
//! while work is captured: [`Context::capture`] does the work once before, and then it is known.
//!
//! # What to expect
//! On an H100 (132 multiprocessors at 1.755 GHz, 3.35 TB/s), by this arithmetic and not measured: a warp reads 256
//! bytes for each product of sixteen terms, which the next waits for, about 33 cycles; reading takes 0.8 µs, so that
//! 2.7 MB must be under way in all, 20 KiB for each multiprocessor. In µs, at one row, without what a launch takes:
//!
//! | weight              | shape          | warps | under way, MB | at full bandwidth | one chain | share of bandwidth |
//! |---------------------|----------------|-------|---------------|-------------------|-----------|--------------------|
//! | Qwen2.5 0.5B q, o   | 896 × 896      | 112   | 1.6           | 0.5               | 1.1       | 46 %               |
//! | gate, up            | 4864 × 896     | 608   | 8.7           | 2.6               | 1.1       | all                |
//! | down                | 896 × 4864     | 112   | 1.8           | 2.6               | 5.7       | 46 %               |
//! | Qwen2.5 1.5B q, o   | 1536 × 1536    | 192   | 3.1           | 1.4               | 1.8       | 78 %               |
//! | gate, up            | 8960 × 1536    | 1120  | 17            | 8.2               | 1.8       | all                |
//! | down                | 1536 × 8960    | 192   | 3.1           | 8.2               | 10.5      | 78 %               |
//! | Qwen2.5 3B q, o     | 2048 × 2048    | 256   | 4.2           | 2.5               | 2.4       | all                |
//! | down                | 2048 × 11008   | 256   | 4.2           | 13.5              | 12.9      | all                |
//! | Qwen2.5 7B k, v     | 512 × 3584     | 64    | 1.0           | 1.1               | 4.2       | 26 %               |
//! | q, o                | 3584 × 3584    | 448   | 7.3           | 7.7               | 4.2       | all                |
//! | gate, up            | 18944 × 3584   | 2368  | 17            | 40.5              | 4.2       | all                |
//! | down                | 3584 × 18944   | 448   | 7.3           | 40.5              | 22.3      | all                |
//! | Llama 3.1 8B k, v   | 1024 × 4096    | 128   | 2.1           | 2.5               | 4.8       | 52 %               |
//! | gate, up            | 14336 × 4096   | 1792  | 17            | 35.1              | 4.8       | all                |
//! | down                | 4096 × 14336   | 512   | 8.4           | 35.1              | 16.8      | all                |
//!
//! What one chain takes is a floor that no kernel with these bits gets below; with fewer than about 250 warps it is also
//! what bounds the rate. k and v of the smaller models take as long as a chain and read next to nothing.

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

/// A product `c (m, n) = x (m, k) · wᵀ + bias`.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) dims: [usize; 3],
    pub(super) x: View<'a>,
    pub(super) w: View<'a>,
    /// Of the kind of the result.
    pub(super) bias: Option<View<'a>>,
}

/// Multiplies few rows, if the kernel for them has the library's bits. Else nothing is done, and it is false.
pub(super) fn multiply(
    cx: &Context,
    c: &mut ViewMut<'_>,
    operands: &Operands<'_>,
) -> Result<bool, Error> {
    let Some(shape) = shape_of(c, operands) else { return Ok(false) };
    let answer = match cx.probes().get(shape) {
        Some(answer) => answer,
        None => cx.probes().keep(shape, probe(cx, shape)?),
    };
    if answer != Agreement::Equal {
        return Ok(false);
    }
    launch(cx, c, operands)?;
    Ok(true)
}

/// What the kernel can multiply; none for what the library has to. Where a buffer begins is part of what the library
/// chooses by.
fn shape_of(c: &ViewMut<'_>, operands: &Operands<'_>) -> Option<FewRows> {
    let Operands { dims: [m, n, k], x, w, bias } = *operands;
    let is_few = (1..=ROWS_MAX).contains(&m) && (1..=OUTPUTS_MAX).contains(&n);
    let is_whole = k > 0 && k.is_multiple_of(CHUNK);
    let is_aligned = [x.at(), w.at(), c.at()].iter().all(|at| at.0.is_multiple_of(16));
    let are_kinds =
        [x.kind(), w.kind()] == [Kind::Bf16; 2] && [Kind::F32, Kind::Bf16].contains(&c.kind());
    (is_few && is_whole && is_aligned && are_kinds).then_some(FewRows {
        n,
        k,
        c_kind: c.kind(),
        has_bias: bias.is_some(),
    })
}

/// How this kernel compares with the library's, for a shape.
fn probe(cx: &Context, shape: FewRows) -> Result<Agreement, Error> {
    let cx = cx.aside()?;
    match compare(&cx, shape) {
        Err(Error::OutOfMemory { .. }) => Ok(Agreement::NoRoom),
        other => other,
    }
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
        let x = x.view().slice(0..rows * k);
        launch(cx, &mut c.view_mut(), &Operands { dims: [rows, n, k], x, w: w.view(), bias })?;
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
fn launch(cx: &Context, c: &mut ViewMut<'_>, operands: &Operands<'_>) -> Result<(), Error> {
    let Operands { dims: [m, n, k], x, w, bias } = *operands;
    c.assert_is(c.kind(), m * n);
    x.assert_is(Kind::Bf16, m * k);
    w.assert_is(Kind::Bf16, n * k);
    if let Some(bias) = bias {
        bias.assert_is(c.kind(), n);
    }
    let pointers = [Arg::from(&*c), Arg::from(&x), Arg::from(&w), Arg::of(bias)];
    let sizes = [m, n, k].map(Arg::size);
    // SAFETY: kinds are those of the kernel's name, lengths are checked above.
    unsafe { cx.launch(&plan([m, n], c.kind()), &[&pointers[..], &sizes].concat()) }
}

/// A warp for each eight outputs. Where there are enough, some share a block, and what it reads of the activations.
fn plan([m, n]: [usize; 2], c_kind: Kind) -> Plan {
    let (rows, stages) = KERNELS.into_iter().find(|(rows, _)| m <= *rows).unwrap_or(KERNELS[3]);
    assert!(m <= rows, "{m} rows are no few rows");
    let warps = n.div_ceil(WARP_OUTPUTS);
    let warps_of_block: usize = match warps {
        ..256 => 1,
        256..512 => 2,
        _ => 4,
    };
    let blocks = warps.div_ceil(warps_of_block);
    let stage_bytes = (rows + warps_of_block * WARP_OUTPUTS) * DEPTH * Kind::Bf16.bytes();
    let name = format!("few_rows_{rows}_{c_kind}");
    let shared_bytes = (stages * stage_bytes) as u32;
    Plan { shared_bytes, ..Plan::new(&SOURCE, name, blocks, 32 * warps_of_block as u32) }
}

#[cfg(test)]
#[path = "few_rows_tests.rs"]
mod tests;
