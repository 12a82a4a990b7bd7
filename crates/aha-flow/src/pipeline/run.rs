//! `[run]`: what holds for every stage.

use super::device::Device;
use super::reader::{section, section_fields};
use super::stages::Dtype;
use super::values::ByteSize;

section! {
    /// What holds for every stage of the run.
    pub struct Run {
        /// Seed of every random draw. The same seed gives the same tables and weights.
        pub seed: u64 = 1;
        /// Threads that compute; 0 takes every core, and more than two per core are not started. Results
        /// do not depend on it.
        @neutral
        pub threads: u32 = 0, "at most 256" |n| *n <= 256;
        /// What computes. On a CUDA device models, keys and values, gradients and the optimizer's state are in its
        /// memory. Results have the same bits in every run on one kind of device, and other bits on others: what
        /// "auto" has chosen is kept with the run, which goes on only there. On a CUDA device the size of micro-batches
        /// changes results by rounding. "auto" passes over a device that can't do what the pipeline asks for.
        pub device: Device = Device::Auto;
        /// What weights and activations are rounded to when they are multiplied, and what activations are kept as
        /// for the backward pass. Weights that are trained, the optimizer's state, gradients, softmax, norms and
        /// log-probs are `f32` in any case. `bf16` halves the memory of activations and the bytes that a decoding
        /// step reads; it is faster where the processor multiplies pairs of them faster (AMD's with AVX512_BF16).
        pub dtype: Dtype = Dtype::F32;
        /// Whether linear layers multiply in FP8, with `dtype = "bf16"` on a CUDA device of compute capability 8.9 or
        /// more (L40S, H100, B200): e4m3 numbers with a scale for each 1 x 128 of activations and gradients and each
        /// 128 x 128 of weights, sums in `f32` (DeepSeek-V3, arXiv:2412.19437, section 3.3), when sampling and when
        /// learning. Embedding, norms, attention and heads are as without. Gradients are rounded more.
        pub fp8: bool = false;
        /// What keys and values are kept as. With `bf16` they are rounded as soon as they are computed, when sampling
        /// and when learning, so that both compute the same; a cache then holds twice as many. What `dtype = "bf16"`
        /// computes is bf16 in any case.
        pub kv_dtype: Dtype = Dtype::F32;
        /// Memory that the run may use: `aha check` and `aha run` refuse a pipeline whose predicted
        /// need is larger. Absent: no limit of ours. Where `micro_batch_tokens` is left to us it is chosen by this.
        @neutral
        pub memory: Option<ByteSize> = None, "more than nothing" |size| size.is_none_or(|s| s.0 > 0);
        /// Memory for keys and values of sequences being sampled. A sequence that finds no room
        /// waits. Results do not depend on it.
        @neutral
        pub kv_cache: ByteSize = ByteSize(256 << 20), "at least 1MiB" |size| size.0 >= 1 << 20;
        /// Memory for sorts, joins and groups of queries. What needs more is spilled to the disk,
        /// which may change the order of rows that a query leaves open; joins that can't spill fail.
        pub query_memory: ByteSize = ByteSize(256 << 20), "at least 32MiB" |size| size.0 >= 32 << 20;
        /// Sequences decoded at once, at most. Results do not depend on it.
        @neutral
        pub sequences_max: u32 = 64, "at least 1" |n| *n >= 1;
        /// Checkpoints kept per stage; older ones are removed once a newer one is complete.
        @neutral
        pub checkpoint_keep: u32 = 2, "at least 1" |n| *n >= 1;
    }
}

section_fields!(Run);

impl From<Dtype> for aha_compute::Dtype {
    fn from(dtype: Dtype) -> aha_compute::Dtype {
        match dtype {
            Dtype::F32 => aha_compute::Dtype::F32,
            Dtype::Bf16 => aha_compute::Dtype::Bf16,
        }
    }
}

impl From<aha_compute::Dtype> for Dtype {
    fn from(dtype: aha_compute::Dtype) -> Dtype {
        match dtype {
            aha_compute::Dtype::F32 => Dtype::F32,
            aha_compute::Dtype::Bf16 => Dtype::Bf16,
        }
    }
}
