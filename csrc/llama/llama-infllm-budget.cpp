#include "llama-infllm-budget.h"

#include "llama-infllm-impl.h"

#include "llama-impl.h"
#include "llama-model.h"

#include "../infllm/cell-layout.h"

#include <algorithm>
#include <map>
#include <string>

// of the cells that window and slots share: docs/evaluation.md has the figures
static constexpr double SHARE_LOCAL = 0.5;

// what a token reads of the weights: of the experts those that are used, of the embeddings a row
static uint64_t bytes_read(const llama_model & model) {
    const auto & hparams = model.hparams;
    const bool   is_tied = model.get_tensor("output.weight") == nullptr;

    double res = 0;
    for (const auto & [name, tensor] : llama_infllm_weights(model)) {
        const bool is_expert    = name.find("_exps") != std::string::npos && hparams.n_expert > 0;
        const bool is_embedding = name == "token_embd.weight" && !is_tied;
        res += is_embedding ? 0 : double(ggml_nbytes(tensor))*(is_expert ? double(hparams.n_expert_used(hparams.n_layer() - 1))/hparams.n_expert : 1);
    }
    return uint64_t(res);
}

static uint64_t bytes_of_cell(const llama_model & model, const llama_context_params & cparams, uint32_t il) {
    const auto & hparams = model.hparams;
    return ggml_row_size(cparams.type_k, hparams.n_embd_k_gqa(il)) +
        (hparams.is_mla() ? 0 : ggml_row_size(cparams.type_v, hparams.n_embd_v_gqa(il)));
}

// what has to stay in the host's memory, and counts as free there: mapped weights
static uint64_t bytes_mapped(const llama_model & model) {
    if (model.hparams.no_alloc) {
        return model.size(); // they are not there yet
    }
    uint64_t res = 0;
    for (const auto & it : model.tensors_by_name) {
        ggml_backend_buffer_t buffer = it.second->buffer;
        if (buffer && std::string(ggml_backend_buffer_name(buffer)) == "CPU_Mapped") {
            res += ggml_nbytes(it.second);
        }
    }
    return res;
}

// Cells that the devices of the layers have memory for. The host has the store, too: half of it is left to that.
static uint64_t n_cells_memory(const llama_model & model, const llama_context_params & cparams, const llama_infllm_params & params) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);

    std::map<ggml_backend_dev_t, uint64_t> bytes; // of a cell
    llama_infllm_for_each_layer(model, [&](uint32_t il) {
        bytes[cparams.offload_kqv ? model.dev_layer(il) : cpu] += bytes_of_cell(model, cparams, il);
    });

    uint64_t res = UINT64_MAX;
    for (const auto & [dev, bytes_cell] : bytes) {
        size_t free  = 0;
        size_t total = 0;
        if (dev == cpu || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            const uint64_t ram = llama_infllm_ram_free();
            if (ram == UINT64_MAX) {
                continue;
            }
            total = ram;
            free  = (ram - std::min<uint64_t>(ram, bytes_mapped(model)))/2;
        } else {
            ggml_backend_dev_memory(dev, &free, &total);
            if (total == 0) {
                continue; // it does not say
            }
        }
        const uint64_t reserve = params.reserve ? params.reserve : total/8;
        const uint64_t n       = (free - std::min<uint64_t>(free, reserve))/bytes_cell/std::max(1u, cparams.n_seq_max);
        res = std::min(res, n);
    }
    return res;
}

