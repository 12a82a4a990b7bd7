// A number of the bits of a buffer. Sums of integers are the same in any order.
#include "aha.cuh"

constexpr u32 THREADS = 256;
// Words of a block.
constexpr u64 BLOCK_LEN = 1 << 14;

// Bits that depend on all bits of a word and of its place (splitmix64).
__device__ __forceinline__ u64 mixed(u32 word, u64 at) {
    u64 x = (at + 1) * 0x9e3779b97f4a7c15ull + word;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// sums[block] = the sum over BLOCK_LEN words.
KERNEL(256, checksums, u64* sums, const u32* x, u64 len) {
    __shared__ u64 held[THREADS];
    u64 first = blockIdx.x * BLOCK_LEN, end = min(first + BLOCK_LEN, len);
    u64 sum = 0;
    for (u64 at = first + threadIdx.x; at < end; at += THREADS) sum += mixed(x[at], at);
    held[threadIdx.x] = sum;
    for (u32 apart = THREADS / 2; apart > 0; apart /= 2) {
        __syncthreads();
        if (threadIdx.x < apart) held[threadIdx.x] += held[threadIdx.x + apart];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = held[0];
}
