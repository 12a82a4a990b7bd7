// Products of e4m3 numbers with scales of tiles, and from f32 or bf16 to these; formulas and layouts are in fp8.rs.
//
// Factors are quanta (rows, TILE tiles): rows of a multiple of TILE bytes, zeros behind the end, so that products have
// no ends of their own there. Scales are (tiles, rows) or (tiles, blocks of rows): those of neighbouring rows are
// neighbours.
#include "aha.cuh"

#if !defined(AHA_EMULATED) && __CUDA_ARCH__ < 890
#error "e4m3 products need a device of compute capability 8.9"
#endif

// Elements that have a scale in common: of a row, and of a block to either side.
constexpr u32 TILE = 128;
constexpr u32 THREADS = 256;
// Greatest e4m3 number.
constexpr f32 E4M3_MAX = 448.0f;
// The least scale: the least normal f32, so that its inverse is finite.
constexpr f32 SCALE_MIN = 1.17549435e-38f;

__device__ __forceinline__ f32 scale_of(f32 greatest) { return fmaxf(__fdiv_rn(greatest, E4M3_MAX), SCALE_MIN); }

__device__ __forceinline__ u32 pack4(f32 a, f32 b, f32 c, f32 d, f32 inverse) {
    u32 low = pack_e4m3(__fmul_rn(a, inverse), __fmul_rn(b, inverse));
    return low | pack_e4m3(__fmul_rn(c, inverse), __fmul_rn(d, inverse)) << 16;
}

struct __align__(8) EightBytes {
    u32 words[2];
};

// Lanes of a tile of a row, eight elements each, and rows of a block of threads.
constexpr u32 TILE_LANES = TILE / EIGHT;
constexpr u32 ROWS_AT_ONCE = THREADS / TILE_LANES;

// Tiles along rows: quanta (rows, tiles) and scales (tiles, rows) of x (rows, cols). The grid is (rows /
// ROWS_AT_ONCE, tiles).
template <typename X, bool WHOLE>
__device__ __forceinline__ void quantize_rows(u8* quanta, f32* scales, const X* x, u32 rows, u32 cols) {
    u32 row = blockIdx.x * ROWS_AT_ONCE + threadIdx.x / TILE_LANES, tile = blockIdx.y;
    u32 at = tile * TILE + threadIdx.x % TILE_LANES * EIGHT;
    f32 values[EIGHT], greatest = 0.0f;
    bool is_there = row < rows;
    load_part<WHOLE>(values, x + (is_there ? u64(row) * cols : 0), at, is_there ? cols : 0);
#pragma unroll
    for (u32 i = 0; i < EIGHT; ++i) greatest = fmaxf(greatest, fabsf(values[i]));
#pragma unroll
    for (u32 apart = TILE_LANES / 2; apart > 0; apart /= 2)
        greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, apart));
    if (!is_there) return;
    f32 scale = scale_of(greatest), inverse = __fdiv_rn(1.0f, scale);
    EightBytes packed;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const f32* of = values + 4 * i;
        packed.words[i] = pack4(of[0], of[1], of[2], of[3], inverse);
    }
    *reinterpret_cast<EightBytes*>(quanta + u64(row) * gridDim.y * TILE + at) = packed;
    if (at % TILE == 0) scales[u64(tile) * rows + row] = scale;
}

#define QUANTIZE_ROWS(X, WHOLE)                                                                                   \
    KERNEL(256, fp8_rows_##X##_##WHOLE, u8* quanta, f32* scales, const X* x, u32 rows, u32 cols) {                \
        quantize_rows<X, WHOLE>(quanta, scales, x, rows, cols);                                                   \
    }

QUANTIZE_ROWS(f32, true)
QUANTIZE_ROWS(bf16, true)
QUANTIZE_ROWS(f32, false)
QUANTIZE_ROWS(bf16, false)

// Words of a column's tile in shared memory: one more than there are, so that columns are in different banks.
constexpr u32 TILE_WORDS = TILE / 4;
constexpr u32 WORDS_APART = TILE_WORDS + 1;
constexpr u32 WARPS = THREADS / WARP;

