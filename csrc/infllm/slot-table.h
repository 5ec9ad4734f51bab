#pragma once

#include "slots.h"

#include <cstdint>
#include <vector>

namespace infllm {

// Which block is in which slot, for one layer of one sequence. Slots are replaced least recently used first, and
// never while their block is selected (see slots.h).
class slot_table {
public:
    static constexpr int32_t NONE = slot_view::NONE;

    explicit slot_table(uint32_t n_slot);

    // empty all slots
    void clear();

    // put a block into a slot, whatever was there; the newer of two calls counts as the more recently used
    void assign(uint32_t slot, int32_t block);

    // free the slots of all blocks >= first_block
    void remove_from(int32_t first_block);

    // make the selected blocks resident: those in a slot are touched, the others get a slot and are appended to out
    // requires n <= n_slot() and no block twice
    void update(const int32_t * selected, uint32_t n, std::vector<page_in> & out);

    // fill all slots by what is selected alone (see place_slots()), of n_block stored blocks; with stale, all are appended to out
    // requires n <= n_slot(), n <= n_block and no block twice
    void place(const int32_t * selected, uint32_t n, uint32_t n_block, bool stale, std::vector<page_in> & out);

    uint32_t n_slot() const { return static_cast<uint32_t>(blocks.size()); }

    int32_t block_at(uint32_t slot)  const { return blocks[slot]; }
    int32_t slot_of (int32_t  block) const;

    slot_view view();

private:
    uint64_t tick = 0;

    std::vector<int32_t>  blocks; // [n_slot]
    std::vector<uint64_t> used;   // [n_slot]

    // work space of update() and place()
    std::vector<uint32_t> order;
    std::vector<int32_t>  where;
};

} // namespace infllm
