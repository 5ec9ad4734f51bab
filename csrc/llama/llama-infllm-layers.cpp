#include "llama-infllm-layers.h"

#include "llama-infllm-device.h"
#include "llama-infllm-impl.h"
#include "llama-infllm-page-control.h"

#include "../infllm/checksum.h"

#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>

// one context per buffer type, ordered by name so that the order is well-defined
struct buft_comparator {
    bool operator()(const ggml_backend_buffer_type_t & a, const ggml_backend_buffer_type_t & b) const {
        return strcmp(ggml_backend_buft_name(a), ggml_backend_buft_name(b)) < 0;
    }
};

struct context_map : std::map<ggml_backend_buffer_type_t, ggml_context_ptr, buft_comparator> {
    const size_t n_tensor;

    explicit context_map(size_t n_tensor) : n_tensor(n_tensor) {}

    ggml_context * get(ggml_backend_buffer_type_t buft) {
        auto & ctx = (*this)[buft];
        if (!ctx) {
            ctx.reset(ggml_init({ n_tensor*ggml_tensor_overhead(), nullptr, true }));
        }
        return ctx.get();
    }
};

// a sequence's blocks that memory is taken for at first
static constexpr uint32_t N_BLOCK_FIRST = 1024;

static uint64_t bytes_free(ggml_backend_buffer_type_t buft) {
    if (ggml_backend_buft_is_host(buft)) {
        return llama_infllm_ram_free();
    }
    size_t free  = 0;
    size_t total = 0;
    if (auto * dev = ggml_backend_buft_get_device(buft)) {
        ggml_backend_dev_memory(dev, &free, &total);
    }
    return total > 0 ? free : UINT64_MAX;
}

// nullptr if there is too little memory: allocators promise more than there is, and the system ends the process later
// no_alloc: the context is made to be measured, see memory_breakdown(); a buffer without bytes keeps the tensors where they
// would be
static ggml_backend_buffer_ptr allocate(ggml_context * ctx, ggml_backend_buffer_type_t buft, bool no_alloc) {
    if (!no_alloc) {
        if (ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, buft) > bytes_free(buft)) {
            return nullptr;
        }
        return ggml_backend_buffer_ptr(ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft));
    }
    ggml_backend_buffer_ptr res(ggml_backend_buft_alloc_buffer(buft, 0));
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        t->buffer = res.get();
    }
    return res;
}

// all tensors but those whose parts are zeroed when their sequence is used, see use_seq()
static void zero_others(ggml_context * ctx, const std::vector<const ggml_tensor *> & of_sequences) {
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (std::find(of_sequences.begin(), of_sequences.end(), t) == of_sequences.end()) {
            ggml_backend_tensor_memset(t, 0, 0, ggml_nbytes(t));
        }
    }
}

static uint32_t n_block_ctx(const llama_infllm_memory_params & prm, const infllm::cell_layout & cells) {
    if (prm.n_ctx_seq <= cells.n_cells()) {
        return 0;
    }
    return GGML_PAD((prm.n_ctx_seq - prm.infllm.n_init)/prm.infllm.block_size + 1, 64);
}

