#include "llama-kv-cache-infllm.h"

#include "llama-infllm-device.h"
#include "llama-infllm-impl.h"

#include "../infllm/centred.h"
#include "../infllm/relevance.h"
#include "../infllm/representatives.h"
#include "../infllm/selection.h"
#include "../infllm/text-split.h"

#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <typeinfo>

//
// llama_kv_cache_infllm
//

static uint32_t n_block_ctx(const llama_kv_cache_infllm::params & prm, const infllm::cell_layout & cells) {
    if (prm.n_ctx_seq <= cells.n_cells()) {
        return 0;
    }
    return GGML_PAD((prm.n_ctx_seq - prm.infllm.n_init)/prm.infllm.block_size + 1, 64);
}

// one context per buffer type, ordered by name so that the order is well-defined
struct buft_comparator {
    bool operator()(const ggml_backend_buffer_type_t & a, const ggml_backend_buffer_type_t & b) const {
        return strcmp(ggml_backend_buft_name(a), ggml_backend_buft_name(b)) < 0;
    }
};
using context_map = std::map<ggml_backend_buffer_type_t, ggml_context_ptr, buft_comparator>;

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

llama_kv_cache_infllm::llama_kv_cache_infllm(
        const llama_model & model,
        const llama_cparams & cparams,
        const params & params,
        const layer_filter_cb & filter,
        const layer_reuse_cb & reuse) :
    model(model),
    prm(params),
    cells(infllm::cell_layout::make(
        prm.infllm.n_init, prm.infllm.n_local, prm.infllm.block_size, prm.infllm.max_cached_blocks, prm.n_ubatch)),
    remap(prm.infllm.position == LLAMA_INFLLM_POSITION_INFLLM),
    n_block_max(n_block_ctx(prm, cells)),
    n_chunk(cells.n_cells()/cells.block_size + 2) {

    const auto & hparams = model.hparams;

    // attention kernels of some backends want the number of cells padded; a context that is smaller than the resident
    // buffer does not need all of it
    const uint32_t n_cells_alloc = GGML_PAD(std::min(cells.n_cells(), prm.n_ctx_seq), 256);

    context_map ctx_map;

    size_t block_bytes = 0;

    std::set<ggml_backend_buffer_type_t> paged_by; // nullptr: the host

    pagers = std::make_unique<llama_infllm_pagers>(prm.n_seq_max, prm.infllm.pinned_max_bytes);

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

        auto & ctx = ctx_map[buft];
        if (!ctx) {
            ctx.reset(ggml_init({ 12*hparams.n_layer_all*ggml_tensor_overhead(), nullptr, true }));
        }

        layer l = {};
        l.mem           = this;
        l.idx           = layers.size();
        l.il            = il;
        l.n_head        = hparams.n_head(il);
        l.n_head_kv     = hparams.n_head_kv(il);
        l.n_embd_head_k = hparams.n_embd_head_k(il);
        l.n_embd_head_v = hparams.n_embd_head_v(il);
        l.n_head_repr   = published() ? l.n_head : l.n_head_kv;

        const uint32_t n_embd_k = hparams.n_embd_k_gqa(il);
        const uint32_t n_embd_v = hparams.n_embd_v_gqa(il);

        l.k = ggml_new_tensor_3d(ctx.get(), prm.type_k, n_embd_k, n_cells_alloc, prm.n_seq_max);
        l.v = ggml_new_tensor_3d(ctx.get(), prm.type_v, n_embd_v, n_cells_alloc, prm.n_seq_max);
        ggml_format_name(l.k, "infllm_k_l%d", il);
        ggml_format_name(l.v, "infllm_v_l%d", il);
        // the host, and each device that pages, do not know what the others' layers agree on: the first of theirs must search
        const bool force  = prm.infllm.paging == LLAMA_INFLLM_PAGING_DEVICE;
        const auto * api  = prm.infllm.paging == LLAMA_INFLLM_PAGING_HOST ? nullptr : llama_infllm_pagers::find_api(buft, force);
        const bool first  = paged_by.insert(api ? buft : nullptr).second;
        l.search = can_page() && (searches(l.idx) || first);
        if (l.search && by_keys()) {
            l.mean = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_embd_k, 1, prm.n_seq_max);
            ggml_format_name(l.mean, "infllm_mean_l%d", il);
        }

        llama_infllm_check_device(dev, l, prm.n_ubatch,
                hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f, model.layers[il].attn_sinks);

        l.rope = -1;
        if (can_page() && hparams.rope_type != LLAMA_ROPE_TYPE_NONE && hparams.has_rope(il) && !hparams.use_alibi) {
            const llama_infllm_rope rope(model, cparams, il);
            const auto it = std::find_if(ropes.begin(), ropes.end(), [&](const auto & t) { return t.rope == rope; });
            l.rope = it - ropes.begin();
            if (it == ropes.end()) {
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
            }
        }

        l.offset = block_bytes;
        l.size_k = cells.block_size*l.k->nb[1];
        l.size_v = cells.block_size*l.v->nb[1];
        l.n_sum  = published() ? l.n_head*cells.block_size : sums_queries() ? n_embd_k : 0;
        block_bytes += l.size();

        paging.push_back({ can_page() && api, "" });
        if (can_page() && prm.infllm.paging != LLAMA_INFLLM_PAGING_HOST && (api || !ggml_backend_buft_is_host(buft))) {
            paging.back().why_host = add_pager_layer(ctx.get(), dev, api, l, l.search);
        }
        if (prm.infllm.paging == LLAMA_INFLLM_PAGING_DEVICE && !paging.back().why_host.empty()) {
            throw std::runtime_error("paging = device, but " + paging.back().why_host + ": use paging = host, or auto");
        }

        map_layer_ids[il] = layers.size();
        layers.push_back(l);
    }

    if (layers.empty()) {
        throw std::runtime_error("the InfLLM memory does not support the architecture \"" + model.arch_name() +
                "\": no layer of it attends to all tokens");
    }

    // zeroed, since attention reads unused cells before it masks them
    for (auto & [buft, ctx] : ctx_map) {
        ggml_backend_buffer_ptr buf = allocate(ctx.get(), buft, hparams.no_alloc);
        if (!buf) {
            throw std::runtime_error(::format("the resident buffer of %u cells for %u sequences needs %.1f MiB of memory on %s, "
                    "where %.1f MiB are free: lower n_local, max_cached_blocks or n_seq_max", n_cells_alloc, prm.n_seq_max,
                    ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft)/1024.0/1024.0,
                    ggml_backend_buft_name(buft), bytes_free(buft)/1024.0/1024.0));
        }
        LLAMA_LOG_INFO("%s: %10s resident buffer size = %8.2f MiB\n", __func__,
                ggml_backend_buffer_name(buf.get()), ggml_backend_buffer_get_size(buf.get())/1024.0/1024.0);
        ggml_backend_buffer_clear(buf.get(), 0);
        ctxs_bufs.emplace_back(std::move(ctx), std::move(buf));
    }

    seqs.resize(prm.n_seq_max);
    for (auto & seq : seqs) {
        if (can_page()) {
            seq.slots.assign(layers.size(), infllm::slot_table(cells.n_slot));
            seq.means.resize(layers.size());
            seq.init_k.resize(layers.size());
            for (const auto & l : layers) {
                seq.sums.emplace_back(size_t(n_chunk)*l.n_sum, 0.0f);
            }
        }
    }

    stats.resize(layers.size());
    seq_tokens.resize(seqs.size());
    seq_blocks.resize(seqs.size());

    if (!hparams.no_alloc) {
        pagers->start(block_bytes,
                [this](int32_t i) -> const auto & { return ropes[i].block.low;  },
                [this](int32_t i) -> const auto & { return ropes[i].block.high; },
                [this](int32_t i) -> const auto & { return ropes[i].undo;       });
    }
    if (can_page() && !grow(std::min(n_block_max, N_BLOCK_FIRST))) {
        throw std::runtime_error("failed to allocate the representative keys: lower n_repr or n_seq_max");
    }
    if (prm.infllm.paging == LLAMA_INFLLM_PAGING_DEVICE && !why_host.empty()) {
        throw std::runtime_error("paging = device, but " + why_host + ": use paging = host, or auto");
    }

    if (pagers->empty()) {
        pagers.reset();
        store = std::make_unique<infllm::block_store>(block_bytes, prm.infllm.store_max_bytes);
    } else {
        // the store outlives the use of the pagers, but not the object
        store = std::make_unique<infllm::block_store>(block_bytes, prm.infllm.store_max_bytes, infllm::block_store::allocator {
            [p = pagers.get()](size_t size) { return p->alloc(size); },
            [p = pagers.get()](void * ptr)  { p->free(ptr); },
        });
    }

    LLAMA_LOG_INFO("%s: n_init = %u, n_local = %u, block_size = %u, topk = %u, max_cached_blocks = %u, repr_topk = %u, "
            "position = %s, %u cells, %zu layers, %u seqs, paged by the %s\n", __func__,
            prm.infllm.n_init, prm.infllm.n_local, prm.infllm.block_size, prm.infllm.topk, prm.infllm.max_cached_blocks,
            prm.infllm.repr_topk, remap ? "infllm" : "true", n_cells_alloc, layers.size(), prm.n_seq_max,
            has_pagers() ? "device" : "host");
    if (const std::string why = get_paging_reason(-1); !why.empty()) {
        LLAMA_LOG_WARN("%s: %s: the host pages, which is slower\n", __func__, why.c_str());
    }
}

