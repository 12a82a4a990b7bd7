// Draws a token from each row of logits, as aha-sample's `Drawer` does: the same token for the same logits.
//
// A block of threads has a row. Sums that decide are in f64 and in the processor's order, so one thread adds them up.
// Top-k and top-p go through candidates likeliest first, equals by id: a candidate's key is its weight above the
// inverted id, so no two are the same, and the next CHUNK of them are selected by their bytes and sorted, which is once
// for all but the flattest distributions.
#include "aha.cuh"

constexpr u32 THREADS = 512;
constexpr u32 BLOCK_LEN = 512;
constexpr u32 CHUNK = 4096;
constexpr u32 NOTHING = 0xffffffffu;

struct Row {
    const f32* logits;
    u32 cols;
    f32 inv_temperature, max, log_sum;

    __device__ __forceinline__ f32 logit(u32 id) const { return __fmul_rn(logits[id], inv_temperature); }
    __device__ __forceinline__ f32 weight(u32 id) const { return exp_as_cpu(__fsub_rn(logit(id), max)); }
    // 0 where it weighs nothing.
    __device__ __forceinline__ u64 key(u32 id) const {
        f32 w = weight(id);
        return w > 0.0f ? u64(__float_as_uint(w)) << 32 | u32(~id) : 0;
    }
};

__device__ __forceinline__ f32 weight_of(u64 key) { return __uint_as_float(u32(key >> 32)); }
__device__ __forceinline__ u32 id_of(u64 key) { return ~u32(key); }

// What the threads of a block share.
struct Shared {
    u64 keys[CHUNK];
    u32 counts[256];
    u64 prefix, held_below;
    u32 remaining, count, result;
    bool is_done;
};

// The CHUNK-th greatest key below `below`, byte by byte from the top; there are more than CHUNK.
__device__ u64 nth_key(Shared& shared, const Row& row, u64 below) {
    if (threadIdx.x == 0) shared.prefix = 0, shared.remaining = CHUNK;
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < 256; i += THREADS) shared.counts[i] = 0;
        __syncthreads();
        u64 prefix = shared.prefix;
        for (u32 id = threadIdx.x; id < row.cols; id += THREADS) {
            u64 key = row.key(id);
            bool is_in = key && key < below && (shift == 56 || (key >> (shift + 8)) == prefix);
            if (is_in) atomicAdd(&shared.counts[(key >> shift) & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x != 0) continue;
        u32 byte = 255;
        while (shared.counts[byte] < shared.remaining) shared.remaining -= shared.counts[byte--];
        shared.prefix = prefix << 8 | byte;
    }
    __syncthreads();
    return shared.prefix;
}

// Sorts the keys, greatest first.
__device__ void sort(Shared& shared) {
    for (u32 size = 2; size <= CHUNK; size *= 2) {
        for (u32 apart = size / 2; apart > 0; apart /= 2) {
            for (u32 pair = threadIdx.x; pair < CHUNK / 2; pair += THREADS) {
                u32 low = pair / apart * 2 * apart + pair % apart, high = low + apart;
                u64 a = shared.keys[low], b = shared.keys[high];
                bool rises = low & size;
                if (rises ? a > b : a < b) shared.keys[low] = b, shared.keys[high] = a;
            }
            __syncthreads();
        }
    }
}

// Sets `keys` to the greatest ones below `below`, sorted. Returns how many there are, the same in all threads.
__device__ u32 select(Shared& shared, const Row& row, u64 below) {
    if (shared.held_below == below) return shared.count;
    __syncthreads();
    if (threadIdx.x == 0) shared.count = 0;
    __syncthreads();
    u32 own = 0;
    for (u32 id = threadIdx.x; id < row.cols; id += THREADS) {
        u64 key = row.key(id);
        own += key && key < below;
    }
    atomicAdd(&shared.count, own);
    __syncthreads();
    u64 least = shared.count > CHUNK ? nth_key(shared, row, below) : 1;
    __syncthreads();
    if (threadIdx.x == 0) shared.count = 0;
    for (u32 i = threadIdx.x; i < CHUNK; i += THREADS) shared.keys[i] = 0;
    __syncthreads();
    for (u32 id = threadIdx.x; id < row.cols; id += THREADS) {
        u64 key = row.key(id);
        if (key >= least && key < below) shared.keys[atomicAdd(&shared.count, 1u)] = key;
    }
    __syncthreads();
    sort(shared);
    if (threadIdx.x == 0) shared.held_below = below;
    __syncthreads();
    return shared.count;
}

// Thread 0 calls `visit` with the `limit` likeliest candidates in order, until it returns true.
template <typename F>
__device__ void walk(Shared& shared, const Row& row, u32 limit, F visit) {
    u64 below = ~0ull;
    for (u32 seen = 0; seen < limit;) {
        u32 count = select(shared, row, below);
        if (count == 0) return;
        if (threadIdx.x == 0) {
            shared.is_done = false;
            for (u32 i = 0; i < count && seen + i < limit && !shared.is_done; ++i)
                shared.is_done = visit(shared.keys[i]);
        }
        __syncthreads();
        if (shared.is_done) break;
        below = shared.keys[count - 1];
        seen += count;
        __syncthreads();
    }
    __syncthreads();
}

