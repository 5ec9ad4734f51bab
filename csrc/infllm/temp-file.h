#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace infllm {

// A file that grows, and is read and written through its maps. It is gone with the process, however that ends. See file-posix.cpp and
// file-windows.cpp.
class temp_file {
public:
    static constexpr size_t PAGE = 1 << 16; // maps begin at a multiple of it on every system

    explicit temp_file(const std::string & folder); // throws std::runtime_error: why it cannot be made
    ~temp_file();

    temp_file(const temp_file &)             = delete;
    temp_file & operator=(const temp_file &) = delete;

    // a map of the next bytes, a multiple of PAGE, whose room on the disk is taken; nullptr if there is none
    uint8_t * grow(size_t size);

    uint64_t disk_free() const; // bytes

private:
    struct map {
        uint8_t * data;
        size_t    size;
    };

#ifdef _WIN32
    void * handle = nullptr;
    const std::string folder;
#else
    int fd = -1;
#endif
    uint64_t         n_bytes = 0;
    std::vector<map> maps;
};

} // namespace infllm
