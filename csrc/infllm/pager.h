#pragma once

#include "cell-layout.h"
#include "centred.h"
#include "kv-row.h"
#include "relevance.h"
#include "rotation.h"
#include "slots.h"
#include "topk.h"

// The page op and what goes with it, as it runs on a device: every function here is the work of one group of threads.
// csrc/cuda makes kernels of them; on the host they are the pager of the CPU, which tests the same code without a GPU.

namespace infllm {

struct pager_stats {
    uint64_t n_select;
    uint64_t n_selected;
    uint64_t n_page_in; // of the selected blocks
    uint64_t n_copied;  // blocks, into slots
};

// how selected blocks get into slots
enum pager_place : int32_t {
    PLACE_UPDATE, // see update_slots(): few are copied
    PLACE_ANEW,   // see place_slots()
    PLACE_ALL,    // the same, and all are copied
};

// of a ubatch
struct pager_info {
    int32_t seq;
    int32_t p0;
    int32_t n_tokens;
    int32_t n_block; // stored
    int32_t agree;   // whether layers agree on the relevance of blocks
    int32_t place;   // pager_place
    int32_t shift;   // slot i has the positions of block i + shift, where it has not those of its own block
};
static constexpr int64_t PAGER_INFO_SIZE = sizeof(pager_info)/sizeof(int32_t);

// What the pager knows of a layer. Memory is the device's, but for the blocks, which host and device share. A stored block
// holds for each layer K rows, V rows and, if queries are summed up, the sum of its queries F32 [n_embd_k()].
struct pager_layer {
    cell_layout cells;

    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t n_embd_head_k;
    uint32_t n_rot; // 0: no RoPE
    uint32_t neox;
    uint32_t remap; // position = "infllm": a block is rotated to the positions of its slot, see pager_info

    uint32_t topk;
    uint32_t repr_topk;
    uint32_t n_chunk; // blocks of positions whose queries are summed up; 0: none, all keys of a part are averaged
    uint32_t n_block_max;
    uint32_t n_repr;
    uint32_t first; // of the layers on its device

    kv_type  type_k;
    uint64_t row_k;  // bytes
    uint64_t row_v;
    uint64_t offset; // of the layer in a stored block

    uint8_t  * k;      // [n_seq][n_cells_alloc] rows
    uint8_t  * v;
    uint16_t * repr;   // [n_seq][n_block_max][n_repr][n_embd_k()] half floats; nullptr: the layer has none
    const float * mean; // [n_seq][n_embd_k()] of the keys; nullptr: representative keys are not centred
    uint8_t  * state;  // [n_seq] see pager_state
    float    * scores; // [n_block_max] work space
    float    * sums;   // [n_sub_max][n_block_max] relevance that the layers on the device agree on, of a ubatch
    int32_t  * chosen; // [topk] what the last layer on the device has selected

    uint64_t stride_k; // bytes from one sequence to the next
    uint64_t stride_v;

    const uint8_t * const * blocks; // [n_seq][n_block_max] stored blocks
    const float * rope_low;   // [block_rotations::n_low ][n_rot/2][2] see rotation.h: by so many blocks
    const float * rope_high;  // [block_rotations::n_high][n_rot/2][2]
    const float * rope_undo;  // [block_size][n_rot/2][2] back from an offset in the first block

    INFLLM_PORTABLE uint32_t n_embd_k() const { return n_head_kv*n_embd_head_k; }
    INFLLM_PORTABLE uint64_t size_k()   const { return cells.block_size*row_k; }
    INFLLM_PORTABLE uint64_t size_v()   const { return cells.block_size*row_v; }
    INFLLM_PORTABLE uint64_t size_sum() const { return n_chunk > 0 ? n_embd_k()*sizeof(float) : 0; }

    // of the layer, in a stored block
    INFLLM_PORTABLE uint64_t size() const { return size_k() + size_v() + size_sum(); }

    // of a cell of the resident buffer
    INFLLM_PORTABLE uint8_t * k_cell(uint32_t seq, uint32_t cell) const { return k + seq*stride_k + cell*row_k; }
    INFLLM_PORTABLE uint8_t * v_cell(uint32_t seq, uint32_t cell) const { return v + seq*stride_v + cell*row_v; }
};

// What changes from ubatch to ubatch, of a layer and a sequence.
struct pager_state {
    pager_stats * stats;
    slot_view     slots;
    float       * q_sum;     // [n_chunk][n_embd_k] sums of the queries of each block of positions not yet stored
    page_in     * page_ins;  // [n_slot] of the current ubatch
    uint32_t    * n_page_in; // [1]

