#include "llama-infllm-composite.h"
#include "llama-infllm-impl.h"
#include "llama-infllm-input.h"

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

// weighted sums of the queries over the tokens
//   q   [n_embd_head, n_head, n_tokens]
//   w   [n_tokens, n_sum], or nullptr for a single token
//   res [n_embd_head, n_head, n_sum]
static ggml_tensor * build_q_sum(ggml_context * ctx0, ggml_tensor * q, ggml_tensor * w) {
    if (!w) {
        return q;
    }

    ggml_tensor * q_t = ggml_cont(ctx0, ggml_permute(ctx0, q, 1, 2, 0, 3)); // [n_tokens, n_embd_head, n_head]

    ggml_tensor * res = ggml_mul_mat(ctx0, ggml_reshape_2d(ctx0, q_t, q_t->ne[0], q_t->ne[1]*q_t->ne[2]), w);

    return ggml_reshape_3d(ctx0, res, q->ne[0], q->ne[1], w->ne[1]);
}

// sums over the query heads that share a head of the representative keys
//   q   [n_embd_head, n_head, n]
//   res [n_embd_head*n_head_repr, n]
static ggml_tensor * build_head_sum(ggml_context * ctx0, ggml_tensor * q, int64_t n_head_repr) {
    q = ggml_is_contiguous(q) ? q : ggml_cont(ctx0, q);
    q = ggml_reshape_4d(ctx0, q, q->ne[0], q->ne[1]/n_head_repr, n_head_repr, q->ne[2]);

    const int64_t n_embd = q->ne[0]*n_head_repr;
    const int64_t n      = q->ne[3];
    if (q->ne[1] > 1) {
        q = ggml_sum_rows(ctx0, ggml_cont(ctx0, ggml_permute(ctx0, q, 1, 0, 2, 3)));
    }

    return ggml_reshape_2d(ctx0, q, n_embd, n);
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

// What reads a resident buffer or its representative keys runs where they lie. Left to itself, the scheduler follows the
// weights, which it lends to other backends for prompts (op_offload), and copies all that is read to there, for every ubatch.
// llama_infllm_check_device() has seen that the device can do it.
static void pin(const llm_graph_context & graph, ggml_tensor * op, const ggml_tensor * resident) {
    ggml_backend_sched_set_tensor_backend(graph.sched, op, get_backend(graph, resident));
}

void llama_infllm_pin_attn(const llm_graph_context & graph, ggml_tensor * attn) {
    const auto * mctx = llama_infllm_find(graph.mctx);
    if (mctx && mctx->get_mem()->is_resident(attn->src[1])) {
        pin(graph, attn, attn->src[1]->view_src);
    }
}

// What representative keys are compared with when queries search: means over sub-chunks, summed over the heads that share
// a KV head. All are brought to one distance from the representative keys, whose RoPE is undone. One selection serves all
// heads of a layer (InfLLM, section 3.2): their products are added up, which is the product with the sum of the queries.
//   q   [n_embd_head, n_head, n_tokens]
//   res [n_embd_head*n_head_repr, n_sub]
static ggml_tensor * build_search_queries(
        ggml_context * ctx0,
        const llm_graph_input_attn_infllm * inp,
        const llama_kv_cache_infllm::layer & l,
        ggml_tensor * q) {
    if (const auto * rope = l.mem->get_rope(l)) {
        q = rope->build_undo(ctx0, q, inp->q_shift);
    }
    return build_head_sum(ctx0, build_q_sum(ctx0, q, inp->w_mean), l.n_head_repr);
}

// The same when keys search: means over sub-chunks of keys in the ring, with RoPE undone, less the mean of all keys. That
// a context is like a stored one shows in its keys, as in kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172).
//   k   [n_embd_k_gqa, n_cells] of the sequence
//   res [n_embd_k_gqa, n_sub]
static ggml_tensor * build_search_keys(
        const llm_graph_context & graph,
        const llm_graph_input_attn_infllm * inp,
        const llama_kv_cache_infllm::layer & l,
        ggml_tensor * k) {
    ggml_context * ctx0 = graph.ctx0;

    ggml_tensor * cur = ggml_get_rows(ctx0, k, inp->key_idxs);
    pin(graph, cur, l.k);

    cur = ggml_reshape_3d(ctx0, cur, l.n_embd_head_k, l.n_head_kv, cur->ne[1]);
    if (const auto * rope = l.mem->get_rope(l)) {
        cur = rope->build_undo(ctx0, cur, inp->key_shift);
    }
    cur = build_head_sum(ctx0, build_q_sum(ctx0, cur, inp->w_mean), l.n_head_kv);

    const size_t offset = inp->seq_id*l.mean->nb[2];
    cur = ggml_sub(ctx0, cur, ggml_view_1d(ctx0, l.mean, l.mean->ne[0], offset));
    pin(graph, cur, l.mean);

    return cur;
}

// The attention that each cell gets from the queries of which it is in the local window. This is what flash attention keeps
// to itself, so it is computed again.
//   q   [n_embd_head, n_head, n_tokens]
//   k   [n_embd_head, n_head_kv, n_kv]
//   res [1, n_kv, n_head]
static ggml_tensor * build_attention_sum(
        const llm_graph_context & graph,
        const llm_graph_input_attn_infllm * inp,
        const llama_kv_cache_infllm::layer & l,
        ggml_tensor * q, ggml_tensor * k, ggml_tensor * sinks, float kq_scale) {
    ggml_context * ctx0 = graph.ctx0;

    ggml_tensor * kq = ggml_mul_mat(ctx0, ggml_permute(ctx0, k, 0, 2, 1, 3), ggml_permute(ctx0, q, 0, 2, 1, 3));
    set_prec_f32(kq);
    pin(graph, kq, l.k);

    ggml_tensor * p = ggml_soft_max_ext(ctx0, kq, inp->self_kq_mask, kq_scale, graph.hparams.f_max_alibi_bias); // [n_kv, n_tokens, n_head]
    ggml_soft_max_add_sinks(p, sinks);

    p = ggml_mul(ctx0, p, inp->window);

    return ggml_sum_rows(ctx0, ggml_cont(ctx0, ggml_permute(ctx0, p, 1, 0, 2, 3)));
}

static void page_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);

    if (ith == 0) {
        const auto * l = static_cast<const llama_kv_cache_infllm::layer *>(userdata);
        l->mem->page(*l, dst->src[0], dst->src[1]);
    }
}

