#include "llama-infllm-pagers.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstdlib>

using namespace infllm;

const pager_api * llama_infllm_pagers::find_api(ggml_backend_buffer_type_t buft, bool force) {
    if (ggml_backend_buft_is_host(buft)) {
        return force ? &host_pager_api() : nullptr;
    }
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    if (!dev) {
        return nullptr;
    }
    const auto get = reinterpret_cast<const void * (*)()>(
            ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_infllm_pager_api"));
    return get ? static_cast<const pager_api *>(get()) : nullptr;
}

llama_infllm_pagers::llama_infllm_pagers(uint32_t n_seq, uint64_t pinned_max_bytes) :
    n_seq(n_seq), pinned_max(pinned_max_bytes) {
}

llama_infllm_pagers::~llama_infllm_pagers() {
    for (auto * p : pagers) {
        shared->destroy(p);
    }
    if (blocks) {
        shared->free(blocks);
    }
}

bool llama_infllm_pagers::add_layer(
        const pager_api & api, ggml_context * ctx, ggml_backend_buffer_type_t buft, uint32_t idx,
        const pager_layer & shape, ggml_tensor * k, ggml_tensor * v, ggml_tensor * repr, ggml_tensor * mean,
        int32_t rope, uint32_t n_sub_max) {
    const auto other = std::find_if(layers.begin(), layers.end(), [&](const layer & o) { return o.buft == buft; });

    // Memory is shared in one way: layers on devices of another kind are left to the host. So are those that would follow a
    // layer's selection, where there is none before them.
    if (!pager_supports(shape) || (shared && shared != &api) || (!repr && other == layers.end())) {
        return false;
    }
    shared = &api;

    layer l = {};
    l.idx    = idx;
    l.rope   = rope;
    l.buft   = buft;
    l.pl     = shape;
    l.k      = k;
    l.v      = v;
    l.repr   = repr;
    l.mean   = mean;
    l.state  = ggml_new_tensor_2d(ctx, GGML_TYPE_I8,  pager_state::size(shape), n_seq);
    l.scores = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, shape.n_block_max);

    // layers on a device share what they agree on, and the tables
    l.pl.first = other == layers.end();
    l.sums     = l.pl.first ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_block_max, n_sub_max) : other->sums;
    l.chosen   = l.pl.first ? ggml_new_tensor_1d(ctx, GGML_TYPE_I32, shape.topk)                   : other->chosen;

    const auto same = std::find_if(layers.begin(), layers.end(), [&](const layer & o) {
        return o.buft == buft && o.rope == rope;
    });
    if (same != layers.end()) {
        l.rope_block = same->rope_block;
        l.rope_undo  = same->rope_undo;
    } else if (rope >= 0) {
        l.rope_block = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_rot, shape.n_block_max + 1);
        l.rope_undo  = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_rot, shape.cells.block_size);
    }

    layers.push_back(l);
    return true;
}

static void set_rotations(ggml_tensor * t, const std::vector<rotation> & rots) {
    std::vector<float> data;
    for (const auto & rot : rots) {
        data.insert(data.end(), rot.cs.begin(), rot.cs.end());
    }
    ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
}

bool llama_infllm_pagers::start(uint64_t block_bytes, const rotations & block, const rotations & undo) {
    if (layers.empty()) {
        return true;
    }

    const size_t n_ref = size_t(n_seq)*layers[0].pl.n_block_max;
    blocks = static_cast<block_ref *>(shared->alloc(n_ref*sizeof(block_ref)));
    if (!blocks) {
        layers.clear();
        return false;
    }

    std::map<ggml_backend_buffer_type_t, std::vector<layer *>> by_buft;
    for (auto & l : layers) {
        if (l.rope_block) {
            set_rotations(l.rope_block, block(l.rope));
            set_rotations(l.rope_undo,  undo (l.rope));
            l.pl.rope_block = static_cast<const float *>(l.rope_block->data);
            l.pl.rope_undo  = static_cast<const float *>(l.rope_undo ->data);
        }
        l.pl.k        = static_cast<uint8_t  *>(l.k     ->data);
        l.pl.v        = static_cast<uint8_t  *>(l.v     ->data);
        l.pl.repr     = l.repr ? static_cast<uint16_t *>(l.repr->data) : nullptr;
        l.pl.mean     = l.mean ? static_cast<const float *>(l.mean->data) : nullptr;
        l.pl.state    = static_cast<uint8_t  *>(l.state ->data);
        l.pl.scores   = static_cast<float    *>(l.scores->data);
        l.pl.sums     = static_cast<float    *>(l.sums  ->data);
        l.pl.chosen   = static_cast<int32_t  *>(l.chosen->data);
        l.pl.stride_k = l.k->nb[2];
        l.pl.stride_v = l.v->nb[2];
        l.pl.blocks   = blocks;
        by_buft[l.buft].push_back(&l);
    }
    for (auto & [_, group] : by_buft) {
        std::vector<pager_layer> pls;
        for (const auto * l : group) {
            pls.push_back(l->pl);
        }
        pager * p = shared->create(pls.data(), pls.size(), n_seq, block_bytes);
        if (!p) {
            layers.clear();
            return false;
        }
        pagers.push_back(p);
        for (auto * l : group) {
            l->op       = { p, &l->pl, false };
            l->op_again = { p, &l->pl, true  };
        }
    }
    return true;
}

