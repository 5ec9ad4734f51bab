#include "llama-infllm-graph.h"

#include "llama-infllm-composite.h"
#include "llama-infllm-impl.h"
#include "llama-infllm-input.h"
#include "llama-infllm-probe.h"

#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-kv-cache-iswa.h"

#include "ggml-backend.h"

#include <cmath>
#include <stdexcept>

// for backends that would multiply in half precision
static void set_prec_f32(ggml_tensor * t) {
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#endif
    ggml_mul_mat_set_prec(t, GGML_PREC_F32); // what replaces it is newer than some releases that the patch applies to
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
}

ggml_tensor * llama_infllm_new_input(const llm_graph_context & graph, ggml_type type, llama_infllm_shape shape, const char * name) {
    ggml_tensor * t = ggml_new_tensor_4d(graph.ctx0, type, shape.ne0, shape.ne1, shape.ne2, shape.ne3);
    ggml_set_input(t);
    ggml_set_name(t, name);
    return t;
}

ggml_tensor * llama_infllm_token_sum(ggml_context * ctx0, ggml_tensor * x, ggml_tensor * w) {
    if (!w) {
        return x;
    }

    x = ggml_view_4d(ctx0, x, x->ne[0], x->ne[1], w->ne[0], w->ne[2], x->nb[1], x->nb[2], w->ne[0]*x->nb[2], 0);

    ggml_tensor * x_t = ggml_cont(ctx0, ggml_permute(ctx0, x, 1, 2, 0, 3)); // [n_tokens, n_embd_head, n_head, n_stream]

    ggml_tensor * res = ggml_mul_mat(ctx0, ggml_reshape_3d(ctx0, x_t, x_t->ne[0], x_t->ne[1]*x_t->ne[2], x_t->ne[3]), w);

    return ggml_reshape_3d(ctx0, res, x->ne[0], x->ne[1], w->ne[1]*w->ne[2]);
}

ggml_tensor * llama_infllm_head_sum(ggml_context * ctx0, ggml_tensor * x, int64_t n_head_repr) {
    x = ggml_is_contiguous(x) ? x : ggml_cont(ctx0, x);
    x = ggml_reshape_4d(ctx0, x, x->ne[0], x->ne[1]/n_head_repr, n_head_repr, x->ne[2]);

    const int64_t n_embd = x->ne[0]*n_head_repr;
    const int64_t n      = x->ne[3];
    if (x->ne[1] > 1) {
        x = ggml_sum_rows(ctx0, ggml_cont(ctx0, ggml_permute(ctx0, x, 1, 0, 2, 3)));
    }

    return ggml_reshape_2d(ctx0, x, n_embd, n);
}

// the one that the buffer of t belongs to
static ggml_backend_t get_backend(const llm_graph_context & graph, const ggml_tensor * t) {
    if (ggml_backend_buffer_is_host(t->buffer)) {
        return graph.backend_cpu;
    }
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(t->buffer));
    for (int i = 0; i < ggml_backend_sched_get_n_backends(graph.sched); ++i) {
        if (ggml_backend_get_device(ggml_backend_sched_get_backend(graph.sched, i)) == dev) {
            return ggml_backend_sched_get_backend(graph.sched, i);
        }
    }
    // seen when the context is made, which reserves these graphs
    throw std::runtime_error(::format("the InfLLM memory has %s on %s, which this context does not compute on", t->name,
            ggml_backend_buffer_name(t->buffer)));
}

void llama_infllm_pin(const llm_graph_context & graph, ggml_tensor * op, const ggml_tensor * resident) {
    ggml_backend_sched_set_tensor_backend(graph.sched, op, get_backend(graph, resident));
}

void llama_infllm_pin_attn(const llm_graph_context & graph, ggml_tensor * attn) {
    const auto * mctx = llama_infllm_find(graph.mctx);
    if (mctx && mctx->get_layers().is_resident(attn->src[1])) {
        llama_infllm_pin(graph, attn, attn->src[1]->view_src);
    }
}

// The attention that each cell gets from the queries of which it is in the local window. This is what flash attention keeps
// to itself, so it is computed again.
//   q   [n_embd_head, n_head, n_tokens]
//   k   [n_embd_head, n_head_kv, n_kv]
//   res [1, n_kv, n_head]
static ggml_tensor * build_attention_sum(
        const llm_graph_context & graph,
        const llm_graph_input_attn_infllm * inp,
        const llama_infllm_layer & l,
        ggml_tensor * q, ggml_tensor * k, ggml_tensor * sinks, float kq_scale) {
    ggml_context * ctx0 = graph.ctx0;

    ggml_tensor * kq = ggml_mul_mat(ctx0, ggml_permute(ctx0, k, 0, 2, 1, 3), ggml_permute(ctx0, q, 0, 2, 1, 3));
    set_prec_f32(kq);
    llama_infllm_pin(graph, kq, l.k);

    ggml_tensor * p = ggml_soft_max_ext(ctx0, kq, inp->self_kq_mask, kq_scale, graph.hparams.f_max_alibi_bias); // [n_kv, n_tokens, n_head]
    ggml_soft_max_add_sinks(p, sinks);

    p = ggml_mul(ctx0, p, inp->window);

    return ggml_sum_rows(ctx0, ggml_cont(ctx0, ggml_permute(ctx0, p, 1, 0, 2, 3)));
}

