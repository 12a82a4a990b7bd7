// AdamW; the formula is in adamw.rs. Eight elements to a thread; bits are the processor's.
#include "aha.cuh"

// `scale` is a factor on the gradients, in the device's memory. `copy` (null if absent) = the new weights in bf16.
KERNEL(256, adamw, f32* value, f32* m, f32* v, bf16* copy, const f32* gradient, const f32* scale, u64 len, f32 keep,
       f32 beta1, f32 rest1, f32 beta2, f32 rest2, f32 root_factor, f32 eps, f32 size) {
    f32 w[EIGHT], mean[EIGHT], square[EIGHT], g[EIGHT];
    f32 factor = *scale;
    load_flat(w, value, flat_at(), len);
    load_flat(mean, m, flat_at(), len);
    load_flat(square, v, flat_at(), len);
    load_flat(g, gradient, flat_at(), len);
#pragma unroll
    for (u32 i = 0; i < EIGHT; ++i) {
        f32 scaled = __fmul_rn(g[i], factor);
        mean[i] = __fmaf_rn(mean[i], beta1, __fmul_rn(scaled, rest1));
        square[i] = __fmaf_rn(square[i], beta2, __fmul_rn(__fmul_rn(scaled, scaled), rest2));
        f32 denominator = __fmaf_rn(__fsqrt_rn(square[i]), root_factor, eps);
        w[i] = __fmaf_rn(__fdiv_rn(mean[i], denominator), -size, __fmul_rn(w[i], keep));
    }
    store_flat(value, flat_at(), len, w);
    store_flat(m, flat_at(), len, mean);
    store_flat(v, flat_at(), len, square);
    if (copy) store_flat(copy, flat_at(), len, w);
}
