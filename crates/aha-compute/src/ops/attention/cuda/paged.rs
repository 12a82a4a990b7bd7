//! Keys and values of a sampler's sequences, and attention over them.

use super::super::{Dims, PAGE_LEN, PagedSeqs};
use super::work::PagedLists;
use super::{
    FORWARD, Items, KEY_WARPS_LEAST, SQUARES_THREADS, SUMS, Sizes, check_dims, check_scale,
    forward_plan, item_plan, sizes,
};
use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, View, ViewMut};
use crate::ops::cuda::assert_aligned;

/// Keys and values of all layers, in pages of 16 positions: `(layers, 2, pages, 16, KV·D)`, so that a slot of a page is a
/// row as the packed path has them. A page begins with whatever was there.
#[derive(Debug)]
pub struct KvCache {
    dims: Dims,
    page_count: usize,
    layer_count: usize,
    slots: Buffer,
}

impl KvCache {
    /// A cache of `page_count` pages of elements of this kind.
    pub fn new(
        cx: &Context,
        kind: Kind,
        layer_count: usize,
        page_count: usize,
        dims: Dims,
    ) -> Result<KvCache, Error> {
        check_dims(dims, kind);
        let slots = cx.buffer(kind, layer_count * 2 * page_count * dims.page_len())?;
        Ok(KvCache { dims, page_count, layer_count, slots })
    }

    /// Bytes of one page in all layers.
    pub fn bytes_per_page(kind: Kind, layer_count: usize, dims: Dims) -> usize {
        layer_count * 2 * dims.page_len() * kind.bytes()
    }

    /// Pages.
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    /// What its elements are.
    pub fn kind(&self) -> Kind {
        self.slots.kind()
    }

    /// Elements of a layer's keys, or of its values.
    fn layer_len(&self) -> usize {
        self.page_count * self.dims.page_len()
    }

    /// Keys and values of a layer.
    fn layer(&self, layer: usize) -> [View<'_>; 2] {
        assert!(layer < self.layer_count, "layer {layer} of {}", self.layer_count);
        let len = self.layer_len();
        [0, 1].map(|i| self.slots.view().slice((2 * layer + i) * len..(2 * layer + i + 1) * len))
    }

    /// Copies all layers of pages: from the first of each pair to the second. No page is in two pairs.
    pub fn copy_pages(&mut self, cx: &Context, pairs: &[[u32; 2]]) -> Result<(), Error> {
        if let Some(page) =
            pairs.as_flattened().iter().find(|&&page| page as usize >= self.page_count)
        {
            panic!("page {page} is copied: the cache has {}", self.page_count);
        }
        let plan = copy_plan(self.kind(), pairs.len(), self.layer_count);
        let list = cx.upload(pairs.as_flattened())?;
        let args = [
            Arg::from(&self.slots.view()),
            Arg::from(&list.view()),
            Arg::U64(self.layer_len() as u64),
            Arg::size(self.dims.page_len()),
        ];
        // SAFETY: pages are checked above.
        unsafe { cx.launch(&plan, &args) }
    }

    /// Stores `k` and `v` `(R, KV·D)` of new tokens, of the cache's kind, at their positions.
    pub fn append(
        &mut self,
        cx: &Context,
        layer: usize,
        [k, v]: [View<'_>; 2],
        paged: &Paged,
    ) -> Result<(), Error> {
        paged.check(self);
        let cols = self.dims.kv_cols();
        [k, v].iter().for_each(|x| x.assert_is(self.kind(), paged.row_count * cols));
        let [k_slots, v_slots] = self.layer(layer);
        let mut args: Vec<Arg> = [k_slots, v_slots, k, v].iter().map(Arg::from).collect();
        args.iter().for_each(|arg| assert_aligned("a buffer", arg));
        args.extend([Arg::from(&paged.slots.view()), Arg::size(cols)]);
        // SAFETY: lengths are checked above, and slots by `Paged::upload`.
        unsafe { cx.launch(&append_plan(self.kind(), paged.row_count), &args) }
    }
}

fn append_plan(kind: Kind, rows: usize) -> Plan {
    let plan = Plan::new(&SUMS, format!("attention_append_{kind}"), rows, 64);
    Plan { grid: [plan.grid[0], 2, 1], ..plan }
}

fn copy_plan(kind: Kind, pairs: usize, layers: usize) -> Plan {
    let plan = Plan::new(&SUMS, format!("attention_copy_pages_{kind}"), pairs, 256);
    Plan { grid: [plan.grid[0], 2 * layers as u32, 1], ..plan }
}

/// New tokens of sequences on the device, once per step for all layers.
#[derive(Debug)]
pub struct Paged {
    dims: Dims,
    kind: Kind,
    page_count: usize,
    row_count: usize,
    page_ids: Buffer,
    slots: Buffer,
    rows: Items,
    decode: Items,
    join: Items,
    part_rows: usize,
}

impl Paged {
    /// For the sequences of a step over this cache.
    pub fn upload(cx: &Context, seqs: &PagedSeqs, cache: &KvCache) -> Result<Paged, Error> {
        let (dims, kind) = (cache.dims, cache.kind());
        let lists = PagedLists::new(seqs, dims, Sizes::of(dims, kind));
        if let Some(page) = lists.page_ids.iter().find(|&&page| page as usize >= cache.page_count) {
            panic!("a sequence names page {page}: the cache has {}", cache.page_count);
        }
        Ok(Paged {
            dims,
            kind,
            page_count: cache.page_count,
            row_count: seqs.row_count(),
            page_ids: cx.upload(&lists.page_ids)?,
            slots: cx.upload(&lists.slots)?,
            rows: Items::upload(cx, &lists.rows)?,
            decode: Items::upload(cx, &lists.decode)?,
            join: Items::upload(cx, &lists.join)?,
            part_rows: lists.part_rows,
        })
    }