// Tiles along columns: quanta (cols, tiles) and scales (tiles, cols) of x (rows, cols). The grid is (cols / WARP,
// tiles); a lane has a column.
template <typename X>
__device__ __forceinline__ void quantize_columns(u8* quanta, f32* scales, const X* x, u32 rows, u32 cols) {
    __shared__ f32 maxima[WARPS][WARP];
    __shared__ u32 tile_words[WARP][WORDS_APART];
    constexpr u32 WORDS = TILE_WORDS / WARPS;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, tile = blockIdx.y, col = blockIdx.x * WARP + lane;
    f32 values[WORDS][4], greatest = 0.0f;
#pragma unroll
    for (u32 j = 0; j < WORDS; ++j) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            u32 row = tile * TILE + 4 * (warp + WARPS * j) + i;
            values[j][i] = row < rows && col < cols ? to_f32(x[u64(row) * cols + col]) : 0.0f;
            greatest = fmaxf(greatest, fabsf(values[j][i]));
        }
    }
    maxima[warp][lane] = greatest;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < WARPS; ++i) greatest = fmaxf(greatest, maxima[i][lane]);
    f32 scale = scale_of(greatest), inverse = __fdiv_rn(1.0f, scale);
    if (warp == 0 && col < cols) scales[u64(tile) * cols + col] = scale;
#pragma unroll
    for (u32 j = 0; j < WORDS; ++j) {
        const f32* of = values[j];
        tile_words[lane][warp + WARPS * j] = pack4(of[0], of[1], of[2], of[3], inverse);
    }
    __syncthreads();
    for (u32 of_block = warp; of_block < WARP && blockIdx.x * WARP + of_block < cols; of_block += WARPS) {
        u64 row = blockIdx.x * WARP + of_block;
        u32* to = reinterpret_cast<u32*>(quanta + (row * gridDim.y + tile) * TILE);
        to[lane] = tile_words[of_block][lane];
    }
}

#define QUANTIZE_COLUMNS(X)                                                                          \
    KERNEL(256, fp8_columns_##X, u8* quanta, f32* scales, const X* x, u32 rows, u32 cols) {          \
        quantize_columns<X>(quanta, scales, x, rows, cols);                                          \
    }

QUANTIZE_COLUMNS(f32)
QUANTIZE_COLUMNS(bf16)

// Blocks of a weight w (rows, cols): quanta (rows, tiles of cols) with scales (tiles of cols, tiles of rows), and those
// of the transpose: quanta (cols, tiles of rows) with scales (tiles of rows, tiles of cols). The grid is (tiles of
// cols, tiles of rows).
KERNEL(256, fp8_blocks, u8* quanta, f32* scales, u8* transposed, f32* transposed_scales, const f32* w, u32 rows,
       u32 cols) {
    __shared__ f32 maxima[WARPS];
    // By column: four rows to a word.
    __shared__ u32 columns[TILE][WORDS_APART];
    constexpr u32 GROUPS = TILE / WARP, WORDS = TILE_WORDS / WARPS;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 first_row = blockIdx.y * TILE, first_col = blockIdx.x * TILE;
    f32 values[WORDS][GROUPS][4], greatest = 0.0f;
#pragma unroll
    for (u32 j = 0; j < WORDS; ++j) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            u32 row = first_row + 4 * (warp * WORDS + j) + i;
#pragma unroll
            for (u32 group = 0; group < GROUPS; ++group) {
                u32 col = first_col + group * WARP + lane;
                f32 x = row < rows && col < cols ? w[u64(row) * cols + col] : 0.0f;
                values[j][group][i] = x;
                greatest = fmaxf(greatest, fabsf(x));
            }
        }
    }
    greatest = warp_max(greatest);
    if (lane == 0) maxima[warp] = greatest;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < WARPS; ++i) greatest = fmaxf(greatest, maxima[i]);
    f32 scale = scale_of(greatest), inverse = __fdiv_rn(1.0f, scale);
    if (threadIdx.x == 0) {
        scales[u64(blockIdx.x) * gridDim.y + blockIdx.y] = scale;
        transposed_scales[u64(blockIdx.y) * gridDim.x + blockIdx.x] = scale;
    }
