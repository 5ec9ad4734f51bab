#include "llama-infllm-input.h"

#include "llama-infllm-composite.h"
#include "llama-infllm-graph.h"
#include "llama-infllm-impl.h"

#include "llama-cparams.h"

#include <cmath>

// orthonormal, and its own inverse
static void set_hadamard(ggml_tensor * dst) {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));
    auto * data = static_cast<float *>(dst->data);

    data[0] = 1.0f/std::sqrt(float(dst->ne[0]));
    for (int64_t i = 0; i < ggml_nelements(dst); ++i) {
        int sign = 1; // of the bits that row and column have in common
        for (int64_t bits = (i/dst->ne[0]) & (i%dst->ne[0]); bits; bits &= bits - 1) {
            sign = -sign;
        }
        data[i] = sign*data[0];
    }
}

//
// llm_graph_input_attn_infllm
//

void llm_graph_input_attn_infllm::set_input(const llama_ubatch * ubatch) {
    GGML_UNUSED(ubatch);

    // inputs that the graph does not use are not allocated
    const auto used = [](const ggml_tensor * t) { return t && t->buffer; };

    if (used(self_k_idxs))  { mctx_infllm->set_input_idxs   (self_k_idxs);  }
    if (used(self_kq_mask)) { mctx_infllm->set_input_kq_mask(self_kq_mask, cparams.causal_attn); }
    if (used(w_sum))        { mctx_infllm->set_input_w_sum  (w_sum);        }
    if (used(w_mean))       { mctx_infllm->set_input_w_mean (w_mean);       }
    if (used(q_shift))      { mctx_infllm->set_input_q_shift(q_shift);      }
    if (used(key_idxs))     { mctx_infllm->set_input_key_idxs (key_idxs);   }
    if (used(key_shift))    { mctx_infllm->set_input_key_shift(key_shift);  }
    if (used(window))       { mctx_infllm->set_input_window (window);       }
    if (used(info))         { mctx_infllm->set_input_info   (info);         }
    if (used(self_v_rot))   { set_hadamard(self_v_rot); }

    for (const auto & [il, t] : scores) {
        mctx_infllm->set_input_scores(t, il);
    }
}

bool llm_graph_input_attn_infllm::can_reuse(const llm_graph_params & params) {
    mctx_infllm = llama_infllm_find(params.mctx);

    return self_k_idxs->ne[0] == params.ubatch.n_tokens &&
        seq_id  == mctx_infllm->get_seq_id() &&
        n_stream == mctx_infllm->get_n_stream(params.ubatch) &&
        n_kv    == mctx_infllm->get_n_kv() &&
        n_block == mctx_infllm->get_n_block() &&
        n_block_cap == mctx_infllm->get_layers().get_n_block_cap() &&
        by_devices == mctx_infllm->get_mem()->get_paging().has_devices() &&
        has_scores == mctx_infllm->get_mem()->has_scores();
}

static std::unique_ptr<llm_graph_input_attn_infllm> build_full(
        const llm_graph_context & graph, const llama_kv_cache_infllm_context * mctx) {
    const uint32_t n_stream = mctx->get_n_stream(graph.ubatch);

    auto inp = std::make_unique<llm_graph_input_attn_infllm>(graph.hparams, graph.cparams, mctx, n_stream);

    const auto &  layers   = mctx->get_layers();
    const auto &  selector = *layers.selector;
    const int64_t n_tokens = graph.n_tokens/n_stream; // of each

    const auto new_input = [&](ggml_type type, int64_t ne0, int64_t ne1, const char * name) {
        return llama_infllm_new_input(graph, type, { ne0, ne1 }, name);
    };

    inp->self_k_idxs      = new_input(GGML_TYPE_I64, graph.n_tokens, 1, "infllm_inp_idxs");
    inp->self_v_idxs      = inp->self_k_idxs;
    inp->self_kq_mask     = llama_infllm_new_input(graph, graph.cparams.flash_attn ? GGML_TYPE_F16 : GGML_TYPE_F32,
                                                   { mctx->get_n_kv(), n_tokens, 1, n_stream }, "attn_inp_kq_mask");
    inp->self_kq_mask_cnv = inp->self_kq_mask;

    if (layers.can_page()) {
        inp->info = new_input(GGML_TYPE_I32, infllm::PAGER_INFO_SIZE, n_stream, "infllm_inp_info");
        if (selector.sums_attention()) {
            inp->window = new_input(GGML_TYPE_F32, mctx->get_n_kv(), n_tokens, "infllm_inp_window");
        } else if (selector.sums_queries() && n_tokens > 1) {
            inp->w_sum = new_input(GGML_TYPE_F32, n_tokens, mctx->get_n_chunk(n_tokens), "infllm_inp_w_sum");
        }
    }
    if (mctx->get_n_block() > 0) {
        selector.build_inputs(graph, *inp);
    }

    if (layers.prm.rot_v) {
        inp->self_v_rot = new_input(GGML_TYPE_F32, 64, 64, "attn_inp_v_rot");
    }

    mctx->get_mem()->get_paging().set_sched(graph.sched);

    return inp;
}

