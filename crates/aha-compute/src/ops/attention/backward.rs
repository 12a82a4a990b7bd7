//! Gradients of attention over packed segments.
//!
//! Probabilities are computed again from `lse`, so memory grows with the rows and not with their square.
//! One call computes one segment's head of keys, with all of its queries that read it in order. What that
//! adds to the keys and values of shared segments, its ancestors and itself, is held until its turn comes,
//! which is the order of segments; so many are computed at once as have [`SHARES_LEN_MAX`] floats of that.
//!
//! So the sums of a group's prompt are those of its completions in order, and then the prompt's own, and a group
//! that batches have in parts hands them on from one to the next: its gradients have the bits of a whole one's.

use std::cmp::Reverse;
use std::ops::Range;

use super::kernel::{self, BackwardRows};
use super::tiles::{Span, Task, copy_row, tiles_of, with_scratch};
use super::{Dims, Layout, Segment, check_len, cuda};
use crate::Tensor;
use crate::tensor::{Shards, kind_of};

/// Most floats that wait to be added to gradients of shared segments, unless one segment has more.
const SHARES_LEN_MAX: usize = 1 << 22;

/// `dq`, `dk` and `dv`, from `do_`, the gradient of `o`, and what [`super::forward`] took and wrote.
///
/// `begun` are the sums for keys and values of the segment that an earlier batch began. Returned are those of the
/// segment that is left open to a later one. Of its own rows `do_` isn't read, and all gradients are zero.
pub fn backward(
    [dq, dk, dv]: [&mut Tensor; 3],
    do_: &Tensor,
    [q, k, v]: [&Tensor; 3],
    o: &Tensor,
    lse: &Tensor,
    layout: &Layout,
    dims: Dims,
    scale: f32,
    begun: Option<[Tensor; 2]>,
) -> Option<[Tensor; 2]> {
    dims.check();
    let rows = q.rows();
    layout.check(rows);
    for (name, buffer, cols) in [
        ("dq", &*dq, dims.q_cols()),
        ("dk", dk, dims.kv_cols()),
        ("dv", dv, dims.kv_cols()),
        ("do", do_, dims.q_cols()),
        ("q", q, dims.q_cols()),
        ("k", k, dims.kv_cols()),
        ("v", v, dims.kv_cols()),
        ("o", o, dims.q_cols()),
        ("lse", lse, dims.heads),
    ] {
        check_len(name, buffer.len(), rows, cols);
    }
    if let Some(gpu) = q.gpu() {
        let handed_on = gpu.ask(|cx| {
            let packed = gpu.layout(cx, layout, dims, kind_of(q.dtype()))?;
            let gradients = [&mut dq.view_mut(), &mut dk.view_mut(), &mut dv.view_mut()];
            let (qkv, begun) =
                ([q, k, v].map(Tensor::view), begun.map(|two| two.map(Tensor::into_buffer)));
            let (do_, o, lse) = (do_.view(), o.view(), lse.view());
            cuda::backward(cx, gradients, do_, qkv, o, lse, &packed, scale, begun)
        });
        let shape = [layout.open_rows()?.len(), dims.kv_cols()];
        return match handed_on.flatten() {
            Some(two) => Some(two.map(|sums| Tensor::of_buffer(q.device(), &shape, sums))),
            // The device has failed, and does nothing more.
            None => Some([0; 2].map(|_| Tensor::uninit(q.device(), &shape))),
        };
    }
    begin_sums([&mut *dk, &mut *dv], layout, begun);
    let k_columns = layout.pages_of_columns(k, dims);
    let (v_columns, k_rows) = (layout.pages_of_columns(v, dims), layout.pages_of_rows(k, dims));
    let inputs = Inputs { do_, q, o, lse, k_columns, v_columns, k_rows, layout, dims };
    let outputs = Outputs {
        dq: Shards::new(dq.as_mut_slice()),
        dk: Shards::new(dk.as_mut_slice()),
        dv: Shards::new(dv.as_mut_slice()),
    };
    let mut end = 0;
    while end < layout.segments().len() {
        let wave = wave(layout.segments(), end, dims);
        end = wave.end;
        run_wave(&outputs, &inputs, wave, scale);
    }
    let open = layout.open_rows()?;
    dq.rows_mut(open.clone()).fill(0.0);
    Some([dk, dv].map(|sums| {
        let handed_on = sums.rows_range(open.clone());
        sums.rows_mut(open.clone()).fill(0.0);
        handed_on
    }))
}

