#pragma once

// functions of csrc/infllm that groups of threads run, as one thread calls them

#include "slots.h"
#include "topk.h"

#include <algorithm>
#include <cassert>
#include <vector>

// the k highest scores, best first
inline void select_topk(const std::vector<float> & scores, uint32_t k, std::vector<int32_t> & out) {
    const auto n = static_cast<uint32_t>(scores.size());
    out.resize(std::min(k, n));

    infllm::topk_scratch  scratch = {};
    std::vector<uint64_t> keys(out.size());
    infllm::select_topk(infllm::single_thread(), scores.data(), n, static_cast<uint32_t>(out.size()), scratch, keys.data(), out.data());
}

// owns slots
class slot_table {
public:
    static constexpr int32_t NONE = infllm::slot_view::NONE;

    explicit slot_table(uint32_t n_slot) : blocks(n_slot, NONE), used(n_slot, 0), order(n_slot), where(n_slot) {}

    void clear() { view().clear(); }

    void assign(uint32_t slot, int32_t block) {
        assert(slot_of(block) == NONE);
        view().assign(slot, block);
    }

    void remove_from(int32_t first_block) { view().remove_from(first_block); }
    void fill(uint32_t n_block)           { view().fill(n_block); }

    // blocks to copy are appended to out
    void update(const int32_t * selected, uint32_t n, std::vector<infllm::page_in> & out) {
        const size_t n_old = out.size();
        uint32_t     n_new = 0;
        out.resize(n_old + n);
        infllm::update_slots(infllm::single_thread(), view(), selected, n, order.data(), where.data(), out.data() + n_old, &n_new);
        out.resize(n_old + n_new);
    }

    void place(const int32_t * selected, uint32_t n, uint32_t n_block, bool stale, std::vector<infllm::page_in> & out) {
        const size_t n_old = out.size();
        uint32_t     n_new = 0;
        out.resize(n_old + n_slot());
        infllm::place_slots(infllm::single_thread(), view(), selected, n, n_block, stale, order.data(), where.data(), out.data() + n_old, &n_new);
        out.resize(n_old + n_new);
    }

    uint32_t n_slot() const { return static_cast<uint32_t>(blocks.size()); }

    int32_t block_at(uint32_t slot)  const { return blocks[slot]; }
    int32_t slot_of (int32_t  block) const {
        const auto it = std::find(blocks.begin(), blocks.end(), block);
        return it == blocks.end() ? NONE : static_cast<int32_t>(it - blocks.begin());
    }

private:
    infllm::slot_view view() { return { n_slot(), blocks.data(), used.data(), &tick }; }

    uint64_t tick = 0;

    std::vector<int32_t>  blocks;
    std::vector<uint64_t> used;
    std::vector<uint32_t> order;
    std::vector<int32_t>  where;
};
