#include "llama-infllm.h"

#include "llama-infllm-budget.h"
#include "llama-infllm-impl.h"
#include "llama-infllm-composite.h"
#include "llama-infllm-params.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "../infllm/text-split.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

// as with the InfLLM memory and its defaults, so that both compute the same while all fits
static constexpr uint32_t N_END_PLAIN = 32;

static thread_local std::string last_error;

// parameters asked for by the context that is being made on this thread
static thread_local bool                request_env    = true; // by the environment, if at all
static thread_local bool                request_active = false;
static thread_local llama_infllm_params request;

void llama_infllm_set_error(const std::string & msg) {
    last_error = msg;
}

static bool fail(const std::string & msg) {
    llama_infllm_set_error(msg);
    return false;
}

//
// parameters
//

uint32_t llama_infllm_n_cells(const llama_infllm_params * params, uint32_t n_ubatch) {
    const auto cells = infllm::cell_layout::make(
            params->n_init, params->n_local, params->block_size, params->max_cached_blocks, n_ubatch);
    return GGML_PAD(cells.n_cells(), 256);
}

// the context and ubatch size that llama_context will use, see its constructor
static uint32_t get_n_ctx_seq(const llama_model & model, const llama_context_params & cparams) {
    const uint32_t n_ctx = GGML_PAD(cparams.n_ctx == 0 ? model.hparams.n_ctx_train : cparams.n_ctx, 256);
    return cparams.kv_unified ? n_ctx : GGML_PAD(n_ctx/std::max(1u, cparams.n_seq_max), 256);
}

static uint32_t get_n_ubatch(const llama_model & model, const llama_context_params & cparams) {
    const uint32_t n_ctx   = cparams.n_ctx == 0 ? model.hparams.n_ctx_train : cparams.n_ctx;
    const uint32_t n_batch = std::min(n_ctx, cparams.n_batch);
    return std::min(n_batch, cparams.n_ubatch == 0 ? cparams.n_batch : cparams.n_ubatch);
}

static bool has_parts(const llama_infllm_params & params) {
    return params.n_local != 0 || params.topk != 0 || params.max_cached_blocks != 0;
}

uint32_t llama_infllm_n_ctx_train(const llama_model * model, const llama_context_params * cparams) {
    const auto & hparams = model->hparams;

    // llama_init_from_model() changes that of the model when a context has been made, and then a second context would be another one
    const auto  type  = cparams->rope_scaling_type == LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED ? hparams.rope_scaling_type_train : cparams->rope_scaling_type;
    const float scale = cparams->rope_freq_scale == 0.0f ? hparams.rope_freq_scale_train : cparams->rope_freq_scale;
    if (type != LLAMA_ROPE_SCALING_TYPE_YARN || scale == hparams.rope_freq_scale_train) {
        return hparams.n_ctx_train;
    }
    const uint32_t n_orig = cparams->yarn_orig_ctx != 0 ? cparams->yarn_orig_ctx : hparams.n_ctx_orig_yarn;
    return std::min(double(INT32_MAX), double((n_orig != 0 ? n_orig : hparams.n_ctx_train)/scale));
}