llama_infllm_layers::llama_infllm_layers(
        const llama_model & model,
        const llama_infllm_memory_params & params,
        const std::map<int32_t, llama_infllm_key> & keys,
        const llama_memory_i::layer_filter_cb & filter,
        const llama_memory_i::layer_reuse_cb & reuse,
        llama_infllm_page_control & paging) :
    prm(params),
    cells(infllm::cell_layout::make(
        prm.infllm.n_init, prm.infllm.n_local, prm.infllm.block_size, prm.infllm.max_cached_blocks, prm.n_ubatch)),
    remap(prm.infllm.position == LLAMA_INFLLM_POSITION_INFLLM),
    n_block_max(n_block_ctx(prm, cells)),
    n_chunk(cells.n_cells()/cells.block_size + 2),
    selector(llama_infllm_selector::make(prm.infllm)),
    model(model),
    paging(paging),
    used(prm.n_seq_max) {

    const auto & hparams = model.hparams;

    // attention kernels of some backends want the number of cells padded; a context that is smaller than the resident
    // buffer does not need all of it
    const uint32_t n_cells = GGML_PAD(std::min(cells.n_cells(), prm.n_ctx_seq), 256);

    context_map ctx_map(20*hparams.n_layer_all);

    std::set<ggml_backend_buffer_type_t> paged_by; // nullptr: the host

    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (!hparams.has_kv(il) || hparams.n_head_kv(il) == 0 || (filter && !filter(il))) {
            const int32_t il_reuse = reuse ? reuse(il) : -1; // attends to the keys and values of that layer
            if (const auto it = map_layer_ids.find(il_reuse); it != map_layer_ids.end() && (!filter || filter(il))) {
                map_layer_ids[il] = it->second;
            }
            continue;
        }

        const ggml_backend_dev_t dev = prm.offload ? model.dev_layer(il) : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        const ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
        ggml_context * ctx = ctx_map.get(buft);

        llama_infllm_layer l = {};
        l.idx           = list.size();
        l.il            = il;
        l.n_embd_head_v = hparams.n_embd_head_v(il);

        l.k = ggml_new_tensor_3d(ctx, prm.type_k, hparams.n_embd_k_gqa(il), n_cells, prm.n_seq_max);
        ggml_format_name(l.k, "infllm_k_l%d", il);
        if (!hparams.is_mla()) {
            l.v = ggml_new_tensor_3d(ctx, prm.type_v, hparams.n_embd_v_gqa(il), n_cells, prm.n_seq_max);
            ggml_format_name(l.v, "infllm_v_l%d", il);
        }

        const auto key = keys.find(il);
        l.rope  = can_page() && key != keys.end() && key->second.rope ? add_rope(key->second) : -1;
        l.shape = make_shape(l, hparams.n_head(il), hparams.n_head_kv(il), hparams.n_embd_head_k(il));

        // the host, and each device that pages, do not know what the others' layers agree on: the first of theirs must search
        const bool first = paged_by.insert(paging.find_api(buft) ? buft : nullptr).second;
        l.search = can_page() && (selector->searches(l.idx) || first);
        if (l.search && selector->centres()) {
            l.mean = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, l.shape.n_embd_repr(), 1, prm.n_seq_max);
            ggml_format_name(l.mean, "infllm_mean_l%d", il);
        }

        llama_infllm_check_device(dev, *this, l, hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f, model.layers[il].attn_sinks);

        paging.add_layer(l, dev, selector->n_sub_max(prm.n_ubatch, prm.n_seq_max), can_page(), [&](ggml_backend_buffer_type_t t) { return ctx_map.get(t); });

        n_bytes += l.shape.size();
        map_layer_ids[il] = list.size();
        list.push_back(l);
    }

    if (list.empty()) {
        throw std::runtime_error("the InfLLM memory does not support the architecture \"" + model.arch_name() +
                "\": no layer of it attends to all tokens");
    }

    std::vector<const ggml_tensor *> cells_of;
    for (const auto & l : list) {
        cells_of.push_back(l.k);
        cells_of.push_back(l.v);
    }
    for (auto & [buft, ctx] : ctx_map) {
        ggml_backend_buffer_ptr buf = allocate(ctx.get(), buft, hparams.no_alloc);
        if (!buf) {
            throw std::runtime_error(::format("the resident buffer of %u cells for %u sequences needs %.1f MiB of memory on %s, "
                    "where %.1f MiB are free: lower n_local, max_cached_blocks or n_seq_max", n_cells, prm.n_seq_max,
                    ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft)/1024.0/1024.0,
                    ggml_backend_buft_name(buft), bytes_free(buft)/1024.0/1024.0));
        }
        LLAMA_LOG_INFO("%s: %10s resident buffer size = %8.2f MiB\n", __func__,
                ggml_backend_buffer_name(buf.get()), ggml_backend_buffer_get_size(buf.get())/1024.0/1024.0);
        if (!hparams.no_alloc) {
            zero_others(ctx.get(), cells_of);
        }
        ctxs_bufs.emplace_back(std::move(ctx), std::move(buf));
    }

    if (can_page() && !hparams.no_alloc) {
        paging.start(n_bytes,
                [this](int32_t i) -> const auto & { return ropes[i].block.low;  },
                [this](int32_t i) -> const auto & { return ropes[i].block.high; },
                [this](int32_t i) -> const auto & { return ropes[i].undo;       });
    }
    if (can_page() && !grow(std::min(n_block_max, N_BLOCK_FIRST))) {
        throw std::runtime_error("failed to allocate the representative keys: lower n_repr or n_seq_max");
    }

    LLAMA_LOG_INFO("%s: n_init = %u, n_local = %u, block_size = %u, topk = %u, max_cached_blocks = %u, repr_topk = %u, "
            "position = %s, %u cells, %zu layers, %u seqs\n", __func__,
            prm.infllm.n_init, prm.infllm.n_local, prm.infllm.block_size, prm.infllm.topk, prm.infllm.max_cached_blocks,
            prm.infllm.repr_topk, remap ? "infllm" : "true", n_cells, list.size(), prm.n_seq_max);
}

