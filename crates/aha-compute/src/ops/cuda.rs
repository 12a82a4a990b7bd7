//! What the launchers of several ops share.
//!
//! A launcher is in `ops/OP/cuda.rs`, beside `ops/OP/OP.cu`. It has a pure function from shapes to a [`Plan`], and
//! functions with the names of the op's own that check buffers and launch.

use super::{attention, rms_norm};
use crate::cuda::{Arg, Context, Error, Kind, Plan, Source, View, ViewMut};

static COLUMN_SUMS: Source =
    Source { name: "column_sums.cu", text: include_str!("cuda/column_sums.cu") };

/// Every source of kernels.
pub fn sources() -> Vec<&'static Source> {
    let mut all = vec![&COLUMN_SUMS, &rms_norm::cuda::SOURCE];
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
    use super::*;
    use crate::ops::check::{
        F32, MODELS, ROWS, assert_close, assert_fits, assert_same_bits, contexts, download, noise,
        upload_noise,
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
        assert!(noise(1, 1)[0] != 0.0, "noise is no zeros");
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
