//! What the launchers of several ops share.
//!
//! A launcher is in `ops/OP/cuda.rs`, beside `ops/OP/OP.cu`. It has a pure function from shapes to a [`Plan`], and
//! functions with the names of the op's own that check buffers and launch.

use std::borrow::Cow;

use super::{
    adamw, attention, draw, embedding, grad_norm, lm_head, matmul, rms_norm, rope, swiglu,
};
use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, Source, View, ViewMut};

static COLUMN_SUMS: Source =
    Source { name: "column_sums.cu", text: include_str!("cuda/column_sums.cu") };

static ELEMENTWISE: Source =
    Source { name: "elementwise.cu", text: include_str!("cuda/elementwise.cu") };

static CHECKSUM: Source = Source { name: "checksum.cu", text: include_str!("cuda/checksum.cu") };

/// Every source of kernels.
pub fn sources() -> Vec<&'static Source> {
    let mut all = vec![
        &CHECKSUM,
        &COLUMN_SUMS,
        &ELEMENTWISE,
        &adamw::cuda::SOURCE,
        &embedding::cuda::SOURCE,
        &draw::SOURCE,
        &grad_norm::cuda::SOURCE,
        &lm_head::cuda::SOURCE,
        &matmul::few_rows::SOURCE,
        &matmul::fp8::SOURCE,
        &rms_norm::cuda::SOURCE,
        &rope::cuda::SOURCE,
        &swiglu::cuda::SOURCE,
    ];
    all.extend(attention::cuda::SOURCES);
    all
}

/// Bytes at a multiple of which vectors lie.
const VECTOR_BYTES: u64 = 16;
/// Elements that kernels move at once.
pub(super) const EIGHT: usize = 8;
/// Columns of a block of the column sums, and rows that one block adds up.
const SUM_COLUMNS: usize = 32;
const SUM_ROWS: usize = 1024;

/// Words whose checksum is one block's.
const CHECKSUM_LEN: usize = 1 << 14;

/// Asserts that a buffer may be moved eight elements at a time.
#[track_caller]
pub(super) fn assert_aligned(name: &str, at: &Arg) {
    if let Arg::Ptr(at) = at {
        assert!(at.0.is_multiple_of(VECTOR_BYTES), "`{name}` begins at no multiple of 16 bytes");
    }
}

/// The kinds that activations have.
#[track_caller]
pub(super) fn assert_float(name: &str, kind: Kind) {
    assert!(matches!(kind, Kind::F32 | Kind::Bf16), "`{name}` is of {kind}: f32 or bf16");
}

/// A thread for each eight elements of a flat buffer.
pub(super) fn flat_plan(
    source: &'static Source,
    kernel: impl Into<Cow<'static, str>>,
    len: usize,
) -> Plan {
    Plan::new(source, kernel, len.div_ceil(EIGHT * 256), 256)
}

/// Several buffers for one launch: which of its blocks is of which. Kernels find theirs by `segment_of`.
pub(super) struct Segments {
    /// The first block of each, its length, and what else the kernel needs of it.
    words: Vec<u64>,
    count: usize,
    block_count: usize,
    block_len: usize,
}

impl Segments {
    /// None yet; a block takes so many elements.
    pub fn of_blocks(block_len: usize) -> Segments {
        Segments { words: Vec::new(), count: 0, block_count: 0, block_len }
    }

    /// Adds one, unless it has no elements. All have as many words.
    pub fn push<const N: usize>(&mut self, len: usize, words: [u64; N]) {
        if len == 0 {
            return;
        }
        self.words.extend([self.block_count as u64, len as u64].into_iter().chain(words));
        self.count += 1;
        self.block_count += len.div_ceil(self.block_len);
    }

    /// Blocks of the launch.
    pub fn block_count(&self) -> usize {
        self.block_count
    }

    /// The table on the device, and how many they are.
    pub fn upload(&self, cx: &Context) -> Result<(Buffer, Arg), Error> {
        Ok((cx.upload(&self.words)?, Arg::size(self.count)))
    }
}

/// `to = from`, where one is f32 and the other bf16, or both are the same.
pub fn convert(cx: &Context, to: &mut ViewMut<'_>, from: View<'_>) -> Result<(), Error> {
    if to.kind() == from.kind() {
        return cx.copy(to, from);
    }
    to.assert_is(to.kind(), from.len());
    assert_float("to", to.kind());
    assert_float("from", from.kind());
    let plan =
        flat_plan(&ELEMENTWISE, format!("convert_{}_{}", to.kind(), from.kind()), from.len());
    let args = [Arg::from(&*to), Arg::from(&from), Arg::U64(from.len() as u64)];
    args.iter().for_each(|arg| assert_aligned("a buffer", arg));
    // SAFETY: kinds are those of the kernel's name, lengths are checked above.
    unsafe { cx.launch(&plan, &args) }
}

