#include "llama-infllm-pagers.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

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
    destroy(pagers);
    if (blocks) {
        shared->free(blocks);
    }
}

void llama_infllm_pagers::destroy(std::vector<pager *> & group) {
    for (auto * p : group) {
        shared->destroy(p);
    }
    group.clear();
}

std::string llama_infllm_pagers::add_layer(
        const pager_api & api, ggml_context * ctx, ggml_backend_buffer_type_t buft, uint32_t idx,
        const pager_layer & shape, ggml_tensor * k, ggml_tensor * v, bool search, ggml_tensor * mean,
        int32_t rope, uint32_t n_sub_max) {
    const auto other = std::find_if(layers.begin(), layers.end(), [&](const layer & o) { return o.buft == buft; });

    if (const char * why = pager_refuses(shape)) {
        return why;
    }
    if (shared && shared != &api) { // memory is shared in one way
        return "other layers are on a device of another kind";
    }
    if (!search && other == layers.end()) {
        return "no layer before it has a selection that it can follow";
    }
    shared = &api;

    layer l = {};
    l.idx    = idx;
    l.rope   = rope;
    l.buft   = buft;
    l.pl     = shape;
    l.k      = k;
    l.v      = v;
    l.mean   = mean;
    l.state  = ggml_new_tensor_2d(ctx, GGML_TYPE_I8, pager_state::size(shape), n_seq);

    // layers on a device share what they agree on, and the tables
    l.first     = other - layers.begin();
    l.pl.first  = other == layers.end();
    l.chosen    = l.pl.first ? ggml_new_tensor_1d(ctx, GGML_TYPE_I32, shape.topk) : other->chosen;
    l.n_sub_max = n_sub_max;

    const auto same = std::find_if(layers.begin(), layers.end(), [&](const layer & o) {
        return o.buft == buft && o.rope == rope;
    });
    if (same != layers.end()) {
        l.rope_low  = same->rope_low;
        l.rope_high = same->rope_high;
        l.rope_undo = same->rope_undo;
    } else if (rope >= 0) {
        l.rope_low  = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_rot, block_rotations::n_low (shape.n_block_max));
        l.rope_high = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_rot, block_rotations::n_high(shape.n_block_max));
        l.rope_undo = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_rot, shape.cells.block_size);
    }

    layers.push_back(l);
    return "";
}

static void set_rotations(ggml_tensor * t, const std::vector<rotation> & rots) {
    std::vector<float> data;
    for (const auto & rot : rots) {
        data.insert(data.end(), rot.cs.begin(), rot.cs.end());
    }
    ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
}

void llama_infllm_pagers::start(uint64_t block_bytes, const rotations & low, const rotations & high, const rotations & undo) {
    this->block_bytes = block_bytes;

    for (auto & l : layers) {
        if (l.rope_low) {
            set_rotations(l.rope_low,  low (l.rope));
            set_rotations(l.rope_high, high(l.rope));
            set_rotations(l.rope_undo, undo(l.rope));
            l.pl.rope_low  = static_cast<const float *>(l.rope_low ->data);
            l.pl.rope_high = static_cast<const float *>(l.rope_high->data);
            l.pl.rope_undo = static_cast<const float *>(l.rope_undo->data);
        }
        l.pl.k        = static_cast<uint8_t *>(l.k     ->data);
        l.pl.v        = static_cast<uint8_t *>(l.v     ->data);
        l.pl.mean     = l.mean ? static_cast<const float *>(l.mean->data) : nullptr;
        l.pl.state    = static_cast<uint8_t *>(l.state ->data);
        l.pl.chosen   = static_cast<int32_t *>(l.chosen->data);
        l.pl.stride_k = l.k->nb[2];
        l.pl.stride_v = l.v->nb[2];
    }
}

void llama_infllm_pagers::make_blocks(ggml_context * ctx, uint32_t idx, uint32_t n_block) {
    auto * l = find(idx);

    l->scores = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_block);
    l->sums   = l->pl.first ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_block, l->n_sub_max) : layers[l->first].sums;
}

