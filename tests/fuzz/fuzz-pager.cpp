// Which blocks are selected, and which slots they get, by scores that come from a device, from another machine (RPC), or from a model
// whose weights are no numbers: whatever they are, blocks are there, none is selected twice, and each slot has one of its own.

#include "fuzz.h"

#include "pager.h"

#include <set>

using namespace infllm;
using fuzz::bytes;

std::vector<bytes> fuzz::seeds() {
    std::vector<bytes> res;
    for (uint32_t kind = 0; kind < 4; ++kind) {
        bytes input = { uint8_t(kind), 0, uint8_t(3 + kind), 0, 6, 0, 2, 0, 3, 0 };
        for (uint32_t i = 0; i < 300; ++i) {
            const float x = float(i*7919%101);
            const auto * p = reinterpret_cast<const uint8_t *>(&x);
            input.insert(input.end(), p, p + sizeof(x));
        }
        res.push_back(input);
    }
    return res;
}

void fuzz::repair(bytes &) {
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz::reader in(data, size);
    const uint32_t kind   = in.below(4);
    const uint32_t topk   = 1 + in.below(16);
    const uint32_t n_slot = topk + in.below(8);
    const uint32_t n_repr = 1 + in.below(4);
    const uint32_t n_sub  = 1 + in.below(6);

    pager_layer l {};
    l.cells       = cell_layout::make(4, 16, 8, n_slot, 8);
    l.n_head_kv   = 1;
    l.topk        = topk;
    l.n_repr      = n_repr;
    l.n_block_max = 64;
    l.first       = kind%2;
    std::vector<uint64_t> state(pager_state::size(l)/sizeof(uint64_t));
    std::vector<float>    scores(l.n_block_max);
    std::vector<float>    sums(n_sub*l.n_block_max);
    std::vector<int32_t>  chosen(topk);
    std::vector<uint64_t> work(page_scratch::size(l)/sizeof(uint64_t) + 1);
    l.state  = reinterpret_cast<uint8_t *>(state.data());
    l.scores = scores.data();
    l.sums   = sums.data();
    l.chosen = chosen.data();

    const auto st = pager_state::of(l, 0);
    st.slots.clear();
    for (uint32_t s = 0; s < n_slot; ++s) {
        st.slots.assign(s, int32_t(s)); // as when a sequence begins to page
    }

    page_scratch scratch;
    scratch.init(l, work.data());

    std::vector<float> given(n_sub*l.n_block_max*n_repr);
    uint32_t n_block = n_slot;
    for (uint32_t step = 0; step < 6 && !in.at_end(); ++step) {
        n_block = std::min(l.n_block_max, n_block + in.below(8));
        const auto place = pager_place(in.below(PLACE_ALL + 1));
        for (auto & x : given) {
            x = in.get<float>();
        }
        pager_info info {};
        info.n_block = int32_t(n_block);
        info.agree   = kind >= 2;
        info.place   = place;
        page_select(single_thread(), l, info, nullptr, 0, 0, given.data(), l.n_block_max*n_repr, n_sub, scratch);
        page_count(l, info);

        const uint32_t n = std::min(topk, n_block);
        const std::set<int32_t> selected(chosen.begin(), chosen.begin() + n);
        FUZZ_CHECK(selected.size() == n && *selected.begin() >= 0 && *selected.rbegin() < int32_t(n_block));
        const std::set<int32_t> in_slots(st.slots.block, st.slots.block + n_slot);
        FUZZ_CHECK(in_slots.size() == n_slot && *in_slots.begin() >= 0 && *in_slots.rbegin() < int32_t(n_block));
        FUZZ_CHECK(std::includes(in_slots.begin(), in_slots.end(), selected.begin(), selected.end()));
        FUZZ_CHECK(*st.n_page_in <= n_slot);
        for (uint32_t i = 0; i < *st.n_page_in; ++i) {
            FUZZ_CHECK(st.page_ins[i].slot < n_slot && st.slots.block[st.page_ins[i].slot] == st.page_ins[i].block);
        }
    }
    return 0;
}