llama_infllm_plan llama_infllm_plan_cells(
        const llama_model & model, const llama_context_params & cparams, const llama_infllm_params & params, uint32_t n_ctx, uint32_t n_ubatch) {
    llama_infllm_plan res = {};
    llama_infllm_for_each_layer(model, [&](uint32_t il) { res.bytes_cell += bytes_of_cell(model, cparams, il); });
    res.bytes_weights  = bytes_read(model);
    res.n_cells_train  = llama_infllm_n_ctx_train(&model, &cparams);
    res.n_cells_memory = uint32_t(std::min<uint64_t>(UINT32_MAX, n_cells_memory(model, cparams, params)));

    auto fast = params;
    llama_infllm_divide_fast(res.n_cells_train, n_ubatch, fast);
    const uint32_t n_fast = llama_infllm_n_cells(&fast, n_ubatch);
    res.n_cells_fast = n_fast;

    const auto profile = params.profile == LLAMA_INFLLM_PROFILE_AUTO ? LLAMA_INFLLM_PROFILE_BALANCED : params.profile;
    res.n_cells_speed =
        profile == LLAMA_INFLLM_PROFILE_FAST  ? n_fast     :
        profile == LLAMA_INFLLM_PROFILE_EXACT ? UINT32_MAX : uint32_t(std::min<uint64_t>(UINT32_MAX, res.bytes_weights/res.bytes_cell));
    res.n_cells_speed = std::max(res.n_cells_speed, n_fast);

    res.n_cells = res.n_cells_train;
    res.limit   = LLAMA_INFLLM_LIMIT_TRAINING;
    if (params.budget) {
        res.n_cells = uint32_t(std::min<uint64_t>(res.n_cells, params.budget/res.bytes_cell));
        res.limit   = LLAMA_INFLLM_LIMIT_BUDGET;
    } else {
        if (res.n_cells_speed < res.n_cells) {
            res.n_cells = res.n_cells_speed;
            res.limit   = LLAMA_INFLLM_LIMIT_SPEED;
        }
        if (std::max(res.n_cells_memory, n_fast) < res.n_cells) {
            res.n_cells = std::max(res.n_cells_memory, n_fast);
            res.limit   = LLAMA_INFLLM_LIMIT_MEMORY;
        }
    }
    if (n_ctx <= res.n_cells) {
        res.limit = LLAMA_INFLLM_LIMIT_N_CTX;
    }
    res.n_cells = res.n_cells/256*256; // as the buffer is
    return res;
}

void llama_infllm_divide_fast(uint32_t n_ctx_train, uint32_t n_ubatch, llama_infllm_params & params) {
    if (params.n_local == 0) {
        params.n_local = std::max({ std::min(4096u, n_ctx_train/8), n_ubatch, params.block_size });
    }
    if (params.topk == 0) {
        params.topk = std::clamp(n_ctx_train/32/params.block_size, 1u, 16u);
        if (params.max_cached_blocks > 0) {
            params.topk = std::min(params.topk, params.max_cached_blocks);
        }
    }
    if (params.max_cached_blocks == 0) {
        params.max_cached_blocks = params.topk;
    }
}

std::string llama_infllm_divide(const llama_infllm_plan & plan, uint32_t n_ctx, uint32_t n_ubatch, llama_infllm_params & params) {
    // the ring has the window, the block that is about to leave it, and the ubatch being written, in whole blocks
    const int64_t n_block   = params.block_size;
    const int64_t n_shared  = int64_t(plan.n_cells) - params.n_init - n_block - (n_ubatch + n_block - 1)/n_block*n_block;
    const int64_t n_local   = std::max<int64_t>({ int64_t(SHARE_LOCAL*n_shared)/n_block*n_block, n_ubatch, n_block });
    int64_t       n_slot    = (n_shared - (n_local + n_block - 1)/n_block*n_block)/n_block;
    if (n_slot < 1) {
        const uint64_t n_min = GGML_PAD(params.n_init + 4*n_block + 2*n_ubatch, 256);
        return ::format("budget = %llu bytes gives a sequence %u cells: with n_init = %u, block_size = %u and n_ubatch = %u it needs %llu "
                "at least, %llu bytes", (unsigned long long) params.budget, plan.n_cells, params.n_init, params.block_size, n_ubatch,
                (unsigned long long) n_min, (unsigned long long) (n_min*plan.bytes_cell));
    }
    // whole blocks may leave some cells out, but what fits is to be resident; the buffer is no longer than n_ctx
    if (plan.limit == LLAMA_INFLLM_LIMIT_N_CTX && params.position == LLAMA_INFLLM_POSITION_TRUE) {
        const auto cells = infllm::cell_layout::make(params.n_init, uint32_t(n_local), params.block_size, uint32_t(n_slot), n_ubatch);
        n_slot += cells.n_cells() < n_ctx;
    }
    params.n_local           = uint32_t(n_local);
    params.topk              = uint32_t(n_slot);
    params.max_cached_blocks = uint32_t(n_slot);
    return "";
}
