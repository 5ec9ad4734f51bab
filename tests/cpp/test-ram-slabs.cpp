// slabs in memory: what is in blocks stays there, free blocks are taken again, slabs go back, and another thread makes them ahead

#include "ram-slabs.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

using infllm::ram_slabs;

namespace {

constexpr size_t MANY = 1000000; // blocks that may still be taken

// A source of slabs that counts, fails and waits as it is told.
struct test_memory {
    std::atomic<size_t> n_live       { 0 };
    std::atomic<size_t> n_alloc      { 0 };
    std::atomic<size_t> n_elsewhere  { 0 }; // of which by other threads than the one that made this
    std::atomic<size_t> n_failed     { 0 };
    std::atomic<size_t> bytes        { 0 };
    std::atomic<size_t> bytes_max    { SIZE_MAX };
    std::atomic<bool>   throws       { false };
    std::atomic<bool>   only_outside { false }; // fails in other threads alone
    std::atomic<bool>   never_waits  { false };

    const std::thread::id mine = std::this_thread::get_id();

    ram_slabs::source get(size_t slab_min, size_t slab_max, bool ahead = false) {
        ram_slabs::source res;
        res.alloc    = [this](size_t size) { return alloc(size); };
        res.free     = [this](void * data, size_t size) {
            n_live--;
            bytes -= size;
            std::free(data);
        };
        res.slab_min = slab_min;
        res.slab_max = slab_max;
        res.ahead    = ahead;
        return res;
    }

    void close() {
        const std::lock_guard<std::mutex> lock(mutex);
        is_open = false;
    }

    void open() {
        const std::lock_guard<std::mutex> lock(mutex);
        is_open = true;
        opened.notify_all();
    }

    // until somebody waits for open()
    void wait_for_waiting() {
        std::unique_lock<std::mutex> lock(mutex);
        opened.wait(lock, [this] { return n_waiting > 0; });
    }

private:
    std::mutex              mutex;
    std::condition_variable opened;
    bool                    is_open   = true;
    size_t                  n_waiting = 0;

    void * alloc(size_t size) {
        const bool outside = std::this_thread::get_id() != mine;
        if (outside && !never_waits) {
            std::unique_lock<std::mutex> lock(mutex);
            n_waiting++;
            opened.notify_all();
            opened.wait(lock, [this] { return is_open; });
            n_waiting--;
        }
        if (outside || !only_outside) {
            if (throws) {
                n_failed++;
                throw std::runtime_error("no memory of this kind");
            }
            if (bytes + size > bytes_max) {
                n_failed++;
                return nullptr;
            }
        }
        n_live++;
        n_alloc++;
        n_elsewhere += outside;
        bytes += size;
        return std::malloc(size);
    }
};

// of what another thread does in the end
template <typename F>
bool comes_true(F f) {
    for (const auto begin = std::chrono::steady_clock::now(); !f(); std::this_thread::yield()) {
        if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(60)) {
            return false;
        }
    }
    return true;
}

std::vector<uint8_t *> take(ram_slabs & slabs, size_t n, size_t n_more = MANY) {
    std::vector<uint8_t *> res(n);
    res.resize(slabs.take(n, n_more, res.data()));
    return res;
}

void give(ram_slabs & slabs, const std::vector<uint8_t *> & blocks) {
    for (auto * b : blocks) {
        slabs.give(b);
    }
}

} // namespace

