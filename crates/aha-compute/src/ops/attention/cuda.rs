//! Attention on a device.
//!
//! Heads of 64 and 128 elements of bf16 are for tensor cores (`forward.cu`, `backward.cu`); heads of f32, and those of
//! any other width up to 256 that is a multiple of 8, for plain arithmetic (`plain.cu`). A block has *rows*: queries
//! times the heads of a group, so that keys which are loaded once serve the whole group. Keys come in *tiles* by
//! absolute position, 64 of them (plain: 16), gathered row by row through the pages of a [`Layout`] or of a cache.
//! What sees what is in lists that are made once per layout or step, for all layers.
//!
//! # Order of sums: zero difference between packed, prefill and decode
//! One routine computes a tile for sixteen rows: `s = q k` (a chain of `mma.m16n8k16` over `d`), weights relative to
//! **the tile's own** greatest product, their sum, and the values they mix (a chain of `mma` over the keys, from zero).
//! Then the tile is added to what is there:
//!
//! ```text
//! M' = max(M, m)    L = L 2^(M - M') + l 2^(m - M')    O = O 2^(M - M') + o 2^(m - M')    (2^x of scaled products)
//! ```
//!
//! tile after tile from position 0, each element with the same multiplication and fused multiply-add. A tile depends on
//! nothing but its row and its keys; rows of an `mma` don't mix; a tile that a row sees nothing of changes no bit.
//! So it doesn't matter who computes a tile: a block may have many rows and take tiles in turn (packed, prefill), or
//! sixteen rows and as many tiles at once as it has warps (decode), or put its tiles aside for a kernel that adds them
//! (decode of few long sequences, which are cut so that a device isn't left idle). All have the same bits, for any
//! batch, which the tests compare. That costs a fused multiply-add for each element and tile more than rescaling a
//! running sum would, which is 2 D / 64 per product of a row and a key that takes 4 D; where sequences are cut may
//! depend on the batch.
//!
//! Gradients of queries are one block's, over tiles in order. Gradients of keys are one block's for each segment of
//! queries, over its rows in order, which sums over the heads of a group too; what a segment adds to the keys of its
//! ancestors is put aside, and added in the order of segments, before the shared segment's own. There are no atomics.
//! Sums that batches hand on have the bits of a whole group.
//!
//! # Blocks
//! | kernel    | block, D = 64; 128          | shared memory | registers (sm_90a) | blocks of a multiprocessor, H100 |
//! |-----------|-----------------------------|---------------|--------------------|----------------------------------|
//! | `rows`    | 128; 64 rows in 4 warps     | 50; 81 KiB    | 174; 147           | 2; 2                             |
//! | `decode`  | 16 rows, 4; 2 tiles at once | 67; 68 KiB    | 77; 112            | 3; 3                             |
//! | `keys`    | 64 keys in 4 warps          | 50; 98 KiB    | 165; 248           | 3; 2                             |
//! | `queries` | 64 rows in 4 warps          | 48; 96 KiB    | 166; 168           | 3; 2                             |
//!
//! None spills. Tiles are copied by `cp.async` into one of two stages while the other is computed; a warp of `decode`
//! has all of its tile's 32 KiB (D = 128) under way at once, so three blocks have 192 KiB, an order more than the
//! 20 KiB or so per multiprocessor that hide the latency of memory at full bandwidth.
//!
//! An `mma` takes 4096 operations. For each, `rows` reads 160 bytes of fragments from shared memory at D = 64, where
//! two row tiles share them, and 288 at D = 128; `keys` reads 320 and `queries` 299. A multiprocessor reads 128 bytes
//! and does about one `mma` in a cycle, of which `mma.sync` reaches about two thirds: so D = 64 is bound by tensor
//! cores and the rest by shared memory, at an estimated 44 % (forward) and 41 % (backward) of the peak at D = 128. The
//! backward pass has 7 products (3 of `queries`, 4 of `keys`) where one with atomics has 5. Nothing of this is
//! measured. What to try first on a device: two row tiles per warp at D = 128, which spill by little; warps of `keys`
//! that have half of D and twice the keys, and exchange weights through shared memory; then `wgmma`, whose 64 rows take
//! the same tiles, in all kernels at once, so that they have the same bits.
//!
//! # Shared pages
//! Sequences that share a prompt's pages read them each for itself: at the same time, so from the L2 cache and not from
//! memory. A launch of its own for shared tiles would save reads of the cache alone, and costs the time of a launch and
//! a round trip of f32 sums.
//!
//! # Steps that are captured
//! A step of decoding that is to be captured has lists of one length in one [`Room`]: a row for each of its rows, and
//! items for the longest sequence of it. What isn't there is an item without rows, whose block leaves at once, and a
//! row without a slot, whose keys and values are stored nowhere.
//!
//! # Map
//! - `cuda/tiles.cuh`: rows, pages, and how tiles are added. `cuda/squares.cuh`: tiles in shared memory and fragments.
//! - `cuda/forward.cu`: `rows`, `decode`, `join`. `cuda/backward.cu`: `queries`, `keys`. `cuda/plain.cu`: all for any
//!   width. `cuda/sums.cu`: `delta`, what was put aside, pages.
//! - `work`: the lists, as pure functions. [`Packed`], [`forward`], [`backward()`].
//! - `paged`: [`KvCache`], [`Paged`], [`attend`]; their lists may be parts of those of a whole step.

