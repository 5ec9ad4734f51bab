#pragma once

#include "cell-layout.h"
#include "kv-row.h"
#include "rotation.h"
#include "slots.h"

namespace infllm {

struct pager_stats {
    uint64_t n_select;
    uint64_t n_selected;
    uint64_t n_page_in; // of the selected blocks
    uint64_t n_copied;  // blocks, into slots
    uint64_t n_file;    // of which from files; by the host's pager alone, as all that follows
    uint64_t ns_memory; // that it took to bring blocks in from memory,
    uint64_t ns_file;   // and from files
};

// how selected blocks get into slots
enum pager_place : int32_t {
    PLACE_UPDATE, // see update_slots(): few are copied
    PLACE_ANEW,   // see place_slots()
    PLACE_ALL,    // the same, and all are copied
};

// Of a sequence in a ubatch. A ubatch has one, or several with a token each, which are its streams.
struct pager_info {
    int32_t stream; // whose work space it has
    int32_t seq;
    int32_t p0;
    int32_t n_tokens;
    int32_t n_block; // stored
    int32_t agree;   // whether layers agree on the relevance of blocks
    int32_t place;   // pager_place
    int32_t shift;   // slot i has the positions of block i + shift, where it has not those of its own block
};
static constexpr int64_t PAGER_INFO_SIZE = sizeof(pager_info)/sizeof(int32_t);

struct pager_tensors; // see llama-infllm-host-pager.h

// What the pager knows of a layer. Memory is the device's, but for the blocks, which host and device share. A stored block
// holds for each layer K rows, V rows, as in cells or coded, and, if something is summed up, its sums F32 [n_sum].
struct pager_layer {
    int32_t il; // index in the model

    cell_layout cells;

    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t n_head_repr; // heads of the representative keys: n_head_kv, twice as many of bounds, n_head with published scores
    uint32_t n_embd_head_k;
    uint32_t n_rot; // dimensions of a head that are rotated; 0: no RoPE
    uint32_t rot0;  // the first of them
    uint32_t neox;
    uint32_t remap; // position = "infllm": a block is rotated to the positions of its slot, see pager_info

    uint32_t topk;
    uint32_t repr_topk;

    // What the tokens of representative keys are chosen by, of each block of positions not yet stored: the sum of its queries
    // [n_embd_k()]; with published scores the attention that its tokens got [n_head][block_size]
    uint32_t n_sum;   // floats
    uint32_t n_chunk; // blocks of positions; 0: nothing is summed up, all keys of a part are averaged
    uint32_t published;
    uint32_t bounds;  // representative keys are bounds, see bounds.h

    uint32_t n_block_max;
    uint32_t n_repr;
    uint32_t first; // of the layers that the pager pages

    kv_type  type_k;
    kv_type  codec;  // of rows in the store, see row-codec.h; KV_F16: they are as in cells. Cells are half floats otherwise
    uint64_t row_k;  // bytes, in a cell
    uint64_t row_v;
    uint64_t offset; // of the layer in a stored block

    const pager_tensors * tensors; // of the host's pager alone, by which it reaches what is in memory of a device: k == nullptr

    uint8_t  * k;      // [n_seq][n_cells_alloc] rows
    uint8_t  * v;
    uint16_t * repr;   // [n_seq][n_block_max][n_repr][n_embd_repr()] half floats; nullptr: the layer has none
    const float * mean; // [n_seq][n_embd_repr()] of the keys; nullptr: representative keys are not centred
    uint8_t  * state;  // [n_seq] see pager_state
    float    * scores; // [n_stream][n_block_max] work space
    float    * sums;   // [n_stream][n_sub][n_block_max] relevance that the layers of the pager agree on, of a ubatch
    int32_t  * chosen; // [n_stream][topk] what the last layer of the pager has selected

    uint64_t stride_k; // bytes from one sequence to the next
    uint64_t stride_v;

    const uint8_t * const * blocks; // [n_seq][n_block_max] stored blocks
    const float * rope_low;   // [block_rotations::n_low ][n_rot/2][2] see rotation.h: by so many blocks
    const float * rope_high;  // [block_rotations::n_high][n_rot/2][2]
    const float * rope_undo;  // [block_size][n_rot/2][2] back from an offset in the first block

