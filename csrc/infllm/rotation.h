#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infllm {

// The rotation that RoPE applies for one distance, as n_rot/2 pairs (cos, sin). Where the values come from is the
// caller's business (llama-infllm-rope.h takes them from ggml_rope_ext); rotations here are composed and applied.
struct rotation {
    bool neox = false;      // dimensions (i, i + n_rot/2) are rotated together, else (2i, 2i + 1)
    std::vector<float> cs;  // [n_rot/2][2]

    uint32_t n_rot() const { return static_cast<uint32_t>(cs.size()); }
    bool     empty() const { return cs.empty(); } // the layer has no RoPE: nothing to rotate

    // the rotation by the sum of both distances
    rotation operator*(const rotation & other) const;

    // the rotation by the opposite distance
    rotation inverse() const;

    // x [n_vec][n_embd_head]: rotates the first n_rot dimensions of each vector, in place
    void apply(float * x, uint32_t n_vec, uint32_t n_embd_head) const;

    // the same for IEEE half floats; false, with nothing done, where the processor has no instructions for them or n_rot is
    // not a multiple of 16
    bool apply_f16(uint16_t * x, uint32_t n_vec, uint32_t n_embd_head) const;
};

} // namespace infllm
