// Attention on tensor cores, of packed rows and of a cache's pages.
// Compiled behind tiles.cuh, squares.cuh.
//
// One tile of sixty-four keys: s = q k of a warp's rows, weights relative to the tile's own maximum, their sum, and the
// values that they mix. Tiles are added in order. Which warp or block computes a tile changes no bit of it, so a block
// may have many rows and take tiles one after the other (rows), or have few rows and take as many tiles at once as it
// has warps (decode), or leave adding to another kernel (decode, join).

// Rows of a warp: TILES times sixteen.
template <u32 TILES>
struct Products {
    f32 s[TILES][TILE_KEYS / 8][4];
    // Of rows lane / 4 and lane / 4 + 8.
    f32 max[TILES][2], sum[TILES][2];
};

// s = q k, with rows of `q` and of `k` in shared memory.
template <u32 D, u32 TILES>
__device__ __forceinline__ void multiply(Products<TILES>& to, bf16* q, bf16* k) {
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
        for (u32 n = 0; n < TILE_KEYS / 8; ++n) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) to.s[t][n][e] = 0.0f;
        }
    }
#pragma unroll
    for (u32 step = 0; step < D / 16; ++step) {
        u32 left[TILES][4];
#pragma unroll
        for (u32 t = 0; t < TILES; ++t) load_left<D>(left[t], q, 16 * t, step);
#pragma unroll
        for (u32 pair = 0; pair < TILE_KEYS / 16; ++pair) {
            u32 right[4];
            load_right<D>(right, k, 16 * pair, step);
#pragma unroll
            for (u32 t = 0; t < TILES; ++t) {
                multiply_add(to.s[t][2 * pair], left[t], right[0], right[1]);
                multiply_add(to.s[t][2 * pair + 1], left[t], right[2], right[3]);
            }
        }
    }
}

// Products to weights; a row at position p sees keys up to p.
template <u32 TILES>
__device__ __forceinline__ void weigh(Products<TILES>& to, const int (&positions)[TILES][2], u32 first_key,
                                      f32 scale_log2) {
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            // The last key of the tile that the row sees, and that from this lane's first column on.
            int last = positions[t][half] - int(first_key), last_of_lane = last - int(column_of(0));
            if (last < int(TILE_KEYS) - 1) {
#pragma unroll
                for (u32 n = 0; n < TILE_KEYS / 8; ++n) {
#pragma unroll
                    for (u32 e = 0; e < 2; ++e) {
                        if (int(8 * n + e) > last_of_lane) to.s[t][n][2 * half + e] = NEGATIVE_INFINITY;
                    }
                }
            }
            f32 max = NEGATIVE_INFINITY;
#pragma unroll
            for (u32 n = 0; n < TILE_KEYS / 8; ++n) {
#pragma unroll
                for (u32 e = 2 * half; e < 2 * half + 2; ++e) max = fmaxf(max, to.s[t][n][e]);
            }
            max = quad_max(max);
            f32 sum = 0.0f;
            f32 offset = -__fmul_rn(base(max), scale_log2);
#pragma unroll
            for (u32 n = 0; n < TILE_KEYS / 8; ++n) {
#pragma unroll
                for (u32 e = 2 * half; e < 2 * half + 2; ++e) {
                    f32 x = exp2_fast(__fmaf_rn(to.s[t][n][e], scale_log2, offset));
                    to.s[t][n][e] = x;
                    sum = __fadd_rn(sum, x);
                }
            }
            to.max[t][half] = max;
            to.sum[t][half] = quad_sum(sum);
        }
    }
}

// Calls `take(pair, mixed)` for each sixteen columns of the mixed values.
template <u32 D, u32 TILES, typename F>
__device__ __forceinline__ void mix(const Products<TILES>& weights, bf16* v, F take) {
    u32 left[TILES][TILE_KEYS / 16][4];
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
        for (u32 step = 0; step < TILE_KEYS / 16; ++step) left_of(left[t][step], weights.s[t], step);
    }
#pragma unroll
    for (u32 pair = 0; pair < D / 16; ++pair) {
        f32 mixed[TILES][2][4] = {};
#pragma unroll
        for (u32 step = 0; step < TILE_KEYS / 16; ++step) {
            u32 right[4];
            load_right_rows<D>(right, v, 16 * step, pair);
#pragma unroll
            for (u32 t = 0; t < TILES; ++t) {
                multiply_add(mixed[t][0], left[t][step], right[0], right[1]);
                multiply_add(mixed[t][1], left[t][step], right[2], right[3]);
            }
        }
        take(pair, mixed);
    }
}

constexpr u32 ROW_WARPS = 4;
constexpr u32 ROW_THREADS = ROW_WARPS * WARP;