    INFLLM_PORTABLE static uint64_t size(const pager_layer & l) {
        const uint64_t n = sizeof(pager_stats) + sizeof(uint64_t)*(1 + l.cells.n_slot) +
            sizeof(float)*l.n_chunk*l.n_embd_k() + sizeof(int32_t)*l.cells.n_slot + sizeof(page_in)*l.cells.n_slot + sizeof(uint32_t);
        return (n + 15)/16*16;
    }

    INFLLM_PORTABLE static pager_state at(const pager_layer & l, uint8_t * data) {
        pager_state res;
        res.stats        = (pager_stats *) data;
        res.slots.tick   = (uint64_t *) (res.stats + 1);
        res.slots.used   = res.slots.tick + 1;
        res.slots.n_slot = l.cells.n_slot;
        res.q_sum        = (float *) (res.slots.used + l.cells.n_slot);
        res.slots.block  = (int32_t *) (res.q_sum + uint64_t(l.n_chunk)*l.n_embd_k());
        res.page_ins     = (page_in *) (res.slots.block + l.cells.n_slot);
        res.n_page_in    = (uint32_t *) (res.page_ins + l.cells.n_slot);
        return res;
    }

    INFLLM_PORTABLE static pager_state of(const pager_layer & l, uint32_t seq) {
        return at(l, l.state + seq*size(l));
    }
};

//
// rows
//

struct alignas(16) bytes16 {
    uint32_t x[4];
};

// four loads in flight for every thread: the source may be on the other side of a bus
template <typename Group>
INFLLM_PORTABLE void copy_bytes(const Group & g, uint8_t * dst, const uint8_t * src, uint64_t n) {
    uint64_t done = 0;
    if ((uintptr_t(dst) | uintptr_t(src))%sizeof(bytes16) == 0) {
        const uint64_t n16  = n/sizeof(bytes16);
        const uint64_t step = g.size();

        auto * d = (bytes16 *) dst;
        auto * s = (const bytes16 *) src;

        for (uint64_t i = g.rank(); i < n16; i += 4*step) {
            bytes16 x[4];
            for (int j = 0; j < 4; ++j) {
                if (i + j*step < n16) {
                    x[j] = s[i + j*step];
                }
            }
            for (int j = 0; j < 4; ++j) {
                if (i + j*step < n16) {
                    d[i + j*step] = x[j];
                }
            }
        }
        done = n16*sizeof(bytes16);
    }
    for (uint64_t i = done + g.rank(); i < n; i += g.size()) {
        dst[i] = src[i];
    }
}

// cosine and sine of a rotation for pair i
struct cos_sin {
    float c;
    float s;

