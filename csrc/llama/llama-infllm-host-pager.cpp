#include "llama-infllm-host-pager.h"

#include "llama-infllm-impl.h"

#include "../infllm/file.h"

#include "ggml-backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

namespace infllm {

// of threads that all run at the same time, within an op of the graph
class thread_barrier {
public:
    void wait(uint32_t n) {
        const uint32_t now = round.load(std::memory_order_relaxed);
        if (n_in.fetch_add(1, std::memory_order_acq_rel) + 1 == n) {
            n_in.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (uint32_t i = 0; round.load(std::memory_order_acquire) == now; ++i) {
            if (i >= N_SPIN) {
                std::this_thread::yield();
            }
        }
    }

private:
    static constexpr uint32_t N_SPIN = 2000;

    std::atomic<uint32_t> n_in  { 0 };
    std::atomic<uint32_t> round { 0 };
};

// a group of pager.h: the threads of the graph
class graph_threads {
public:
    graph_threads(int ith, int nth, thread_barrier & barrier) : ith(ith), nth(nth), barrier(barrier) {}

    uint32_t rank() const { return ith; }
    uint32_t size() const { return nth; }
    void     sync() const { if (nth > 1) { barrier.wait(nth); } }
    uint32_t add(uint32_t * p, uint32_t n) const {
        return reinterpret_cast<std::atomic<uint32_t> *>(p)->fetch_add(n, std::memory_order_relaxed);
    }

private:
    const uint32_t ith;
    const uint32_t nth;

    thread_barrier & barrier;
};

// a group of one thread, which moves whole blocks
struct host_thread : single_thread {};

// in place of that of pager-rows.h: by vector instructions, or by ggml's conversions; the bits are the same
static void rotate_k(const host_thread &, const pager_layer & l, uint8_t * rows, uint32_t n, uint32_t src, uint32_t dst) {
    rotation rot;
    rot.neox = l.neox;
    rot.rot0 = l.rot0;
    for (uint32_t i = 0; i < l.n_rot/2; ++i) {
        const cos_sin r = rope_move(l, src, dst, i);
        rot.cs.push_back(r.c);
        rot.cs.push_back(r.s);
    }

    const uint32_t n_head = n*l.n_head_kv;
    if (l.type_k == KV_F16 && rot.apply_f16(reinterpret_cast<uint16_t *>(rows), n_head, l.n_embd_head_k)) {
        return;
    }
    const ggml_type type = llama_infllm_to_ggml(l.type_k);
    std::vector<float> x(size_t(n)*l.n_embd_k());
    llama_infllm_to_f32(type, rows, x.data(), x.size());
    rot.apply(x.data(), n_head, l.n_embd_head_k);
    llama_infllm_from_f32(type, x.data(), rows, n, l.n_embd_k());
}

// likewise, in place of those of row-codec.h
static void encode_rows(const host_thread &, kv_type type, uint64_t n_row, const uint8_t * rows, uint64_t n, uint8_t * coded) {
    std::vector<float> x(n);
    llama_infllm_to_f32(GGML_TYPE_F16, rows, x.data(), n);
    for (uint64_t i = 0; i < n; i += codec_group(n_row)) {
        hadamard(&x[i], codec_group(n_row));
    }
    llama_infllm_from_f32(llama_infllm_to_ggml(type), x.data(), coded, 1, n);
}

static void decode_rows(const host_thread &, kv_type type, uint64_t n_row, const uint8_t * coded, uint64_t n, uint8_t * rows) {
    std::vector<float> x(n);
    llama_infllm_to_f32(llama_infllm_to_ggml(type), coded, x.data(), n);
    for (uint64_t i = 0; i < n; i += codec_group(n_row)) {
        hadamard(&x[i], codec_group(n_row));
    }
    llama_infllm_from_f32(GGML_TYPE_F16, x.data(), rows, 1, n);
}

void host_rotate_rows(const pager_layer & l, uint8_t * rows, uint32_t n, uint32_t src, uint32_t dst) {
    if (l.n_rot > 0 && src != dst) {
        rotate_k(host_thread(), l, rows, n, src, dst);
    }
}

void host_load_rows(const pager_layer & l, const uint8_t * data, uint32_t block, uint32_t dst, std::vector<uint8_t> & rows) {
    rows.resize(l.size_k() + l.size_v());
    load_rows(host_thread(), l, data, block, dst, 0, l.cells.block_size, rows.data(), rows.data() + l.size_k());
}

//
// the pager
//

struct pager {
    std::vector<pager_layer> layers;

