//! Attention over keys and values in pages: what a sampler runs.

use super::kernel::Keys;
use super::tiles::{self, Span};
use super::{Dims, PAGE_LEN, check_len};
use crate::tensor::Shards;
use crate::{Device, Tensor};

/// Keys and values of all layers, in pages of 16 positions.
///
/// Which page holds what is the caller's business. A page begins with whatever was there.
#[derive(Debug)]
pub struct KvCache {
    dims: Dims,
    page_count: usize,
    layers: Vec<Layer>,
}

/// Pages of keys `(pages, KV, D, 16)` and of values `(pages, KV, 16, D)`.
#[derive(Debug)]
struct Layer {
    k: Tensor,
    v: Tensor,
}

/// New tokens of a sequence, and the pages of its past and of themselves.
#[derive(Clone, Debug)]
pub struct PagedSeq {
    /// Its first row in the batch.
    pub row_start: usize,
    /// Its rows: one when decoding, more when prefilling.
    pub row_count: usize,
    /// Position of its first row.
    pub position: usize,
    /// Pages from position 0 on. Those that take new positions belong to this sequence alone.
    pub pages: Vec<u32>,
}

impl KvCache {
    /// A cache of `page_count` pages. Memory is claimed from the system as pages are first written.
    pub fn new(device: &Device, layer_count: usize, page_count: usize, dims: Dims) -> KvCache {
        dims.check();
        let pages = || Tensor::uninit(device, &[page_count, dims.page_len()]);
        let layers = (0..layer_count).map(|_| Layer { k: pages(), v: pages() }).collect();
        KvCache { dims, page_count, layers }
    }

    /// Bytes of one page in all layers.
    pub fn bytes_per_page(layer_count: usize, dims: Dims) -> usize {
        layer_count * 2 * dims.page_len() * size_of::<f32>()
    }

    /// Pages.
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    /// Copies all layers of a page.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let len = self.dims.page_len();
        let (from, to) = (from as usize * len, to as usize * len);
        for layer in &mut self.layers {
            layer.k.as_mut_slice().copy_within(from..from + len, to);
            layer.v.as_mut_slice().copy_within(from..from + len, to);
        }
    }

    /// Stores `k` and `v` `(R, KV·D)` of new tokens at their positions.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor, seqs: &[PagedSeq]) {
        let dims = self.dims;
        let (d, cols) = (dims.head_dim, dims.kv_cols());
        let rows = check_seqs(seqs, self.page_count);
        check_len("k", k.len(), rows, cols);
        check_len("v", v.len(), rows, cols);
        let Layer { k: k_pages, v: v_pages } = &mut self.layers[layer];
        let device = k.device();
        let (k_pages, v_pages) =
            (Shards::new(k_pages.as_mut_slice()), Shards::new(v_pages.as_mut_slice()));
        // Heads are split, and not sequences: so threads stay apart whatever the page tables say.
        device.run(dims.kv_heads, |kv_head| {
            for seq in seqs {
                for i in 0..seq.row_count {
                    let (page, lane) =
                        ((seq.position + i) / PAGE_LEN, (seq.position + i) % PAGE_LEN);
                    let at =
                        seq.pages[page] as usize * dims.page_len() + kv_head * dims.page_head_len();
                    let from = (seq.row_start + i) * cols + kv_head * d;
                    // SAFETY: this call alone has this head of every page.
                    unsafe {
                        let k_page = k_pages.slice(at, at + dims.page_head_len());
                        for (column, &x) in
                            k_page.chunks_exact_mut(PAGE_LEN).zip(&k.as_slice()[from..])
                        {
                            column[lane] = x;
                        }
                        v_pages
                            .slice(at + lane * d, at + (lane + 1) * d)
                            .copy_from_slice(&v.as_slice()[from..from + d]);
                    }
                }
            }
        });
    }
}

