#include "llama-infllm-pagers.h"

#include <algorithm>
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

llama_infllm_pagers::llama_infllm_pagers(const pager_api & api, uint32_t n_seq) :
    api(api), n_seq(n_seq), is_host(&api == &host_pager_api()) {
}

llama_infllm_pagers::~llama_infllm_pagers() {
    destroy(pagers);
    if (blocks) {
        api.free(blocks);
    }
}

const llama_infllm_pagers::layer * llama_infllm_pagers::find(uint32_t idx) const {
    const auto it = std::find_if(layers.begin(), layers.end(), [&](const auto & l) { return l->idx == idx; });
    return it == layers.end() ? nullptr : it->get();
}

llama_infllm_pagers::layer * llama_infllm_pagers::find(uint32_t idx) {
    return const_cast<layer *>(static_cast<const llama_infllm_pagers *>(this)->find(idx));
}

std::string llama_infllm_pagers::add_layer(
        ggml_context * ctx, ggml_backend_buffer_type_t buft, uint32_t idx, const pager_layer & shape,
        const layer_tensors & tensors, int32_t rope, uint32_t n_sub_max) {
    const auto other = std::find_if(layers.begin(), layers.end(), [&](const auto & o) { return o->buft == buft; });

    if (!tensors.search && other == layers.end()) {
        return "no layer before it has a selection that it can follow";
    }

    auto l = std::make_unique<layer>();
    l->idx       = idx;
    l->rope      = rope;
    l->search    = tensors.search;
    l->buft      = buft;
    l->pl        = shape;
    l->tensors   = { tensors.k, tensors.v, nullptr, tensors.mean };
    l->n_sub_max = n_sub_max;
    l->state     = ggml_new_tensor_2d(ctx, GGML_TYPE_I8, pager_state::size(shape), n_seq);

    // layers with one pager share what they agree on, and the tables
    l->group  = other - layers.begin();
    l->chosen = other == layers.end() ? ggml_new_tensor_2d(ctx, GGML_TYPE_I32, shape.topk, n_seq) : (*other)->chosen;

    const auto same = std::find_if(layers.begin(), layers.end(), [&](const auto & o) { return o->buft == buft && o->rope == rope; });
    if (same != layers.end()) {
        l->rope_low  = (*same)->rope_low;
        l->rope_high = (*same)->rope_high;
        l->rope_undo = (*same)->rope_undo;
    } else if (rope >= 0) {
        l->rope_low  = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_rot, block_rotations::n_low (shape.n_block_max));
        l->rope_high = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_rot, block_rotations::n_high(shape.n_block_max));
        l->rope_undo = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_rot, shape.cells.block_size);
    }

    layers.push_back(std::move(l));
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
        if (l->rope_low) {
            set_rotations(l->rope_low,  low (l->rope));
            set_rotations(l->rope_high, high(l->rope));
            set_rotations(l->rope_undo, undo(l->rope));
            l->pl.rope_low  = static_cast<const float *>(l->rope_low ->data);
            l->pl.rope_high = static_cast<const float *>(l->rope_high->data);
            l->pl.rope_undo = static_cast<const float *>(l->rope_undo->data);
        }
        l->pl.state  = static_cast<uint8_t *>(l->state ->data);
        l->pl.chosen = static_cast<int32_t *>(l->chosen->data);

        const auto & t = l->tensors;
        l->pl.stride_k = t.k->nb[2];
        l->pl.stride_v = t.v ? t.v->nb[2] : 0;
        if (is_host && !ggml_backend_buffer_is_host(t.k->buffer)) {
            l->pl.tensors = &l->tensors;
        } else {
            l->pl.k    = static_cast<uint8_t *>(t.k->data);
            l->pl.v    = t.v    ? static_cast<uint8_t *>(t.v->data) : nullptr;
            l->pl.mean = t.mean ? static_cast<const float *>(t.mean->data) : nullptr;
        }
    }
}

void llama_infllm_pagers::make_blocks(ggml_context * ctx, uint32_t idx, uint32_t n_block) {
    auto *     l       = find(idx);
    const auto & first = layers[l->group];

    l->scores = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_block, n_seq);
    l->sums   = l == first.get() ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_block, l->n_sub_max) : first->sums;
}

void llama_infllm_pagers::set_firsts(std::vector<pager_layer> & pls) const {
    std::vector<uint32_t> seen;
    for (size_t i = 0; i < layers.size(); ++i) {
        pls[i].first = layers[i]->active && std::find(seen.begin(), seen.end(), layers[i]->group) == seen.end();
        if (layers[i]->active) {
            seen.push_back(layers[i]->group);
        }
    }
}

