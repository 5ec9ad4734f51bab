#pragma once

// Session files as inputs: in a file, and with checksums that are right.

#include "fuzz.h"

#include "checksum.h"
#include "session-file.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>

namespace fuzz {

// a file of the process, gone with it
class temp_file {
public:
    temp_file() : path(std::filesystem::temp_directory_path()/("infllm-fuzz-" + std::to_string(getpid()))) {}
    ~temp_file() { std::filesystem::remove(path); }

    std::string name() const { return path.string(); }

    void write(const uint8_t * data, size_t size) const {
        std::filesystem::remove(path); // what has the old one mapped keeps it
        std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char *>(data), std::streamsize(size));
    }

    bytes read() const {
        std::ifstream in(path, std::ios::binary);
        return { std::istreambuf_iterator<char>(in), {} };
    }

private:
    const std::filesystem::path path;
};

// where the numbers of a header are (infllm::session_file::header)
constexpr size_t AT_BLOCKS   = 40;
constexpr size_t AT_TOKENS   = 32;
constexpr size_t AT_STATE    = 48;
constexpr size_t AT_REST     = 64; // offset and size
constexpr size_t AT_REST_SUM = 80;
constexpr size_t AT_SUM      = 88;

inline uint64_t number_at(const bytes & input, size_t at) {
    uint64_t res = 0;
    std::memcpy(&res, input.data() + at, sizeof(res));
    return res;
}

inline void set_number(bytes & input, size_t at, uint64_t value) {
    std::memcpy(input.data() + at, &value, sizeof(value));
}

// calls f(offset, size) with the rest of a header that is in the file
template <typename F>
void with_rest(const bytes & input, size_t header, F f) {
    const uint64_t offset = number_at(input, header + AT_REST);
    const uint64_t size   = number_at(input, header + AT_REST + 8);
    if (offset <= input.size() && size <= input.size() - offset) {
        f(offset, size);
    }
}

inline void repair_session(bytes & input) {
    for (const size_t header : { size_t(0), size_t(infllm::session_file::PAGE) }) {
        if (input.size() < header + infllm::session_file::PAGE || std::memcmp(&input[header], "infllms", 7) != 0) {
            continue;
        }
        with_rest(input, header, [&](uint64_t offset, uint64_t size) {
            set_number(input, header + AT_REST_SUM, infllm::checksum::of(&input[offset], size));
        });
        set_number(input, header + AT_SUM, infllm::checksum::of(&input[header], AT_SUM));
    }
}

} // namespace fuzz
