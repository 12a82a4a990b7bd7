//! Attention over keys and values in pages: what a sampler runs.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::kernel::{self, Keys, Members};
use super::seqs::{PagedSeqs, Task};
use super::tiles::with_scratch;
use super::{Dims, PAGE_LEN, check_len, cuda};
use crate::tensor::{Shards, Values, kind_of};
use crate::{Device, Dtype, Tensor};

/// Keys and values of all layers, in pages of 16 positions, stored as the device's
/// [`kv_dtype`](Device::kv_dtype).
///
/// Which page holds what is the caller's business. A page begins with whatever was there.
#[derive(Debug)]
pub struct KvCache {
    dims: Dims,
    page_count: usize,
    layers: Vec<Layer>,
    /// All layers, on a CUDA device.
    on_gpu: Option<cuda::KvCache>,
}

/// Pages of keys `(pages, KV, D, 16)` and of values `(pages, KV, 16, D)`.
#[derive(Debug)]
struct Layer {
    k: Tensor,
    v: Tensor,
}

impl KvCache {
    /// A cache of `page_count` pages. Memory is claimed from the system as pages are first written.
    pub fn new(device: &Device, layer_count: usize, page_count: usize, dims: Dims) -> KvCache {
        dims.check();
        if let Some(gpu) = device.gpu() {
            let kind = kind_of(device.kv_dtype());
            let on_gpu = gpu.ask(|cx| cuda::KvCache::new(cx, kind, layer_count, page_count, dims));
            return KvCache { dims, page_count, layers: Vec::new(), on_gpu };
        }
        let shape = [page_count, dims.page_len()];
        let pages = || Tensor::uninit_as(device, device.kv_dtype(), &shape);
        let layers = (0..layer_count).map(|_| Layer { k: pages(), v: pages() }).collect();
        KvCache { dims, page_count, layers, on_gpu: None }
    }

    /// Bytes of one page in all layers.
    pub fn bytes_per_page(dtype: Dtype, layer_count: usize, dims: Dims) -> usize {
        layer_count * 2 * dims.page_len() * dtype.bytes()
    }

    /// Pages.
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    /// It, on a CUDA device.
    pub(crate) fn on_gpu_mut(&mut self) -> Result<&mut cuda::KvCache, crate::cuda::Error> {
        self.on_gpu.as_mut().ok_or_else(cuda::no_cache)
    }

    /// Where it is on a CUDA device.
    pub fn address(&self) -> u64 {
        self.on_gpu.as_ref().map_or(0, cuda::KvCache::address)
    }

    /// Copies all layers of a page.
    pub fn copy_page(&mut self, device: &Device, from: u32, to: u32) {
        if let (Some(gpu), Some(cache)) = (device.gpu(), &mut self.on_gpu) {
            return gpu.run(|cx| cache.copy_pages(cx, &[[from, to]]));
        }
        let len = self.dims.page_len();
        let (from, to) = (from as usize * len, to as usize * len);
        for pages in self.layers.iter_mut().flat_map(|layer| [&mut layer.k, &mut layer.v]) {
            match pages.dtype() {
                Dtype::F32 => pages.as_mut_slice().copy_within(from..from + len, to),
                Dtype::Bf16 => pages.as_mut_bf16().copy_within(from..from + len, to),
            }
        }
    }

    /// Stores `k` and `v` `(R, KV·D)` of new tokens, of the cache's dtype, at their positions.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor, seqs: &mut PagedSeqs) {
        let device = k.device();
        if let Some(gpu) = device.gpu() {
            return gpu.run(|cx| {
                let cache = self.on_gpu_mut()?;
                let paged = seqs.on_gpu(cx, cache)?;
                cache.append(cx, layer, [k, v].map(Tensor::view), paged)
            });
        }
        seqs.plan(device, self.dims, self.page_count);
        check_len("k", k.len(), seqs.row_count(), self.dims.kv_cols());
        check_len("v", v.len(), seqs.row_count(), self.dims.kv_cols());
        let (pages, dims) = (&mut self.layers[layer], self.dims);
        match (k.values(), v.values()) {
            (Values::F32(k), Values::F32(v)) => {
                let to = [pages.k.as_mut_slice(), pages.v.as_mut_slice()].map(Shards::new);
                append_rows(device, to, [k, v], seqs, dims);
            }
            (Values::Bf16(k), Values::Bf16(v)) => {
                let to = [pages.k.as_mut_bf16(), pages.v.as_mut_bf16()].map(Shards::new);
                append_rows(device, to, [k, v], seqs, dims);
            }
            _ => panic!("keys and values are of one kind"),
        }
    }
}