// where queries are not summed up: given are scores
static void page_op_scores(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);

    if (ith == 0) {
        const auto * l = static_cast<const llama_kv_cache_infllm::layer *>(userdata);
        l->mem->page(*l, nullptr, dst->src[0]);
    }
}

static void attention_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);

    if (ith == 0) {
        const auto * l = static_cast<const llama_kv_cache_infllm::layer *>(userdata);
        l->mem->add_attention(*l, dst->src[0]);
    }
}

// The op runs on the layer's device, if that pages by itself; else on the CPU, between two splits of the graph. It is
// pinned in both cases, since some backends claim to support every op (see docs/architecture.md).
static ggml_tensor * build_page_op(
        const llm_graph_context & graph,
        const llm_graph_input_attn_infllm * inp,
        const llama_kv_cache_infllm::layer & l,
        ggml_tensor * q_sum,  // [n_embd_head_k, n_head, n_chunk], or nullptr
        ggml_tensor * scores, // [n_row, n_sub], or nullptr
        bool again) {         // select what the layer before has selected
    ggml_custom_op_t fun  = q_sum ? page_op : page_op_scores;
    void           * data = const_cast<llama_kv_cache_infllm::layer *>(&l);

    ggml_backend_t backend = graph.backend_cpu;

    ggml_tensor * args[3];
    int n_args = 0;
    if (const auto * api = l.mem->get_pager_api(l)) {
        args[n_args++] = inp->info;
        fun  = api->page;
        data = l.mem->get_page_op(l, again);
        backend = get_backend(graph, l.k);
    }
    for (auto * arg : { q_sum, scores }) {
        if (arg) {
            args[n_args++] = arg;
        }
    }

    ggml_tensor * page = ggml_custom_4d(graph.ctx0, GGML_TYPE_F32, 1, 1, 1, 1, args, n_args, fun, 1, data);
    graph.cb(page, "infllm_page", l.il);
    ggml_backend_sched_set_tensor_backend(graph.sched, page, backend);

    return page;
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
        const llm_graph_input_attn_infllm * inp,
        ggml_tensor * cells, ggml_tensor * cur, ggml_tensor * idxs) {
    ggml_context * ctx0 = graph.ctx0;
    ggml_tensor  * dst  = cells;

    cur = ggml_view_2d(ctx0, cur, cur->ne[0]*cur->ne[1], cur->ne[2], cur->nb[2], 0);
    if (dst->ne[2] > 1) { // without a view backends can fuse this with the RoPE of K
        dst = ggml_view_2d(ctx0, dst, dst->ne[0], dst->ne[1], dst->nb[1], inp->seq_id*dst->nb[2]);
    }
    ggml_tensor * rows = ggml_set_rows(ctx0, dst, cur, idxs);
    pin(graph, rows, cells);
    return rows;
}