std::string llama_kv_cache_infllm::add_pager_layer(
        ggml_context * ctx, ggml_backend_dev_t dev, const infllm::pager_api * api, const layer & l, bool search) {
    const std::string device = std::string("device ") + ggml_backend_dev_name(dev);
    if (!api) {
        return device + " has no pager of its own";
    }
    if (published()) {
        return "scores = published, which the host computes";
    }

    infllm::pager_layer shape = {};
    switch (l.k->type) {
        case GGML_TYPE_F16:  shape.type_k = infllm::KV_F16;  break;
        case GGML_TYPE_Q8_0: shape.type_k = infllm::KV_Q8_0; break;
        case GGML_TYPE_Q4_0: shape.type_k = infllm::KV_Q4_0; break;
        default:             return device + " pages K of type f16, q8_0 or q4_0, not " + ggml_type_name(l.k->type);
    }

    shape.cells         = cells;
    shape.n_head        = l.n_head;
    shape.n_head_kv     = l.n_head_kv;
    shape.n_embd_head_k = l.n_embd_head_k;
    shape.n_rot         = l.rope < 0 ? 0 : ropes[l.rope].undo[0].n_rot();
    shape.neox          = l.rope < 0 ? 0 : ropes[l.rope].undo[0].neox;
    shape.remap         = remap;
    shape.topk          = prm.infllm.topk;
    shape.repr_topk     = prm.infllm.repr_topk;
    shape.n_chunk       = sums_queries() ? n_chunk : 0;
    shape.n_block_max   = n_block_max;
    shape.n_repr        = prm.infllm.n_repr;
    shape.row_k         = l.k->nb[1];
    shape.row_v         = l.v->nb[1];
    shape.offset        = l.offset;

    const std::string why = pagers->add_layer(*api, ctx, ggml_backend_dev_buffer_type(dev), l.idx, shape, l.k, l.v, search, l.mean,
            l.rope, std::max(get_n_sub(prm.n_ubatch), get_n_sub(std::min(prm.n_ubatch, n_end()))));
    return why.empty() ? "" : device + " cannot page this model: " + why;
}

std::vector<uint32_t> llama_kv_cache_infllm::sub_lengths(uint32_t n_tokens) const {
    std::vector<uint32_t> res = { prm.infllm.n_score };

    const uint32_t n_pair = 2*(prm.infllm.block_size/prm.infllm.n_repr);
    if (by_keys() && n_tokens <= n_end() && n_pair < res[0]) {
        res.push_back(n_pair);
    }
    return res;
}

uint32_t llama_kv_cache_infllm::get_n_sub(uint32_t n_tokens) const {
    uint32_t res = 0;
    for (const uint32_t len : sub_lengths(n_tokens)) {
        res += (n_tokens + len - 1)/len;
    }
    return res;
}

