// the block store: limits, failing memory, references, and memory given back

#include "block-store.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <vector>

#ifndef _WIN32
#include <sys/resource.h>
#endif

using infllm::block_store;

// memory that counts what is taken, and runs out after n_max slabs, of a block each
struct counting_memory {
    size_t n_live  = 0;
    size_t n_alloc = 0;
    size_t n_max   = SIZE_MAX;

    infllm::ram_slabs::source get() {
        infllm::ram_slabs::source res;
        res.alloc = [this](size_t size) -> void * {
            if (n_live >= n_max) {
                return nullptr;
            }
            n_live++;
            n_alloc++;
            return std::malloc(size);
        };
        res.free = [this](void * data, size_t) {
            n_live--;
            std::free(data);
        };
        res.slab_min = 1;
        res.slab_max = 1;
        return res;
    }
};

TEST(BlockStore, TakesMemoryAsItGrows) {
    counting_memory mem;
    block_store store(64, 0, mem.get());

    EXPECT_EQ(mem.n_live, 0u);
    for (size_t i = 1; i <= 5; ++i) {
        EXPECT_NE(store.alloc(), block_store::NONE);
        EXPECT_EQ(mem.n_live, i);
        EXPECT_EQ(store.n_blocks(), i);
    }
}

TEST(BlockStore, WhatIsNotPinnedIsPinnedLater) {
    counting_memory mem;
    counting_memory pinned;
    block_store store(64, 0, mem.get());
    EXPECT_TRUE(store.can_map());
    store.set_pinned(pinned.get());
    EXPECT_FALSE(store.can_map());

    pinned.n_max = 2;
    std::vector<int32_t> ids;
    for (int i = 0; i < 4; ++i) {
        ids.push_back(store.alloc());
        std::memset(store.data(ids[i]), i, 64);
    }
    ASSERT_TRUE(store.reserve(1));
    EXPECT_EQ(pinned.n_live, 2u);
    EXPECT_EQ(mem.n_live, 3u);
    EXPECT_EQ(store.n_unpinned(), 3u); // two blocks, and what is reserved
    EXPECT_TRUE(store.pin().empty());

    pinned.n_max = 3;
    const std::vector<const uint8_t *> before = { store.data(ids[0]), store.data(ids[1]), store.data(ids[2]), store.data(ids[3]) };
    auto moved = store.pin();
    EXPECT_EQ(moved.size(), 1u);
    EXPECT_EQ(moved[before[2]], store.data(ids[2]));
    EXPECT_EQ(store.n_unpinned(), 2u);

    pinned.n_max = 5;
    moved = store.pin();
    EXPECT_EQ(moved.size(), 2u);
    EXPECT_EQ(moved[before[3]], store.data(ids[3]));
    EXPECT_EQ(store.n_unpinned(), 0u);
    EXPECT_EQ(mem.n_live, 0u);
    EXPECT_EQ(store.n_blocks(), 4u);

    ids.push_back(store.alloc());
    std::memset(store.data(ids[4]), 4, 64);
    for (int i = 0; i < 5; ++i) {
        EXPECT_EQ(store.data(ids[i])[0], i);
        EXPECT_EQ(store.data(ids[i])[63], i);
    }
    EXPECT_EQ(pinned.n_live, 5u);
}

TEST(BlockStore, KnowsWhatIsElsewhere) {
    const uint8_t bytes[2][64] = {};
    block_store store(64, 0);
    store.set_files(std::make_shared<infllm::file_slabs>(testing::TempDir(), 64));
    const auto owner = std::make_shared<int>();

    const int32_t a = store.alloc();
    ASSERT_TRUE(store.reserve(1, false));
    const int32_t b = store.alloc();
    const int32_t c = store.map(bytes[1], owner, {});
    EXPECT_FALSE(store.is_elsewhere(store.data(a)));
    EXPECT_TRUE (store.is_elsewhere(store.data(b)));
    EXPECT_TRUE (store.is_elsewhere(store.data(c)));
    EXPECT_FALSE(store.is_elsewhere(bytes[0]));

    const auto * data = store.data(b);
    store.unref(b);
    store.unref(c);
    EXPECT_FALSE(store.is_elsewhere(data));
    EXPECT_FALSE(store.is_elsewhere(bytes[1]));
}

