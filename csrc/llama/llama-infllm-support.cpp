#include "llama-infllm-impl.h"
#include "llama-infllm-selector.h"

#include "llama-arch.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>

// Keys and values of these types can be written, searched by, rotated and attended. Attention would read f32 as f16.
static const struct {
    ggml_type       type;
    infllm::kv_type kv; // in kv-row.h
} types_kv[] = {
    { GGML_TYPE_F16,  infllm::KV_F16  }, { GGML_TYPE_BF16, infllm::KV_BF16 }, { GGML_TYPE_Q8_0, infllm::KV_Q8_0 },
    { GGML_TYPE_Q5_1, infllm::KV_Q5_1 }, { GGML_TYPE_Q5_0, infllm::KV_Q5_0 }, { GGML_TYPE_Q4_1, infllm::KV_Q4_1 },
    { GGML_TYPE_Q4_0, infllm::KV_Q4_0 }, { GGML_TYPE_IQ4_NL, infllm::KV_IQ4_NL },
};

infllm::kv_type llama_infllm_to_kv(ggml_type type) {
    for (const auto & t : types_kv) {
        if (t.type == type) {
            return t.kv;
        }
    }
    GGML_ABORT("a type that llama_infllm_why_not() refuses");
}

ggml_type llama_infllm_to_ggml(infllm::kv_type kv) {
    for (const auto & t : types_kv) {
        if (t.kv == kv) {
            return t.type;
        }
    }
    GGML_ABORT("unknown type of K");
}

void llama_infllm_for_each_layer(const llama_model & model, const std::function<void(uint32_t)> & f) {
    const auto & hparams = model.hparams;

    // all layers of this one do both
    const bool is_either = llama_model_is_hybrid(&model) && model.arch != LLM_ARCH_FALCON_H1;

    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (hparams.has_kv(il) && hparams.n_head_kv(il) > 0 && !hparams.is_swa(il) && !(is_either && hparams.is_recr(il))) {
            f(il);
        }
    }
}

std::map<std::string, const ggml_tensor *> llama_infllm_weights(const llama_model & model) {
    return { model.tensors_by_name.begin(), model.tensors_by_name.end() };
}

uint32_t llama_infllm_n_layer(const llama_model * model, ggml_backend_dev_t dev, uint64_t * n_k, uint64_t * n_v) {
    const auto & hparams = model->hparams;

    uint32_t res = 0;
    *n_k = *n_v = 0;
    llama_infllm_for_each_layer(*model, [&](uint32_t il) {
        if (dev && dev != model->dev_layer(il)) {
            return;
        }
        res  += 1;
        *n_k += hparams.n_embd_k_gqa(il);
        *n_v += hparams.is_mla() ? 0 : hparams.n_embd_v_gqa(il);
    });
    return res;
}

uint64_t llama_infllm_repr_bytes(const llama_model * model, const llama_infllm_params * params, uint32_t n_block) {
    const auto & hparams  = model->hparams;
    const auto   selector = llama_infllm_selector::make(*params);

    uint64_t res = 0;
    uint32_t idx = 0;
    llama_infllm_for_each_layer(*model, [&](uint32_t il) {
        if (selector->searches(idx++)) {
            res += uint64_t(selector->n_head_repr(hparams.n_head(il), hparams.n_head_kv(il)))*hparams.n_embd_head_k(il);
        }
    });
    return res*params->n_repr*GGML_PAD(uint64_t(n_block), 64)*sizeof(ggml_fp16_t);
}

// why the attention of the model cannot have this memory, "" if it can
static std::string why_not_attention(const llama_model & model, const llama_context_params & cparams) {
    const auto & hparams = model.hparams;

    const bool causal = cparams.attention_type == LLAMA_ATTENTION_TYPE_UNSPECIFIED ? hparams.causal_attn :
        cparams.attention_type == LLAMA_ATTENTION_TYPE_CAUSAL;

    uint64_t n_k;
    uint64_t n_v;

    const struct {
        bool         cond;
        const char * why;
    } reasons[] = {
        { llama_model_has_encoder(&model),                         "it has an encoder" },
        { !causal,                                                 "its attention is not causal" },
        { llama_model_is_recurrent(&model),                        "it has no attention" },
        { llama_infllm_n_layer(&model, nullptr, &n_k, &n_v) == 0,           "no layer of it attends to all tokens" },
        { hparams.indexer_head_size > 0,                           "it selects tokens by itself, with an indexer" },
        { model.arch == LLM_ARCH_GROK,                             "flash attention cannot compute it" },
        { model.arch == LLM_ARCH_DFLASH,                           "it writes the cache by itself" },
        { model.split_mode() == LLAMA_SPLIT_MODE_TENSOR,           "its tensors are split over devices, use split_mode = layer" },
        { cparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT,          "the context is not an ordinary one" },
    };
    for (const auto & reason : reasons) {
        if (reason.cond) {
            return reason.why;
        }
    }
    return "";
}