#pragma unroll
    for (u32 j = 0; j < WORDS; ++j) {
#pragma unroll
        for (u32 group = 0; group < GROUPS; ++group) {
            const f32* of = values[j][group];
            columns[group * WARP + lane][warp * WORDS + j] = pack4(of[0], of[1], of[2], of[3], inverse);
        }
    }
    __syncthreads();
    for (u32 col = warp; col < TILE && first_col + col < cols; col += WARPS) {
        u64 row = first_col + col;
        u32* to = reinterpret_cast<u32*>(transposed + (row * gridDim.y + blockIdx.y) * TILE);
        to[lane] = columns[col][lane];
    }
    for (u32 row = warp; row < TILE && first_row + row < rows; row += WARPS) {
        u32 word = 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) word |= (columns[4 * lane + i][row / 4] >> (row % 4 * 8) & 0xffu) << (8 * i);
        u32* to = reinterpret_cast<u32*>(quanta + (u64(first_row + row) * gridDim.x + blockIdx.x) * TILE);
        to[lane] = word;
    }
}

// Bytes that are copied at once, and as many of a row of a tile.
constexpr u32 CHUNK = 16;
constexpr u32 CHUNKS = TILE / CHUNK;
// Contraction of one instruction.
constexpr u32 STEP = 32;

// Where a chunk of a row is in shared memory: those of eight rows that are read at once are in different banks.
__device__ __forceinline__ u8* chunk_of(u8* tile, u32 row, u32 chunk) {
    return tile + row * TILE + (chunk ^ row % 8) * CHUNK;
}

// Starts copies of a tile of ROWS rows. Those that aren't there are left: what is made of them is stored nowhere.
template <u32 ROWS, u32 COUNT>
__device__ __forceinline__ void start_rows(u8* to, const u8* from, u32 first, u32 rows, u32 tile, u32 tiles) {
    static_assert(ROWS * CHUNKS % COUNT == 0, "all threads copy as many chunks");
#pragma unroll
    for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += COUNT) {
        u32 row = first + i / CHUNKS;
        if (row >= rows) continue;
        u64 at = (u64(row) * tiles + tile) * TILE + i % CHUNKS * CHUNK;
        copy16_async(chunk_of(to, i / CHUNKS, i % CHUNKS), from + at, true);
    }
}

// Hopper multiplies e4m3 numbers for groups of four warps, from shared memory: what a single warp asks for it does in
// f16, at half the speed. Blocks of every size ask so, and have the same bits.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Rows of a group of warps.
constexpr u32 GROUP_ROWS = 64;

// Describes a tile to the tensor cores: rows of 128 bytes in groups of eight, whose chunks are where chunk_of says.
__device__ __forceinline__ u64 describe(const u8* tile) {
    constexpr u64 SWIZZLED_128 = u64(1) << 62, GROUPS_APART = u64(8 * TILE / 16) << 32, UNUSED = u64(1) << 16;
    return SWIZZLED_128 | GROUPS_APART | UNUSED | (shared_address(tile) & 0x3ffffu) >> 4;
}

#define OF_ONE(c) "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])

// c (64, 8 N) = or, if it adds, += a (64, 32) b (8 N, 32)^T of a group of warps, which all ask for it. A warp has
// sixteen rows, and of each eight columns what it holds of a product of its own.
template <u32 N>
__device__ __forceinline__ void multiply_step(f32 (&c)[N][4], u64 a, u64 b, u32 adds);

template <>
__device__ __forceinline__ void multiply_step<4>(f32 (&c)[4][4], u64 a, u64 b, u32 adds) {
    asm volatile(
        "{.reg .pred adds; setp.ne.b32 adds, %18, 0; wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
        "%16, %17, adds, 1, 1;}"
        : OF_ONE(c[0]), OF_ONE(c[1]), OF_ONE(c[2]), OF_ONE(c[3])
        : "l"(a), "l"(b), "r"(adds));
}

