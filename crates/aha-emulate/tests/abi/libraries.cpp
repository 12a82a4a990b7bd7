// Stands in for libcuda, libnvrtc and libcublasLt, at the level of their C functions: memory is the processor's, the
// compiler is g++ with the emulation's header, a "cubin" is the path of what it made, and products are plain loops over
// column-major matrices, as cuBLASLt defines them. What the libraries would refuse is refused.
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

typedef int Result;
constexpr Result OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500;
constexpr size_t MEMORY_BYTES = 64 << 20;

typedef std::vector<std::function<void()>> Works;
static std::map<void*, size_t> held;
static size_t held_bytes = 0;
static Works* capturing = nullptr;
static thread_local void* context = nullptr;

static Result ask(std::function<void()> work) {
    if (!context) return INVALID_CONTEXT;
    if (capturing) {
        capturing->push_back(work);
    } else {
        work();
    }
    return OK;
}

API Result cuInit(unsigned) { return OK; }
API Result cuDriverGetVersion(int* version) { return *version = 13000, OK; }
API Result cuGetErrorName(Result error, const char** name) {
    return *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE", OK;
}
API Result cuGetErrorString(Result, const char** text) { return *text = "a fake error", OK; }
API Result cuDeviceGetCount(int* count) { return *count = 1, OK; }
API Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : INVALID_VALUE; }
API Result cuDeviceGetName(char* name, int len, int) { return snprintf(name, len, "Fake 9000"), OK; }
API Result cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = MEMORY_BYTES, OK; }
API Result cuDeviceGetAttribute(int* value, int attribute, int) {
    static const std::map<int, int> values = {{1, 1024}, {5, 0x7fffffff}, {6, 65535}, {7, 65535},
                                              {16, 132}, {75, 9},         {76, 0},    {97, 232448}};
    auto found = values.find(attribute);
    return found == values.end() ? INVALID_VALUE : (*value = found->second, OK);
}
API Result cuDevicePrimaryCtxRetain(void** at, int) { return *at = &held, OK; }
API Result cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API Result cuCtxSetCurrent(void* at) { return context = at, OK; }
API Result cuCtxSynchronize() { return context ? OK : INVALID_CONTEXT; }

API Result cuMemAlloc_v2(void** at, size_t bytes) {
    if (!context || capturing) return INVALID_CONTEXT;
    if (held_bytes + bytes > MEMORY_BYTES) return OUT_OF_MEMORY;
    *at = aligned_alloc(256, (bytes + 255) / 256 * 256);
    return held[*at] = bytes, held_bytes += bytes, OK;
}
API Result cuMemFree_v2(void* at) {
    if (!context || capturing || !held.count(at)) return INVALID_VALUE;
    held_bytes -= held[at];
    return held.erase(at), free(at), OK;
}
API Result cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    return *at = aligned_alloc(256, (bytes + 255) / 256 * 256), OK;
}
API Result cuMemFreeHost(void* at) { return free(at), OK; }
API Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    return *free_bytes = MEMORY_BYTES - held_bytes, *total = MEMORY_BYTES, context ? OK : INVALID_CONTEXT;
}
static Result copy(void* to, const void* from, size_t bytes) {
    return ask([=] { memcpy(to, from, bytes); });
}
API Result cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void*) { return copy(to, from, bytes); }
API Result cuMemcpyDtoHAsync_v2(void* to, void* from, size_t bytes, void*) { return copy(to, from, bytes); }
API Result cuMemcpyDtoDAsync_v2(void* to, void* from, size_t bytes, void*) { return copy(to, from, bytes); }
API Result cuMemsetD8Async(void* to, unsigned char byte, size_t bytes, void*) {
    return ask([=] { memset(to, byte, bytes); });
}

API Result cuStreamCreate(void** stream, unsigned flags) {
    return *stream = malloc(1), context && flags == 1 ? OK : INVALID_VALUE;
}
API Result cuStreamDestroy_v2(void* stream) { return free(stream), OK; }
API Result cuStreamSynchronize(void*) { return context && !capturing ? OK : INVALID_CONTEXT; }
API Result cuStreamWaitEvent(void*, void* event, unsigned) { return event ? OK : INVALID_VALUE; }
API Result cuEventCreate(void** event, unsigned) { return *event = malloc(1), OK; }
API Result cuEventRecord(void* event, void* stream) { return event && stream ? OK : INVALID_VALUE; }
API Result cuEventDestroy_v2(void* event) { return free(event), OK; }
API Result cuEventSynchronize(void* event) { return event ? OK : INVALID_VALUE; }
API Result cuEventElapsedTime_v2(float* ms, void*, void*) { return *ms = 1.5f, OK; }

API Result cuStreamBeginCapture_v2(void*, int) { return capturing = new Works, context ? OK : INVALID_CONTEXT; }
API Result cuStreamEndCapture(void*, void** graph) { return *graph = capturing, capturing = nullptr, OK; }
API Result cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
    return *exec = new Works(*static_cast<Works*>(graph)), OK;
}
API Result cuGraphLaunch(void* exec, void*) {
    for (auto& work : *static_cast<Works*>(exec)) work();
    return context ? OK : INVALID_CONTEXT;
}
API Result cuGraphExecDestroy(void* exec) { return delete static_cast<Works*>(exec), OK; }
API Result cuGraphDestroy(void* graph) { return delete static_cast<Works*>(graph), OK; }

