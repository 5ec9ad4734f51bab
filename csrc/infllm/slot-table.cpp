#include "slot-table.h"

#include <algorithm>
#include <cassert>

namespace infllm {

slot_table::slot_table(uint32_t n_slot) : blocks(n_slot, NONE), used(n_slot, 0) {
}

void slot_table::clear() {
    std::fill(blocks.begin(), blocks.end(), NONE);
    std::fill(used.begin(),   used.end(),   0);
    slots.clear();
    tick = 0;
}

void slot_table::assign(uint32_t slot, int32_t block) {
    assert(slot_of(block) == NONE);

    if (blocks[slot] != NONE) {
        slots[blocks[slot]] = NONE;
    }
    if (block >= static_cast<int32_t>(slots.size())) {
        slots.resize(block + 1, NONE);
    }
    blocks[slot]  = block;
    slots [block] = static_cast<int32_t>(slot);
    used  [slot]  = ++tick;
}

void slot_table::remove_from(int32_t first_block) {
    for (uint32_t i = 0; i < n_slot(); ++i) {
        if (blocks[i] >= first_block) {
            blocks[i] = NONE;
            used  [i] = 0;
        }
    }
    slots.resize(std::min<size_t>(slots.size(), first_block), NONE);
}

void slot_table::update(const int32_t * selected, uint32_t n, std::vector<page_in> & out) {
    assert(n <= n_slot());

    // touch first, so that no selected block can be the least recently used one below
    ++tick;
    for (uint32_t i = 0; i < n; ++i) {
        const int32_t slot = slot_of(selected[i]);
        if (slot != NONE) {
            used[slot] = tick;
        }
    }

    for (uint32_t i = 0; i < n; ++i) {
        if (slot_of(selected[i]) != NONE) {
            continue;
        }
        const auto slot = static_cast<uint32_t>(std::min_element(used.begin(), used.end()) - used.begin());
        assign(slot, selected[i]);
        out.push_back({ selected[i], slot });
    }
}

} // namespace infllm
