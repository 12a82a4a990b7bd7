//! Rotary position embedding on a device.

use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::cuda::{EIGHT, assert_aligned, assert_float};

pub(crate) static SOURCE: Source = Source { name: "rope.cu", text: include_str!("rope.cu") };

/// Cosines and sines of the first positions on a device.
#[derive(Debug)]
pub struct Table {
    /// Rows of `D`.
    rows: Buffer,
    head_dim: usize,
}

impl Table {
    /// Those of positions below `position_count`, as the processor computes them.
    pub fn new(cx: &Context, table: &super::Table, position_count: usize) -> Result<Table, Error> {
        let max = table.positions_max;
        assert!(position_count <= max, "{position_count} positions of a table with {max}");
        let head_dim = table.head_dim();
        let mut rows = Vec::with_capacity(position_count * head_dim);
        for position in 0..position_count {
            let (cos, sin) = table.row(position);
            rows.extend_from_slice(cos);
            rows.extend_from_slice(sin);
        }
        Ok(Table { rows: cx.upload(&rows)?, head_dim })
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> u64 {
        self.rows.view().at().0
    }

    /// How many positions it has.
    pub fn position_count(&self) -> usize {
        self.rows.len() / self.head_dim
    }
}

/// As the op's [`forward`](super::forward). `x` and `y` are f32 or bf16. Positions, which are on the device, must be
/// below those of the table.
pub fn forward(
    cx: &Context,
    y: &mut ViewMut<'_>,
    x: View<'_>,
    positions: View<'_>,
    table: &Table,
) -> Result<(), Error> {
    rotate(cx, y, x, positions, table, 1.0)
}

/// As the op's [`backward`](super::backward).
pub fn backward(
    cx: &Context,
    dx: &mut ViewMut<'_>,
    dy: View<'_>,
    positions: View<'_>,
    table: &Table,
) -> Result<(), Error> {
    rotate(cx, dx, dy, positions, table, -1.0)
}

pub(super) fn rotate(
    cx: &Context,
    y: &mut ViewMut<'_>,
    x: View<'_>,
    positions: View<'_>,
    table: &Table,
    sign: f32,
) -> Result<(), Error> {
    let (rows, head_dim) = (positions.len(), table.head_dim);
    positions.assert_is(Kind::U32, rows);
    y.assert_is(y.kind(), x.len());
    let heads = if rows == 0 { 0 } else { x.len() / (rows * head_dim) };
    assert_eq!(
        x.len(),
        rows * heads * head_dim,
        "`x` must have heads of {head_dim} for each position"
    );
    let (plan, parts) = plan([y.kind(), x.kind()], rows * heads, head_dim / 2);
    let args = [
        Arg::from(&*y),
        Arg::from(&x),
        Arg::from(&positions),
        Arg::from(&table.rows.view()),
        Arg::U64(parts as u64),
        Arg::size(heads),
        Arg::size(head_dim / 2),
        Arg::F32(sign),
    ];
    if (head_dim / 2).is_multiple_of(EIGHT) {
        args[..2].iter().for_each(|arg| assert_aligned("a buffer", arg));
    }
    // SAFETY: kinds are those of the kernel's name, lengths are checked above; positions are the caller's promise.
    unsafe { cx.launch(&plan, &args) }
}

/// With the number of parts of eight pairs.
fn plan([y, x]: [Kind; 2], heads: usize, half: usize) -> (Plan, usize) {
    assert_float("x", x);
    assert_float("y", y);
    let parts = heads * half.div_ceil(EIGHT);
    let is_whole = half.is_multiple_of(EIGHT);
    (Plan::new(&SOURCE, format!("rotate_{y}_{x}_{is_whole}"), parts.div_ceil(256), 256), parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{
        MODELS, ROWS, assert_fits, assert_same_bits, contexts, download, rounding, upload_noise,
    };
    use crate::ops::rope;
    use crate::{Device, Dtype, Tensor};

    #[test]
    fn kernels_have_the_processors_bits() {
        let device = Device::cpu(1);
        for (half, heads) in [(1usize, 1usize), (8, 3), (21, 2), (32, 4)] {
            let (rows, cols) = (30, heads * 2 * half);
            let positions: Vec<u32> = (0..rows as u32).map(|i| i * 71 % 500).collect();
            let inv_freq: Vec<f32> =
                (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
            let table = rope::Table::new(&device, &inv_freq, 1.25, 5000);
            for (kind, dtype) in [(Kind::F32, Dtype::F32), (Kind::Bf16, Dtype::Bf16)] {
                let x = Tensor::from_slice(&device, &[rows, cols], &rounding(1, rows * cols, kind));
                let [mut want, mut want_dx] =
                    [0; 2].map(|_| Tensor::uninit_as(&device, dtype, &[rows, cols]));
                rope::forward(&mut want, &x, &positions, &table);
                rope::backward(&mut want_dx, &x, &positions, &table);
                let [want, want_dx] = [want, want_dx].map(|t| t.to_dtype(Dtype::F32));
                for cx in contexts() {
                    let table = Table::new(&cx, &table, 500).unwrap();
                    assert_eq!(table.position_count(), 500);
                    let positions = cx.upload(&positions).unwrap();
                    let (x, _) = upload_noise(&cx, 1, rows * cols, kind);
                    let [mut y, mut dx] = [0; 2].map(|_| cx.buffer(kind, rows * cols).unwrap());
                    forward(&cx, &mut y.view_mut(), x.view(), positions.view(), &table).unwrap();
                    backward(&cx, &mut dx.view_mut(), x.view(), positions.view(), &table).unwrap();
                    assert_same_bits("y", &download(&cx, &y), want.as_slice());
                    assert_same_bits("dx", &download(&cx, &dx), want_dx.as_slice());
                }
            }
        }
    }

    #[test]
    fn launches_fit_every_device() {
        for (model, rows) in MODELS.iter().flat_map(|model| ROWS.map(|rows| (model, rows))) {
            for heads in [model.heads, model.kv_heads] {
                assert_fits(&plan([Kind::Bf16; 2], rows * heads, model.head_dim / 2).0);
            }
        }
    }
}