typedef void (*Entry)(void**);
typedef const char* (*LaunchAll)(Entry, void**, const unsigned*, const unsigned*, int);
struct Function {
    Entry entry;
    LaunchAll launch;
    unsigned (*sizes)(unsigned*);
    int dynamic_max;
};

API Result cuModuleLoadData(void** module, const void* image) {
    *module = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
    return *module && context ? OK : INVALID_VALUE;
}
API Result cuModuleUnload(void* module) { return dlclose(module); }
API Result cuModuleGetFunction(void** function, void* module, const char* name) {
    auto symbol = [&](std::string prefix) { return dlsym(module, (prefix + name).c_str()); };
    Entry entry = reinterpret_cast<Entry>(symbol("aha_entry_"));
    if (!entry) return NOT_FOUND;
    auto launch = reinterpret_cast<LaunchAll>(dlsym(module, "aha_launch"));
    auto sizes = reinterpret_cast<unsigned (*)(unsigned*)>(symbol("aha_sizes_"));
    return *function = new Function{entry, launch, sizes, 48 << 10}, OK;
}
API Result cuFuncGetAttribute(int* value, int attribute, void*) {
    return *value = 64, attribute == 1 ? OK : INVALID_VALUE;
}
API Result cuFuncSetAttribute(void* function, int attribute, int value) {
    static_cast<Function*>(function)->dynamic_max = value;
    return attribute == 8 && value + 64 <= 232448 ? OK : INVALID_VALUE;
}
API Result cuLaunchKernel(void* at, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared_bytes, void* stream, void** params, void**) {
    Function* function = static_cast<Function*>(at);
    if (!stream || int(shared_bytes) > function->dynamic_max || bx * by * bz > 1024) return INVALID_VALUE;
    unsigned sizes[64];
    std::vector<uint64_t> words(function->sizes(sizes));
    for (size_t i = 0; i < words.size(); ++i) memcpy(&words[i], params[i], sizes[i]);
    return ask([=]() mutable {
        std::vector<void*> args;
        for (uint64_t& word : words) args.push_back(&word);
        unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
        if (const char* error = function->launch(function->entry, args.data(), grid, block, 0))
            fprintf(stderr, "%s\n", error), abort();
    });
}

struct Program {
    std::map<std::string, std::string> files;
    std::string name, made, log;
};

API int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0; }
API int nvrtcCreateProgram(void** at, const char* source, const char* name, int count, const char* const* headers,
                           const char* const* names) {
    Program* program = new Program{{{name, source}}, name, "", ""};
    for (int i = 0; i < count; ++i) program->files[names[i]] = headers[i];
    return *at = program, 0;
}
API int nvrtcDestroyProgram(void** at) { return delete static_cast<Program*>(*at), 0; }
API int nvrtcCompileProgram(void* at, int count, const char* const* options) {
    Program* program = static_cast<Program*>(at);
    if (count < 1 || strcmp(options[0], "--gpu-architecture=sm_90a")) return program->log = "unknown architecture", 6;
    std::string dir = std::string(getenv("AHA_ABI_DIR")) + "/", command = "cd " + dir + " && g++ ";
    for (auto& [name, text] : program->files) std::ofstream(dir + name) << text;
    program->made = dir + program->name + ".so";
    command += std::string(getenv("AHA_ABI_OPTIONS")) + " -x c++ " + program->name + " -o " + program->made + " 2>log";
    if (!system(command.c_str())) return 0;
    std::ifstream log(dir + "log");
    program->log.assign(std::istreambuf_iterator<char>(log), {});
    return 6;
}
API int nvrtcGetProgramLogSize(void* at, size_t* size) { return *size = static_cast<Program*>(at)->log.size() + 1, 0; }
API int nvrtcGetProgramLog(void* at, char* log) { return strcpy(log, static_cast<Program*>(at)->log.c_str()), 0; }
API int nvrtcGetCUBINSize(void* at, size_t* size) { return *size = static_cast<Program*>(at)->made.size() + 1, 0; }
API int nvrtcGetCUBIN(void* at, char* code) { return strcpy(code, static_cast<Program*>(at)->made.c_str()), 0; }

constexpr int F32 = 0, BF16 = 14;
constexpr int BLAS_INVALID = 7, BLAS_NOT_SUPPORTED = 15;

