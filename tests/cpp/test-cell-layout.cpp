// where tokens live in the resident buffer: exhaustive over small parameters

#include "cell-layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

using infllm::cell_layout;

namespace {

struct config {
    cell_layout cells;
    uint32_t    n_ubatch;
};

// n_ubatch and block_size are at most n_local, as llama_infllm_params_resolve() makes sure
std::vector<config> all_configs() {
    std::vector<config> res;
    for (uint32_t n_init : { 0, 1, 3, 4 }) {
        for (uint32_t block_size : { 1, 2, 3, 4 }) {
            for (uint32_t n_local = block_size; n_local <= 9; ++n_local) {
                for (uint32_t n_slot : { 1, 2, 3 }) {
                    for (uint32_t n_ubatch = 1; n_ubatch <= n_local; ++n_ubatch) {
                        res.push_back({ cell_layout::make(n_init, n_local, block_size, n_slot, n_ubatch), n_ubatch });
                    }
                }
            }
        }
    }
    return res;
}

testing::Message describe(const config & c) {
    return testing::Message() << "n_init " << c.cells.n_init << ", n_local " << c.cells.n_local << ", block_size "
        << c.cells.block_size << ", n_slot " << c.cells.n_slot << ", n_ubatch " << c.n_ubatch;
}

} // namespace

TEST(CellLayout, CountsCells) {
    const auto cells = cell_layout::make(16, 64, 16, 8, 32);

    EXPECT_EQ(cells.n_ring,       112u); // 64 + 16 + 32
    EXPECT_EQ(cells.ring_begin(), 144u); // 16 + 8*16
    EXPECT_EQ(cells.n_cells(),    256u);
    EXPECT_EQ(cells.slot_cell(2),  48u);
    EXPECT_EQ(cells.block_pos(2),  48u);
    EXPECT_EQ(cells.block_of(48),   2u);
    EXPECT_EQ(cells.block_of(47),   1u);
}

TEST(CellLayout, CellIsPositionWhileItFits) {
    for (const auto & c : all_configs()) {
        SCOPED_TRACE(describe(c));
        for (uint32_t p = 0; p < c.cells.n_cells(); ++p) {
            ASSERT_EQ(c.cells.cell(p), p);
        }
        for (uint32_t s = 0; s < c.cells.n_slot; ++s) {
            ASSERT_EQ(c.cells.slot_cell(s), c.cells.block_pos(s)); // the first blocks are in their slots already
        }
        for (uint32_t p0 = 0; p0 < c.cells.n_cells(); ++p0) {
            for (uint32_t p1 = p0; p1 <= c.cells.n_cells(); ++p1) {
                ASSERT_EQ(c.cells.n_offload(p0, p1), 0u);
            }
        }
    }
}

TEST(CellLayout, BlocksDoNotWrapInTheRing) {
    for (const auto & c : all_configs()) {
        SCOPED_TRACE(describe(c));
        ASSERT_EQ(c.cells.n_ring%c.cells.block_size, 0u);
        for (uint32_t b = 0; b < 5*c.cells.n_ring/c.cells.block_size; ++b) {
            const uint32_t pos  = c.cells.block_pos(b);
            const uint32_t cell = c.cells.cell(pos);
            ASSERT_EQ(c.cells.block_of(pos), b);
            for (uint32_t i = 1; i < c.cells.block_size; ++i) {
                ASSERT_EQ(c.cells.cell(pos + i), cell + i);
                ASSERT_EQ(c.cells.block_of(pos + i), b);
            }
            ASSERT_LE(cell + c.cells.block_size, c.cells.n_cells());
        }
    }
}

// Walks over all positions with ubatches of any size up to n_ubatch. Tokens from the first block that is not offloaded up to
// the end of the ubatch are alive in the ring, and must not share a cell.
TEST(CellLayout, LiveTokensShareNoCell) {
    for (const auto & c : all_configs()) {
        SCOPED_TRACE(describe(c));
        for (uint32_t p0 = 1; p0 < c.cells.n_cells() + 3*c.cells.n_ring; ++p0) {
            for (uint32_t n = 1; n <= c.n_ubatch; ++n) {
                const uint32_t n_offload = c.cells.n_offload(p0, p0 + n);
                if (n_offload == 0) {
                    ASSERT_LE(p0 + n, c.cells.n_cells()); // everything fits
                    continue;
                }

                // the home cells of the slots' blocks are free for other blocks
                ASSERT_GE(n_offload, c.cells.n_slot);

                const uint32_t first = c.cells.block_pos(n_offload);
                ASSERT_GE(first, c.cells.ring_begin());
                ASSERT_LE(p0 + n - first, c.cells.n_ring);

                std::vector<bool> used(c.cells.n_cells());
                for (uint32_t p = first; p < p0 + n; ++p) {
                    const uint32_t cell = c.cells.cell(p);
                    ASSERT_GE(cell, c.cells.ring_begin());
                    ASSERT_LT(cell, c.cells.n_cells());
                    ASSERT_FALSE(used[cell]) << "position " << p;
                    used[cell] = true;
                }
            }
        }
    }
}

TEST(CellLayout, OffloadKeepsTheLocalWindow) {
    for (const auto & c : all_configs()) {
        SCOPED_TRACE(describe(c));
        for (uint32_t p0 = c.cells.n_cells(); p0 < c.cells.n_cells() + 3*c.cells.n_ring; ++p0) {
            for (uint32_t n = 1; n <= c.n_ubatch; ++n) {
                const uint32_t n_offload = c.cells.n_offload(p0, p0 + n);
                const uint32_t first     = c.cells.block_pos(n_offload); // first token in the ring
                ASSERT_GE(p0 - first, c.cells.n_local);
                ASSERT_LT(p0 - first, c.cells.n_local + c.cells.block_size); // and no more blocks than needed
            }
        }
    }
}

// whatever the ubatches are, the number of offloaded blocks never goes down
TEST(CellLayout, OffloadGoesForward) {
    for (const auto & c : all_configs()) {
        SCOPED_TRACE(describe(c));
        uint32_t n_max = 0;
        for (uint32_t p0 = 1; p0 < c.cells.n_cells() + 3*c.cells.n_ring; ++p0) {
            uint32_t n_ubatch_max = n_max;
            for (uint32_t n = 1; n <= c.n_ubatch; ++n) {
                const uint32_t n_offload = c.cells.n_offload(p0, p0 + n);
                // once something is offloaded p0 + n is beyond the buffer, and stays there
                if (p0 >= c.cells.n_cells()) {
                    ASSERT_GE(n_offload, n_max);
                }
                n_ubatch_max = std::max(n_ubatch_max, n_offload);
            }
            n_max = n_ubatch_max;
        }
    }
}
