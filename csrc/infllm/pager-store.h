#pragma once

#include "bounds.h"
#include "centred.h"
#include "pager-rows.h"
#include "topk.h"

namespace infllm {

// where the queries end that follow a block in its local window: the last block of positions with any
INFLLM_PORTABLE uint32_t last_query_block(const cell_layout & cells, uint32_t block, uint32_t n_tokens) {
    const uint32_t n_window = cells.n_local/cells.block_size;
    const uint32_t last     = block + (n_window > 0 ? n_window : 1);
    const uint32_t end      = cells.block_of(n_tokens - 1);
    return last < end ? last : end;
}

// work space of pager_store(), shared by the group
struct store_scratch {
    float   * q;     // [n_embd_k]
    float   * score; // [n_head_repr][block_size]
    int32_t * best;  // [n_head_repr][n_repr][repr_topk]
    float   * sums;  // [n_repr][CENTRED_LANES]

    INFLLM_PORTABLE static uint64_t size(const pager_layer & l) {
        return l.bounds ? 0 : sizeof(float)*(l.n_embd_k() + uint64_t(l.n_head_repr)*(l.cells.block_size + l.n_repr*l.repr_topk) +
            uint64_t(l.n_repr)*CENTRED_LANES);
    }

    INFLLM_PORTABLE void init(const pager_layer & l, void * data) {
        q     = (float *) data;
        score = q + l.n_embd_k();
        best  = (int32_t *) (score + uint64_t(l.n_head_repr)*l.cells.block_size);
        sums  = (float *) (best + uint64_t(l.n_head_repr)*l.n_repr*l.repr_topk);
    }
};

// A block leaves the ring: its rows and its sums go to dst, which is laid out as a stored block.
//   k, v  rows of the block
template <typename Group>
INFLLM_PORTABLE void store_rows(const Group & g, const pager_layer & l, uint32_t seq, uint32_t block,
        const uint8_t * k, const uint8_t * v, uint8_t * dst) {
    dst += l.offset;
    store_rows_of(g, l, l.row_k, k, dst);
    store_rows_of(g, l, l.row_v, v, dst + l.stored(l.size_k()));
    if (l.n_chunk > 0) {
        copy_bytes(g, dst + l.stored_kv(), (const uint8_t *) pager_state::of(l, seq).sums_of(l, block), l.size_sum());
    }
}

// The representative keys of a block, one for each of n_repr equal parts: the keys of the repr_topk tokens with the highest
// scores, with RoPE undone, are averaged into one key (InfLLM, section 3.2, and the authors' code, which has one part). Every
// head chooses its own tokens. The score of token m is the mean of q_i . k_m over the queries i that follow it in its local
// window; the mean is linear, so a running sum of the queries is enough. With published scores it is the attention that m got.
//   last  last block of the queries
//   mean  [n_embd_repr] of the keys, nullptr: it is not known, or keys are not centred
//   k     rows of the block
//   out   [n_repr][n_embd_repr]
template <typename Group>
INFLLM_PORTABLE void store_representatives(const Group & g, const pager_layer & l, uint32_t seq, uint32_t block, uint32_t last,
        const float * mean, const uint8_t * k, uint16_t * out, const store_scratch & s) {
    if (l.bounds) {
        store_bounds(g, l, k, out);
        return;
    }
    const pager_state state = pager_state::of(l, seq);

    const uint32_t n_embd = l.n_embd_k();
    const uint32_t n_head = l.n_head_repr;
    const uint32_t size   = l.cells.block_size;
    const uint32_t n_part = size/l.n_repr;

    const uint32_t n_group = n_head/l.n_head_kv; // heads that share a key

    const bool all = l.repr_topk == n_part; // no tokens to choose
    for (uint32_t i = g.rank(); !all && !l.published && i < n_embd; i += g.size()) {
        s.q[i] = 0.0f;
        for (uint32_t b = block + 1; l.n_chunk > 0 && b <= last; ++b) {
            s.q[i] += state.sums_of(l, b)[i];
        }
    }
    g.sync();
    for (uint32_t i = g.rank(); !all && i < n_head*size; i += g.size()) {
        if (l.published) {
            s.score[i] = state.sums_of(l, block)[i];
            continue;
        }
        const uint32_t h = i/size;
        float sum = 0.0f;
        for (uint32_t j = h*l.n_embd_head_k; j < (h + 1)*l.n_embd_head_k; ++j) {
            sum += s.q[j]*kv_load(l.type_k, k + i%size*l.row_k, j);
        }
        s.score[i] = sum;
    }
    g.sync();
    for (uint32_t i = g.rank(); !all && i < n_head*size; i += g.size()) {
        const float  * score = s.score + i/n_part*n_part; // of the part
        const uint64_t key   = topk_key(s.score[i], i%n_part);
        uint32_t rank = 0;
        for (uint32_t m = 0; m < n_part; ++m) {
            rank += topk_key(score[m], m) > key;
        }
        if (rank < l.repr_topk) {
            s.best[i/n_part*l.repr_topk + rank] = int32_t(i%size);
        }
    }
    g.sync();

    const float weight = 1.0f/l.repr_topk;

    // dimensions that are rotated go in pairs
    const uint32_t n_pair = l.n_rot/2;
    const uint32_t n_item = n_pair + l.n_embd_head_k - l.n_rot;
    for (uint32_t i = g.rank(); i < n_head*l.n_repr*n_item; i += g.size()) {
        const uint32_t hr   = i/n_item; // head and part
        const uint32_t item = i%n_item;
        const uint32_t head = hr/l.n_repr/n_group*l.n_embd_head_k; // of the key
        const uint32_t rest = item - n_pair;                       // of the dimensions that are not rotated
        const uint32_t d0   = item < n_pair ? rope_dim0(l, item) : rest < l.rot0 ? rest : rest + l.n_rot;
        const uint32_t d1   = item < n_pair ? rope_dim1(l, item) : d0;

        float sum0 = 0.0f;
        float sum1 = 0.0f;
        for (uint32_t r = 0; r < l.repr_topk; ++r) {
            const uint32_t  m   = all ? hr%l.n_repr*n_part + r : s.best[hr*l.repr_topk + r];
            const uint8_t * row = k + m*l.row_k;
            const float     a   = kv_load(l.type_k, row, head + d0);
            const float     b   = kv_load(l.type_k, row, head + d1);

            cos_sin undo = { 1.0f, 0.0f };
            if (item < n_pair) {
                undo = rope_by(l, block, item).inverse()*rope_at(l.rope_undo, l.n_rot, m, item);
            }
            sum0 += (a*undo.c - b*undo.s)*weight;
            sum1 += (a*undo.s + b*undo.c)*weight;
        }
        uint16_t * res = out + hr%l.n_repr*l.n_embd_repr() + hr/l.n_repr*l.n_embd_head_k;
        res[d0] = half_from_float(sum0);
        if (d1 != d0) {
            res[d1] = half_from_float(sum1);
        }
    }
    if (mean) {
        g.sync();
        centre_rows(g, out, l.n_repr, l.n_embd_repr(), mean, s.sums);
    }
}

// both, of a block that is in the ring
//   centre  whether the mean of the keys is known
template <typename Group>
INFLLM_PORTABLE void pager_store(const Group & g, const pager_layer & l, uint32_t seq, uint32_t block,
        uint32_t last, bool centre, uint8_t * dst, const store_scratch & s) {
    const uint32_t  cell = l.cells.cell(l.cells.block_pos(block));
    const uint8_t * k    = l.k_cell(seq, cell);

    store_rows(g, l, seq, block, k, l.v_cell(seq, cell), dst);
    if (l.repr) {
        const float * mean = l.mean && centre ? l.mean + uint64_t(seq)*l.n_embd_repr() : nullptr;
        store_representatives(g, l, seq, block, last, mean, k, l.repr_of(seq, block), s);
    }
}

} // namespace infllm
