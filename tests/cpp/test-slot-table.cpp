// the slot table against a plain model: a list of blocks, most recently used first

#include "on-one-thread.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <list>
#include <numeric>
#include <random>
#include <set>

namespace {

// Which blocks a cache of n_slot blocks holds. All blocks of one selection are used at the same time, so any order among
// them is right: generations hold the blocks that were last used together.
class lru_model {
public:
    explicit lru_model(size_t n_slot) : n_slot(n_slot) {}

    bool has(int32_t block) const {
        return std::any_of(generations.begin(), generations.end(), [&](const auto & g) { return g.count(block) > 0; });
    }

    size_t size() const {
        size_t n = 0;
        for (const auto & g : generations) {
            n += g.size();
        }
        return n;
    }

    // apply what the table says it did, and check that least recently used blocks went first
    void update(const std::set<int32_t> & selected, const std::set<int32_t> & evicted) {
        for (const int32_t block : selected) {
            erase(block);
        }
        // whole generations go before any block of a newer one
        size_t n_left = evicted.size();
        while (n_left > 0) {
            ASSERT_FALSE(generations.empty()) << "a selected block was evicted";
            auto & oldest = generations.back();
            size_t n_gone = 0;
            for (const int32_t block : evicted) {
                n_gone += oldest.erase(block);
            }
            ASSERT_GT(n_gone, 0u) << "an older block than the evicted ones stayed";
            n_left -= n_gone;
            ASSERT_TRUE(n_left == 0 || oldest.empty()) << "a newer block was evicted before an older one";
            drop_empty();
        }
        generations.push_front(selected);
        drop_empty();
        ASSERT_LE(size(), n_slot);
    }

    void remove_from(int32_t first_block) {
        for (auto & g : generations) {
            g.erase(g.lower_bound(first_block), g.end());
        }
        drop_empty();
    }

private:
    void erase(int32_t block) {
        for (auto & g : generations) {
            g.erase(block);
        }
        drop_empty();
    }

    void drop_empty() {
        generations.remove_if([](const auto & g) { return g.empty(); });
    }

    size_t n_slot;

    std::list<std::set<int32_t>> generations; // most recently used first
};

std::set<int32_t> contents(const slot_table & table) {
    std::set<int32_t> res;
    for (uint32_t i = 0; i < table.n_slot(); ++i) {
        if (table.block_at(i) != slot_table::NONE) {
            EXPECT_TRUE(res.insert(table.block_at(i)).second) << "block " << table.block_at(i) << " is in two slots";
        }
    }
    return res;
}

// both maps say the same
void check_maps(const slot_table & table, int32_t n_block) {
    for (uint32_t i = 0; i < table.n_slot(); ++i) {
        if (table.block_at(i) != slot_table::NONE) {
            ASSERT_EQ(table.slot_of(table.block_at(i)), int32_t(i));
        }
    }
    for (int32_t b = 0; b < n_block; ++b) {
        if (table.slot_of(b) != slot_table::NONE) {
            ASSERT_EQ(table.block_at(table.slot_of(b)), b);
        }
    }
}

void run_stream(uint32_t n_slot, int32_t n_block, uint32_t n_select, bool with_remove, uint32_t seed) {
    SCOPED_TRACE(testing::Message() << n_slot << " slots, " << n_block << " blocks, " << n_select << " selected");

    std::mt19937 rng(seed);
    slot_table table(n_slot);
    lru_model  model(n_slot);

    std::vector<int32_t> all(n_block);
    for (int32_t b = 0; b < n_block; ++b) {
        all[b] = b;
    }

    for (int step = 0; step < 10000; ++step) {
        if (with_remove && rng()%50 == 0) {
            const auto first = int32_t(rng()%(n_block + 1));
            table.remove_from(first);
            model.remove_from(first);
            for (const int32_t b : contents(table)) {
                ASSERT_LT(b, first);
                ASSERT_TRUE(model.has(b));
            }
            ASSERT_EQ(contents(table).size(), model.size());
        }

        // low blocks are selected more often, so that there are hits
        std::shuffle(all.begin(), all.end(), rng);
        std::stable_sort(all.begin(), all.begin() + n_block/2);
        const uint32_t n = std::min<uint32_t>(rng()%(n_select + 1), n_block);
        const std::set<int32_t> selected(all.begin(), all.begin() + n);

        const auto before = contents(table);
        std::vector<infllm::page_in> page_ins;
        table.update(all.data(), n, page_ins);
        const auto after = contents(table);

        // exactly the missing blocks come in, each into the slot it is said to be in
        std::set<int32_t> missing;
        std::set_difference(selected.begin(), selected.end(), before.begin(), before.end(), std::inserter(missing, missing.end()));
        std::set<int32_t> paged;
        for (const auto & p : page_ins) {
            ASSERT_TRUE(paged.insert(p.block).second);
            ASSERT_EQ(table.block_at(p.slot), p.block);
        }
        ASSERT_EQ(paged, missing);
        ASSERT_TRUE(std::includes(after.begin(), after.end(), selected.begin(), selected.end()));

        // nothing goes while a slot is empty
        std::set<int32_t> evicted;
        std::set_difference(before.begin(), before.end(), after.begin(), after.end(), std::inserter(evicted, evicted.end()));
        const size_t n_empty = n_slot - before.size();
        ASSERT_EQ(evicted.size(), missing.size() > n_empty ? missing.size() - n_empty : 0);

        model.update(selected, evicted);
        if (testing::Test::HasFatalFailure()) {
            return;
        }
        ASSERT_EQ(after.size(), model.size());
        check_maps(table, n_block);
    }
}

} // namespace

