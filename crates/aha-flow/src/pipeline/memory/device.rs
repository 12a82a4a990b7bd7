//! What of a stage's memory is a CUDA device's.
//!
//! Models, what is trained of them, keys and values and what passes compute are there; the program, queries, files
//! while they are read, and rollouts are the host's. So is what passes through on its way to the device or back.
//! In place of threads' panels a device has the parts that attention sums aside, and the libraries' workspace.
//! Keys and values are there only while a stage samples, unless the sampler runs ahead: what is freed is used again.

use aha_compute::cuda::{Kind, pool};
use aha_compute::ops::attention::cuda::captured_parts_bytes;
use aha_compute::ops::attention::{KvCache, PAGE_LEN};
use aha_compute::ops::{adamw, lm_head};
use aha_compute::{Dtype, peers};
use aha_model::model::decode::bucket;

use super::{Breakdown, F32, Part, Phase, dims_of, kv_dtype};
use crate::pipeline::run::Run;
use crate::pipeline::sampling::OptimizerState;

/// Parts that are the host's whatever computes.
const OF_HOST: [&str; 6] =
    ["program", "queries", "file", "rollouts", "transfers", "optimizer of the host"];
/// What the library of matrix products works in.
const WORKSPACE_BYTES: u64 = 32 << 20;
/// Blocks of an allocator are up to so much larger than what is asked for, in the mean less than half of it.
const ROUNDING: u64 = 8;
/// Slices of moments that are on a device at once.
const SLICES_BYTES: u64 = adamw::cuda::SLICES_BYTES as u64;
/// Gradients that are under way between devices at once.
const EXCHANGE_BYTES: u64 = peers::CHUNK_BYTES as u64;
/// Gradients of keys, and values, that attention puts aside, at most: floats.
const ASIDE_LEN_MAX: u64 = 1 << 25;

/// What a stage needs at its peak, where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of the host's memory.
    pub host: Breakdown,
    /// Of the CUDA device's; nothing where the processor computes.
    pub device: Breakdown,
}

impl Needs {
    /// The largest needs of phases that follow one another, which needn't be one phase's in both places.
    pub(super) fn of(run: &Run, phases: Vec<Breakdown>) -> Needs {
        let largest = |parts: &dyn Fn(&Breakdown) -> Breakdown| {
            let found = phases.iter().map(parts);
            found.max_by_key(Breakdown::total_bytes).unwrap_or_default()
        };
        if !run.device.is_cuda() {
            return Needs { host: largest(&Breakdown::clone), device: Breakdown::default() };
        }
        let part = |is_host: bool| {
            move |all: &Breakdown| Breakdown {
                parts: (all.parts.iter())
                    .filter(|part| OF_HOST.contains(&part.name) == is_host)
                    .cloned()
                    .collect(),
            }
        };
        Needs { host: largest(&part(true)), device: largest(&part(false)) }
    }
}

impl Phase<'_> {
    /// What the host has of models while they are on a device: a tensor at a time, read, written or looked through.
    pub(super) fn add_transfers(&mut self) {
        if !self.is_cuda() {
            return;
        }
        let model = self.model;
        let widest = model.vocab_size.max(model.intermediate_size);
        let tensor = F32 * u64::from(widest).saturating_mul(self.hidden());
        self.found.add("transfers", 2 * tensor);
    }

    /// The optimizer's two moments of so many bytes, and what several devices exchange gradients in.
    pub(super) fn add_optimizer(&mut self, bytes: u64, state: OptimizerState) {
        let devices = self.run.device.numbers().len() as u64;
        if devices > 1 {
            // Gradients are half as large.
            self.found.add("exchange", EXCHANGE_BYTES.min(bytes / 2));
        }
        if state == OptimizerState::Device || devices == 0 {
            return self.found.add("optimizer", bytes);
        }
        self.found.add("optimizer", SLICES_BYTES.min(2 * bytes));
        self.found.add("optimizer of the host", bytes.saturating_mul(devices));
    }

    /// What steps of decoding work in that were captured, one for each number of rows: it stays theirs. So do parts of
    /// attention over long sequences, one for each number of rows and of tiles of keys.
    pub(super) fn add_captured_steps(&mut self) {
        if !self.is_cuda() {
            return;
        }
        let of_steps = || captured_rows(self.run.sequences_max as usize);
        let rows: u64 = of_steps().map(|rows| rows as u64).sum();
        let floats = 6 * self.hidden() + self.inner_len();
        let kind = match kv_dtype(self.run) {
            Dtype::F32 => Kind::F32,
            Dtype::Bf16 => Kind::Bf16,
        };
        let (dims, len_max) = (dims_of(self.model), self.cached_len_max());
        let parts = captured_parts_bytes(of_steps(), dims, kind, len_max);
        let rounding = parts / ROUNDING;
        let bytes = F32.saturating_mul(rows).saturating_mul(floats);
        self.found.add("captured steps", bytes.saturating_add(parts).saturating_add(rounding));
    }

    /// Positions of the longest sequence that the model has and the cache holds.
    fn cached_len_max(&self) -> usize {
        let (layers, dims) = (self.model.layers as usize, dims_of(self.model));
        let page_bytes = KvCache::bytes_per_page(kv_dtype(self.run), layers, dims) as u64;
        let cached = (self.run.kv_cache.0 / page_bytes.max(1)).saturating_mul(PAGE_LEN as u64);
        cached.min(u64::from(self.model.max_position_embeddings)) as usize
    }

    /// In place of what threads take.
    pub(super) fn add_device_scratch(&mut self, tokens: u64) {
        let model = self.model;
        let heads = u64::from(model.heads) * u64::from(model.head_dim);
        let keys = u64::from(model.kv_heads) * u64::from(model.head_dim);
        // Rows of gradients or of sums that wait to be added.
        let aside = (2 * tokens.saturating_mul(heads.max(keys))).min(ASIDE_LEN_MAX);
        self.found.add("scratch", F32 * aside);
        let is_here = |part: &&Part| !OF_HOST.contains(&part.name);
        let all: u64 = self.found.parts.iter().filter(is_here).map(|part| part.bytes).sum();
        let rounded = (all / ROUNDING / 2).min(pool::SPARE_BYTES_MAX as u64);
        self.found.add("spare buffers", rounded);
        self.found.add("workspace", WORKSPACE_BYTES);
    }

    /// Rows of logits that are there at once.
    pub(super) fn logits_rows(&self) -> u64 {
        let vocab = self.model.vocab_size as usize;
        match self.is_cuda() {
            true => lm_head::cuda::chunk_rows(vocab) as u64,
            false => lm_head::chunk_rows(vocab) as u64,
        }
    }

    /// Whether models are on a CUDA device.
    pub(super) fn is_cuda(&self) -> bool {
        self.run.device.is_cuda()
    }
}

