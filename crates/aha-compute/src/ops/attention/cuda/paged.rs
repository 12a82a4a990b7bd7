//! Keys and values of a sampler's sequences, and attention over them.

use std::sync::Arc;

use super::super::{Dims, PagedSeqs};
use super::work::{PagedLists, Room};
use super::{
    FORWARD, Items, KEY_WARPS_LEAST, SQUARES_THREADS, SUMS, Sizes, check_dims, check_scale,
    forward_plan, item_plan, sizes,
};
use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, View, ViewMut};
use crate::ops::cuda::assert_aligned;
use crate::staging::{Part, Place, Words};

/// Keys and values of all layers, in pages of 16 positions: `(layers, 2, pages, 16, KV·D)`, so that a slot of a page is
/// a row as the packed path has them. A page begins with whatever was there.
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

    /// Where it begins.
    pub(crate) fn address(&self) -> u64 {
        self.slots.view().at().0
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

    /// Copies all layers of pages: from the first of each pair to the second. No page that is written is in two pairs.
    pub fn copy_pages(&mut self, cx: &Context, pairs: &[[u32; 2]]) -> Result<(), Error> {
        let list = cx.upload(pairs.as_flattened())?;
        self.copy_pages_of(cx, pairs, list.view())
    }

    /// As [`KvCache::copy_pages`], where the list is on the device already.
    pub(crate) fn copy_pages_of(
        &mut self,
        cx: &Context,
        pairs: &[[u32; 2]],
        list: View<'_>,
    ) -> Result<(), Error> {
        if let Some(page) =
            pairs.as_flattened().iter().find(|&&page| page as usize >= self.page_count)
        {
            panic!("page {page} is copied: the cache has {}", self.page_count);
        }
        list.assert_is(Kind::U32, 2 * pairs.len());
        let plan = copy_plan(self.kind(), pairs.len(), self.layer_count);
        let args = [
            Arg::from(&self.slots.view()),
            Arg::from(&list),
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
    page_ids: Part,
    slots: Part,
    rows: Items,
    decode: Items,
    join: Items,
    part_rows: usize,
}

/// Where the lists of a [`Paged`] are among those of a step.
pub(crate) struct PagedPlaces {
    dims: Dims,
    kind: Kind,
    page_count: usize,
    row_count: usize,
    page_ids: Place,
    slots: Place,
    items: [(Place, usize); 3],
    part_rows: usize,
}

/// Puts the lists of a step over this cache with those that are there, filled up to a room if there is one.
pub(crate) fn put(
    words: &mut Words,
    seqs: &PagedSeqs,
    cache: &KvCache,
    room: Option<Room>,
) -> PagedPlaces {
    let sizes = Sizes::of(cache.dims, cache.kind());
    let lists = match room {
        Some(room) => PagedLists::in_room(seqs, cache.dims, sizes, room),
        None => PagedLists::new(seqs, cache.dims, sizes),
    };
    put_lists(words, cache, &lists)
}

/// The room of a step over this cache whose sequences decode, among `rows` rows; none where others do.
pub(crate) fn room(seqs: &PagedSeqs, cache: &KvCache, rows: usize) -> Option<Room> {
    Room::of(seqs, rows, cache.dims, Sizes::of(cache.dims, cache.kind()))
}

fn put_lists(words: &mut Words, cache: &KvCache, lists: &PagedLists) -> PagedPlaces {
    if let Some(page) = lists.page_ids.iter().find(|&&page| page as usize >= cache.page_count) {
        panic!("a sequence names page {page}: the cache has {}", cache.page_count);
    }
    let slots = words.push(lists.slots.iter().copied());
    let items = [&lists.rows, &lists.decode, &lists.join]
        .map(|items| (words.push(super::work::words(items)), items.len()));
    // Of any length, so behind what steps of one room have at the same place.
    let page_ids = words.push(lists.page_ids.iter().copied());
    PagedPlaces {
        dims: cache.dims,
        kind: cache.kind(),
        page_count: cache.page_count,
        row_count: lists.slots.len(),
        page_ids,
        slots,
        items,
        part_rows: lists.part_rows,
    }
}

impl Paged {
    /// For the sequences of a step over this cache.
    pub fn upload(cx: &Context, seqs: &PagedSeqs, cache: &KvCache) -> Result<Paged, Error> {
        let sizes = Sizes::of(cache.dims, cache.kind());
        Paged::of(cx, cache, &PagedLists::new(seqs, cache.dims, sizes))
    }

    fn of(cx: &Context, cache: &KvCache, lists: &PagedLists) -> Result<Paged, Error> {
        let mut words = Words::default();
        let places = put_lists(&mut words, cache, lists);
        Ok(Paged::at(&Arc::new(cx.upload(words.as_slice())?), places))
    }

    /// Of lists that were copied to the device.
    pub(crate) fn at(words: &Arc<Buffer>, places: PagedPlaces) -> Paged {
        let PagedPlaces { dims, kind, page_count, row_count, part_rows, .. } = places;
        let part = |place| Part::new(words, place);
        let [rows, decode, join] =
            places.items.map(|(place, count)| Items { words: part(place), count });
        let (page_ids, slots) = (part(places.page_ids), part(places.slots));
        Paged { dims, kind, page_count, row_count, page_ids, slots, rows, decode, join, part_rows }
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
    if paged.decode.count == 0 {
        return Ok(());
    }
    let sums = cx.buffer(Kind::F32, paged.part_rows * dims.head_dim)?;
    let softmax = cx.buffer(Kind::F32, paged.part_rows * 2)?;
    let parts = [&sums, &softmax].map(|part| Arg::from(&part.view()));
    launch(decode_plan(paged.decode.count, dims), &parts, &paged.decode)?;
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
    use crate::ops::attention::cuda::{Packed, forward};
    use crate::ops::attention::{Layout, PAGE_LEN};
    use crate::ops::check::{
        MODELS, ROWS, assert_fits, assert_same_bits, contexts, download, rounding, upload,
    };

    const SCALE: f32 = 0.3;

    /// `q`, `k`, `v` of one sequence, and what the packed path makes of it.
    struct Case {
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        o: Vec<f32>,
    }

    /// Heads of a cache, and its kind.
    type Heads = (Dims, Kind);

    fn heads() -> [Heads; 4] {
        let dims = |heads, kv_heads, head_dim| Dims { heads, kv_heads, head_dim };
        [
            (dims(3, 1, 24), Kind::F32),
            (dims(2, 2, 8), Kind::Bf16),
            (dims(7, 1, 64), Kind::Bf16),
            (dims(4, 2, 128), Kind::Bf16),
        ]
    }

    /// A sequence whose first positions are those of another.
    fn case(
        cx: &Context,
        (dims, kind): Heads,
        seed: u64,
        len: usize,
        of: Option<(&Case, usize)>,
    ) -> Case {
        let rows = |i, cols: usize, from: fn(&Case) -> &Vec<f32>| {
            let mut values = rounding(3 * seed + i, len * cols, kind);
            if let Some((of, shared)) = of {
                values[..shared * cols].copy_from_slice(&from(of)[..shared * cols]);
            }
            values
        };
        let (q, k) = (rows(0, dims.q_cols(), |c| &c.q), rows(1, dims.kv_cols(), |c| &c.k));
        let v = rows(2, dims.kv_cols(), |c| &c.v);
        let packed = Packed::upload(cx, &Layout::sequences([len]), dims, kind).unwrap();
        let mut o = cx.buffer(kind, q.len()).unwrap();
        let mut lse = cx.buffer(Kind::F32, len * dims.heads).unwrap();
        let [q_on, k_on, v_on] = [&q, &k, &v].map(|x| upload(cx, x, kind));
        let qkv = [q_on.view(), k_on.view(), v_on.view()];
        forward(cx, &mut o.view_mut(), &mut lse.view_mut(), qkv, &packed, SCALE).unwrap();
        Case { o: download(cx, &o), q, k, v }
    }

    /// Position and number of new tokens, and pages.
    type Seq<'a> = (&'a Case, usize, usize, &'a [u32]);

    fn paged(seqs: &[Seq<'_>]) -> PagedSeqs {
        let mut paged = PagedSeqs::default();
        seqs.iter().for_each(|&(_, position, count, pages)| paged.push(count, position, pages));
        paged
    }

    /// Appends and attends, with sequences cut and whole and, where all decode, with room for more, and compares with
    /// the packed path.
    #[track_caller]
    fn step(cx: &Context, cache: &mut KvCache, seqs: &[Seq<'_>]) {
        let (dims, kind) = (cache.dims, cache.kind());
        let rows = |cols: usize, of: fn(&Case) -> &Vec<f32>| -> Vec<f32> {
            let rows = |&(case, position, count, _): &Seq<'_>| {
                of(case)[position * cols..(position + count) * cols].to_vec()
            };
            seqs.iter().flat_map(rows).collect()
        };
        let want = rows(dims.q_cols(), |c| &c.o);
        let q = rows(dims.q_cols(), |c| &c.q);
        let [k, v] = [rows(dims.kv_cols(), |c| &c.k), rows(dims.kv_cols(), |c| &c.v)];
        let (seqs, sizes) = (paged(seqs), Sizes::of(dims, kind));
        let room = Room::of(&seqs, seqs.row_count() + 3, dims, sizes);
        let filled_up = room.map(|room| PagedLists::in_room(&seqs, dims, sizes, room));
        let lists = [0, 1000].map(|least| PagedLists::with_limit(&seqs, dims, sizes, least));
        for lists in lists.into_iter().chain(filled_up) {
            let paged = Paged::of(cx, cache, &lists).unwrap();
            let padded = |x: &[f32], cols: usize| {
                let mut x = x.to_vec();
                x.resize(paged.row_count * cols, f32::NAN);
                upload(cx, &x, kind)
            };
            let q = padded(&q, dims.q_cols());
            let [k, v] = [&k, &v].map(|x| padded(x, dims.kv_cols()));
            cache.append(cx, 1, [k.view(), v.view()], &paged).unwrap();
            let mut o = cx.buffer(kind, q.len()).unwrap();
            attend(cx, &mut o.view_mut(), q.view(), cache, 1, &paged, SCALE).unwrap();
            assert_same_bits("o", &download(cx, &o)[..want.len()], &want);
        }
    }

    #[test]
    fn prefill_in_any_chunks_and_decoding_have_the_bits_of_the_packed_path() {
        for cx in contexts() {
            for heads in heads() {
                let (a, b) = (case(&cx, heads, 1, 200, None), case(&cx, heads, 2, 150, None));
                let a_pages: Vec<u32> = (0..13).map(|i| 12 - i).collect();
                let b_pages: Vec<u32> = (13..23).collect();
                let mut cache = KvCache::new(&cx, heads.1, 2, 23, heads.0).unwrap();
                step(&cx, &mut cache, &[(&a, 0, 70, &a_pages)]);
                step(&cx, &mut cache, &[(&a, 70, 1, &a_pages)]);
                step(&cx, &mut cache, &[(&b, 0, 149, &b_pages), (&a, 71, 3, &a_pages)]);
                step(&cx, &mut cache, &[(&a, 74, 120, &a_pages)]);
                for i in 0..2 {
                    step(&cx, &mut cache, &[(&a, 194 + i, 1, &a_pages)]);
                }
                step(&cx, &mut cache, &[(&b, 149, 1, &b_pages), (&a, 196, 1, &a_pages)]);
            }
        }
    }

    /// Goal: sequences that share pages have the bits of each alone. Method: branches of a prompt of two pages and a
    /// part of a third, which each of them has a copy of.
    #[test]
    fn branches_of_a_prompt_have_the_bits_of_the_packed_path() {
        for cx in contexts() {
            for heads in heads() {
                let trunk = case(&cx, heads, 1, 40, None);
                let branches: Vec<Case> =
                    (0..3).map(|i| case(&cx, heads, 5 + i, 90, Some((&trunk, 40)))).collect();
                let mut cache = KvCache::new(&cx, heads.1, 2, 30, heads.0).unwrap();
                step(&cx, &mut cache, &[(&trunk, 0, 40, &[7, 3, 11])]);
                cache.copy_pages(&cx, &[[11, 20], [11, 22]]).unwrap();
                let pages: [&[u32]; 3] =
                    [&[7, 3, 11, 0, 1, 2], &[7, 3, 20, 4, 5, 6], &[7, 3, 22, 8, 9, 10]];
                for (position, count) in [(40, 1), (41, 9), (50, 1)] {
                    let seqs: Vec<Seq<'_>> = branches
                        .iter()
                        .zip(pages)
                        .map(|(case, pages)| (case, position, count, pages))
                        .collect();
                    step(&cx, &mut cache, &seqs);
                }
            }
        }
    }

    #[test]
    fn no_rows_are_no_work() {
        let cx = &contexts()[0];
        for heads in heads() {
            let mut cache = KvCache::new(cx, heads.1, 2, 1, heads.0).unwrap();
            step(cx, &mut cache, &[]);
            cache.copy_pages(cx, &[]).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "a sequence names page 4: the cache has 1")]
    fn a_page_that_the_cache_has_not_is_a_bug() {
        let (cx, (dims, kind)) = (&contexts()[0], heads()[0]);
        let mut seqs = PagedSeqs::default();
        seqs.push(1, 0, &[4]);
        let cache = KvCache::new(cx, kind, 2, 1, dims).unwrap();
        Paged::upload(cx, &seqs, &cache).unwrap();
    }

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