int32_t llama_infllm_layers::add_rope(const llama_infllm_key & key) {
    const auto & rope = *key.rope;
    is_weighted = is_weighted || key.is_weighted;
    if (remap && key.is_weighted) {
        throw std::runtime_error("position = infllm moves keys, which those of the architecture \"" + model.arch_name() +
                "\" do not allow: they are weighted after RoPE; use position = true");
    }

    const auto it = std::find_if(ropes.begin(), ropes.end(), [&](const auto & t) { return t.rope == rope; });
    if (it != ropes.end()) {
        return it - ropes.begin();
    }

    // begin, begin + step, ..
    const auto range = [&](int64_t begin, int64_t step, uint32_t n) {
        std::vector<llama_pos> dist(n);
        for (uint32_t i = 0; i < n; ++i) {
            dist[i] = llama_pos(begin + i*step);
        }
        return dist;
    };
    using infllm::block_rotations;
    const int64_t size = cells.block_size;
    ropes.push_back({ rope, {
        rope.rotations(range(0, size,                        block_rotations::n_low (n_block_max))),
        rope.rotations(range(0, size*block_rotations::N_LOW, block_rotations::n_high(n_block_max))) },
        rope.rotations_undo(range(-int64_t(cells.n_init), -1, cells.block_size)) });
    return ropes.size() - 1;
}

infllm::pager_layer llama_infllm_layers::make_shape(
        const llama_infllm_layer & l, uint32_t n_head, uint32_t n_head_kv, uint32_t n_embd_head_k) const {
    infllm::pager_layer res = {};

    res.il            = l.il;
    res.cells         = cells;
    res.n_head        = n_head;
    res.n_head_kv     = n_head_kv;
    res.n_head_repr   = selector->n_head_repr(n_head, n_head_kv);
    res.n_embd_head_k = n_embd_head_k;
    res.n_rot         = l.rope < 0 ? 0 : ropes[l.rope].undo[0].n_rot();
    res.rot0          = l.rope < 0 ? 0 : ropes[l.rope].undo[0].rot0;
    res.neox          = l.rope < 0 ? 0 : ropes[l.rope].undo[0].neox;
    res.remap         = remap;
    res.topk          = prm.infllm.topk;
    res.repr_topk     = prm.infllm.repr_topk;
    res.n_sum         = selector->n_sum(n_head, n_head_kv, n_embd_head_k);
    res.n_chunk       = res.n_sum > 0 ? n_chunk : 0;
    res.published     = selector->sums_attention();
    res.bounds        = selector->bounds();
    res.n_block_max   = n_block_max;
    res.n_repr        = prm.infllm.n_repr;
    res.type_k        = llama_infllm_to_kv(l.k->type);
    res.codec         = llama_infllm_codec(prm.infllm.type_store);
    res.row_k         = l.k->nb[1];
    res.row_v         = l.v ? l.v->nb[1] : 0;
    res.offset        = n_bytes;

    return res;
}