    const host_pager_hooks * hooks = nullptr;

    thread_barrier barrier;

    // of the threads of an op together
    std::vector<page_scratch> scratch; // [n_seq] of streams
    std::vector<uint64_t> scratch_data;
    std::vector<uint64_t> scratch_store;
    std::vector<uint16_t> repr;
    std::vector<float>    mean;
    std::vector<uint8_t>  rows;
};

static pager * create(const pager_layer * layers, uint32_t n_layer, uint32_t n_seq, uint64_t block_bytes) {
    GGML_UNUSED(block_bytes);

    auto * res = new pager;
    res->layers = { layers, layers + n_layer };

    uint64_t size       = 0;
    uint64_t size_store = 0;
    for (const auto & l : res->layers) {
        size       = std::max(size,       page_scratch ::size(l));
        size_store = std::max(size_store, store_scratch::size(l));
    }
    const size_t n = size/sizeof(uint64_t) + 1;
    res->scratch_data .resize(n*n_seq);
    res->scratch_store.resize(size_store/sizeof(uint64_t) + 1);
    res->scratch.resize(n_seq);
    for (uint32_t s = 0; s < n_seq && n_layer > 0; ++s) {
        res->scratch[s].init(layers[0], &res->scratch_data[s*n]);
    }
    return res;
}

static void destroy(pager * p) {
    delete p;
}

void host_pager_set_hooks(pager * p, const host_pager_hooks * hooks) {
    p->hooks = hooks;
}

// of a layer in memory of a device: the rows go to the store, and the representative keys are made of these
static void store_remote(pager * p, const pager_layer & l, const store_job & job, uint32_t block, uint8_t * dst, const store_scratch & scratch) {
    const auto &   t    = *l.tensors;
    const uint32_t cell = l.cells.cell(l.cells.block_pos(block));

    p->rows.resize(l.size_k() + l.size_v());
    uint8_t * k = p->rows.data();
    uint8_t * v = k + l.size_k();
    ggml_backend_tensor_get(t.k, k, job.seq*t.k->nb[2] + cell*l.row_k, l.size_k());
    if (t.v) {
        ggml_backend_tensor_get(t.v, v, job.seq*t.v->nb[2] + cell*l.row_v, l.size_v());
    }
    store_rows(host_thread(), l, job.seq, block, k, v, dst);
    if (!t.repr) {
        return;
    }

    p->mean.clear();
    if (t.mean && job.block0 > 0) {
        p->mean.resize(l.n_embd_repr());
        ggml_backend_tensor_get(t.mean, p->mean.data(), job.seq*t.mean->nb[2], p->mean.size()*sizeof(float));
    }
    p->repr.resize(l.n_repr*l.n_embd_repr());
    store_representatives(single_thread(), l, job.seq, block, last_query_block(l.cells, block, job.n_tokens),
            p->mean.empty() ? nullptr : p->mean.data(), k, p->repr.data(), scratch);
    ggml_backend_tensor_set(t.repr, p->repr.data(), job.seq*t.repr->nb[2] + block*l.n_repr*t.repr->nb[1], p->repr.size()*sizeof(uint16_t));
}

static void store(pager * p, const store_job & job) {
    for (const auto & l : p->layers) {
        store_scratch scratch;
        scratch.init(l, p->scratch_store.data());
        for (uint32_t i = 0; i < job.n_block; ++i) {
            const uint32_t block = job.block0 + i;
            if (l.k) {
                pager_store(host_thread(), l, job.seq, block, last_query_block(l.cells, block, job.n_tokens), job.block0 > 0,
                        job.data[i], scratch);
            } else {
                store_remote(p, l, job, block, job.data[i], scratch);
            }
        }
    }
}

static void wait(pager * p) {
    GGML_UNUSED(p);
}

//
// the page op
//

static const uint8_t * stored_block(const pager_layer & l, const pager_info & info, const page_in & in) {
    return l.blocks[uint64_t(info.seq)*l.n_block_max + in.block];
}

static void count(const pager * p, const pager_layer & l, const pager_info & info, const float * scores) {
    if (info.n_block == 0) {
        return;
    }
    if (!p->hooks) {
        page_count(l, info);
        return;
    }
    const pager_state state = pager_state::of(l, info.seq);
    {
        std::lock_guard<std::mutex> lock(*p->hooks->mutex);
        page_count(l, info);
        for (uint32_t i = 0; i < *state.n_page_in; ++i) {
            state.stats->n_file += p->hooks->in_file(stored_block(l, info, state.page_ins[i]));
        }
    }
    if (p->hooks->on_select) {
        const uint32_t n = std::min<uint32_t>(l.topk, info.n_block);
        p->hooks->on_select(l, info, scores, count_selected(state.page_ins, *state.n_page_in, l.chosen_of(info), n));
    }
}

static void gather_remote(pager * p, const pager_layer & l, const pager_info & info, const page_in & in) {
    const auto &    t    = *l.tensors;
    const uint8_t * data = stored_block(l, info, in) + l.offset;
    const uint32_t  dst  = slot_block(l, info.shift, in);
    const uint32_t  cell = l.cells.slot_cell(in.slot);

    const uint8_t * k = data;
    const uint8_t * v = data + l.size_k();
    if (l.is_coded() || (l.n_rot > 0 && uint32_t(in.block) != dst)) {
        host_load_rows(l, data, in.block, dst, p->rows);
        k = p->rows.data();
        v = k + l.size_k();
    }
    ggml_backend_tensor_set(t.k, k, info.seq*t.k->nb[2] + cell*l.row_k, l.size_k());
    if (t.v) {
        ggml_backend_tensor_set(t.v, v, info.seq*t.v->nb[2] + cell*l.row_v, l.size_v());
    }
}

// the inputs of a stream
struct page_stream {
    const pager_info & info;