bool llama_kv_cache_infllm::grow(uint32_t n_block) {
    if (n_block <= n_block_cap) {
        return true;
    }
    n_block = std::min<uint64_t>(n_block_max, std::max<uint64_t>(GGML_PAD(n_block, 64), 2*uint64_t(n_block_cap)));

    synchronize();

    context_map                ctx_map;
    std::vector<ggml_tensor *> reprs(layers.size());
    for (const auto & l : layers) {
        const bool paged = pagers && pagers->api(l.idx); // now, or again
        if (!l.search && !paged) {
            continue;
        }
        auto & ctx = ctx_map[ggml_backend_buffer_get_type(l.k->buffer)];
        if (!ctx) {
            ctx.reset(ggml_init({ 3*layers.size()*ggml_tensor_overhead(), nullptr, true }));
        }
        if (l.search) {
            reprs[l.idx] = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, l.n_embd_head_k*l.n_head_repr,
                    int64_t(prm.infllm.n_repr)*n_block, prm.n_seq_max);
            ggml_format_name(reprs[l.idx], "infllm_repr_l%d", l.il);
        }
        if (paged) {
            pagers->make_blocks(ctx.get(), l.idx, n_block);
        }
    }

    contexts_buffers made;
    for (auto & [buft, ctx] : ctx_map) {
        ggml_backend_buffer_ptr buf = allocate(ctx.get(), buft, model.hparams.no_alloc);
        if (!buf) {
            return false;
        }
        ggml_backend_buffer_clear(buf.get(), 0);
        made.emplace_back(std::move(ctx), std::move(buf));
    }

    std::vector<uint32_t> n_stored;
    for (const auto & seq : seqs) {
        n_stored.push_back(seq.n_offload());
    }
    // while the host pages, page_by_devices() does this
    const bool paged = has_pagers() && !pagers->empty() && !model.hparams.no_alloc;
    if (paged && !pagers->set_blocks(n_block, [&](uint32_t idx) { return reprs[idx]; }, n_stored)) {
        page_by_host("host and device have too little memory to share, or share the layers between them");
    }

    for (auto & l : layers) {
        for (size_t s = 0; l.repr && s < seqs.size(); ++s) {
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

llama_kv_cache_infllm::~llama_kv_cache_infllm() {
    if (pagers) {
        pagers->wait(); // blocks may still be on their way to the store, which goes first
    }
}

llama_memory_context_ptr llama_kv_cache_infllm::init_batch(
        llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);

    auto ubatches = prepare(balloc, n_ubatch);
    if (ubatches.empty()) {
        return std::make_unique<llama_kv_cache_infllm_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    }
    return std::make_unique<llama_kv_cache_infllm_context>(this, std::move(ubatches));
}

std::vector<llama_ubatch> llama_kv_cache_infllm::prepare(llama_batch_allocr & balloc, uint32_t n_ubatch) {
    const auto fail = [](const std::string & why) {
        llama_infllm_set_error(why);
        LLAMA_LOG_ERROR("init_batch: %s\n", why.c_str());
        return std::vector<llama_ubatch>();
    };

    llama_infllm_set_error("");

    balloc.split_reset();

    std::vector<llama_ubatch> ubatches;

    // walk through the batch as apply() will, to make sure that all of it can be taken
    std::vector<uint32_t> n_tokens(seqs.size());
    std::vector<uint32_t> n_blocks(seqs.size());
    for (size_t s = 0; s < seqs.size(); ++s) {
        n_tokens[s] = seqs[s].n_tokens;
        n_blocks[s] = seqs[s].n_offload();
    }
    size_t n_blocks_new = 0;

    // what the batch has of each sequence; a text ends here if its last token alone has an output
    struct part { uint32_t p1; uint32_t n_outputs; bool last_output; };
    const llama_batch & batch = balloc.get_batch();
    if (batch.embd && model.hparams.n_pos_per_embd() > 1) {
        return fail("the batch has embeddings, of an image for example, whose tokens have several positions each: "
                "the InfLLM memory takes text alone");
    }
    std::vector<part>   parts(seqs.size());
    for (size_t s = 0; s < seqs.size(); ++s) {
        parts[s].p1 = n_tokens[s];
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        auto & p = parts[batch.seq_id[i][0]];
        p.p1          += 1;
        p.n_outputs   += batch.logits[i] != 0;
        p.last_output  = batch.logits[i] != 0;
    }

    for (int32_t i = 0; ; ) {
        // the first token that is in no ubatch yet
        while (i < batch.n_tokens && batch.pos[i] < llama_pos(n_tokens[batch.seq_id[i][0]])) {
            i++;
        }
        uint32_t n = n_ubatch;
        if (i < batch.n_tokens && can_page()) {
            const auto &   part = parts[batch.seq_id[i][0]];
            const uint32_t p0   = n_tokens[batch.seq_id[i][0]];
            if (part.p1 > cells.n_cells() && p0 < part.p1) {
                const bool ends = part.n_outputs == 1 && part.last_output;
                n = infllm::text_split { n_ubatch, ends ? n_end() : 0 }.next(p0, part.p1) - p0;
            }
        }

        auto ubatch = balloc.split_seq(n);
        if (ubatch.n_tokens == 0) {
            break;
        }

        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            if (ubatch.n_seq_id[i] != 1) {
                return fail("a token belongs to several sequences, but the sequences of the InfLLM memory share no cells: "
                        "give each sequence its own tokens");
            }
        }

        const llama_seq_id s  = ubatch.seq_id[0][0];
        const uint32_t     p0 = n_tokens[s];
        const uint32_t     p1 = p0 + ubatch.n_tokens;

        if (ubatch.pos[0] != llama_pos(p0)) {
            return fail(::format("the tokens of sequence %d start at position %d, but must follow on position %d",
                    s, ubatch.pos[0], int(p0) - 1));
        }
        if (p1 > prm.n_ctx_seq) {
            return fail(::format("sequence %d needs %u tokens, but n_ctx is %u per sequence: "
                    "make the context larger or the text shorter", s, p1, prm.n_ctx_seq));
        }

        const uint32_t n_offload = std::max(n_blocks[s], cells.n_offload(p0, p1));
        n_blocks_new += n_offload - n_blocks[s];
        n_blocks[s] = n_offload;
        n_tokens[s] = p1;

        ubatches.push_back(std::move(ubatch));
    }

    std::string why = check_store(n_blocks_new);
    if (why.empty() && !store->reserve(n_blocks_new)) {
        why = "there is no memory for more blocks in the store: free memory, or shorten the text";
    }
    if (!why.empty()) {
        return fail(why);
    }
    if (can_page() && !grow(*std::max_element(n_blocks.begin(), n_blocks.end()))) {
        return fail("there is no memory for more representative keys: free memory, lower n_repr, or shorten the text");
    }

    return ubatches;
}

std::string llama_kv_cache_infllm::check_store(uint64_t n_new) const {
    const uint64_t size  = store->block_bytes();
    const uint64_t limit = store->bytes_max();
    const uint64_t used  = store->n_blocks();

    const bool over = limit > 0 && (used + n_new)*size > limit;
    if (n_new == 0 || (!over && llama_infllm_ram_has(n_new*size))) {
        return "";
    }
    const auto mib = [](uint64_t n) { return n/1024.0/1024.0; };
    return ::format("the block store has %.1f MiB and cannot grow by %.1f MiB (%s): "
            "raise store_max_bytes, free memory, or shorten the text", mib(used*size), mib(n_new*size),
            over ? ::format("store_max_bytes = %.1f MiB", mib(limit)).c_str()
                 : ::format("%.1f MiB of memory are free", mib(llama_infllm_ram_free())).c_str());
}

std::string llama_kv_cache_infllm::check_tokens(llama_seq_id seq_id, uint32_t n_tokens) const {
    if (seq_id < 0 || seq_id >= llama_seq_id(seqs.size()) || n_tokens > prm.n_ctx_seq) {
        return ::format("sequence %d cannot hold %u tokens: there are %zu sequences of n_ctx = %u",
                seq_id, n_tokens, seqs.size(), prm.n_ctx_seq);
    }
    const uint32_t n_block = can_page() ? cells.n_offload(n_tokens, n_tokens) : 0;
    const uint32_t n_old   = seqs[seq_id].n_offload();
    return check_store(n_block > n_old ? n_block - n_old : 0);
}

