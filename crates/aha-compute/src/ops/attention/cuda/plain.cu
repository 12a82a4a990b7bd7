// Attention for heads of any width up to 256, in f32 arithmetic: sixteen rows against tiles of sixteen keys.
//
// 256 threads: thread 16 a + b has the product of row a and key b, and columns b, b + 16, ... of row (or key) a.
// Compiled behind tiles.cuh.

constexpr u32 SIDE = 16;
constexpr u32 COLUMNS_MAX = 16;

// Threads of a side: the sum or maximum over the second index.
__device__ __forceinline__ f32 side_sum(f32 x) {
#pragma unroll
    for (u32 apart = SIDE / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

__device__ __forceinline__ f32 side_max(f32 x) {
#pragma unroll
    for (u32 apart = SIDE / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

// A square of rows in shared memory, with rows apart by an odd number so that their banks differ.
struct Rows {
    f32* at;
    u32 width;

    __device__ __forceinline__ f32* row(u32 i) const { return at + i * (width + 1); }
    __device__ __forceinline__ static u32 len(u32 width) { return SIDE * (width + 1); }
};

// A row of each side's threads, zeros if there is none.
template <typename T>
__device__ __forceinline__ void fill(Rows to, u32 i, const T* from, u64 head, bool is_there) {
    for (u32 c = threadIdx.x % SIDE; c < to.width; c += SIDE) {
        to.row(i)[c] = is_there ? to_f32(from[head * to.width + c]) : 0.0f;
    }
}

template <typename T>
__device__ __forceinline__ void fill_rows(Rows to, const T* from, const Heads& heads, const Item& item, u32 first) {
    u32 a = threadIdx.x / SIDE;
    bool is_there = first + a < item.end;
    fill(to, a, from, is_there ? heads.of(item, first + a) : 0, is_there);
}

template <typename T>
__device__ __forceinline__ void fill_keys(Rows to, const T* from, const Heads& heads, Keys keys, u32 tile,
                                          u32 key_end) {
    u32 a = threadIdx.x / SIDE, position = tile * SIDE + a;
    bool is_there = position < key_end;
    fill(to, a, from, is_there ? keys.of(heads, position) : 0, is_there);
}

__device__ __forceinline__ f32 dot(const f32* a, const f32* b, u32 width) {
    f32 sum = 0.0f;
    for (u32 c = 0; c < width; ++c) sum = __fmaf_rn(a[c], b[c], sum);
    return sum;
}

// sums[i] += weights . column b + 16 i of the rows; weights are `stride` apart.
__device__ __forceinline__ void mix(f32 (&sums)[COLUMNS_MAX], const f32* weights, u32 stride, Rows rows) {
#pragma unroll
    for (u32 i = 0; i < COLUMNS_MAX; ++i) {
        u32 c = threadIdx.x % SIDE + SIDE * i;
        if (c >= rows.width) break;
        for (u32 k = 0; k < SIDE; ++k) sums[i] = __fmaf_rn(weights[k * stride], rows.row(k)[c], sums[i]);
    }
}

template <typename T>
__device__ __forceinline__ void forward(T* o, f32* lse, const T* q, const T* k, const T* v, const u32* items,
                                        const u32* page_ids, const u32* slot_rows, Heads heads, u32 width, f32 scale) {
    SHARED_MEMORY(f32, memory);
    Rows q_rows{memory, width}, k_rows{memory + Rows::len(width), width}, v_rows{memory + 2 * Rows::len(width), width};
    f32* weights = memory + 3 * Rows::len(width);
    Item item = load_item(items);
    if (item.is_nothing()) return;
    Keys keys{page_ids + item.keys, slot_rows};
    u32 a = threadIdx.x / SIDE, b = threadIdx.x % SIDE;
    u32 i = item.from + a, key_end = item.position + (item.end - 1) / heads.group + 1;
    u32 position = item.position + i / heads.group;
    f32 scale_log2 = scale * LOG2_E;
    Softmax all;
    f32 out[COLUMNS_MAX] = {};
    fill_rows(q_rows, q, heads, item, item.from);
    for (u32 tile = item.tile; tile < item.tile_end; ++tile) {
        fill_keys(k_rows, k, heads, keys, tile, key_end);
        fill_keys(v_rows, v, heads, keys, tile, key_end);
        __syncthreads();
        f32 s = tile * SIDE + b <= position ? dot(q_rows.row(a), k_rows.row(b), width) : NEGATIVE_INFINITY;
        f32 max = side_max(s), e = weight(s, max, scale_log2);
        f32 sum = side_sum(e);
        weights[a * SIDE + b] = e;
        __syncthreads();
        f32 mixed[COLUMNS_MAX] = {};
        mix(mixed, weights + a * SIDE, 1, v_rows);
        Factors by = add_tile(all, max, sum, scale_log2);
#pragma unroll
        for (u32 c = 0; c < COLUMNS_MAX; ++c) out[c] = added(out[c], mixed[c], by);
        __syncthreads();
    }
    if (i >= item.end) return;
    u64 head = heads.of(item, i);
    if (lse && b == 0) lse[head] = nats(all, scale);
#pragma unroll
    for (u32 c = 0; c < COLUMNS_MAX; ++c) {
        u32 column = b + SIDE * c;
        if (column < width) o[head * width + column] = from_f32<T>(__fdiv_rn(out[c], all.sum));
    }
}

// The weight of a row and a key, and the gradient of their product over the scale.
struct Pair {
    f32 p, ds;
};

__device__ __forceinline__ Pair pair(const f32* q, const f32* k, const f32* do_, const f32* v, f32 lse, f32 delta,
                                     u32 width, f32 scale) {
    f32 p = exp2_fast(__fmaf_rn(dot(q, k, width), scale * LOG2_E, -__fmul_rn(lse, LOG2_E)));
    return Pair{p, p * (dot(do_, v, width) - delta)};
}

template <typename T>
__device__ __forceinline__ void backward_queries(f32* dq, const T* do_, const T* q, const T* k, const T* v,
                                                 const f32* lse, const f32* delta, const u32* items,
                                                 const u32* page_ids, const u32* slot_rows, Heads heads, u32 width,
                                                 f32 scale) {
    SHARED_MEMORY(f32, memory);
    u32 len = Rows::len(width);
    Rows q_rows{memory, width}, do_rows{memory + len, width}, k_rows{memory + 2 * len, width},
        v_rows{memory + 3 * len, width};
    f32* slopes = memory + 4 * len;
    Item item = load_item(items);
    Keys keys{page_ids + item.keys, slot_rows};
    u32 a = threadIdx.x / SIDE, b = threadIdx.x % SIDE;
    u32 i = item.from + a, key_end = item.position + (item.end - 1) / heads.group + 1;
    u32 position = item.position + i / heads.group;
    bool is_there = i < item.end;
    u64 head = is_there ? heads.of(item, i) : 0;
    f32 own_lse = is_there ? lse[head] : 0.0f, own_delta = is_there ? delta[head] : 0.0f;
    f32 sums[COLUMNS_MAX] = {};
    fill_rows(q_rows, q, heads, item, item.from);
    fill_rows(do_rows, do_, heads, item, item.from);
    for (u32 tile = item.tile; tile < item.tile_end; ++tile) {
        fill_keys(k_rows, k, heads, keys, tile, key_end);
        fill_keys(v_rows, v, heads, keys, tile, key_end);
        __syncthreads();
        f32 ds = 0.0f;
        if (is_there && tile * SIDE + b <= position) {
            ds = pair(q_rows.row(a), k_rows.row(b), do_rows.row(a), v_rows.row(b), own_lse, own_delta, width, scale).ds;
        }
        slopes[a * SIDE + b] = ds;
        __syncthreads();
        mix(sums, slopes + a * SIDE, 1, k_rows);
        __syncthreads();
    }
    if (!is_there) return;
#pragma unroll
    for (u32 c = 0; c < COLUMNS_MAX; ++c) {
        if (b + SIDE * c < width) dq[head * width + b + SIDE * c] = scale * sums[c];
    }
}

template <typename T>
__device__ __forceinline__ void backward_keys(f32* dk, f32* dv, f32* aside, const T* do_, const T* q, const T* k,
                                              const T* v, const f32* lse, const f32* delta, const u32* items,
                                              const u32* page_ids, const u32* slot_rows, u64 aside_len, Heads heads,
                                              u32 width, f32 scale) {
    SHARED_MEMORY(f32, memory);
    u32 len = Rows::len(width);
    Rows q_rows{memory, width}, do_rows{memory + len, width}, k_rows{memory + 2 * len, width},
        v_rows{memory + 3 * len, width};
    f32 *weights = memory + 4 * len, *slopes = weights + SIDE * SIDE;
    Item item = load_item(items);
    u32 shared_end = item.tile_end;
    Keys keys{page_ids + item.keys, slot_rows};
    u32 a = threadIdx.x / SIDE, b = threadIdx.x % SIDE;
    u32 key_end = item.position + (item.end - 1) / heads.group + 1;
    f32 dk_sums[COLUMNS_MAX] = {}, dv_sums[COLUMNS_MAX] = {};
    fill_keys(k_rows, k, heads, keys, item.tile, key_end);
    fill_keys(v_rows, v, heads, keys, item.tile, key_end);
    for (u32 first = item.from; first < item.end; first += SIDE) {
        fill_rows(q_rows, q, heads, item, first);
        fill_rows(do_rows, do_, heads, item, first);
        __syncthreads();
        u32 i = first + a;
        Pair own{0.0f, 0.0f};
        if (i < item.end && item.tile * SIDE + b <= item.position + i / heads.group) {
            u64 head = heads.of(item, i);
            own =
                pair(q_rows.row(a), k_rows.row(b), do_rows.row(a), v_rows.row(b), lse[head], delta[head], width, scale);
        }
        weights[a * SIDE + b] = own.p;
        slopes[a * SIDE + b] = own.ds;
        __syncthreads();
        mix(dv_sums, weights + a, SIDE, do_rows);
        mix(dk_sums, slopes + a, SIDE, q_rows);
        __syncthreads();
    }
    u32 position = item.tile * SIDE + a;
    if (position >= key_end) return;
    u64 at = (gradient_row(item, shared_end, position) * heads.kv_heads + heads.kv_head) * width;
    f32* dk_to = position < shared_end ? aside : dk;
    f32* dv_to = position < shared_end ? aside + aside_len : dv;
#pragma unroll
    for (u32 c = 0; c < COLUMNS_MAX; ++c) {
        u32 column = b + SIDE * c;
        if (column >= width) break;
        dk_to[at + column] = scale * dk_sums[c];
        dv_to[at + column] = dv_sums[c];
    }
}

#define PLAIN(T)                                                                                                       \
    KERNEL(256, attention_plain_forward_##T, T* o, f32* lse, const T* q, const T* k, const T* v, const u32* items,     \
           const u32* page_ids, const u32* slot_rows, u32 kv_heads, u32 group, u32 width, f32 scale) {                 \
        Heads heads{kv_heads, group, blockIdx.y};                                                                      \
        forward<T>(o, lse, q, k, v, items, page_ids, slot_rows, heads, width, scale);                                  \
    }                                                                                                                  \
    KERNEL(256, attention_plain_backward_queries_##T, f32* dq, const T* do_, const T* q, const T* k, const T* v,       \
           const f32* lse, const f32* delta, const u32* items, const u32* page_ids, const u32* slot_rows,              \
           u32 kv_heads, u32 group, u32 width, f32 scale) {                                                            \
        Heads heads{kv_heads, group, blockIdx.y};                                                                      \
        backward_queries<T>(dq, do_, q, k, v, lse, delta, items, page_ids, slot_rows, heads, width, scale);            \
    }                                                                                                                  \
    KERNEL(256, attention_plain_backward_keys_##T, f32* dk, f32* dv, f32* aside, const T* do_, const T* q, const T* k, \
           const T* v, const f32* lse, const f32* delta, const u32* items, const u32* page_ids, const u32* slot_rows,  \
           u64 aside_len, u32 kv_heads, u32 group, u32 width, f32 scale) {                                             \
        Heads heads{kv_heads, group, blockIdx.y};                                                                      \
        backward_keys<T>(dk, dv, aside, do_, q, k, v, lse, delta, items, page_ids, slot_rows, aside_len, heads, width, \
                         scale);                                                                                       \
    }

PLAIN(f32)
PLAIN(bf16)