/// Attention of new tokens, whose keys and values the cache has already, over all positions up to each:
/// `o` `(R, H·D)` from `q` `(R, H·D)`.
pub fn attend(
    o: &mut Tensor,
    q: &Tensor,
    cache: &KvCache,
    layer: usize,
    seqs: &[PagedSeq],
    dims: Dims,
    scale: f32,
) {
    assert_eq!(dims, cache.dims, "heads of the call and of the cache");
    let rows = check_seqs(seqs, cache.page_count);
    check_len("q", q.len(), rows, dims.q_cols());
    check_len("o", o.len(), rows, dims.q_cols());
    let Layer { k, v } = &cache.layers[layer];
    let keys = |task: &tiles::Task| {
        let head_at = task.kv_head * dims.page_head_len();
        Keys {
            k: &k.as_slice()[head_at..],
            v: &v.as_slice()[head_at..],
            ids: &seqs[task.seq].pages,
            k_page_stride: dims.page_len(),
            v_page_stride: dims.page_len(),
            v_row_stride: dims.head_dim,
        }
    };
    let spans = seqs.iter().enumerate().map(|(seq, s)| Span {
        seq,
        row: s.row_start,
        row_count: s.row_count,
        position: s.position,
    });
    let tasks = tiles::all_tiles(spans, dims, scale);
    tiles::forward(o, None, q, keys, &tasks, dims);
}