llama_memory_context_ptr llama_kv_cache_infllm::init_full() {
    return std::make_unique<llama_kv_cache_infllm_context>(this);
}

llama_memory_context_ptr llama_kv_cache_infllm::init_update(llama_context * lctx, bool optimize) {
    GGML_UNUSED(lctx);
    GGML_UNUSED(optimize);

    return std::make_unique<llama_kv_cache_infllm_context>(LLAMA_MEMORY_STATUS_NO_UPDATE);
}

bool llama_kv_cache_infllm::get_can_shift() const {
    return false;
}

void llama_kv_cache_infllm::clear(bool data) {
    for (size_t s = 0; s < seqs.size(); ++s) {
        reset(s);
    }
    if (data) {
        synchronize();
        for (const auto & l : layers) {
            for (ggml_tensor * t : { l.k, l.v, l.repr, l.mean }) {
                if (t) {
                    ggml_backend_tensor_memset(t, 0, 0, ggml_nbytes(t));
                }
            }
        }
    }
    update_paging();
    update_gauges();
}

bool llama_kv_cache_infllm::can_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    if (seq_id >= llama_seq_id(seqs.size())) {
        return false;
    }
    // a hole would need blocks of varying size
    const uint32_t n0 = std::max(p0, 0);
    const uint32_t n1 = seqs[seq_id].n_tokens;
    return n0 >= n1 || p1 < 0 || uint32_t(p1) >= n1 || p1 <= llama_pos(n0);
}

bool llama_kv_cache_infllm::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (seq_id >= llama_seq_id(seqs.size())) {
        return false;
    }

    const uint32_t n0 = std::max(p0, 0);

    for (size_t s = 0; s < seqs.size(); ++s) {
        if ((seq_id < 0 || seq_id == llama_seq_id(s)) && !can_rm(s, p0, p1)) {
            return false;
        }
    }

    for (size_t s = 0; s < seqs.size(); ++s) {
        if ((seq_id < 0 || seq_id == llama_seq_id(s)) && n0 < seqs[s].n_tokens && (p1 < 0 || p1 > llama_pos(n0))) {
            truncate(s, n0);
        }
    }
    update_paging();
    update_gauges();

    return true;
}

void llama_kv_cache_infllm::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    const auto n_seq = llama_seq_id(seqs.size());
    if (seq_id_src < 0 || seq_id_src >= n_seq || seq_id_dst < 0 || seq_id_dst >= n_seq || p0 > 0) {
        LLAMA_LOG_ERROR("%s: cannot copy positions [%d, %d) of sequence %d to %d: the InfLLM memory copies a sequence from "
                "its start, and has %d sequences\n", __func__, p0, p1, seq_id_src, seq_id_dst, n_seq);
        return;
    }
    if (seq_id_src == seq_id_dst) {
        return;
    }

    reset(seq_id_dst);
    synchronize();

    for (const auto & l : layers) {
        for (ggml_tensor * t : { l.k, l.v, l.repr, l.mean }) {
            if (t) {
                bytes.resize(t->nb[2]);
                ggml_backend_tensor_get(t, bytes.data(), seq_id_src*t->nb[2], bytes.size());
                ggml_backend_tensor_set(t, bytes.data(), seq_id_dst*t->nb[2], bytes.size());
            }
        }
    }

    // stored blocks never change, so both sequences can refer to them
    seqs[seq_id_dst] = seqs[seq_id_src];
    if (has_pagers()) {
        pagers->copy_seq(seq_id_src, seq_id_dst, seqs[seq_id_src].n_offload());
    }
    for (const int32_t id : seqs[seq_id_dst].blocks) {
        store->ref(id);
    }

    if (p1 >= 0 && uint32_t(p1) < seqs[seq_id_dst].n_tokens) {
        truncate(seq_id_dst, p1);
    }
    update_paging();
    update_gauges();
}

void llama_kv_cache_infllm::seq_keep(llama_seq_id seq_id) {
    for (size_t s = 0; s < seqs.size(); ++s) {
        if (llama_seq_id(s) != seq_id) {
            reset(s);
        }
    }
    update_paging();
    update_gauges();
}

void llama_kv_cache_infllm::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    if (shift != 0 && (p1 < 0 || p1 > p0) && p0 <= seq_pos_max(seq_id)) {
        LLAMA_LOG_ERROR("%s: the InfLLM memory cannot shift positions (get_can_shift() is false); nothing is changed\n", __func__);
    }
}

void llama_kv_cache_infllm::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    if (d != 1 && (p1 < 0 || p1 > p0) && p0 <= seq_pos_max(seq_id)) {
        LLAMA_LOG_ERROR("%s: the InfLLM memory cannot divide positions; nothing is changed\n", __func__);
    }
}

llama_pos llama_kv_cache_infllm::seq_pos_min(llama_seq_id seq_id) const {
    return seq_pos_max(seq_id) < 0 ? -1 : 0;
}

llama_pos llama_kv_cache_infllm::seq_pos_max(llama_seq_id seq_id) const {
    return seq_id < 0 || seq_id >= llama_seq_id(seqs.size()) ? -1 : llama_pos(seqs[seq_id].n_tokens) - 1;
}

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_infllm::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> res;
    for (const auto * list : { &ctxs_bufs, &ctxs_bufs_blocks }) {
        for (const auto & [ctx, buf] : *list) {
            const auto buft = ggml_backend_buffer_get_type(buf.get());
            res[buft] += model.hparams.no_alloc ? ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft) :
                ggml_backend_buffer_get_size(buf.get());
        }
    }
    return res;
}

void llama_kv_cache_infllm::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    GGML_UNUSED(seq_id);

    // llama-server saves prompts without a look at the result: a size of 0, which an error gives, would count as saved, and as
    // restored, with other tokens in the cache. Where only the size is asked for, it is that of a mark, which is never written.
    if (flags == LLAMA_STATE_SEQ_FLAGS_NONE && std::strstr(typeid(io).name(), "llama_io_write_dummy")) {
        io.write("none", 4);
        return;
    }

    throw std::runtime_error("saving the state of an InfLLM memory is not supported");
}

void llama_kv_cache_infllm::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    GGML_UNUSED(io);
    GGML_UNUSED(seq_id);
    GGML_UNUSED(flags);

    throw std::runtime_error("loading the state of an InfLLM memory is not supported");
}

//
// llama_kv_cache_infllm specific API
//