/// `sum += x`, where `sum` is f32 and `x` f32 or bf16.
pub fn add(cx: &Context, sum: &mut ViewMut<'_>, x: View<'_>) -> Result<(), Error> {
    sum.assert_is(Kind::F32, x.len());
    assert_float("x", x.kind());
    let plan = flat_plan(&ELEMENTWISE, format!("add_{}", x.kind()), x.len());
    let args = [Arg::from(&*sum), Arg::from(&x), Arg::U64(x.len() as u64)];
    args.iter().for_each(|arg| assert_aligned("a buffer", arg));
    // SAFETY: as above.
    unsafe { cx.launch(&plan, &args) }
}

/// `values *= factor`, all f32.
pub fn scale(cx: &Context, values: &mut ViewMut<'_>, factor: f32) -> Result<(), Error> {
    let len = values.len();
    values.assert_is(Kind::F32, len);
    let args = [Arg::from(&*values), Arg::U64(len as u64), Arg::F32(factor)];
    assert_aligned("a buffer", &args[0]);
    // SAFETY: as above.
    unsafe { cx.launch(&flat_plan(&ELEMENTWISE, "scale_f32", len), &args) }
}

/// `sum = x_0 + x_1 + …` in this order, element by element, all f32: `x` has `count` parts of one length, of which as
/// many elements are added as `sum` has.
pub fn sum_parts(
    cx: &Context,
    sum: &mut ViewMut<'_>,
    x: View<'_>,
    count: usize,
) -> Result<(), Error> {
    let len = sum.len();
    sum.assert_is(Kind::F32, len);
    x.assert_is(Kind::F32, x.len());
    let stride = x.len() / count.max(1);
    assert!(len <= stride && stride.is_multiple_of(EIGHT), "parts of {stride} for {len} elements");
    let lens = [len, stride].map(|len| Arg::U64(len as u64));
    let args = [Arg::from(&*sum), Arg::from(&x), lens[0], lens[1], Arg::size(count)];
    args[..2].iter().for_each(|arg| assert_aligned("a buffer", arg));
    // SAFETY: kinds and lengths are checked above.
    unsafe { cx.launch(&flat_plan(&ELEMENTWISE, "sum_parts_f32", len), &args) }
}

/// A number for each of these f32 buffers that changes, but for chance, when any bit of it does. Waits for the device.
pub fn checksums(cx: &Context, buffers: &[View<'_>]) -> Result<Vec<u64>, Error> {
    let blocks = |view: &View<'_>| view.len().div_ceil(CHECKSUM_LEN);
    let mut sums = cx.buffer(Kind::U64, buffers.iter().map(blocks).sum())?;
    let mut first = 0;
    for buffer in buffers {
        buffer.assert_is(Kind::F32, buffer.len());
        let part = sums.view_mut().slice(first..first + blocks(buffer));
        let args = [Arg::from(&part), Arg::from(buffer), Arg::U64(buffer.len() as u64)];
        // SAFETY: `part` has an element for each block, which stays within the buffer.
        unsafe { cx.launch(&checksums_plan(buffer.len()), &args)? };
        first += blocks(buffer);
    }
    let sums = cx.download::<u64>(sums.view())?;
    let mut rest = sums.as_slice();
    let of_buffer = buffers.iter().map(|buffer| {
        let (own, others) = rest.split_at(blocks(buffer));
        rest = others;
        own.iter().fold(0_u64, |sum, part| sum.wrapping_add(*part))
    });
    Ok(of_buffer.collect())
}

fn checksums_plan(len: usize) -> Plan {
    Plan::new(&CHECKSUM, "checksums", len.div_ceil(CHECKSUM_LEN), 256)
}

/// `out (C) += Σ_t x (T, C)`. Which rows are summed with which depends on their number alone.
pub fn column_sums(cx: &Context, out: &mut ViewMut<'_>, x: View<'_>) -> Result<(), Error> {
    let cols = out.len();
    out.assert_is(Kind::F32, cols);
    assert!(cols > 0 && x.len().is_multiple_of(cols), "{} elements are no rows of {cols}", x.len());
    let rows = x.len() / cols;
    let launch = |out: &mut ViewMut<'_>, accumulates: bool| {
        let plan = column_sums_plan(x.kind(), rows, cols);
        let sizes = [rows, cols, SUM_ROWS, usize::from(accumulates)].map(Arg::size);
        let [rows, cols, part, accumulates] = sizes;
        let args = [Arg::from(&*out), Arg::from(&x), rows, cols, part, accumulates];
        // SAFETY: lengths are checked above; `out` has a row for each part.
        unsafe { cx.launch(&plan, &args) }
    };
    if rows <= SUM_ROWS {
        return launch(out, true);
    }
    let mut parts = cx.buffer(Kind::F32, rows.div_ceil(SUM_ROWS) * cols)?;
    launch(&mut parts.view_mut(), false)?;
    column_sums(cx, out, parts.view())
}