    INFLLM_PORTABLE cos_sin inverse() const { return { c, -s }; }
};

INFLLM_PORTABLE cos_sin operator*(const cos_sin & a, const cos_sin & b) {
    return { a.c*b.c - a.s*b.s, a.c*b.s + a.s*b.c };
}

INFLLM_PORTABLE cos_sin rope_at(const float * table, uint32_t n_rot, uint32_t row, uint32_t i) {
    const float * cs = table + uint64_t(row)*n_rot + 2*i;
    return { cs[0], cs[1] };
}

// by n blocks
INFLLM_PORTABLE cos_sin rope_by(const pager_layer & l, uint32_t n, uint32_t i) {
    return rope_at(l.rope_low, l.n_rot, n%block_rotations::N_LOW, i)*rope_at(l.rope_high, l.n_rot, n/block_rotations::N_LOW, i);
}

// from the positions of block src to those of block dst
INFLLM_PORTABLE cos_sin rope_move(const pager_layer & l, uint32_t src, uint32_t dst, uint32_t i) {
    return src < dst ? rope_by(l, dst - src, i) : rope_by(l, src - dst, i).inverse();
}

// the dimensions of pair i
INFLLM_PORTABLE uint32_t rope_dim0(const pager_layer & l, uint32_t i) { return l.neox ? i : 2*i; }
INFLLM_PORTABLE uint32_t rope_dim1(const pager_layer & l, uint32_t i) { return l.neox ? i + l.n_rot/2 : 2*i + 1; }

static constexpr uint32_t PAGER_MAX_HEAD = 256; // values of a head that a thread holds

// rotate n rows of K, in place
template <typename Group>
INFLLM_PORTABLE void rotate_k(const Group & g, const pager_layer & l, uint8_t * rows, uint32_t n, uint32_t src, uint32_t dst) {
    const uint32_t n_pair = l.n_rot/2;

    if (l.type_k == KV_F16) {
        for (uint64_t i = g.rank(); i < uint64_t(n)*l.n_head_kv*n_pair; i += g.size()) {
            const uint32_t pair = i%n_pair;
            auto * x = (uint16_t *) rows + i/n_pair*l.n_embd_head_k; // rows are contiguous

            uint16_t & x0 = x[rope_dim0(l, pair)];
            uint16_t & x1 = x[rope_dim1(l, pair)];

            const cos_sin r = rope_move(l, src, dst, pair);
            const float   a = half_to_float(x0);
            const float   b = half_to_float(x1);
            x0 = half_from_float(a*r.c - b*r.s);
            x1 = half_from_float(a*r.s + b*r.c);
        }
        return;
    }

    // blocks of 32 values share a scale: a thread does a head
    const uint64_t head_bytes = kv_row_bytes(l.type_k, l.n_embd_head_k);
    for (uint64_t i = g.rank(); i < uint64_t(n)*l.n_head_kv; i += g.size()) {
        uint8_t * head = rows + i/l.n_head_kv*l.row_k + i%l.n_head_kv*head_bytes;

        float x[PAGER_MAX_HEAD];
        for (uint32_t j = 0; j < l.n_embd_head_k; ++j) {
            x[j] = kv_load(l.type_k, head, j);
        }
        for (uint32_t pair = 0; pair < n_pair; ++pair) {
            float & x0 = x[rope_dim0(l, pair)];
            float & x1 = x[rope_dim1(l, pair)];

            const cos_sin r = rope_move(l, src, dst, pair);
            const float   a = x0;
            const float   b = x1;
            x0 = a*r.c - b*r.s;
            x1 = a*r.s + b*r.c;
        }
        for (uint32_t j = 0; j < l.n_embd_head_k; j += 32) {
            kv_store_block(l.type_k, head + kv_row_bytes(l.type_k, j), x + j);
        }
    }
}

//
// the page op
//

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

// Take up the queries of the ubatch, then select.
//   q      sums of the queries, per block of positions: value i of head h in chunk c is q[c*q_nb2 + h*q_nb1 + i]; nullptr
//          if they are not summed up
//   scores [n_sub][n_row] see relevance.h, changed; nullptr: what the layer before has selected, if anything is stored
template <typename Group>
INFLLM_PORTABLE void page_select(const Group & g, const pager_layer & l, const pager_info & info,
        const float * q, uint32_t q_nb1, uint32_t q_nb2, float * scores, uint32_t n_row, uint32_t n_sub,
        page_scratch & scratch) {
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

        float * acc = state.q_sum + uint64_t((block0 + c)%l.n_chunk)*n_embd + i%n_embd;
        float   sum = l.cells.block_pos(block0 + c) >= p0 ? 0.0f : *acc;
        for (uint32_t j = 0; j < n_group; ++j) {
            sum += q[c*q_nb2 + (h*n_group + j)*q_nb1 + e];
        }
        *acc = sum;
    }

    const uint32_t n_block = info.n_block;
    if (g.rank() == 0) {
        *state.n_page_in = 0;
    }
    if (n_block == 0) {
        return;
    }

    const uint32_t n = l.topk < n_block ? l.topk : n_block;
    if (scores) {
        const repr_scores repr = { scores, n_block, l.n_repr, n_row, n_sub };
        if (info.agree) {
            block_relevance(g, repr, l.first, l.sums, l.scores, scratch.relevance);
        } else {
            block_relevance(g, repr, l.scores);
        }
        select_topk(g, l.scores, n_block, n, scratch.topk, scratch.keys, l.chosen);
    }
    if (info.place == PLACE_UPDATE) {
        update_slots(g, state.slots, l.chosen, n, scratch.order, scratch.where, state.page_ins, state.n_page_in);
    } else {
        place_slots(g, state.slots, l.chosen, n, n_block, info.place == PLACE_ALL, scratch.order, scratch.where,
                state.page_ins, state.n_page_in);
    }

    if (g.rank() == 0) {
        state.stats->n_select   += 1;
        state.stats->n_selected += n;
        state.stats->n_page_in  += count_selected(state.page_ins, *state.n_page_in, l.chosen, n);
        state.stats->n_copied   += *state.n_page_in;
    }
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

    const uint8_t * src_k = block + l.offset;
    const uint8_t * src_v = src_k + l.size_k();