mod paged;
#[cfg(test)]
mod tests;
mod work;

pub use paged::{KvCache, Paged, attend};
pub(crate) use paged::{put, room};
pub use work::{Room, captured_parts_bytes};

use super::{Dims, Layout};
use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::cuda::{assert_aligned, assert_float};
use crate::staging::Part;
use work::{Item, PackedLists, Wave};

static PLAIN: Source = Source {
    name: "attention.cu",
    text: concat!(include_str!("cuda/tiles.cuh"), include_str!("cuda/plain.cu")),
};
static FORWARD: Source = Source {
    name: "attention_forward.cu",
    text: concat!(
        include_str!("cuda/tiles.cuh"),
        include_str!("cuda/squares.cuh"),
        include_str!("cuda/forward.cu")
    ),
};
static BACKWARD: Source = Source {
    name: "attention_backward.cu",
    text: concat!(
        include_str!("cuda/tiles.cuh"),
        include_str!("cuda/squares.cuh"),
        include_str!("cuda/backward.cu")
    ),
};
static SUMS: Source = Source { name: "attention_sums.cu", text: include_str!("cuda/sums.cu") };

/// The sources of attention.
pub(crate) static SOURCES: [&Source; 4] = [&PLAIN, &FORWARD, &BACKWARD, &SUMS];

/// Widest head.
const HEAD_DIM_MAX: usize = 256;
/// Threads of the kernels on tensor cores, and of all others.
const SQUARES_THREADS: u32 = 128;
const PLAIN_THREADS: u32 = 256;
/// Tiles of keys that a block of decoding has at once with the widest heads.
const KEY_WARPS_LEAST: u32 = 2;

/// Rows and keys of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    /// Whether tensor cores compute it.
    is_squares: bool,
    /// Rows of a block of the forward pass.
    rows: usize,
    /// Keys of a tile, and rows of a block of the backward pass.
    tile: usize,
    /// Rows up to which a block has a tile of keys for each of its warps.
    few_rows: usize,
}

impl Sizes {
    /// Those for elements of a kind; heads of 64 and 128 elements of bf16 are for tensor cores.
    fn of(dims: Dims, kind: Kind) -> Sizes {
        let rows = match (kind, dims.head_dim) {
            (Kind::Bf16, 64) => 128,
            (Kind::Bf16, 128) => 64,
            _ => return Sizes { is_squares: false, rows: 16, tile: 16, few_rows: 0 },
        };
        Sizes { is_squares: true, rows, tile: 64, few_rows: 16 }
    }

