#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infllm {

// The rotation that RoPE applies for one distance, as n_rot/2 pairs (cos, sin). Where the values come from is the
// caller's business (llama-infllm-rope.h takes them from ggml_rope_ext); rotations here are composed and applied.
struct rotation {
    bool neox = false;      // dimensions (i, i + n_rot/2) are rotated together, else (2i, 2i + 1)
    uint32_t rot0 = 0;      // the first dimension that is rotated
    std::vector<float> cs;  // [n_rot/2][2]

    uint32_t n_rot() const { return static_cast<uint32_t>(cs.size()); }
    bool     empty() const { return cs.empty(); } // the layer has no RoPE: nothing to rotate

    // the rotation by the sum of both distances
    rotation operator*(const rotation & other) const;

    // the rotation by the opposite distance
    rotation inverse() const;

    // x [n_vec][n_embd_head]: rotates n_rot dimensions of each vector from rot0 on, in place
    void apply(float * x, uint32_t n_vec, uint32_t n_embd_head) const;

    // the same for IEEE half floats; false, with nothing done, where the processor has no instructions for them or n_rot is
    // not a multiple of 16
    bool apply_f16(uint16_t * x, uint32_t n_vec, uint32_t n_embd_head) const;
};

// Rotations by any number of blocks, in either direction. Two small tables are composed, so that memory does not grow with the
// context.
struct block_rotations {
    static constexpr uint32_t N_LOW = 4096;

    std::vector<rotation> low;  // by i blocks
    std::vector<rotation> high; // by i*N_LOW blocks

    // entries of the tables for distances of at most n_block blocks
    static uint32_t n_low (uint32_t n_block) { return n_block < N_LOW ? n_block + 1 : N_LOW; }
    static uint32_t n_high(uint32_t n_block) { return n_block/N_LOW + 1; }

    rotation by(int64_t n_block) const;
};

} // namespace infllm
