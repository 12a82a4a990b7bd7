// Statistics of rows of logits, log-probs, and gradients of logits; formulas and orders of sums are in lm_head.rs.
//
// A row is spread over several blocks of threads, a part of PART_LEN logits each, so that one row keeps many
// multiprocessors busy. Sums have the processor's order: sixteen lanes, each of which adds up 32 terms and then those
// sums.
#include "aha.cuh"

constexpr u32 LANES = 16;
// Logits whose weights a lane adds up first: 32 terms of each lane.
constexpr u32 BLOCK_LEN = 512;
constexpr u32 PART_BLOCKS = 16;
constexpr u32 PART_LEN = PART_BLOCKS * BLOCK_LEN;
constexpr u32 THREADS = 256;
constexpr f32 LOG_MIN = -100.0f;

// What a row is reduced to.
struct Stats {
    f32 max, log_sum, entropy;
};

// The greatest logit of each part: maxima (rows, parts). The grid is (parts, rows). Rows are `stride` apart, of which
// the first `cols` logits count.
KERNEL(256, row_maxima, f32* maxima, const f32* logits, u32 cols, u32 stride, f32 inv_temperature) {
    __shared__ f32 of_warps[THREADS / WARP];
    const f32* row = logits + u64(blockIdx.y) * stride;
    u32 first = blockIdx.x * PART_LEN, end = min(first + PART_LEN, cols);
    f32 greatest = NEGATIVE_INFINITY;
#pragma unroll 8
    for (u32 at = first + threadIdx.x; at < end; at += THREADS)
        greatest = fmaxf(greatest, __fmul_rn(row[at], inv_temperature));
    greatest = warp_max(greatest);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = greatest;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 i = 1; i < THREADS / WARP; ++i) greatest = fmaxf(greatest, of_warps[i]);
    maxima[u64(blockIdx.y) * gridDim.x + blockIdx.x] = greatest;
}

__device__ __forceinline__ f32 row_max(const f32* maxima, u32 row, u32 parts) {
    f32 greatest = NEGATIVE_INFINITY;
    for (u32 i = 0; i < parts; ++i) greatest = fmaxf(greatest, maxima[u64(row) * parts + i]);
    return greatest;
}

// The sums of each block and lane of exp(d) and of exp(d) d: sums (rows, blocks, 2, LANES); the sums of each block in
// f64: block_sums (rows, blocks), unless it is null. The grid is (parts, rows).
KERNEL(256, row_parts, f32* sums, f64* block_sums, const f32* maxima, const f32* logits, u32 cols, u32 stride,
       f32 inv_temperature) {
    __shared__ f64 weights[PART_BLOCKS][LANES];
    u32 lane = threadIdx.x % LANES, in_part = threadIdx.x / LANES;
    u32 block = blockIdx.x * PART_BLOCKS + in_part, blocks = (cols + BLOCK_LEN - 1) / BLOCK_LEN;
    f32 greatest = row_max(maxima, blockIdx.y, gridDim.x);
    const f32* row = logits + u64(blockIdx.y) * stride;
    f32 sum = 0.0f, sum_of_d = 0.0f;
    f64 weight = 0.0;
#pragma unroll 8
    for (u32 i = 0; i < BLOCK_LEN / LANES; ++i) {
        u32 at = block * BLOCK_LEN + i * LANES + lane;
        if (at >= cols) break;
        f32 d = __fsub_rn(__fmul_rn(row[at], inv_temperature), greatest);
        f32 e = exp_as_cpu(d);
        sum = __fadd_rn(sum, e);
        // In this order a NaN passes through.
        sum_of_d = __fmaf_rn(e, LOG_MIN > d ? LOG_MIN : d, sum_of_d);
        weight += f64(e);
    }
    weights[in_part][lane] = weight;
    __syncthreads();
    if (block >= blocks) return;
    u64 at = u64(blockIdx.y) * blocks + block;
    sums[at * 2 * LANES + lane] = sum;
    sums[at * 2 * LANES + LANES + lane] = sum_of_d;
    if (!block_sums || lane != 0) return;
    f64 total = 0.0;
    for (u32 i = 0; i < LANES; ++i) total += weights[in_part][i];
    block_sums[at] = total;
}