bool llama_infllm_params_resolve(
        const llama_model * model, const llama_context_params * cparams, llama_infllm_params * params) {
    const std::string why_not = llama_infllm_why_not(*model, *cparams);
    if (!why_not.empty()) {
        return fail(why_not);
    }

    // in 64 bits, so that large values fail a limit below and do not wrap
    const int64_t n_ctx       = get_n_ctx_seq(*model, *cparams);
    const int64_t n_ctx_train = llama_infllm_n_ctx_train(model, cparams);
    const int64_t n_ubatch    = get_n_ubatch(*model, *cparams);

    llama_infllm_params res = *params;

    const std::string out_of_range = llama_infllm_check_ranges(res);
    if (!out_of_range.empty()) {
        return fail(out_of_range);
    }

    const bool alibi = model->hparams.use_alibi;
    if (res.position == LLAMA_INFLLM_POSITION_AUTO) {
        res.position = n_ctx <= n_ctx_train && !alibi ? LLAMA_INFLLM_POSITION_TRUE : LLAMA_INFLLM_POSITION_INFLLM;
    }
    if (res.position == LLAMA_INFLLM_POSITION_TRUE && alibi) {
        return fail(::format("position = true does not work with \"%s\", whose attention is biased by distance: its layers share one "
                "mask, but not the blocks that they page in; use position = infllm, or auto", model->arch_name().c_str()));
    }

    if (res.position == LLAMA_INFLLM_POSITION_INFLLM && model->hparams.rope_type == LLAMA_ROPE_TYPE_NONE && !alibi) {
        return fail(::format("position = infllm needs a model with RoPE, which \"%s\" has not: use position = true",
                model->arch_name().c_str()));
    }

    if (has_parts(res) && res.budget != 0) {
        return fail("budget is given, and what it is divided into, too: leave n_local, topk and max_cached_blocks out, or budget");
    }
    const bool auto_topk   = res.topk == 0;
    const bool auto_n_slot = res.max_cached_blocks == 0;
    if (!has_parts(res)) {
        const auto plan = llama_infllm_plan_cells(*model, *cparams, res, n_ctx, n_ubatch);
        if (res.budget != 0 || plan.n_cells > plan.n_cells_fast) {
            const std::string too_few = llama_infllm_divide(plan, n_ctx, n_ubatch, res);
            if (!too_few.empty()) {
                return fail(too_few);
            }
            res.budget = 0; // its parts say it now
        }
    }
    llama_infllm_divide_fast(n_ctx_train, n_ubatch, res);
    if (n_ubatch > res.n_local) {
        return fail(::format("n_ubatch = %u is larger than n_local = %u: a ubatch must fit in the local window, "
                "so lower n_ubatch or raise n_local", uint32_t(n_ubatch), res.n_local));
    }
    if (res.block_size > res.n_local) {
        return fail(::format("block_size = %u is larger than n_local = %u", res.block_size, res.n_local));
    }

    // slots that leave room for the rest of the resident buffer within the positions of training
    int64_t n_slot_max = (1 << 24)/res.block_size; // as for any number of tokens
    if (res.position == LLAMA_INFLLM_POSITION_INFLLM) {
        const int64_t n_rest = infllm::cell_layout::make(
                res.n_init, res.n_local, res.block_size, 0, n_ubatch).n_cells();
        n_slot_max = (n_ctx_train - n_rest)/res.block_size;
        if (n_rest + res.block_size > n_ctx_train) {
            return fail(::format("n_init = %u and n_local = %u need %u cells with n_ubatch = %u, but the model is trained for "
                    "n_ctx_train = %u positions, which position = infllm must not exceed: lower n_local or n_ubatch",
                    res.n_init, res.n_local, uint32_t(n_rest), uint32_t(n_ubatch), uint32_t(n_ctx_train)));
        }
    }
    if (auto_topk && auto_n_slot) {
        res.topk = res.max_cached_blocks = std::min<int64_t>(res.topk, n_slot_max);
    }
    if (res.topk > res.max_cached_blocks) {
        return fail(::format("topk = %u is larger than max_cached_blocks = %u: every selected block needs a slot",
                res.topk, res.max_cached_blocks));
    }
    if (res.attend == LLAMA_INFLLM_ATTEND_TOPK && res.topk != res.max_cached_blocks) {
        return fail(::format("max_cached_blocks = %u is more than topk = %u, but attend = topk attends the selected blocks alone: "
                "leave max_cached_blocks out, or use attend = resident", res.max_cached_blocks, res.topk));
    }
    if (res.max_cached_blocks > n_slot_max) {
        return fail(::format("max_cached_blocks = %u blocks of %u tokens are too many: n_init = %u and n_local = %u leave room "
                "for %u within the n_ctx_train = %u positions, which position = infllm must not exceed",
                res.max_cached_blocks, res.block_size, res.n_init, res.n_local, uint32_t(n_slot_max), uint32_t(n_ctx_train)));
    }

    const std::string bad_type_store = llama_infllm_resolve_type_store(*model, *cparams, res.type_store);
    if (!bad_type_store.empty()) {
        return fail(bad_type_store);
    }
    if (res.store_path[0] != 0 && res.paging == LLAMA_INFLLM_PAGING_DEVICE) {
        return fail("paging = device needs all blocks in memory, but store_path lets them go to a file: use paging = host");
    }
    if (res.store_path[0] != 0) {
        res.paging = LLAMA_INFLLM_PAGING_HOST;
    }
    if (res.scores == LLAMA_INFLLM_SCORES_PUBLISHED && res.paging == LLAMA_INFLLM_PAGING_DEVICE) {
        return fail("paging = device does not work with scores = published, which the host computes: use paging = host, or auto");
    }
    const bool published = res.scores == LLAMA_INFLLM_SCORES_PUBLISHED;
    if (published && model->hparams.attn_soft_cap) {
        return fail(::format("scores = published does not follow the capped attention of \"%s\": use scores = linear",
                model->arch_name().c_str()));
    }
    if (res.search == LLAMA_INFLLM_SEARCH_AUTO) {
        res.search = published ? LLAMA_INFLLM_SEARCH_QUERIES : LLAMA_INFLLM_SEARCH_KEYS;
    }
    const bool        by_keys   = res.search == LLAMA_INFLLM_SEARCH_KEYS || res.search == LLAMA_INFLLM_SEARCH_PRESELECT;
    const bool        by_bounds = res.search == LLAMA_INFLLM_SEARCH_QUEST;
    const std::string search    = "search = " + llama_infllm_choice_name("search", res.search);
    if (published && res.search != LLAMA_INFLLM_SEARCH_QUERIES) {
        return fail(search + " does not work with scores = published, which the queries search: use search = queries, or auto");
    }
    if (res.n_score == 0) {
        res.n_score = published ? n_ubatch : by_keys ? 16 : 32;
    }
    if (by_keys && res.n_score > res.n_local) {
        return fail(::format("n_score = %u is larger than n_local = %u: with %s a sub-chunk must fit in the local "
                "window", res.n_score, res.n_local, search.c_str()));
    }
    if (res.n_repr == 0) {
        const uint32_t n_part = by_bounds ? 16 : !by_keys ? res.block_size : n_ctx <= n_ctx_train ? 4 : 8;
        res.n_repr = res.block_size%n_part == 0 ? res.block_size/n_part : 1;
        // they are all on the device, which is to be bounded; and a part must have repr_topk tokens, if these are given
        while (res.n_repr > 1 &&
                (n_ctx/res.block_size*res.n_repr > 32768 || res.repr_topk*res.n_repr > res.block_size)) {
            res.n_repr = res.n_repr%2 == 0 ? res.n_repr/2 : 1;
        }
    }
    if (res.repr_topk == 0) {
        res.repr_topk = by_keys || by_bounds ? res.block_size/res.n_repr : std::min(4u, res.block_size/res.n_repr);
    }

    if (res.block_size%res.n_repr != 0 || res.repr_topk*res.n_repr > res.block_size) {
        return fail(::format("n_repr = %u does not divide block_size = %u into parts of at least repr_topk = %u tokens",
                res.n_repr, res.block_size, res.repr_topk));
    }
    if (by_bounds && res.repr_topk*res.n_repr != res.block_size) {
        return fail(::format("repr_topk = %u does not work with search = quest, whose bounds are of all %u keys of a part: leave "
                "repr_topk out", res.repr_topk, res.block_size/res.n_repr));
    }

    *params = res;

    return true;
}