TEST(RamSlabs, BlocksKeepTheirBytes) {
    std::mt19937 rng(1);
    for (const size_t size : { 1, 24, 1000, 4096, 5000 }) {
        SCOPED_TRACE(size);
        test_memory mem;
        {
            ram_slabs slabs(size, mem.get(3000, 20000));
            struct written {
                uint8_t * data;
                uint8_t   byte;
            };
            std::vector<written> blocks;
            for (int step = 0; step < 3000; ++step) {
                if (blocks.empty() || rng()%5 < 3) {
                    for (auto * data : take(slabs, 1 + rng()%4)) {
                        ASSERT_EQ(reinterpret_cast<uintptr_t>(data)%16, 0u);
                        blocks.push_back({ data, uint8_t(rng()) });
                        std::memset(data, blocks.back().byte, size);
                    }
                } else {
                    const size_t i = rng()%blocks.size();
                    for (size_t p = 0; p < size; ++p) {
                        ASSERT_EQ(blocks[i].data[p], blocks[i].byte);
                    }
                    slabs.give(blocks[i].data);
                    blocks[i] = blocks.back();
                    blocks.pop_back();
                }
                ASSERT_EQ(slabs.n_taken(), blocks.size());
                ASSERT_EQ(slabs.bytes(), mem.bytes);
            }
            for (const auto & b : blocks) {
                for (size_t p = 0; p < size; ++p) {
                    ASSERT_EQ(b.data[p], b.byte);
                }
            }
        }
        EXPECT_EQ(mem.n_live, 0u);
    }
}

TEST(RamSlabs, MemoryOfTheSystemGrowsAndGoes) {
    for (const size_t size : { 1000, 3 << 20 }) {
        ram_slabs slabs(size, ram_slabs::system_memory());
        const auto blocks = take(slabs, 10);
        ASSERT_EQ(blocks.size(), 10u);
        for (size_t i = 0; i < blocks.size(); ++i) {
            std::memset(blocks[i], int(i), size);
        }
        for (size_t i = 0; i < blocks.size(); ++i) {
            ASSERT_EQ(blocks[i][0], i);
            ASSERT_EQ(blocks[i][size - 1], i);
        }
        give(slabs, blocks);
        EXPECT_EQ(slabs.bytes(), 0u);
    }
}

TEST(RamSlabs, FreeBlocksAreTakenAgain) {
    test_memory mem;
    ram_slabs slabs(64, mem.get(64*10, 64*10));
    auto blocks = take(slabs, 30);
    EXPECT_EQ(mem.n_alloc, 3u);
    EXPECT_EQ(slabs.n_backed(), 0u);

    for (int i = 0; i < 30; i += 3) {
        slabs.give(blocks[i]);
    }
    EXPECT_EQ(slabs.n_backed(), 10u);
    EXPECT_EQ(take(slabs, 10).size(), 10u);
    EXPECT_EQ(mem.n_alloc, 3u);
    EXPECT_EQ(slabs.n_taken(), 30u);
    EXPECT_EQ(take(slabs, 1).size(), 1u);
    EXPECT_EQ(mem.n_alloc, 4u);
    EXPECT_EQ(slabs.n_backed(), 0u); // nobody has written to the others of the new slab
}

TEST(RamSlabs, SlabsGrowWithWhatIsUsed) {
    test_memory mem;
    ram_slabs slabs(100, mem.get(1000, 100000));
    for (size_t n = 1; n <= 20000; ++n) {
        ASSERT_EQ(take(slabs, 1).size(), 1u);
        ASSERT_LE(slabs.bytes(), 112*(n + n/4 + 10));
    }
    EXPECT_LT(mem.n_alloc, 60u);
}

TEST(RamSlabs, BlocksLargerThanASlabHaveOneEach) {
    test_memory mem;
    ram_slabs slabs(5000, mem.get(1000, 4000));
    const auto blocks = take(slabs, 7);
    EXPECT_EQ(mem.n_live, 7u);
    give(slabs, { blocks[0], blocks[1], blocks[2] });
    EXPECT_EQ(mem.n_live, 5u);
}

TEST(RamSlabs, FreeSlabsGoBackButOne) {
    test_memory mem;
    ram_slabs slabs(64, mem.get(640, 640));
    const auto blocks = take(slabs, 50);
    ASSERT_EQ(mem.n_live, 5u);

    const auto slab = [&](int i) { return std::vector<uint8_t *>(blocks.begin() + 10*i, blocks.begin() + 10*i + 10); };
    give(slabs, slab(4));
    EXPECT_EQ(mem.n_live, 5u); // in spare
    give(slabs, slab(1));
    EXPECT_EQ(mem.n_live, 4u);
    EXPECT_EQ(take(slabs, 10).size(), 10u);
    EXPECT_EQ(mem.n_live, 4u);
    EXPECT_EQ(mem.n_alloc, 5u);
    give(slabs, slab(0));
    give(slabs, slab(2));
    EXPECT_EQ(mem.n_live, 3u);
    give(slabs, slab(3));
    EXPECT_EQ(mem.n_live, 2u);
    give(slabs, slab(4)); // taken again above
    EXPECT_EQ(slabs.n_taken(), 0u);
    EXPECT_EQ(mem.n_live, 0u);
    EXPECT_EQ(slabs.bytes(), 0u);
}