TEST(SlotTable, FollowsTheModel)                { run_stream(16, 64, 8, false, 1); }
TEST(SlotTable, FollowsTheModelWhenAllSelected) { run_stream( 8, 40, 8, false, 2); }
TEST(SlotTable, FollowsTheModelOfOneSlot)       { run_stream( 1,  5, 1, false, 3); }
TEST(SlotTable, FewerBlocksThanSlots)           { run_stream(32, 20, 8, false, 4); }
TEST(SlotTable, FollowsTheModelWithRemovals)    { run_stream(12, 48, 6, true,  5); }

TEST(SlotTable, FewerBlocksThanSlotsPageInOnce) {
    slot_table table(8);
    std::vector<infllm::page_in> page_ins;

    const int32_t blocks[] = { 4, 2, 0, 1, 3 };
    table.update(blocks, 5, page_ins);
    EXPECT_EQ(page_ins.size(), 5u);

    page_ins.clear();
    for (int i = 0; i < 5; ++i) {
        table.update(blocks + i, 1, page_ins);
    }
    EXPECT_TRUE(page_ins.empty());
}

TEST(SlotTable, SelectedBlockIsNeverEvicted) {
    slot_table table(3);
    for (int32_t i = 0; i < 3; ++i) {
        table.assign(i, i);
    }

    // block 0 is the least recently used one, but selected
    std::vector<infllm::page_in> page_ins;
    const int32_t selected[] = { 7, 8, 0 };
    table.update(selected, 3, page_ins);

    EXPECT_EQ(table.slot_of(0), 0);
    EXPECT_EQ(table.slot_of(1), slot_table::NONE);
    EXPECT_EQ(table.slot_of(2), slot_table::NONE);
}

TEST(SlotTable, NewerAssignmentIsMoreRecentlyUsed) {
    slot_table table(3);
    table.assign(1, 10);
    table.assign(2, 11);
    table.assign(0, 12);

    std::vector<infllm::page_in> page_ins;
    const int32_t selected[] = { 20, 21 };
    table.update(selected, 2, page_ins);

    ASSERT_EQ(page_ins.size(), 2u);
    EXPECT_EQ(page_ins[0].slot, 1u);
    EXPECT_EQ(page_ins[1].slot, 2u);
    EXPECT_EQ(table.slot_of(12), 0);
}

TEST(SlotTable, AssignReplacesWhatWasThere) {
    slot_table table(2);
    table.assign(0, 5);
    table.assign(0, 6);

    EXPECT_EQ(table.slot_of(5), slot_table::NONE);
    EXPECT_EQ(table.slot_of(6), 0);
    EXPECT_EQ(table.block_at(0), 6);
}

