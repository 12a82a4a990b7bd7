// Products of few rows of activations with a weight, bf16 with f32 sums: c (m, n) = x (m, k) wᵀ (k, n) + bias (n).
//
// A warp has eight rows of the weight, and all rows of x. An element is one chain of sums over all of k, sixteen terms
// at once and in order, as a kernel with large tiles adds it. So neither how many rows there are nor how they are
// spread over warps and blocks changes a bit.
//
// Weights and activations come through a ring of stages in shared memory. x is shared by a block's warps.
#include "aha.cuh"

// Terms of a stage: 256 bytes of each row.
constexpr u32 DEPTH = 128;
// Elements of sixteen bytes.
constexpr u32 CHUNK = 8;
constexpr u32 CHUNKS = DEPTH / CHUNK;
// Terms whose fragments are loaded at once: two products of sixteen.
constexpr u32 PAIRS = DEPTH / 32;
constexpr u32 WARP_COLUMNS = 8;
constexpr u32 WARPS_MAX = 4;

// Sixteen bytes of a row of a stage. Chunks of a row are exchanged so that eight rows' chunks of the same index, which
// are read at once, are in different banks.
__device__ __forceinline__ bf16* chunk_of(bf16* tile, u32 row, u32 chunk) {
    return tile + row * DEPTH + (chunk ^ row % 8) * CHUNK;
}

// Of thirty-two terms: of the warp's eight rows of the weight, and of all rows of x.
template <u32 ROWS>
struct Fragments {
    static constexpr u32 TILES = (ROWS + 15) / 16;
    u32 weights[4];
    u32 rows[2][TILES][4];

    __device__ __forceinline__ void load(bf16* weight_tile, bf16* row_tile, u32 pair) {
        u32 lane = threadIdx.x % WARP;
        load_squares(weights, chunk_of(weight_tile, lane % 8, 4 * pair + lane / 8));
        if constexpr (ROWS == 8) {
            u32 both[4];
            load_squares(both, chunk_of(row_tile, lane % 8, 4 * pair + lane / 8));
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                rows[half][0][0] = both[2 * half];
                rows[half][0][2] = both[2 * half + 1];
                // There are no rows from the eighth on.
                rows[half][0][1] = rows[half][0][3] = 0;
            }
        } else {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
#pragma unroll
                for (u32 tile = 0; tile < TILES; ++tile) {
                    bf16* at = chunk_of(row_tile, 16 * tile + lane % 16, 4 * pair + 2 * half + lane / 16);
                    load_squares(rows[half][tile], at);
                }
            }
        }
    }

    __device__ __forceinline__ void multiply(f32 (&sums)[TILES][4]) const {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
#pragma unroll
            for (u32 tile = 0; tile < TILES; ++tile) {
                multiply_add(sums[tile], rows[half][tile], weights[2 * half], weights[2 * half + 1]);
            }
        }
    }
};

