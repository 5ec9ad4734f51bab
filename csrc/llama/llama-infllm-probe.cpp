#include "llama-infllm-probe.h"

#include "llama-adapter.h"
#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <memory>
#include <stdexcept>

static thread_local std::map<int32_t, llama_infllm_key> * probed = nullptr;

// from what is written to the cache back to RoPE
//   rot0  of the dimensions of t, the first that is meant
static void find_rope(const ggml_tensor * t, uint32_t rot0, llama_infllm_key & res) {
    switch (t->op) {
        case GGML_OP_ROPE:
            res.rope.emplace(t, rot0);
            return;
        case GGML_OP_CONCAT: {
            find_rope(t->src[0], rot0, res);
            if (!res.rope) {
                find_rope(t->src[1], rot0 + (t->op_params[0] == 0 ? t->src[0]->ne[0] : 0), res);
            }
            return;
        }
        case GGML_OP_MUL: { // by a weight
            llama_infllm_key before;
            find_rope(t->src[0], rot0, before);
            if (before.rope) {
                res = before;
                res.is_weighted = true;
            }
            return;
        }
        case GGML_OP_CONT:
        case GGML_OP_CPY:
        case GGML_OP_PERMUTE:
        case GGML_OP_REPEAT:
        case GGML_OP_RESHAPE:
        case GGML_OP_RMS_NORM:
        case GGML_OP_SCALE:
        case GGML_OP_VIEW:
            find_rope(t->src[0], rot0, res);
            return;
        default:
            return; // a projection, most often: no RoPE
    }
}

void llama_infllm_probe(const ggml_tensor * k_cur, int32_t il) {
    if (probed) {
        find_rope(k_cur, 0, (*probed)[il]);
    }
}

std::map<int32_t, llama_infllm_key> llama_infllm_probe_keys(const llama_model & model, const llama_cparams & cparams) {
    // a cache of few cells, and what the graph asks of it
    llama_cparams small = cparams;
    small.n_ctx     = 256;
    small.n_ctx_seq = 256;
    small.n_seq_max = 1;
    small.n_ubatch  = 1;

    const llama_memory_params prm = { GGML_TYPE_F16, GGML_TYPE_F16, /*.swa_full =*/ false, cparams.ctx_type, nullptr };
    const std::unique_ptr<llama_memory_i> memory(model.create_memory(prm, small));
    const auto mctx = memory->init_full();

    llama_batch_allocr balloc(model.hparams.n_pos_per_embd());
    llm_graph_result   result(1 << 16);
    const llama_adapter_cvec  cvec;
    const llama_adapter_loras loras;

    llm_graph_params params = {};
    params.arch      = model.arch;
    params.hparams   = model.hparams;
    params.cparams   = cparams; // of the context to be: frequencies may depend on n_ctx
    params.ubatch    = balloc.ubatch_reserve(1, 1);
    params.gtype     = LLM_GRAPH_TYPE_DEFAULT;
    params.cvec      = &cvec;
    params.loras     = &loras;
    params.mctx      = mctx.get();
    params.n_outputs = 1;
    params.cb        = [](const llama_ubatch &, ggml_tensor *, const char *, int) {};
    params.res       = &result;
    params.cparams.n_seq_max   = 1;
    params.cparams.offload_kqv = true; // nothing is computed, so nothing is placed

    std::map<int32_t, llama_infllm_key> res;
    probed = &res;
    try {
        result.reset();
        model.build_graph(params);
    } catch (...) {
        probed = nullptr;
        throw;
    }
    probed = nullptr;
    return res;
}
