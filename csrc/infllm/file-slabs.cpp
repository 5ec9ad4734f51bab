#include "file-slabs.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#ifndef _WIN32

#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace infllm {

static constexpr size_t SLAB = 64 << 20; // bytes, but a block at least
static constexpr size_t PAGE = 1 << 16;  // no system has larger ones

static size_t slab_bytes(size_t block_bytes) {
    const size_t n_block = std::max<size_t>(1, SLAB/block_bytes);
    return (n_block*block_bytes + PAGE - 1)/PAGE*PAGE;
}

file_slabs::file_slabs(const std::string & folder, size_t block_bytes) : n_bytes(block_bytes), n_slab(slab_bytes(block_bytes)) {
    std::string path = folder + "/infllm-store-XXXXXX";
    fd = ::mkstemp(&path[0]);
    if (fd < 0) {
        throw std::runtime_error("store_path = \"" + folder + "\" has no place for a file: " + std::strerror(errno));
    }
    ::unlink(path.c_str());
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

file_slabs::~file_slabs() {
    for (const auto & s : slabs) {
        ::munmap(s.data, s.size);
    }
    ::close(fd);
}

uint64_t file_slabs::room() const {
    const std::lock_guard<std::mutex> lock(mutex);
    struct statvfs st;
    const uint64_t disk = ::fstatvfs(fd, &st) == 0 ? uint64_t(st.f_bavail)*st.f_frsize : 0;
    return disk + blocks.size()*uint64_t(n_bytes);
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
    try {
        slabs.reserve(slabs.size() + 1);
        blocks.reserve((slabs.size() + 1)*(n_slab/n_bytes)); // so that give() cannot fail
    } catch (const std::bad_alloc &) {
        return false;
    }

    const off_t offset = off_t(slabs.size()*n_slab);
    if (::posix_fallocate(fd, offset, off_t(n_slab)) != 0) {
        return false;
    }
    void * data = ::mmap(nullptr, n_slab, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    if (data == MAP_FAILED) {
        return false;
    }
    slabs.push_back({ static_cast<uint8_t *>(data), n_slab });
    for (size_t i = n_slab/n_bytes; i-- > 0;) {
        blocks.push_back(slabs.back().data + i*n_bytes);
    }
    return true;
}

void file_slabs::give(uint8_t * block) {
    const std::lock_guard<std::mutex> lock(mutex);
    blocks.push_back(block);
}

} // namespace infllm

#else

namespace infllm {

file_slabs::file_slabs(const std::string & folder, size_t block_bytes) : n_bytes(block_bytes), n_slab(0) {
    throw std::runtime_error("store_path = \"" + folder + "\": files are not supported on this system yet");
}

file_slabs::~file_slabs() {}

uint64_t file_slabs::room() const                     { return 0; }
size_t   file_slabs::take(size_t, size_t, uint8_t **) { return 0; }
void     file_slabs::give(uint8_t *)                  {}

} // namespace infllm

#endif