TEST(BlockStore, BlocksHaveTheirOwnBytes) {
    block_store store(32, 0);

    const int32_t a = store.alloc();
    const int32_t b = store.alloc();
    std::memset(store.data(a), 1, store.block_bytes());
    std::memset(store.data(b), 2, store.block_bytes());

    for (size_t i = 0; i < store.block_bytes(); ++i) {
        EXPECT_EQ(store.data(a)[i], 1);
        EXPECT_EQ(store.data(b)[i], 2);
    }
}

TEST(BlockStore, DataStaysWhereItIsWhenTheStoreGrows) {
    block_store store(16, 0);

    const int32_t   id   = store.alloc();
    const uint8_t * data = store.data(id);
    for (int i = 0; i < 1000; ++i) {
        store.alloc();
    }
    EXPECT_EQ(store.data(id), data);
}

TEST(BlockStore, ReserveIsAllOrNothingAtTheLimit) {
    counting_memory mem;
    block_store store(100, 450, mem.get()); // 4 blocks

    ASSERT_NE(store.alloc(), block_store::NONE);

    EXPECT_FALSE(store.reserve(4));
    EXPECT_EQ(mem.n_live, 1u);
    EXPECT_EQ(store.n_blocks(), 1u);

    EXPECT_TRUE(store.reserve(3));
    EXPECT_EQ(mem.n_live, 4u);
    EXPECT_EQ(store.n_blocks(), 1u); // memory, but no blocks yet

    for (int i = 0; i < 3; ++i) {
        EXPECT_NE(store.alloc(), block_store::NONE);
    }
    EXPECT_EQ(store.alloc(), block_store::NONE);
    EXPECT_EQ(store.n_blocks(), 4u);
    EXPECT_EQ(mem.n_alloc, 4u); // the reserved memory was used
}

TEST(BlockStore, ExactLimitCanBeReached) {
    block_store store(100, 400);

    EXPECT_TRUE (store.reserve(4));
    EXPECT_FALSE(store.reserve(5));
}

TEST(BlockStore, ReserveIsAllOrNothingOutOfMemory) {
    counting_memory mem;
    mem.n_max = 5;
    block_store store(64, 0, mem.get());

    ASSERT_NE(store.alloc(), block_store::NONE);
    ASSERT_TRUE(store.reserve(2));
    EXPECT_EQ(mem.n_live, 3u);

    EXPECT_FALSE(store.reserve(5)); // has memory for 2, finds it for 2 more, not for the last
    EXPECT_EQ(mem.n_live, 4u);      // what was reserved before is still there, and a spare block

    mem.n_max = 4;
    for (int i = 0; i < 3; ++i) {
        EXPECT_NE(store.alloc(), block_store::NONE);
    }
    EXPECT_EQ(store.alloc(), block_store::NONE);
    EXPECT_EQ(store.n_blocks(), 4u);
}

TEST(BlockStore, ReserveAgainTakesNoMoreMemory) {
    counting_memory mem;
    block_store store(64, 0, mem.get());

    EXPECT_TRUE(store.reserve(3));
    EXPECT_TRUE(store.reserve(3));
    EXPECT_EQ(mem.n_alloc, 3u);
    EXPECT_TRUE(store.reserve(1));
    EXPECT_EQ(mem.n_alloc, 3u);
    EXPECT_EQ(mem.n_live,  2u); // one is kept in spare
}

