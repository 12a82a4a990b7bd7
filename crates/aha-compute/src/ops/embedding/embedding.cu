// Rows of a table, and the sums of their gradients; buffers are in embedding.rs and cuda.rs.
#include "aha.cuh"

// y (count, cols) = x[ids], a block of 128 threads to a row.
template <typename Y, typename X, bool WHOLE>
__device__ __forceinline__ void gather(Y* y, const X* x, const u32* ids, u32 cols) {
    const X* from = x + u64(ids[blockIdx.x]) * cols;
    Y* to = y + u64(blockIdx.x) * cols;
    for (u32 at = threadIdx.x * EIGHT; at < cols; at += 128 * EIGHT) {
        f32 held[EIGHT];
        load_part<WHOLE>(held, from, at, cols);
        store_part<WHOLE>(to, at, cols, held);
    }
}

#define GATHER(Y, X)                                                                    \
    KERNEL(128, gather_##Y##_##X##_true, Y* y, const X* x, const u32* ids, u32 cols) {  \
        gather<Y, X, true>(y, x, ids, cols);                                            \
    }                                                                                   \
    KERNEL(128, gather_##Y##_##X##_false, Y* y, const X* x, const u32* ids, u32 cols) { \
        gather<Y, X, false>(y, x, ids, cols);                                           \
    }

GATHER(f32, f32)
GATHER(f32, bf16)
GATHER(bf16, f32)
GATHER(bf16, bf16)

// dx[id] += the sum of dy over the tokens of `id`, one chain in order for each element. A block has an id, whose tokens
// are order[starts[i]..starts[i + 1]], and 128 columns.
template <typename D>
__device__ __forceinline__ void scatter_add(f32* dx, const D* dy, const u32* ids, const u32* starts, const u32* order,
                                            u32 cols) {
    u32 col = blockIdx.y * 128 + threadIdx.x;
    if (col >= cols) return;
    f32* to = dx + u64(ids[blockIdx.x]) * cols + col;
    f32 sum = *to;
    u32 end = starts[blockIdx.x + 1];
#pragma unroll 8
    for (u32 i = starts[blockIdx.x]; i < end; ++i) sum += to_f32(dy[u64(order[i]) * cols + col]);
    *to = sum;
}

#define SCATTER_ADD(D)                                                                                      \
    KERNEL(128, scatter_add_##D, f32* dx, const D* dy, const u32* ids, const u32* starts, const u32* order, \
           u32 cols) {                                                                                      \
        scatter_add<D>(dx, dy, ids, starts, order, cols);                                                   \
    }

SCATTER_ADD(f32)
SCATTER_ADD(bf16)
