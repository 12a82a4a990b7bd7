//! The LM head on a device: a chunk's logits by a product, then kernels that reduce its rows.
//!
//! Statistics have the processor's order of sums, so a sampler that draws by them draws what it draws there, from the
//! same logits. Sampler and learner call the same functions, and nothing of a row depends on the rows beside it.

mod beside;

pub use beside::Other;

use beside::Pair;

use super::BLOCK_LEN;
use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::cuda::{EIGHT, assert_float, convert, scale};

pub(crate) static SOURCE: Source = Source { name: "lm_head.cu", text: include_str!("lm_head.cu") };

/// Logits that a block of threads has.
const PART_LEN: usize = 16 * BLOCK_LEN;
/// Lanes of sums, and sums of each.
const SUMS_OF_BLOCK: usize = 2 * 16;
/// Logits that exist at once: half a GiB.
const CHUNK_LEN: usize = 1 << 27;
/// Chunks have a multiple of so many rows, if they have so many: whole tiles of products.
const CHUNK_ROWS_UNIT: usize = 128;

/// What rows of logits are reduced to before any of their log-probs is known.
#[derive(Debug)]
pub struct Stats {
    /// The greatest logit, the logarithm of the sum of weights, the entropy: `(T, 3)`.
    rows: Buffer,
    /// Sums of the weights of each [`BLOCK_LEN`] logits, in f64, where they were asked for.
    block_sums: Option<Buffer>,
}

impl Stats {
    /// `(T, 3)`, f32: the greatest logit, the logarithm of the sum of weights, the entropy.
    pub fn rows(&self) -> View<'_> {
        self.rows.view()
    }

    /// `(T, ⌈V / BLOCK_LEN⌉)`, f64, where they were asked for.
    pub fn block_sums(&self) -> Option<View<'_>> {
        self.block_sums.as_ref().map(|sums| sums.view())
    }
}

/// Where the log-probs of targets and the entropies go.
#[derive(Debug)]
pub struct Targets<'a, 'b> {
    /// Token of each row, below V.
    pub ids: View<'a>,
    /// Log-probs of these, in nats.
    pub log_probs: ViewMut<'b>,
    /// Entropies of the distributions, in nats.
    pub entropies: ViewMut<'b>,
}

/// Statistics of rows of `cols` f32 logits times `inv_temperature`; log-probs where there are targets, sums of blocks
/// where somebody draws.
pub fn statistics(
    cx: &Context,
    logits: View<'_>,
    cols: usize,
    inv_temperature: f32,
    targets: Option<&mut Targets<'_, '_>>,
    draws: bool,
) -> Result<Stats, Error> {
    statistics_of(cx, logits, [cols, cols], inv_temperature, targets, draws)
}

/// [`statistics`] of the first `cols` logits of rows that are `stride` apart.
fn statistics_of(
    cx: &Context,
    logits: View<'_>,
    [cols, stride]: [usize; 2],
    inv_temperature: f32,
    targets: Option<&mut Targets<'_, '_>>,
    draws: bool,
) -> Result<Stats, Error> {
    let rows = rows_of("logits", logits, stride);
    assert!((1..=stride).contains(&cols), "{cols} logits of rows of {stride}");
    logits.assert_is(Kind::F32, logits.len());
    let (parts, blocks) = (cols.div_ceil(PART_LEN), cols.div_ceil(BLOCK_LEN));
    let maxima = cx.buffer(Kind::F32, rows * parts)?;
    let sums = cx.buffer(Kind::F32, rows * blocks * SUMS_OF_BLOCK)?;
    let stats = cx.buffer(Kind::F32, rows * 3)?;
    let block_sums = if draws { Some(cx.buffer(Kind::F64, rows * blocks)?) } else { None };
    let (size, scale) = ([cols, stride].map(Arg::size), Arg::F32(inv_temperature));
    let [size, stride] = size;
    let maxima_at = Arg::from(&maxima.view());
    let (sums_at, logits_at) = (Arg::from(&sums.view()), Arg::from(&logits));
    let block_sums_at = Arg::of(block_sums.as_ref().map(|sums| sums.view()));
    let mut results = [Arg::NULL; 3];
    if let Some(targets) = targets {
        targets.ids.assert_is(Kind::U32, rows);
        targets.log_probs.assert_is(Kind::F32, rows);
        targets.entropies.assert_is(Kind::F32, rows);
        results =
            [Arg::from(&targets.log_probs), Arg::from(&targets.entropies), Arg::from(&targets.ids)];
    }
    let [log_probs, entropies, ids] = results;
    // SAFETY: buffers are made above as long as the kernels write them; ids are the caller's promise.
    unsafe {
        cx.launch(
            &parts_plan("row_maxima", rows, cols),
            &[maxima_at, logits_at, size, stride, scale],
        )?;
        let args = [sums_at, block_sums_at, maxima_at, logits_at, size, stride, scale];
        cx.launch(&parts_plan("row_parts", rows, cols), &args)?;
        let at = Arg::from(&stats.view());
        let (parts, plan) = (Arg::size(parts), Plan::new(&SOURCE, "row_stats", rows, 32));
        let inputs = [sums_at, maxima_at, logits_at, ids, size, stride, parts, scale];
        cx.launch(&plan, &[&[at, log_probs, entropies][..], &inputs].concat())?;
    }
    Ok(Stats { rows: stats, block_sums })
}