bool llama_infllm_get_plan(
        const llama_model * model, const llama_context_params * cparams, const llama_infllm_params * params, llama_infllm_plan * plan) {
    llama_infllm_params resolved = *params;
    if (!llama_infllm_params_resolve(model, cparams, &resolved)) {
        return false;
    }
    const uint32_t n_ctx    = get_n_ctx_seq(*model, *cparams);
    const uint32_t n_ubatch = get_n_ubatch(*model, *cparams);

    *plan = llama_infllm_plan_cells(*model, *cparams, *params, n_ctx, n_ubatch);
    plan->n_cells = llama_infllm_n_cells(&resolved, n_ubatch);
    if (n_ctx <= plan->n_cells) {
        plan->limit = LLAMA_INFLLM_LIMIT_N_CTX;
    } else if (has_parts(*params)) {
        plan->limit = LLAMA_INFLLM_LIMIT_PARTS;
    }
    return true;
}

//
// contexts
//

llama_infllm_scope::llama_infllm_scope(const llama_model & model, llama_context_params & params) {
    last_error.clear();

    const bool from_env = request_env;
    if (from_env) {
        request = llama_infllm_default_params();
        if (!llama_infllm_params_parse(std::getenv("LLAMA_INFLLM"), &request, &request_active)) {
            last_error = "environment variable LLAMA_INFLLM: " + last_error;
            is_ok      = false;
        }
        request_active = request_active && !model.hparams.vocab_only; // it is tokenised with alone
        if (request_active) {
            LLAMA_LOG_INFO("%s: InfLLM memory switched on by the environment variable LLAMA_INFLLM\n", __func__);
        }
    }

    if (request_active && model.hparams.vocab_only) {
        is_ok = fail("the model was loaded with its vocabulary alone (vocab_only): there is nothing to compute");
    }
    if (request_active && is_ok) {
        is_ok = llama_infllm_params_resolve(&model, &params, &request);

        if (is_ok && params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
            // an unmodified program cannot know: some bindings switch it off by default
            if (from_env) {
                LLAMA_LOG_WARN("%s: flash attention was off; the InfLLM memory needs it, so it is switched on\n", __func__);
            } else {
                is_ok = fail("flash_attn = off does not work with the InfLLM memory: leave it on, or auto");
            }
        }
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        params.swa_full        = false; // a window that holds all tokens would take memory without bound
    }

    if (!is_ok) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, last_error.c_str());
    }
}