    const float * q      = nullptr;
    uint32_t      q_nb1  = 0;
    uint32_t      q_nb2  = 0;
    float       * scores = nullptr;
    uint32_t      n_row  = 0;
    uint32_t      n_sub  = 0;

    page_stream(const ggml_tensor * dst, const pager_layer & l, uint32_t i) :
        info(static_cast<const pager_info *>(dst->src[0]->data)[i]) {
        const uint32_t n_stream = dst->src[0]->ne[1];
        const auto *   t_q      = l.sums_queries() ? dst->src[1] : nullptr;
        const auto *   t_scores = dst->src[t_q ? 2 : 1];
        if (t_q) {
            q_nb1 = t_q->nb[1]/sizeof(float);
            q_nb2 = t_q->nb[2]/sizeof(float);
            q     = static_cast<const float *>(t_q->data) + i*(t_q->ne[2]/n_stream)*q_nb2;
        }
        if (t_scores) {
            scores = static_cast<float *>(t_scores->data) + i*(t_scores->nb[2]/sizeof(float));
            n_row  = t_scores->ne[0];
            n_sub  = t_scores->ne[1];
        }
    }

    uint64_t n_scores() const { return uint64_t(n_row)*n_sub; }
};

template <typename Group>
static void select(const Group & g, pager * p, const pager_layer & l, const page_stream & s) {
    page_select(g, l, s.info, s.q, s.q_nb1, s.q_nb2, s.scores, s.n_row, s.n_sub, p->scratch[s.info.stream]);
}

// what follows the selection of a stream
static void select_followers(pager * p, const page_op & op, const pager_info & info) {
    const auto & l = *op.layer;

    count(p, l, info, l.scores_of(info));
    for (uint32_t i = 0; i < op.n_follower; ++i) {
        page_select(single_thread(), *op.followers[i], info, nullptr, 0, 0, nullptr, 0, 0, p->scratch[info.stream]);
        count(p, *op.followers[i], info, l.scores_of(info));
    }
}

static void page(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto &   op       = *static_cast<const page_op *>(userdata);
    const auto &   l        = *op.layer;
    auto         * p        = op.p;
    const uint32_t n_stream = dst->src[0]->ne[1];

    if (op.sum_only) {
        for (uint32_t i = ith; i < n_stream; i += nth) {
            const page_stream s(dst, l, i);
            page_sum(single_thread(), l, s.info, s.q, s.q_nb1, s.q_nb2);
        }
        return;
    }

    const graph_threads g(ith, nth, p->barrier);

    const bool     pages    = page_stream(dst, l, 0).scores || op.again;
    const uint64_t n_shared = 1 << 15; // fewer scores are looked through faster than threads wait for each other
    const bool     in_turn  = p->hooks && p->hooks->on_select; // others must not be called at the same time
    for (uint32_t i = 0; i < n_stream; ++i) {
        const page_stream s(dst, l, i);
        const bool shared = s.n_scores() >= n_shared && s.info.n_block > 0;
        const bool mine   = uint32_t(ith) == (in_turn ? 0 : i%nth);
        if (shared) {
            select(g, p, l, s);
        } else if (mine) {
            select(single_thread(), p, l, s);
        }
        if (mine && pages) {
            select_followers(p, op, s.info);
        }
    }
    if (!pages) {
        return;
    }
    g.sync();

    // a thread's share of the page-ins
    const auto for_mine = [&](const auto & f) {
        uint32_t n_all = 0;
        for (uint32_t s = 0; s < n_stream; ++s) {
            const auto & info = page_stream(dst, l, s).info;
            for (uint32_t j = 0; info.n_block > 0 && j <= op.n_follower; ++j) {
                const auto &      of    = j == 0 ? l : *op.followers[j - 1];
                const pager_state state = pager_state::of(of, info.seq);
                for (uint32_t i = 0; i < *state.n_page_in; ++i) {
                    if (of.k ? n_all++%nth == uint32_t(ith) : ith == 0) {
                        const uint8_t * block = stored_block(of, info, state.page_ins[i]);
                        f(of, info, i, block, p->hooks && p->hooks->in_file(block));
                    }
                }
            }
        }
    };
    for_mine([&](const pager_layer & of, const pager_info &, uint32_t, const uint8_t * block, bool in_file) {
        if (in_file) {
            prefetch(block + of.offset, of.size());
        }
    });

    using clock = std::chrono::steady_clock;
    clock::duration time[2] = {}; // from memory, from files
    for_mine([&](const pager_layer & of, const pager_info & info, uint32_t i, const uint8_t *, bool in_file) {
        const auto begin = clock::now();
        if (of.k) {
            page_gather(host_thread(), of, info, i, 0, 1);
        } else {
            gather_remote(p, of, info, pager_state::of(of, info.seq).page_ins[i]);
        }
        time[in_file] += clock::now() - begin;
    });
    if (ith == 0 && p->hooks) { // the others take as long
        const auto ns = [&](int i) { return std::chrono::duration_cast<std::chrono::nanoseconds>(time[i]).count(); };

        std::lock_guard<std::mutex> lock(*p->hooks->mutex);
        auto * stats = pager_state::of(l, page_stream(dst, l, 0).info.seq).stats;
        stats->ns_memory += ns(0);
        stats->ns_file   += ns(1);
    }
}

void host_pager_add_attention(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);

    if (ith > 0) {
        return;
    }
    const auto & l    = *static_cast<const page_op *>(userdata)->layer;
    const auto & info = *static_cast<const pager_info *>(dst->src[0]->data);
    const auto * attn = dst->src[1];
    const auto * data = static_cast<const float *>(attn->data);

    const pager_state state = pager_state::of(l, info.seq);

    for (uint32_t p = l.cells.block_pos(info.n_block); p < uint32_t(info.p0 + info.n_tokens); ++p) {
        float * sums = state.sums_of(l, l.cells.block_of(p)) + (p - l.cells.n_init)%l.cells.block_size;
        for (uint32_t h = 0; h < l.n_head; ++h) {
            sums[h*l.cells.block_size] += data[h*attn->ne[1] + l.cells.cell(p)];
        }
    }
}

const pager_api & host_pager_api() {
    static const pager_api api = { std::malloc, std::free, create, destroy, store, wait, page };
    return api;
}

} // namespace infllm