ggml_tensor * llama_infllm_attn::cpy_k(ggml_context * ctx, ggml_tensor * k_cur, ggml_tensor * k_idxs, int32_t il) const {
    if (!inp) {
        return mctx->cpy_k(ctx, k_cur, k_idxs, il);
    }
    return build_cpy(graph, inp, inp->mctx_infllm->get_mem()->get_layer(il).k, k_cur, k_idxs);
}

ggml_tensor * llama_infllm_attn::cpy_v(ggml_context * ctx, ggml_tensor * v_cur, ggml_tensor * v_idxs, int32_t il) const {
    if (!inp) {
        return mctx->cpy_v(ctx, v_cur, v_idxs, il);
    }
    return build_cpy(graph, inp, inp->mctx_infllm->get_mem()->get_layer(il).v, v_cur, v_idxs);
}

// the cells of the sequence that are in use
static ggml_tensor * build_resident(
        ggml_context * ctx0,
        const llm_graph_input_attn_infllm * inp,
        ggml_tensor * t, int64_t n_embd_head, int64_t n_head) {
    return ggml_view_4d(ctx0, t, n_embd_head, n_head, inp->n_kv, 1,
            ggml_row_size(t->type, n_embd_head), t->nb[1], t->nb[2], inp->seq_id*t->nb[2]);
}

ggml_tensor * llama_infllm_attn::get_k(ggml_context * ctx, int32_t il) const {
    if (!inp) {
        return mctx->get_k(ctx, il);
    }
    build_page(il);

    const auto & l = inp->mctx_infllm->get_mem()->get_layer(il);
    return build_resident(ctx, inp, l.k, l.n_embd_head_k, l.n_head_kv);
}

ggml_tensor * llama_infllm_attn::get_v(ggml_context * ctx, int32_t il) const {
    if (!inp) {
        return mctx->get_v(ctx, il);
    }
    const auto & l = inp->mctx_infllm->get_mem()->get_layer(il);
    return build_resident(ctx, inp, l.v, l.n_embd_head_v, l.n_head_kv);
}

void llama_infllm_attn::build_page(int32_t il) const {
    ggml_context * ctx0 = graph.ctx0;
    ggml_cgraph  * gf   = graph.gf;

    const auto * mctx = inp->mctx_infllm;
    const auto * mem  = mctx->get_mem();
    const auto & l    = mem->get_layer(il);

    if (!mem->can_page() || il != l.il) { // or it attends to another layer's keys, which have been paged
        return;
    }

    const int64_t s = mctx->get_seq_id();

    ggml_tensor * q_sum  = mem->sums_queries() ? build_q_sum(ctx0, q_cur, inp->w_sum) : nullptr;
    ggml_tensor * scores = nullptr;

    const int64_t n_block = mctx->get_n_block();
    const int64_t n_row   = n_block*mem->get_params().n_repr; // representative keys

    const bool again = n_block > 0 && !l.repr && !inp->has_scores;
    if (n_block > 0 && inp->has_scores) {
        scores = ggml_new_tensor_2d(ctx0, GGML_TYPE_F32, n_row, 1);
        ggml_set_input(scores);
        inp->scores.push_back({ il, scores });
    } else if (n_block > 0 && !again) {
        ggml_tensor * cur = mem->by_keys()
            ? build_search_keys(graph, inp, l, ggml_view_2d(ctx0, l.k, l.k->ne[0], l.k->ne[1], l.k->nb[1], s*l.k->nb[2]))
            : build_search_queries(ctx0, inp, l, q_cur);

        ggml_tensor * repr = ggml_view_2d(ctx0, l.repr, l.repr->ne[0], n_row, l.repr->nb[1], s*l.repr->nb[2]);

        scores = ggml_mul_mat(ctx0, repr, cur); // [n_row, n_sub]
        set_prec_f32(scores); // sums over all heads get large
        pin(graph, scores, l.repr);
        graph.cb(scores, "infllm_scores", il);
    }

    if (q_sum || scores || (again && mem->get_pager_api(l))) {
        ggml_build_forward_expand(gf, build_page_op(graph, inp, l, q_sum, scores, again));
    }

    if (mem->published()) {
        ggml_tensor * k    = build_resident(ctx0, inp, l.k, l.n_embd_head_k, l.n_head_kv);
        ggml_tensor * attn = build_attention_sum(graph, inp, l, q_cur, k, sinks, kq_scale);
        ggml_tensor * op   = ggml_custom_4d(ctx0, GGML_TYPE_F32, 1, 1, 1, 1, &attn, 1, attention_op, 1,
                const_cast<llama_kv_cache_infllm::layer *>(&l));
        ggml_backend_sched_set_tensor_backend(graph.sched, op, graph.backend_cpu);
        ggml_build_forward_expand(gf, op);
    }
}
