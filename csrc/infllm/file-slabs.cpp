#include "file-slabs.h"

#include <algorithm>
#include <new>
#include <stdexcept>

namespace infllm {

static constexpr size_t SLAB = 64 << 20; // bytes, but a block at least

static size_t slab_bytes(size_t block_bytes) {
    const size_t n_block = std::max<size_t>(1, SLAB/block_bytes);
    return (n_block*block_bytes + temp_file::PAGE - 1)/temp_file::PAGE*temp_file::PAGE;
}

static temp_file file_in(const std::string & folder) try {
    return temp_file(folder);
} catch (const std::runtime_error & err) {
    throw std::runtime_error("store_path = \"" + folder + "\" has no place for a file: " + err.what());
}

file_slabs::file_slabs(const std::string & folder, size_t block_bytes) :
    n_bytes(block_bytes), n_slab(slab_bytes(block_bytes)), file(file_in(folder)) {
}

uint64_t file_slabs::room() const {
    return file.disk_free() + n_free()*uint64_t(n_bytes);
}

size_t file_slabs::n_free() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return blocks.size();
}

size_t file_slabs::take(size_t n, size_t, uint8_t ** res) {
    const std::lock_guard<std::mutex> lock(mutex);
    size_t i = 0;
    while (i < n && (!blocks.empty() || grow())) {
        res[i++] = blocks.back();
        blocks.pop_back();
    }
    return i;
}

bool file_slabs::grow() {
    uint8_t * data = nullptr;
    try {
        blocks.reserve((n_slabs + 1)*(n_slab/n_bytes)); // so that give() cannot fail
        data = file.grow(n_slab);
    } catch (const std::bad_alloc &) {
        return false;
    }
    if (!data) {
        return false;
    }
    n_slabs++;
    for (size_t i = n_slab/n_bytes; i-- > 0;) {
        blocks.push_back(data + i*n_bytes);
    }
    return true;
}

void file_slabs::give(uint8_t * block) {
    const std::lock_guard<std::mutex> lock(mutex);
    blocks.push_back(block);
}

} // namespace infllm
