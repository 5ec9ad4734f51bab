#pragma once

// What a fuzz target is: LLVMFuzzerTestOneInput(), which ends the process where a property does not hold, as the sanitizers do where
// memory is misused; inputs to begin with; and what makes a changed input go further than its checksum. driver.cpp runs it.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define FUZZ_CHECK(x) \
    do { if (!(x)) { std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x); std::abort(); } } while (0)

namespace fuzz {

using bytes = std::vector<uint8_t>;

// of the target: inputs as programs make them
std::vector<bytes> seeds();

// of the target: make checksums right
void repair(bytes & input);

// the bytes of an input as values, zeros after its end
class reader {
public:
    reader(const uint8_t * data, size_t size) : at(data), n_left(size) {}

    template <typename T>
    T get() {
        T res {};
        const size_t n = std::min(sizeof(T), n_left);
        std::memcpy(&res, at, n);
        at     += n;
        n_left -= n;
        return res;
    }

    // 0 .. n - 1
    uint32_t below(uint32_t n) { return get<uint16_t>()%n; }

    bool at_end() const { return n_left == 0; }

private:
    const uint8_t * at;
    size_t          n_left;
};

} // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);