/// Activations, the head that they are multiplied with, and what is asked of the distributions. Both are of one kind,
/// f32 or bf16.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Activations `(T, C)`.
    pub hidden: View<'a>,
    /// The weight `(V, C)`.
    pub w: View<'a>,
    /// Token of each row, below V.
    pub targets: View<'a>,
    /// What logits are multiplied by.
    pub inv_temperature: f32,
}

/// As the op's [`forward`](super::forward), or [`forward_beside`](super::forward_beside) where there is another model.
pub fn forward(
    cx: &Context,
    [log_probs, entropies]: [&mut ViewMut<'_>; 2],
    mut beside: Option<(&mut ViewMut<'_>, Other<'_>)>,
    asked: Asked<'_>,
) -> Result<(), Error> {
    let Asked { targets, inv_temperature, .. } = asked;
    let head = Head::new(asked.hidden, asked.w, targets.len());
    let mut other = beside.as_ref().map(|(_, other)| other.head(head.rows));
    for chunk in chunks(&head, other.as_ref()) {
        let logits = head.logits(cx, &chunk)?;
        let mut targets = Targets {
            ids: targets.slice(chunk.clone()),
            log_probs: log_probs.reborrow().slice(chunk.clone()),
            entropies: entropies.reborrow().slice(chunk.clone()),
        };
        statistics(cx, logits.view(), head.vocab, inv_temperature, Some(&mut targets), false)?;
        if let (Some((divergences, _)), Some(other)) = (&mut beside, &mut other) {
            let pair = Pair::new(cx, logits.view(), &head, other, &chunk, inv_temperature)?;
            pair.divergence(cx, &mut divergences.reborrow().slice(chunk), logits.view())?;
        }
    }
    Ok(())
}

/// As the op's [`logits`](super::logits).
pub fn logits(
    cx: &Context,
    out: &mut ViewMut<'_>,
    hidden: View<'_>,
    w: View<'_>,
    rows: usize,
    inv_temperature: f32,
) -> Result<(), Error> {
    let head = Head::new(hidden, w, rows);
    let shape = [rows, head.vocab, head.width];
    cx.product(out, shape, (hidden, false), (w, true), None, (1.0, 0.0))?;
    if inv_temperature == 1.0 { Ok(()) } else { scale(cx, out, inv_temperature) }
}

/// As the op's [`forward_backward`](super::forward_backward). The host knows a chunk's slopes when it knows its
/// log-probs, so it waits for each chunk.
pub fn forward_backward(
    cx: &Context,
    [mut log_probs, mut entropies, mut dhidden]: [ViewMut<'_>; 3],
    mut dw: Option<ViewMut<'_>>,
    slopes: super::Slopes<'_>,
    hidden: View<'_>,
    w: View<'_>,
    targets: &[u32],
    inv_temperature: f32,
) -> Result<(), Error> {
    let head = Head::new(hidden, w, targets.len());
    let ids = cx.upload(targets)?;
    for chunk in head.chunks() {
        let logits = head.logits(cx, &chunk)?;
        let ids = ids.view().slice(chunk.clone());
        let mut results = Targets {
            ids,
            log_probs: log_probs.reborrow().slice(chunk.clone()),
            entropies: entropies.reborrow().slice(chunk.clone()),
        };
        let stats =
            statistics(cx, logits.view(), head.vocab, inv_temperature, Some(&mut results), false)?;
        let [known_log_probs, known_entropies] =
            [results.log_probs.as_view(), results.entropies.as_view()]
                .map(|of| cx.download::<f32>(of));
        let known = known_log_probs?.into_iter().zip(known_entropies?);
        let (dlogp, dentropy): (Vec<f32>, Vec<f32>) = chunk
            .clone()
            .zip(known)
            .map(|(token, (log_prob, entropy))| slopes(token, log_prob, entropy).into())
            .unzip();
        let [dlogp, dentropy] = [cx.upload(&dlogp)?, cx.upload(&dentropy)?];
        let (dlogp, dentropy) = (dlogp.view(), Some(dentropy.view()));
        let grads = Grads { dlogp, dentropy, ddivergence: None };
        let dlogits = gradient(cx, logits, &stats, grads, ids, inv_temperature, hidden.kind())?;
        head.products(cx, &mut dhidden, dw.as_mut(), dlogits.view(), &chunk)?;
    }
    Ok(())
}

/// Gradients of what [`forward`] writes, f32.
#[derive(Clone, Copy, Debug)]
pub struct Grads<'a> {
    /// Of the log-probs.
    pub dlogp: View<'a>,
    /// Of the entropies; 0 where absent.
    pub dentropy: Option<View<'a>>,
    /// Of the divergences, and what they are from; 0 where absent.
    pub ddivergence: Option<(View<'a>, Other<'a>)>,
}

/// As the op's [`backward`](super::backward). `dhidden` is f32 or bf16, `dw` f32.
pub fn backward(
    cx: &Context,
    dhidden: &mut ViewMut<'_>,
    mut dw: Option<&mut ViewMut<'_>>,
    grads: Grads<'_>,
    asked: Asked<'_>,
) -> Result<(), Error> {
    let Asked { hidden, targets, inv_temperature, .. } = asked;
    let head = Head::new(hidden, asked.w, targets.len());
    let other = grads.ddivergence.map(|(slopes, other)| (slopes, other.head(head.rows)));
    for chunk in chunks(&head, other.as_ref().map(|(_, other)| other)) {
        let logits = head.logits(cx, &chunk)?;
        let stats = statistics(cx, logits.view(), head.vocab, inv_temperature, None, false)?;
        let of_divergence = match &other {
            Some((slopes, other)) => {
                let pair = Pair::new(cx, logits.view(), &head, other, &chunk, inv_temperature)?;
                Some(pair.gradient(cx, logits.view(), slopes.slice(chunk.clone()))?)
            }
            None => None,
        };
        let part = Grads {
            dlogp: grads.dlogp.slice(chunk.clone()),
            dentropy: grads.dentropy.map(|dentropy| dentropy.slice(chunk.clone())),
            ddivergence: None,
        };
        let ids = targets.slice(chunk.clone());
        let kind = if of_divergence.is_some() { Kind::F32 } else { hidden.kind() };
        let mut dlogits = gradient(cx, logits, &stats, part, ids, inv_temperature, kind)?;
        if let Some(of_divergence) = of_divergence {
            of_divergence.add_to(cx, &mut dlogits.view_mut())?;
            dlogits = rounded(cx, dlogits, hidden.kind())?;
        }
        head.products(cx, dhidden, dw.as_deref_mut(), dlogits.view(), &chunk)?;
    }
    Ok(())
}

/// Gradients of the logits of which log-probs and entropies were made; in their place, or as bf16 in a buffer of their
/// own.
pub fn gradient(
    cx: &Context,
    mut logits: Buffer,
    stats: &Stats,
    grads: Grads<'_>,
    targets: View<'_>,
    inv_temperature: f32,
    kind: Kind,
) -> Result<Buffer, Error> {
    let rows = targets.len();
    grads.dlogp.assert_is(Kind::F32, rows);
    if let Some(dentropy) = grads.dentropy {
        dentropy.assert_is(Kind::F32, rows);
    }
    targets.assert_is(Kind::U32, rows);
    stats.rows().assert_is(Kind::F32, rows * 3);
    let cols = logits.len().checked_div(rows).unwrap_or(0);
    let mut rounded = if kind == Kind::F32 { None } else { Some(cx.buffer(kind, logits.len())?) };
    let args = [
        Arg::from(&rounded.as_mut().unwrap_or(&mut logits).view_mut()),
        Arg::from(&logits.view()),
        Arg::from(&stats.rows()),
        Arg::from(&grads.dlogp),
        Arg::of(grads.dentropy),
        Arg::from(&targets),
        Arg::size(cols),
        Arg::F32(inv_temperature),
    ];
    // SAFETY: kinds are those of the kernel's name, lengths are checked above.
    unsafe { cx.launch(&gradient_plan(kind, rows, cols), &args)? };
    Ok(rounded.unwrap_or(logits))
}

/// A weight and the rows that it is multiplied with.
struct Head<'a> {
    hidden: View<'a>,
    w: View<'a>,
    rows: usize,
    width: usize,
    vocab: usize,
}