// The op runs on the layer's device, if that pages by itself; else on the CPU, between two splits of the graph. It is
// pinned in both cases, since some backends claim to support every op (see docs/architecture.md).
static void build_page_op(
        const llm_graph_context & graph,
        const llm_graph_input_attn_infllm * inp,
        const llama_infllm_layer & l,
        ggml_tensor * q_sum,  // [n_embd_head_k, n_head, n_chunk*n_stream], or nullptr
        ggml_tensor * scores, // [n_row, n_sub, n_stream], or nullptr
        llama_infllm_pagers::op_kind kind) {
    auto & paging = inp->mctx_infllm->get_mem()->get_paging();

    ggml_tensor * args[3] = { inp->info };
    int n_args = 1;
    for (auto * arg : { q_sum, scores }) {
        if (arg) {
            args[n_args++] = arg;
        }
    }

    ggml_tensor * page = ggml_custom_4d(graph.ctx0, GGML_TYPE_F32, 1, 1, 1, 1, args, n_args, paging.of(l).get_fun(), GGML_N_TASKS_MAX,
            paging.of(l).get_op(l.idx, kind));
    graph.cb(page, "infllm_page", l.il);
    ggml_backend_sched_set_tensor_backend(graph.sched, page, paging.by_device(l) ? get_backend(graph, l.k) : graph.backend_cpu);
    ggml_build_forward_expand(graph.gf, page);
}

//
// llama_infllm_attn
//

llama_infllm_attn::llama_infllm_attn(
        const llm_graph_context & graph,
        llm_graph_input_attn_kv * inp,
        ggml_tensor * q_cur,
        ggml_tensor * sinks,
        float kq_scale) :
    graph(graph),
    mctx(inp->mctx),
    inp(dynamic_cast<llm_graph_input_attn_infllm *>(inp)),
    q_cur(q_cur),
    sinks(sinks),
    kq_scale(kq_scale) {
}

llama_infllm_attn::llama_infllm_attn(
        const llm_graph_context & graph,
        llm_graph_input_attn_k * inp_k,
        ggml_tensor * q_cur,
        ggml_tensor * sinks,
        float kq_scale) :
    graph(graph),
    mctx(inp_k->mctx),
    inp(nullptr),
    q_cur(q_cur),
    sinks(sinks),
    kq_scale(kq_scale) {
    if (auto * latent = dynamic_cast<llm_graph_input_attn_infllm_k *>(inp_k)) {
        inp = latent->full.get();
    }
}

llama_infllm_attn::llama_infllm_attn(
        const llm_graph_context & graph,
        llm_graph_input_attn_kv_iswa * inp_iswa,
        ggml_tensor * q_cur,
        ggml_tensor * sinks,
        float kq_scale,
        bool is_swa) :
    graph(graph),
    mctx(nullptr),
    inp(nullptr),
    q_cur(q_cur),
    sinks(sinks),
    kq_scale(kq_scale) {
    if (auto * parts = dynamic_cast<llm_graph_input_attn_infllm_iswa *>(inp_iswa)) {
        mctx = is_swa ? parts->swa.mctx : nullptr;
        inp  = is_swa ? nullptr : parts->full.get();
    } else {
        mctx = is_swa ? inp_iswa->mctx->get_swa() : inp_iswa->mctx->get_base();
    }
}

uint32_t llama_infllm_attn::get_n_kv() const {
    return inp ? inp->n_kv : mctx->get_n_kv();
}

// all heads of the ubatch to its cells
static ggml_tensor * build_cpy(
        const llm_graph_context & graph,
        ggml_tensor * cells, ggml_tensor * cur, ggml_tensor * idxs) {
    ggml_context * ctx0 = graph.ctx0;
    ggml_tensor  * dst  = cells;

    cur = ggml_view_2d(ctx0, cur, cur->ne[0]*cur->ne[1], cur->ne[2], cur->nb[2], 0);
    if (dst->ne[2] > 1) { // without a view backends can fuse this with the RoPE of K
        dst = ggml_view_2d(ctx0, dst, dst->ne[0], dst->ne[1]*dst->ne[2], dst->nb[1], 0);
    }
    ggml_tensor * rows = ggml_set_rows(ctx0, dst, cur, idxs);
    llama_infllm_pin(graph, rows, cells);
    return rows;
}