// The greatest logit's index; the lowest of equals.
__device__ u32 likeliest(Shared& shared, const Row& row) {
    if (threadIdx.x == 0) shared.result = NOTHING;
    __syncthreads();
    for (u32 id = threadIdx.x; id < row.cols; id += THREADS) {
        if (row.logit(id) == row.max) atomicMin(&shared.result, id);
    }
    __syncthreads();
    return shared.result == NOTHING ? 0 : shared.result;
}

// The block of BLOCK_LEN logits in which the running sum of weights exceeds `unit` of their total; `left` is how far
// into it.
__device__ __forceinline__ u32 pick_block(const f64* block_sums, u32 blocks, f64 unit, f64& left) {
    f64 total = 0.0;
    for (u32 i = 0; i < blocks; ++i) total += block_sums[i];
    f64 rest = __dmul_rn(unit, total);
    u32 block = 0;
    left = 0.0;
    for (u32 i = 0; i < blocks; ++i) {
        if (!(block_sums[i] > 0.0)) continue;
        block = i, left = rest;
        rest -= block_sums[i];
        if (rest < 0.0) break;
    }
    return block;
}

// The first token at which the running sum of all weights exceeds `unit` of their total.
__device__ u32 pick_of_all(Shared& shared, const Row& row, const f64* block_sums, f64 unit) {
    f32* weights = reinterpret_cast<f32*>(shared.keys);
    f64 left = 0.0;
    if (threadIdx.x == 0) {
        shared.result = pick_block(block_sums, (row.cols + BLOCK_LEN - 1) / BLOCK_LEN, unit, left) * BLOCK_LEN;
    }
    __syncthreads();
    u32 first = shared.result, id = first + threadIdx.x;
    weights[threadIdx.x] = id < row.cols ? row.weight(id) : 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 last = 0;
        for (u32 i = 0; i < BLOCK_LEN; ++i) {
            if (!(weights[i] > 0.0f)) continue;
            last = first + i;
            left -= f64(weights[i]);
            if (left < 0.0) break;
        }
        shared.result = last;
    }
    __syncthreads();
    return shared.result;
}

// How many candidates top-k and top-p leave, and the sum of their weights, which is right in thread 0.
__device__ u32 keep(Shared& shared, const Row& row, const f64* block_sums, u32 top_k, f32 top_p, f64& total) {
    u32 limit = top_k ? top_k : row.cols;
    total = 0.0;
    if (top_k) {
        walk(shared, row, limit, [&](u64 key) {
            total += f64(weight_of(key));
            return false;
        });
    } else if (threadIdx.x == 0) {
        for (u32 i = 0; i < (row.cols + BLOCK_LEN - 1) / BLOCK_LEN; ++i) total += block_sums[i];
    }
    if (top_p >= 1.0f) return limit;
    f64 least = __dmul_rn(f64(top_p), total), sum = 0.0;
    u32 count = 0;
    walk(shared, row, limit, [&](u64 key) {
        ++count;
        sum += f64(weight_of(key));
        return sum >= least;
    });
    total = sum;
    if (threadIdx.x == 0) shared.remaining = count;
    __syncthreads();
    return shared.remaining;
}

__device__ u32 pick_of_kept(Shared& shared, const Row& row, const f64* block_sums, u32 top_k, f32 top_p, f64 unit) {
    f64 total;
    u32 limit = keep(shared, row, block_sums, top_k, top_p, total);
    f64 left = __dmul_rn(unit, total);
    u32 last = 0;
    walk(shared, row, limit, [&](u64 key) {
        last = id_of(key);
        left -= f64(weight_of(key));
        return left < 0.0;
    });
    if (threadIdx.x == 0) shared.result = last;
    __syncthreads();
    return shared.result;
}

// ids and log_probs of the drawn tokens, one to a block; one whose `forced` isn't NOTHING takes that. A draw has the
// address (prompts, samples, positions), and is from row `rows - first_row`, or its own. `top_k` 0 keeps all.
KERNEL(512, draw, u32* ids, f32* log_probs, const f32* logits, const f32* stats, const f64* block_sums,
       const u64* prompts, const u64* samples, const u64* positions, const u32* forced, const u32* rows, u32 first_row,
       u32 cols, f32 inv_temperature, u64 seed, u32 takes_likeliest, u32 top_k, f32 top_p) {
    __shared__ Shared shared;
    if (threadIdx.x == 0) shared.held_below = 0;
    __syncthreads();
    u32 at = blockIdx.x, of = rows ? rows[at] - first_row : at;
    Row row{logits + u64(of) * cols, cols, inv_temperature, stats[3 * of], stats[3 * of + 1]};
    const f64* sums = block_sums + u64(of) * ((cols + BLOCK_LEN - 1) / BLOCK_LEN);
    u32 id = forced ? forced[at] : NOTHING;
    if (id == NOTHING) {
        f64 unit = takes_likeliest ? 0.0 : uniform(seed, prompts[at], samples[at], positions[at]);
        if (takes_likeliest) {
            id = likeliest(shared, row);
        } else if (top_k == 0 && top_p >= 1.0f) {
            id = pick_of_all(shared, row, sums, unit);
        } else {
            id = pick_of_kept(shared, row, sums, top_k, top_p, unit);
        }
    }
    if (threadIdx.x != 0) return;
    ids[at] = id;
    log_probs[at] = __fsub_rn(__fsub_rn(row.logit(id), row.max), row.log_sum);
}