fn append_rows<T: Copy + Send + Sync>(
    device: &Device,
    [k_pages, v_pages]: [Shards<'_, T>; 2],
    [k, v]: [&[T]; 2],
    seqs: &PagedSeqs,
    dims: Dims,
) {
    let (d, cols) = (dims.head_dim, dims.kv_cols());
    // Heads are split, and not sequences: so threads stay apart whatever the page tables say.
    device.run(dims.kv_heads, |kv_head| {
        for seq in seqs.seqs() {
            let pages = seqs.pages(seq);
            for i in 0..seq.row_count {
                let (page, lane) = ((seq.position + i) / PAGE_LEN, (seq.position + i) % PAGE_LEN);
                let at = pages[page] as usize * dims.page_len() + kv_head * dims.page_head_len();
                let from = (seq.row_start + i) * cols + kv_head * d;
                // SAFETY: this call alone has this head of every page.
                unsafe {
                    let k_page = k_pages.slice(at, at + dims.page_head_len());
                    for (column, &x) in k_page.chunks_exact_mut(PAGE_LEN).zip(&k[from..]) {
                        column[lane] = x;
                    }
                    let to = v_pages.slice(at + lane * d, at + (lane + 1) * d);
                    to.copy_from_slice(&v[from..from + d]);
                }
            }
        }
    });
}

/// Attention of new tokens, whose keys and values the cache has already, over all positions up to each:
/// `o` `(R, H·D)` from `q` `(R, H·D)`.
pub fn attend(
    o: &mut Tensor,
    q: &Tensor,
    cache: &KvCache,
    layer: usize,
    seqs: &mut PagedSeqs,
    dims: Dims,
    scale: f32,
) {
    assert_eq!(dims, cache.dims, "heads of the call and of the cache");
    let device = q.device();
    if let Some(gpu) = device.gpu() {
        return gpu.run(|cx| {
            let cache = cache.on_gpu.as_ref().ok_or_else(cuda::no_cache)?;
            let paged = seqs.on_gpu(cx, cache)?;
            cuda::attend(cx, &mut o.view_mut(), q.view(), cache, layer, paged, scale)
        });
    }
    seqs.plan(device, dims, cache.page_count);
    check_len("q", q.len(), seqs.row_count(), dims.q_cols());
    check_len("o", o.len(), seqs.row_count(), dims.q_cols());
    let call = Attend { layer: &cache.layers[layer], q, seqs, dims, scale };
    let tasks = seqs.tasks();
    let scratch_len = tasks.iter().map(|task| call.scratch_len(task)).max().unwrap_or(0);
    let o = Shards::new(o.as_mut_slice());
    let next = AtomicUsize::new(0);
    // A thread takes task after task, and so needs one piece of memory for all of them.
    device.run(device.threads().min(tasks.len()), |_| {
        with_scratch(device, scratch_len.next_power_of_two(), |scratch| {
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                call.run(task, &o, scratch);
            }
        });
    });
}

/// Pages from an element of the first one on.
fn of_pages(pages: &Tensor, start: usize) -> Values<'_> {
    pages.values().slice(start..pages.len())
}

/// A call of [`attend`].
struct Attend<'a> {
    layer: &'a Layer,
    q: &'a Tensor,
    seqs: &'a PagedSeqs,
    dims: Dims,
    scale: f32,
}

