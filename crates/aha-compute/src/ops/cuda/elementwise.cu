// Element by element, eight to a thread.
#include "aha.cuh"

#define CONVERT(Y, X)                                           \
    KERNEL(256, convert_##Y##_##X, Y* y, const X* x, u64 len) { \
        f32 held[EIGHT];                                        \
        load_flat(held, x, flat_at(), len);                     \
        store_flat(y, flat_at(), len, held);                    \
    }

CONVERT(bf16, f32)
CONVERT(f32, bf16)

// sum += x
#define ADD(X)                                              \
    KERNEL(256, add_##X, f32* sum, const X* x, u64 len) {   \
        f32 held[EIGHT], more[EIGHT];                       \
        load_flat(held, sum, flat_at(), len);               \
        load_flat(more, x, flat_at(), len);                 \
        for (u32 i = 0; i < EIGHT; ++i) held[i] += more[i]; \
        store_flat(sum, flat_at(), len, held);              \
    }

ADD(f32)
ADD(bf16)

// values *= factor
KERNEL(256, scale_f32, f32* values, u64 len, f32 factor) {
    f32 held[EIGHT];
    load_flat(held, values, flat_at(), len);
    for (u32 i = 0; i < EIGHT; ++i) held[i] *= factor;
    store_flat(values, flat_at(), len, held);
}

// The last steps of SplitMix64 (Steele, Lea and Flood 2014): numbers that differ have other results.
__device__ __forceinline__ u64 scrambled(u64 x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

// *sum += the sum of a number for each element, which its place and its bits make: in any order the same.
KERNEL(256, checksum, u64* sum, const f32* x, u64 len) {
    __shared__ u64 of_block;
    if (threadIdx.x == 0) of_block = 0;
    __syncthreads();
    u64 own = 0;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < len; i += u64(gridDim.x) * blockDim.x)
        own += scrambled(i << 32 | __float_as_uint(x[i]));
    atomicAdd(&of_block, own);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(sum, of_block);
}