template <>
__device__ __forceinline__ void multiply_step<8>(f32 (&c)[8][4], u64 a, u64 b, u32 adds) {
    asm volatile(
        "{.reg .pred adds; setp.ne.b32 adds, %34, 0; wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
        "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, adds, 1, 1;}"
        : OF_ONE(c[0]), OF_ONE(c[1]), OF_ONE(c[2]), OF_ONE(c[3]), OF_ONE(c[4]), OF_ONE(c[5]), OF_ONE(c[6]),
          OF_ONE(c[7])
        : "l"(a), "l"(b), "r"(adds));
}

template <>
__device__ __forceinline__ void multiply_step<16>(f32 (&c)[16][4], u64 a, u64 b, u32 adds) {
    asm volatile(
        "{.reg .pred adds; setp.ne.b32 adds, %66, 0; wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
        "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
        "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, adds, 1, 1;}"
        : OF_ONE(c[0]), OF_ONE(c[1]), OF_ONE(c[2]), OF_ONE(c[3]), OF_ONE(c[4]), OF_ONE(c[5]), OF_ONE(c[6]),
          OF_ONE(c[7]), OF_ONE(c[8]), OF_ONE(c[9]), OF_ONE(c[10]), OF_ONE(c[11]), OF_ONE(c[12]), OF_ONE(c[13]),
          OF_ONE(c[14]), OF_ONE(c[15])
        : "l"(a), "l"(b), "r"(adds));
}

// c = a (64, TILE) b (8 N, TILE)^T of a group of warps.
template <u32 N>
__device__ __forceinline__ void multiply_tile(f32 (&c)[1][N][4], const u8* a, const u8* b) {
    u64 left = describe(a), right = describe(b);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (u32 step = 0; step < TILE / STEP; ++step) {
        constexpr u64 STEP_UNITS = STEP / 16;
        multiply_step<N>(c[0], left + step * STEP_UNITS, right + step * STEP_UNITS, step);
    }
    asm volatile("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (u32 n = 0; n < N; ++n) asm volatile("" : OF_ONE(c[0][n])::"memory");
}

// What this thread copied is seen by the tensor cores after a barrier.
__device__ __forceinline__ void show_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#else

// c = a b^T of a warp: rows of `a` from `down` on, and of `b` from `across` on.
template <u32 M, u32 N>
__device__ __forceinline__ void multiply_tile(f32 (&c)[M][N][4], u8* a, u8* b, u32 down, u32 across) {
    static_assert(N % 2 == 0, "two columns of results are loaded at once");
    u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 step = 0; step < TILE / STEP; ++step) {
        u32 left[M][4];
#pragma unroll
        for (u32 m = 0; m < M; ++m)
            load_squares(left[m], chunk_of(a, down + 16 * m + lane % 16, 2 * step + lane / 16));
#pragma unroll
        for (u32 pair = 0; pair < N / 2; ++pair) {
            u32 right[4], of = across + 16 * pair + lane / 16 * 8 + lane % 8;
            load_squares(right, chunk_of(b, of, 2 * step + lane / 8 % 2));
#pragma unroll
            for (u32 m = 0; m < M; ++m) {
                multiply_add_e4m3(c[m][2 * pair], left[m], right[0], right[1]);
                multiply_add_e4m3(c[m][2 * pair + 1], left[m], right[2], right[3]);
            }
        }
    }
}

__device__ __forceinline__ void show_copies() {}

#endif

// The first multiple of a group of eight rows: what the tensor cores exchange is told by addresses.
__device__ __forceinline__ u8* aligned(u8* at) {
#ifdef AHA_EMULATED
    return at;
#else
    return at + (8 * TILE - shared_address(at) % (8 * TILE)) % (8 * TILE);
#endif
}

