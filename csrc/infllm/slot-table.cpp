#include "slot-table.h"

#include <algorithm>
#include <cassert>

namespace infllm {

slot_table::slot_table(uint32_t n_slot) : blocks(n_slot, NONE), used(n_slot, 0), order(n_slot), where(n_slot) {
}

slot_view slot_table::view() {
    return { n_slot(), blocks.data(), used.data(), &tick };
}

int32_t slot_table::slot_of(int32_t block) const {
    const auto it = std::find(blocks.begin(), blocks.end(), block);
    return it == blocks.end() ? NONE : static_cast<int32_t>(it - blocks.begin());
}

void slot_table::clear() {
    std::fill(blocks.begin(), blocks.end(), NONE);
    std::fill(used.begin(),   used.end(),   0);
    tick = 0;
}

void slot_table::assign(uint32_t slot, int32_t block) {
    assert(slot_of(block) == NONE);

    blocks[slot] = block;
    used  [slot] = ++tick;
}

void slot_table::remove_from(int32_t first_block) {
    for (uint32_t i = 0; i < n_slot(); ++i) {
        if (blocks[i] >= first_block) {
            blocks[i] = NONE;
            used  [i] = 0;
        }
    }
}

void slot_table::update(const int32_t * selected, uint32_t n, std::vector<page_in> & out) {
    assert(n <= n_slot());

    const size_t n_old = out.size();
    uint32_t     n_new = 0;

    out.resize(n_old + n);
    update_slots(single_thread(), view(), selected, n, order.data(), where.data(), out.data() + n_old, &n_new);
    out.resize(n_old + n_new);
}

void slot_table::place(const int32_t * selected, uint32_t n, uint32_t n_block, bool stale, std::vector<page_in> & out) {
    assert(n <= n_slot() && n <= n_block);

    const size_t n_old = out.size();
    uint32_t     n_new = 0;

    out.resize(n_old + n_slot());
    place_slots(single_thread(), view(), selected, n, n_block, stale, order.data(), where.data(), out.data() + n_old, &n_new);
    out.resize(n_old + n_new);
}

} // namespace infllm