impl<'a> Head<'a> {
    fn new(hidden: View<'a>, w: View<'a>, rows: usize) -> Head<'a> {
        assert_float("hidden", hidden.kind());
        w.assert_is(hidden.kind(), w.len());
        let width = hidden.len().checked_div(rows).unwrap_or(1);
        assert!(rows * width == hidden.len() || rows == 0, "`hidden` has no {rows} rows");
        let vocab = rows_of("w", w, width);
        Head { hidden, w, rows, width, vocab }
    }

    /// The rows, chunk by chunk.
    fn chunks(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (rows, step) = (self.rows, chunk_rows(self.vocab));
        (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
    }

    fn hidden_of(&self, chunk: &std::ops::Range<usize>) -> View<'a> {
        self.hidden.slice(chunk.start * self.width..chunk.end * self.width)
    }

    fn logits(&self, cx: &Context, chunk: &std::ops::Range<usize>) -> Result<Buffer, Error> {
        let mut logits = cx.buffer(Kind::F32, chunk.len() * self.vocab)?;
        let shape = [chunk.len(), self.vocab, self.width];
        let (x, w) = ((self.hidden_of(chunk), false), (self.w, true));
        cx.product(&mut logits.view_mut(), shape, x, w, None, (1.0, 0.0))?;
        Ok(logits)
    }

    /// From the gradients of a chunk's logits to those of activations and weight.
    fn products(
        &self,
        cx: &Context,
        dhidden: &mut ViewMut<'_>,
        dw: Option<&mut ViewMut<'_>>,
        dlogits: View<'_>,
        chunk: &std::ops::Range<usize>,
    ) -> Result<(), Error> {
        let Head { w, width, vocab, .. } = *self;
        let part = chunk.start * width..chunk.end * width;
        let to = &mut dhidden.reborrow().slice(part);
        let shape = [chunk.len(), width, vocab];
        cx.product(to, shape, (dlogits, false), (w, false), None, (1.0, 0.0))?;
        let Some(dw) = dw else { return Ok(()) };
        let (shape, x) = ([vocab, width, chunk.len()], self.hidden_of(chunk));
        cx.product(dw, shape, (dlogits, true), (x, false), None, (1.0, 1.0))
    }
}