// Tiles of sixteen rows of a warp: more would not fit its registers.
template <u32 D>
constexpr u32 ROW_TILES = D == 64 ? 2 : 1;
template <u32 D>
constexpr u32 BLOCK_ROWS = ROW_WARPS * ROW_TILES<D> * 16;

// What a block of `rows` keeps of a row in shared memory, so that more of a warp's registers are free for products.
struct RowState {
    Softmax all;
    int position;
};

// What a warp of `rows` has of its result.
template <u32 D>
struct Result {
    static constexpr u32 TILES = ROW_TILES<D>;
    f32 o[TILES][D / 8][4];
};

// Divides, and stores through the shared memory of the warp's queries, which nobody needs any more.
template <u32 D>
__device__ __forceinline__ void store_rows(const Result<D>& from, const RowState* states, bf16* o, f32* lse, bf16* q,
                                           const Heads& heads, const Item& item, u32 first, f32 scale) {
    constexpr u32 TILES = ROW_TILES<D>;
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 row = 16 * t + lane() / QUAD + 8 * half;
            Softmax all = states[row].all;
            if (lse && lane() % QUAD == 0 && first + row < item.end)
                lse[heads.of(item, first + row)] = nats(all, scale);
            f32 share = __fdiv_rn(1.0f, all.sum);
#pragma unroll
            for (u32 n = 0; n < D / 8; ++n) {
                f32 x = __fmul_rn(from.o[t][n][2 * half], share), y = __fmul_rn(from.o[t][n][2 * half + 1], share);
                *reinterpret_cast<u32*>(chunk_of<D>(q, row, n) + column_of(0)) = pack_bf16(x, y);
            }
        }
    }
    __syncwarp();
    constexpr u32 CHUNKS = D / CHUNK;
#pragma unroll 1
    for (u32 i = lane(); i < TILES * 16 * CHUNKS; i += WARP) {
        u32 row = i / CHUNKS, chunk = i % CHUNKS;
        if (first + row >= item.end) break;
        store16(o + heads.of(item, first + row) * D + chunk * CHUNK, load16(chunk_of<D>(q, row, chunk)));
    }
}

// Rows of an item, a warp for each TILES times sixteen. Tiles of keys are copied while the one before is computed.
template <u32 D>
__device__ __forceinline__ void rows(bf16* o, f32* lse, const bf16* q, const bf16* k, const bf16* v, const u32* items,
                                     const u32* page_ids, const u32* slot_rows, Heads heads, f32 scale) {
    constexpr u32 TILES = ROW_TILES<D>;
    SHARED_MEMORY(bf16, memory);
    __shared__ RowState row_states[BLOCK_ROWS<D>];
    bf16 *q_tile = memory, *kv_tiles = memory + BLOCK_ROWS<D> * D;
    constexpr u32 TILE_LEN = TILE_KEYS * D;
    Item item = load_item(items);
    if (item.is_nothing()) return;
    Keys keys{page_ids + item.keys, slot_rows};
    u32 key_end = item.position + (item.end - 1) / heads.group + 1;
    f32 scale_log2 = scale * LOG2_E;
    auto start = [&](u32 tile) {
        bf16* to = kv_tiles + tile % 2 * 2 * TILE_LEN;
        start_keys<D, ROW_THREADS>(to, k, threadIdx.x, heads, keys, tile, key_end);
        start_keys<D, ROW_THREADS>(to + TILE_LEN, v, threadIdx.x, heads, keys, tile, key_end);
    };
    start_queries<D, BLOCK_ROWS<D>, ROW_THREADS>(q_tile, q, heads, item, item.from);
    start(item.tile);
    end_copies();
    u32 first = threadIdx.x / WARP * TILES * 16;
    bf16* own = q_tile + first * D;
    first += item.from;
    RowState* states = row_states + (first - item.from);
    u32 own_row = first + lane();
    if (lane() < 16 * TILES) {
        states[lane()] = RowState{Softmax{}, own_row < item.end ? int(item.position + own_row / heads.group) : -1};
    }
    Result<D> result;
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
        for (u32 n = 0; n < D / 8; ++n) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) result.o[t][n][e] = 0.0f;
        }
    }
    for (u32 tile = item.tile; tile < item.tile_end; ++tile) {
        if (tile + 1 < item.tile_end) start(tile + 1);
        end_copies();
        wait_copies<1>();
        __syncthreads();
        bf16* k_tile = kv_tiles + tile % 2 * 2 * TILE_LEN;
        Products<TILES> products;
        multiply<D>(products, own, k_tile);
        int positions[TILES][2];
#pragma unroll
        for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                positions[t][half] = states[16 * t + lane() / QUAD + 8 * half].position;
        }
        weigh(products, positions, tile * TILE_KEYS, scale_log2);
        Factors by[TILES][2];