    copy_bytes(g, l.k_cell(seq, cell), src_k + row0*l.row_k, (row1 - row0)*l.row_k);
    copy_bytes(g, l.v_cell(seq, cell), src_v + row0*l.row_v, (row1 - row0)*l.row_v);

    const uint32_t dst = p.slot + info.shift;
    if (l.remap && l.n_rot > 0 && uint32_t(p.block) != dst) {
        g.sync();
        rotate_k(g, l, l.k_cell(seq, cell), row1 - row0, p.block, dst);
    }
}

//
// between ubatches
//

// work space of pager_store(), shared by the group
struct store_scratch {
    float   * q;     // [n_embd_k]
    float   * score; // [n_head_kv][block_size]
    int32_t * best;  // [n_head_kv][n_repr][repr_topk]
    float   * sums;  // [n_repr][CENTRED_LANES]

    INFLLM_PORTABLE static uint64_t size(const pager_layer & l) {
        return sizeof(float)*(l.n_embd_k() + uint64_t(l.n_head_kv)*(l.cells.block_size + l.n_repr*l.repr_topk) +
            uint64_t(l.n_repr)*CENTRED_LANES);
    }

    INFLLM_PORTABLE void init(const pager_layer & l, void * data) {
        q     = (float *) data;
        score = q + l.n_embd_k();
        best  = (int32_t *) (score + uint64_t(l.n_head_kv)*l.cells.block_size);
        sums  = (float *) (best + uint64_t(l.n_head_kv)*l.n_repr*l.repr_topk);
    }
};

// A block leaves the ring: its rows and its query sum go to dst, which is laid out as a stored block, and its
// representative keys (see representatives.h) into their place.
//   last    last block of the queries that follow it in its local window
//   centre  whether the mean of the keys is known
template <typename Group>
INFLLM_PORTABLE void pager_store(const Group & g, const pager_layer & l, uint32_t seq, uint32_t block,
        uint32_t last, bool centre, uint8_t * dst, const store_scratch & s) {
    const pager_state state = pager_state::of(l, seq);

    const uint32_t n_embd = l.n_embd_k();
    const uint32_t n_head = l.n_head_kv;
    const uint32_t size   = l.cells.block_size;
    const uint32_t n_part = size/l.n_repr;
    const uint32_t cell   = l.cells.cell(l.cells.block_pos(block));

    const uint8_t * k = l.k_cell(seq, cell);

    dst += l.offset;
    copy_bytes(g, dst,                k,                   l.size_k());
    copy_bytes(g, dst + l.size_k(),   l.v_cell(seq, cell), l.size_v());
    if (l.n_chunk > 0) {
        copy_bytes(g, dst + l.size_k() + l.size_v(), (const uint8_t *) (state.q_sum + uint64_t(block%l.n_chunk)*n_embd),
                l.size_sum());
    }

    if (!l.repr) {
        return;
    }
    const bool all = l.repr_topk == n_part; // no tokens to choose
    for (uint32_t i = g.rank(); !all && i < n_embd; i += g.size()) {
        s.q[i] = 0.0f;
        for (uint32_t b = block + 1; l.n_chunk > 0 && b <= last; ++b) {
            s.q[i] += state.q_sum[uint64_t(b%l.n_chunk)*n_embd + i];
        }
    }
    g.sync();
    for (uint32_t i = g.rank(); !all && i < n_head*size; i += g.size()) {
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

    uint16_t * repr = l.repr + (uint64_t(seq)*l.n_block_max + block)*l.n_repr*n_embd;
    const float weight = 1.0f/l.repr_topk;

    // dimensions that are rotated go in pairs
    const uint32_t n_pair = l.n_rot/2;
    const uint32_t n_item = n_pair + l.n_embd_head_k - l.n_rot;
    for (uint32_t i = g.rank(); i < n_head*l.n_repr*n_item; i += g.size()) {
        const uint32_t hr   = i/n_item; // head and part
        const uint32_t item = i%n_item;
        const uint32_t head = hr/l.n_repr*l.n_embd_head_k;
        const uint32_t d0   = item < n_pair ? rope_dim0(l, item) : item - n_pair + l.n_rot;
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
        uint16_t * out = repr + hr%l.n_repr*n_embd + head;
        out[d0] = half_from_float(sum0);
        if (d1 != d0) {
            out[d1] = half_from_float(sum1);
        }
    }
    if (l.mean && centre) {
        g.sync();
        centre_rows(g, repr, l.n_repr, n_embd, l.mean + uint64_t(seq)*n_embd, s.sums);
    }
}

} // namespace infllm
