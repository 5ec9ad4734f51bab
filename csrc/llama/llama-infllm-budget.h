#pragma once

// How many cells the resident buffer of a sequence has where nobody says, and how window and slots divide them.

#include "llama-infllm.h"

#include <string>

// by the memory that is free, the speed that is asked for, and the training length; n_ctx: tokens of a sequence
llama_infllm_plan llama_infllm_plan_cells(
        const llama_model & model, const llama_context_params & cparams, const llama_infllm_params & params, uint32_t n_ctx, uint32_t n_ubatch);

// n_local, topk and max_cached_blocks for so many cells; why there are too few, "" if there are enough
std::string llama_infllm_divide(const llama_infllm_plan & plan, uint32_t n_ctx, uint32_t n_ubatch, llama_infllm_params & params);

// as few as find most: what of n_local, topk and max_cached_blocks is automatic follows from the training length
void llama_infllm_divide_fast(uint32_t n_ctx_train, uint32_t n_ubatch, llama_infllm_params & params);