    /// Whether so many queries of a sequence are few rows.
    fn are_few(self, queries: usize, dims: Dims) -> bool {
        queries * dims.group() <= self.few_rows
    }
}

/// What asking for a cache is answered that the device failed to make.
pub(super) fn no_cache() -> Error {
    Error::Failed { call: "making a cache of keys and values", code: "it is not there".into() }
}

/// Asserts that there are kernels for the heads.
#[track_caller]
fn check_dims(dims: Dims, kind: Kind) {
    let Dims { heads, kv_heads, head_dim } = dims;
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "{heads} query heads can't share {kv_heads} heads of keys evenly"
    );
    assert!(
        head_dim.is_multiple_of(8) && (8..=HEAD_DIM_MAX).contains(&head_dim),
        "heads are {head_dim} wide: the kernels take multiples of 8 up to {HEAD_DIM_MAX}"
    );
    assert_float("q", kind);
}

/// Softmax weights fall with the distance from the greatest product, so the scale has to be positive.
#[track_caller]
fn check_scale(scale: f32) {
    assert!(scale > 0.0 && scale.is_finite(), "a scale of {scale}: it is positive and finite");
}

/// A launch of a kernel on each item and head of keys.
fn item_plan(
    source: &'static Source,
    kernel: String,
    (items, kv_heads): (usize, usize),
    threads: u32,
    shared_bytes: usize,
) -> Plan {
    let plan = Plan::new(source, kernel, items, threads);
    let shared_bytes = u32::try_from(shared_bytes).unwrap_or(u32::MAX);
    Plan { grid: [plan.grid[0], kv_heads as u32, 1], shared_bytes, ..plan }
}

/// Bytes of so many rows of f32 that are an odd number apart.
fn plain_bytes(squares: usize, head_dim: usize, tables: usize) -> usize {
    (squares * 16 * (head_dim + 1) + tables * 256) * 4
}

fn forward_plan(items: usize, dims: Dims, kind: Kind) -> Plan {
    let (d, sizes) = (dims.head_dim, Sizes::of(dims, kind));
    let grid = (items, dims.kv_heads);
    if !sizes.is_squares {
        let kernel = format!("attention_plain_forward_{kind}");
        return item_plan(&PLAIN, kernel, grid, PLAIN_THREADS, plain_bytes(3, d, 1));
    }
    // The queries, and twice a tile of keys and one of values.
    let bytes = (sizes.rows + 4 * sizes.tile) * d * 2;
    item_plan(&FORWARD, format!("attention_rows_{d}"), grid, SQUARES_THREADS, bytes)
}

fn backward_plan(of: &str, items: usize, dims: Dims, kind: Kind) -> Plan {
    let (d, sizes) = (dims.head_dim, Sizes::of(dims, kind));
    let grid = (items, dims.kv_heads);
    if !sizes.is_squares {
        let kernel = format!("attention_plain_backward_{of}_{kind}");
        return item_plan(&PLAIN, kernel, grid, PLAIN_THREADS, plain_bytes(4, d, 2));
    }
    // Two tiles that stay, and twice two that are gone through.
    let kernel = format!("attention_backward_{of}_{d}");
    item_plan(&BACKWARD, kernel, grid, SQUARES_THREADS, 6 * sizes.tile * d * 2)
}

fn deltas_plan(kinds: [Kind; 2], heads: usize) -> Plan {
    let [do_, o] = kinds;
    Plan::new(&SUMS, format!("attention_deltas_{do_}_{o}"), heads.div_ceil(8), 256)
}

fn add_aside_plan(rows: usize) -> Plan {
    let plan = Plan::new(&SUMS, "attention_add_aside", rows, 256);
    Plan { grid: [plan.grid[0], 2, 1], ..plan }
}

/// Items on the device.
#[derive(Debug)]
struct Items {
    words: Part,
    count: usize,
}

