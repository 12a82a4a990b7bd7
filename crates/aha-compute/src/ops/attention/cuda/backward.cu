// Gradients of attention on tensor cores.
// Compiled behind tiles.cuh, squares.cuh.
//
// A block has a tile of sixty-four keys and goes through the rows that see it in order (keys), or has sixty-four rows
// and goes through the tiles of keys in order (queries). Nobody else adds to its sums. Each of its four warps has
// sixteen of its keys or rows; what it goes through is copied while the one before is computed.

constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 SIDE = WARPS * 16;

template <u32 N>
__device__ __forceinline__ void clear(f32 (&c)[N][4]) {
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) c[n][e] = 0.0f;
    }
}

// a += x y and b += z w over D, with sixteen rows of `x` and `z` and 16 PAIRS of `y` and `w`.
template <u32 D, u32 PAIRS>
__device__ __forceinline__ void multiply_both(f32 (&a)[2 * PAIRS][4], f32 (&b)[2 * PAIRS][4], bf16* x, bf16* y, bf16* z,
                                              bf16* w) {
#pragma unroll
    for (u32 step = 0; step < D / 16; ++step) {
        u32 left[4], right[4];
        load_left<D>(left, x, 0, step);
#pragma unroll
        for (u32 pair = 0; pair < PAIRS; ++pair) {
            load_right<D>(right, y, 16 * pair, step);
            multiply_add(a[2 * pair], left, right[0], right[1]);
            multiply_add(a[2 * pair + 1], left, right[2], right[3]);
        }
        load_left<D>(left, z, 0, step);
#pragma unroll
        for (u32 pair = 0; pair < PAIRS; ++pair) {
            load_right<D>(right, w, 16 * pair, step);
            multiply_add(b[2 * pair], left, right[0], right[1]);
            multiply_add(b[2 * pair + 1], left, right[2], right[3]);
        }
    }
}

// sums (16, D) += weights (16, 8 N) rows, in the order of the rows.
template <u32 D, u32 N>
__device__ __forceinline__ void mix(f32 (&sums)[D / 8][4], const f32 (&weights)[N][4], bf16* rows) {
#pragma unroll
    for (u32 step = 0; step < N / 2; ++step) {
        u32 left[4], right[4];
        left_of(left, weights, step);
#pragma unroll
        for (u32 pair = 0; pair < D / 16; ++pair) {
            load_right_rows<D>(right, rows, 16 * step, pair);
            multiply_add(sums[2 * pair], left, right[0], right[1]);
            multiply_add(sums[2 * pair + 1], left, right[2], right[3]);
        }
    }
}

// Of a row: log2 of the softmax's sum, delta, and the position, -1 if there is no such row.
struct Row {
    f32 lse_log2, delta;
    int position;
};

__device__ __forceinline__ Row row_of(const Heads& heads, const Item& item, u32 i, const f32* lse, const f32* delta) {
    if (i >= item.end) return Row{0.0f, 0.0f, -1};
    u64 head = heads.of(item, i);
    return Row{__fmul_rn(lse[head], LOG2_E), delta[head], int(item.position + i / heads.group)};
}

// A product and the product of the gradient with the value, to the weight and to its slope over the scale.
__device__ __forceinline__ void slope(f32& s, f32& dp, const Row& row, int key, f32 scale_log2) {
    bool is_seen = key <= row.position;
    s = is_seen ? exp2_fast(__fmaf_rn(s, scale_log2, -row.lse_log2)) : 0.0f;
    dp = is_seen ? __fmul_rn(s, __fsub_rn(dp, row.delta)) : 0.0f;
}

template <u32 D>
__device__ __forceinline__ void queries(f32* dq, const bf16* do_, const bf16* q, const bf16* k, const bf16* v,
                                        const f32* lse, const f32* delta, const u32* items, const u32* page_ids,
                                        const u32* slot_rows, Heads heads, f32 scale) {
    constexpr u32 LEN = SIDE * D;
    SHARED_MEMORY(bf16, memory);
    bf16 *q_tile = memory, *do_tile = memory + LEN, *kv_tiles = memory + 2 * LEN;
    Item item = load_item(items);
    Keys keys{page_ids + item.keys, slot_rows};
    u32 key_end = item.position + (item.end - 1) / heads.group + 1;
    auto start = [&](u32 tile) {
        bf16* to = kv_tiles + tile % 2 * 2 * LEN;
        start_keys<D, THREADS>(to, k, threadIdx.x, heads, keys, tile, key_end);
        start_keys<D, THREADS>(to + LEN, v, threadIdx.x, heads, keys, tile, key_end);
    };
    start_queries<D, SIDE, THREADS>(q_tile, q, heads, item, item.from);
    start_queries<D, SIDE, THREADS>(do_tile, do_, heads, item, item.from);
    start(item.tile);
    end_copies();
    u32 own = threadIdx.x / WARP * 16, first = item.from + own + lane() / QUAD;
    Row own_rows[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) own_rows[half] = row_of(heads, item, first + 8 * half, lse, delta);
    f32 sums[D / 8][4];
    clear(sums);
    for (u32 tile = item.tile; tile < item.tile_end; ++tile) {
        if (tile + 1 < item.tile_end) start(tile + 1);
        end_copies();
        wait_copies<1>();
        __syncthreads();
        bf16* k_tile = kv_tiles + tile % 2 * 2 * LEN;
        f32 s[SIDE / 8][4], dp[SIDE / 8][4];
        clear(s);
        clear(dp);
        multiply_both<D, SIDE / 16>(s, dp, q_tile + own * D, k_tile, do_tile + own * D, k_tile + LEN);
#pragma unroll
        for (u32 n = 0; n < SIDE / 8; ++n) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                slope(s[n][e], dp[n][e], own_rows[e / 2], int(tile * SIDE + 8 * n + column_of(e)), scale * LOG2_E);
            }
        }
        mix<D>(sums, dp, k_tile);
        __syncthreads();
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        if (first + 8 * half >= item.end) continue;
        f32* to = dq + heads.of(item, first + 8 * half) * D + column_of(0);
