// What all kernels share: types, loads of eight elements, sums with a fixed order.
//
// A kernel is written as KERNEL(THREADS_MAX, NAME, PARAMETERS...) { ... }. Dynamic shared memory is
// SHARED_MEMORY(T, NAME).
// With AHA_EMULATED the same source runs on the processor (aha-emulate).
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

#ifdef AHA_EMULATED
#include "emulate.h"
#else
#define KERNEL(threads_max, name, ...) extern "C" __global__ __launch_bounds__(threads_max) void name(__VA_ARGS__)
#define SHARED_MEMORY(type, name)                                  \
    extern __shared__ __align__(16) unsigned char shared_memory[]; \
    type* name = reinterpret_cast<type*>(shared_memory)
#endif

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 EIGHT = 8;

#define NEGATIVE_INFINITY __uint_as_float(0xff800000u)
#define NOT_A_NUMBER __uint_as_float(0x7fc00000u)

// The upper half of an f32.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ f32 to_f32(f32 x) { return x; }
__device__ __forceinline__ f32 to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Rounds to nearest, ties to even; a NaN stays one.
__device__ __forceinline__ bf16 round_bf16(f32 x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{u16((bits >> 16) | 0x40u)};
    return bf16{u16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <typename T>
__device__ __forceinline__ T from_f32(f32 x);
template <>
__device__ __forceinline__ f32 from_f32<f32>(f32 x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(f32 x) {
    return round_bf16(x);
}

// Sixteen bytes, moved at once: the address must be a multiple of 16.
struct __align__(16) Sixteen {
    u32 words[4];
};

__device__ __forceinline__ Sixteen load16(const void* from) {
#ifdef AHA_EMULATED
    emulated::check_aligned(from, 16);
#endif
    return *reinterpret_cast<const Sixteen*>(from);
}

__device__ __forceinline__ void store16(void* to, Sixteen x) {
#ifdef AHA_EMULATED
    emulated::check_aligned(to, 16);
#endif
    *reinterpret_cast<Sixteen*>(to) = x;
}

// Eight elements from an address that is a multiple of 16.
__device__ __forceinline__ void load8(f32 (&x)[EIGHT], const f32* from) {
    Sixteen low = load16(from), high = load16(from + 4);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        x[i] = __uint_as_float(low.words[i]);
        x[4 + i] = __uint_as_float(high.words[i]);
    }
}

__device__ __forceinline__ void load8(f32 (&x)[EIGHT], const bf16* from) {
    Sixteen both = load16(from);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        x[2 * i] = __uint_as_float(both.words[i] << 16);
        x[2 * i + 1] = __uint_as_float(both.words[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ void store8(f32* to, const f32 (&x)[EIGHT]) {
    Sixteen low, high;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        low.words[i] = __float_as_uint(x[i]);
        high.words[i] = __float_as_uint(x[4 + i]);
    }
    store16(to, low);
    store16(to + 4, high);
}

__device__ __forceinline__ void store8(bf16* to, const f32 (&x)[EIGHT]) {
    Sixteen both;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        both.words[i] = u32(round_bf16(x[2 * i]).bits) | u32(round_bf16(x[2 * i + 1]).bits) << 16;
    }
    store16(to, both);
}

// Eight elements of a row from `at` on, zeros behind its end. WHOLE: the row's length is a multiple of eight.
template <bool WHOLE, typename T>
__device__ __forceinline__ void load_part(f32 (&x)[EIGHT], const T* row, u32 at, u32 len) {
    if constexpr (WHOLE) {
        if (at < len) {
            load8(x, row + at);
        } else {
#pragma unroll
            for (u32 i = 0; i < EIGHT; ++i) x[i] = 0.0f;
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) x[i] = at + i < len ? to_f32(row[at + i]) : 0.0f;
    }
}

template <bool WHOLE, typename T>
__device__ __forceinline__ void store_part(T* row, u32 at, u32 len, const f32 (&x)[EIGHT]) {
    if constexpr (WHOLE) {
        if (at < len) store8(row + at, x);
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; ++i) {
            if (at + i < len) row[at + i] = from_f32<T>(x[i]);
        }
    }
}

// Eight elements of an array that begins at a multiple of 16 bytes, from `at`, a multiple of eight, on; zeros behind
// its end.
template <typename T>
__device__ __forceinline__ void load_flat(f32 (&x)[EIGHT], const T* from, u64 at, u64 len) {
    if (at + EIGHT <= len) {
        load8(x, from + at);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < EIGHT; ++i) x[i] = at + i < len ? to_f32(from[at + i]) : 0.0f;
}

template <typename T>
__device__ __forceinline__ void store_flat(T* to, u64 at, u64 len, const f32 (&x)[EIGHT]) {
    if (at + EIGHT <= len) {
        store8(to + at, x);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < EIGHT; ++i) {
        if (at + i < len) to[at + i] = from_f32<T>(x[i]);
    }
}

// The first of the eight elements that this thread of a one-dimensional grid has.
__device__ __forceinline__ u64 flat_at() { return (u64(blockIdx.x) * blockDim.x + threadIdx.x) * EIGHT; }

// Of `count` segments with `words` numbers each, of which the first is the segment's first block: where the numbers of
// the one begin that this block is of.
__device__ __forceinline__ const u64* segment_of(const u64* segments, u32 count, u32 words) {
    u32 at = 0, end = count;
    while (end - at > 1) {
        u32 middle = (at + end) / 2;
        if (segments[middle * words] <= blockIdx.x) at = middle;
        else end = middle;
    }
    return segments + at * words;
}

// The sum over a warp's lanes, the same bits in each.
__device__ __forceinline__ f32 warp_sum(f32 x) {
#pragma unroll
    for (u32 apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

__device__ __forceinline__ f32 warp_max(f32 x) {
#pragma unroll
    for (u32 apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

// The sum over the THREADS threads of a block, which all call it: warps in order. Two barriers.
template <u32 THREADS>
__device__ __forceinline__ f32 block_sum(f32 x) {
    __shared__ f32 parts[THREADS / WARP];
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    f32 sum = parts[0];
#pragma unroll
    for (u32 i = 1; i < THREADS / WARP; ++i) sum += parts[i];
    __syncthreads();
    return sum;
}

// e^x in the arithmetic of aha-compute's lanes, with the same bits: within 2 units in the last place, 0 below -87.33.
__device__ __forceinline__ f32 exp_as_cpu(f32 v) {
    f32 x = v < 88.37f ? v : 88.37f;
    x = x > -87.33f ? x : -87.33f;
    f32 n = rintf(__fmul_rn(x, 1.44269504088896340736f));
    f32 r = __fmaf_rn(n, -0.693359375f, x);
    r = __fmaf_rn(n, 2.12194440e-4f, r);
    f32 p = 1.0f / 5040.0f;
    p = __fmaf_rn(p, r, 1.0f / 720.0f);
    p = __fmaf_rn(p, r, 1.0f / 120.0f);
    p = __fmaf_rn(p, r, 1.0f / 24.0f);
    p = __fmaf_rn(p, r, 1.0f / 6.0f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    f32 power = __uint_as_float(u32(int(n) + 127) << 23);
    return v >= -87.33f ? __fmul_rn(p, power) : 0.0f;
}

// 1 / (1 + e^-x).
__device__ __forceinline__ f32 sigmoid(f32 x) { return 1.0f / (1.0f + exp_as_cpu(-x)); }

// Philox4x32-10, as aha-compute/src/random.rs has it: a key and a counter of four words.
struct Philox {
    u32 words[4];
};

__device__ __forceinline__ Philox philox(u64 key, u64 a, u64 b) {
    u32 k0 = u32(key), k1 = u32(key >> 32);
    Philox x{{u32(a), u32(a >> 32), u32(b), u32(b >> 32)}};
#pragma unroll
    for (u32 round = 0; round < 10; ++round) {
        u64 low = u64(0xD2511F53u) * x.words[0], high = u64(0xCD9E8D57u) * x.words[2];
        x = Philox{{u32(high >> 32) ^ x.words[1] ^ k0, u32(high), u32(low >> 32) ^ x.words[3] ^ k1, u32(low)}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return x;
}

// A draw in [0, 1) at an address of three words: the bits of `Philox::uniform`.
__device__ __forceinline__ f64 uniform(u64 key, u64 a, u64 b, u64 c) {
    Philox inner = philox(key, a, b);
    Philox x = philox(u64(inner.words[0]) | u64(inner.words[1]) << 32, c, 0xffffffffffffffffull);
    u64 bits = u64(x.words[0]) | u64(x.words[1]) << 32;
    return f64(bits >> 11) * (1.0 / 9007199254740992.0);
}

// 2^x within 2 units in the last place; exactly 1 at 0, and 0 at negative infinity.
__device__ __forceinline__ f32 exp2_fast(f32 x) {
#ifdef AHA_EMULATED
    return exp2f(x);
#else
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Two elements in a word, `low` first.
__device__ __forceinline__ u32 pack_bf16(f32 low, f32 high) {
#ifdef AHA_EMULATED
    return u32(round_bf16(low).bits) | u32(round_bf16(high).bits) << 16;
#else
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
}

#ifndef AHA_EMULATED
__device__ __forceinline__ u32 shared_address(const void* at) { return u32(__cvta_generic_to_shared(at)); }
#endif

// Starts a copy of sixteen bytes to shared memory, of zeros if not `is_there`. It is done after the wait for its group.
__device__ __forceinline__ void copy16_async(void* to, const void* from, bool is_there) {
#ifdef AHA_EMULATED
    emulated::check_aligned(to, 16);
    emulated::check_aligned(from, 16);
    emulated::start_copy(to, is_there ? from : nullptr);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(is_there ? 16 : 0)
                 : "memory");
#endif
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void end_copies() {
#ifdef AHA_EMULATED
    emulated::end_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all of this thread's groups but the LEFT last ones. Others see the copies after a barrier.
template <u32 LEFT>
__device__ __forceinline__ void wait_copies() {
#ifdef AHA_EMULATED
    emulated::wait_copies(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// Four squares of 8 x 8 bf16: lane 8 i + r names row r of square i. A lane gets two neighbours of row lane / 4 of each.
// Or of 8 x 16 bytes, of which it gets four neighbours.
__device__ __forceinline__ void load_squares(u32 (&to)[4], const void* row) {
#ifdef AHA_EMULATED
    emulated::check_aligned(row, 16);
    emulated::load_squares(__LINE__, to, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// The same of the squares' transposes.
__device__ __forceinline__ void load_squares_transposed(u32 (&to)[4], const bf16* row) {
#ifdef AHA_EMULATED
    emulated::check_aligned(row, 16);
    emulated::load_squares(__LINE__, to, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// c (16, 8) += a (16, 16) b (16, 8) of a warp, bf16 with f32 sums. With g = lane / 4 and t = 2 (lane % 4), a lane holds
// of a: (g, t) (g + 8, t) (g, t + 8) (g + 8, t + 8) and the neighbours in the row; of b: (t, g) (t + 8, g) and the
// neighbours in the column; of c: (g, t) (g, t + 1) (g + 8, t) (g + 8, t + 1).
__device__ __forceinline__ void multiply_add(f32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef AHA_EMULATED
    emulated::multiply_add(__LINE__, c, a, b0, b1);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Two e4m3 numbers in the lower half of a word, `low` first: rounded to nearest, ties to even, to 448 at most; a NaN
// stays one. Needs compute capability 8.9.
__device__ __forceinline__ u32 pack_e4m3(f32 low, f32 high) {
#ifdef AHA_EMULATED
    return emulated::round_e4m3(low) | emulated::round_e4m3(high) << 8;
#else
    u16 both;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
    return both;
#endif
}

// c (16, 8) += a (16, 32) b (32, 8) of a warp, e4m3 with f32 sums. With g = lane / 4 and t = 4 (lane % 4), a lane holds
// of a: (g, t) (g + 8, t) (g, t + 16) (g + 8, t + 16) and the three neighbours in the row; of b: (t, g) (t + 16, g) and
// those in the column; of c what it holds of a product of bf16. Needs compute capability 8.9. Devices from 9.0 on do it
// in f16, without gain.
__device__ __forceinline__ void multiply_add_e4m3(f32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef AHA_EMULATED
    emulated::multiply_add_e4m3(__LINE__, c, a, b0, b1);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