// Joins the sums of a row's blocks: stats (rows, 3). Where there are targets, their log-probs and the entropies too. A
// block of one warp to a row; half of its lanes have exp(d), the others exp(d) d.
KERNEL(32, row_stats, f32* stats, f32* log_probs, f32* entropies, const f32* sums, const f32* maxima, const f32* logits,
       const u32* targets, u32 cols, u32 stride, u32 parts, f32 inv_temperature) {
    u32 row = blockIdx.x, blocks = (cols + BLOCK_LEN - 1) / BLOCK_LEN;
    const f32* of_row = sums + u64(row) * blocks * 2 * LANES + threadIdx.x;
    f32 sum = 0.0f;
#pragma unroll 16
    for (u32 block = 0; block < blocks; ++block) sum = __fadd_rn(sum, of_row[block * 2 * LANES]);
#pragma unroll
    for (u32 apart = LANES / 2; apart > 0; apart /= 2) sum = __fadd_rn(sum, __shfl_down_sync(ALL_LANES, sum, apart));
    f32 sum_of_d = __shfl_sync(ALL_LANES, sum, LANES);
    if (threadIdx.x != 0) return;
    Stats of{row_max(maxima, row, parts), NOT_A_NUMBER, 0.0f};
    if (sum_of_d == sum_of_d) of.log_sum = logf(sum);
    of.entropy = __fsub_rn(of.log_sum, __fdiv_rn(sum_of_d, sum));
    stats[3 * row] = of.max, stats[3 * row + 1] = of.log_sum, stats[3 * row + 2] = of.entropy;
    if (!targets) return;
    f32 logit = __fmul_rn(logits[u64(row) * stride + targets[row]], inv_temperature);
    log_probs[row] = __fsub_rn(__fsub_rn(logit, of.max), of.log_sum);
    entropies[row] = of.entropy;
}

// dlogits = inv_temperature (dlogp (1[j = target] - p) - dentropy p (log p + H)). `dlogits` may be `logits`; `dentropy`
// is null where absent. The grid is (parts, rows).
template <typename D, bool WHOLE>
__device__ __forceinline__ void gradient(D* dlogits, const f32* logits, const f32* stats, const f32* dlogp,
                                         const f32* dentropy, const u32* targets, u32 cols, f32 inv_temperature) {
    u32 row = blockIdx.y, target = targets[row];
    Stats of{stats[3 * row], stats[3 * row + 1], stats[3 * row + 2]};
    f32 slope = __fmul_rn(dlogp[row], inv_temperature);
    f32 of_entropy = dentropy ? __fmul_rn(dentropy[row], inv_temperature) : 0.0f;
    const f32* from = logits + u64(row) * cols;
    D* to = dlogits + u64(row) * cols;
#pragma unroll
    for (u32 step = 0; step < PART_LEN / (THREADS * EIGHT); ++step) {
        u32 at = blockIdx.x * PART_LEN + (step * THREADS + threadIdx.x) * EIGHT;
        f32 x[EIGHT];
        load_part<WHOLE>(x, from, at, cols);
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) {
            f32 log_p = __fsub_rn(__fsub_rn(__fmul_rn(x[i], inv_temperature), of.max), of.log_sum);
            f32 surprise = __fadd_rn(LOG_MIN > log_p ? LOG_MIN : log_p, of.entropy);
            x[i] = __fmul_rn(exp_as_cpu(log_p), __fmaf_rn(-of_entropy, surprise, -slope));
            if (at + i == target) x[i] = __fadd_rn(x[i], slope);
        }
        store_part<WHOLE>(to, at, cols, x);
    }
}

#define GRADIENT(D, WHOLE)                                                                                        \
    KERNEL(256, logits_gradient_##D##_##WHOLE, D* dlogits, const f32* logits, const f32* stats, const f32* dlogp, \
           const f32* dentropy, const u32* targets, u32 cols, f32 inv_temperature) {                              \
        gradient<D, WHOLE>(dlogits, logits, stats, dlogp, dentropy, targets, cols, inv_temperature);              \
    }

GRADIENT(f32, true)
GRADIENT(bf16, true)
GRADIENT(f32, false)
GRADIENT(bf16, false)

// Beside another model: D = sum p (log p - log q) over the `cols` tokens that both have, with the statistics of both
// over these.

