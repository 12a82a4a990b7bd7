// Kernels with and without faults, for the emulation's own tests.
#include "aha.cuh"

// to[i] = from[n - 1 - i] through shared memory, in blocks of 64.
template <bool HAS_BARRIER>
__device__ void reverse(u32* to, const u32* from) {
    __shared__ u32 block[64];
    block[threadIdx.x] = from[blockIdx.x * 64 + threadIdx.x];
    if (HAS_BARRIER) __syncthreads();
    to[(gridDim.x - 1 - blockIdx.x) * 64 + threadIdx.x] = block[63 - threadIdx.x];
}

KERNEL(64, reverse_right, u32* to, const u32* from) { reverse<true>(to, from); }
KERNEL(64, reverse_racing, u32* to, const u32* from) { reverse<false>(to, from); }

KERNEL(64, diverging, u32* to) {
    if (threadIdx.x < 40) __syncthreads();
    to[threadIdx.x] = 1;
}

KERNEL(64, two_barriers, u32* to) {
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    to[threadIdx.x] = 1;
}

KERNEL(64, half_a_warp, f32* to) {
    if (threadIdx.x % 32 < 16) to[threadIdx.x] = warp_sum(1.0f);
}

KERNEL(64, misaligned, f32* to) {
    f32 x[EIGHT];
    load8(x, to + 1);
    store8(to, x);
}

KERNEL(64, past_the_end, u32* to, u32 len) { to[len] = 7; }

KERNEL(256, sums, f32* to, const f32* from, u32* votes) {
    u32 at = blockIdx.x * 256 + threadIdx.x;
    f32* dynamic = nullptr;
    {
        SHARED_MEMORY(f32, memory);
        dynamic = memory;
    }
    dynamic[threadIdx.x] = from[at];
    __syncthreads();
    f32 sum = block_sum<256>(dynamic[255 - threadIdx.x]);
    if (threadIdx.x == 0) to[blockIdx.x] = sum;
    u32 vote = __ballot_sync(ALL_LANES, from[at] > 0.0f);
    u32 above = __shfl_down_sync(ALL_LANES, threadIdx.x, 1);
    if (threadIdx.x % WARP == 0) votes[at / WARP] = vote + above * 0;
    if (above != (threadIdx.x % WARP == 31 ? threadIdx.x : threadIdx.x + 1)) to[blockIdx.x] = NOT_A_NUMBER;
}

KERNEL(32, exponentials, f32* to, const f32* from, u32 len) {
    for (u32 i = threadIdx.x; i < len; i += 32) to[i] = exp_as_cpu(from[i]);
}

// Copies eight rows of sixteen bytes, zeros instead of the odd ones, and perhaps waits for them.
template <bool WAITS>
__device__ void copy_rows(u32* to, const u32* from) {
    __shared__ __align__(16) u32 rows[32];
    if (threadIdx.x < 8) copy16_async(rows + 4 * threadIdx.x, from + 4 * threadIdx.x, threadIdx.x % 2 == 0);
    end_copies();
    if (WAITS) wait_copies<0>();
    __syncwarp();
    to[threadIdx.x] = rows[threadIdx.x];
}

KERNEL(32, copies_waiting, u32* to, const u32* from) { copy_rows<true>(to, from); }
KERNEL(32, copies_hurrying, u32* to, const u32* from) { copy_rows<false>(to, from); }

// c (16, 8) = a (16, 16) b (16, 8); b is given by columns (8, 16), or by rows (16, 8).
KERNEL(32, product, f32* c, const bf16* a, const bf16* b, u32 by_rows) {
    __shared__ __align__(16) bf16 memory[16 * 16 + 16 * 8 * 2];
    bf16* b_at = memory + 16 * 16;
    for (u32 i = threadIdx.x; i < 16 * 16; i += 32) memory[i] = a[i];
    for (u32 i = threadIdx.x; i < 16 * 8; i += 32) b_at[i] = b_at[16 * 8 + i] = b[i];
    __syncwarp();
    u32 lane = threadIdx.x, left[4], right[4];
    load_squares(left, memory + lane % 16 * 16 + lane / 16 * 8);
    if (by_rows) {
        load_squares_transposed(right, b_at + lane * 8);
    } else {
        load_squares(right, b_at + lane % 8 * 16 + lane / 8 * 8 % 16);
    }
    f32 sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    multiply_add(sums, left, right[0], right[1]);
    for (u32 i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}