template <u32 ROWS, u32 STAGES, typename T>
__device__ __forceinline__ void few_rows(T* c, const bf16* x, const bf16* w, const T* bias, u32 m, u32 n, u32 k) {
    SHARED_MEMORY(bf16, shared);
    constexpr u32 TILES = Fragments<ROWS>::TILES;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    u32 stage_len = (warps * WARP_COLUMNS + ROWS) * DEPTH;
    u32 first = (blockIdx.x * warps + warp) * WARP_COLUMNS;
    u32 step_count = (k + DEPTH - 1) / DEPTH;
    // Rows that aren't there keep what is in shared memory: they only make results that nobody stores.
    auto start = [&](u32 step, u32 slot) {
        bf16* row_tile = shared + slot * stage_len;
        bf16* weight_tile = row_tile + (ROWS + warp * WARP_COLUMNS) * DEPTH;
        u32 chunk = threadIdx.x % CHUNKS, at = step * DEPTH + chunk * CHUNK;
        bool is_there = at < k;
        at = is_there ? at : 0;
#pragma unroll
        for (u32 i = 0; i < WARP_COLUMNS; i += WARP / CHUNKS) {
            u32 row = lane / CHUNKS + i;
            if (first + row < n) copy16_async(chunk_of(weight_tile, row, chunk), w + u64(first + row) * k + at, is_there);
        }
        for (u32 row = threadIdx.x / CHUNKS; row < m; row += blockDim.x / CHUNKS) {
            copy16_async(chunk_of(row_tile, row, chunk), x + u64(row) * k + at, is_there);
        }
    };
    for (u32 step = 0; step < STAGES - 1; ++step) {
        if (step < step_count) start(step, step);
        end_copies();
    }
    f32 sums[TILES][4] = {};
    for (u32 step = 0, slot = 0; step < step_count; ++step) {
        wait_copies<STAGES - 2>();
        // This stage is there for all warps, and all have left the one before, which the next copies go to.
        __syncthreads();
        u32 ahead = step + STAGES - 1;
        if (ahead < step_count) start(ahead, slot == 0 ? STAGES - 1 : slot - 1);
        end_copies();
        bf16* row_tile = shared + slot * stage_len;
        bf16* weight_tile = row_tile + (ROWS + warp * WARP_COLUMNS) * DEPTH;
        Fragments<ROWS> fragments[2];
        fragments[0].load(weight_tile, row_tile, 0);
#pragma unroll
        for (u32 pair = 0; pair < PAIRS; ++pair) {
            if (pair + 1 < PAIRS) fragments[(pair + 1) % 2].load(weight_tile, row_tile, pair + 1);
            fragments[pair % 2].multiply(sums);
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
#pragma unroll
    for (u32 tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            u32 row = 16 * tile + lane / 4 + e / 2 * 8, column = first + lane % 4 * 2 + e % 2;
            if (row >= m || column >= n) continue;
            f32 sum = sums[tile][e];
            if (bias != nullptr) sum = __fadd_rn(sum, to_f32(bias[column]));
            c[u64(row) * n + column] = from_f32<T>(sum);
        }
    }
}

#define FEW_ROWS(rows, stages, type)                                                                             \
    KERNEL(WARPS_MAX* WARP, few_rows_##rows##_##type, type* c, const bf16* x, const bf16* w, const type* bias,   \
           u32 m, u32 n, u32 k) {                                                                                \
        few_rows<rows, stages, type>(c, x, w, bias, m, n, k);                                                    \
    }
FEW_ROWS(8, 9, f32)
FEW_ROWS(8, 9, bf16)
FEW_ROWS(16, 8, f32)
FEW_ROWS(16, 8, bf16)
FEW_ROWS(32, 6, f32)
FEW_ROWS(32, 6, bf16)
FEW_ROWS(64, 4, f32)
FEW_ROWS(64, 4, bf16)

// What products are tried with: values of both signs whose magnitudes are spread over twelve powers of two, so that
// another order of sums shows. In f32 it does; a result that is rounded to bf16 would hide it. So the terms of every other
// row's sums cancel: a weight's second half is its first one reversed and negated, and that row of activations is the
// same in both directions. What is left of such a sum is what rounding has made of it.
constexpr u32 ACTIVATIONS = 0, WEIGHT = 1;

// Element `at` of rows of `cols`; of a bias, which has one row, half are small enough not to hide what is left.
KERNEL(256, probe_values, bf16* to, u64 len, u64 key, u32 cols, u32 what) {
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= len) return;
    u64 row = at / cols;
    u32 col = u32(at % cols);
    bool is_mirrored = (what == WEIGHT || (what == ACTIVATIONS && row % 2 == 1)) && col >= cols / 2;
    Philox random = philox(key, is_mirrored ? row * cols + (cols - 1 - col) : at, 0);
    f32 uniform = f32(int(random.words[0])) * (1.0f / 2147483648.0f);
    u32 below_one = random.words[1] % 12 + (what > WEIGHT && col % 2 == 0 ? 18 : 0);
    f32 value = __fmul_rn(uniform, __uint_as_float((127 - below_one) << 23));
    to[at] = round_bf16(is_mirrored && what == WEIGHT ? -value : value);
}
