// Products on tensor cores: tiles of bf16 in shared memory, and fragments of them in registers.

constexpr u32 TILE_KEYS = 64;
// Elements of sixteen bytes.
constexpr u32 CHUNK = 8;
constexpr u32 QUAD = 4;

// Sixteen bytes of a row of a tile of width D. Chunks of a row are exchanged so that eight rows' chunks of the same
// index, which are read at once, are in different banks.
template <u32 D>
__device__ __forceinline__ bf16* chunk_of(bf16* tile, u32 row, u32 chunk) {
    return tile + row * D + (chunk ^ row % 8) * CHUNK;
}

__device__ __forceinline__ u32 lane() { return threadIdx.x % WARP; }

// As chunk_of for row `row` of those from `first` on, a multiple of eight, and chunk 2 step + odd. Written so that what
// changes from step to step is one operation with a constant.
template <u32 D>
__device__ __forceinline__ bf16* chunk_of_step(bf16* tile, u32 first, u32 row, u32 step, u32 odd) {
    return tile + first * D + ((row * D + (odd ^ row % 8) * CHUNK) ^ 2 * step * CHUNK);
}

// Fragments of a (16, 16): rows from `first` on.
template <u32 D>
__device__ __forceinline__ void load_left(u32 (&to)[4], bf16* tile, u32 first, u32 step) {
    load_squares(to, chunk_of_step<D>(tile, first, lane() % 16, step, lane() / 16));
}

// Fragments of two b (16, 8), whose columns are the tile's rows from `first` on: for products over D.
template <u32 D>
__device__ __forceinline__ void load_right(u32 (&to)[4], bf16* tile, u32 first, u32 step) {
    load_squares(to, chunk_of_step<D>(tile, first, lane() / 16 * 8 + lane() % 8, step, lane() / 8 % 2));
}

// Fragments of two b (16, 8), whose rows are the tile's from `first` on: for sums over rows.
template <u32 D>
__device__ __forceinline__ void load_right_rows(u32 (&to)[4], bf16* tile, u32 first, u32 pair) {
    load_squares_transposed(to, chunk_of_step<D>(tile, first, lane() / 8 % 2 * 8 + lane() % 8, pair, lane() / 16));
}

// Fragment `step` of a (16, 16 STEPS) made of results (16, 8) side by side.
template <u32 N>
__device__ __forceinline__ void left_of(u32 (&to)[4], const f32 (&c)[N][4], u32 step) {
    to[0] = pack_bf16(c[2 * step][0], c[2 * step][1]);
    to[1] = pack_bf16(c[2 * step][2], c[2 * step][3]);
    to[2] = pack_bf16(c[2 * step + 1][0], c[2 * step + 1][1]);
    to[3] = pack_bf16(c[2 * step + 1][2], c[2 * step + 1][3]);
}

// The column of a (16, 8) result that element e of this lane is in; its row is lane / 4 + e / 2 * 8.
__device__ __forceinline__ u32 column_of(u32 e) { return lane() % QUAD * 2 + e % 2; }

// Lanes that have parts of a row.
__device__ __forceinline__ f32 quad_max(f32 x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ f32 quad_sum(f32 x) {
    x = __fadd_rn(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return __fadd_rn(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// Starts copies of ROWS rows by THREADS threads, of which this is `thread`; zeros for those that aren't there. `place`
// says which head a row is, or NOWHERE.
constexpr u64 NOWHERE = ~u64(0);

template <u32 D, u32 ROWS, u32 THREADS, typename F>
__device__ __forceinline__ void start_rows(bf16* tile, const bf16* from, u32 thread, F place) {
    constexpr u32 CHUNKS = D / CHUNK;
    constexpr u32 STEP = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && ROWS % STEP == 0, "threads have the same chunk of rows that are STEP apart");
    u32 chunk = thread % CHUNKS;
#pragma unroll 4
    for (u32 row = thread / CHUNKS; row < ROWS; row += STEP) {
        u64 head = place(row);
        bool is_there = head != NOWHERE;
        copy16_async(chunk_of<D>(tile, row, chunk), from + (is_there ? head * D + chunk * CHUNK : 0), is_there);
    }
}

// Starts copies of a tile of keys and of values.
template <u32 D, u32 THREADS>
__device__ __forceinline__ void start_keys(bf16* to, const bf16* from, u32 thread, const Heads& heads, Keys keys,
                                           u32 tile, u32 key_end) {
    start_rows<D, TILE_KEYS, THREADS>(to, from, thread, [&](u32 row) {
        u32 position = tile * TILE_KEYS + row;
        return position < key_end ? keys.of(heads, position) : NOWHERE;
    });
}

template <u32 D, u32 ROWS, u32 THREADS>
__device__ __forceinline__ void start_queries(bf16* to, const bf16* from, const Heads& heads, const Item& item,
                                              u32 first) {
    start_rows<D, ROWS, THREADS>(
        to, from, threadIdx.x, [&](u32 row) { return first + row < item.end ? heads.of(item, first + row) : NOWHERE; });
}