bool llama_kv_cache_infllm::get_stats(int32_t il, llama_infllm_stats & res) const {
    if (il >= 0 && map_layer_ids.find(il) == map_layer_ids.end()) {
        return false;
    }

    std::lock_guard<std::mutex> lock(mutex);

    res = {};
    for (size_t s = 0; s < seq_tokens.size(); ++s) {
        const uint64_t n_tail = seq_tokens[s] - uint64_t(seq_blocks[s])*cells.block_size; // init tokens and ring
        res.n_seq             += seq_tokens[s] > 0;
        res.n_tokens          += seq_tokens[s];
        res.n_tokens_resident += n_tail + (seq_blocks[s] > 0 ? cells.n_slot*cells.block_size : 0);
    }
    for (const auto & l : layers) {
        if (il >= 0 && l.il != il) {
            continue;
        }
        const auto c = get_counters(l);
        res.n_layer        += 1;
        res.n_blocks       += store_blocks;
        res.n_slots        += seqs.size()*cells.n_slot;
        res.bytes_resident += ggml_nbytes(l.k) + ggml_nbytes(l.v);
        res.bytes_repr     += l.repr ? ggml_nbytes(l.repr) : 0;
        res.bytes_store_kv += store_blocks*(l.size_k + l.size_v);
        res.bytes_store    += store_blocks*l.size();
        res.bytes_paged_in += c.bytes_paged_in;
        res.n_select       += c.n_select;
        res.n_selected     += c.n_selected;
        res.n_hit          += c.n_selected - c.n_page_in;
        res.n_page_in      += c.n_page_in;
        res.n_layer_pager  += paging[l.idx].has_pager;
        res.n_layer_device += get_pager_api(l) != nullptr;
    }

    return true;
}

std::string llama_kv_cache_infllm::get_paging_reason(int32_t il) const {
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto & l : layers) {
        if ((il < 0 || l.il == il) && !paging[l.idx].why_host.empty()) {
            return paging[l.idx].why_host;
        }
    }
    const auto it = map_layer_ids.find(il);
    return il < 0 || (it != map_layer_ids.end() && paging[it->second].has_pager) ? why_host : "";
}

llama_kv_cache_infllm::counters llama_kv_cache_infllm::get_counters(const layer & l) const {
    counters res = stats[l.idx];
    if (get_pager_api(l)) {
        const auto add = pagers->get_stats(l.idx);
        res.n_select       += add.n_select;
        res.n_selected     += add.n_selected;
        res.n_page_in      += add.n_page_in;
        res.bytes_paged_in += add.n_copied*(l.size_k + l.size_v);
    }
    return res;
}

void llama_kv_cache_infllm::reset_stats() {
    std::lock_guard<std::mutex> lock(mutex);
    std::fill(stats.begin(), stats.end(), counters());
    if (pagers) {
        pagers->reset_stats();
    }
}

void llama_kv_cache_infllm::set_trace(llama_infllm_trace_callback callback, void * user_data) {
    trace           = callback;
    trace_user_data = user_data;

    can_end = true;
    update_paging();
}

void llama_kv_cache_infllm::set_scores(llama_infllm_score_callback callback, void * user_data) {
    score           = callback;
    score_user_data = user_data;
}

void llama_kv_cache_infllm::update_gauges() {
    std::lock_guard<std::mutex> lock(mutex);
    for (size_t s = 0; s < seqs.size(); ++s) {
        seq_tokens[s] = seqs[s].n_tokens;
        seq_blocks[s] = seqs[s].n_offload();
    }
    store_blocks = store->n_blocks();
}

const llama_infllm_rope * llama_kv_cache_infllm::get_rope(const layer & l) const {
    return l.rope < 0 ? nullptr : &ropes[l.rope].rope;
}

bool llama_kv_cache_infllm::is_resident(const ggml_tensor * t) const {
    return std::any_of(layers.begin(), layers.end(), [&](const layer & l) {
        return t->view_src == l.k || t->view_src == l.v;
    });
}

void llama_kv_cache_infllm::page(const layer & l, const ggml_tensor * q_sum, const ggml_tensor * scores) {
    auto & seq = seqs[cur.seq_id];

    if (q_sum) {
        const uint32_t n_group = l.n_head/l.n_head_kv;
        const uint32_t block0  = cur.p0 < cells.n_init ? 0 : cells.block_of(cur.p0);

        // a single token arrives as it is, those of the init tokens belong to no block
        const bool     skip    = q_sum->ne[2] == 1 && cur.p0 < cells.n_init;
        const uint32_t p1      = cur.p0 + cur.n_tokens;
        const uint32_t n       = skip || p1 <= cells.n_init ? 0 : cells.block_of(p1 - 1) - block0 + 1;

        for (uint32_t c = 0; c < n; ++c) {
            float * acc = get_sums(l, seq, block0 + c);
            for (uint32_t h = 0; h < l.n_head; ++h) {
                const auto * q = reinterpret_cast<const float *>(
                        static_cast<const char *>(q_sum->data) + c*q_sum->nb[2] + h*q_sum->nb[1]);
                float * acc_h = acc + size_t(h/n_group)*l.n_embd_head_k;
                for (uint32_t i = 0; i < l.n_embd_head_k; ++i) {
                    acc_h[i] += q[i];
                }
            }
        }
    }

    if (!seq.paging() || !scores) {
        return;
    }
    select(seq, *scores);

    // the layers that follow this one, too: on a device that saves them a split of the graph
    page_in(l, seq);
    for (uint32_t i = l.idx + 1; i < layers.size() && !has_scores(); ++i) {
        if (get_pager_api(layers[i])) {
            continue;
        }
        if (layers[i].repr) {
            break;
        }
        page_in(layers[i], seq);
    }
}

void llama_kv_cache_infllm::page_in(const layer & l, sequence & seq) {
    auto & slots = seq.slots[l.idx];

    page_ins.clear();
    if (cur.place == infllm::PLACE_UPDATE) {
        slots.update(selected.data(), selected.size(), page_ins);
    } else {
        slots.place(selected.data(), selected.size(), seq.n_offload(), cur.place == infllm::PLACE_ALL, page_ins);
    }
    for (const auto & p : page_ins) {
        load_slot(l, cur.seq_id, p.slot, p.block);
    }
    const uint32_t n_page_in = infllm::count_selected(page_ins.data(), page_ins.size(), selected.data(), selected.size());

    {
        std::lock_guard<std::mutex> lock(mutex);
        auto & c = stats[l.idx];
        c.n_select       += 1;
        c.n_selected     += selected.size();
        c.n_page_in      += n_page_in;
        c.bytes_paged_in += page_ins.size()*(l.size_k + l.size_v);
    }

    if (trace) {
        const llama_infllm_trace_event event = {
            /*.il         =*/ l.il,
            /*.seq_id     =*/ cur.seq_id,
            /*.pos        =*/ llama_pos(cur.p0),
            /*.n_tokens   =*/ cur.n_tokens,
            /*.n_blocks   =*/ seq.n_offload(),
            /*.n_selected =*/ uint32_t(selected.size()),
            /*.n_page_in  =*/ n_page_in,
            /*.selected   =*/ selected.data(),
            /*.scores     =*/ scores_block.data(),
        };
        trace(&event, trace_user_data);
    }
}