llm_graph_input_attn_kv * llama_infllm_build_attn_inp_kv(const llm_graph_context & graph) {
    const auto * mctx = llama_infllm_find(graph.mctx);

    return mctx ? static_cast<llm_graph_input_attn_kv *>(graph.res->add_input(build_full(graph, mctx))) : nullptr;
}

//
// llm_graph_input_attn_infllm_k
//

llm_graph_input_attn_infllm_k::llm_graph_input_attn_infllm_k(std::unique_ptr<llm_graph_input_attn_infllm> full_inp) :
    llm_graph_input_attn_k(full_inp->hparams, full_inp->cparams, nullptr),
    full(std::move(full_inp)) {
    // what upstream's build_attn() takes
    self_k_idxs      = full->self_k_idxs;
    self_kq_mask     = full->self_kq_mask;
    self_kq_mask_cnv = full->self_kq_mask_cnv;
}

llm_graph_input_attn_k * llama_infllm_build_attn_inp_k(const llm_graph_context & graph) {
    const auto * mctx = llama_infllm_find(graph.mctx);

    return mctx ? static_cast<llm_graph_input_attn_k *>(graph.res->add_input(
            std::make_unique<llm_graph_input_attn_infllm_k>(build_full(graph, mctx)))) : nullptr;
}

//
// llm_graph_input_attn_infllm_iswa
//

llm_graph_input_attn_infllm_iswa::llm_graph_input_attn_infllm_iswa(
        std::unique_ptr<llm_graph_input_attn_infllm> full_inp,
        const llm_graph_context & graph,
        const llama_kv_cache_context * mctx_swa) :
    llm_graph_input_attn_kv_iswa(graph.hparams, graph.cparams, nullptr),
    full(std::move(full_inp)),
    swa(graph.hparams, graph.cparams, mctx_swa) {

    ggml_context *       ctx0   = graph.ctx0;
    const llama_ubatch & ubatch = graph.ubatch;

    // as build_attn_inp_kv_iswa() does
    const int64_t n_stream = graph.cparams.kv_unified ? 1 : ubatch.n_seqs_unq;
    swa.self_k_idxs      = mctx_swa->build_input_k_idxs(ctx0, ubatch);
    swa.self_v_idxs      = mctx_swa->build_input_v_idxs(ctx0, ubatch);
    swa.self_k_rot       = mctx_swa->build_input_k_rot(ctx0);
    swa.self_v_rot       = mctx_swa->build_input_v_rot(ctx0);
    swa.self_kq_mask     = ggml_new_tensor_4d(ctx0, graph.cparams.flash_attn ? GGML_TYPE_F16 : GGML_TYPE_F32,
                                              mctx_swa->get_n_kv(), ubatch.n_tokens/n_stream, 1, n_stream);
    swa.self_kq_mask_cnv = swa.self_kq_mask;
    ggml_set_input(swa.self_kq_mask);
    ggml_set_name (swa.self_kq_mask, "attn_inp_kq_mask");

    // what upstream's build_attn() takes
    self_k_idxs          = full->self_k_idxs;
    self_v_idxs          = full->self_v_idxs;
    self_kq_mask         = full->self_kq_mask;
    self_kq_mask_cnv     = full->self_kq_mask_cnv;
    self_v_rot           = full->self_v_rot;
    self_k_idxs_swa      = swa.self_k_idxs;
    self_v_idxs_swa      = swa.self_v_idxs;
    self_kq_mask_swa     = swa.self_kq_mask;
    self_kq_mask_swa_cnv = swa.self_kq_mask_cnv;
    self_k_rot_swa       = swa.self_k_rot;
    self_v_rot_swa       = swa.self_v_rot;
}

void llm_graph_input_attn_infllm_iswa::set_input(const llama_ubatch * ubatch) {
    full->set_input(ubatch);
    swa.set_input(ubatch);
}

