#pragma once

#include "portable.h"

namespace infllm {

// a block that has to be copied into a slot
struct page_in {
    int32_t  block;
    uint32_t slot;
};

// Which block is in which slot, for one layer of one sequence; slot_table owns one on the host.
struct slot_view {
    static constexpr int32_t NONE = -1;

    uint32_t   n_slot;
    int32_t  * block; // [n_slot] NONE: empty
    uint64_t * used;  // [n_slot] tick of the last use, 0: empty
    uint64_t * tick;

    INFLLM_PORTABLE int32_t slot_of(int32_t b) const;
};

INFLLM_PORTABLE int32_t slot_view::slot_of(int32_t b) const {
    for (uint32_t s = 0; s < n_slot; ++s) {
        if (block[s] == b) {
            return int32_t(s);
        }
    }
    return NONE;
}

// Make the selected blocks resident: those in a slot are touched, each of the others replaces the least recently used
// block, the one in the first slot in a tie, and never one that is selected.
//
//   selected [n]       no block twice, n <= n_slot
//   order    [n_slot]  work space
//   where    [n]       work space
//   out      [n]       blocks to copy, in the order of selected
//   n_out    [1]
//
// returns when all is complete for all threads of the group
template <typename Group>
INFLLM_PORTABLE void update_slots(const Group & g, const slot_view & slots, const int32_t * selected, uint32_t n,
        uint32_t * order, int32_t * where, page_in * out, uint32_t * n_out) {
    const uint64_t now = *slots.tick + 1;

    for (uint32_t i = g.rank(); i < n; i += g.size()) {
        where[i] = slots.slot_of(selected[i]);
    }
    g.sync();
    for (uint32_t i = g.rank(); i < n; i += g.size()) {
        if (where[i] >= 0) {
            slots.used[where[i]] = now;
        }
    }
    g.sync();
    // slots by their last use: those of selected blocks come last
    for (uint32_t s = g.rank(); s < slots.n_slot; s += g.size()) {
        uint32_t rank = 0;
        for (uint32_t t = 0; t < slots.n_slot; ++t) {
            rank += slots.used[t] < slots.used[s] || (slots.used[t] == slots.used[s] && t < s);
        }
        order[rank] = s;
    }
    g.sync();
    for (uint32_t i = g.rank(); i < n; i += g.size()) {
        if (where[i] >= 0) {
            continue;
        }
        uint32_t rank = 0; // among the missing blocks
        for (uint32_t j = 0; j < i; ++j) {
            rank += where[j] < 0;
        }
        const uint32_t slot = order[rank];
        out[rank] = { selected[i], slot };
        slots.block[slot] = selected[i];
        slots.used [slot] = now + 1 + rank;
    }
    if (g.rank() == 0) {
        uint32_t n_missing = 0;
        for (uint32_t i = 0; i < n; ++i) {
            n_missing += where[i] < 0;
        }
        *n_out      = n_missing;
        *slots.tick = now + n_missing;
    }
    g.sync();
}

} // namespace infllm