static std::string why_not_type(const llama_model & model, const char * name, ggml_type type, bool is_k) {
    bool        known = false;
    std::string names;
    for (const auto & t : types_kv) {
        known = known || t.type == type;
        names += std::string(names.empty() ? "" : t.type == GGML_TYPE_IQ4_NL ? " or " : ", ") + ggml_type_name(t.type);
    }
    if (!known) {
        const bool exists = type >= 0 && type < GGML_TYPE_COUNT && ggml_type_name(type);
        return ::format("%s = %s is not supported by the InfLLM memory: use %s", name,
                exists ? ggml_type_name(type) : std::to_string(type).c_str(), names.c_str());
    }
    for (uint32_t il = 0; il < model.hparams.n_layer_all && (is_k || !model.hparams.is_mla()); ++il) {
        const uint32_t n_embd_head = is_k ? model.hparams.n_embd_head_k(il) : model.hparams.n_embd_head_v(il);
        if (n_embd_head%ggml_blck_size(type) != 0) {
            return ::format("%s = %s needs heads of a multiple of %d, but layer %u has heads of %u: use f16 or bf16", name,
                    ggml_type_name(type), int(ggml_blck_size(type)), il, n_embd_head);
        }
    }
    return "";
}

std::string llama_infllm_why_not(const llama_model & model, const llama_context_params & cparams) {
    const auto why = why_not_attention(model, cparams);
    if (!why.empty()) {
        return "the InfLLM memory does not support the architecture \"" + model.arch_name() + "\": " + why;
    }
    const uint32_t n_ctx     = cparams.n_ctx == 0 ? model.hparams.n_ctx_train : cparams.n_ctx;
    const uint32_t n_ctx_seq = cparams.kv_unified ? n_ctx : n_ctx/std::max(1u, cparams.n_seq_max);
    const uint32_t n_pos_max = llama_infllm_n_pos_max(&model);
    if (n_ctx_seq > n_pos_max) {
        return ::format("n_ctx = %u gives a sequence more tokens than the %u positions that the model has embeddings for: lower n_ctx",
                n_ctx, n_pos_max);
    }
    const auto why_k = why_not_type(model, "type_k", cparams.type_k, true);
    return why_k.empty() ? why_not_type(model, "type_v", cparams.type_v, false) : why_k;
}

static ggml_type type_of(llama_infllm_type_store type) {
    return type == LLAMA_INFLLM_TYPE_STORE_Q8_0 ? GGML_TYPE_Q8_0 : type == LLAMA_INFLLM_TYPE_STORE_Q4_0 ? GGML_TYPE_Q4_0 : GGML_TYPE_F16;
}

std::string llama_infllm_resolve_type_store(
        const llama_model & model, const llama_context_params & cparams, llama_infllm_type_store & type) {
    const ggml_type stored = type_of(type);
    const ggml_type type_k = cparams.type_k;
    const ggml_type type_v = model.hparams.is_mla() ? type_k : cparams.type_v;
    if (type == LLAMA_INFLLM_TYPE_STORE_AUTO || (stored == type_k && stored == type_v)) {
        type = LLAMA_INFLLM_TYPE_STORE_AUTO;
        return "";
    }
    if (type_k != GGML_TYPE_F16 || type_v != GGML_TYPE_F16) {
        return ::format("type_store = %s is for type_k = type_v = f16, but these are %s and %s, which are stored as they are: "
                "leave type_store out", ggml_type_name(stored), ggml_type_name(type_k), ggml_type_name(type_v));
    }
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        for (const uint32_t n : { model.hparams.n_embd_k_gqa(il), model.hparams.n_embd_v_gqa(il) }) {
            if (model.hparams.has_kv(il) && n%32 != 0) {
                return ::format("type_store = %s needs a multiple of 32 values for each token, but layer %u has %u: use f16",
                        ggml_type_name(stored), il, n);
            }
        }
    }
    return "";
}

infllm::kv_type llama_infllm_codec(llama_infllm_type_store type) {
    return llama_infllm_to_kv(type_of(type));
}

bool llama_infllm_rotates_v(const llama_model & model, ggml_type type_v) {
    const char * disable = std::getenv("LLAMA_ATTN_ROT_DISABLE");
    if ((disable && std::atoi(disable) != 0) || !ggml_is_quantized(type_v) || model.hparams.is_mla()) {
        return false;
    }
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        if (model.hparams.has_kv(il) && model.hparams.n_embd_head_v(il) != model.hparams.n_embd_head_v()) {
            return false;
        }
    }
    return model.hparams.n_embd_head_v()%64 == 0;
}

uint32_t llama_infllm_n_pos_max(const llama_model * model) {
    return model->pos_embd ? model->pos_embd->ne[1] : UINT32_MAX;
}
