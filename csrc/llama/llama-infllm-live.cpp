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
        llama_infllm_stats stats;
        mem->get_stats(-1, stats);
        res.n_layer           += stats.n_layer;
        res.n_seq             += stats.n_seq;
        res.n_tokens          += stats.n_tokens;
        res.n_tokens_resident += stats.n_tokens_resident;
        res.n_blocks          += stats.n_blocks;
        res.n_slots           += stats.n_slots;
        res.bytes_resident    += stats.bytes_resident;
        res.bytes_repr        += stats.bytes_repr;
        res.bytes_store       += stats.bytes_store;
        res.bytes_store_kv    += stats.bytes_store_kv;
        res.bytes_paged_in    += stats.bytes_paged_in;
        res.n_select          += stats.n_select;
        res.n_selected        += stats.n_selected;
        res.n_hit             += stats.n_hit;
        res.n_page_in         += stats.n_page_in;
        res.n_layer_pager     += stats.n_layer_pager;
        res.n_layer_device    += stats.n_layer_device;
        res.bytes_store_file  += stats.bytes_store_file;
        res.n_page_in_file    += stats.n_page_in_file;
        res.us_page_in        += stats.us_page_in;
        res.us_page_in_file   += stats.us_page_in_file;
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
