// Products of few rows of activations with a weight, bf16 with f32 sums: c (m, n) = x (m, k) wᵀ (k, n) + bias (n).
//
// A warp has eight rows of the weight, and all rows of x. An element is one chain of sums over all of k, sixteen terms
// at once and in order, as a kernel with large tiles adds it. So neither how many rows there are nor how they are
// spread over warps and blocks changes a bit.
//
// Weights and activations come through a ring of stages in shared memory. x is shared by a block's warps. Up to three
// weights are multiplied by one launch, each with blocks of its own.
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

// Where sixteen bytes of a row of a stage are. Chunks of a row are exchanged so that eight rows' chunks of the same
// index, which are read at once, are in different banks.
__device__ __forceinline__ u32 chunk_of(u32 row, u32 chunk) { return row * DEPTH + (chunk ^ row % 8) * CHUNK; }

// The same for chunk `first` + `more`, where `more` is a multiple of two or of four and `first` below that. Written so
// that what changes from step to step is one operation with a constant.
__device__ __forceinline__ u32 chunk_of_step(u32 row, u32 first, u32 more) {
    return chunk_of(row, first) ^ more * CHUNK;
}

// Of thirty-two terms: of the warp's eight rows of the weight, and of all rows of x.
template <u32 ROWS>
struct Fragments {
    static constexpr u32 TILES = (ROWS + 15) / 16;
    u32 weights[4];
    u32 rows[2][TILES][4];

    __device__ __forceinline__ void load(bf16* weight_tile, bf16* row_tile, u32 pair) {
        u32 lane = threadIdx.x % WARP;
        load_squares(weights, weight_tile + chunk_of_step(lane % 8, lane / 8, 4 * pair));
        if constexpr (ROWS == 8) {
            u32 both[4];
            load_squares(both, row_tile + chunk_of_step(lane % 8, lane / 8, 4 * pair));
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
                    bf16* own_tile = row_tile + 16 * tile * DEPTH;
                    load_squares(rows[half][tile], own_tile + chunk_of_step(lane % 16, lane / 16, 4 * pair + 2 * half));
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

// A weight (n, k), and what is made of it.
template <typename T>
struct Part {
    T* c;
    const bf16* w;
    const T* bias;
    u32 n;
};

// The part that this block works on, which is then block `block` of it.
template <typename T>
__device__ __forceinline__ Part<T> part_of(u32& block, const Part<T>& first, const Part<T>& second,
                                           const Part<T>& third) {
    u32 outputs = blockDim.x / WARP * WARP_COLUMNS;
    u32 of_first = (first.n + outputs - 1) / outputs, of_second = (second.n + outputs - 1) / outputs;
    if (block < of_first) return first;
    block -= of_first;
    if (block < of_second) return second;
    block -= of_second;
    return third;
}

template <u32 ROWS, u32 STAGES, typename T>
__device__ __forceinline__ void few_rows(const Part<T>& part, u32 block, const bf16* x, u32 m, u32 k) {
    T* c = part.c;
    const bf16* w = part.w;
    const T* bias = part.bias;
    u32 n = part.n;
    SHARED_MEMORY(bf16, shared);
    constexpr u32 TILES = Fragments<ROWS>::TILES;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    u32 stage_len = (warps * WARP_COLUMNS + ROWS) * DEPTH;
    u32 first = (block * warps + warp) * WARP_COLUMNS;
    u32 step_count = (k + DEPTH - 1) / DEPTH;
    // Where this warp's rows of the weight are in a stage.
    u32 own = (ROWS + warp * WARP_COLUMNS) * DEPTH;
    // What this thread copies of each stage: a chunk of every other row of its warp's, and of some rows of x. Rows that
    // aren't there keep what is in shared memory: they only make results that nobody stores. Behind the last term,
    // copies are of zeros.
    constexpr u32 COPIES = WARP_COLUMNS * CHUNKS / WARP;
    static_assert(COPIES == PAIRS, "a copy is started after each product of thirty-two terms");
    u32 chunk = threadIdx.x % CHUNKS, first_row = threadIdx.x / CHUNKS, row_step = blockDim.x / CHUNKS;
    u32 next = chunk * CHUNK;
    const bf16* row_from = x + u64(first_row) * k + next;
    const bf16* weight_from[COPIES];
    u32 weight_to[COPIES];
    bool is_weight[COPIES];
#pragma unroll
    for (u32 i = 0; i < COPIES; ++i) {
        u32 row = lane / CHUNKS + i * (WARP / CHUNKS);
        is_weight[i] = first + row < n;
        weight_from[i] = w + u64(first + row) * k + next;
        weight_to[i] = own + chunk_of(row, chunk);
    }
    auto start_rows = [&](bf16* to) {
        const bf16* from = row_from;
        for (u32 row = first_row; row < m; row += row_step, from += u64(row_step) * k) {
            copy16_async(to + chunk_of(row, chunk), from, next < k);
        }
        row_from += DEPTH;
    };
    auto start_weights = [&](bf16* to, u32 i) {
        if (is_weight[i]) copy16_async(to + weight_to[i], weight_from[i], next < k);
        weight_from[i] += DEPTH;
    };
    auto end_stage = [&] {
        end_copies();
        next += DEPTH;
    };
#pragma unroll 1
    for (u32 step = 0; step < STAGES - 1; ++step) {
        bf16* to = shared + step * stage_len;
#pragma unroll
        for (u32 i = 0; i < COPIES; ++i) start_weights(to, i);
        start_rows(to);
        end_stage();
    }
    f32 sums[TILES][4] = {};
    // Fragments that are loaded before they are multiplied: as many as registers are for.
    constexpr u32 AHEAD = ROWS <= 16 ? PAIRS : 2;
    for (u32 step = 0, slot = 0; step < step_count; ++step) {
        wait_copies<STAGES - 2>();
        // This stage is there for all warps, and all have left the one before, which the next copies go to.
        __syncthreads();
        bf16* tile = shared + slot * stage_len;
        Fragments<ROWS> fragments[AHEAD];
#pragma unroll
        for (u32 pair = 0; pair + 1 < AHEAD; ++pair) fragments[pair].load(tile + own, tile, pair);
        bf16* to = shared + (slot == 0 ? STAGES - 1 : slot - 1) * stage_len;
        start_rows(to);
#pragma unroll
        for (u32 pair = 0; pair < PAIRS; ++pair) {
            u32 ahead = pair + AHEAD - 1;
            if (ahead < PAIRS) fragments[ahead % AHEAD].load(tile + own, tile, ahead);
            fragments[pair % AHEAD].multiply(sums);
            start_weights(to, pair);
        }
        end_stage();
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    wait_copies<0>();
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

#define FEW_ROWS(rows, stages, type)                                                                              \
    KERNEL(WARPS_MAX* WARP, few_rows_##rows##_##type, const bf16* x, u32 m, u32 k, type* c0, const bf16* w0,      \
           const type* bias0, u32 n0, type* c1, const bf16* w1, const type* bias1, u32 n1, type* c2,              \
           const bf16* w2, const type* bias2, u32 n2) {                                                           \
        u32 block = blockIdx.x;                                                                                   \
        Part<type> part = part_of<type>(block, {c0, w0, bias0, n0}, {c1, w1, bias1, n1}, {c2, w2, bias2, n2});    \
        few_rows<rows, stages, type>(part, block, x, m, k);                                                       \
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
// another order of sums shows. In f32 it does; a result that is rounded to bf16 would hide it. So the terms of every
// other row's sums cancel: a weight's second half is its first one reversed and negated, and that row of activations is
// the same in both directions. What is left of such a sum is what rounding has made of it.
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