    // whether the queries of each block of positions are summed up
    INFLLM_PORTABLE bool sums_queries() const { return n_chunk > 0 && !published; }

    INFLLM_PORTABLE uint32_t n_embd_k()    const { return n_head_kv*n_embd_head_k; }
    INFLLM_PORTABLE uint32_t n_embd_repr() const { return n_head_repr*n_embd_head_k; }
    INFLLM_PORTABLE uint64_t size_k()      const { return cells.block_size*row_k; }
    INFLLM_PORTABLE uint64_t size_v()      const { return cells.block_size*row_v; }
    INFLLM_PORTABLE uint64_t size_sum()    const { return n_chunk > 0 ? n_sum*sizeof(float) : 0; }

    // bytes of rows, in a stored block
    INFLLM_PORTABLE bool     is_coded()             const { return codec != KV_F16; }
    INFLLM_PORTABLE uint64_t stored(uint64_t bytes) const { return is_coded() ? kv_row_bytes(codec, bytes/sizeof(uint16_t)) : bytes; }
    INFLLM_PORTABLE uint64_t stored_kv()            const { return stored(size_k()) + stored(size_v()); }

    // of the layer, in a stored block
    INFLLM_PORTABLE uint64_t size() const { return stored_kv() + size_sum(); }

    // of a cell of the resident buffer
    INFLLM_PORTABLE uint8_t * k_cell(uint32_t seq, uint32_t cell) const { return k + seq*stride_k + cell*row_k; }
    INFLLM_PORTABLE uint8_t * v_cell(uint32_t seq, uint32_t cell) const { return v + seq*stride_v + cell*row_v; }

    // of a stream
    INFLLM_PORTABLE float   * scores_of(const pager_info & info) const { return scores + uint64_t(info.stream)*n_block_max; }
    INFLLM_PORTABLE int32_t * chosen_of(const pager_info & info) const { return chosen + uint64_t(info.stream)*topk; }

    INFLLM_PORTABLE uint16_t * repr_of(uint32_t seq, uint32_t block) const {
        return repr + (uint64_t(seq)*n_block_max + block)*n_repr*n_embd_repr();
    }
};

// What changes from ubatch to ubatch, of a layer and a sequence.
struct pager_state {
    pager_stats * stats;
    slot_view     slots;
    float       * sums;      // [n_chunk][n_sum]
    page_in     * page_ins;  // [n_slot] of the current ubatch
    uint32_t    * n_page_in; // [1]

    INFLLM_PORTABLE static uint64_t size(const pager_layer & l) {
        const uint64_t n = sizeof(pager_stats) + sizeof(uint64_t)*(1 + l.cells.n_slot) +
            sizeof(float)*l.n_chunk*l.n_sum + sizeof(int32_t)*l.cells.n_slot + sizeof(page_in)*l.cells.n_slot + sizeof(uint32_t);
        return (n + 15)/16*16;
    }

    INFLLM_PORTABLE static pager_state at(const pager_layer & l, uint8_t * data) {
        pager_state res;
        res.stats        = (pager_stats *) data;
        res.slots.tick   = (uint64_t *) (res.stats + 1);
        res.slots.used   = res.slots.tick + 1;
        res.slots.n_slot = l.cells.n_slot;
        res.sums         = (float *) (res.slots.used + l.cells.n_slot);
        res.slots.block  = (int32_t *) (res.sums + uint64_t(l.n_chunk)*l.n_sum);
        res.page_ins     = (page_in *) (res.slots.block + l.cells.n_slot);
        res.n_page_in    = (uint32_t *) (res.page_ins + l.cells.n_slot);
        return res;
    }

    INFLLM_PORTABLE static pager_state of(const pager_layer & l, uint32_t seq) {
        return at(l, l.state + seq*size(l));
    }

    // sums of a block of positions
    INFLLM_PORTABLE float * sums_of(const pager_layer & l, uint32_t block) const {
        return sums + uint64_t(block%l.n_chunk)*l.n_sum;
    }
};

} // namespace infllm