impl Attend<'_> {
    fn scratch_len(&self, task: &Task) -> usize {
        let rows_len = self.row_count(task) * self.dims.head_dim;
        self.with_members(task, |members| 2 * rows_len + members.scratch_len(self.dims.head_dim))
    }

    /// Rows of a task: queries times heads of the group.
    fn row_count(&self, task: &Task) -> usize {
        task.member_count() * task.query_count * self.dims.group()
    }

    fn with_members<T>(&self, task: &Task, f: impl FnOnce(&Members<'_>) -> T) -> T {
        let (dims, head_at) = (self.dims, task.kv_head * self.dims.page_head_len());
        let from_head = |pages| of_pages(pages, head_at);
        let member = |i| self.seqs.member(task, i, dims, self.scale);
        let part = |i| {
            let member = member(i);
            let keys = Keys {
                k: from_head(&self.layer.k),
                v: from_head(&self.layer.v),
                ids: member.pages,
                page_stride: dims.page_len(),
            };
            (member.tile, keys)
        };
        let count = task.member_count();
        let page_counts = (0..count).map(|i| member(i).tile.page_count());
        f(&Members {
            count,
            shared_page_count: task.shared_page_count,
            row_count: self.row_count(task),
            page_count_max: page_counts.max().unwrap_or(0),
            part: &part,
        })
    }

    fn run(&self, task: &Task, o: &Shards<'_>, scratch: &mut [f32]) {
        let (dims, q) = (self.dims, self.q.as_slice());
        let (d, row_count) = (dims.head_dim, self.row_count(task));
        let (rows, rest) = scratch.split_at_mut(row_count * d);
        let (out, rest) = rest.split_at_mut(row_count * d);
        // The group's heads of a query are neighbours.
        let chunk = dims.group() * d;
        let at = |i: usize| {
            let (member, query) = (i / task.query_count, i % task.query_count);
            let row = self.seqs.member(task, member, dims, self.scale).row + query;
            row * dims.q_cols() + task.kv_head * chunk
        };
        for (i, rows) in rows.chunks_exact_mut(chunk).enumerate() {
            rows.copy_from_slice(&q[at(i)..][..chunk]);
        }
        self.with_members(task, |members| {
            kernel::forward_members(self.q.device().isa(), out, rows, members, rest);
        });
        for (i, out) in out.chunks_exact(chunk).enumerate() {
            // SAFETY: a query's head belongs to one task only.
            unsafe { o.slice(at(i), at(i) + chunk) }.copy_from_slice(out);
        }
    }
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

    fn rows_of(cases: &[&Case], seqs: &PagedSeqs, of: impl Fn(&Case) -> &Tensor) -> Tensor {
        let device = of(cases[0]).device();
        let cols = of(cases[0]).cols();
        let mut rows = Vec::new();
        for (case, seq) in cases.iter().zip(seqs.seqs()) {
            rows.extend_from_slice(
                &of(case).as_slice()[seq.position * cols..(seq.position + seq.row_count) * cols],
            );
        }
        Tensor::from_slice(device, &[rows.len() / cols, cols], &rows)
    }

    /// Appends and attends, and compares with the packed path.
    #[track_caller]
    fn step(cache: &mut KvCache, cases: &[&Case], seqs: &[Seq]) {
        let seqs = &mut paged(seqs);
        let (k, v) = (rows_of(cases, seqs, |c| &c.k), rows_of(cases, seqs, |c| &c.v));
        cache.append(1, &k, &v, seqs);
        let q = rows_of(cases, seqs, |c| &c.q);
        let mut o = Tensor::uninit(q.device(), q.shape());
        attend(&mut o, &q, cache, 1, seqs, DIMS, SCALE);
        assert_same_bits("o", o.as_slice(), rows_of(cases, seqs, |c| &c.o).as_slice());
    }

    /// Position and number of new tokens, and pages.
    type Seq<'a> = (usize, usize, &'a [u32]);

    fn paged(seqs: &[Seq]) -> PagedSeqs {
        let mut paged = PagedSeqs::default();
        seqs.iter().for_each(|&(position, count, pages)| paged.push(count, position, pages));
        paged
    }

    #[test]
    fn prefill_in_any_chunks_yields_the_bits_of_the_packed_path() {
        for device in devices() {
            let a = case(&device, 1, 50);
            for chunks in [vec![50], vec![1, 49], vec![16, 16, 18], vec![7, 20, 2, 21]] {
                let mut cache = cache(&device, 5);
                let mut position = 0;
                for count in chunks {
                    step(&mut cache, &[&a], &[(position, count, &[4, 0, 3, 1][..])]);
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
            step(&mut cache, &[&a], &[(0, 5, &pages_a[..])]);
            // One decodes alone, then beside the other's prefill, then both decode.
            for position in 5..10 {
                step(&mut cache, &[&a], &[(position, 1, &pages_a[..])]);
            }
            step(&mut cache, &[&a, &b], &[(10, 1, &pages_a[..]), (0, 20, &pages_b[..])]);
            for i in 0..17 {
                let seqs = [(11 + i, 1, &pages_a[..]), (20 + i, 1, &pages_b[..])];
                step(&mut cache, &[&a, &b], &seqs);
            }
        }
    }

    /// The case `of`, but for what comes after its first `shared_len` positions.
    fn branch(of: &Case, seed: u64, shared_len: usize) -> Case {
        let (device, len) = (of.q.device(), of.q.rows());
        let own = case(device, seed, len);
        let join = |a: &Tensor, b: &Tensor| {
            let at = shared_len * a.cols();
            let values = [&a.as_slice()[..at], &b.as_slice()[at..]].concat();
            Tensor::from_slice(device, a.shape(), &values)
        };
        let [q, k, v] =
            [(&of.q, &own.q), (&of.k, &own.k), (&of.v, &own.v)].map(|(a, b)| join(a, b));
        let (mut o, mut lse) =
            (Tensor::uninit(device, q.shape()), Tensor::uninit(device, &[len, DIMS.heads]));
        forward(&mut o, &mut lse, &q, &k, &v, &Layout::sequences([len]), DIMS, SCALE);
        Case { q, k, v, o }
    }

    /// Goal: sequences that are computed together have the bits of each alone. Method: branches of one prompt of
    /// three pages, another prompt's among them and a prefill beside them, decoded from different positions on.
    #[test]
    fn sequences_that_share_pages_have_the_bits_of_the_packed_path() {
        const BRANCHES: usize = 21;
        let prompt = [7, 3, 11];
        for device in devices() {
            let trunk = case(&device, 1, 80);
            let branches: Vec<Case> =
                (0..BRANCHES).map(|i| branch(&trunk, 10 + i as u64, 48)).collect();
            let other = case(&device, 2, 70);
            let mut cache = cache(&device, 100);
            step(&mut cache, &[&trunk], &[(0, 48, &prompt)]);
            step(&mut cache, &[&other], &[(0, 48, &[20, 21, 22])]);
            let pages: Vec<Vec<u32>> = (0..BRANCHES as u32)
                .map(|i| [&prompt[..], &[30 + 2 * i, 31 + 2 * i]].concat())
                .collect();
            for round in 0..20 {
                let mut cases = vec![&other];
                let mut seqs: Vec<Seq> = vec![(48 + round, 1, &[20, 21, 22, 23, 24])];
                for (i, (branch, pages)) in branches.iter().zip(&pages).enumerate() {
                    // Each starts a round after the one before it.
                    if let Some(at) = round.checked_sub(i % 5) {
                        cases.push(branch);
                        seqs.push((48 + at, 1, pages));
                    }
                }
                if round < 4 {
                    cases.push(&trunk);
                    seqs.push((12 * round, 12, &[80, 81, 82]));
                }
                step(&mut cache, &cases, &seqs);
            }
        }
    }

    #[test]
    fn a_copied_page_serves_another_sequence() {
        let device = Device::cpu(1);
        let a = case(&device, 1, 30);
        let mut cache = cache(&device, 4);
        step(&mut cache, &[&a], &[(0, 20, &[0, 1][..])]);
        cache.copy_page(&device, 1, 3);
        step(&mut cache, &[&a, &a], &[(20, 10, &[0, 1][..]), (20, 10, &[0, 3][..])]);
    }

    #[test]
    fn no_rows_are_no_work() {
        let device = Device::cpu(2);
        let mut cache = cache(&device, 1);
        let mut o = Tensor::zeros(&device, &[0, DIMS.q_cols()]);
        let (q, kv) = (o.clone(), Tensor::zeros(&device, &[0, DIMS.kv_cols()]));
        cache.append(0, &kv, &kv, &mut paged(&[]));
        attend(&mut o, &q, &cache, 0, &mut paged(&[]), DIMS, SCALE);
    }

    #[test]
    fn a_page_holds_keys_and_values_of_sixteen_positions_and_all_layers() {
        assert_eq!(KvCache::bytes_per_page(Dtype::F32, 3, DIMS), 3 * 2 * 16 * 2 * 16 * 4);
    }

    #[test]
    #[should_panic(expected = "sequence 0 has 1 pages: too few for 17 positions")]
    fn a_missing_page_is_a_bug() {
        let device = Device::cpu(1);
        let kv = Tensor::zeros(&device, &[1, DIMS.kv_cols()]);
        cache(&device, 1).append(0, &kv, &kv, &mut paged(&[(16, 1, &[0][..])]));
    }

    #[test]
    #[should_panic(expected = "`v` has 64 floats: expected 1 rows of 32")]
    fn a_wrong_length_names_the_buffer() {
        let device = Device::cpu(1);
        let (k, v) = ([1, 2].map(|rows| Tensor::zeros(&device, &[rows, DIMS.kv_cols()]))).into();
        cache(&device, 1).append(0, &k, &v, &mut paged(&[(0, 1, &[0][..])]));
    }
}