/// Sets the sums of shared segments to zero, or to what an earlier batch handed on.
fn begin_sums(gradients: [&mut Tensor; 2], layout: &Layout, begun: Option<[Tensor; 2]>) {
    let begun_rows = layout.begun_rows();
    assert_eq!(begun.is_some(), begun_rows.is_some(), "sums of the segment that was begun");
    let mut begun = begun.into_iter().flatten();
    for sums in gradients {
        for Segment { row, row_count, .. } in layout.segments().iter().filter(|s| s.is_shared) {
            sums.rows_mut(*row..row + row_count).fill(0.0);
        }
        if let (Some(rows), Some(begun)) = (begun_rows.clone(), begun.next()) {
            sums.rows_mut(rows).copy_from_slice(begun.as_slice());
        }
    }
}

struct Inputs<'a> {
    do_: &'a Tensor,
    q: &'a Tensor,
    o: &'a Tensor,
    lse: &'a Tensor,
    k_columns: Tensor,
    v_columns: Tensor,
    k_rows: Tensor,
    layout: &'a Layout,
    dims: Dims,
}

struct Outputs<'a> {
    dq: Shards<'a>,
    dk: Shards<'a>,
    dv: Shards<'a>,
}

/// One segment's head of keys.
struct Work {
    segment: usize,
    kv_head: usize,
    tiles: Vec<Task>,
    /// Where the shares of shared segments are: keys, then values.
    shares: Range<usize>,
}

/// Segments from `first` on that are computed at once.
fn wave(segments: &[Segment], first: usize, dims: Dims) -> Range<usize> {
    let (mut end, mut len) = (first, 0);
    while let Some(segment) = segments.get(end) {
        len += dims.kv_heads * shares_len(segment, dims);
        if end > first && len > SHARES_LEN_MAX {
            break;
        }
        end += 1;
    }
    first..end
}

/// Floats that one head of a segment adds to gradients of shared segments.
fn shares_len(segment: &Segment, dims: Dims) -> usize {
    if segment.row_count == 0 { 0 } else { 2 * shared_end(segment) * dims.head_dim }
}

/// The position up to which others see the rows of a segment's sequence.
fn shared_end(segment: &Segment) -> usize {
    if segment.is_shared { segment.end() } else { segment.position }
}

fn run_wave(outputs: &Outputs<'_>, inputs: &Inputs<'_>, wave: Range<usize>, scale: f32) {
    let (device, layout, dims) = (inputs.q.device(), inputs.layout, inputs.dims);
    let segments = layout.segments();
    let (mut works, mut shares_end) = (Vec::new(), 0);
    let has_work = |&idx: &usize| segments[idx].row_count > 0 && !layout.is_open(idx);
    for segment in wave.filter(has_work) {
        let Segment { row, row_count, position, .. } = segments[segment];
        for kv_head in 0..dims.kv_heads {
            let tiles =
                tiles_of(&Span { seq: segment, row, row_count, position }, kv_head, dims, scale);
            let shares = shares_end..shares_end + shares_len(&segments[segment], dims);
            shares_end = shares.end;
            works.push(Work { segment, kv_head, tiles, shares });
        }
    }
    let mut shares = Tensor::uninit(device, &[shares_end]);
    // Those with most to do first, so that threads end together.
    let mut order: Vec<&Work> = works.iter().collect();
    order.sort_by_key(|work| {
        let Segment { row_count, position, .. } = segments[work.segment];
        Reverse(row_count * (2 * position + row_count))
    });
    let to = Shards::new(shares.as_mut_slice());
    device.run(order.len(), |i| backward_head(outputs, &to, inputs, order[i]));
    add_shares(outputs, shares.as_slice(), &works, inputs);
}

