#include "rotation.h"

#include <cassert>

namespace infllm {

rotation rotation::operator*(const rotation & other) const {
    assert(n_rot() == other.n_rot() && neox == other.neox && rot0 == other.rot0);

    rotation res = *this;
    for (uint32_t i = 0; i < n_rot(); i += 2) {
        res.cs[i    ] = cs[i]*other.cs[i    ] - cs[i + 1]*other.cs[i + 1];
        res.cs[i + 1] = cs[i]*other.cs[i + 1] + cs[i + 1]*other.cs[i    ];
    }

    return res;
}

rotation rotation::inverse() const {
    rotation res = *this;
    for (uint32_t i = 1; i < n_rot(); i += 2) {
        res.cs[i] = -cs[i];
    }

    return res;
}

void rotation::apply(float * x, uint32_t n_vec, uint32_t n_embd_head) const {
    const uint32_t n_pair = n_rot()/2;

    // distance between the two dimensions of a pair, and from one pair to the next
    const uint32_t d_pair = neox ? n_pair : 1;
    const uint32_t d_next = neox ? 1 : 2;

    for (uint32_t v = 0; v < n_vec; ++v) {
        float * x0 = x + std::size_t(v)*n_embd_head + rot0;
        float * x1 = x0 + d_pair;
        for (uint32_t i = 0; i < n_pair; ++i) {
            const float c = cs[2*i];
            const float s = cs[2*i + 1];
            const float a = x0[i*d_next];
            const float b = x1[i*d_next];
            x0[i*d_next] = a*c - b*s;
            x1[i*d_next] = a*s + b*c;
        }
    }
}

rotation block_rotations::by(int64_t n_block) const {
    const uint64_t n   = n_block < 0 ? -n_block : n_block;
    const rotation res = low[n%N_LOW]*high[n/N_LOW];

    return n_block < 0 ? res.inverse() : res;
}

} // namespace infllm