TEST(RamSlabs, TheFullestSlabIsFilledFirst) {
    test_memory mem;
    ram_slabs slabs(64, mem.get(640, 640));
    const auto blocks = take(slabs, 40);
    give(slabs, { blocks[0], blocks[1], blocks[2], blocks[10], blocks[20], blocks[21] });
    EXPECT_EQ(take(slabs, 1), std::vector<uint8_t *>{ blocks[10] });
    EXPECT_EQ(take(slabs, 2), (std::vector<uint8_t *>{ blocks[21], blocks[20] }));
    EXPECT_EQ(take(slabs, 3), (std::vector<uint8_t *>{ blocks[2], blocks[1], blocks[0] }));
    EXPECT_EQ(mem.n_alloc, 4u);
}

TEST(RamSlabs, NoMoreIsTakenThanWillBeNeeded) {
    test_memory mem;
    ram_slabs slabs(64, mem.get(6400, 6400));
    EXPECT_EQ(take(slabs, 3, 4).size(), 3u);
    EXPECT_EQ(mem.bytes, 64u*7);
    EXPECT_EQ(take(slabs, 4, 0).size(), 4u);
    EXPECT_EQ(mem.bytes, 64u*7);
}

TEST(RamSlabs, LimitIsExact) {
    test_memory mem;
    auto source = mem.get(64*4, 64*4);
    source.bytes_max = 64*11 + 63;
    ram_slabs slabs(64, source);
    EXPECT_EQ(take(slabs, 10).size(), 10u);
    EXPECT_FALSE(slabs.is_limited());
    const auto blocks = take(slabs, 5);
    EXPECT_EQ(blocks.size(), 1u);
    EXPECT_TRUE(slabs.is_limited());
    EXPECT_EQ(slabs.bytes(), 64u*11);
    give(slabs, blocks);
    EXPECT_EQ(take(slabs, 5).size(), 1u);
}

TEST(RamSlabs, ShortMemoryIsTakenToTheLastBlock) {
    test_memory mem;
    mem.bytes_max = 64*23;
    ram_slabs slabs(64, mem.get(640, 640));
    auto blocks = take(slabs, 30);
    EXPECT_EQ(blocks.size(), 23u);
    EXPECT_FALSE(slabs.is_limited());
    for (size_t i = 0; i < blocks.size(); ++i) {
        std::memset(blocks[i], int(i), 64);
    }
    EXPECT_TRUE(take(slabs, 1).empty());
    mem.throws = true;
    EXPECT_THROW(take(slabs, 1), std::runtime_error);
    EXPECT_EQ(slabs.n_taken(), 23u);

    mem.throws    = false;
    mem.bytes_max = SIZE_MAX;
    EXPECT_EQ(take(slabs, 30).size(), 30u);
    for (size_t i = 0; i < blocks.size(); ++i) {
        EXPECT_EQ(blocks[i][63], i);
    }
}

TEST(RamSlabs, WhatThrowsTakesNone) {
    test_memory mem;
    ram_slabs slabs(64, mem.get(640, 640));
    ASSERT_EQ(take(slabs, 5).size(), 5u);
    mem.throws = true;
    EXPECT_THROW(take(slabs, 6), std::runtime_error); // 5 of them are free
    EXPECT_EQ(slabs.n_taken(), 5u);
    EXPECT_EQ(take(slabs, 5).size(), 5u);
}