/// Adds shares to the gradients of shared segments, in the order of the segments that they come from.
fn add_shares(outputs: &Outputs<'_>, shares: &[f32], works: &[Work], inputs: &Inputs<'_>) {
    let Inputs { layout, dims, .. } = *inputs;
    let (d, cols) = (dims.head_dim, dims.kv_cols());
    inputs.q.device().run(2 * dims.kv_heads, |i| {
        let (kv_head, is_value) = (i / 2, i % 2 == 1);
        let to = if is_value { &outputs.dv } else { &outputs.dk };
        for work in works.iter().filter(|work| work.kv_head == kv_head) {
            let shares = &shares[work.shares.clone()];
            let (of_keys, of_values) = shares.split_at(shares.len() / 2);
            let shares = if is_value { of_values } else { of_keys };
            for (position, share) in shares.chunks_exact(d).enumerate() {
                let at = layout.row_at(work.segment, position) * cols + kv_head * d;
                // SAFETY: this call alone has this head of this gradient.
                let sums = unsafe { to.slice(at, at + d) };
                sums.iter_mut().zip(share).for_each(|(sum, x)| *sum += x);
            }
        }
    });
}

fn backward_head(outputs: &Outputs<'_>, shares: &Shards<'_>, inputs: &Inputs<'_>, work: &Work) {
    let dims = inputs.dims;
    let (d, cols) = (dims.head_dim, dims.kv_cols());
    let segment = inputs.layout.segments()[work.segment];
    let (keys_len, shared_len) = (segment.end() * d, shared_end(&segment) * d);
    let tile_len = work.tiles.iter().map(tile_scratch_len).max().unwrap_or(0);
    with_scratch(inputs.q.device(), 2 * keys_len + tile_len, |scratch| {
        let (dk, rest) = scratch.split_at_mut(keys_len);
        let (dv, rest) = rest.split_at_mut(keys_len);
        dk.fill(0.0);
        dv.fill(0.0);
        for task in &work.tiles {
            backward_tile(&outputs.dq, dk, dv, inputs, task, rest);
        }
        // SAFETY: this call alone has these shares.
        let shares = unsafe { shares.slice(work.shares.start, work.shares.end) };
        let (of_keys, of_values) = shares.split_at_mut(shared_len);
        for (gradient, of_shared, to) in [(dk, of_keys, &outputs.dk), (dv, of_values, &outputs.dv)]
        {
            let (shared, own) = gradient.split_at(shared_len);
            of_shared.copy_from_slice(shared);
            // Of a shared segment nothing is left.
            for (row, own) in (segment.row..).zip(own.chunks_exact(d)) {
                let at = row * cols + work.kv_head * d;
                // SAFETY: this call alone has this segment and this head.
                copy_row(unsafe { to.slice(at, at + d) }, own);
            }
        }
    });
}

fn tile_scratch_len(task: &Task) -> usize {
    4 * task.tile.rows_len() + task.tile.row_count + task.tile.backward_scratch_len()
}