    fn check(&self, cache: &KvCache) {
        let of_cache = (cache.dims, cache.kind(), cache.page_count);
        assert_eq!(
            (self.dims, self.kind, self.page_count),
            of_cache,
            "the step's cache, and this one"
        );
    }
}

/// Attention of new tokens, whose keys and values the cache has already, over all positions up to each:
/// `o` `(R, H·D)` from `q` `(R, H·D)`, both of the cache's kind.
pub fn attend(
    cx: &Context,
    o: &mut ViewMut<'_>,
    q: View<'_>,
    cache: &KvCache,
    layer: usize,
    paged: &Paged,
    scale: f32,
) -> Result<(), Error> {
    check_scale(scale);
    paged.check(cache);
    let (dims, kind) = (paged.dims, paged.kind);
    q.assert_is(kind, paged.row_count * dims.q_cols());
    o.assert_is(kind, paged.row_count * dims.q_cols());
    let [k, v] = cache.layer(layer);
    let inputs = [q, k, v].map(|x| Arg::from(&x));
    inputs.iter().for_each(|arg| assert_aligned("a buffer", arg));
    let out = [Arg::from(&*o), Arg::NULL];
    let tables = [Arg::from(&paged.page_ids.view()), Arg::NULL];
    let launch = |plan: Plan, parts: &[Arg], items: &Items| {
        let mut args = out.to_vec();
        args.extend(parts);
        args.extend(inputs);
        args.push(items.arg());
        args.extend(tables);
        args.extend(sizes(dims, kind, scale));
        // SAFETY: lengths and kinds are checked above; items stay within the rows and pages.
        unsafe { cx.launch(&plan, &args) }
    };
    launch(forward_plan(paged.rows.count, dims, kind), &[], &paged.rows)?;
    let sums = cx.buffer(Kind::F32, paged.part_rows * dims.head_dim)?;
    let softmax = cx.buffer(Kind::F32, paged.part_rows * 2)?;
    let parts = [&sums, &softmax].map(|part| Arg::from(&part.view()));
    if paged.decode.count > 0 {
        launch(decode_plan(paged.decode.count, dims), &parts, &paged.decode)?;
    }
    if paged.join.count == 0 {
        return Ok(());
    }
    let mut args = out.to_vec();
    args.extend(parts);
    args.push(paged.join.arg());
    args.extend(sizes(dims, kind, scale));
    // SAFETY: as above; all parts of the items were written.
    unsafe { cx.launch(&join_plan(paged.join.count, dims), &args) }
}

/// Warps of a block of decoding: tiles of keys that are in shared memory at once.
fn key_warps(dims: Dims) -> u32 {
    if dims.head_dim == 64 { 2 * KEY_WARPS_LEAST } else { KEY_WARPS_LEAST }
}

fn decode_plan(items: usize, dims: Dims) -> Plan {
    let (d, warps) = (dims.head_dim, key_warps(dims));
    let bytes = (16 + warps as usize * 2 * 64) * d * 2;
    item_plan(&FORWARD, format!("attention_decode_{d}"), (items, dims.kv_heads), 32 * warps, bytes)
}

fn join_plan(items: usize, dims: Dims) -> Plan {
    let kernel = format!("attention_join_{}", dims.head_dim);
    item_plan(&FORWARD, kernel, (items, dims.kv_heads), SQUARES_THREADS, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{MODELS, ROWS, assert_fits};

    #[test]
    fn launches_fit_every_device() {
        for model in MODELS {
            let dims =
                Dims { heads: model.heads, kv_heads: model.kv_heads, head_dim: model.head_dim };
            for rows in ROWS {
                for kind in [Kind::F32, Kind::Bf16] {
                    assert_fits(&append_plan(kind, rows));
                    assert_fits(&copy_plan(kind, rows, 80));
                }
                assert_fits(&decode_plan(rows, dims));
                assert_fits(&join_plan(rows, dims));
            }
        }
        assert_eq!(PAGE_LEN, 16, "as in tiles.cuh");
    }
}
