// Rotary position embedding; the formula and buffers are in rope.rs. Bits are the processor's.
#include "aha.cuh"

// A thread has eight pairs of a head. y may be x. `table` has the cosines, then the sines of a position, `half` of
// each.
template <typename Y, typename X, bool WHOLE>
__device__ __forceinline__ void rotate(Y* y, const X* x, const u32* positions, const f32* table, u64 parts, u32 heads,
                                       u32 half, f32 sign) {
    u64 part = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (part >= parts) return;
    u32 parts_of_head = (half + EIGHT - 1) / EIGHT;
    u32 at = u32(part % parts_of_head) * EIGHT;
    u64 head = part / parts_of_head;
    const f32* cosines = table + u64(positions[head / heads]) * (2 * half);
    f32 a[EIGHT], b[EIGHT], c[EIGHT], s[EIGHT];
    load_part<WHOLE>(c, cosines, at, half);
    load_part<WHOLE>(s, cosines + half, at, half);
    load_part<WHOLE>(a, x + head * 2 * half, at, half);
    load_part<WHOLE>(b, x + head * 2 * half + half, at, half);
#pragma unroll
    for (u32 i = 0; i < EIGHT; ++i) {
        f32 sine = __fmul_rn(s[i], sign), low = a[i];
        a[i] = __fsub_rn(__fmul_rn(low, c[i]), __fmul_rn(b[i], sine));
        b[i] = __fmaf_rn(b[i], c[i], __fmul_rn(low, sine));
    }
    store_part<WHOLE>(y + head * 2 * half, at, half, a);
    store_part<WHOLE>(y + head * 2 * half + half, at, half, b);
}

#define ROTATE(Y, X, WHOLE)                                                                                      \
    KERNEL(256, rotate_##Y##_##X##_##WHOLE, Y* y, const X* x, const u32* positions, const f32* table, u64 parts, \
           u32 heads, u32 half, f32 sign) {                                                                      \
        rotate<Y, X, WHOLE>(y, x, positions, table, parts, heads, half, sign);                                   \
    }

ROTATE(f32, f32, true)
ROTATE(f32, bf16, true)
ROTATE(bf16, f32, true)
ROTATE(bf16, bf16, true)
ROTATE(f32, f32, false)
ROTATE(f32, bf16, false)
ROTATE(bf16, f32, false)
ROTATE(bf16, bf16, false)
