#pragma once

#include "pager-layer.h"
#include "pager-rows.h"
#include "pager-store.h"
#include "relevance.h"
#include "topk.h"

// The page op and what goes with it, as it runs on host and devices: every function is the work of one group of threads.
// csrc/cuda makes kernels of them, csrc/llama/llama-infllm-host-pager.cpp has the threads of the CPU run them.

namespace infllm {

// work space, shared by the group
struct page_scratch {
    union {
        relevance_scratch relevance;
        topk_scratch      topk;
    };
    uint64_t * keys;  // [topk]
    int32_t  * where; // [topk]
    uint32_t * order; // [n_slot]

    INFLLM_PORTABLE static uint64_t size(const pager_layer & l) {
        return l.topk*(sizeof(uint64_t) + sizeof(int32_t)) + l.cells.n_slot*sizeof(uint32_t);
    }

    INFLLM_PORTABLE void init(const pager_layer & l, void * data) {
        keys  = (uint64_t *) data;
        where = (int32_t  *) (keys + l.topk);
        order = (uint32_t *) (where + l.topk);
    }
};

// Take up the queries of the ubatch.
//   q  sums of the queries, per block of positions: value i of head h in chunk c is q[c*q_nb2 + h*q_nb1 + i]; nullptr if they are
//      not summed up
template <typename Group>
INFLLM_PORTABLE void page_sum(const Group & g, const pager_layer & l, const pager_info & info,
        const float * q, uint32_t q_nb1, uint32_t q_nb2) {
    const pager_state state = pager_state::of(l, info.seq);

    const uint32_t p0     = info.p0;
    const uint32_t p1     = info.p0 + info.n_tokens;
    const uint32_t n_embd = l.n_embd_k();

    // queries of the init tokens belong to no block
    const uint32_t block0  = p0 < l.cells.n_init ? 0 : l.cells.block_of(p0);
    const uint32_t n_chunk = !q || p1 <= l.cells.n_init ? 0 : l.cells.block_of(p1 - 1) - block0 + 1;
    const uint32_t n_group = l.n_head/l.n_head_kv;
    for (uint32_t i = g.rank(); i < n_chunk*n_embd; i += g.size()) {
        const uint32_t c = i/n_embd;
        const uint32_t h = i%n_embd/l.n_embd_head_k;
        const uint32_t e = i%l.n_embd_head_k;

        float * acc = state.sums_of(l, block0 + c) + i%n_embd;
        float   sum = l.cells.block_pos(block0 + c) >= p0 ? 0.0f : *acc;
        for (uint32_t j = 0; j < n_group; ++j) {
            sum += q[c*q_nb2 + (h*n_group + j)*q_nb1 + e];
        }
        *acc = sum;
    }
}

// take up the queries, then select
//   scores [n_sub][n_row] see relevance.h, changed; nullptr: what the layer before has selected, if anything is stored
template <typename Group>
INFLLM_PORTABLE void page_select(const Group & g, const pager_layer & l, const pager_info & info,
        const float * q, uint32_t q_nb1, uint32_t q_nb2, float * scores, uint32_t n_row, uint32_t n_sub,
        page_scratch & scratch) {
    page_sum(g, l, info, q, q_nb1, q_nb2);

    const pager_state state   = pager_state::of(l, info.seq);
    const uint32_t    n_block = info.n_block;
    if (g.rank() == 0) {
        *state.n_page_in = 0;
    }
    if (n_block == 0) {
        return;
    }

    float         * out    = l.scores_of(info);
    int32_t       * chosen = l.chosen_of(info);
    const uint32_t  n      = l.topk < n_block ? l.topk : n_block;
    if (scores) {
        const repr_scores repr = { scores, n_block, l.n_repr, n_row, n_sub };
        if (info.agree) {
            block_relevance(g, repr, l.first, l.sums + uint64_t(info.stream)*n_sub*l.n_block_max, out, scratch.relevance);
        } else {
            block_relevance(g, repr, out);
        }
        select_topk(g, out, n_block, n, scratch.topk, scratch.keys, chosen);
    }
    if (info.place == PLACE_UPDATE) {
        update_slots(g, state.slots, chosen, n, scratch.order, scratch.where, state.page_ins, state.n_page_in);
    } else {
        place_slots(g, state.slots, chosen, n, n_block, info.place == PLACE_ALL, scratch.order, scratch.where,
                state.page_ins, state.n_page_in);
    }
}

// once a layer has selected: by one thread
INFLLM_PORTABLE void page_count(const pager_layer & l, const pager_info & info) {
    if (info.n_block == 0) {
        return;
    }
    const pager_state state = pager_state::of(l, info.seq);
    const uint32_t    n     = l.topk < uint32_t(info.n_block) ? l.topk : info.n_block;

    state.stats->n_select   += 1;
    state.stats->n_selected += n;
    state.stats->n_page_in  += count_selected(state.page_ins, *state.n_page_in, l.chosen_of(info), n);
    state.stats->n_copied   += *state.n_page_in;
}

// the block whose positions a block has in a slot
INFLLM_PORTABLE uint32_t slot_block(const pager_layer & l, uint32_t shift, const page_in & p) {
    return l.remap ? p.slot + shift : uint32_t(p.block);
}

// copy part of the rows of page-in i into its slot; nothing if there are fewer
template <typename Group>
INFLLM_PORTABLE void page_gather(
        const Group & g, const pager_layer & l, const pager_info & info, uint32_t i, uint32_t part, uint32_t n_part) {
    const uint32_t    seq   = info.seq;
    const pager_state state = pager_state::of(l, seq);
    if (i >= *state.n_page_in) {
        return;
    }

    const page_in   p     = state.page_ins[i];
    const uint8_t * block = l.blocks[uint64_t(seq)*l.n_block_max + p.block];

    const uint32_t row0 = uint64_t(l.cells.block_size)* part     /n_part;
    const uint32_t row1 = uint64_t(l.cells.block_size)*(part + 1)/n_part;
    const uint32_t cell = l.cells.slot_cell(p.slot) + row0;

    load_rows(g, l, block + l.offset, p.block, slot_block(l, info.shift, p), row0, row1 - row0, l.k_cell(seq, cell), l.v_cell(seq, cell));
}

} // namespace infllm
