//! Rows of a table on a device, for lookups and for choosing rows, and the sums of their gradients.
//!
//! Tokens of one id are sorted together on the host, which knows the ids, and a block adds up those of an id in order:
//! one chain of additions, as on the processor and with its bits.

use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::cuda::{EIGHT, assert_aligned, assert_float};

pub(crate) static SOURCE: Source =
    Source { name: "embedding.cu", text: include_str!("embedding.cu") };

/// Threads of a block.
const THREADS: u32 = 128;

/// Indices of rows on a device, and in which order their gradients are summed.
#[derive(Debug)]
pub struct Ids {
    /// As they were given.
    ids: Buffer,
    /// Each of them once, in order.
    unique: Buffer,
    /// Where the tokens of each begin in `order`, and where the last ones end.
    starts: Buffer,
    /// Tokens, those of one id together and in order.
    order: Buffer,
    row_count: usize,
}

impl Ids {
    /// Of rows of a table with `row_count`.
    pub fn new(cx: &Context, ids: &[u32], row_count: usize) -> Result<Ids, Error> {
        if let Some(past) = ids.iter().find(|&&id| id as usize >= row_count) {
            panic!("id {past} of a table with {row_count} rows");
        }
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|&token| ids[token as usize]);
        let id = |at: usize| ids[order[at] as usize];
        let mut starts: Vec<u32> = (0..ids.len())
            .filter(|&at| at == 0 || id(at) != id(at - 1))
            .map(|at| at as u32)
            .collect();
        let unique: Vec<u32> = starts.iter().map(|&at| id(at as usize)).collect();
        starts.push(ids.len() as u32);
        Ok(Ids {
            ids: cx.upload(ids)?,
            unique: cx.upload(&unique)?,
            starts: cx.upload(&starts)?,
            order: cx.upload(&order)?,
            row_count,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Them, on the device.
    pub fn view(&self) -> View<'_> {
        self.ids.view()
    }
}

/// `y = x[ids]`: as the op's [`forward`](super::forward). `x` and `y` are f32 or bf16.
pub fn gather(cx: &Context, y: &mut ViewMut<'_>, x: View<'_>, ids: &Ids) -> Result<(), Error> {
    gather_at(cx, y, x, ids.view(), cols(x, ids))
}

/// As [`gather`], of rows of `cols` elements; the indices are below how many there are.
pub(crate) fn gather_at(
    cx: &Context,
    y: &mut ViewMut<'_>,
    x: View<'_>,
    ids: View<'_>,
    cols: usize,
) -> Result<(), Error> {
    ids.assert_is(Kind::U32, ids.len());
    y.assert_is(y.kind(), ids.len() * cols);
    let plan = gather_plan([y.kind(), x.kind()], ids.len(), cols);
    let args = [Arg::from(&*y), Arg::from(&x), Arg::from(&ids), Arg::size(cols)];
    if cols.is_multiple_of(EIGHT) {
        args[..2].iter().for_each(|arg| assert_aligned("a buffer", arg));
    }
    // SAFETY: kinds are those of the kernel's name, ids are below the rows of `x`: checked or promised.
    unsafe { cx.launch(&plan, &args) }
}

/// `dx[ids] += dy`: as the op's [`backward`](super::backward). `dy` is f32 or bf16.
pub fn scatter_add(
    cx: &Context,
    dx: &mut ViewMut<'_>,
    dy: View<'_>,
    ids: &Ids,
) -> Result<(), Error> {
    let cols = cols(dx.as_view(), ids);
    dx.assert_is(Kind::F32, dx.len());
    dy.assert_is(dy.kind(), ids.len() * cols);
    let plan = scatter_plan(dy.kind(), ids.unique.len(), cols);
    let args = [
        Arg::from(&*dx),
        Arg::from(&dy),
        Arg::from(&ids.unique.view()),
        Arg::from(&ids.starts.view()),
        Arg::from(&ids.order.view()),
        Arg::size(cols),
    ];
    // SAFETY: as above.
    unsafe { cx.launch(&plan, &args) }
}

fn cols(table: View<'_>, ids: &Ids) -> usize {
    let rows = ids.row_count;
    let fits = rows > 0 && table.len().is_multiple_of(rows);
    assert!(fits || ids.is_empty(), "{} elements are no {rows} rows", table.len());
    table.len().checked_div(rows).unwrap_or(0)
}

fn gather_plan([y, x]: [Kind; 2], count: usize, cols: usize) -> Plan {
    assert_float("x", x);
    assert_float("y", y);
    let is_whole = cols.is_multiple_of(EIGHT);
    Plan::new(&SOURCE, format!("gather_{y}_{x}_{is_whole}"), count, THREADS)
}

fn scatter_plan(dy: Kind, unique: usize, cols: usize) -> Plan {
    assert_float("dy", dy);
    let plan = Plan::new(&SOURCE, format!("scatter_add_{dy}"), unique, THREADS);
    Plan { grid: [plan.grid[0], cols.div_ceil(THREADS as usize) as u32, 1], ..plan }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{
        MODELS, ROWS, assert_fits, assert_same_bits, contexts, download, rounding, upload_noise,
    };
    use crate::ops::embedding;
    use crate::{Device, Tensor};

    #[test]
    fn kernels_have_the_processors_bits() {
        for (count, cols) in [(1usize, 1usize), (40, 37), (300, 48), (3, 1032)] {
            let ids: Vec<u32> = (0..count as u32).map(|i| i * i % 11).collect();
            for kind in [Kind::F32, Kind::Bf16] {
                let device = Device::cpu(1);
                let tensor = |seed, rows, kind| {
                    let values = rounding(seed, rows * cols, kind);
                    Tensor::from_slice(&device, &[rows, cols], &values)
                };
                let (table, dy) = (tensor(1, 11, kind), tensor(2, count, kind));
                let mut want = tensor(3, count, Kind::F32);
                let mut want_dtable = tensor(4, 11, Kind::F32);
                embedding::forward(&mut want, &table, &ids);
                embedding::backward(&mut want_dtable, &dy, &ids);
                for cx in contexts() {
                    let ids = Ids::new(&cx, &ids, 11).unwrap();
                    let table = upload_noise(&cx, 1, 11 * cols, kind).0;
                    let dy = upload_noise(&cx, 2, count * cols, kind).0;
                    let mut dtable = upload_noise(&cx, 4, 11 * cols, Kind::F32).0;
                    for y_kind in [kind, Kind::F32] {
                        let mut y = cx.buffer(y_kind, count * cols).unwrap();
                        gather(&cx, &mut y.view_mut(), table.view(), &ids).unwrap();
                        assert_same_bits("y", &download(&cx, &y), want.as_slice());
                    }
                    scatter_add(&cx, &mut dtable.view_mut(), dy.view(), &ids).unwrap();
                    assert_same_bits("dtable", &download(&cx, &dtable), want_dtable.as_slice());
                }
            }
        }
    }

    #[test]
    fn no_ids_are_a_no_op() {
        for cx in contexts() {
            let ids = Ids::new(&cx, &[], 3).unwrap();
            let mut table = upload_noise(&cx, 1, 9, Kind::F32).0;
            let before = download(&cx, &table);
            let mut none = cx.buffer(Kind::F32, 0).unwrap();
            gather(&cx, &mut none.view_mut(), table.view(), &ids).unwrap();
            scatter_add(&cx, &mut table.view_mut(), none.view(), &ids).unwrap();
            assert_same_bits("table", &download(&cx, &table), &before);
        }
    }

    #[test]
    #[should_panic(expected = "id 7 of a table with 2 rows")]
    fn an_id_past_the_table_is_a_bug() {
        let _ = Ids::new(&contexts()[0], &[1, 7], 2);
    }

    #[test]
    fn launches_fit_every_device() {
        for (model, rows) in MODELS.iter().flat_map(|model| ROWS.map(|rows| (model, rows))) {
            assert_fits(&gather_plan([Kind::F32, Kind::Bf16], rows, model.hidden));
            assert_fits(&scatter_plan(Kind::F32, rows.min(model.vocab), model.hidden));
        }
    }
}