bool llama_infllm_layers::grow(uint32_t n_block) {
    if (n_block <= n_block_cap) {
        return true;
    }
    n_block = std::min<uint64_t>(n_block_max, std::max<uint64_t>(GGML_PAD(n_block, 64), 2*uint64_t(n_block_cap)));

    paging.synchronize();

    context_map                ctx_map(6*list.size() + 8);
    std::vector<ggml_tensor *> reprs(list.size());
    for (const auto & l : list) {
        if (l.search) {
            ggml_context * ctx = ctx_map.get(ggml_backend_buffer_get_type(l.k->buffer));
            reprs[l.idx] = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, l.shape.n_embd_repr(), int64_t(prm.infllm.n_repr)*n_block, prm.n_seq_max);
            ggml_format_name(reprs[l.idx], "infllm_repr_l%d", l.il);
        }
        paging.make_blocks(l, n_block, [&](ggml_backend_buffer_type_t t) { return ctx_map.get(t); });
    }

    contexts_buffers made;
    for (auto & [buft, ctx] : ctx_map) {
        ggml_backend_buffer_ptr buf = allocate(ctx.get(), buft, model.hparams.no_alloc);
        if (!buf) {
            return false;
        }
        if (!model.hparams.no_alloc) {
            zero_others(ctx.get(), { reprs.begin(), reprs.end() });
        }
        made.emplace_back(std::move(ctx), std::move(buf));
    }

    if (!model.hparams.no_alloc && !paging.set_blocks(n_block, reprs)) {
        return false;
    }

    const auto & n_stored = paging.get_n_stored();
    for (size_t s = 0; s < used.size() && !model.hparams.no_alloc; ++s) {
        for (auto * repr : reprs) {
            if (used[s] && repr) {
                zero(repr, s);
            }
        }
    }
    for (auto & l : list) {
        for (size_t s = 0; l.repr && s < n_stored.size(); ++s) {
            bytes.resize(n_stored[s]*prm.infllm.n_repr*l.repr->nb[1]);
            ggml_backend_tensor_get(l.repr,       bytes.data(), s*l.repr->nb[2],       bytes.size());
            ggml_backend_tensor_set(reprs[l.idx], bytes.data(), s*reprs[l.idx]->nb[2], bytes.size());
        }
        l.repr = reprs[l.idx];
    }
    ctxs_bufs_blocks = std::move(made);
    n_block_cap      = n_block;

    return true;
}

bool llama_infllm_layers::is_resident(const ggml_tensor * t) const {
    return std::any_of(list.begin(), list.end(), [&](const auto & l) {
        return t->view_src && (t->view_src == l.k || t->view_src == l.v);
    });
}

void llama_infllm_layers::zero(ggml_tensor * t, llama_seq_id id) {
    ggml_backend_tensor_memset(t, 0, id*t->nb[2], t->nb[2]);
}

void llama_infllm_layers::use_seq(llama_seq_id id) {
    if (used[id]) {
        return;
    }
    used[id] = true;

    // attention reads unused cells before it masks them
    for (const auto & l : list) {
        for (ggml_tensor * t : { l.k, l.v, l.repr }) {
            if (t) {
                zero(t, id);
            }
        }
    }
}

void llama_infllm_layers::zero() {
    for (llama_seq_id s = 0; s < llama_seq_id(used.size()); ++s) {
        if (used[s]) {
            used[s] = false;
            use_seq(s);
        }
    }
}

void llama_infllm_layers::copy_seq(llama_seq_id src, llama_seq_id dst) {
    use_seq(src);
    used[dst] = true;
    for (const auto & l : list) {
        for (ggml_tensor * t : { l.k, l.v, l.repr, l.mean }) {
            if (t) {
                bytes.resize(t->nb[2]);
                ggml_backend_tensor_get(t, bytes.data(), src*t->nb[2], bytes.size());
                ggml_backend_tensor_set(t, bytes.data(), dst*t->nb[2], bytes.size());
            }
        }
    }
}

std::map<ggml_backend_buffer_type_t, size_t> llama_infllm_layers::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> res;
    for (const auto * bufs : { &ctxs_bufs, &ctxs_bufs_blocks }) {
        for (const auto & [ctx, buf] : *bufs) {
            const auto buft = ggml_backend_buffer_get_type(buf.get());
            res[buft] += model.hparams.no_alloc ? ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft) :
                ggml_backend_buffer_get_size(buf.get());
        }
    }
    return res;
}

uint64_t llama_infllm_layers::model_sum() const {
    if (weights_sum != 0) {
        return weights_sum;
    }
    infllm::checksum res;

    std::vector<uint8_t> bytes;
    for (const auto & [name, t] : llama_infllm_weights(model)) {
        std::vector<int64_t> what = { int64_t(t->type) };
        what.insert(what.end(), t->ne, t->ne + GGML_MAX_DIMS);
        res.add(what.data(), what.size()*sizeof(what[0]));

        // norms and biases tell models apart; matrices may be laid out anew by their backend
        if (t->buffer && ggml_n_dims(t) == 1) {
            bytes.resize(ggml_nbytes(t));
            ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());
            res.add(bytes.data(), bytes.size());
        }
    }
    weights_sum = res.get();
    return weights_sum;
}