// what a part of the inputs must know to be used again
static llm_graph_params part_params(const llm_graph_params & params, const llama_memory_context_i * mctx) {
    llm_graph_params res = params;
    res.mctx = mctx;
    return res;
}

bool llm_graph_input_attn_infllm_iswa::can_reuse(const llm_graph_params & params) {
    const auto * mctx = static_cast<const llama_infllm_composite_context *>(params.mctx);

    const bool res = full->can_reuse(params);
    return swa.can_reuse(part_params(params, mctx->get_swa())) && res; // both must learn of the context
}

static std::unique_ptr<llm_graph_input_attn_infllm_iswa> build_iswa(
        const llm_graph_context & graph, const llama_infllm_composite_context * mctx) {
    return std::make_unique<llm_graph_input_attn_infllm_iswa>(build_full(graph, mctx->get_full()), graph, mctx->get_swa());
}

llm_graph_input_attn_kv_iswa * llama_infllm_build_attn_inp_kv_iswa(const llm_graph_context & graph) {
    const auto * mctx = dynamic_cast<const llama_infllm_composite_context *>(graph.mctx);

    return mctx ? static_cast<llm_graph_input_attn_kv_iswa *>(graph.res->add_input(build_iswa(graph, mctx))) : nullptr;
}

//
// llm_graph_input_infllm_hybrid
//

template <class Base>
void llm_graph_input_infllm_hybrid<Base>::set_input(const llama_ubatch * ubatch) {
    this->inp_attn->set_input(ubatch);
    this->inp_rs  ->set_input(ubatch);
}

template <class Base>
bool llm_graph_input_infllm_hybrid<Base>::can_reuse(const llm_graph_params & params) {
    const auto * mctx = static_cast<const llama_infllm_composite_context *>(params.mctx);

    const bool res = this->inp_attn->can_reuse(params);
    return this->inp_rs->can_reuse(part_params(params, mctx->get_recr())) && res;
}

// as build_rs_inp() does
static std::unique_ptr<llm_graph_input_rs> build_recr(
        const llm_graph_context & graph, const llama_memory_recurrent_context * mctx) {
    auto inp = std::make_unique<llm_graph_input_rs>(mctx);

    const int64_t n_rs   = mctx->get_n_rs();
    const int64_t n_seqs = graph.ubatch.n_seqs;

    inp->s_copy = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I32, n_rs);
    ggml_set_input(inp->s_copy);
    ggml_set_name (inp->s_copy, "rs_s_copy");

    inp->s_copy_main  = ggml_view_1d(graph.ctx0, inp->s_copy, n_seqs,        0);
    inp->s_copy_extra = ggml_view_1d(graph.ctx0, inp->s_copy, n_rs - n_seqs, n_seqs*inp->s_copy->nb[0]);

    inp->head = mctx->get_head();
    inp->rs_z = mctx->get_rs_z();

    return inp;
}

// attn: makes the inputs of the layers with attention
template <class Base, class Attn>
static Base * build_hybrid(const llm_graph_context & graph, Attn attn) {
    const auto * mctx = dynamic_cast<const llama_infllm_composite_context *>(graph.mctx);
    if (!mctx) {
        return nullptr;
    }
    auto inp_rs = build_recr(graph, mctx->get_recr());
    auto inp    = std::make_unique<llm_graph_input_infllm_hybrid<Base>>(graph.cparams, attn(mctx), std::move(inp_rs), nullptr);

    return static_cast<Base *>(graph.res->add_input(std::move(inp)));
}

llm_graph_input_mem_hybrid * llama_infllm_build_inp_mem_hybrid(const llm_graph_context & graph) {
    return build_hybrid<llm_graph_input_mem_hybrid>(graph, [&](const auto * mctx) { return build_full(graph, mctx->get_full()); });
}

llm_graph_input_mem_hybrid_k * llama_infllm_build_inp_mem_hybrid_k(const llm_graph_context & graph) {
    return build_hybrid<llm_graph_input_mem_hybrid_k>(graph, [&](const auto * mctx) {
        return std::make_unique<llm_graph_input_attn_infllm_k>(build_full(graph, mctx->get_full()));
    });
}

llm_graph_input_mem_hybrid_iswa * llama_infllm_build_inp_mem_hybrid_iswa(const llm_graph_context & graph) {
    return build_hybrid<llm_graph_input_mem_hybrid_iswa>(graph, [&](const auto * mctx) { return build_iswa(graph, mctx); });
}
