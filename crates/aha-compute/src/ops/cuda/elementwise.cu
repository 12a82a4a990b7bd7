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

// sum = x_0 + x_1 + … in this order; each of `count` parts of x begins `stride` elements behind the one before.
KERNEL(256, sum_parts_f32, f32* sum, const f32* x, u64 len, u64 stride, u32 count) {
    f32 held[EIGHT], more[EIGHT];
    load_flat(held, x, flat_at(), len);
    for (u32 part = 1; part < count; ++part) {
        load_flat(more, x + part * stride, flat_at(), len);
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) held[i] += more[i];
    }
    store_flat(sum, flat_at(), len, held);
}

// values *= factor
KERNEL(256, scale_f32, f32* values, u64 len, f32 factor) {
    f32 held[EIGHT];
    load_flat(held, values, flat_at(), len);
    for (u32 i = 0; i < EIGHT; ++i) held[i] *= factor;
    store_flat(values, flat_at(), len, held);
}
