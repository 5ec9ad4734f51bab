#pragma once

#include "portable.h"

#include <cstdint>

namespace infllm {

// Where a token of a sequence lives in the resident buffer:
//
//     [ init | slot 0 .. slot n_slot-1 | ring ]          n_cells() cells
//
// Position p has cell p for as long as the buffer is not full, so a context that fits is laid out, and attended,
// exactly as in a plain KV cache. From then on the slots hold whatever blocks are paged in, and the ring goes round.
//
// Invariant: a block never wraps around the end of the ring, since n_ring is a multiple of block_size.
struct cell_layout {
    uint32_t n_init;
    uint32_t n_local;
    uint32_t block_size;
    uint32_t n_slot;
    uint32_t n_ring;

    static cell_layout make(uint32_t n_init, uint32_t n_local, uint32_t block_size, uint32_t n_slot, uint32_t n_ubatch) {
        // room for the local window, the block that is about to leave it, and the ubatch being written
        const uint32_t n_min = n_local + block_size + n_ubatch;
        return { n_init, n_local, block_size, n_slot, (n_min + block_size - 1)/block_size*block_size };
    }

    INFLLM_PORTABLE uint32_t n_cells()    const { return ring_begin() + n_ring; }
    INFLLM_PORTABLE uint32_t ring_begin() const { return n_init + n_slot*block_size; }

    INFLLM_PORTABLE uint32_t slot_cell(uint32_t slot)  const { return n_init + slot*block_size; }
    INFLLM_PORTABLE uint32_t block_pos(uint32_t block) const { return n_init + block*block_size; }
    INFLLM_PORTABLE uint32_t block_of (uint32_t pos)   const { return (pos - n_init)/block_size; } // pos >= n_init

    // the home cell of a position; once blocks are offloaded this holds for positions in the ring only
    INFLLM_PORTABLE uint32_t cell(uint32_t pos) const {
        return pos < ring_begin() ? pos : ring_begin() + (pos - ring_begin())%n_ring;
    }

    // blocks that have left the ring when the next ubatch covers the positions [p0, p1):
    // none while everything fits, else all that lie wholly before the local window of p0
    INFLLM_PORTABLE uint32_t n_offload(uint32_t p0, uint32_t p1) const {
        return p1 <= n_cells() ? 0 : (p0 - n_local - n_init)/block_size;
    }
};

} // namespace infllm
