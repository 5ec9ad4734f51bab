#pragma once

#include "llama-infllm-layers.h"
#include "llama-infllm-page-control.h"

#include "../infllm/block-store.h"

#include <vector>

struct llama_infllm_snapshot;

class llama_io_write_i;

// A sequence of the InfLLM memory: positions 0 .. n_tokens-1, without gaps. All blocks [0, n_offload) are in the store, everything
// after them is in the ring; n_offload > 0 is called paging, and then every slot holds one of the stored blocks. What its layers
// hold beside is the pagers' (llama_infllm_pagers).
class llama_infllm_sequence {
public:
    llama_infllm_sequence(llama_seq_id id, const llama_infllm_layers & layers, llama_infllm_page_control & paging, infllm::block_store & store);

    // What a ubatch at positions [p0, p1) needs of a sequence with n_offload blocks in the store: used to see that a whole batch can
    // be taken, and then to take it
    struct plan {
        uint32_t p0;
        uint32_t p1;
        uint32_t n_offload; // afterwards
    };
    static plan make_plan(const infllm::cell_layout & cells, uint32_t p0, uint32_t p1, uint32_t n_offload) {
        return { p0, p1, std::max(n_offload, cells.n_offload(p0, p1)) };
    }

    // make room in the ring and in the slots; memory for the blocks was reserved
    void begin_ubatch(const plan & plan);

    // Keep the positions [0, n_tokens), as they would be had the sequence never gone further, but for the sums of a block that is cut
    // in two: they keep the queries of the removed tokens (as do those of all tokens before with published scores).
    //   is_last  the tokens that go are the ubatch that was computed last
    void truncate(uint32_t n_tokens, bool is_last);

    void reset();

    // the same as another sequence, whose resident buffers and pagers' state have been copied
    void copy(const llama_infllm_sequence & other);

    // the whole of it, as bytes, see llama-infllm-state.h
    void write(llama_io_write_i & io) const;

    // become what was read; there is room for the blocks
    void load(llama_infllm_snapshot & state);

    uint32_t get_n_tokens()  const { return n_tokens; }
    uint32_t get_n_offload() const { return blocks.size(); }
    bool     paging()        const { return !blocks.empty(); }

    const std::vector<int32_t> & get_blocks() const { return blocks; } // ids in the store

    // blocks that init tokens and slots are behind their own positions, with position = infllm
    uint32_t get_shift() const { return shift; }

    // how the current ubatch's page ops fill slots
    infllm::pager_place get_place() const { return place; }

    // slots that do not hold what they should, over all layers
    uint32_t check_slots();

private:
    struct slot_copy {
        uint64_t              tick;
        std::vector<int32_t>  block;
        std::vector<uint64_t> used;
    };

    const llama_seq_id          id;
    const llama_infllm_layers & layers;
    const infllm::cell_layout   cells;

    llama_infllm_page_control & pagers;
    infllm::block_store & store;

    uint32_t n_tokens  = 0;
    uint32_t n_written = 0; // the most it has had: what cells of the ring hold
    uint32_t shift     = 0;
    bool     stale    = false; // slots must be loaded before they are read

    infllm::pager_place place = infllm::PLACE_UPDATE;

    std::vector<int32_t>              blocks; // [n_offload] ids in the store
    std::vector<std::vector<uint8_t>> init_k; // [n_layer] keys of the init tokens at their own positions, once paging

    // Slots before the current ubatch, of layers that the host pages: what is computed again after a failure must find them as they
    // were. Only for a single token, since for more the slots are filled anew.
    std::vector<slot_copy> slots_before; // [n_layer] memory is kept from token to token
    bool                   has_slots_before = false;

    std::vector<uint8_t> bytes; // work space

    void offload(uint32_t n_offload);
    void keep_init_keys();
    void set_mean();
    void set_shift(uint32_t shift_new); // slots are stale afterwards, if it is another one
    void load_slots();
    void save_slots();
    void restore_slots();
    void clear_sums(uint32_t p0, uint32_t p1);

    // K and V rows of a stored block, at the positions of block dst, into the cells from cell on
    void load_block(const llama_infllm_layer & l, uint32_t block, uint32_t cell, uint32_t dst);

    uint32_t slot_block(uint32_t slot, uint32_t block) const { return layers.remap ? slot + shift : block; }

    // whether a block that has left the ring still is in its cells there
    bool in_ring(uint32_t block) const { return block >= cells.n_slot && cells.block_pos(block) + cells.n_ring >= n_written; }

    const uint8_t * stored(const llama_infllm_layer & l, uint32_t block) const { return store.data(blocks[block]) + l.shape.offset; }
};
