// RMSNorm of groups of `len` elements; formulas and buffers are in rms_norm.rs.
//
// A team of THREADS threads has a group: a warp (several of them in a block) or a whole block. Each thread holds up to
// CHUNKS times eight elements in registers, so a group is read once. Which elements a thread sums, and the tree that
// joins the threads' sums, depend on `len` alone.
#include "aha.cuh"

constexpr u32 CHUNKS = 4;
constexpr u32 BLOCK_THREADS = 256;
// Groups that a team goes through in the backward pass; each team has a partial sum of `dw`.
constexpr u32 BACKWARD_GROUPS = 32;

template <u32 THREADS>
__device__ __forceinline__ f32 team_sum(f32 x) {
    if constexpr (THREADS == WARP) {
        return warp_sum(x);
    } else {
        return block_sum<THREADS>(x);
    }
}

// The place of a team among all, and of this thread in its team.
template <u32 THREADS>
__device__ __forceinline__ u32 team() {
    return blockIdx.x * (blockDim.x / THREADS) + threadIdx.x / THREADS;
}

template <u32 THREADS>
__device__ __forceinline__ u32 first_element(u32 chunk) {
    return (chunk * THREADS + threadIdx.x % THREADS) * EIGHT;
}

// y = x r w; with `residual`, of sum = x + residual, which is written to `sum`.
template <typename Y, typename X, u32 THREADS, bool WHOLE>
__device__ __forceinline__ void forward(Y* y, f32* r, f32* sum, const X* x, const f32* residual, const f32* w,
                                        u32 groups, u32 len, f32 eps) {
    u32 group = team<THREADS>();
    if (group >= groups) return;
    u64 offset = u64(group) * len;
    f32 held[CHUNKS][EIGHT];
    f32 squares = 0.0f;
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; ++chunk) {
        u32 at = first_element<THREADS>(chunk);
        load_part<WHOLE>(held[chunk], x + offset, at, len);
        if (residual) {
            f32 more[EIGHT];
            load_part<WHOLE>(more, residual + offset, at, len);
#pragma unroll
            for (u32 i = 0; i < EIGHT; ++i) held[chunk][i] += more[i];
            store_part<WHOLE>(sum + offset, at, len, held[chunk]);
        }
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) squares = __fmaf_rn(held[chunk][i], held[chunk][i], squares);
    }
    f32 scale = 1.0f / __fsqrt_rn(team_sum<THREADS>(squares) / f32(len) + eps);
    if (threadIdx.x % THREADS == 0) r[group] = scale;
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; ++chunk) {
        u32 at = first_element<THREADS>(chunk);
        f32 gain[EIGHT];
        load_part<WHOLE>(gain, w, at, len);
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) gain[i] = __fmul_rn(__fmul_rn(held[chunk][i], scale), gain[i]);
        store_part<WHOLE>(y + offset, at, len, gain);
    }
}

// dx += r (dy w - z m) of one group, with z = x r and m = mean(dy w z); sums += dy z.
template <typename D, typename X, u32 THREADS, bool WHOLE>
__device__ __forceinline__ void backward_group(f32* dx, f32 (&sums)[CHUNKS][EIGHT], const D* dy, const X* x,
                                               const f32* w, f32 scale, u32 len) {
    f32 z[CHUNKS][EIGHT], slope[CHUNKS][EIGHT];
    f32 dot = 0.0f;
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; ++chunk) {
        u32 at = first_element<THREADS>(chunk);
        f32 gain[EIGHT];
        load_part<WHOLE>(z[chunk], x, at, len);
        load_part<WHOLE>(slope[chunk], dy, at, len);
        load_part<WHOLE>(gain, w, at, len);
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) {
            z[chunk][i] *= scale;
            sums[chunk][i] = __fmaf_rn(slope[chunk][i], z[chunk][i], sums[chunk][i]);
            slope[chunk][i] *= gain[i];
            dot = __fmaf_rn(slope[chunk][i], z[chunk][i], dot);
        }
    }
    f32 mean = team_sum<THREADS>(dot) / f32(len);
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; ++chunk) {
        u32 at = first_element<THREADS>(chunk);
        f32 to[EIGHT];
        load_part<WHOLE>(to, dx, at, len);
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) {
            f32 inner = __fmaf_rn(-mean, z[chunk][i], slope[chunk][i]);
            to[i] = __fmaf_rn(scale, inner, to[i]);
        }
        store_part<WHOLE>(dx, at, len, to);
    }
}

// Goes through BACKWARD_GROUPS groups in order; `partial` (teams, len) has the team's sum of dy z.
template <typename D, typename X, u32 THREADS, bool WHOLE>
__device__ __forceinline__ void backward(f32* dx, f32* partial, const D* dy, const X* x, const f32* w, const f32* r,
                                         u32 groups, u32 len) {
    u32 first = team<THREADS>() * BACKWARD_GROUPS;
    if (first >= groups) return;
    f32 sums[CHUNKS][EIGHT] = {};
    u32 end = min(first + BACKWARD_GROUPS, groups);
    for (u32 group = first; group < end; ++group) {
        u64 offset = u64(group) * len;
        backward_group<D, X, THREADS, WHOLE>(dx + offset, sums, dy + offset, x + offset, w, r[group], len);
    }
    if (!partial) return;
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; ++chunk) {
        store_part<WHOLE>(partial + u64(team<THREADS>()) * len, first_element<THREADS>(chunk), len, sums[chunk]);
    }
}

// A kernel for each size of a team; teams of one warp share a block. Lengths that aren't whole eights, which no model
// that is known has, get the largest team.
#define EACH_TEAM(M, A, B)           \
    M(A, B, 32, BLOCK_THREADS, true) \
    M(A, B, 256, 256, true)          \
    M(A, B, 512, 512, true)          \
    M(A, B, 512, 512, false)

#define FORWARD(Y, X, THREADS, BLOCK, WHOLE)                                                            \
    KERNEL(BLOCK, rms_norm_forward_##Y##_##X##_##THREADS##_##WHOLE, Y* y, f32* r, f32* sum, const X* x, \
           const f32* residual, const f32* w, u32 groups, u32 len, f32 eps) {                           \
        forward<Y, X, THREADS, WHOLE>(y, r, sum, x, residual, w, groups, len, eps);                     \
    }

#define BACKWARD(D, X, THREADS, BLOCK, WHOLE)                                                                        \
    KERNEL(BLOCK, rms_norm_backward_##D##_##X##_##THREADS##_##WHOLE, f32* dx, f32* partial, const D* dy, const X* x, \
           const f32* w, const f32* r, u32 groups, u32 len) {                                                        \
        backward<D, X, THREADS, WHOLE>(dx, partial, dy, x, w, r, groups, len);                                       \
    }

EACH_TEAM(FORWARD, f32, f32)
EACH_TEAM(FORWARD, bf16, f32)
EACH_TEAM(FORWARD, bf16, bf16)
EACH_TEAM(BACKWARD, f32, f32)
EACH_TEAM(BACKWARD, f32, bf16)
EACH_TEAM(BACKWARD, bf16, f32)
EACH_TEAM(BACKWARD, bf16, bf16)