fn backward_tile(
    dq: &Shards<'_>,
    dk: &mut [f32],
    dv: &mut [f32],
    inputs: &Inputs<'_>,
    task: &Task,
    scratch: &mut [f32],
) {
    let (tile, dims) = (task.tile, inputs.dims);
    let (q, rest) = scratch.split_at_mut(tile.rows_len());
    let (o, rest) = rest.split_at_mut(tile.rows_len());
    let (do_, rest) = rest.split_at_mut(tile.rows_len());
    let (dq_rows, rest) = rest.split_at_mut(tile.rows_len());
    let (lse, rest) = rest.split_at_mut(tile.row_count);
    task.gather(q, inputs.q.as_slice(), dims.head_dim, dims);
    task.gather(o, inputs.o.as_slice(), dims.head_dim, dims);
    task.gather(do_, inputs.do_.as_slice(), dims.head_dim, dims);
    task.gather(lse, inputs.lse.as_slice(), 1, dims);
    let [k_columns, v_columns, k_rows] = [&inputs.k_columns, &inputs.v_columns, &inputs.k_rows]
        .map(|pages| &pages.as_slice()[task.kv_head * dims.page_head_len()..]);
    let rows = BackwardRows {
        q,
        o,
        do_,
        lse,
        k_columns,
        v_columns,
        k_rows,
        ids: inputs.layout.page_ids(task.seq),
        page_stride: dims.page_len(),
    };
    kernel::backward(inputs.q.device().isa(), dq_rows, dk, dv, &rows, rest, tile);
    task.scatter(dq, dq_rows, dims.head_dim, dims);
}

#[cfg(test)]
mod tests {
    use super::super::check::{mixed_layout, sequence, take_rows, tree};
    use super::super::{Split, forward, reference};
    use super::*;
    use crate::Device;
    use crate::ops::check::{F32, assert_close, assert_same_bits, devices, noise_f32};

    /// Noise on a device: `q`, `k`, `v` and the gradient of `o`.
    fn inputs(device: &Device, rows: Range<usize>, dims: Dims) -> [Tensor; 4] {
        let columns = [dims.q_cols(), dims.kv_cols(), dims.kv_cols(), dims.q_cols()];
        std::array::from_fn(|i| {
            let cols = columns[i];
            let all = noise_f32(i as u64, 100 * cols);
            let part = &all[rows.start * cols..rows.end * cols];
            Tensor::from_slice(device, &[rows.len(), cols], part)
        })
    }

    /// `dq`, `dk` and `dv`, and what is handed on.
    fn run_part(
        [q, k, v, do_]: &[Tensor; 4],
        layout: &Layout,
        dims: Dims,
        begun: Option<[Tensor; 2]>,
    ) -> ([Tensor; 3], Option<[Tensor; 2]>) {
        let mut o = Tensor::uninit(q.device(), q.shape());
        let mut lse = Tensor::uninit(q.device(), &[q.rows(), dims.heads]);
        forward(&mut o, &mut lse, q, k, v, layout, dims, 0.5);
        let mut gradients = [q, k, v].map(|x| Tensor::uninit(q.device(), x.shape()));
        let (to, qkv) = (gradients.each_mut(), [q, k, v]);
        let handed_on = backward(to, do_, qkv, &o, &lse, layout, dims, 0.5, begun);
        (gradients, handed_on)
    }

    /// `dq`, `dk` and `dv`.
    fn run(inputs: &[Tensor; 4], layout: &Layout, dims: Dims, scale: f32) -> [Tensor; 3] {
        let [q, k, v, do_] = inputs;
        let mut o = Tensor::uninit(q.device(), q.shape());
        let mut lse = Tensor::uninit(q.device(), &[q.rows(), dims.heads]);
        forward(&mut o, &mut lse, q, k, v, layout, dims, scale);
        let gradients = || [q, k, v].map(|x| Tensor::uninit(q.device(), x.shape()));
        let ([mut dq, mut dk, mut dv], mut again) = (gradients(), gradients());
        let kv = [q, k, v];
        backward([&mut dq, &mut dk, &mut dv], do_, kv, &o, &lse, layout, dims, scale, None);
        backward(again.each_mut(), do_, kv, &o, &lse, layout, dims, scale, None);
        for (once, twice) in [&dq, &dk, &dv].into_iter().zip(&again) {
            assert_same_bits("written, not added to", twice.as_slice(), once.as_slice());
        }
        [dq, dk, dv]
    }