#pragma unroll
        for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                Softmax& state = states[16 * t + lane() / QUAD + 8 * half].all;
                Softmax all = state;
                by[t][half] = add_tile(all, products.max[t][half], products.sum[t][half], scale_log2);
                __syncwarp();
                if (lane() % QUAD == 0) state = all;
            }
        }
        mix<D>(products, k_tile + TILE_LEN, [&](u32 pair, const f32(&mixed)[TILES][2][4]) {
#pragma unroll
            for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
                for (u32 e = 0; e < 8; ++e) {
                    f32& to = result.o[t][2 * pair + e / 4][e % 4];
                    to = added(to, mixed[t][e / 4][e % 4], by[t][e % 4 / 2]);
                }
            }
        });
        __syncthreads();
    }
    store_rows<D>(result, states, o, lse, own, heads, item, first, scale);
}

constexpr u32 FEW_ROWS = 16;

// Where the parts of an item with few rows are that aren't added yet: a softmax and D sums for each row, by tile and
// head.
struct Parts {
    f32 *sums, *softmax;
    u32 row_count;

    __device__ __forceinline__ u64 at(const Item& item, const Heads& heads, u32 tile, u32 row) const {
        return item.aside + (u64(tile) * heads.kv_heads + heads.kv_head) * row_count + row;
    }
};

// A thread's share of the rows' sums: columns FOUR * (share + SHARES i) of one row.
template <u32 D, u32 THREADS>
struct Share {
    static constexpr u32 FOUR = 4;
    static constexpr u32 SHARES = THREADS / FEW_ROWS;
    static constexpr u32 COUNT = D / FOUR / SHARES;
    f32 o[COUNT][FOUR] = {};
    Softmax all;

    __device__ __forceinline__ static u32 row() { return threadIdx.x / SHARES; }
    __device__ __forceinline__ static u32 column(u32 i) { return FOUR * (threadIdx.x % SHARES + SHARES * i); }

    // Adds a tile's row.
    __device__ __forceinline__ void add(const f32* sums, f32 max, f32 sum, f32 scale_log2) {
        Factors by = add_tile(all, max, sum, scale_log2);
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            Sixteen four = load16(sums + column(i));
#pragma unroll
            for (u32 e = 0; e < FOUR; ++e) o[i][e] = added(o[i][e], __uint_as_float(four.words[e]), by);
        }
    }

    __device__ __forceinline__ void store(bf16* o_to, f32* lse, const Heads& heads, const Item& item, f32 scale) const {
        u64 head = heads.of(item, item.from + row());
        if (lse && threadIdx.x % SHARES == 0) lse[head] = nats(all, scale);
        f32 share = __fdiv_rn(1.0f, all.sum);
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            u32* to = reinterpret_cast<u32*>(o_to + head * D + column(i));
#pragma unroll
            for (u32 e = 0; e < FOUR; e += 2) {
                to[e / 2] = pack_bf16(__fmul_rn(o[i][e], share), __fmul_rn(o[i][e + 1], share));
            }
        }
    }
};

