// AdamW; the formula is in adamw.rs. Eight elements to a thread; bits are the processor's.
#include "aha.cuh"

// A segment's numbers behind its first block: length, value, m, v, gradient, copy, flags. The copy (null if absent)
// gets the new weights: in f32 with flag 2, else in bf16. With flag 1 weights decay.
constexpr u32 WORDS = 8;
constexpr u64 DECAYS = 1, COPY_IS_F32 = 2;

// `scale` is a factor on the gradients, in the device's memory.
KERNEL(256, adamw, const u64* segments, u32 count, const f32* scale, f32 keep, f32 beta1, f32 rest1, f32 beta2,
       f32 rest2, f32 root_factor, f32 eps, f32 size) {
    const u64* segment = segment_of(segments, count, WORDS);
    u64 at = (blockIdx.x - segment[0]) * (blockDim.x * EIGHT) + threadIdx.x * EIGHT, len = segment[1];
    f32 *value = (f32*)segment[2], *m = (f32*)segment[3], *v = (f32*)segment[4];
    const f32* gradient = (const f32*)segment[5];
    u64 flags = segment[7];
    f32 w[EIGHT], mean[EIGHT], square[EIGHT], g[EIGHT];
    f32 factor = *scale, kept = flags & DECAYS ? keep : 1.0f;
    load_flat(w, value, at, len);
    load_flat(mean, m, at, len);
    load_flat(square, v, at, len);
    load_flat(g, gradient, at, len);
#pragma unroll
    for (u32 i = 0; i < EIGHT; ++i) {
        f32 scaled = __fmul_rn(g[i], factor);
        mean[i] = __fmaf_rn(mean[i], beta1, __fmul_rn(scaled, rest1));
        square[i] = __fmaf_rn(square[i], beta2, __fmul_rn(__fmul_rn(scaled, scaled), rest2));
        f32 denominator = __fmaf_rn(__fsqrt_rn(square[i]), root_factor, eps);
        w[i] = __fmaf_rn(__fdiv_rn(mean[i], denominator), -size, __fmul_rn(w[i], kept));
    }
    store_flat(value, at, len, w);
    store_flat(m, at, len, mean);
    store_flat(v, at, len, square);
    if (segment[6] == 0) return;
    if (flags & COPY_IS_F32) store_flat((f32*)segment[6], at, len, w);
    else store_flat((bf16*)segment[6], at, len, w);
}
