// Runs a CUDA kernel on the processor: a block at a time, a fiber for each of its threads.
//
// A thread runs until it waits: at a barrier, or at a collective of its warp. Whoever comes last does the collective
// for all lanes, from operands on their stacks. Threads and blocks run in the order of their indices or in the
// opposite order, so that what lacks a barrier differs between the two. Barriers that not all threads reach, or that
// they reach at different places, collectives whose lanes don't meet, and misaligned vectors are errors.
//
// Asynchronous copies are done as late as they may be, or as early, by the order. Not seen: races between blocks, and
// limits of registers and shared memory.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <utility>

#ifndef __x86_64__
#error "the switch between fibers is written for x86-64"
#endif

#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
#define __ldg(at) (*(at))

struct Three {
    u32 x, y, z;
};

static Three threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr u32 THREADS_MAX = 1024;
constexpr u32 LANES = 32;
constexpr u32 SHARED_BYTES_MAX = 227 << 10;

enum class State : u8 { RUNNABLE, AT_BARRIER, AT_COLLECTIVE, DONE };

struct Fiber {
    void* stack_pointer;
    State state;
    u32 line;  // where it waits
    u32 mask;  // lanes that it waits for
    void* operand;
    u32 copy_count, copy_group;  // asynchronous copies that wait, and the group of the next
};

// A copy of sixteen bytes that was started; of zeros without a source.
struct Copy {
    void* to;
    const void* from;
    u32 group;
};

constexpr u32 COPIES_MAX = 256;

struct Machine {
    Fiber fibers[THREADS_MAX];
    u8* stacks;
    void* scheduler;
    u32 thread_count, current, waiting, done;
    bool is_backward;
    void (*entry)(void**);
    void** args;
    char error[512];
    u8 shared[SHARED_BYTES_MAX] __attribute__((aligned(128)));
};

static Machine machine;
static Copy copies[THREADS_MAX][COPIES_MAX];

// Saves the registers that a call keeps, and goes on where `to` was left.
extern "C" void aha_switch(void** from, void* to);
asm(R"(
.text
.local aha_switch
aha_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

inline Fiber& current() { return machine.fibers[machine.current]; }

inline void leave() { aha_switch(&current().stack_pointer, machine.scheduler); }

// Stops the launch: the scheduler returns the first error.
template <typename... T>
[[noreturn]] void fail(const char* format, T... values) {
    if (!machine.error[0]) snprintf(machine.error, sizeof machine.error, format, values...);
    current().state = State::DONE;
    leave();
    abort();
}

inline void check_aligned(const void* at, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes)
        fail("thread %u moves %zu bytes at once at an odd address", machine.current, bytes);
}

inline void copy16(void* to, const void* from) {
    if (from) {
        memcpy(to, from, 16);
    } else {
        memset(to, 0, 16);
    }
}

// A copy happens at any time from here to the wait for it: here, where threads run in the opposite order, so that it
// overwrites what others still read; else at the wait, so that nobody may have read what it brings.
inline void start_copy(void* to, const void* from) {
    if (machine.is_backward) return copy16(to, from);
    Fiber& me = current();
    if (me.copy_count == COPIES_MAX) fail("thread %u has more than %u copies under way", machine.current, COPIES_MAX);
    copies[machine.current][me.copy_count++] = Copy{to, from, me.copy_group};
}

inline void end_copies() { current().copy_group += 1; }

inline void wait_copies(u32 groups_left) {
    Fiber& me = current();
    u32 kept = 0;
    for (u32 i = 0; i < me.copy_count; ++i) {
        Copy& copy = copies[machine.current][i];
        if (copy.group + groups_left >= me.copy_group) {
            copies[machine.current][kept++] = copy;
        } else {
            copy16(copy.to, copy.from);
        }
    }
    me.copy_count = kept;
}