impl Items {
    fn upload(cx: &Context, items: &[Item]) -> Result<Items, Error> {
        Ok(Items { words: cx.upload(&work::words(items))?.into(), count: items.len() })
    }

    fn arg(&self) -> Arg {
        Arg::from(&self.words.view())
    }
}

#[derive(Debug)]
struct WaveItems {
    keys: Items,
    aside_rows: usize,
    rows: Buffer,
    firsts: Buffer,
}

impl WaveItems {
    fn upload(cx: &Context, wave: &Wave) -> Result<WaveItems, Error> {
        Ok(WaveItems {
            keys: Items::upload(cx, &wave.keys)?,
            aside_rows: wave.aside_rows,
            rows: cx.upload(wave.rows.as_flattened())?,
            firsts: cx.upload(&wave.firsts)?,
        })
    }
}

/// A [`Layout`] on the device: which rows see which keys, once for all layers.
#[derive(Debug)]
pub struct Packed {
    layout: Layout,
    dims: Dims,
    kind: Kind,
    page_ids: Buffer,
    slot_rows: Buffer,
    forward: Items,
    queries: Items,
    waves: Vec<WaveItems>,
}

impl Packed {
    /// For heads of `dims` and `q`, `k`, `v` of this kind.
    pub fn upload(cx: &Context, layout: &Layout, dims: Dims, kind: Kind) -> Result<Packed, Error> {
        check_dims(dims, kind);
        Packed::of(cx, layout, dims, kind, &PackedLists::new(layout, dims, Sizes::of(dims, kind)))
    }