ggml_tensor * llama_infllm_attn::cpy_k(ggml_context * ctx, ggml_tensor * k_cur, ggml_tensor * k_idxs, int32_t il) const {
    llama_infllm_probe(k_cur, il);
    if (!inp) {
        return mctx->cpy_k(ctx, k_cur, k_idxs, il);
    }
    return build_cpy(graph, inp->mctx_infllm->get_layers().get(il).k, k_cur, k_idxs);
}

ggml_tensor * llama_infllm_attn::cpy_v(ggml_context * ctx, ggml_tensor * v_cur, ggml_tensor * v_idxs, int32_t il) const {
    if (!inp) {
        return mctx->cpy_v(ctx, v_cur, v_idxs, il);
    }
    return build_cpy(graph, inp->mctx_infllm->get_layers().get(il).v, v_cur, v_idxs);
}

// the cells in use, of each stream
static ggml_tensor * build_resident(
        ggml_context * ctx0,
        const llm_graph_input_attn_infllm * inp,
        ggml_tensor * t, int64_t n_embd_head, int64_t n_head) {
    return ggml_view_4d(ctx0, t, n_embd_head, n_head, inp->n_kv, inp->n_stream,
            ggml_row_size(t->type, n_embd_head), t->nb[1], t->nb[2], inp->seq_id*t->nb[2]);
}

ggml_tensor * llama_infllm_attn::get_k(ggml_context * ctx, int32_t il) const {
    if (!inp) {
        return mctx->get_k(ctx, il);
    }
    build_page(il);

    const auto & l = inp->mctx_infllm->get_layers().get(il);
    return build_resident(ctx, inp, l.k, l.shape.n_embd_head_k, l.shape.n_head_kv);
}

ggml_tensor * llama_infllm_attn::get_v(ggml_context * ctx, int32_t il) const {
    if (!inp) {
        return mctx->get_v(ctx, il);
    }
    const auto & l = inp->mctx_infllm->get_layers().get(il);
    return build_resident(ctx, inp, l.v, l.n_embd_head_v, l.shape.n_head_kv);
}

void llama_infllm_attn::build_page(int32_t il) const {
    ggml_context * ctx0 = graph.ctx0;

    const auto * mctx     = inp->mctx_infllm;
    const auto & layers   = mctx->get_layers();
    const auto & selector = *layers.selector;
    const auto & paging   = mctx->get_mem()->get_paging();
    const auto & l        = layers.get(il);

    if (!layers.can_page() || il != l.il) { // or it attends to another layer's keys, which have been paged
        return;
    }

    const int64_t n_block = mctx->get_n_block();
    const int64_t n_row   = n_block*l.shape.n_repr; // representative keys

    const bool again = n_block > 0 && !l.repr && !inp->has_scores;

    ggml_tensor * q_sum  = l.shape.sums_queries() ? llama_infllm_token_sum(ctx0, q_cur, inp->w_sum) : nullptr;
    ggml_tensor * scores = nullptr;
    if (n_block > 0 && inp->has_scores) {
        scores = llama_infllm_new_input(graph, GGML_TYPE_F32, { n_row }, "infllm_inp_scores");
        inp->scores.push_back({ il, scores });
    } else if (n_block > 0 && !again) {
        ggml_tensor * cur  = selector.build_search(graph, *inp, layers, l, q_cur);
        ggml_tensor * repr = ggml_view_3d(ctx0, l.repr, l.repr->ne[0], n_row, inp->n_stream,
                l.repr->nb[1], l.repr->nb[2], inp->seq_id*l.repr->nb[2]);

        scores = ggml_mul_mat(ctx0, repr, cur); // [n_row, n_sub, n_stream]
        set_prec_f32(scores); // sums over all heads get large
        llama_infllm_pin(graph, scores, l.repr);
        graph.cb(scores, "infllm_scores", il);
    }

    const bool follows = again && paging.of(l).is_follower(l.idx);
    if (q_sum || scores || (again && !follows)) {
        build_page_op(graph, inp, l, q_sum, scores, follows ? llama_infllm_pagers::OP_SUM : again ? llama_infllm_pagers::OP_AGAIN :
                inp->has_scores ? llama_infllm_pagers::OP_ALONE : llama_infllm_pagers::OP_SEARCH);
    }

    if (selector.sums_attention()) {
        ggml_tensor * k = build_resident(ctx0, inp, l.k, l.shape.n_embd_head_k, l.shape.n_head_kv);
        ggml_tensor * args[2] = { inp->info, build_attention_sum(graph, inp, l, q_cur, k, sinks, kq_scale) };
        ggml_tensor * op = ggml_custom_4d(ctx0, GGML_TYPE_F32, 1, 1, 1, 1, args, 2, infllm::host_pager_add_attention, 1,
                mctx->get_mem()->get_paging().of(l).get_op(l.idx, llama_infllm_pagers::OP_ALONE));
        ggml_backend_sched_set_tensor_backend(graph.sched, op, graph.backend_cpu);
        ggml_build_forward_expand(graph.gf, op);
    }
}