inline void run_thread() {
    machine.entry(machine.args);
    current().state = State::DONE;
    machine.done += 1;
    leave();
}

inline void* fresh_stack(u32 thread) {
    void** top = reinterpret_cast<void**>(machine.stacks + (thread + 1) * STACK_BYTES);
    top -= 2;  // so that the stack is 8 mod 16 where the function begins
    *top = reinterpret_cast<void*>(&run_thread);
    memset(top - 6, 0, 6 * sizeof *top);
    return top - 6;
}

// Waits for all threads of the block.
inline void barrier(u32 line) {
    Fiber& me = current();
    me.line = line;
    machine.waiting += 1;
    if (machine.waiting < machine.thread_count) {
        me.state = State::AT_BARRIER;
        leave();
        return;
    }
    for (u32 i = 0; i < machine.thread_count; ++i) {
        Fiber& other = machine.fibers[i];
        if (other.line != line) fail("threads wait at the barriers of lines %u and %u at once", line, other.line);
    }
    for (u32 i = 0; i < machine.thread_count; ++i) machine.fibers[i].state = State::RUNNABLE;
    machine.waiting = 0;
}

// Waits for the lanes of `mask`; the last one calls `all` with the operands of the warp's lanes.
template <typename F>
inline void meet(u32 line, u32 mask, void* operand, F all) {
    Fiber& me = current();
    u32 lane = machine.current % LANES, first = machine.current - lane;
    if (!(mask >> lane & 1)) fail("line %u: lane %u is not in its mask", line, lane);
    me.line = line, me.mask = mask, me.operand = operand;
    me.state = State::AT_COLLECTIVE;
    void* operands[LANES];
    for (u32 i = 0; i < LANES; ++i) {
        operands[i] = nullptr;
        if (!(mask >> i & 1)) continue;
        if (first + i >= machine.thread_count) fail("line %u: there is no lane %u", line, i);
        Fiber& other = machine.fibers[first + i];
        bool meets = other.state == State::AT_COLLECTIVE && other.line == line && other.mask == mask;
        if (!meets) return leave();
        operands[i] = other.operand;
    }
    all(operands);
    for (u32 i = 0; i < LANES; ++i) {
        if (mask >> i & 1) machine.fibers[first + i].state = State::RUNNABLE;
    }
}

template <typename T>
struct Exchange {
    T value, result;
    u32 source;
};

// What lane `source` gave; the own value where there is no such lane.
template <typename T>
inline T exchange(u32 line, u32 mask, T value, u32 source) {
    Exchange<T> mine{value, value, source};
    meet(line, mask, &mine, [](void** lanes) {
        for (u32 i = 0; i < LANES; ++i) {
            Exchange<T>* to = static_cast<Exchange<T>*>(lanes[i]);
            if (!to || to->source >= LANES) continue;
            Exchange<T>* from = static_cast<Exchange<T>*>(lanes[to->source]);
            if (from) to->result = from->value;
        }
    });
    return mine.result;
}

inline u32 lane() { return machine.current % LANES; }

// `apart` lanes up or down, within parts of `width` lanes.
template <typename T>
inline T exchange_by(u32 line, u32 mask, T value, int apart, u32 width) {
    int source = int(lane()) + apart;
    bool is_inside = source >= 0 && u32(source) / width == lane() / width;
    return exchange(line, mask, value, is_inside ? u32(source) : LANES);
}

inline u32 ballot(u32 line, u32 mask, bool is_set) {
    struct Vote {
        bool is_set;
        u32 result;
    } mine{is_set, 0};
    meet(line, mask, &mine, [](void** lanes) {
        u32 votes = 0;
        for (u32 i = 0; i < LANES; ++i) votes |= u32(lanes[i] && static_cast<Vote*>(lanes[i])->is_set) << i;
        for (u32 i = 0; i < LANES; ++i) {
            if (lanes[i]) static_cast<Vote*>(lanes[i])->result = votes;
        }
    });
    return mine.result;
}