/// The rows, in chunks of the larger vocabulary.
fn chunks(
    head: &Head<'_>,
    other: Option<&Head<'_>>,
) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    other.filter(|other| other.vocab > head.vocab).unwrap_or(head).chunks()
}

fn rounded(cx: &Context, values: Buffer, kind: Kind) -> Result<Buffer, Error> {
    if kind == values.kind() {
        return Ok(values);
    }
    let mut rounded = cx.buffer(kind, values.len())?;
    convert(cx, &mut rounded.view_mut(), values.view())?;
    Ok(rounded)
}

/// Rows of a chunk: as many have their logits in memory at once.
pub fn chunk_rows(vocab: usize) -> usize {
    let rows = CHUNK_LEN / vocab.max(1);
    if rows < CHUNK_ROWS_UNIT { rows.max(1) } else { rows - rows % CHUNK_ROWS_UNIT }
}

#[track_caller]
fn rows_of(name: &str, view: View<'_>, cols: usize) -> usize {
    let fits = cols > 0 && view.len().is_multiple_of(cols);
    assert!(fits, "`{name}` has {} elements: expected rows of {cols}", view.len());
    view.len() / cols
}

/// A block of threads for each part of each row.
fn parts_plan(kernel: &'static str, rows: usize, cols: usize) -> Plan {
    let plan = Plan::new(&SOURCE, kernel, cols.div_ceil(PART_LEN), 256);
    Plan { grid: [plan.grid[0], rows.try_into().unwrap_or(u32::MAX), 1], ..plan }
}