#if defined(__SANITIZE_ADDRESS__)
TEST(RamSlabs, TheSanitizerKnowsWhatIsFree) {
    test_memory mem;
    ram_slabs slabs(60, mem.get(640, 640));
    auto * block = take(slabs, 1)[0];
    EXPECT_FALSE(__asan_address_is_poisoned(block));
    EXPECT_FALSE(__asan_address_is_poisoned(block + 59));
    EXPECT_TRUE (__asan_address_is_poisoned(block + 60));
    EXPECT_TRUE (__asan_address_is_poisoned(block + 64));
    take(slabs, 1);
    slabs.give(block);
    EXPECT_TRUE(__asan_address_is_poisoned(block));
}
#endif

//
// ahead
//

TEST(RamSlabs, SlabsAreMadeAheadByAnotherThread) {
    test_memory mem;
    ram_slabs slabs(64, mem.get(640, 640, true));
    for (int i = 0; i < 200; ++i) {
        ASSERT_EQ(take(slabs, 1).size(), 1u);
        ASSERT_TRUE(comes_true([&] { return slabs.n_backed() >= 10; }));
    }
    EXPECT_EQ(mem.n_alloc - mem.n_elsewhere, 1u); // the first one
    EXPECT_LE(mem.n_alloc, 22u);
}

// as much as was asked for last, as far as that is a quarter of what is used
TEST(RamSlabs, MuchIsMadeAheadWhereMuchIsAskedFor) {
    test_memory mem;
    ram_slabs slabs(64, mem.get(640, 640, true));
    ASSERT_EQ(take(slabs, 400).size(), 400u);
    EXPECT_TRUE(comes_true([&] { return slabs.n_backed() >= 100; }));
    ASSERT_EQ(take(slabs, 30).size(), 30u);
    EXPECT_TRUE(comes_true([&] { return slabs.n_backed() >= 30; }));
    EXPECT_LE(slabs.n_backed(), 110u);
}

TEST(RamSlabs, FreeBlocksAreTakenWhileSlabsAreMade) {
    test_memory mem;
    mem.close();
    ram_slabs slabs(64, mem.get(640, 640, true));
    for (int i = 0; i < 10; ++i) {
        ASSERT_EQ(take(slabs, 1).size(), 1u); // does not wait for what is made
    }
    mem.wait_for_waiting();
    EXPECT_EQ(mem.n_elsewhere, 0u);

    // the next one needs what is being made: it is not made twice
    std::thread opener([&] { mem.open(); });
    EXPECT_EQ(take(slabs, 1).size(), 1u);
    opener.join();
    EXPECT_GE(mem.n_elsewhere, 1u);
    EXPECT_EQ(mem.n_alloc - mem.n_elsewhere, 1u);
}

TEST(RamSlabs, NothingIsMadeAheadBeyondTheLimits) {
    test_memory mem;
    {
        ram_slabs slabs(64, mem.get(640, 640, true));
        EXPECT_EQ(take(slabs, 10, 3).size(), 10u);
        EXPECT_TRUE(comes_true([&] { return slabs.bytes() == 64*13; }));
        EXPECT_EQ(take(slabs, 3, 0).size(), 3u);
        EXPECT_EQ(slabs.bytes(), 64u*13);
    }
    auto source = mem.get(640, 640, true);
    source.bytes_max = 64*13;
    ram_slabs slabs(64, source);
    EXPECT_EQ(take(slabs, 9).size(), 9u);
    EXPECT_TRUE(comes_true([&] { return slabs.bytes() == 64*13; }));
    EXPECT_FALSE(slabs.is_limited());
    EXPECT_EQ(take(slabs, 9).size(), 4u);
    EXPECT_TRUE(slabs.is_limited());
}

TEST(RamSlabs, WhatFailsAheadFailsWhenItIsNeeded) {
    for (const bool throws : { false, true }) {
        SCOPED_TRACE(throws);
        test_memory mem;
        ram_slabs slabs(64, mem.get(640, 640, true));
        mem.only_outside = true;
        mem.throws       = throws;
        mem.bytes_max    = 640;
        std::vector<uint8_t *> blocks;
        for (int i = 0; i < 10; ++i) {
            const auto b = take(slabs, 1); // nobody is told before
            ASSERT_EQ(b.size(), 1u);
            blocks.push_back(b[0]);
            std::memset(b[0], i, 64);
        }
        EXPECT_TRUE(comes_true([&] { return mem.n_failed > 0; }));
        if (throws) {
            EXPECT_THROW(take(slabs, 1), std::runtime_error); // of the other thread
        }
        mem.only_outside = false;
        if (throws) {
            EXPECT_THROW(take(slabs, 1), std::runtime_error);
        } else {
            EXPECT_TRUE(take(slabs, 1).empty());
        }
        EXPECT_EQ(slabs.n_taken(), 10u);

        mem.throws    = false;
        mem.bytes_max = SIZE_MAX;
        EXPECT_EQ(take(slabs, 20).size(), 20u);
        for (int i = 0; i < 10; ++i) {
            EXPECT_EQ(blocks[i][0],  i);
            EXPECT_EQ(blocks[i][63], i);
        }
    }
}

