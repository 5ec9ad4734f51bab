#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace infllm {

// What bytes have been, eight at a time, in pieces of any size but that only the last one may be no multiple of it: finds what a disk
// or a cable does to them, not what somebody wants them to be.
class checksum {
public:
    void add(const void * data, size_t size) {
        const auto * bytes = static_cast<const uint8_t *>(data);
        for (; size >= sizeof(uint64_t); bytes += sizeof(uint64_t), size -= sizeof(uint64_t)) {
            uint64_t word;
            std::memcpy(&word, bytes, sizeof(word));
            mix(word);
        }
        uint64_t rest = size;
        for (size_t i = 0; i < size; ++i) {
            rest = rest << 8 | bytes[i];
        }
        if (size > 0) {
            mix(rest);
        }
    }

    uint64_t get() const { return sum; }

    static uint64_t of(const void * data, size_t size) {
        checksum res;
        res.add(data, size);
        return res.get();
    }

private:
    void mix(uint64_t word) {
        sum = (sum ^ word)*0x9e3779b97f4a7c15u;
        sum ^= sum >> 32;
    }

    uint64_t sum = 1;
};

} // namespace infllm