TEST(BlockStore, OnlyTheLastReferenceGivesMemoryBack) {
    counting_memory mem;
    block_store store(64, 0, mem.get());

    const int32_t id = store.alloc();
    store.ref(id);
    store.ref(id);

    store.unref(id);
    store.unref(id);
    EXPECT_EQ(store.n_blocks(), 1u);
    EXPECT_EQ(mem.n_live, 1u);

    store.unref(id);
    EXPECT_EQ(store.n_blocks(), 0u);
    EXPECT_EQ(mem.n_live, 0u);
}

TEST(BlockStore, IdsAreUniqueAndReused) {
    block_store store(8, 0);

    std::set<int32_t> ids;
    for (int i = 0; i < 10; ++i) {
        ids.insert(store.alloc());
    }
    EXPECT_EQ(ids.size(), 10u);

    store.unref(3);
    store.unref(7);
    const std::set<int32_t> reused = { store.alloc(), store.alloc() };
    EXPECT_EQ(reused, (std::set<int32_t>{ 3, 7 }));
    EXPECT_EQ(ids.count(store.alloc()), 0u);
}

TEST(BlockStore, RoomUnderTheLimitComesBack) {
    block_store store(100, 200);

    const int32_t a = store.alloc();
    store.alloc();
    EXPECT_FALSE(store.reserve(1));

    store.unref(a);
    EXPECT_TRUE(store.reserve(1));
    EXPECT_NE(store.alloc(), block_store::NONE);
}

TEST(BlockStore, DestructorGivesAllMemoryBack) {
    counting_memory mem;
    {
        block_store store(64, 0, mem.get());
        const int32_t id = store.alloc();
        store.alloc();
        store.ref(id);
        store.unref(id);
        store.reserve(5);
        EXPECT_EQ(mem.n_live, 7u);
    }
    EXPECT_EQ(mem.n_live, 0u);
}

// a batch that is given up leaves memory reserved, which counts as well, and goes when the next one needs less
TEST(BlockStore, ReservedMemoryStaysWithinTheLimit) {
    const size_t n_max = 10;

    counting_memory mem;
    block_store store(64, n_max*64, mem.get());

    std::mt19937 rng(1);
    std::vector<int32_t> ids;
    for (int step = 0; step < 20000; ++step) {
        const size_t n = rng()%12;
        if (store.reserve(n)) {
            ASSERT_LE(ids.size() + n, n_max);
            ASSERT_GE(mem.n_live, ids.size() + n);
            ASSERT_LE(mem.n_live, ids.size() + n + 1); // in spare
            for (size_t i = rng()%(n + 1); i > 0; --i) { // given up somewhere
                ids.push_back(store.alloc());
                ASSERT_NE(ids.back(), block_store::NONE);
            }
        } else {
            ASSERT_GT(ids.size() + n, n_max);
        }
        while (!ids.empty() && rng()%3 == 0) {
            store.unref(ids.back());
            ids.pop_back();
        }
        ASSERT_LE(mem.n_live, n_max);
        ASSERT_EQ(store.n_blocks(), ids.size());
    }
}

TEST(BlockStore, MappedBlocksTakeNoMemoryAndKeepTheirFile) {
    block_store store(8, 8); // room for one
    const auto file = std::make_shared<std::vector<uint8_t>>(24, uint8_t(7));
    const auto id   = store.map(file->data() + 8, file, { file, 8, 5 });
    EXPECT_EQ(store.data(id), file->data() + 8);
    EXPECT_EQ(store.get_home(id).offset, 8u);
    EXPECT_EQ(store.n_blocks(), 1u);
    EXPECT_EQ(store.n_elsewhere(), 1u);

    const auto other = store.alloc();
    ASSERT_NE(other, block_store::NONE);
    EXPECT_EQ(store.alloc(), block_store::NONE);
    EXPECT_EQ(store.get_home(other).file, nullptr);

    // a copy in another file does not end the map
    store.set_home(id, { std::make_shared<int>(1), 16, 5 });
    EXPECT_EQ(file.use_count(), 2);
    store.ref(id);
    store.unref(id);
    EXPECT_EQ(file.use_count(), 2);
    store.unref(id);
    EXPECT_EQ(file.use_count(), 1);
    EXPECT_EQ(store.n_elsewhere(), 0u);
    EXPECT_EQ(store.get_home(id).file, nullptr);
}