void llama_kv_cache_infllm::select(const sequence & seq, const ggml_tensor & scores) {
    const infllm::repr_scores repr = {
        /*.score   =*/ static_cast<float *>(scores.data),
        /*.n_block =*/ seq.n_offload(),
        /*.n_repr  =*/ prm.infllm.n_repr,
        /*.n_row   =*/ uint32_t(scores.ne[0]),
        /*.n_sub   =*/ uint32_t(scores.ne[1]),
    };
    scores_block.resize(repr.n_block);
    if (agree()) {
        infllm::relevance_scratch scratch;
        sums.resize(size_t(repr.n_sub)*repr.n_block);
        infllm::block_relevance(infllm::single_thread(), repr, selected.empty(), sums.data(), scores_block.data(), scratch);
    } else {
        infllm::block_relevance(infllm::single_thread(), repr, scores_block.data());
    }
    infllm::select_topk(scores_block, prm.infllm.topk, selected);
}

void llama_kv_cache_infllm::add_attention(const layer & l, const ggml_tensor * attn) {
    auto & seq = seqs[cur.seq_id];

    const auto *   data = static_cast<const float *>(attn->data);
    const uint32_t n_kv = attn->ne[1];

    for (uint32_t p = cells.block_pos(seq.n_offload()); p < cur.p0 + cur.n_tokens; ++p) {
        float * sums = get_sums(l, seq, cells.block_of(p)) + (p - cells.n_init)%cells.block_size;
        for (uint32_t h = 0; h < l.n_head; ++h) {
            sums[h*cells.block_size] += data[h*n_kv + cells.cell(p)];
        }
    }
}

//
// state of a sequence
//

void llama_kv_cache_infllm::begin_ubatch(const ubatch_info & info) {
    cur = info;
    selected.clear();
    slots_before.clear();

    auto & seq = seqs[cur.seq_id];

    const uint32_t p0 = cur.p0;
    const uint32_t p1 = cur.p0 + cur.n_tokens;

    update_paging();
    if (can_page()) {
        offload(cur.seq_id, cells.n_offload(p0, p1));

        if (seq.paging()) {
            // what several tokens see is a function of the text alone, whatever was computed before; decoding is to be fast
            const bool anew = cur.n_tokens > 1;

            // the model sees no more positions than there are cells
            if (remap && (anew || p1 - seq.shift*cells.block_size > cells.n_cells())) {
                set_shift(cur.seq_id, seq.n_offload() - cells.n_slot);
            }
            if (anew) {
                cur.place = seq.stale ? infllm::PLACE_ALL : infllm::PLACE_ANEW;
            } else {
                if (seq.stale) {
                    load_slots(cur.seq_id);
                }
                slots_before = seq.slots;
            }
            seq.stale = false;
        }

        for (uint32_t p = std::max(p0, cells.n_init); p < p1; ++p) {
            if ((p - cells.n_init)%cells.block_size == 0) {
                for (const auto & l : layers) { // devices that page do this by themselves
                    std::fill_n(get_sums(l, seq, cells.block_of(p)), l.n_sum, 0.0f);
                }
            }
        }
    }

    seq.n_tokens = p1;

    update_gauges();
}

// blocks [seq.n_offload(), n_offload) leave the ring; memory for them was reserved by init_batch()
void llama_kv_cache_infllm::offload(llama_seq_id seq_id, uint32_t n_offload) {
    auto & seq = seqs[seq_id];

    if (n_offload <= seq.n_offload()) {
        return;
    }

    synchronize();

    if (!seq.paging()) {
        // until now cell = position: the first blocks are in their slots already
        pull_state(seq_id);
        for (auto & slots : seq.slots) {
            slots.clear();
            for (uint32_t i = 0; i < cells.n_slot; ++i) {
                slots.assign(i, i);
            }
        }
        push_state(seq_id);

        for (const auto & l : layers) {
            if (remap && l.rope >= 0) {
                auto & init_k = seq.init_k[l.idx];
                init_k.resize(cells.n_init*l.k->nb[1]);
                ggml_backend_tensor_get(l.k, init_k.data(), seq_id*l.k->nb[2], init_k.size());
            }
        }
    }

    const uint32_t         block0 = seq.n_offload();
    std::vector<uint8_t *> data;
    for (uint32_t b = block0; b < n_offload; ++b) {
        const int32_t id = store->alloc();
        GGML_ASSERT(id != infllm::block_store::NONE);
        seq.blocks.push_back(id);
        data.push_back(store->data(id));
        if (has_pagers()) {
            pagers->set_block(seq_id, b, data.back());
        }
        for (const auto & l : layers) {
            if (!get_pager_api(l)) {
                store_block(l, seq_id, b, block0 > 0);
            }
        }
    }
    if (has_pagers()) {
        pagers->store({ uint32_t(seq_id), block0, uint32_t(data.size()), seq.n_tokens, data.data() });
    }
    if (block0 == 0 && by_keys()) {
        set_mean(seq_id);
    }
}

// the mean of the representative keys of the blocks that leave the ring first, which are centred now
void llama_kv_cache_infllm::set_mean(llama_seq_id seq_id) {
    synchronize();

    const int64_t n_row = int64_t(seqs[seq_id].n_offload())*prm.infllm.n_repr;
    for (const auto & l : layers) {
        if (!l.mean) {
            continue;
        }
        const int64_t n_embd = l.repr->ne[0];

        repr_rows.resize(n_row*n_embd);
        ggml_backend_tensor_get(l.repr, repr_rows.data(), seq_id*l.repr->nb[2], n_row*l.repr->nb[1]);

        std::vector<double> sum(n_embd);
        for (int64_t i = 0; i < n_row*n_embd; ++i) {
            sum[i%n_embd] += infllm::half_to_float(repr_rows[i]);
        }
        auto & mean = seqs[seq_id].means[l.idx];
        mean.resize(n_embd);
        std::transform(sum.begin(), sum.end(), mean.begin(), [&](double x) { return float(x/n_row); });
        ggml_backend_tensor_set(l.mean, mean.data(), seq_id*l.mean->nb[2], n_embd*sizeof(float));

        std::vector<float> sums(n_row*infllm::CENTRED_LANES);
        infllm::centre_rows(infllm::single_thread(), repr_rows.data(), n_row, n_embd, mean.data(), sums.data());
        ggml_backend_tensor_set(l.repr, repr_rows.data(), seq_id*l.repr->nb[2], n_row*l.repr->nb[1]);
    }
}

void llama_kv_cache_infllm::set_shift(llama_seq_id seq_id, uint32_t shift) {
    auto & seq = seqs[seq_id];

    if (shift == seq.shift) {
        return;
    }
    seq.shift = shift;
    seq.stale = seq.stale || !ropes.empty(); // without RoPE positions are in the mask alone

    synchronize();
    for (const auto & l : layers) {
        const auto & init_k = seq.init_k[l.idx];
        if (!init_k.empty()) {
            bytes = init_k;
            if (shift > 0) {
                rotate_rows(l, bytes.data(), cells.n_init, ropes[l.rope].block.by(shift));
            }
            ggml_backend_tensor_set(l.k, bytes.data(), seq_id*l.k->nb[2], bytes.size());
        }
    }
}