TEST(SlotTable, RemoveFromFreesTheSlots) {
    slot_table table(4);
    for (int32_t i = 0; i < 4; ++i) {
        table.assign(i, 3 - i);
    }

    table.remove_from(2);
    EXPECT_EQ(table.slot_of(3), slot_table::NONE);
    EXPECT_EQ(table.slot_of(2), slot_table::NONE);
    EXPECT_EQ(table.slot_of(1), 2);
    EXPECT_EQ(table.slot_of(0), 3);

    // the free slots are taken first
    std::vector<infllm::page_in> page_ins;
    const int32_t selected[] = { 8, 9 };
    table.update(selected, 2, page_ins);
    EXPECT_EQ(table.slot_of(1), 2);
    EXPECT_EQ(table.slot_of(0), 3);

    table.remove_from(0);
    EXPECT_TRUE(contents(table).empty());
}

TEST(SlotTable, RemoveFromBeyondAllBlocksChangesNothing) {
    slot_table table(2);
    table.assign(0, 0);
    table.assign(1, 4);

    table.remove_from(100);
    EXPECT_EQ(contents(table), (std::set<int32_t>{ 0, 4 }));
    EXPECT_EQ(table.slot_of(50), slot_table::NONE);
}

TEST(SlotTable, EmptySlotsAreFilledWithTheNewestBlocks) {
    slot_table table(5);
    for (int32_t i = 0; i < 5; ++i) {
        table.assign(i, 2*i);
    }
    table.remove_from(5); // 0, 2 and 4 are left
    table.fill(6);
    EXPECT_EQ(contents(table), (std::set<int32_t>{ 0, 2, 3, 4, 5 }));
    EXPECT_EQ(table.block_at(3), 5);
    EXPECT_EQ(table.block_at(4), 3);
}

TEST(SlotTable, ClearEmptiesAllSlots) {
    slot_table table(2);
    table.assign(0, 3);
    table.clear();

    EXPECT_TRUE(contents(table).empty());
    EXPECT_EQ(table.slot_of(3), slot_table::NONE);
    table.assign(1, 3);
    EXPECT_EQ(table.slot_of(3), 1);
}

// what is resident, and where, is a function of the selection alone; only what is elsewhere is copied
TEST(SlotTable, PlacedBlocksDoNotDependOnHistory) {
    std::mt19937 rng(6);
    for (int i = 0; i < 2000; ++i) {
        const uint32_t n_slot  = 1 + rng()%12;
        const uint32_t n_block = 1 + rng()%40;
        const uint32_t n       = 1 + rng()%std::min(n_slot, n_block);

        std::vector<int32_t> all(n_block);
        std::iota(all.begin(), all.end(), 0);
        std::shuffle(all.begin(), all.end(), rng);
        const std::vector<int32_t> selected(all.begin(), all.begin() + n);

        // the selected ones, and the newest others
        std::set<int32_t> expected(selected.begin(), selected.end());
        for (int32_t b = int32_t(n_block) - 1; b >= 0 && expected.size() < n_slot; --b) {
            expected.insert(b);
        }

        slot_table fresh(n_slot);
        slot_table used (n_slot);
        for (uint32_t s = 0; s < n_slot; ++s) {
            used.assign(s, s < n_block ? all[n_block - 1 - s] : 100 + int32_t(s));
        }
        const slot_table before = used;

        std::vector<infllm::page_in> page_ins;
        fresh.place(selected.data(), n, n_block, false, page_ins);
        ASSERT_EQ(page_ins.size(), expected.size());
        page_ins.clear();
        used.place(selected.data(), n, n_block, false, page_ins);

        uint32_t slot  = 0;
        size_t   n_new = 0;
        for (const int32_t block : expected) { // in the order of the text
            ASSERT_EQ(fresh.block_at(slot), block);
            ASSERT_EQ(used .block_at(slot), block);
            if (before.block_at(slot) != block) {
                ASSERT_LT(n_new, page_ins.size());
                ASSERT_EQ(page_ins[n_new].block, block);
                ASSERT_EQ(page_ins[n_new].slot,  slot);
                n_new++;
            }
            slot++;
        }
        ASSERT_EQ(page_ins.size(), n_new);

        // what is decoded afterwards replaces the same blocks
        for (int j = 0; j < 3; ++j) {
            const int32_t next = int32_t(rng()%n_block);
            fresh.update(&next, 1, page_ins);
            used .update(&next, 1, page_ins);
            for (uint32_t t = 0; t < n_slot; ++t) {
                ASSERT_EQ(fresh.block_at(t), used.block_at(t));
            }
        }

        page_ins.clear();
        used.place(selected.data(), n, n_block, true, page_ins);
        ASSERT_EQ(page_ins.size(), expected.size());
    }
}