// what cannot be made ahead is not tried again with every block
TEST(RamSlabs, AFailureIsNotRepeated) {
    test_memory mem;
    mem.only_outside = true;
    mem.bytes_max    = 0;
    ram_slabs slabs(64, mem.get(6400, 6400, true));
    for (int i = 0; i < 10; ++i) {
        ASSERT_EQ(take(slabs, 1).size(), 1u);
        EXPECT_TRUE(comes_true([&] { return mem.n_failed > 0; }));
        std::this_thread::sleep_for(std::chrono::milliseconds(2)); // in which it could try again
    }
    EXPECT_EQ(mem.n_failed, 1u);
}

TEST(RamSlabs, WhatIsNoLongerWantedGoesBack) {
    test_memory mem;
    mem.close();
    ram_slabs slabs(64, mem.get(640, 640, true));
    const auto blocks = take(slabs, 10);
    mem.wait_for_waiting();
    give(slabs, blocks);
    EXPECT_EQ(slabs.bytes(), 0u);
    mem.open();
    EXPECT_TRUE(comes_true([&] { return mem.n_alloc == 2 && mem.n_live == 0; }));
}

TEST(RamSlabs, EndsWhileSlabsAreMade) {
    test_memory mem;
    for (int i = 0; i < 50; ++i) {
        ram_slabs slabs(64, mem.get(640, 640, true));
        EXPECT_EQ(take(slabs, 10).size(), 10u);
    }
    EXPECT_EQ(mem.n_live, 0u);
}

TEST(RamSlabs, ManyThreads) {
    test_memory mem;
    {
        ram_slabs slabs(40, mem.get(400, 4000, true));
        std::vector<std::thread> threads;
        std::atomic<size_t>      n_bad { 0 };
        for (uint32_t t = 0; t < 4; ++t) {
            threads.emplace_back([&, t] {
                std::mt19937 rng(t);
                std::vector<uint8_t *> blocks;
                for (int step = 0; step < 2000; ++step) {
                    for (auto * b : take(slabs, rng()%5)) {
                        std::memset(b, int(t), 40);
                        blocks.push_back(b);
                    }
                    while (!blocks.empty() && rng()%3 > 0) {
                        n_bad += blocks.back()[0] != t || blocks.back()[39] != t;
                        slabs.give(blocks.back());
                        blocks.pop_back();
                    }
                }
                give(slabs, blocks);
            });
        }
        for (auto & t : threads) {
            t.join();
        }
        EXPECT_EQ(n_bad, 0u);
        EXPECT_EQ(slabs.n_taken(), 0u);
    }
    EXPECT_EQ(mem.n_live, 0u);
}

#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__) // which does not follow forks
// the child has no such thread, and does not wait for it
TEST(RamSlabs, AForkDoesNotHaveTheThread) {
    test_memory mem;
    mem.close();
    auto slabs  = std::make_unique<ram_slabs>(64, mem.get(640, 640, true));
    auto blocks = take(*slabs, 10);
    mem.wait_for_waiting();

    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        alarm(60);
        mem.never_waits = true; // for a thread of the child's own
        const bool ok = take(*slabs, 5).size() == 5;
        slabs.reset();
        _exit(ok && mem.n_live == 0 ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);

    mem.open();
    EXPECT_EQ(take(*slabs, 5).size(), 5u);
    slabs.reset();
    EXPECT_EQ(mem.n_live, 0u);
}
#endif