llama_infllm_scope::~llama_infllm_scope() {
    request_active = false;
}

static llama_kv_cache_infllm * get_mem(const llama_context * ctx) {
    return ctx ? llama_infllm_find(ctx->get_memory()) : nullptr;
}

void llama_infllm_verify(const llama_model & model, llama_memory_i * memory) {
    if (request_active && !llama_infllm_find(memory)) {
        llama_infllm_set_error("the InfLLM memory does not support the architecture \"" + model.arch_name() +
                "\": it keeps its context in a memory of another kind than the plain KV cache");
        throw std::runtime_error(last_error);
    }
}

llama_memory_i * llama_infllm_create_memory(
        const llama_model & model,
        const llama_memory_params & params,
        const llama_cparams & cparams,
        const llama_memory_i::layer_filter_cb & filter,
        const llama_memory_i::layer_filter_cb & filter_recr,
        const llama_memory_i::layer_reuse_cb & reuse) {
    if (!request_active) {
        return nullptr;
    }

    const auto & hparams   = model.hparams;
    const bool   is_hybrid = llama_model_is_hybrid(&model);
    const bool   is_swa    = hparams.swa_type != LLAMA_SWA_TYPE_NONE;

    // layers with attention, as llama_memory_hybrid chooses them
    const auto attends = [&](int32_t il) { return filter ? filter(il) : !is_hybrid || !hparams.is_recr(il); };

    try {
        const llama_infllm_memory_params prm = {
            /*.infllm    =*/ request,
            /*.rope      =*/ {
                /*.freq_base   =*/ cparams.rope_freq_base,
                /*.freq_scale  =*/ cparams.rope_freq_scale,
                /*.ext_factor  =*/ cparams.yarn_ext_factor,
                /*.attn_factor =*/ cparams.yarn_attn_factor,
                /*.beta_fast   =*/ cparams.yarn_beta_fast,
                /*.beta_slow   =*/ cparams.yarn_beta_slow,
                /*.orig_ctx    =*/ cparams.n_ctx_orig_yarn,
                /*.is_long     =*/ model.layers[0].rope_long && cparams.n_ctx_seq > cparams.n_ctx_orig_yarn,
            },
            /*.type_k    =*/ params.type_k,
            /*.type_v    =*/ params.type_v,
            /*.rot_v     =*/ llama_infllm_rotates_v(model, params.type_v),
            /*.offload   =*/ cparams.offload_kqv,
            /*.n_ubatch  =*/ cparams.n_ubatch,
            /*.n_ctx_seq =*/ std::min(cparams.n_ctx_seq, llama_infllm_n_pos_max(&model)),
            /*.n_seq_max =*/ cparams.n_seq_max,
        };

        request_active = false; // the model makes a plain memory of its own
        const auto keys = llama_infllm_probe_keys(model, cparams);
        request_active = true;

        llama_infllm_composite::parts parts;
        parts.full = std::make_unique<llama_kv_cache_infllm>(model, prm, keys,
                [&](int32_t il) { return attends(il) && !hparams.is_swa(il); }, reuse);
        if (is_swa) {
            // its size is that of llama_kv_cache_iswa
            const uint32_t n_seq = cparams.kv_unified ? cparams.n_seq_max : 1;
            const uint32_t size  = GGML_PAD(std::min(cparams.n_ctx_seq, hparams.n_swa*n_seq + cparams.n_ubatch), 256);
            parts.swa = std::make_unique<llama_kv_cache>(model, hparams, params.type_k, params.type_v, !cparams.flash_attn,
                    cparams.offload_kqv, cparams.kv_unified, size, cparams.n_seq_max, 1, hparams.n_swa, hparams.swa_type, nullptr,
                    [&](int32_t il) { return attends(il) && hparams.is_swa(il); }, reuse, nullptr);
        }
        if (is_hybrid) {
            parts.recr = std::make_unique<llama_memory_recurrent>(model, GGML_TYPE_F32, GGML_TYPE_F32, cparams.offload_kqv,
                    std::max(1u, cparams.n_seq_max), cparams.n_seq_max, cparams.n_rs_seq,
                    [&](int32_t il) { return filter_recr ? filter_recr(il) : hparams.is_recr(il); });
        }
        if (!parts.swa && !parts.recr) {
            return parts.full.release();
        }
        return new llama_infllm_composite(hparams, std::move(parts));
    } catch (const std::exception & err) {
        llama_infllm_set_error(err.what());
        throw;
    }
}