// Up to sixteen rows of an item; each of KEY_WARPS warps has a tile of keys to itself at a time.
template <u32 D, u32 KEY_WARPS>
__device__ __forceinline__ void decode(bf16* o, f32* lse, f32* part_sums, f32* part_softmax, const bf16* q,
                                       const bf16* k, const bf16* v, const u32* items, const u32* page_ids,
                                       const u32* slot_rows, Heads heads, f32 scale) {
    constexpr u32 THREADS = KEY_WARPS * WARP;
    constexpr u32 TILE_LEN = TILE_KEYS * D;
    SHARED_MEMORY(bf16, memory);
    __shared__ f32 softmax[KEY_WARPS][FEW_ROWS][2];
    u32 warp = threadIdx.x / WARP;
    bf16 *q_tile = memory, *k_tile = memory + FEW_ROWS * D + warp * 2 * TILE_LEN;
    Item item = load_item(items);
    if (item.is_nothing()) return;
    Keys keys{page_ids + item.keys, slot_rows};
    u32 key_end = item.position + (item.end - 1) / heads.group + 1;
    f32 scale_log2 = scale * LOG2_E;
    u32 row_count = item.end - item.from;
    Parts parts{part_sums, part_softmax, row_count};
    int positions[1][2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        u32 row = lane() / QUAD + 8 * half;
        positions[0][half] = row < row_count ? int(item.position + (item.from + row) / heads.group) : -1;
    }
    start_queries<D, FEW_ROWS, THREADS>(q_tile, q, heads, item, item.from);
    end_copies();
    wait_copies<0>();
    __syncthreads();
    Share<D, THREADS> share;
    for (u32 first = item.tile; first < item.tile_end; first += KEY_WARPS) {
        u32 tile = first + warp;
        if (tile < item.tile_end) {
            start_keys<D, WARP>(k_tile, k, lane(), heads, keys, tile, key_end);
            end_copies();
            start_keys<D, WARP>(k_tile + TILE_LEN, v, lane(), heads, keys, tile, key_end);
            end_copies();
            wait_copies<1>();
            __syncwarp();
            Products<1> products;
            multiply<D>(products, q_tile, k_tile);
            weigh(products, positions, tile * TILE_KEYS, scale_log2);
            wait_copies<0>();
            __syncwarp();
            // The keys' memory takes the sums.
            f32* sums = reinterpret_cast<f32*>(k_tile);
            mix<D>(products, k_tile + TILE_LEN, [&](u32 pair, const f32(&mixed)[1][2][4]) {
#pragma unroll
                for (u32 e = 0; e < 8; ++e) {
                    u32 row = lane() / QUAD + e % 4 / 2 * 8;
                    sums[row * D + 16 * pair + e / 4 * 8 + column_of(e)] = mixed[0][e / 4][e % 4];
                }
            });
            if (lane() % QUAD == 0) {
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    softmax[warp][lane() / QUAD + 8 * half][0] = products.max[0][half];
                    softmax[warp][lane() / QUAD + 8 * half][1] = products.sum[0][half];
                }
            }
        }
        __syncthreads();
        u32 row = share.row();
        if (row < row_count) {
            for (u32 i = 0; i < KEY_WARPS && first + i < item.tile_end; ++i) {
                const f32* sums = reinterpret_cast<const f32*>(memory + FEW_ROWS * D + i * 2 * TILE_LEN) + row * D;
                if (item.aside == NONE) {
                    share.add(sums, softmax[i][row][0], softmax[i][row][1], scale_log2);
                    continue;
                }
                u64 at = parts.at(item, heads, first + i, row);
                if (threadIdx.x % share.SHARES < 2)
                    part_softmax[2 * at + threadIdx.x % share.SHARES] = softmax[i][row][threadIdx.x % share.SHARES];
#pragma unroll
                for (u32 c = 0; c < share.COUNT; ++c) {
                    store16(part_sums + at * D + share.column(c), load16(sums + share.column(c)));
                }
            }
        }
        __syncthreads();
    }
    if (item.aside == NONE && share.row() < row_count) share.store(o, lse, heads, item, scale);
}

// Adds the parts of items, from tile 0 to `tile_end`.
template <u32 D>
__device__ __forceinline__ void join(bf16* o, f32* lse, f32* part_sums, f32* part_softmax, const u32* items,
                                     Heads heads, f32 scale) {
    Item item = load_item(items);
    if (item.is_nothing()) return;
    Parts parts{part_sums, part_softmax, item.end - item.from};
    Share<D, ROW_THREADS> share;
    u32 row = share.row();
    if (row >= parts.row_count) return;
#pragma unroll 4
    for (u32 tile = 0; tile < item.tile_end; ++tile) {
        u64 at = parts.at(item, heads, tile, row);
        share.add(part_sums + at * D, part_softmax[2 * at], part_softmax[2 * at + 1], scale * LOG2_E);
    }
    share.store(o, lse, heads, item, scale);
}

#define FORWARD(D, KEY_WARPS)                                                                                          \
    KERNEL(ROW_THREADS, attention_rows_##D, bf16* o, f32* lse, const bf16* q, const bf16* k, const bf16* v,            \
           const u32* items, const u32* page_ids, const u32* slot_rows, u32 kv_heads, u32 group, f32 scale) {          \
        rows<D>(o, lse, q, k, v, items, page_ids, slot_rows, Heads{kv_heads, group, blockIdx.y}, scale);               \
    }                                                                                                                  \
    KERNEL(KEY_WARPS* WARP, attention_decode_##D, bf16* o, f32* lse, f32* part_sums, f32* part_softmax, const bf16* q, \
           const bf16* k, const bf16* v, const u32* items, const u32* page_ids, const u32* slot_rows, u32 kv_heads,    \
           u32 group, f32 scale) {                                                                                     \
        Heads heads{kv_heads, group, blockIdx.y};                                                                      \
        decode<D, KEY_WARPS>(o, lse, part_sums, part_softmax, q, k, v, items, page_ids, slot_rows, heads, scale);      \
    }                                                                                                                  \
    KERNEL(ROW_THREADS, attention_join_##D, bf16* o, f32* lse, f32* part_sums, f32* part_softmax, const u32* items,    \
           u32 kv_heads, u32 group, f32 scale) {                                                                       \
        join<D>(o, lse, part_sums, part_softmax, items, Heads{kv_heads, group, blockIdx.y}, scale);                    \
    }

FORWARD(64, 4)
FORWARD(128, 2)