/// Asserts that sequences follow one another and have the pages they need; returns their rows.
fn check_seqs(seqs: &[PagedSeq], page_count: usize) -> usize {
    let mut rows = 0;
    for (i, seq) in seqs.iter().enumerate() {
        assert_eq!(seq.row_start, rows, "sequence {i} must begin where the one before it ends");
        let end = seq.position + seq.row_count;
        assert!(
            end <= seq.pages.len() * PAGE_LEN,
            "sequence {i} has {} pages: too few for {end} positions",
            seq.pages.len()
        );
        for &page in &seq.pages {
            assert!(
                (page as usize) < page_count,
                "sequence {i} names page {page}: the cache has {page_count}"
            );
        }
        rows += seq.row_count;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::{Layout, forward};
    use super::*;
    use crate::ops::check::{assert_same_bits, devices, noise_tensor};

    const DIMS: Dims = Dims { heads: 6, kv_heads: 2, head_dim: 16 };
    const SCALE: f32 = 0.25;

    /// `q`, `k`, `v` of one sequence, and what the packed path makes of it.
    struct Case {
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
    }

    fn case(device: &Device, seed: u64, len: usize) -> Case {
        let rows = |i, cols| noise_tensor(device, 3 * seed + i, &[len, cols]);
        let (q, k, v) = (rows(0, DIMS.q_cols()), rows(1, DIMS.kv_cols()), rows(2, DIMS.kv_cols()));
        let mut o = Tensor::uninit(device, q.shape());
        let mut lse = Tensor::uninit(device, &[len, DIMS.heads]);
        forward(&mut o, &mut lse, &q, &k, &v, &Layout::sequences([len]), DIMS, SCALE);
        Case { q, k, v, o }
    }

    /// A cache full of NaN.
    fn cache(device: &Device, page_count: usize) -> KvCache {
        let mut cache = KvCache::new(device, 2, page_count, DIMS);
        for layer in &mut cache.layers {
            layer.k.fill(f32::NAN);
            layer.v.fill(f32::NAN);
        }
        cache
    }

    fn rows_of(cases: &[&Case], seqs: &[PagedSeq], of: impl Fn(&Case) -> &Tensor) -> Tensor {
        let device = of(cases[0]).device();
        let cols = of(cases[0]).cols();
        let mut rows = Vec::new();
        for (case, seq) in cases.iter().zip(seqs) {
            rows.extend_from_slice(
                &of(case).as_slice()[seq.position * cols..(seq.position + seq.row_count) * cols],
            );
        }
        Tensor::from_slice(device, &[rows.len() / cols, cols], &rows)
    }

    /// Appends and attends, and compares with the packed path.
    #[track_caller]
    fn step(cache: &mut KvCache, cases: &[&Case], seqs: &[PagedSeq]) {
        let (k, v) = (rows_of(cases, seqs, |c| &c.k), rows_of(cases, seqs, |c| &c.v));
        cache.append(1, &k, &v, seqs);
        let q = rows_of(cases, seqs, |c| &c.q);
        let mut o = Tensor::uninit(q.device(), q.shape());
        attend(&mut o, &q, cache, 1, seqs, DIMS, SCALE);
        assert_same_bits("o", o.as_slice(), rows_of(cases, seqs, |c| &c.o).as_slice());
    }

    fn seq(row_start: usize, position: usize, row_count: usize, pages: &[u32]) -> PagedSeq {
        PagedSeq { row_start, row_count, position, pages: pages.to_vec() }
    }

    #[test]
    fn prefill_in_any_chunks_yields_the_bits_of_the_packed_path() {
        for device in devices() {
            let a = case(&device, 1, 50);
            for chunks in [vec![50], vec![1, 49], vec![16, 16, 18], vec![7, 20, 2, 21]] {
                let mut cache = cache(&device, 5);
                let mut position = 0;
                for count in chunks {
                    step(&mut cache, &[&a], &[seq(0, position, count, &[4, 0, 3, 1])]);
                    position += count;
                }
            }
        }
    }

    #[test]
    fn decoding_together_yields_the_bits_of_the_packed_path() {
        for device in devices() {
            let (a, b) = (case(&device, 1, 40), case(&device, 2, 37));
            let mut cache = cache(&device, 7);
            let (pages_a, pages_b) = ([6, 1, 4], [0, 5, 2]);
            step(&mut cache, &[&a], &[seq(0, 0, 5, &pages_a)]);
            // One decodes alone, then beside the other's prefill, then both decode.
            for position in 5..10 {
                step(&mut cache, &[&a], &[seq(0, position, 1, &pages_a)]);
            }
            step(&mut cache, &[&a, &b], &[seq(0, 10, 1, &pages_a), seq(1, 0, 20, &pages_b)]);
            for i in 0..17 {
                let seqs = [seq(0, 11 + i, 1, &pages_a), seq(1, 20 + i, 1, &pages_b)];
                step(&mut cache, &[&a, &b], &seqs);
            }
        }
    }

    #[test]
    fn a_copied_page_serves_another_sequence() {
        let device = Device::cpu(1);
        let a = case(&device, 1, 30);
        let mut cache = cache(&device, 4);
        step(&mut cache, &[&a], &[seq(0, 0, 20, &[0, 1])]);
        cache.copy_page(1, 3);
        step(&mut cache, &[&a, &a], &[seq(0, 20, 10, &[0, 1]), seq(10, 20, 10, &[0, 3])]);
    }

    #[test]
    fn no_rows_are_no_work() {
        let device = Device::cpu(2);
        let mut cache = cache(&device, 1);
        let mut o = Tensor::zeros(&device, &[0, DIMS.q_cols()]);
        let (q, kv) = (o.clone(), Tensor::zeros(&device, &[0, DIMS.kv_cols()]));
        cache.append(0, &kv, &kv, &[]);
        attend(&mut o, &q, &cache, 0, &[], DIMS, SCALE);
    }

    #[test]
    fn a_page_holds_keys_and_values_of_sixteen_positions_and_all_layers() {
        assert_eq!(KvCache::bytes_per_page(3, DIMS), 3 * 2 * 16 * 2 * 16 * 4);
    }

    #[test]
    #[should_panic(expected = "sequence 0 has 1 pages: too few for 17 positions")]
    fn a_missing_page_is_a_bug() {
        let device = Device::cpu(1);
        let kv = Tensor::zeros(&device, &[1, DIMS.kv_cols()]);
        cache(&device, 1).append(0, &kv, &kv, &[seq(0, 16, 1, &[0])]);
    }

    #[test]
    #[should_panic(expected = "`v` has 64 floats: expected 1 rows of 32")]
    fn a_wrong_length_names_the_buffer() {
        let device = Device::cpu(1);
        let (k, v) = ([1, 2].map(|rows| Tensor::zeros(&device, &[rows, DIMS.kv_cols()]))).into();
        cache(&device, 1).append(0, &k, &v, &[seq(0, 0, 1, &[0])]);
    }
}