// params: nullptr for a context without the method
static llama_context * init_from_model(llama_model * model, llama_context_params cparams, const llama_infllm_params * params) {
    last_error.clear();

    if (!model) {
        llama_infllm_set_error("model is NULL");
        return nullptr;
    }

    request_env    = false;
    request_active = params != nullptr;
    if (params) {
        request = *params;
    }

    llama_context * ctx = llama_init_from_model(model, cparams);

    request_env    = true;
    request_active = false; // also when llama_init_from_model() returned before its scope began

    if (!ctx && last_error.empty()) {
        llama_infllm_set_error("llama_init_from_model() failed, see the log");
    }

    return ctx;
}

llama_context * llama_infllm_init_from_model(
        llama_model * model, llama_context_params cparams, llama_infllm_params params) {
    return init_from_model(model, cparams, &params);
}

llama_context * llama_infllm_init_from_model_plain(llama_model * model, llama_context_params cparams) {
    return init_from_model(model, cparams, nullptr);
}

const char * llama_infllm_last_error(void) {
    return last_error.c_str();
}

//
// queries
//

bool llama_infllm_active(const llama_context * ctx) {
    return get_mem(ctx) != nullptr;
}

bool llama_infllm_get_params(const llama_context * ctx, llama_infllm_params * params) {
    const auto * mem = get_mem(ctx);
    if (mem) {
        *params = mem->get_params();
    }
    return mem != nullptr;
}

uint32_t llama_infllm_n_end(const llama_context * ctx) {
    const auto * mem = get_mem(ctx);
    return mem ? mem->get_selector().n_end() : N_END_PLAIN;
}

uint32_t llama_infllm_ubatch_end(const llama_context * ctx, uint32_t p0, uint32_t p1, bool ends) {
    return p0 >= p1 ? p1 : infllm::text_split { llama_n_ubatch(ctx), ends ? llama_infllm_n_end(ctx) : 0 }.next(p0, p1);
}

uint32_t llama_infllm_batch_end(const llama_context * ctx, uint32_t p0, uint32_t p1, bool ends) {
    const infllm::text_split split = { llama_n_ubatch(ctx), ends ? llama_infllm_n_end(ctx) : 0 };
    return p0 >= p1 ? p1 : split.batch_end(p0, p1, llama_n_batch(ctx));
}

bool llama_infllm_check_tokens(const llama_context * ctx, llama_seq_id seq_id, uint32_t n_tokens) {
    const auto * mem = get_mem(ctx);
    last_error = mem ? mem->check_tokens(seq_id, n_tokens) : "";
    return last_error.empty();
}

bool llama_infllm_get_stats(const llama_context * ctx, int32_t il, llama_infllm_stats * stats) {
    const auto * mem = get_mem(ctx);
    *stats = {};
    return mem && mem->add_stats(il, *stats);
}

int32_t llama_infllm_paging_reason(const llama_context * ctx, int32_t il, char * buf, size_t buf_size) {
    const auto * mem = get_mem(ctx);
    return mem ? snprintf(buf, buf_size, "%s", mem->get_paging_reason(il).c_str()) : -1;
}

void llama_infllm_reset_stats(llama_context * ctx) {
    if (auto * mem = get_mem(ctx)) {
        mem->reset_stats();
    }
}

void llama_infllm_set_trace(llama_context * ctx, llama_infllm_trace_callback callback, void * user_data) {
    if (auto * mem = get_mem(ctx)) {
        mem->set_trace(callback, user_data);
    }
}

void llama_infllm_set_scores(llama_context * ctx, llama_infllm_score_callback callback, void * user_data) {
    if (auto * mem = get_mem(ctx)) {
        mem->set_scores(callback, user_data);
    }
}

uint32_t llama_infllm_check_slots(llama_context * ctx) {
    auto * mem = get_mem(ctx);
    return mem ? mem->check_slots() : 0;
}

//
// helpers
//

void llama_infllm_to_f32(ggml_type type, const void * src, float * dst, int64_t n) {
    if (type == GGML_TYPE_F32) {
        std::memcpy(dst, src, n*sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

void llama_infllm_from_f32(ggml_type type, const float * src, void * dst, int64_t n_row, int64_t n_per_row) {
    ggml_quantize_chunk(type, src, dst, 0, n_row, n_per_row, nullptr);
}