inline f32 wide(u16 bits) { return __builtin_bit_cast(f32, u32(bits) << 16); }

// ldmatrix: lane 8 i + r names row r of square i.
inline void load_squares(u32 line, u32 (&to)[4], const void* row, bool transposed) {
    struct Squares {
        const u16* row;
        u32 words[4];
        bool transposed;
    } mine{static_cast<const u16*>(row), {}, transposed};
    meet(line, 0xffffffffu, &mine, [](void** lanes) {
        for (u32 lane = 0; lane < LANES; ++lane) {
            Squares* own = static_cast<Squares*>(lanes[lane]);
            for (u32 square = 0; square < 4; ++square) {
                u16 pair[2];
                for (u32 i = 0; i < 2; ++i) {
                    u32 row = lane / 4, column = lane % 4 * 2 + i;
                    if (own->transposed) std::swap(row, column);
                    pair[i] = static_cast<Squares*>(lanes[8 * square + row])->row[column];
                }
                own->words[square] = u32(pair[0]) | u32(pair[1]) << 16;
            }
        }
    });
    memcpy(to, mine.words, sizeof mine.words);
}

// What cvt.rn.satfinite.e4m3x2.f32 makes of one number.
inline u32 round_e4m3(f32 x) {
    u32 bits = __builtin_bit_cast(u32, x), sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fu;
    if (size >= 0x43e00000u) return sign | 0x7eu;
    if (size < 0x3c800000u) {
        // Below 2^-6 numbers are 2^-9 apart, as those of f32 from 2^14 on.
        return sign | (__builtin_bit_cast(u32, __builtin_bit_cast(f32, size) + 16384.0f) - 0x46800000u);
    }
    return sign | (((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3));
}

inline f32 wide_e4m3(u32 byte) {
    u32 exponent = byte >> 3 & 15u, mantissa = byte & 7u;
    f32 size = __builtin_bit_cast(f32, (exponent + 120) << 23 | mantissa << 20);
    if (exponent == 0) size = f32(mantissa) / 512.0f;
    if ((byte & 0x7fu) == 0x7fu) size = NAN;
    return byte & 0x80u ? -size : size;
}

// A warp's fragments of c (16, 8) += a (16, K) b (K, 8), with sums in the order of k. A word has PER neighbours of k,
// which `widen` reads.
template <u32 PER, typename F>
inline void multiply_add_of(u32 line, f32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, F widen) {
    struct Fragments {
        f32 c[4];
        u32 a[4], b[2];
    } mine{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    meet(line, 0xffffffffu, &mine, [widen](void** lanes) {
        constexpr u32 DEPTH = 8 * PER;
        f32 a[16][DEPTH], b[8][DEPTH];
        for (u32 lane = 0; lane < LANES; ++lane) {
            Fragments* own = static_cast<Fragments*>(lanes[lane]);
            u32 g = lane / 4, t = lane % 4 * PER;
            for (u32 word = 0; word < 4; ++word) {
                for (u32 i = 0; i < PER; ++i) {
                    a[g + word % 2 * 8][t + word / 2 * DEPTH / 2 + i] = widen(own->a[word], i);
                    if (word < 2) b[g][t + word * DEPTH / 2 + i] = widen(own->b[word], i);
                }
            }
        }
        for (u32 lane = 0; lane < LANES; ++lane) {
            Fragments* own = static_cast<Fragments*>(lanes[lane]);
            for (u32 i = 0; i < 4; ++i) {
                u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                for (u32 k = 0; k < DEPTH; ++k) own->c[i] = __builtin_fmaf(a[row][k], b[column][k], own->c[i]);
            }
        }
    });
    memcpy(c, mine.c, sizeof mine.c);
}

// mma.m16n8k16 of bf16.
inline void multiply_add(u32 line, f32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_add_of<2>(line, c, a, b0, b1, [](u32 word, u32 i) { return wide(u16(word >> (16 * i))); });
}

// mma.m16n8k32 of e4m3.
inline void multiply_add_e4m3(u32 line, f32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_add_of<4>(line, c, a, b0, b1, [](u32 word, u32 i) { return wide_e4m3(word >> (8 * i) & 0xffu); });
}

inline const char* name(State state) {
    switch (state) {
        case State::AT_BARRIER:
            return "waits at the barrier";
        case State::AT_COLLECTIVE:
            return "waits for its warp";
        case State::DONE:
            return "has left";
        default:
            return "runs";
    }
}

// Nobody can go on: says who waits where.
inline void report_stuck() {
    u32 waits = 0;
    while (machine.fibers[waits].state == State::DONE) ++waits;
    for (u32 i = 0; i < machine.thread_count; ++i) {
        Fiber &a = machine.fibers[waits], &b = machine.fibers[i];
        bool is_same = a.state == b.state && (b.state == State::DONE || a.line == b.line);
        if (is_same && i + 1 < machine.thread_count) continue;
        snprintf(machine.error, sizeof machine.error, "thread %u %s of line %u while thread %u %s (line %u)", waits,
                 name(a.state), a.line, i, name(b.state), b.line);
        return;
    }
}

// Runs each of some threads until it waits. Whether any could.
inline bool run_warp(u32 first, u32 end, bool is_backward) {
    bool has_moved = false;
    for (u32 step = 0; step < end - first && !machine.error[0]; ++step) {
        u32 i = is_backward ? end - 1 - step : first + step;
        if (machine.fibers[i].state != State::RUNNABLE) continue;
        has_moved = true;
        machine.current = i;
        threadIdx = Three{i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        aha_switch(&machine.scheduler, machine.fibers[i].stack_pointer);
    }
    return has_moved;
}

// A warp goes on for as long as it can, so that it may be far ahead of the others.
inline void run_block(bool is_backward) {
    u32 count = machine.thread_count;
    machine.waiting = machine.done = 0;
    machine.is_backward = is_backward;
    memset(machine.shared, 0xff, sizeof machine.shared);
    for (u32 i = 0; i < count; ++i) machine.fibers[i] = Fiber{fresh_stack(i), State::RUNNABLE};
    u32 warp_count = (count + LANES - 1) / LANES;
    while (machine.done < count && !machine.error[0]) {
        bool has_moved = false;
        for (u32 step = 0; step < warp_count && !machine.error[0]; ++step) {
            u32 warp = is_backward ? warp_count - 1 - step : step;
            u32 end = (warp + 1) * LANES < count ? (warp + 1) * LANES : count;
            while (run_warp(warp * LANES, end, is_backward)) has_moved = true;
        }
        if (!has_moved) report_stuck();
    }
}

// Takes arguments as cuLaunchKernel does: a pointer to each.
template <typename... P, size_t... I>
inline void call(void (*kernel)(P...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<P*>(args[I])...);
}

template <typename... P>
inline void call(void (*kernel)(P...), void** args) {
    call(kernel, args, std::index_sequence_for<P...>());
}

template <typename... P>
inline u32 sizes(void (*)(P...), u32* to) {
    u32 all[] = {0, u32(sizeof(P))...};
    memcpy(to, all + 1, sizeof all - sizeof *all);
    return sizeof...(P);
}

}  // namespace emulated

extern "C" const char* aha_launch(void (*entry)(void**), void** args, const u32* grid, const u32* block,
                                  int is_backward) {
    using namespace emulated;
    if (!machine.stacks) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* at = mmap(nullptr, THREADS_MAX * STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (at == MAP_FAILED) return "there is no memory for stacks";
        machine.stacks = static_cast<u8*>(at);
    }
    gridDim = Three{grid[0], grid[1], grid[2]};
    blockDim = Three{block[0], block[1], block[2]};
    machine.thread_count = block[0] * block[1] * block[2];
    machine.entry = entry, machine.args = args, machine.error[0] = 0;
    u64 count = u64(grid[0]) * grid[1] * grid[2];
    for (u64 step = 0; step < count && !machine.error[0]; ++step) {
        u64 i = is_backward ? count - 1 - step : step;
        blockIdx = Three{u32(i % grid[0]), u32(i / grid[0] % grid[1]), u32(i / grid[0] / grid[1])};
        run_block(is_backward);
    }
    return machine.error[0] ? machine.error : nullptr;
}

#define KERNEL(threads_max, name, ...)                                             \
    extern "C" void name(__VA_ARGS__);                                             \
    extern "C" void aha_entry_##name(void** args) { emulated::call(name, args); }  \
    extern "C" u32 aha_sizes_##name(u32* to) { return emulated::sizes(name, to); } \
    extern "C" u32 aha_threads_##name() { return threads_max; }                    \
    extern "C" void name(__VA_ARGS__)
#define SHARED_MEMORY(type, name) type* name = reinterpret_cast<type*>(emulated::machine.shared)

#define __syncthreads() emulated::barrier(__LINE__)
#define __syncwarp() emulated::ballot(__LINE__, 0xffffffffu, false)
#define __ballot_sync(mask, is_set) emulated::ballot(__LINE__, mask, is_set)
#define __any_sync(mask, is_set) (emulated::ballot(__LINE__, mask, is_set) != 0)
#define __all_sync(mask, is_set) (emulated::ballot(__LINE__, mask, !(is_set)) == 0)
#define __shfl_sync(mask, value, lane) emulated::exchange(__LINE__, mask, value, u32(lane) % 32u)
#define __shfl_xor_sync(mask, value, apart) emulated::exchange(__LINE__, mask, value, emulated::lane() ^ u32(apart))
#define __shfl_down_sync(mask, value, apart) emulated::exchange_by(__LINE__, mask, value, int(apart), 32)
#define __shfl_up_sync(mask, value, apart) emulated::exchange_by(__LINE__, mask, value, -int(apart), 32)

inline f32 __uint_as_float(u32 x) { return __builtin_bit_cast(f32, x); }
inline u32 __float_as_uint(f32 x) { return __builtin_bit_cast(u32, x); }
inline u64 __double_as_longlong(f64 x) { return __builtin_bit_cast(u64, x); }
inline f32 __fmul_rn(f32 a, f32 b) { return a * b; }
inline f32 __fadd_rn(f32 a, f32 b) { return a + b; }
inline f32 __fsub_rn(f32 a, f32 b) { return a - b; }
inline f32 __fdiv_rn(f32 a, f32 b) { return a / b; }
inline f32 __fsqrt_rn(f32 a) { return sqrtf(a); }
inline f32 __fmaf_rn(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
inline f64 __dmul_rn(f64 a, f64 b) { return a * b; }
inline f64 __dadd_rn(f64 a, f64 b) { return a + b; }
inline f32 rsqrtf(f32 x) { return 1.0f / sqrtf(x); }
inline u32 __umulhi(u32 a, u32 b) { return u32(u64(a) * b >> 32); }
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline int __ffs(u32 x) { return __builtin_ffs(int(x)); }
inline int __clz(u32 x) { return x ? __builtin_clz(x) : 32; }
template <typename T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
template <typename T>
inline T atomicAdd(T* at, T x) {
    T old = *at;
    *at = old + x;
    return old;
}
template <typename T>
inline T atomicMax(T* at, T x) {
    T old = *at;
    *at = max(old, x);
    return old;
}
template <typename T>
inline T atomicMin(T* at, T x) {
    T old = *at;
    *at = min(old, x);
    return old;
}
template <typename T>
inline T atomicExch(T* at, T x) {
    T old = *at;
    *at = x;
    return old;
}
inline void __threadfence() {}
