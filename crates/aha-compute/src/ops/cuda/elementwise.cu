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
