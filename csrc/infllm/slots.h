#pragma once

#include "portable.h"

namespace infllm {

// a block that has to be copied into a slot
struct page_in {
    int32_t  block;
    uint32_t slot;
};

// page-ins of selected blocks
INFLLM_PORTABLE uint32_t count_selected(const page_in * page_ins, uint32_t n_page_in, const int32_t * selected, uint32_t n) {
    uint32_t res = 0;
    for (uint32_t i = 0; i < n_page_in; ++i) {
        for (uint32_t j = 0; j < n; ++j) {
            res += selected[j] == page_ins[i].block;
        }
    }
    return res;
}

// Which block is in which slot, for one layer of one sequence. Slots are replaced least recently used first, and never while
// their block is selected.
struct slot_view {
    static constexpr int32_t NONE = -1;

    uint32_t   n_slot;
    int32_t  * block; // [n_slot] NONE: empty
    uint64_t * used;  // [n_slot] tick of the last use, 0: empty
    uint64_t * tick;

    INFLLM_PORTABLE int32_t slot_of(int32_t b) const {
        for (uint32_t s = 0; s < n_slot; ++s) {
            if (block[s] == b) {
                return int32_t(s);
            }
        }
        return NONE;
    }

    // empty all slots
    void clear() const {
        remove_from(NONE);
        *tick = 0;
    }

    // free the slots of all blocks >= first_block
    void remove_from(int32_t first_block) const {
        for (uint32_t s = 0; s < n_slot; ++s) {
            if (block[s] >= first_block) {
                block[s] = NONE;
                used [s] = 0;
            }
        }
    }

    // put a block into a slot, whatever was there; the newer of two calls counts as the more recently used
    void assign(uint32_t slot, int32_t b) const {
        block[slot] = b;
        used [slot] = ++*tick;
    }

    // of the blocks [0, n_block) the newest that are not resident, into all empty slots; requires n_block >= n_slot
    void fill(uint32_t n_block) const {
        int32_t next = int32_t(n_block) - 1;
        for (uint32_t s = 0; s < n_slot; ++s) {
            if (block[s] == NONE) {
                while (slot_of(next) != NONE) {
                    next--;
                }
                assign(s, next);
            }
        }
    }
};

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

// Fill all slots by what is selected alone, whatever was in them before: with the selected blocks and, if there are more slots,
// the newest of the others, in the order of the text. So what attention reads, and in which order, is a function of the
// selection. A block that is in its place already is not copied.
//
//   selected [n]       no block twice, n <= n_slot
//   n_block            stored blocks, n <= n_block
//   stale              what is in the slots is of no use: copy all
//   order    [n_slot]  work space
//   where    [n]       work space
//   out      [n_slot]  blocks to copy
//   n_out    [1]
//
// returns when all is complete for all threads of the group
template <typename Group>
INFLLM_PORTABLE void place_slots(const Group & g, const slot_view & slots, const int32_t * selected, uint32_t n, uint32_t n_block,
        bool stale, uint32_t * order, int32_t * where, page_in * out, uint32_t * n_out) {
    const uint32_t n_full = slots.n_slot < n_block ? slots.n_slot : n_block;

    for (uint32_t i = g.rank(); i < n; i += g.size()) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < n; ++j) {
            rank += selected[j] < selected[i];
        }
        where[rank] = selected[i];
    }
    g.sync();

    // the blocks [newest, n_block) are resident, n_old selected ones are older
    uint32_t newest = n_block - (n_full - n);
    uint32_t n_old  = n;
    while (n_old > 0 && uint32_t(where[n_old - 1]) >= newest - 1) {
        n_old--;
        newest--;
    }

    for (uint32_t s = g.rank(); s < slots.n_slot; s += g.size()) {
        const int32_t b = s < n_old ? where[s] : s < n_full ? int32_t(newest + s - n_old) : slot_view::NONE;

        bool is_selected = false;
        for (uint32_t i = 0; i < n; ++i) {
            is_selected = is_selected || where[i] == b;
        }
        order[s] = b >= 0 && (stale || slots.block[s] != b);
        slots.block[s] = b;
        slots.used [s] = b < 0 ? 0 : is_selected ? 2 : 1;
    }
    g.sync();
    for (uint32_t s = g.rank(); s < slots.n_slot; s += g.size()) {
        if (order[s]) {
            uint32_t rank = 0;
            for (uint32_t t = 0; t < s; ++t) {
                rank += order[t];
            }
            out[rank] = { slots.block[s], s };
        }
    }
    if (g.rank() == 0) {
        uint32_t n_copy = 0;
        for (uint32_t s = 0; s < slots.n_slot; ++s) {
            n_copy += order[s];
        }
        *n_out      = n_copy;
        *slots.tick = 2;
    }
    g.sync();
}

} // namespace infllm