    #[test]
    fn every_device_matches_the_reference_and_the_others() {
        for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 32), (7, 1, 16), (1, 1, 64)] {
            let dims = Dims { heads, kv_heads, head_dim };
            let layout = mixed_layout();
            let t = layout.row_count();
            let noise = inputs(&Device::cpu(1), 0..t, dims);
            let [q, k, v, do_] =
                noise.map(|x| x.as_slice().iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; t * heads]);
            reference::forward(&mut o, &mut lse, [&q, &k, &v], &layout, dims, 0.5);
            let mut want = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
            let to = want.each_mut().map(|x| x.as_mut_slice());
            reference::backward(to, &do_, [&q, &k, &v], &o, &lse, &layout, dims, 0.5);
            let mut first: Option<[Tensor; 3]> = None;
            for device in devices() {
                let got = run(&inputs(&device, 0..t, dims), &layout, dims, 0.5);
                let first = first.get_or_insert_with(|| got.clone());
                for (i, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                    assert_close(name, got[i].as_slice(), &want[i], F32);
                    assert_same_bits(name, got[i].as_slice(), first[i].as_slice());
                }
            }
        }
    }

    #[test]
    fn gradients_do_not_depend_on_packing() {
        let dims = Dims { heads: 4, kv_heads: 2, head_dim: 16 };
        let device = Device::cpu(2);
        let packed =
            run(&inputs(&device, 0..61, dims), &Layout::sequences([7, 40, 14]), dims, 0.25);
        for rows in [0..7, 7..47, 47..61] {
            let layout = Layout::sequences([rows.len()]);
            let alone = run(&inputs(&device, rows.clone(), dims), &layout, dims, 0.25);
            for (alone, packed) in alone.iter().zip(&packed) {
                let part = packed.rows_range(rows.clone());
                assert_same_bits("gradient", alone.as_slice(), part.as_slice());
            }
        }
    }

    /// Goal: a shared row's gradient is the sum over the sequences that it is in, and the others' are those
    /// of a row of its own. Method: each sequence has its rows to itself, and only the queries of its last
    /// segment pass a gradient on; its gradients are added in f64.
    #[test]
    fn shared_rows_have_the_sums_of_rows_of_their_own() {
        let dims = Dims { heads: 6, kv_heads: 2, head_dim: 16 };
        for (layout, device) in [(mixed_layout(), Device::cpu(2)), (tree(37), Device::cpu(1))] {
            let shared = inputs(&device, 0..layout.row_count(), dims);
            let mut sums = [0, 1, 2].map(|i| vec![0.0; shared[i].len()]);
            for (i, segment) in layout.segments().iter().enumerate() {
                let rows = sequence(&layout, i);
                let mut own = shared.each_ref().map(|x| take_rows(x, &rows));
                own[3].rows_mut(0..segment.position).fill(0.0);
                let gradients = run(&own, &Layout::sequences([rows.len()]), dims, 0.5);
                for (sums, gradient) in sums.iter_mut().zip(gradients) {
                    let cols = gradient.cols();
                    for (&row, x) in rows.iter().zip(gradient.as_slice().chunks_exact(cols)) {
                        let sums = &mut sums[row * cols..(row + 1) * cols];
                        sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x));
                    }
                }
            }
            for (gradient, want) in run(&shared, &layout, dims, 0.5).iter().zip(sums) {
                assert_close("gradient", gradient.as_slice(), &want, F32);
            }
        }
    }

    /// Goal: a group in parts has the gradients of a whole one, bit for bit. Method: each completion in a batch of
    /// its own, and two of them in one, with a group before and one behind; the prompt's rows count in the last.
    #[test]
    fn a_group_in_parts_has_the_gradients_of_a_whole_one() {
        let dims = Dims { heads: 6, kv_heads: 2, head_dim: 16 };
        let (completions, prompt) = ([9, 0, 30, 16], 37);
        for device in devices() {
            let own = completions.map(|len| (len, Some(4)));
            let whole_layout = Layout::new(own.into_iter().chain([(prompt, None)]));
            let shared = inputs(&device, 0..whole_layout.row_count(), dims);
            let whole = run(&shared, &whole_layout, dims, 0.5);
            for cuts in [&[0, 1, 2, 3, 4][..], &[0, 3, 4], &[0, 2, 4]] {
                let mut begun = None;
                for (i, cut) in cuts.windows(2).enumerate() {
                    let of = cut[0]..cut[1];
                    let prompt_idx = of.len() + 1;
                    let before = std::iter::once((3, None));
                    let own = of.clone().map(|i| (completions[i], Some(prompt_idx)));
                    let split = Split {
                        begun: (i > 0).then_some(prompt_idx),
                        open: (of.end < 4).then_some(prompt_idx),
                    };
                    let layout =
                        Layout::with_split(before.chain(own).chain([(prompt, None)]), split);
                    let mut rows: Vec<usize> = vec![0; 3];
                    for Segment { row, row_count, .. } in
                        of.clone().chain([4]).map(|i| whole_layout.segments()[i])
                    {
                        rows.extend(row..row + row_count);
                    }
                    let part = shared.each_ref().map(|x| take_rows(x, &rows));
                    let (got, handed_on) = run_part(&part, &layout, dims, begun);
                    begun = handed_on;
                    let complete =
                        if split.open.is_some() { 3..rows.len() - prompt } else { 3..rows.len() };
                    for (got, whole) in got.iter().zip(&whole) {
                        let want = take_rows(whole, &rows[complete.clone()]);
                        let got_rows = got.rows_range(complete.clone());
                        assert_same_bits("gradient", got_rows.as_slice(), want.as_slice());
                        let zeros = got.rows_range(complete.end..rows.len());
                        assert!(zeros.as_slice().iter().all(|&x| x == 0.0), "{cuts:?} {i}");
                    }
                }
                assert!(begun.is_none());
            }
        }
    }

    #[test]
    fn waves_hold_few_shares_and_every_segment_once() {
        let dims = Dims { heads: 8, kv_heads: 8, head_dim: 128 };
        let completions = std::iter::repeat_n((10, Some(9)), 9);
        let layout = Layout::new(completions.chain([(1000, None)]));
        let mut waves = Vec::new();
        while waves.last().is_none_or(|wave: &Range<usize>| wave.end < 10) {
            waves.push(wave(layout.segments(), waves.last().map_or(0, |w| w.end), dims));
        }
        assert_eq!(waves, [0..2, 2..4, 4..6, 6..8, 8..10]);
        let long = Layout::new([(1, Some(2)), (1, Some(2)), (50_000, None)]);
        assert_eq!(wave(long.segments(), 1, dims), 1..2);
    }

    #[test]
    fn no_rows_are_no_work() {
        let dims = Dims { heads: 2, kv_heads: 1, head_dim: 16 };
        let gradients =
            run(&inputs(&Device::cpu(2), 0..0, dims), &Layout::sequences([0]), dims, 1.0);
        assert!(gradients.iter().all(Tensor::is_empty));
    }

    #[test]
    #[should_panic(expected = "`dv` has 32 floats: expected 3 rows of 16")]
    fn a_wrong_length_names_the_buffer() {
        let dims = Dims { heads: 1, kv_heads: 1, head_dim: 16 };
        let x = Tensor::zeros(&Device::cpu(1), &[3, 16]);
        let lse = Tensor::zeros(x.device(), &[3, 1]);
        let (mut dq, mut dk, mut dv) = (x.clone(), x.clone(), x.rows_range(0..2));
        let gradients = [&mut dq, &mut dk, &mut dv];
        backward(gradients, &x, [&x, &x, &x], &x, &lse, &Layout::sequences([3]), dims, 1.0, None);
    }
}
