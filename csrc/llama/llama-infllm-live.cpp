#include "llama-infllm-impl.h"
#include "llama-kv-cache-infllm.h"

#include "llama.h"

#include <algorithm>
#include <mutex>
#include <vector>

// the memories of this process
static std::mutex                                 live_mutex;
static std::vector<const llama_kv_cache_infllm *> live;
static llama_infllm_stats                         last = {}; // before the last one went
static bool                                       any  = false;

static llama_infllm_stats sum_up() {
    llama_infllm_stats res = {};
    for (const auto * mem : live) {
        mem->add_stats(-1, res);
    }
    return res;
}

void llama_infllm_add_live(const llama_kv_cache_infllm * mem) {
    const std::lock_guard<std::mutex> lock(live_mutex);
    live.push_back(mem);
    any = true;
}

void llama_infllm_remove_live(const llama_kv_cache_infllm * mem) {
    const std::lock_guard<std::mutex> lock(live_mutex);
    const auto it = std::find(live.begin(), live.end(), mem);
    if (it != live.end()) {
        last = sum_up();
        live.erase(it);
    }
}

int32_t llama_infllm_n_ctx_max(const llama_model * model) {
    const std::lock_guard<std::mutex> lock(live_mutex);
    int32_t res = llama_model_n_ctx_train(model);
    for (const auto * mem : live) {
        if (&mem->get_model() == model) {
            res = std::max(res, int32_t(mem->get_layers().prm.n_ctx_seq));
        }
    }
    return res;
}

bool llama_infllm_get_all_stats(llama_infllm_stats * res) {
    const std::lock_guard<std::mutex> lock(live_mutex);
    *res = live.empty() ? last : sum_up();
    return any;
}