#pragma unroll
        for (u32 n = 0; n < D / 8; ++n) {
#pragma unroll
            for (u32 e = 0; e < 2; ++e) to[8 * n + e] = __fmul_rn(scale, sums[n][2 * half + e]);
        }
    }
}

// Rows whose products with the warp's keys are in registers at a time.
constexpr u32 PART = 32;

template <u32 D>
__device__ __forceinline__ void keys(f32* dk, f32* dv, f32* aside, const bf16* do_, const bf16* q, const bf16* k,
                                     const bf16* v, const f32* lse, const f32* delta, const u32* items,
                                     const u32* page_ids, const u32* slot_rows, u64 aside_len, Heads heads, f32 scale) {
    constexpr u32 LEN = SIDE * D;
    SHARED_MEMORY(bf16, memory);
    __shared__ Row row_data[2][SIDE];
    bf16 *k_tile = memory, *v_tile = memory + LEN, *row_tiles = memory + 2 * LEN;
    Item item = load_item(items);
    Keys keys{page_ids + item.keys, slot_rows};
    u32 key_end = item.position + (item.end - 1) / heads.group + 1;
    auto start = [&](u32 first) {
        u32 stage = (first - item.from) / SIDE % 2;
        bf16* to = row_tiles + stage * 2 * LEN;
        start_queries<D, SIDE, THREADS>(to, q, heads, item, first);
        start_queries<D, SIDE, THREADS>(to + LEN, do_, heads, item, first);
        if (threadIdx.x < SIDE) row_data[stage][threadIdx.x] = row_of(heads, item, first + threadIdx.x, lse, delta);
    };
    start_keys<D, THREADS>(k_tile, k, threadIdx.x, heads, keys, item.tile, key_end);
    start_keys<D, THREADS>(v_tile, v, threadIdx.x, heads, keys, item.tile, key_end);
    start(item.from);
    end_copies();
    u32 own = threadIdx.x / WARP * 16;
    u32 position = item.tile * SIDE + own + lane() / QUAD;
    f32 dk_sums[D / 8][4], dv_sums[D / 8][4];
    clear(dk_sums);
    clear(dv_sums);
    for (u32 first = item.from; first < item.end; first += SIDE) {
        if (first + SIDE < item.end) start(first + SIDE);
        end_copies();
        wait_copies<1>();
        __syncthreads();
        u32 stage = (first - item.from) / SIDE % 2;
#pragma unroll 1
        for (u32 part = 0; part < SIDE; part += PART) {
            bf16 *q_rows = row_tiles + stage * 2 * LEN + part * D, *do_rows = q_rows + LEN;
            f32 s[PART / 8][4], dp[PART / 8][4];
            clear(s);
            clear(dp);
            multiply_both<D, PART / 16>(s, dp, k_tile + own * D, q_rows, v_tile + own * D, do_rows);
#pragma unroll
            for (u32 n = 0; n < PART / 8; ++n) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    const Row& row = row_data[stage][part + 8 * n + column_of(e)];
                    slope(s[n][e], dp[n][e], row, int(position + e / 2 * 8), scale * LOG2_E);
                }
            }
            mix<D>(dv_sums, s, do_rows);
            mix<D>(dk_sums, dp, q_rows);
        }
        __syncthreads();
    }
    u32 shared_end = item.tile_end;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        u32 p = position + 8 * half;
        if (p >= key_end) continue;
        u64 at = (gradient_row(item, shared_end, p) * heads.kv_heads + heads.kv_head) * D + column_of(0);
        f32* dk_to = (p < shared_end ? aside : dk) + at;
        f32* dv_to = (p < shared_end ? aside + aside_len : dv) + at;
#pragma unroll
        for (u32 n = 0; n < D / 8; ++n) {
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                dk_to[8 * n + e] = __fmul_rn(scale, dk_sums[n][2 * half + e]);
                dv_to[8 * n + e] = dv_sums[n][2 * half + e];
            }
        }
    }
}

#define BACKWARD(D)                                                                                               \
    KERNEL(THREADS, attention_backward_queries_##D, f32* dq, const bf16* do_, const bf16* q, const bf16* k,       \
           const bf16* v, const f32* lse, const f32* delta, const u32* items, const u32* page_ids,                \
           const u32* slot_rows, u32 kv_heads, u32 group, f32 scale) {                                            \
        Heads heads{kv_heads, group, blockIdx.y};                                                                 \
        queries<D>(dq, do_, q, k, v, lse, delta, items, page_ids, slot_rows, heads, scale);                       \
    }                                                                                                             \
    KERNEL(THREADS, attention_backward_keys_##D, f32* dk, f32* dv, f32* aside, const bf16* do_, const bf16* q,    \
           const bf16* k, const bf16* v, const f32* lse, const f32* delta, const u32* items, const u32* page_ids, \
           const u32* slot_rows, u64 aside_len, u32 kv_heads, u32 group, f32 scale) {                             \
        Heads heads{kv_heads, group, blockIdx.y};                                                                 \
        keys<D>(dk, dv, aside, do_, q, k, v, lse, delta, items, page_ids, slot_rows, aside_len, heads, scale);    \
    }

BACKWARD(64)
BACKWARD(128)