struct Layout {
    int kind;
    uint64_t rows, cols;
    int64_t ld;
};
struct Desc {
    int is_transposed[2] = {0, 0}, epilogue = 1, bias_kind = F32;
    void* bias = nullptr;
};
struct Preference {
    uint64_t workspace_bytes = 0;
    uint32_t reductions = 0xffffffff, alignments[4] = {256, 256, 256, 256};
};
struct Algo {
    uint64_t words[8];
};
struct Heuristic {
    Algo algo;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

API int cublasLtCreate(void** handle) { return *handle = malloc(1), 0; }
API int cublasLtDestroy(void* handle) { return free(handle), 0; }
API int cublasLtMatrixLayoutCreate(Layout** at, int kind, uint64_t rows, uint64_t cols, int64_t ld) {
    return *at = new Layout{kind, rows, cols, ld}, ld >= int64_t(rows) ? 0 : BLAS_INVALID;
}
API int cublasLtMatrixLayoutDestroy(Layout* at) { return delete at, 0; }
API int cublasLtMatmulDescCreate(Desc** at, int compute, int scale) {
    return *at = new Desc, compute == 68 && scale == F32 ? 0 : BLAS_INVALID;
}
API int cublasLtMatmulDescDestroy(Desc* at) { return delete at, 0; }
API int cublasLtMatmulDescSetAttribute(Desc* at, int name, const void* value, size_t bytes) {
    static const std::map<int, size_t> sizes = {{3, 4}, {4, 4}, {7, 4}, {8, 8}, {26, 4}};
    if (!sizes.count(name) || sizes.at(name) != bytes) return BLAS_INVALID;
    void* to[] = {&at->is_transposed[0], &at->is_transposed[1], &at->epilogue, &at->bias, &at->bias_kind};
    int idx = name == 3 ? 0 : name == 4 ? 1 : name == 7 ? 2 : name == 8 ? 3 : 4;
    return memcpy(to[idx], value, bytes), 0;
}
API int cublasLtMatmulPreferenceCreate(Preference** at) { return *at = new Preference, 0; }
API int cublasLtMatmulPreferenceDestroy(Preference* at) { return delete at, 0; }
API int cublasLtMatmulPreferenceSetAttribute(Preference* at, int name, const void* value, size_t bytes) {
    if (name == 1 && bytes == 8) return memcpy(&at->workspace_bytes, value, 8), 0;
    if (name == 3 && bytes == 4) return memcpy(&at->reductions, value, 4), 0;
    if (name >= 5 && name <= 8 && bytes == 4) return memcpy(&at->alignments[name - 5], value, 4), 0;
    return BLAS_INVALID;
}

// Whether the shapes are those of one product.
static bool fits(Desc* desc, Layout* a, Layout* b, Layout* d) {
    uint64_t m = desc->is_transposed[0] ? a->cols : a->rows, k = desc->is_transposed[0] ? a->rows : a->cols;
    uint64_t other_k = desc->is_transposed[1] ? b->cols : b->rows, n = desc->is_transposed[1] ? b->rows : b->cols;
    return m == d->rows && n == d->cols && k == other_k && a->kind == b->kind;
}

API int cublasLtMatmulAlgoGetHeuristic(void*, Desc* desc, Layout* a, Layout* b, Layout*, Layout* d,
                                       Preference* preference, int, Heuristic* found, int* count) {
    if (!fits(desc, a, b, d) || preference->reductions != 0 || !preference->workspace_bytes) return BLAS_INVALID;
    *found = Heuristic{{{42}}, 0, 0, 1.0f, {}};
    return *count = 1, 0;
}
API int cublasLtMatmulAlgoCheck(void*, Desc* desc, Layout* a, Layout* b, Layout*, Layout* d, const Algo* algo,
                                Heuristic*) {
    return fits(desc, a, b, d) && algo->words[0] == 42 ? 0 : BLAS_NOT_SUPPORTED;
}

static float read(const void* at, int kind, int64_t idx) {
    if (kind == F32) return static_cast<const float*>(at)[idx];
    uint32_t bits = uint32_t(static_cast<const uint16_t*>(at)[idx]) << 16;
    float x;
    return memcpy(&x, &bits, 4), x;
}
static void write(void* at, int kind, int64_t idx, float x) {
    if (kind == F32) {
        static_cast<float*>(at)[idx] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    static_cast<uint16_t*>(at)[idx] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

API int cublasLtMatmul(void*, Desc* desc, const float* alpha, const void* a, Layout* la, const void* b, Layout* lb,
                       const float* beta, const void* c, Layout*, void* d, Layout* ld, const Algo* algo,
                       void* workspace, size_t, void* stream) {
    if (!fits(desc, la, lb, ld) || algo->words[0] != 42 || !workspace || !stream || c != d) return BLAS_INVALID;
    uint64_t k = desc->is_transposed[0] ? la->rows : la->cols;
    for (uint64_t i = 0; i < ld->rows; ++i) {
        for (uint64_t j = 0; j < ld->cols; ++j) {
            float sum = 0.0f;
            for (uint64_t l = 0; l < k; ++l) {
                float x = read(a, la->kind, desc->is_transposed[0] ? l + i * la->ld : i + l * la->ld);
                float y = read(b, lb->kind, desc->is_transposed[1] ? j + l * lb->ld : l + j * lb->ld);
                sum = fmaf(x, y, sum);
            }
            int64_t at = i + j * ld->ld;
            float before = *beta == 0.0f ? 0.0f : read(d, ld->kind, at);
            float bias = desc->epilogue == 4 ? read(desc->bias, desc->bias_kind, i) : 0.0f;
            write(d, ld->kind, at, *alpha * sum + *beta * before + bias);
        }
    }
    return 0;
}