const llama_infllm_pagers::layer * llama_infllm_pagers::find(uint32_t idx) const {
    const auto it = std::find_if(layers.begin(), layers.end(), [&](const layer & l) { return l.idx == idx; });
    return it == layers.end() ? nullptr : &*it;
}

llama_infllm_pagers::layer * llama_infllm_pagers::find(uint32_t idx) {
    return const_cast<layer *>(static_cast<const llama_infllm_pagers *>(this)->find(idx));
}

page_op * llama_infllm_pagers::op(uint32_t idx, bool again) {
    auto * l = find(idx);
    return !l ? nullptr : again ? &l->op_again : &l->op;
}

void * llama_infllm_pagers::alloc(size_t size) {
    if (pinned_max == 0 || pinned_bytes + size <= pinned_max) {
        if (void * ptr = shared->alloc(size)) {
            pinned[ptr]   = size;
            pinned_bytes += size;
            return ptr;
        }
    }
    void * ptr = std::malloc(size);
    if (ptr) {
        pageable.insert(ptr);
    }
    return ptr;
}

void llama_infllm_pagers::free(void * ptr) {
    if (pageable.erase(ptr) > 0) {
        std::free(ptr);
        return;
    }
    const auto it = pinned.find(ptr);
    pinned_bytes -= it->second;
    pinned.erase(it);
    shared->free(ptr);
}

void llama_infllm_pagers::set_block(uint32_t seq, uint32_t block, const uint8_t * data, uint32_t frame) {
    blocks[size_t(seq)*layers[0].pl.n_block_max + block] = { data, frame };
}

void llama_infllm_pagers::store(const store_job & job) {
    for (auto * p : pagers) {
        shared->store(p, job);
    }
}

void llama_infllm_pagers::rotate(const rotate_job & job) {
    for (auto * p : pagers) {
        shared->rotate(p, job);
    }
}

void llama_infllm_pagers::wait() {
    for (auto * p : pagers) {
        shared->wait(p);
    }
}

void llama_infllm_pagers::pull(uint32_t idx, uint32_t seq, slot_table & slots, std::vector<float> & q_sum) const {
    const auto * l = find(idx);

    std::vector<uint64_t> data(l->state->nb[1]/sizeof(uint64_t));
    ggml_backend_tensor_get(l->state, data.data(), seq*l->state->nb[1], l->state->nb[1]);

    const auto      from = pager_state::at(l->pl, reinterpret_cast<uint8_t *>(data.data()));
    const slot_view to   = slots.view();
    std::copy_n(from.slots.block, to.n_slot, to.block);
    std::copy_n(from.slots.used,  to.n_slot, to.used);
    *to.tick = *from.slots.tick;
    std::copy_n(from.q_sum, q_sum.size(), q_sum.data());
}

void llama_infllm_pagers::push(uint32_t idx, uint32_t seq, slot_table & slots, const std::vector<float> & q_sum) {
    auto * l = find(idx);

    std::vector<uint64_t> data(l->state->nb[1]/sizeof(uint64_t));
    ggml_backend_tensor_get(l->state, data.data(), seq*l->state->nb[1], sizeof(pager_stats));

    const auto      to   = pager_state::at(l->pl, reinterpret_cast<uint8_t *>(data.data()));
    const slot_view from = slots.view();
    std::copy_n(from.block, from.n_slot, to.slots.block);
    std::copy_n(from.used,  from.n_slot, to.slots.used);
    *to.slots.tick = *from.tick;
    std::copy_n(q_sum.data(), q_sum.size(), to.q_sum);

    ggml_backend_tensor_set(l->state, data.data(), seq*l->state->nb[1], l->state->nb[1]);
}

void llama_infllm_pagers::copy_seq(uint32_t src, uint32_t dst, uint32_t n_block) {
    if (layers.empty()) {
        return;
    }
    const size_t n_max = layers[0].pl.n_block_max;
    std::copy_n(blocks + src*n_max, n_block, blocks + dst*n_max);

    for (auto * p : pagers) {
        shared->store(p, { dst, n_block, 0, 0, 0, nullptr }); // they are in the store already
    }

    std::vector<uint8_t> data;
    for (auto & l : layers) {
        data.resize(l.state->nb[1]);
        ggml_backend_tensor_get(l.state, data.data(), src*data.size(), data.size());
        ggml_backend_tensor_get(l.state, data.data(), dst*data.size(), sizeof(pager_stats)); // not copied
        ggml_backend_tensor_set(l.state, data.data(), dst*data.size(), data.size());
    }
}

pager_stats llama_infllm_pagers::get_stats(uint32_t idx) const {
    const auto * l = find(idx);

    pager_stats res = {};
    for (uint32_t s = 0; l && s < n_seq; ++s) {
        pager_stats stats;
        ggml_backend_tensor_get(l->state, &stats, s*l->state->nb[1], sizeof(stats));
        res.n_select   += stats.n_select;
        res.n_selected += stats.n_selected;
        res.n_page_in  += stats.n_page_in;
    }
    return res;
}

void llama_infllm_pagers::reset_stats() {
    const pager_stats zero = {};
    for (auto & l : layers) {
        for (uint32_t s = 0; s < n_seq; ++s) {
            ggml_backend_tensor_set(l.state, &zero, s*l.state->nb[1], sizeof(zero));
        }
    }
}
