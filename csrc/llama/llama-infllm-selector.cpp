#include "llama-infllm-selectors.h"

#include "ggml.h"

#include <algorithm>

uint32_t llama_infllm_selector::n_head_repr(uint32_t n_head, uint32_t n_head_kv) const {
    return sums_attention() ? n_head : n_head_kv;
}

bool llama_infllm_selector::sums_queries() const {
    return prm.n_repr*prm.repr_topk < prm.block_size; // else all keys are averaged
}

uint32_t llama_infllm_selector::n_sum(uint32_t n_head, uint32_t n_head_kv, uint32_t n_embd_head_k) const {
    return sums_attention() ? n_head*prm.block_size : sums_queries() ? n_head_kv*n_embd_head_k : 0;
}

std::vector<uint32_t> llama_infllm_selector::sub_lengths(uint32_t n_tokens) const {
    GGML_UNUSED(n_tokens);
    return { prm.n_score };
}

uint32_t llama_infllm_selector::n_sub(uint32_t n_tokens) const {
    uint32_t res = 0;
    for (const uint32_t len : sub_lengths(n_tokens)) {
        res += (n_tokens + len - 1)/len;
    }
    return res;
}

uint32_t llama_infllm_selector::n_sub_max(uint32_t n_ubatch, uint32_t n_seq) const {
    return std::max({ n_sub(n_ubatch), n_sub(std::min(n_ubatch, n_end())), n_seq*n_sub(1) });
}

std::unique_ptr<llama_infllm_selector> llama_infllm_selector::make(const llama_infllm_params & params) {
    if (params.scores == LLAMA_INFLLM_SCORES_PUBLISHED) {
        return std::make_unique<selector_published>(params);
    }
    switch (params.search) {
        case LLAMA_INFLLM_SEARCH_KEYS:      return std::make_unique<selector_keys>(params);
        case LLAMA_INFLLM_SEARCH_PRESELECT: return std::make_unique<selector_preselect>(params);
        case LLAMA_INFLLM_SEARCH_QUEST:     return std::make_unique<selector_quest>(params);
        default:                            return std::make_unique<selector_queries>(params);
    }
}