__device__ __forceinline__ void store2(f32* to, f32 a, f32 b) {
    *reinterpret_cast<u64*>(to) = u64(__float_as_uint(a)) | u64(__float_as_uint(b)) << 32;
}

__device__ __forceinline__ void store2(bf16* to, f32 a, f32 b) { *reinterpret_cast<u32*>(to) = pack_bf16(a, b); }

// Results of a lane: of [m][n][e] the row is row + 16 m + e / 2 * 8 and the column col + 8 n + e % 2.
struct Place {
    u32 row, col, rows, cols;
};

// Zeros, or what is stored.
template <typename C, u32 M, u32 N>
__device__ __forceinline__ void begin_sums(f32 (&sums)[M][N][4], const C* c, Place at, bool accumulates) {
#pragma unroll
    for (u32 m = 0; m < M; ++m) {
#pragma unroll
        for (u32 n = 0; n < N; ++n) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                u32 i = at.row + 16 * m + e / 2 * 8, j = at.col + 8 * n + e % 2;
                bool is_there = accumulates && i < at.rows && j < at.cols;
                sums[m][n][e] = is_there ? to_f32(c[u64(i) * at.cols + j]) : 0.0f;
            }
        }
    }
}

// Adds the products of a tile, times its scales: those of `a` begin with row 0, those of `b` with column 0 or, if
// BLOCKS, with the one scale that all columns of a block of threads have.
template <bool BLOCKS, u32 M, u32 N>
__device__ __forceinline__ void add_scaled(f32 (&sums)[M][N][4], const f32 (&parts)[M][N][4], const f32* a_scales,
                                           const f32* b_scales, Place at) {
    f32 left[M][2], right[N][2];
#pragma unroll
    for (u32 m = 0; m < M; ++m) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 i = at.row + 16 * m + 8 * half;
            left[m][half] = i < at.rows ? a_scales[i] : 0.0f;
        }
    }
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            u32 j = BLOCKS ? 0 : at.col + 8 * n + e;
            right[n][e] = j < at.cols ? b_scales[j] : 0.0f;
        }
    }
#pragma unroll
    for (u32 m = 0; m < M; ++m) {
#pragma unroll
        for (u32 n = 0; n < N; ++n) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                f32 scale = __fmul_rn(left[m][e / 2], right[n][e % 2]);
                sums[m][n][e] = __fmaf_rn(parts[m][n][e], scale, sums[m][n][e]);
            }
        }
    }
}

template <typename C, u32 M, u32 N>
__device__ __forceinline__ void store_sums(C* c, const f32 (&sums)[M][N][4], const f32* bias, Place at) {
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
        u32 j = at.col + 8 * n;
        f32 added[2] = {0.0f, 0.0f};
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            if (bias && j + e < at.cols) added[e] = bias[j + e];
        }
#pragma unroll
        for (u32 m = 0; m < M; ++m) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                u32 i = at.row + 16 * m + 8 * half;
                if (i >= at.rows || j >= at.cols) continue;
                C* to = c + u64(i) * at.cols + j;
                f32 x = sums[m][n][2 * half], y = sums[m][n][2 * half + 1];
                if (bias) x = __fadd_rn(x, added[0]), y = __fadd_rn(y, added[1]);
                if (at.cols % 2 == 0) {
                    store2(to, x, y);
                } else {
                    to[0] = from_f32<C>(x);
                    if (j + 1 < at.cols) to[1] = from_f32<C>(y);
                }
            }
        }
    }
}

