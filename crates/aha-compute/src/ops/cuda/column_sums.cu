// Sums of columns: out (parts, cols) = or += the sums of x (rows, cols) over parts of `part_rows` rows.
//
// A block has 32 columns of a part. Its warp i adds up rows i, i + 8, i + 16, ...; the warps' sums are added in order.
#include "aha.cuh"

constexpr u32 WARPS = 8;

template <typename X>
__device__ __forceinline__ void column_sums(f32* out, const X* x, u32 rows, u32 cols, u32 part_rows, u32 accumulates) {
    __shared__ f32 sums[WARPS][WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 col = blockIdx.x * WARP + lane, first = blockIdx.y * part_rows;
    u32 end = min(first + part_rows, rows);
    f32 sum = 0.0f;
    if (col < cols) {
#pragma unroll 4
        for (u32 row = first + warp; row < end; row += WARPS) sum += to_f32(x[u64(row) * cols + col]);
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || col >= cols) return;
    f32 total = accumulates ? out[u64(blockIdx.y) * cols + col] : 0.0f;
#pragma unroll
    for (u32 i = 0; i < WARPS; ++i) total += sums[i][lane];
    out[u64(blockIdx.y) * cols + col] = total;
}

#define COLUMN_SUMS(X)                                                                                       \
    KERNEL(256, column_sums_##X, f32* out, const X* x, u32 rows, u32 cols, u32 part_rows, u32 accumulates) { \
        column_sums<X>(out, x, rows, cols, part_rows, accumulates);                                          \
    }

COLUMN_SUMS(f32)
COLUMN_SUMS(bf16)
