#pragma once

#include "block-memory.h"
#include "temp-file.h"

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace infllm {

// Memory in a temporary file, for blocks of one size: the system writes them in the background, and keeps those in RAM that were used
// last. Room on the disk is taken before it is used, so that a full disk is found when memory is taken. Throws std::runtime_error where
// it cannot be made.
class file_slabs : public block_memory {
public:
    file_slabs(const std::string & folder, size_t block_bytes);

    size_t take(size_t n, size_t n_more, uint8_t ** res) override;
    void   give(uint8_t * block) override;

    uint64_t room()   const; // bytes that can still be taken
    size_t   n_free() const; // blocks that can be taken before the file grows

private:
    const size_t n_bytes;
    const size_t n_slab; // bytes of a slab, whole pages

    mutable std::mutex     mutex;
    temp_file              file;
    size_t                 n_slabs = 0;
    std::vector<uint8_t *> blocks; // that are free

    bool grow(); // false: the disk is full
};

} // namespace infllm