// c (rows, cols) = a (rows, depth) b (cols, depth)^T + bias, or what c holds and the product. The tensor cores sum a
// tile of the contraction from zero; times both scales it is added to an f32 sum, tile after tile. An element's
// bits depend on nothing else, so blocks of any size give the same.
//
// A block has ROWS x COLS of c in ACROSS columns of DOWN warps. BLOCKS: b has scales of blocks, else of rows.
template <typename C, u32 ROWS, u32 COLS, u32 DOWN, u32 ACROSS, u32 STAGES, bool BLOCKS>
__device__ __forceinline__ void product(C* c, const u8* a, const f32* a_scales, const u8* b, const f32* b_scales,
                                        const f32* bias, u32 rows, u32 cols, u32 tiles, u32 accumulates) {
    constexpr u32 COUNT = DOWN * ACROSS * WARP, STAGE_BYTES = (ROWS + COLS) * TILE;
    // Results (16, 8) of a warp.
    constexpr u32 M = ROWS / DOWN / 16, N = COLS / ACROSS / 8;
    SHARED_MEMORY(u8, shared);
    u8* stages = aligned(shared);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 first_row = blockIdx.y * ROWS, first_col = blockIdx.x * COLS;
    u32 down = warp / ACROSS * M * 16, across = warp % ACROSS * N * 8;
    Place at{first_row + down + lane / 4, first_col + across + lane % 4 * 2, rows, cols};
    auto start = [&](u32 tile) {
        u8* to = stages + tile % STAGES * STAGE_BYTES;
        start_rows<ROWS, COUNT>(to, a, first_row, rows, tile, tiles);
        start_rows<COLS, COUNT>(to + ROWS * TILE, b, first_col, cols, tile, tiles);
    };
    for (u32 tile = 0; tile < STAGES - 1; ++tile) {
        if (tile < tiles) start(tile);
        end_copies();
    }
    f32 sums[M][N][4];
    begin_sums<C, M, N>(sums, c, at, accumulates);
    u32 b_count = BLOCKS ? (cols + TILE - 1) / TILE : cols;
    for (u32 tile = 0; tile < tiles; ++tile) {
        wait_copies<STAGES - 2>();
        show_copies();
        __syncthreads();
        if (tile + STAGES - 1 < tiles) start(tile + STAGES - 1);
        end_copies();
        u8* left = stages + tile % STAGES * STAGE_BYTES;
        u8* right = left + ROWS * TILE;
        f32 parts[M][N][4] = {};
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        multiply_tile<N>(parts, left + down / GROUP_ROWS * GROUP_ROWS * TILE, right);
#else
        if (first_row + down < rows) multiply_tile<M, N>(parts, left, right, down, across);
#endif
        u32 scale_at = BLOCKS ? first_col / TILE : 0;
        const f32* of_tile = b_scales + u64(tile) * b_count + scale_at;
        add_scaled<BLOCKS, M, N>(sums, parts, a_scales + u64(tile) * rows, of_tile, at);
    }
    store_sums<C, M, N>(c, sums, bias, at);
}

// Where warps multiply for themselves, those of a large block do best in two rows; Hopper's have sixteen rows each, and
// in emulation too.
#if defined(AHA_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LARGE_DOWN 8
#define LARGE_ACROSS 1
#else
#define LARGE_DOWN 2
#define LARGE_ACROSS 4
#endif

// The blocks of fp8.rs.
#define PRODUCTS(C, BLOCKS)                                                    \
    PRODUCT(C, BLOCKS, large, 128, 128, LARGE_DOWN, LARGE_ACROSS, 3, 256)      \
    PRODUCT(C, BLOCKS, medium, 64, 64, 4, 1, 4, 128)                           \
    PRODUCT(C, BLOCKS, small, 64, 32, 4, 1, 8, 128)
#define PRODUCT(C, BLOCKS, NAME, ROWS, COLS, DOWN, ACROSS, STAGES, COUNT)                                            \
    KERNEL(COUNT, fp8_product_##NAME##_##C##_##BLOCKS, C* c, const u8* a, const f32* a_scales, const u8* b,          \
           const f32* b_scales, const f32* bias, u32 rows, u32 cols, u32 tiles, u32 accumulates) {                   \
        product<C, ROWS, COLS, DOWN, ACROSS, STAGES, BLOCKS>(c, a, a_scales, b, b_scales, bias, rows, cols, tiles,   \
                                                             accumulates);                                           \
    }

PRODUCTS(f32, true)
PRODUCTS(bf16, true)
PRODUCTS(f32, false)
