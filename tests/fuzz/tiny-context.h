#pragma once

// Contexts of a tiny model, of a few kinds, that have outgrown their resident buffer; and what one does with a context.

#include "fuzz.h"
#include "tiny-model.h"

#include "checksum.h"
#include "llama-infllm.h"

#include <string>
#include <utility>
#include <vector>

namespace fuzz {

constexpr uint32_t N_KIND = 4;

inline llama_model * get_model() {
    static const llama_model_ptr res = [] {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        return tiny_model("llama", 32);
    }();
    return res.get();
}

inline llama_context_ptr make_context(uint32_t kind) {
    auto prm = llama_infllm_default_params();
    prm.n_init            = 8;
    prm.n_local           = 16;
    prm.block_size        = 8;
    prm.topk              = 4;
    prm.max_cached_blocks = 4;
    prm.n_score           = 8;
    prm.position          = kind == 0 ? LLAMA_INFLLM_POSITION_TRUE  : LLAMA_INFLLM_POSITION_INFLLM;
    prm.search            = kind == 1 ? LLAMA_INFLLM_SEARCH_QUERIES : LLAMA_INFLLM_SEARCH_KEYS;
    prm.paging            = kind == 2 ? LLAMA_INFLLM_PAGING_DEVICE  : LLAMA_INFLLM_PAGING_HOST;
    prm.type_store        = kind == 3 ? LLAMA_INFLLM_TYPE_STORE_Q8_0 : LLAMA_INFLLM_TYPE_STORE_AUTO;

    auto cprm = llama_context_default_params();
    cprm.n_ctx           = 512;
    cprm.n_ubatch        = 16;
    cprm.n_threads       = 1;
    cprm.n_threads_batch = 1;
    cprm.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    llama_context_ptr res(llama_infllm_init_from_model(get_model(), cprm, prm));
    FUZZ_CHECK(res);
    return res;
}

inline uint32_t n_past(llama_context * ctx) {
    return uint32_t(llama_memory_seq_pos_max(llama_get_memory(ctx), 0) + 1);
}

inline std::vector<llama_token> text(uint32_t n) {
    std::vector<llama_token> res(n);
    for (uint32_t i = 0; i < n; ++i) {
        res[i] = llama_token(i*7%TINY_N_VOCAB);
    }
    return res;
}

// false: it is refused, when the context is full
inline bool feed(llama_context * ctx, uint32_t n) {
    auto tokens = text(n);
    return llama_decode(ctx, llama_batch_get_one(tokens.data(), int32_t(n))) == 0;
}

// a token, a text, back and forth; what was loaded may be any numbers
inline void use(llama_context * ctx) {
    feed(ctx, 1);
    feed(ctx, 40);
    llama_memory_seq_rm(llama_get_memory(ctx), 0, llama_pos(n_past(ctx)/2), -1);
    feed(ctx, 1);
    feed(ctx, 20);
    FUZZ_CHECK(n_past(ctx) <= llama_n_ctx(ctx));
}

inline bytes save(llama_context * ctx) {
    bytes res(llama_state_seq_get_size(ctx, 0));
    FUZZ_CHECK(llama_state_seq_get_data(ctx, res.data(), res.size(), 0) == res.size());
    return res;
}

// a context that lives as long as the process, and its state, to which every input leaves it
struct lasting_context {
    llama_context_ptr ctx;
    bytes             state;
};

inline const lasting_context & get_context(uint32_t kind) {
    static const std::vector<lasting_context> all = [] {
        std::vector<lasting_context> res;
        for (uint32_t k = 0; k < N_KIND; ++k) {
            auto ctx = make_context(k);
            feed(ctx.get(), 120);
            auto state = save(ctx.get());
            res.push_back({ std::move(ctx), std::move(state) });
        }
        return res;
    }();
    return all[kind];
}

// where the fingerprint of a state ends that begins at `begin`: a magic number, a version, and numbers (llama-infllm-state.cpp)
inline size_t fingerprint_size(const bytes & input, size_t begin) {
    uint32_t n_items = 0;
    if (begin + 16 <= input.size()) {
        std::memcpy(&n_items, &input[begin + 12], sizeof(n_items));
    }
    return begin + 16 + size_t(n_items)*8;
}

// the state of one sequence, input[begin, end): the sum at its end covers what follows the fingerprint and the number of sequences
inline void repair_state(bytes & input, size_t begin, size_t end) {
    const size_t first = fingerprint_size(input, begin) + 4;
    if (end > input.size() || first + 8 > end) {
        return;
    }
    const uint64_t sum = infllm::checksum::of(&input[first], end - 8 - first);
    std::memcpy(&input[end - 8], &sum, sizeof(sum));
}

} // namespace fuzz
