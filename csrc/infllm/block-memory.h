#pragma once

#include <cstddef>
#include <cstdint>

namespace infllm {

// A tier of the block store: memory for blocks of one size. Threads of several contexts can give blocks back at a time.
class block_memory {
public:
    virtual ~block_memory() = default;

    // up to n blocks, their bytes undefined: how many there were. No more than n_more are going to be taken after them, or are not
    // known to be; what throws has taken none
    virtual size_t take(size_t n, size_t n_more, uint8_t ** blocks) = 0;

    virtual void give(uint8_t * block) = 0;
};

} // namespace infllm