void llama_kv_cache_infllm::load_slots(llama_seq_id seq_id) {
    synchronize();
    pull_state(seq_id);

    for (const auto & l : layers) {
        for (uint32_t i = 0; i < cells.n_slot; ++i) {
            load_slot(l, seq_id, i, seqs[seq_id].slots[l.idx].block_at(i));
        }
    }
    seqs[seq_id].stale = false;
}

// keep the positions [0, n_tokens), as they would be had the sequence never gone further, but for the sums of a block
// that is cut in two: they keep the queries of the removed tokens
// (as do those of all tokens before with published scores)
void llama_kv_cache_infllm::truncate(llama_seq_id seq_id, uint32_t n_tokens) {
    auto & seq = seqs[seq_id];

    if (n_tokens == 0) {
        reset(seq_id);
        return;
    }

    if (seq.paging()) {
        // with n_offload == 0 all goes back to cell = position
        const uint32_t n_old     = seq.n_offload();
        const uint32_t n_offload = std::min(n_old, cells.n_offload(n_tokens, n_tokens));

        // a ring that starts further back must not run into the positions of the slots
        if (remap) {
            set_shift(seq_id, n_offload == 0 ? 0 : std::min(seq.shift, n_offload - cells.n_slot));
        }

        synchronize();
        pull_state(seq_id);
        if (!slots_before.empty() && seq_id == cur.seq_id && n_tokens == cur.p0) {
            for (const auto & l : layers) {
                if (!get_pager_api(l)) {
                    seq.slots[l.idx] = slots_before[l.idx];
                }
            }
        }

        const auto n_block = n_tokens > cells.n_init ? cells.block_of(n_tokens - 1) + 1 : 0;
        for (uint32_t b = n_offload; b < n_old && b < n_block; ++b) {
            for (const auto & l : layers) {
                load_block(l, seq_id, b, cells.cell(cells.block_pos(b)), b);
                if (l.n_sum > 0) {
                    std::memcpy(get_sums(l, seq, b), store->data(seq.blocks[b]) + l.offset + l.size_k + l.size_v,
                            l.n_sum*sizeof(float));
                }
            }
        }
        for (uint32_t b = n_offload; b < n_old; ++b) {
            store->unref(seq.blocks[b]);
        }
        can_end = true;
        seq.blocks.resize(n_offload);

        // blocks that are in the ring again must not be attended twice; every slot holds a block, so fill up
        for (auto & slots : seq.slots) {
            if (n_offload == 0) {
                slots.clear();
                continue;
            }
            slots.remove_from(n_offload);
            int32_t next = n_offload - 1;
            for (uint32_t i = 0; i < cells.n_slot; ++i) {
                if (slots.block_at(i) == infllm::slot_table::NONE) {
                    while (slots.slot_of(next) != infllm::slot_table::NONE) {
                        next--;
                    }
                    slots.assign(i, next);
                }
            }
        }
        seq.stale = n_offload > 0;
        push_state(seq_id);
    }

    seq.n_tokens = n_tokens;
}

void llama_kv_cache_infllm::reset(llama_seq_id seq_id) {
    auto & seq = seqs[seq_id];

    if (pagers && seq.paging()) {
        synchronize(); // blocks may still be on their way
    }
    for (const int32_t id : seq.blocks) {
        store->unref(id);
    }
    for (auto & slots : seq.slots) {
        slots.clear();
    }
    can_end = true;
    seq.blocks.clear();
    seq.n_tokens = 0;
    seq.shift    = 0;
    seq.stale    = false;
}

//
// data movement, one layer
//

void llama_kv_cache_infllm::store_block(const layer & l, llama_seq_id seq_id, uint32_t block, bool centre) {
    auto & seq = seqs[seq_id];

    const uint32_t cell     = cells.cell(cells.block_pos(block));
    const uint32_t n_embd_k = l.k->ne[0];

    uint8_t * data_k = store->data(seq.blocks[block]) + l.offset;
    uint8_t * data_v = data_k + l.size_k;

    ggml_backend_tensor_get(l.k, data_k, seq_id*l.k->nb[2] + cell*l.k->nb[1], l.size_k);
    ggml_backend_tensor_get(l.v, data_v, seq_id*l.v->nb[2] + cell*l.v->nb[1], l.size_v);
    if (l.n_sum > 0) {
        std::memcpy(data_v + l.size_v, get_sums(l, seq, block), l.n_sum*sizeof(float));
    }

    if (!l.repr) {
        return;
    }

    rows.resize(size_t(n_embd_k)*cells.block_size);
    llama_infllm_to_f32(l.k->type, data_k, rows.data(), rows.size());

    std::vector<float> scores(l.n_head_repr*cells.block_size);
    if (published()) {
        std::copy_n(get_sums(l, seq, block), l.n_sum, scores.data());
    } else if (sums_queries()) {
        // the queries that follow the block in its local window
        std::vector<float> q(n_embd_k, 0.0f);
        const uint32_t last = infllm::last_query_block(cells, block, seq.n_tokens);
        for (uint32_t b = block + 1; b <= last; ++b) {
            const float * q_b = get_sums(l, seq, b);
            for (uint32_t i = 0; i < n_embd_k; ++i) {
                q[i] += q_b[i];
            }
        }
        infllm::token_scores(rows.data(), q.data(), cells.block_size, l.n_head_kv, l.n_embd_head_k, scores.data());
    }

    std::vector<infllm::rotation> undo;
    if (l.rope >= 0) {
        const auto & table = ropes[l.rope];
        const auto   back  = table.block.by(-int64_t(block));
        for (const auto & rot : table.undo) {
            undo.push_back(back*rot);
        }
    }

    const uint32_t n_repr = prm.infllm.n_repr;
    std::vector<float> keys(n_repr*l.repr->ne[0]);
    infllm::representative_keys(rows.data(), scores.data(), cells.block_size, l.n_head_repr, l.n_head_kv, l.n_embd_head_k,
            n_repr, prm.infllm.repr_topk, undo, keys.data());

    repr_rows.resize(keys.size());
    ggml_fp32_to_fp16_row(keys.data(), repr_rows.data(), keys.size());
    if (l.mean && centre) {
        std::vector<float> sums(size_t(n_repr)*infllm::CENTRED_LANES);
        infllm::centre_rows(infllm::single_thread(), repr_rows.data(), n_repr, l.repr->ne[0], seq.means[l.idx].data(), sums.data());
    }
    ggml_backend_tensor_set(l.repr, repr_rows.data(), seq_id*l.repr->nb[2] + block*n_repr*l.repr->nb[1], n_repr*l.repr->nb[1]);
}