fn column_sums_plan(kind: Kind, rows: usize, cols: usize) -> Plan {
    let plan =
        Plan::new(&COLUMN_SUMS, format!("column_sums_{kind}"), cols.div_ceil(SUM_COLUMNS), 256);
    let parts = rows.div_ceil(SUM_ROWS).try_into().unwrap_or(u32::MAX);
    Plan { grid: [plan.grid[0], parts, 1], ..plan }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::check::{
        F32, MODELS, ROWS, assert_close, assert_fits, assert_same_bits, contexts, download,
        rounding, upload_noise,
    };

    #[test]
    fn column_sums_are_added_in_both_orders_and_kinds() {
        for (rows, cols) in [(0, 3), (1, 1), (9, 37), (1100, 5), (2500, 40)] {
            for kind in [Kind::F32, Kind::Bf16] {
                let mut first: Option<Vec<f32>> = None;
                for cx in contexts() {
                    let (x, values) = upload_noise(&cx, 1, rows * cols, kind);
                    let (mut out, mut want) = upload_noise(&cx, 2, cols, Kind::F32);
                    column_sums(&cx, &mut out.view_mut(), x.view()).unwrap();
                    for row in values.chunks(cols) {
                        want.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                    }
                    let got = download(&cx, &out);
                    assert_close("sums", &got, &want, F32);
                    assert_same_bits("orders", &got, first.get_or_insert_with(|| got.clone()));
                }
            }
        }
    }

    #[test]
    fn a_checksum_tells_bits_and_places_and_knows_no_order() {
        let values: Vec<f32> = (0..40_000).map(|i| i as f32).collect();
        let sums = |cx: &Context, parts: &[&[f32]]| {
            let buffers: Vec<_> = parts.iter().map(|part| cx.upload(part).unwrap()).collect();
            let views: Vec<_> = buffers.iter().map(|buffer| buffer.view()).collect();
            checksums(cx, &views).unwrap()
        };
        let [first, second] = contexts();
        let found = sums(&first, &[&values, &[], &values[..1]]);
        assert_eq!(found, sums(&second, &[&values, &[], &values[..1]]));
        assert_eq!(found[1], 0);
        for at in [0, 255, 256, 16_384, 39_999] {
            let mut other = values.clone();
            other[at] = f32::from_bits(other[at].to_bits() ^ 1);
            assert_ne!(sums(&first, &[&other])[0], found[0], "{at}");
        }
        let mut swapped = values.clone();
        swapped.swap(7, 20_000);
        assert_ne!(sums(&first, &[&swapped])[0], found[0], "places");
        for len in [1, 8_000_000_000] {
            assert_fits(&checksums_plan(len));
        }
    }

    #[test]
    fn conversions_round_as_the_processor_does_and_sums_are_of_elements() {
        for len in [0, 1, 8, 37, 2049] {
            for cx in contexts() {
                let mut values = rounding(1, len, Kind::F32);
                let special = [f32::NAN, f32::INFINITY, -0.0, 1e-40, f32::MAX, 1.001_953_1];
                values.iter_mut().zip(special).for_each(|(to, x)| *to = x);
                let x = cx.upload(&values).unwrap();
                let mut narrow = cx.buffer(Kind::Bf16, len).unwrap();
                let mut wide = cx.buffer(Kind::F32, len).unwrap();
                convert(&cx, &mut narrow.view_mut(), x.view()).unwrap();
                convert(&cx, &mut wide.view_mut(), narrow.view()).unwrap();
                let want: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
                let bits = |values: Vec<bf16>| -> Vec<u16> {
                    values.into_iter().map(bf16::to_bits).collect()
                };
                assert_eq!(bits(cx.download(narrow.view()).unwrap()), bits(want.clone()));
                let want: Vec<f32> = want.into_iter().map(bf16::to_f32).collect();
                assert_same_bits("wide", &download(&cx, &wide), &want);
                let (mut sum, before) = upload_noise(&cx, 2, len, Kind::F32);
                add(&cx, &mut sum.view_mut(), narrow.view()).unwrap();
                let want: Vec<f32> = before.iter().zip(&want).map(|(a, b)| *a as f32 + b).collect();
                assert_same_bits("sum", &download(&cx, &sum), &want);
            }
        }
    }

    #[test]
    fn launches_fit_every_device() {
        for model in MODELS {
            for rows in ROWS {
                let [q, kv] = [model.heads, model.kv_heads].map(|heads| heads * model.head_dim);
                for cols in [model.hidden, model.ffn, q, kv, model.vocab] {
                    assert_fits(&column_sums_plan(Kind::F32, rows, cols));
                }
            }
        }
    }
}