bool llama_infllm_pagers::set_blocks(
        uint32_t n_block, const std::function<ggml_tensor * (uint32_t idx)> & repr, const std::vector<uint32_t> & n_stored) {
    const uint32_t n_old = this->n_block;

    auto ** blocks_new = static_cast<const uint8_t **>(shared->alloc(size_t(n_seq)*n_block*sizeof(uint8_t *)));

    std::vector<pager_layer>     pls;
    std::vector<pager *>         pagers_new;
    std::vector<infllm::pager *> pager_of; // layer
    for (auto & l : layers) {
        pager_layer pl = l.pl;
        const auto * t = repr(l.idx);
        pl.n_block_max = n_block;
        pl.repr        = t ? static_cast<uint16_t *>(t->data) : nullptr;
        pl.scores      = static_cast<float *>(l.scores->data);
        pl.sums        = static_cast<float *>(l.sums  ->data);
        pl.blocks      = blocks_new;
        pls.push_back(pl);
    }

    bool ok = blocks_new != nullptr;
    for (uint32_t i = 0; ok && i < layers.size(); ++i) {
        if (!layers[i].pl.first) {
            pager_of.push_back(pager_of[layers[i].first]);
            continue;
        }
        std::vector<pager_layer> group;
        for (uint32_t j = i; j < layers.size(); ++j) {
            if (j == i || layers[j].first == i) {
                group.push_back(pls[j]);
            }
        }
        auto * p = shared->create(group.data(), group.size(), n_seq, block_bytes);
        ok = p != nullptr;
        if (ok) {
            pagers_new.push_back(p);
            pager_of.push_back(p);
        }
    }
    if (!ok) {
        destroy(pagers_new);
        if (blocks_new) {
            shared->free(blocks_new);
        }
        return false;
    }

    for (uint32_t s = 0; s < n_seq; ++s) {
        std::copy_n(blocks + size_t(s)*n_old, n_stored[s], blocks_new + size_t(s)*n_block);
    }
    destroy(pagers);
    if (blocks) {
        shared->free(blocks);
    }
    this->n_block = n_block;
    blocks        = blocks_new;
    pagers        = std::move(pagers_new);
    for (uint32_t i = 0; i < layers.size(); ++i) {
        auto & l = layers[i];
        l.pl       = pls[i];
        l.op       = { pager_of[i], &l.pl, false };
        l.op_again = { pager_of[i], &l.pl, true  };
    }
    for (uint32_t s = 0; s < n_seq; ++s) {
        store({ s, n_stored[s], 0, 0, nullptr }); // they are in the store already
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

void * llama_infllm_pagers::alloc_pinned(size_t size) {
    const bool limited = pinned_max > 0 && pinned_bytes + size > pinned_max;

    void * ptr = limited ? nullptr : shared->alloc(size);
    if (!ptr) {
        is_limited = limited;
        return nullptr;
    }
    pinned[ptr]   = size;
    pinned_bytes += size;
    return ptr;
}

void * llama_infllm_pagers::alloc(size_t size) {
    if (void * ptr = alloc_pinned(size)) {
        return ptr;
    }
    void * ptr = std::malloc(size);
    if (ptr) {
        pageable.insert(ptr);
    }
    return ptr;
}

void * llama_infllm_pagers::pin(void * ptr, size_t size) {
    if (pageable.count(ptr) == 0) {
        return ptr;
    }
    void * res = alloc_pinned(size);
    if (res) {
        std::memcpy(res, ptr, size);
        this->free(ptr);
    }
    return res;
}

std::string llama_infllm_pagers::why_pageable() const {
    if (pageable.empty()) {
        return "";
    }
    return is_limited ? ::format("pinned_max_bytes = %.1f MiB is reached", pinned_max/1024.0/1024.0)
                      : ::format("no more than %.1f MiB of memory can be pinned", pinned_bytes/1024.0/1024.0);
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

void llama_infllm_pagers::set_block(uint32_t seq, uint32_t block, const uint8_t * data) {
    blocks[size_t(seq)*n_block + block] = data;
}

void llama_infllm_pagers::store(const store_job & job) {
    for (auto * p : pagers) {
        shared->store(p, job);
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

void llama_infllm_pagers::copy_seq(uint32_t src, uint32_t dst, uint32_t n_stored) {
    if (layers.empty()) {
        return;
    }
    std::copy_n(blocks + size_t(src)*n_block, n_stored, blocks + size_t(dst)*n_block);
    store({ dst, n_stored, 0, 0, nullptr }); // they are in the store already

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
        res.n_copied   += stats.n_copied;
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
