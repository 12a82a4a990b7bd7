// SwiGLU's gating; formulas are in swiglu.rs. Eight elements to a thread; bits are the processor's.
#include "aha.cuh"

template <typename X>
__device__ __forceinline__ void forward(X* y, const X* gate, const X* up, u64 len) {
    f32 g[EIGHT], u[EIGHT];
    load_flat(g, gate, flat_at(), len);
    load_flat(u, up, flat_at(), len);
#pragma unroll
    for (u32 i = 0; i < EIGHT; ++i) g[i] = __fmul_rn(__fmul_rn(g[i], sigmoid(g[i])), u[i]);
    store_flat(y, flat_at(), len, g);
}

template <typename D, typename X>
__device__ __forceinline__ void backward(D* dgate, D* dup, const D* dy, const X* gate, const X* up, u64 len) {
    f32 d[EIGHT], g[EIGHT], u[EIGHT];
    load_flat(d, dy, flat_at(), len);
    load_flat(g, gate, flat_at(), len);
    load_flat(u, up, flat_at(), len);
#pragma unroll
    for (u32 i = 0; i < EIGHT; ++i) {
        f32 s = sigmoid(g[i]);
        f32 slope = __fmul_rn(s, __fmaf_rn(g[i], __fsub_rn(1.0f, s), 1.0f));
        u[i] = __fmul_rn(__fmul_rn(d[i], u[i]), slope);
        d[i] = __fmul_rn(d[i], __fmul_rn(g[i], s));
    }
    store_flat(dup, flat_at(), len, d);
    store_flat(dgate, flat_at(), len, u);
}

#define FORWARD(X) \
    KERNEL(256, swiglu_forward_##X, X* y, const X* gate, const X* up, u64 len) { forward<X>(y, gate, up, len); }

#define BACKWARD(D, X)                                                                                           \
    KERNEL(256, swiglu_backward_##D##_##X, D* dgate, D* dup, const D* dy, const X* gate, const X* up, u64 len) { \
        backward<D, X>(dgate, dup, dy, gate, up, len);                                                           \
    }

FORWARD(f32)
FORWARD(bf16)
BACKWARD(f32, f32)
BACKWARD(f32, bf16)
BACKWARD(bf16, bf16)
