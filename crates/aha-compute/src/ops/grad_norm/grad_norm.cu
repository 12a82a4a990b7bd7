// The norm of all gradients. Squares are summed in f64.
#include "aha.cuh"

constexpr u32 THREADS = 256;
// Elements of a block.
constexpr u64 BLOCK_LEN = 1 << 14;

// The sum over a block's threads by halving, at thread 0.
__device__ __forceinline__ f64 tree(f64 sum) {
    __shared__ f64 sums[THREADS];
    sums[threadIdx.x] = sum;
    for (u32 apart = THREADS / 2; apart > 0; apart /= 2) {
        __syncthreads();
        if (threadIdx.x < apart) sums[threadIdx.x] += sums[threadIdx.x + apart];
    }
    __syncthreads();
    return sums[0];
}

// partial[block] = the sum of squares of BLOCK_LEN elements. A segment's numbers behind its first block: length,
// elements.
KERNEL(256, sum_of_squares, f64* partial, const u64* segments, u32 count) {
    const u64* segment = segment_of(segments, count, 3);
    u64 len = segment[1];
    const f32* x = (const f32*)segment[2];
    u64 first = (blockIdx.x - segment[0]) * BLOCK_LEN, end = min(first + BLOCK_LEN, len);
    f64 sum = 0.0;
    for (u64 at = first + threadIdx.x * EIGHT; at < end; at += THREADS * EIGHT) {
        f32 held[EIGHT];
        load_flat(held, x, at, len);
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) sum += f64(held[i]) * f64(held[i]);
    }
    sum = tree(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// norm = sqrt(the sum of `count` partial sums), scale = the factor that brings it down to norm_max, at most 1. One
// block.
KERNEL(256, finish_norm, f64* norm, f32* scale, const f64* partial, u32 count, f64 norm_max) {
    f64 sum = 0.0;
    for (u32 i = threadIdx.x; i < count; i += THREADS) sum += partial[i];
    sum = tree(sum);
    if (threadIdx.x != 0) return;
    f64 root = sqrt(sum);
    *norm = root;
    f64 factor = norm_max / (root + 1e-6);
    *scale = f32(factor > 1.0 ? 1.0 : factor);
}