/// The rows of each step that may be captured where so many sequences are decoded at once.
fn captured_rows(sequences: usize) -> impl Iterator<Item = usize> {
    let most = bucket(sequences);
    let captured = std::iter::successors(Some(bucket(1)), |rows| Some(bucket(rows + 1)));
    captured.take_while(move |rows| *rows <= most)
}

#[cfg(test)]
mod tests {
    use super::super::tests::models;
    use super::super::{ModelFacts, Others, predict};
    use super::*;

    fn needs(run: &str, more: &str) -> Needs {
        let [model, _] = models();
        needs_of(&model, run, more)
    }

    fn needs_of(model: &ModelFacts, run: &str, more: &str) -> Needs {
        let text = format!(
            "[run]\nthreads = 2\n{run}\n[models]\nbase = 'base'\n[[stage]]\nname = 'a'\nkind = 'rl'\n\
             model = 'base'\nprompts = 'SELECT 1'\nrewards = [{{ kind = 'math' }}]\n{more}"
        );
        let text = crate::pipeline::Text { path: "p.toml", text: &text, sets: &[] };
        let pipeline = crate::pipeline::parse(text).unwrap();
        predict(&pipeline, &pipeline.stages[0], Some(model), &Others::default())
    }

    fn part(found: &Breakdown, name: &str) -> u64 {
        found.parts.iter().filter(|part| part.name == name).map(|part| part.bytes).sum()
    }

    #[test]
    fn what_the_processor_has_a_device_has_and_not_both() {
        let (cpu, cuda) = (needs("device = 'cpu'", ""), needs("device = 'cuda:0'", ""));
        assert_eq!(cpu.device, Breakdown::default());
        for name in ["weights", "packed weights", "gradients", "optimizer"] {
            let bytes = part(&cpu.host, name);
            assert!(bytes > 0, "{name}");
            assert_eq!((part(&cuda.host, name), part(&cuda.device, name)), (0, bytes), "{name}");
        }
        for name in ["program", "transfers"] {
            assert!(part(&cuda.host, name) > 0 && part(&cuda.device, name) == 0, "{name}");
        }
    }

    /// The largest of both phases counts, and not their sum; of a sampler that runs ahead both do.
    #[test]
    fn keys_and_values_are_there_while_a_stage_samples() {
        let of = |cache: &str, more: &str| {
            let run = format!("device = 'cuda:0'\nsequences_max = 4096\nkv_cache = '{cache}'");
            needs(&run, more).device
        };
        let training = of("1MiB", "");
        assert!(part(&training, "backward") > 0 && part(&training, "kv cache") == 0);
        let sampling = of("64GiB", "");
        assert_eq!((part(&sampling, "backward"), part(&sampling, "kv cache")), (0, 64 << 30));
        let ahead = of("1MiB", "max_staleness = 1");
        assert!(part(&ahead, "backward") > 0 && part(&ahead, "kv cache") == 1 << 20);
    }

    #[test]
    fn steps_of_each_number_of_rows_are_captured() {
        let rows = |sequences| captured_rows(sequences).sum::<usize>();
        assert_eq!([1, 2, 3, 64].map(rows), [1, 3, 7, 199]);
    }

    /// Goal: parts of attention over long sequences count, up to the longest that the cache holds.
    #[test]
    fn long_sequences_take_more_for_captured_steps() {
        let of = |positions: u32, cache: &str, dtype: &str| {
            let [model, _] = models();
            let model = ModelFacts {
                heads: 14,
                kv_heads: 2,
                head_dim: 64,
                max_position_embeddings: positions,
                ..model
            };
            let run = format!(
                "device = 'cuda:0'\nsequences_max = 96\nkv_cache = '{cache}'\ndtype = '{dtype}'"
            );
            part(&needs_of(&model, &run, "").device, "captured steps")
        };
        let short = of(128, "64GiB", "bf16");
        // Rows times tiles of keys, each product once: powers of two from 4 to 2^15, and 24 times those up to 2^11.
        let products: u64 =
            (2..=15).map(|i| 1 << i).sum::<u64>() + (2..=11).map(|i| 24 << i).sum::<u64>();
        let parts = products * 14 * 66 * 4;
        assert_eq!(of(32_768, "64GiB", "bf16") - short, parts + parts / ROUNDING);
        assert!(of(32_768, "8MiB", "bf16") < short + parts / 4, "what the cache holds bounds it");
        assert_eq!(of(32_768, "64GiB", "f32"), of(128, "64GiB", "f32"), "f32 isn't cut");
    }
}
