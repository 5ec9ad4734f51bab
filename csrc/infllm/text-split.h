#pragma once

#include <algorithm>
#include <cstdint>

namespace infllm {

// Where the ubatches of a text end: a function of positions and of the end of the text alone, so that a text is computed in the
// same way wherever reading it began or was interrupted. Ubatches end at multiples of n_ubatch. A question often ends a text: its
// last tokens are a ubatch of their own, so that blocks are selected for them alone. What is left before them ends at a multiple
// of GRAIN: of two texts that differ in the question the same ubatches come before it, mostly.
struct text_split {
    static constexpr uint32_t GRAIN = 64;

    uint32_t n_ubatch;
    uint32_t n_end; // tokens at the end of a text that are computed by themselves, at most n_ubatch; 0: none

    // the end of the ubatch that begins at p0, of a text that ends at p1 > p0
    uint32_t next(uint32_t p0, uint32_t p1) const {
        const uint32_t grid = (p0/n_ubatch + 1)*n_ubatch;
        const uint32_t end  = p1 - std::min({ p1, n_end, n_ubatch });
        if (p0 >= end) {
            return p1;
        }
        const uint32_t left = n_end > 0 ? end/GRAIN*GRAIN : end;
        return grid < end ? grid : left > p0 ? left : end;
    }

    // the end of a batch of at most n_batch >= n_ubatch tokens, which is split as the text is although it is a text by itself: the
    // last ubatch of the text is a batch of its own, and so are others that do not end at a multiple of n_ubatch
    uint32_t batch_end(uint32_t p0, uint32_t p1, uint32_t n_batch) const {
        uint32_t res = next(p0, p1);
        while (res < p1 && res%n_ubatch == 0) {
            const uint32_t end = next(res, p1);
            if (end == p1 || end - p0 > n_batch) {
                break;
            }
            res = end;
        }
        return res;
    }
};

} // namespace infllm