    fn of(
        cx: &Context,
        layout: &Layout,
        dims: Dims,
        kind: Kind,
        lists: &PackedLists,
    ) -> Result<Packed, Error> {
        Ok(Packed {
            layout: layout.clone(),
            dims,
            kind,
            page_ids: cx.upload(&lists.page_ids)?,
            slot_rows: cx.upload(&lists.slot_rows)?,
            forward: Items::upload(cx, &lists.forward)?,
            queries: Items::upload(cx, &lists.queries)?,
            waves: lists
                .waves
                .iter()
                .map(|wave| WaveItems::upload(cx, wave))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether it is that of a layout, for such heads and activations.
    pub(crate) fn is_of(&self, layout: &Layout, dims: Dims, kind: Kind) -> bool {
        self.layout.is_same(layout) && (self.dims, self.kind) == (dims, kind)
    }

    /// Elements of queries, of keys, and of sums of the softmax.
    fn lens(&self) -> [usize; 3] {
        let Dims { heads, .. } = self.dims;
        [self.dims.q_cols(), self.dims.kv_cols(), heads].map(|cols| self.layout.row_count() * cols)
    }

    /// What kernels take behind the items.
    fn tables(&self) -> [Arg; 2] {
        [&self.page_ids, &self.slot_rows].map(|table| Arg::from(&table.view()))
    }

    /// Sizes that kernels take at their end.
    fn sizes(&self, scale: f32) -> Vec<Arg> {
        sizes(self.dims, self.kind, scale)
    }
}

/// Heads of keys, heads of a group, the width of a head where the kernel isn't for one width, and the scale.
fn sizes(dims: Dims, kind: Kind, scale: f32) -> Vec<Arg> {
    let mut args = vec![Arg::size(dims.kv_heads), Arg::size(dims.group())];
    if !Sizes::of(dims, kind).is_squares {
        args.push(Arg::size(dims.head_dim));
    }
    args.push(Arg::F32(scale));
    args
}

/// As the op's [`forward`](super::forward): `o` `(T, H·D)` of the kind of `q`, `k` and `v`, and `lse` `(T, H)` of f32.
pub fn forward(
    cx: &Context,
    o: &mut ViewMut<'_>,
    lse: &mut ViewMut<'_>,
    [q, k, v]: [View<'_>; 3],
    packed: &Packed,
    scale: f32,
) -> Result<(), Error> {
    check_scale(scale);
    let [q_len, kv_len, lse_len] = packed.lens();
    q.assert_is(packed.kind, q_len);
    o.assert_is(packed.kind, q_len);
    [k, v].iter().for_each(|x| x.assert_is(packed.kind, kv_len));
    lse.assert_is(Kind::F32, lse_len);
    let plan = forward_plan(packed.forward.count, packed.dims, packed.kind);
    let mut args = vec![Arg::from(&*o), Arg::from(&*lse)];
    args.extend([q, k, v].iter().map(Arg::from));
    args.iter().for_each(|arg| assert_aligned("a buffer", arg));
    args.push(packed.forward.arg());
    args.extend(packed.tables());
    args.extend(packed.sizes(scale));
    // SAFETY: lengths and kinds are checked above; items stay within the layout's rows.
    unsafe { cx.launch(&plan, &args) }
}

/// Sums for the keys and values of a segment that batches have in parts, as [`Split`](super::Split) says:
/// `(rows, KV·D)` of f32.
pub type Sums = [Buffer; 2];

/// As the op's [`backward`](super::backward): `dq` `dk` `dv` of f32. `do_` is f32, or of the kind of `q`.
pub fn backward(
    cx: &Context,
    [dq, dk, dv]: [&mut ViewMut<'_>; 3],
    do_: View<'_>,
    qkv: [View<'_>; 3],
    o: View<'_>,
    lse: View<'_>,
    packed: &Packed,
    scale: f32,
    begun: Option<Sums>,
) -> Result<Option<Sums>, Error> {
    check_scale(scale);
    let [q_len, kv_len, lse_len] = packed.lens();
    dq.assert_is(Kind::F32, q_len);
    [&*dk, &*dv].iter().for_each(|x| x.assert_is(Kind::F32, kv_len));
    do_.assert_is(do_.kind(), q_len);
    for (x, len) in qkv.iter().chain([&o]).zip([q_len, kv_len, kv_len, q_len]) {
        x.assert_is(packed.kind, len);
    }
    lse.assert_is(Kind::F32, lse_len);
    let mut delta = cx.buffer(Kind::F32, lse_len)?;
    let rounded = deltas(cx, &mut delta.view_mut(), do_, o, packed)?;
    let do_ = rounded.as_ref().map_or(do_, Buffer::view);
    begin_sums(cx, [&mut *dk, &mut *dv], packed, begun)?;
    let mut inputs = vec![Arg::from(&do_)];
    inputs.extend(qkv.iter().map(Arg::from));
    inputs.extend([Arg::from(&lse), Arg::from(&delta.view())]);
    inputs.iter().for_each(|arg| assert_aligned("a buffer", arg));

    let plan = backward_plan("queries", packed.queries.count, packed.dims, packed.kind);
    let mut args = vec![Arg::from(&*dq)];
    args.extend(&inputs);
    args.push(packed.queries.arg());
    args.extend(packed.tables());
    args.extend(packed.sizes(scale));
    // SAFETY: as of the forward pass; each row of `dq` is one block's.
    unsafe { cx.launch(&plan, &args)? };
    for wave in &packed.waves {
        run_wave(cx, [&mut *dk, &mut *dv], &inputs, packed, wave, scale)?;
    }
    hand_on(cx, dq, [dk, dv], packed)
}

/// `delta` `(T, H)`, and `do_` in bf16 if the others are and it isn't.
fn deltas(
    cx: &Context,
    delta: &mut ViewMut<'_>,
    do_: View<'_>,
    o: View<'_>,
    packed: &Packed,
) -> Result<Option<Buffer>, Error> {
    assert_float("do", do_.kind());
    let rounds = do_.kind() != o.kind();
    assert!(
        !rounds || o.kind() == Kind::Bf16,
        "`do` is {}, the others are {}",
        do_.kind(),
        o.kind()
    );
    let rounded = if rounds { Some(cx.buffer(Kind::Bf16, do_.len())?) } else { None };
    let heads = delta.len();
    let args = [
        Arg::from(&*delta),
        Arg::of(rounded.as_ref().map(Buffer::view)),
        Arg::from(&do_),
        Arg::from(&o),
        Arg::size(heads),
        Arg::size(packed.dims.head_dim),
    ];
    // SAFETY: lengths are checked by the caller.
    unsafe { cx.launch(&deltas_plan([do_.kind(), o.kind()], heads), &args)? };
    Ok(rounded)
}

/// Sets the sums of shared segments to zero, or to what an earlier batch handed on.
fn begin_sums(
    cx: &Context,
    gradients: [&mut ViewMut<'_>; 2],
    packed: &Packed,
    begun: Option<Sums>,
) -> Result<(), Error> {
    let (layout, cols) = (&packed.layout, packed.dims.kv_cols());
    let begun_rows = layout.begun_rows();
    assert_eq!(begun.is_some(), begun_rows.is_some(), "sums of the segment that was begun");
    let mut begun = begun.into_iter().flatten();
    for sums in gradients {
        for s in layout.segments().iter().filter(|s| s.is_shared) {
            cx.clear(&mut sums.reborrow().slice(s.row * cols..(s.row + s.row_count) * cols))?;
        }
        if let (Some(rows), Some(begun)) = (begun_rows.clone(), begun.next()) {
            let to = &mut sums.reborrow().slice(rows.start * cols..rows.end * cols);
            cx.copy(to, begun.view())?;
        }
    }
    Ok(())
}

/// Gradients of the keys of some segments, those of shared segments by way of what is put aside.
fn run_wave(
    cx: &Context,
    [dk, dv]: [&mut ViewMut<'_>; 2],
    inputs: &[Arg],
    packed: &Packed,
    wave: &WaveItems,
    scale: f32,
) -> Result<(), Error> {
    let cols = packed.dims.kv_cols();
    let aside_len = wave.aside_rows * cols;
    let aside = cx.buffer(Kind::F32, 2 * aside_len)?;
    let outputs = [Arg::from(&*dk), Arg::from(&*dv), Arg::from(&aside.view())];
    let mut args = outputs.to_vec();
    args.extend(inputs);
    args.push(wave.keys.arg());
    args.extend(packed.tables());
    args.push(Arg::U64(aside_len as u64));
    args.extend(packed.sizes(scale));
    let plan = backward_plan("keys", wave.keys.count, packed.dims, packed.kind);
    // SAFETY: as of the forward pass; each row of gradients, and of what is put aside, is one block's.
    unsafe { cx.launch(&plan, &args)? };
    let mut args = outputs.to_vec();
    args.extend([&wave.rows, &wave.firsts].map(|list| Arg::from(&list.view())));
    args.extend([Arg::U64(aside_len as u64), Arg::size(cols)]);
    // SAFETY: what is put aside has a row for each position that the lists name.
    unsafe { cx.launch(&add_aside_plan(wave.rows.len() / 4), &args) }
}

/// Takes the sums of the segment that a later batch completes.
fn hand_on(
    cx: &Context,
    dq: &mut ViewMut<'_>,
    gradients: [&mut ViewMut<'_>; 2],
    packed: &Packed,
) -> Result<Option<Sums>, Error> {
    let Some(rows) = packed.layout.open_rows() else { return Ok(None) };
    let (q_cols, cols) = (packed.dims.q_cols(), packed.dims.kv_cols());
    cx.clear(&mut dq.reborrow().slice(rows.start * q_cols..rows.end * q_cols))?;
    let [dk, dv] = gradients.map(|sums| {
        let mut handed_on = cx.buffer(Kind::F32, rows.len() * cols)?;
        let part = &mut sums.reborrow().slice(rows.start * cols..rows.end * cols);
        cx.copy(&mut handed_on.view_mut(), part.as_view())?;
        cx.clear(part)?;
        Ok(handed_on)
    });
    Ok(Some([dk?, dv?]))
}