std::vector<pager *> llama_infllm_pagers::create(const std::vector<pager_layer> & pls) const {
    std::vector<pager *> res(layers.size());
    for (uint32_t i = 0; i < layers.size(); ++i) {
        if (layers[i]->group != i) {
            res[i] = res[layers[i]->group];
            continue;
        }
        std::vector<pager_layer> group;
        for (uint32_t j = i; j < layers.size(); ++j) {
            if (layers[j]->group == i && layers[j]->active) {
                group.push_back(pls[j]);
            }
        }
        res[i] = api.create(group.data(), group.size(), n_seq, block_bytes);
        if (!res[i]) {
            res.resize(i);
            destroy(res);
            return {};
        }
        if (is_host) {
            host_pager_set_hooks(res[i], hooks);
        }
    }
    return res;
}

void llama_infllm_pagers::destroy(std::vector<pager *> & pagers) const {
    for (size_t i = 0; i < pagers.size(); ++i) {
        if (layers[i]->group == i) {
            api.destroy(pagers[i]);
        }
    }
    pagers.clear();
}

// layers have their shapes already
void llama_infllm_pagers::use(std::vector<pager *> pagers_new) {
    destroy(pagers);
    pagers = std::move(pagers_new);

    layer * leader = nullptr; // what follows it on the host
    for (auto & l : layers) {
        l->followers.clear();
        l->is_follower = is_host && l->active && !l->search && leader;
        if (l->is_follower) {
            leader->followers.push_back(&l->pl);
        } else if (l->active) {
            leader = l.get();
        }
    }
    for (size_t i = 0; i < layers.size(); ++i) {
        auto & l = *layers[i];
        l.ops[OP_SEARCH] = { pagers[i], &l.pl, false, false, l.followers.data(), uint32_t(l.followers.size()) };
        l.ops[OP_ALONE]  = { pagers[i], &l.pl, false, false, nullptr, 0 };
        l.ops[OP_AGAIN]  = { pagers[i], &l.pl, true,  false, nullptr, 0 };
        l.ops[OP_SUM]    = { pagers[i], &l.pl, false, true,  nullptr, 0 };
    }
}

bool llama_infllm_pagers::set_blocks(
        uint32_t n_block, const std::function<ggml_tensor * (uint32_t idx)> & repr, const std::vector<uint32_t> & n_stored) {
    const uint32_t n_old = this->n_block;

    const size_t size       = size_t(n_seq)*n_block*sizeof(uint8_t *);
    auto **      blocks_new = static_cast<const uint8_t **>(api.alloc(size));
    if (blocks_new) {
        std::memset(blocks_new, 0, size);
    }

    std::vector<pager_layer> pls;
    for (auto & l : layers) {
        pager_layer pl = l->pl;
        const auto * t = repr(l->idx);
        pl.n_block_max = n_block;
        pl.repr        = t && !pl.tensors ? static_cast<uint16_t *>(t->data) : nullptr;
        pl.scores      = static_cast<float *>(l->scores->data);
        pl.sums        = static_cast<float *>(l->sums  ->data);
        pl.blocks      = blocks_new;
        pls.push_back(pl);
    }
    set_firsts(pls);

    auto pagers_new = blocks_new ? create(pls) : std::vector<pager *>();
    if (pagers_new.empty()) {
        if (blocks_new) {
            api.free(blocks_new);
        }
        return false;
    }

    for (uint32_t s = 0; s < n_seq; ++s) {
        std::copy_n(blocks + size_t(s)*n_old, n_stored[s], blocks_new + size_t(s)*n_block);
    }
    if (blocks) {
        wait();
        api.free(blocks);
    }
    this->n_block = n_block;
    blocks        = blocks_new;
    for (size_t i = 0; i < layers.size(); ++i) {
        layers[i]->tensors.repr = repr(layers[i]->idx);
        layers[i]->pl           = pls[i];
    }
    use(std::move(pagers_new));
    for (uint32_t s = 0; s < n_seq; ++s) {
        store({ s, n_stored[s], 0, 0, nullptr }); // they are in the store already
    }
    return true;
}

void llama_infllm_pagers::set_active(const std::function<bool(uint32_t idx)> & is_active) {
    std::vector<pager_layer> pls;
    for (auto & l : layers) {
        l->active = is_active(l->idx);
        pls.push_back(l->pl);
    }
    if (pagers.empty()) {
        return; // set_blocks() will see to it
    }
    set_firsts(pls);
    for (size_t i = 0; i < layers.size(); ++i) {
        layers[i]->pl = pls[i];
    }
    use(create(pls));
}

void llama_infllm_pagers::set_hooks(const host_pager_hooks * hooks) {
    this->hooks = hooks;
    for (auto * p : pagers) {
        host_pager_set_hooks(p, hooks);
    }
}

