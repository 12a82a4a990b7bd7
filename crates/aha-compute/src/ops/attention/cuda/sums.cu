// What goes with attention: products of gradients and results, sums for shared rows, and pages of a cache.
#include "aha.cuh"

// delta = do . o of each head, by a warp; with `rounded`, a copy of do in bf16.
template <typename D, typename T>
__device__ __forceinline__ void deltas(f32* delta, bf16* rounded, const D* do_, const T* o, u32 head_count, u32 width) {
    u32 head = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (head >= head_count) return;
    u64 at = u64(head) * width;
    f32 sum = 0.0f;
    for (u32 c = threadIdx.x % WARP; c < width; c += WARP) {
        f32 x = to_f32(do_[at + c]);
        if (rounded) {
            rounded[at + c] = round_bf16(x);
            x = to_f32(rounded[at + c]);
        }
        sum = __fmaf_rn(x, to_f32(o[at + c]), sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[head] = sum;
}

// Adds what was put aside to the gradients of shared rows. A block has a row: four numbers say which, its position, and
// where in `firsts` the rows are that segments have put aside for position 0, and how many; they are added in order.
__device__ __forceinline__ void add_aside(f32* to, const f32* aside, const u32* rows, const u32* firsts, u32 len) {
    Sixteen row = load16(rows + 4 * blockIdx.x);
    to += u64(row.words[0]) * len;
    firsts += row.words[2];
    for (u32 c = threadIdx.x; c < len; c += blockDim.x) {
        f32 sum = to[c];
#pragma unroll 4
        for (u32 i = 0; i < row.words[3]; ++i) sum = __fadd_rn(sum, aside[u64(firsts[i] + row.words[1]) * len + c]);
        to[c] = sum;
    }
}

constexpr u32 NONE = 0xffffffffu;

// Copies rows of keys (y = 0) and of values (y = 1) to their slots, but for those that have none.
template <typename T>
__device__ __forceinline__ void append(T* k_slots, T* v_slots, const T* k, const T* v, const u32* slots, u32 len) {
    constexpr u32 CHUNK = 16 / sizeof(T);
    if (slots[blockIdx.x] == NONE) return;
    const T* from = (blockIdx.y == 0 ? k : v) + u64(blockIdx.x) * len;
    T* to = (blockIdx.y == 0 ? k_slots : v_slots) + u64(slots[blockIdx.x]) * len;
    for (u32 c = threadIdx.x * CHUNK; c < len; c += blockDim.x * CHUNK) store16(to + c, load16(from + c));
}

// Copies pages of all layers: pairs of pages, from and to; y is the layer's keys or values, `layer_len` apart.
template <typename T>
__device__ __forceinline__ void copy_pages(T* cache, const u32* pairs, u64 layer_len, u32 page_len) {
    constexpr u32 CHUNK = 16 / sizeof(T);
    const T* from = cache + blockIdx.y * layer_len + u64(pairs[2 * blockIdx.x]) * page_len;
    T* to = cache + blockIdx.y * layer_len + u64(pairs[2 * blockIdx.x + 1]) * page_len;
    for (u32 c = threadIdx.x * CHUNK; c < page_len; c += blockDim.x * CHUNK) store16(to + c, load16(from + c));
}

#define DELTAS(D, T)                                                                                             \
    KERNEL(256, attention_deltas_##D##_##T, f32* delta, bf16* rounded, const D* do_, const T* o, u32 head_count, \
           u32 width) {                                                                                          \
        deltas<D, T>(delta, rounded, do_, o, head_count, width);                                                 \
    }

DELTAS(f32, f32)
DELTAS(f32, bf16)
DELTAS(bf16, bf16)

KERNEL(256, attention_add_aside, f32* dk, f32* dv, const f32* aside, const u32* rows, const u32* firsts, u64 aside_len,
       u32 len) {
    add_aside(blockIdx.y == 0 ? dk : dv, blockIdx.y == 0 ? aside : aside + aside_len, rows, firsts, len);
}

#define PAGES(T)                                                                                                   \
    KERNEL(256, attention_append_##T, T* k_slots, T* v_slots, const T* k, const T* v, const u32* slots, u32 len) { \
        append<T>(k_slots, v_slots, k, v, slots, len);                                                             \
    }                                                                                                              \
    KERNEL(256, attention_copy_pages_##T, T* cache, const u32* pairs, u64 layer_len, u32 page_len) {               \
        copy_pages<T>(cache, pairs, layer_len, page_len);                                                          \
    }

PAGES(f32)
PAGES(bf16)
