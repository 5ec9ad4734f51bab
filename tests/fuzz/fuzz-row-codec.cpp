// Rows of K and V of every type, with bytes as a damaged file or a broken model may have them: they are read as numbers, and stored
// again, without an undefined conversion; a finite row comes back close to what it was.

#include "fuzz.h"

#include "row-codec.h"

#include <cmath>

using namespace infllm;
using fuzz::bytes;

static constexpr uint64_t N = 512; // values at most

std::vector<bytes> fuzz::seeds() {
    std::vector<bytes> res;
    for (uint8_t kind = 0; kind < 32; ++kind) {
        bytes input = { kind, 0, uint8_t(kind/8), 0 };
        for (uint64_t i = 0; i < N; ++i) {
            const float    x = kind > 28 && i%50 == kind ? std::sin(float(i))*INFINITY : std::sin(float(i))*float(1 + kind);
            const uint16_t h = kind > 24 && i%40 == kind ? 0x7e00 : half_from_float(x); // not a number
            input.push_back(uint8_t(h));
            input.push_back(uint8_t(h >> 8));
        }
        res.push_back(input);
    }
    return res;
}

void fuzz::repair(bytes &) {
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz::reader in(data, size);
    const auto     type  = kv_type(in.below(KV_IQ4_NL + 1));
    const uint32_t n_row = 32*(1 + in.below(8));

    bytes rows(2*N);
    for (auto & b : rows) {
        b = in.get<uint8_t>();
    }
    const uint64_t n = N/n_row*n_row;
    bytes decoded(2*n);
    decode_rows(single_thread(), type, n_row, rows.data(), n, decoded.data());

    for (const kv_type to : { KV_Q8_0, KV_Q4_0 }) {
        bytes coded(kv_row_bytes(to, n));
        encode_rows(single_thread(), to, n_row, rows.data(), n, coded.data());
        decode_rows(single_thread(), to, n_row, coded.data(), n, decoded.data());

        const uint32_t n_group = codec_group(n_row);
        for (uint64_t i = 0; i < n; i += n_group) {
            float max = 0.0f;
            for (uint32_t j = 0; j < n_group; ++j) {
                const float x = std::fabs(kv_load(KV_F16, rows.data(), uint32_t(i) + j));
                max = x > max || std::isnan(x) ? x : max;
            }
            for (uint32_t j = 0; max < 1000.0f && j < n_group; ++j) { // scales of larger ones may be infinite
                const float x = kv_load(KV_F16, rows.data(),    uint32_t(i) + j);
                const float y = kv_load(KV_F16, decoded.data(), uint32_t(i) + j);
                // all errors of a group may add up, each at most a step of its rotated values: an 8th, or a 127th; tiny scales are
                // multiples of 2^-24
                FUZZ_CHECK(std::fabs(x - y) <= max*float(n_group)/(to == KV_Q8_0 ? 127.0f : 7.0f) + 1e-4f);
            }
        }
    }
    return 0;
}
