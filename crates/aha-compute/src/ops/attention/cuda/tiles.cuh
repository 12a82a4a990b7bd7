// What the kernels of attention share; formulas and buffers are in attention.rs, the order of sums is in cuda.rs.
#include "aha.cuh"

constexpr u32 PAGE_LEN = 16;
constexpr u32 NONE = 0xffffffffu;
constexpr f32 LOG2_E = 1.44269504088896340736f;

// Rows that a block computes: consecutive queries of a sequence, times the heads of a group. Row i is query i / group
// and head i % group.
struct Item {
    // Of query 0: its row in the batch, and its position.
    u32 row, position;
    // The rows, counted from those of query 0.
    u32 from, end;
    // Where the sequence's page ids begin.
    u32 keys;
    // Tiles of keys by position; in the backward pass of keys, `tile` alone.
    u32 tile, tile_end;
    // Where what is not the final result goes; NONE if it is the final one.
    u32 aside;

    // One without rows fills a list up; its block leaves at once.
    __device__ __forceinline__ bool is_nothing() const { return from == end; }
};

__device__ __forceinline__ Item load_item(const u32* items) {
    Sixteen a = load16(items + 8 * blockIdx.x), b = load16(items + 8 * blockIdx.x + 4);
    return Item{a.words[0], a.words[1], a.words[2], a.words[3], b.words[0], b.words[1], b.words[2], b.words[3]};
}

// Heads, and where a sequence's keys are.
struct Heads {
    u32 kv_heads, group, kv_head;

    // Where row i of an item is among all heads of queries.
    __device__ __forceinline__ u64 of(const Item& item, u32 i) const {
        return u64(item.row + i / group) * (kv_heads * group) + kv_head * group + i % group;
    }
};

struct Keys {
    // The pages of a sequence, from position 0 on.
    const u32* pages;
    // The row of each slot; null where slots are rows.
    const u32* slot_rows;

    // Where the key at a position is among all heads of keys.
    __device__ __forceinline__ u64 of(const Heads& heads, u32 position) const {
        u32 slot = pages[position / PAGE_LEN] * PAGE_LEN + position % PAGE_LEN;
        return u64(slot_rows ? slot_rows[slot] : slot) * heads.kv_heads + heads.kv_head;
    }
};

// The softmax of a row so far: the greatest product, the sum of weights relative to it.
struct Softmax {
    f32 max = NEGATIVE_INFINITY, sum = 0.0f;
};

// What sums so far, and those of a tile, are multiplied by when they are added.
struct Factors {
    f32 before, now;
};

// No keys have no weight, whatever they are relative to.
__device__ __forceinline__ f32 base(f32 max) { return max == NEGATIVE_INFINITY ? 0.0f : max; }

// Adds a tile. A tile without visible keys changes no bit.
__device__ __forceinline__ Factors add_tile(Softmax& all, f32 max, f32 sum, f32 scale_log2) {
    f32 top = fmaxf(all.max, max);
    f32 before = exp2_fast(__fmul_rn(__fsub_rn(all.max, base(top)), scale_log2));
    f32 now = exp2_fast(__fmul_rn(__fsub_rn(max, base(top)), scale_log2));
    all.max = top;
    all.sum = __fmaf_rn(sum, now, __fmul_rn(all.sum, before));
    return Factors{before, now};
}

__device__ __forceinline__ f32 added(f32 all, f32 tile, Factors by) {
    return __fmaf_rn(tile, by.now, __fmul_rn(all, by.before));
}

// The weight of a product s relative to the greatest.
__device__ __forceinline__ f32 weight(f32 s, f32 max, f32 scale_log2) {
    return exp2_fast(__fmaf_rn(s, scale_log2, -__fmul_rn(base(max), scale_log2)));
}

__device__ __forceinline__ f32 nats(const Softmax& all, f32 scale) { return __fmaf_rn(all.max, scale, logf(all.sum)); }

// Where the gradients of a key at a position go: to the sums of the segment that an item is of, or aside.
__device__ __forceinline__ u64 gradient_row(const Item& item, u32 shared_end, u32 position) {
    return position < shared_end ? item.aside + position : item.row + position - item.position;
}