page_op * llama_infllm_pagers::get_op(uint32_t idx, op_kind kind) {
    return &find(idx)->ops[kind];
}

bool llama_infllm_pagers::is_follower(uint32_t idx) const {
    return find(idx)->is_follower;
}

void llama_infllm_pagers::set_block(uint32_t seq, uint32_t block, const uint8_t * data) {
    blocks[size_t(seq)*n_block + block] = data;
}

void llama_infllm_pagers::move_blocks(const std::function<const uint8_t * (const uint8_t *)> & moved) {
    for (size_t i = 0; i < size_t(n_seq)*n_block; ++i) {
        blocks[i] = moved(blocks[i]);
    }
}

void llama_infllm_pagers::take_blocks(const llama_infllm_pagers & from, const std::vector<uint32_t> & n_stored) {
    for (uint32_t s = 0; s < n_seq; ++s) {
        std::copy_n(from.blocks + size_t(s)*from.n_block, n_stored[s], blocks + size_t(s)*n_block);
        store({ s, n_stored[s], 0, 0, nullptr }); // they are in the store already
    }
}

void llama_infllm_pagers::store(const store_job & job) {
    for (size_t i = 0; i < pagers.size(); ++i) {
        if (layers[i]->group == i) {
            api.store(pagers[i], job);
        }
    }
}

void llama_infllm_pagers::wait() {
    for (size_t i = 0; i < pagers.size(); ++i) {
        if (layers[i]->group == i) {
            api.wait(pagers[i]);
        }
    }
}

void llama_infllm_pagers::read(uint32_t idx, uint32_t seq, const state_fun & f) const {
    const auto * l    = find(idx);
    const size_t size = l->state->nb[1];

    if (ggml_backend_buffer_is_host(l->state->buffer)) {
        f(l->pl, pager_state::of(l->pl, seq));
        return;
    }
    std::vector<uint64_t> data(size/sizeof(uint64_t));
    ggml_backend_tensor_get(l->state, data.data(), seq*size, size);
    f(l->pl, pager_state::at(l->pl, reinterpret_cast<uint8_t *>(data.data())));
}

void llama_infllm_pagers::edit(uint32_t idx, uint32_t seq, const state_fun & f) {
    const auto * l    = find(idx);
    const size_t size = l->state->nb[1];

    read(idx, seq, [&](const pager_layer & pl, const pager_state & state) {
        f(pl, state);
        if (!ggml_backend_buffer_is_host(l->state->buffer)) {
            ggml_backend_tensor_set(l->state, state.stats, seq*size, size); // it begins with them
        }
    });
}

void llama_infllm_pagers::take(uint32_t idx, const llama_infllm_pagers & from) {
    const auto * src = from.find(idx)->state;
    auto       * dst = find(idx)->state;

    std::vector<uint8_t> data(ggml_nbytes(src));
    ggml_backend_tensor_get(src, data.data(), 0, data.size());
    ggml_backend_tensor_set(dst, data.data(), 0, data.size());
}

void llama_infllm_pagers::copy_seq(uint32_t src, uint32_t dst, uint32_t n_stored) {
    std::copy_n(blocks + size_t(src)*n_block, n_stored, blocks + size_t(dst)*n_block);
    store({ dst, n_stored, 0, 0, nullptr }); // they are in the store already

    std::vector<uint8_t> data;
    for (auto & l : layers) {
        const size_t size = l->state->nb[1];
        data.resize(size);
        ggml_backend_tensor_get(l->state, data.data(), src*size, size);
        ggml_backend_tensor_get(l->state, data.data(), dst*size, sizeof(pager_stats));
        ggml_backend_tensor_set(l->state, data.data(), dst*size, size);
    }
}

pager_stats llama_infllm_pagers::get_stats(uint32_t idx) const {
    const auto * state = find(idx)->state;

    pager_stats res = {};
    for (uint32_t s = 0; s < n_seq; ++s) {
        pager_stats stats;
        ggml_backend_tensor_get(state, &stats, s*state->nb[1], sizeof(stats));
        res.n_select   += stats.n_select;
        res.n_selected += stats.n_selected;
        res.n_page_in  += stats.n_page_in;
        res.n_copied   += stats.n_copied;
        res.n_file     += stats.n_file;
        res.ns_memory  += stats.ns_memory;
        res.ns_file    += stats.ns_file;
    }
    return res;
}

void llama_infllm_pagers::reset_stats() {
    const pager_stats zero = {};
    for (auto & l : layers) {
        for (uint32_t s = 0; s < n_seq; ++s) {
            ggml_backend_tensor_set(l->state, &zero, s*l->state->nb[1], sizeof(zero));
        }
    }
}
