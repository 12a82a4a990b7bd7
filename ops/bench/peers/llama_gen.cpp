// Sampling with llama.cpp at temperature 1, for ops/bench/compare.
//
// llama_gen MODEL.gguf PROMPTS SAMPLES NEW_TOKENS RUNS [THREADS]
//
// Prompts of 64 tokens are decoded once each; their completions share the cache. Every completion has NEW_TOKENS
// tokens. One run warms up. Prints one line of JSON with the median of the others.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "llama.h"

namespace {

constexpr int kPromptTokens = 64;

double seconds_since(std::chrono::steady_clock::time_point begun) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

[[noreturn]] void fail(const char *what) {
    std::fprintf(stderr, "error: %s\n", what);
    std::exit(1);
}

struct Sampler {
    std::mt19937 random{1};
    std::vector<float> weights;

    llama_token draw(const float *logits, int count) {
        weights.resize(count);
        const float top = *std::max_element(logits, logits + count);
        double sum = 0;
        for (int i = 0; i < count; i++) {
            weights[i] = std::exp(logits[i] - top);
            sum += weights[i];
        }
        double left = std::uniform_real_distribution<double>(0, sum)(random);
        for (int i = 0; i < count; i++) {
            left -= weights[i];
            if (left < 0) return i;
        }
        return count - 1;
    }
};

void push(llama_batch &batch, llama_token token, int position, int sequence, bool wants_logits) {
    const int at = batch.n_tokens++;
    batch.token[at] = token;
    batch.pos[at] = position;
    batch.n_seq_id[at] = 1;
    batch.seq_id[at][0] = sequence;
    batch.logits[at] = wants_logits;
}

// All completions, from an empty cache.
void generate(llama_context *context, int vocab, int prompts, int samples, int new_tokens, Sampler &sampler) {
    llama_memory_t memory = llama_get_memory(context);
    llama_memory_clear(memory, true);
    const int sequences = prompts * samples;
    llama_batch batch = llama_batch_init(std::max(sequences, prompts * kPromptTokens), 0, 1);
    std::vector<int> rows(sequences);
    for (int prompt = 0; prompt < prompts; prompt++) {
        for (int i = 0; i < kPromptTokens; i++) {
            const llama_token token = 1000 + (prompt * kPromptTokens + i) * 7 % 40000;
            push(batch, token, i, prompt * samples, i + 1 == kPromptTokens);
        }
        std::fill_n(rows.begin() + prompt * samples, samples, batch.n_tokens - 1);
    }
    if (llama_decode(context, batch)) fail("the prompts can't be decoded");
    for (int sequence = 0; sequence < sequences; sequence++) {
        const int first = sequence / samples * samples;
        if (sequence != first) llama_memory_seq_cp(memory, first, sequence, -1, -1);
    }
    std::vector<llama_token> drawn(sequences);
    for (int step = 0; step < new_tokens; step++) {
        for (int sequence = 0; sequence < sequences; sequence++) {
            drawn[sequence] = sampler.draw(llama_get_logits_ith(context, rows[sequence]), vocab);
        }
        if (step + 1 == new_tokens) break;
        batch.n_tokens = 0;
        for (int sequence = 0; sequence < sequences; sequence++) {
            rows[sequence] = batch.n_tokens;
            push(batch, drawn[sequence], kPromptTokens + step, sequence, true);
        }
        if (llama_decode(context, batch)) fail("a step can't be decoded");
        llama_synchronize(context);
    }
    llama_batch_free(batch);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 6) fail("usage: llama_gen MODEL.gguf PROMPTS SAMPLES NEW_TOKENS RUNS [THREADS]");
    const int prompts = std::atoi(argv[2]), samples = std::atoi(argv[3]);
    const int new_tokens = std::atoi(argv[4]), runs = std::atoi(argv[5]);
    const int threads = argc > 6 ? std::atoi(argv[6]) : 2;
    if (prompts < 1 || samples < 1 || new_tokens < 1 || runs < 1 || threads < 1) fail("counts must be at least 1");
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail("the model can't be loaded");
    // Each sequence has a part of the cache, whose length must be a multiple of 256.
    const int sequences = prompts * samples;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = sequences * ((kPromptTokens + new_tokens + 255) / 256 * 256);
    params.n_batch = 2048;
    params.n_seq_max = sequences;
    params.n_threads = params.n_threads_batch = threads;
    llama_context *context = llama_init_from_model(model, params);
    if (!context) fail("there is no room for so many sequences");
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    Sampler sampler;
    std::vector<double> seconds;
    for (int run = 0; run <= runs; run++) {
        const auto begun = std::chrono::steady_clock::now();
        generate(context, vocab, prompts, samples, new_tokens, sampler);
        if (run > 0) seconds.push_back(seconds_since(begun));
    }
    std::sort(seconds.begin(), seconds.end());
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const double median = seconds[seconds.size() / 2];
    std::printf("{\"tok_s_total\": %.2f, \"total_s\": %.3f, \"peak_rss_gb\": %.3f}\n",
                sequences * new_tokens / median, median, usage.ru_maxrss / 1048576.0);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