llama_kv_cache_infllm::block_rows llama_kv_cache_infllm::get_rows(
        const layer & l, llama_seq_id seq_id, uint32_t block, uint32_t dst) {
    const uint8_t * data_k = store->data(seqs[seq_id].blocks[block]) + l.offset;
    const uint8_t * data_v = data_k + l.size_k;

    if (l.rope >= 0 && block != dst) {
        bytes.assign(data_k, data_v);
        rotate_rows(l, bytes.data(), cells.block_size, ropes[l.rope].block.by(int64_t(dst) - block));
        data_k = bytes.data();
    }

    return { data_k, data_v };
}

uint32_t llama_kv_cache_infllm::slot_block(llama_seq_id seq_id, uint32_t slot, uint32_t block) const {
    return remap ? slot + seqs[seq_id].shift : block;
}

void llama_kv_cache_infllm::load_slot(const layer & l, llama_seq_id seq_id, uint32_t slot, uint32_t block) {
    load_block(l, seq_id, block, cells.slot_cell(slot), slot_block(seq_id, slot, block));
}

void llama_kv_cache_infllm::load_block(
        const layer & l, llama_seq_id seq_id, uint32_t block, uint32_t cell, uint32_t dst) {
    const auto src = get_rows(l, seq_id, block, dst);

    ggml_backend_tensor_set(l.k, src.k, seq_id*l.k->nb[2] + cell*l.k->nb[1], l.size_k);
    ggml_backend_tensor_set(l.v, src.v, seq_id*l.v->nb[2] + cell*l.v->nb[1], l.size_v);
}

uint32_t llama_kv_cache_infllm::check_slots() {
    synchronize();

    uint32_t n_bad = 0;

    std::vector<uint8_t> k;
    std::vector<uint8_t> v;
    for (size_t s = 0; s < seqs.size(); ++s) {
        pull_state(s);
        for (const auto & l : layers) {
            for (uint32_t i = 0; seqs[s].paging() && i < cells.n_slot; ++i) {
                const int32_t block = seqs[s].slots[l.idx].block_at(i);
                if (block < 0 || block >= int32_t(seqs[s].n_offload())) {
                    n_bad++;
                    continue;
                }
                const auto   src  = get_rows(l, s, block, slot_block(s, i, block));
                const size_t cell = cells.slot_cell(i);
                k.resize(l.size_k);
                v.resize(l.size_v);
                ggml_backend_tensor_get(l.k, k.data(), s*l.k->nb[2] + cell*l.k->nb[1], l.size_k);
                ggml_backend_tensor_get(l.v, v.data(), s*l.v->nb[2] + cell*l.v->nb[1], l.size_v);
                n_bad += std::memcmp(k.data(), src.k, l.size_k) != 0 || std::memcmp(v.data(), src.v, l.size_v) != 0;
            }
        }
    }

    return n_bad;
}

void llama_kv_cache_infllm::rotate_rows(const layer & l, uint8_t * data, uint32_t n, const infllm::rotation & rot) {
    if (l.k->type == GGML_TYPE_F16 &&
            rot.apply_f16(reinterpret_cast<uint16_t *>(data), n*l.n_head_kv, l.n_embd_head_k)) {
        return;
    }

    rows.resize(size_t(n)*l.k->ne[0]);
    llama_infllm_to_f32(l.k->type, data, rows.data(), rows.size());
    rot.apply(rows.data(), n*l.n_head_kv, l.n_embd_head_k);
    llama_infllm_from_f32(l.k->type, rows.data(), data, n, l.k->ne[0]);
}

float * llama_kv_cache_infllm::get_sums(const layer & l, sequence & seq, uint32_t block) {
    return seq.sums[l.idx].data() + size_t(block%n_chunk)*l.n_sum;
}

void llama_kv_cache_infllm::synchronize() {
    if (sched) {
        ggml_backend_sched_synchronize(sched);
    }
    if (pagers) {
        pagers->wait();
    }
}

void llama_kv_cache_infllm::pull_state(llama_seq_id seq_id) {
    for (const auto & l : layers) {
        if (get_pager_api(l)) {
            pagers->pull(l.idx, seq_id, seqs[seq_id].slots[l.idx], seqs[seq_id].sums[l.idx]);
        }
    }
}

void llama_kv_cache_infllm::push_state(llama_seq_id seq_id) {
    for (const auto & l : layers) {
        if (get_pager_api(l)) {
            pagers->push(l.idx, seq_id, seqs[seq_id].slots[l.idx], seqs[seq_id].sums[l.idx]);
        }
    }
}

void llama_kv_cache_infllm::update_paging() {
    if (!pagers) {
        return;
    }
    if (can_end && !pagers->why_pageable().empty()) {
        synchronize();
        bool is_left = true;
        store->replace([&](uint8_t * data) {
            auto * res = is_left ? static_cast<uint8_t *>(pagers->pin(data, store->block_bytes())) : nullptr;
            is_left = res != nullptr;
            return is_left ? res : data;
        });
    }

    const std::string why = trace ? "scores are traced, which the host does" : pagers->why_pageable();
    if (!why.empty()) {
        page_by_host(why);
    } else if (can_end && !has_pagers()) {
        page_by_devices();
    }
    can_end = false;
}

void llama_kv_cache_infllm::page_by_host(const std::string & why) {
    if (has_pagers()) {
        LLAMA_LOG_WARN("%s: %s: for now the host pages, which is slower\n", __func__, why.c_str());

        synchronize();
        for (size_t s = 0; s < seqs.size(); ++s) {
            pull_state(s);
        }
    }

    std::lock_guard<std::mutex> lock(mutex);
    if (has_pagers()) {
        for (const auto & l : layers) {
            stats[l.idx] = get_counters(l);
        }
        pagers->reset_stats();
    }
    why_host = why;
}

bool llama_kv_cache_infllm::page_by_devices() {
    synchronize();

    // they know nothing of what was stored since, and representative keys may have grown
    const auto repr = [&](uint32_t idx) { return layers[idx].repr; };
    if (pagers->get_n_block() != n_block_cap && !pagers->set_blocks(n_block_cap, repr, std::vector<uint32_t>(seqs.size(), 0))) {
        return false;
    }
    for (size_t s = 0; s < seqs.size(); ++s) {
        for (uint32_t b = 0; b < seqs[s].n_offload(); ++b) {
            pagers->set_block(s, b, store->data(seqs[s].blocks[b]));
        }
        pagers->store({ uint32_t(s), seqs[s].n_offload(), 0, 0, nullptr });
    }

    {
        std::lock_guard<std::mutex> lock(mutex);
        why_host.clear();
    }
    for (size_t s = 0; s < seqs.size(); ++s) {
        push_state(s);
    }
    LLAMA_LOG_WARN("%s: devices page again\n", __func__);

    return true;
}