fn gradient_plan(kind: Kind, rows: usize, cols: usize) -> Plan {
    assert_float("dlogits", kind);
    let is_whole = cols.is_multiple_of(EIGHT);
    let plan = parts_plan("", rows, cols);
    Plan { kernel: format!("logits_gradient_{kind}_{is_whole}").into(), ..plan }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{
        F32, MODELS, ROWS, Tol, assert_close, assert_fits, assert_same_bits, contexts, download,
        noise_f32, rounding, upload, upload_noise, wide,
    };
    use crate::ops::lm_head;
    use crate::ops::matmul::Packed;
    use crate::{Device, Dtype, Tensor};

    const INV_TEMPERATURE: f32 = 1.25;

    /// Logits of a spread that softmax feels.
    fn logits(rows: usize, cols: usize) -> Vec<f32> {
        noise_f32(1, rows * cols).into_iter().map(|x| 9.0 * x).collect()
    }

    #[test]
    fn statistics_have_the_processors_bits() {
        let isa = crate::simd::Isa::best();
        for (rows, cols) in [(1, 1), (3, 37), (2, 512), (5, 8192), (2, 20_011)] {
            let values = logits(rows, cols);
            let ids: Vec<u32> = (0..rows as u32).map(|row| row * 7919 % cols as u32).collect();
            for cx in contexts() {
                let x = cx.upload(&values).unwrap();
                let target_ids = cx.upload(&ids).unwrap();
                let mut results = [0; 2].map(|_| cx.buffer(Kind::F32, rows).unwrap());
                let [log_probs, entropies] = results.each_mut();
                let mut targets = Targets {
                    ids: target_ids.view(),
                    log_probs: log_probs.view_mut(),
                    entropies: entropies.view_mut(),
                };
                let stats =
                    statistics(&cx, x.view(), cols, INV_TEMPERATURE, Some(&mut targets), true)
                        .unwrap();
                let block_sums: Vec<f64> = cx.download(stats.block_sums().unwrap()).unwrap();
                let stats: Vec<f32> = cx.download(stats.rows()).unwrap();
                let results = results.map(|buffer| download(&cx, &buffer));
                let blocks = cols.div_ceil(BLOCK_LEN);
                for (row, values) in values.chunks(cols).enumerate() {
                    let scaled: Vec<f32> = values.iter().map(|x| x * INV_TEMPERATURE).collect();
                    let mut sums = vec![0.0; blocks];
                    let want = lm_head::row_sums(isa, &mut sums, &scaled);
                    let fields = [want.max, want.log_sum, want.entropy];
                    assert_same_bits("stats", &stats[3 * row..3 * row + 3], &fields);
                    assert_eq!(block_sums[row * blocks..(row + 1) * blocks], sums);
                    let log_prob = lm_head::log_prob(&scaled, &want, ids[row]);
                    let got = [results[0][row], results[1][row]];
                    assert_same_bits("results", &got, &[log_prob, want.entropy]);
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_finite_show() {
        let cx = &contexts()[0];
        let values = [[f32::NAN; 40], [f32::NEG_INFINITY; 40], [f32::INFINITY; 40]].concat();
        let x = cx.upload(&values).unwrap();
        let stats = statistics(cx, x.view(), 40, 1.0, None, false).unwrap();
        let stats: Vec<f32> = cx.download(stats.rows()).unwrap();
        for row in stats.chunks(3) {
            assert!(row[1].is_nan() && row[2].is_nan(), "{row:?}");
        }
    }

    fn asked<'a>(hidden: &'a Buffer, w: &'a Buffer, targets: &'a Buffer, by: f32) -> Asked<'a> {
        let [hidden, w, targets] = [hidden, w, targets].map(Buffer::view);
        Asked { hidden, w, targets, inv_temperature: by }
    }

    struct Got([Vec<f32>; 4]);

    fn run(cx: &Context, kind: Kind, [rows, width, vocab]: [usize; 3], ids: &[u32]) -> Got {
        let upload_f32 = |seed, len| upload_noise(cx, seed, len, Kind::F32).0;
        let hidden = upload_noise(cx, 1, rows * width, kind).0;
        let w = upload_noise(cx, 2, vocab * width, kind).0;
        let targets = cx.upload(ids).unwrap();
        let [mut logp, mut entropy] = [0; 2].map(|_| cx.buffer(Kind::F32, rows).unwrap());
        let asked = asked(&hidden, &w, &targets, INV_TEMPERATURE);
        let to = [&mut logp.view_mut(), &mut entropy.view_mut()];
        forward(cx, to, None, asked).unwrap();
        let (dlogp, dentropy) = (upload_f32(3, rows), upload_f32(4, rows));
        let mut dhidden = cx.buffer(Kind::F32, rows * width).unwrap();
        let mut dw = upload_f32(5, vocab * width);
        let (of_log_probs, of_entropies) = (dlogp.view(), Some(dentropy.view()));
        let grads = Grads { dlogp: of_log_probs, dentropy: of_entropies, ddivergence: None };
        let (to, dw_to) = (&mut dhidden.view_mut(), &mut dw.view_mut());
        backward(cx, to, Some(dw_to), grads, asked).unwrap();
        Got([&logp, &entropy, &dhidden, &dw].map(|buffer| download(cx, buffer)))
    }

    fn expected(kind: Kind, [rows, width, vocab]: [usize; 3], ids: &[u32]) -> Got {
        let device = Device::cpu(1);
        let dtype = if kind == Kind::F32 { Dtype::F32 } else { Dtype::Bf16 };
        let tensor = |seed, shape: &[usize], kind| {
            Tensor::from_slice(&device, shape, &rounding(seed, shape.iter().product(), kind))
        };
        let hidden = tensor(1, &[rows, width], kind).to_dtype(dtype);
        let w = tensor(2, &[vocab, width], kind);
        let head = Packed::of_weight(&w, dtype);
        let [mut logp, mut entropy] = [0; 2].map(|_| Tensor::uninit(&device, &[rows]));
        lm_head::forward(&mut logp, &mut entropy, &hidden, &head, ids, INV_TEMPERATURE);
        let [dlogp, dentropy] = [3, 4].map(|seed| rounding(seed, rows, Kind::F32));
        let mut dhidden = Tensor::uninit(&device, &[rows, width]);
        let mut dw = tensor(5, &[vocab, width], Kind::F32);
        let grads = lm_head::Grads { dlogp: &dlogp, dentropy: Some(&dentropy), ddivergence: None };
        let to = &mut dhidden;
        lm_head::backward(to, Some(&mut dw), grads, &hidden, &head, &w, ids, INV_TEMPERATURE);
        Got([logp, entropy, dhidden, dw].map(|tensor| tensor.as_slice().to_vec()))
    }

    #[test]
    fn the_head_matches_the_processors_forward_and_backward() {
        for shape in [[1, 3, 1], [9, 37, 101], [5, 40, 1032]] {
            let ids: Vec<u32> = (0..shape[0]).map(|row| (row * 31 % shape[2]) as u32).collect();
            // A gradient of a logit may round to the other neighbour in bf16.
            let bf16 = Tol { abs: 2e-2, rel: 2e-2 };
            for (kind, tol) in [(Kind::F32, F32), (Kind::Bf16, bf16)] {
                let want = expected(kind, shape, &ids);
                for cx in contexts() {
                    let got = run(&cx, kind, shape, &ids);
                    let names = ["logp", "entropy", "dhidden", "dw"].iter();
                    for (name, (got, want)) in names.zip(got.0.iter().zip(&want.0)) {
                        assert_close(name, got, &wide(want), tol);
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_log_prob_alone_and_in_any_company() {
        let cx = &contexts()[0];
        let (hidden, w) = (rounding(1, 20 * 40, Kind::Bf16), rounding(2, 520 * 40, Kind::Bf16));
        let w = upload(cx, &w, Kind::Bf16);
        let run = |rows: std::ops::Range<usize>| {
            let x = upload(cx, &hidden[rows.start * 40..rows.end * 40], Kind::Bf16);
            let ids: Vec<u32> = rows.map(|row| row as u32 * 25).collect();
            let ids = cx.upload(&ids).unwrap();
            let [mut logp, mut entropy] = [0; 2].map(|_| cx.buffer(Kind::F32, ids.len()).unwrap());
            let to = [&mut logp.view_mut(), &mut entropy.view_mut()];
            forward(cx, to, None, asked(&x, &w, &ids, 1.0)).unwrap();
            [download(cx, &logp), download(cx, &entropy)].concat()
        };
        let all = run(0..20);
        for row in [0, 7, 19] {
            assert_same_bits("row", &run(row..row + 1), &[all[row], all[20 + row]]);
        }
    }

    #[test]
    fn launches_fit_every_device_and_chunks_are_bounded() {
        for model in MODELS {
            let rows = chunk_rows(model.vocab);
            assert!(rows.is_multiple_of(128) && rows * model.vocab <= CHUNK_LEN, "{rows}");
            for rows in ROWS.map(|count| count.min(rows)) {
                assert_fits(&parts_plan("row_parts", rows, model.vocab));
                assert_fits(&gradient_plan(Kind::Bf16, rows, model.vocab));
            }
        }
        assert_eq!(parts_plan("row_parts", 3, 151_936).grid, [19, 3, 1]);
        assert_eq!((chunk_rows(1), chunk_rows(usize::MAX)), (CHUNK_LEN, 1));
    }
}