__device__ __forceinline__ f32 log_prob(const f32* logits, const f32* stats, u32 row, u32 stride, u32 at,
                                        f32 inv_temperature) {
    f32 logit = __fmul_rn(logits[u64(row) * stride + at], inv_temperature);
    return __fsub_rn(__fsub_rn(logit, stats[3 * row]), stats[3 * row + 1]);
}

// log p - log q. A token that is impossible here weighs nothing, whatever it is there; a NaN passes through.
__device__ __forceinline__ f32 gap(f32 log_p, f32 log_q) {
    constexpr f32 LEAST = -3.402823466e38f;
    return __fsub_rn(LOG_MIN > log_p ? LOG_MIN : log_p, LEAST > log_q ? LEAST : log_q);
}

// Sums of each block and lane: sums (rows, blocks, LANES). The grid is (parts, rows).
KERNEL(256, divergence_parts, f32* sums, const f32* own, const f32* other, const f32* own_stats, const f32* other_stats,
       u32 cols, u32 own_stride, u32 other_stride, f32 inv_temperature) {
    u32 row = blockIdx.y, lane = threadIdx.x % LANES;
    u32 block = blockIdx.x * PART_BLOCKS + threadIdx.x / LANES, blocks = (cols + BLOCK_LEN - 1) / BLOCK_LEN;
    if (block >= blocks) return;
    f32 sum = 0.0f;
    for (u32 i = 0; i < BLOCK_LEN / LANES; ++i) {
        u32 at = block * BLOCK_LEN + i * LANES + lane;
        if (at >= cols) break;
        f32 log_p = log_prob(own, own_stats, row, own_stride, at, inv_temperature);
        f32 log_q = log_prob(other, other_stats, row, other_stride, at, inv_temperature);
        sum = __fmaf_rn(exp_as_cpu(log_p), gap(log_p, log_q), sum);
    }
    sums[(u64(row) * blocks + block) * LANES + lane] = sum;
}

// Joins the sums of a row's blocks. A block of one warp to a row, of which half the lanes work.
KERNEL(32, join_divergence, f32* divergence, const f32* sums, u32 cols) {
    u32 row = blockIdx.x, blocks = (cols + BLOCK_LEN - 1) / BLOCK_LEN;
    f32 sum = 0.0f;
    if (threadIdx.x < LANES) {
        const f32* of_row = sums + u64(row) * blocks * LANES + threadIdx.x;
        for (u32 block = 0; block < blocks; ++block) sum = __fadd_rn(sum, of_row[block * LANES]);
    }
#pragma unroll
    for (u32 apart = LANES / 2; apart > 0; apart /= 2) sum = __fadd_rn(sum, __shfl_down_sync(ALL_LANES, sum, apart));
    if (threadIdx.x == 0) divergence[row] = sum;
}

// other = inv_temperature dD p (log p - log q - D), in place of the other model's logits. The grid is (parts, rows).
KERNEL(256, divergence_gradient, f32* other, const f32* own, const f32* own_stats, const f32* other_stats,
       const f32* divergence, const f32* slope, u32 cols, u32 own_stride, u32 other_stride, f32 inv_temperature) {
    u32 row = blockIdx.y, first = blockIdx.x * PART_LEN, end = min(first + PART_LEN, cols);
    f32 factor = __fmul_rn(slope[row], inv_temperature), mean = divergence[row];
    for (u32 at = first + threadIdx.x; at < end; at += THREADS) {
        f32 log_p = log_prob(own, own_stats, row, own_stride, at, inv_temperature);
        f32 log_q = log_prob(other, other_stats, row, other_stride, at, inv_temperature);
        f32 inner = __fsub_rn(gap(log_p, log_q), mean);
        other[u64(row) * other_stride + at] = __fmul_rn(factor, __fmul_rn(exp_as_cpu(log_p), inner));
    }
}

// own += other, over the first `cols` of each row. The grid is (parts, rows).
KERNEL(256, add_rows, f32* own, const f32* other, u32 cols, u32 own_stride, u32 other_stride) {
    u32 first = blockIdx.x * PART_LEN, end = min(first + PART_LEN, cols);
    f32* to = own + u64(blockIdx.y) * own_stride;
    const f32* from = other + u64(blockIdx.y) * other_stride;
    for (u32 at = first + threadIdx.x; at < end; at += THREADS) to[at] = __fadd_rn(to[at], from[at]);
}