TEST(BlockStore, GoesOnInFiles) {
    block_store store(1000, 2500); // room for two
    store.set_files(std::make_shared<infllm::file_slabs>(testing::TempDir(), 1000));
    std::vector<int32_t> ids;
    for (int i = 0; i < 2; ++i) {
        ids.push_back(store.alloc());
    }
    ASSERT_FALSE(store.reserve(200));
    ASSERT_TRUE(store.reserve(200, false));
    for (int i = 0; i < 200; ++i) {
        ids.push_back(store.alloc());
        ASSERT_NE(ids.back(), block_store::NONE);
    }
    EXPECT_EQ(store.n_elsewhere(), 200u);
    for (size_t i = 0; i < ids.size(); ++i) {
        std::memset(store.data(ids[i]), int(i), 1000);
    }
    for (size_t i = 0; i < ids.size(); ++i) {
        for (const size_t p : { 0, 999 }) {
            ASSERT_EQ(store.data(ids[i])[p], uint8_t(i));
        }
    }

    // what is given back is taken again, each where it belongs
    store.unref(ids[0]);
    store.unref(ids[50]);
    EXPECT_EQ(store.n_elsewhere(), 199u);
    const auto n_free = store.get_files()->n_free();
    EXPECT_NE(store.alloc(), block_store::NONE);
    EXPECT_EQ(store.alloc(), block_store::NONE);
    ASSERT_TRUE(store.reserve(1, false));
    EXPECT_EQ(store.get_files()->n_free(), n_free - 1);

    EXPECT_THROW(infllm::file_slabs("/none", 1000), std::runtime_error);
}

#ifndef _WIN32 // which has no limit for the size of a file
TEST(BlockStore, AFullDiskChangesNothing) {
    block_store store(100000, 1);
    store.set_files(std::make_shared<infllm::file_slabs>(testing::TempDir(), 100000));

    std::signal(SIGXFSZ, SIG_IGN);
    rlimit before;
    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    rlimit small = before;
    small.rlim_cur = 100 << 20; // one slab
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    const bool first  = store.reserve(1, false);
    const bool second = store.reserve(1500, false);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);

    EXPECT_TRUE(first);
    EXPECT_FALSE(second);
    EXPECT_NE(store.alloc(), block_store::NONE);
    EXPECT_EQ(store.alloc(), block_store::NONE);
    EXPECT_TRUE(store.reserve(1500, false)); // there is room again
}
#endif

TEST(BlockStore, SharedBlocksLiveAsLongAsSomebodyNeedsThem) {
    const auto files = std::make_shared<infllm::file_slabs>(testing::TempDir(), 8);
    auto       first = std::make_unique<block_store>(8, 16);
    first->set_files(files);
    const auto a = first->alloc();
    ASSERT_TRUE(first->reserve(1, false));
    const auto b = first->alloc();
    std::memset(first->data(a), 1, 8);
    std::memset(first->data(b), 2, 8);
    const auto n_free = files->n_free();

    block_store second(8, 8);
    const auto c = second.map(first->data(a), first->share(a), {});
    const auto d = second.map(first->data(b), first->share(b), {});
    EXPECT_EQ(second.n_elsewhere(), 2u);
    EXPECT_EQ(first->n_elsewhere(), 1u);

    first->unref(b);
    EXPECT_EQ(files->n_free(), n_free);
    first.reset();
    EXPECT_EQ(second.data(c)[7], 1);
    EXPECT_EQ(second.data(d)[7], 2);
    second.unref(d);
    EXPECT_EQ(files->n_free(), n_free + 1);
    second.unref(c);
}
