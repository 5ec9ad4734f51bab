// Runs a target: with libFuzzer, which tells it what new code an input has reached, or by itself, with any compiler.

#include "fuzz.h"

#include <chrono>
#include <csignal>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

using fuzz::bytes;

static const std::vector<bytes> & get_seeds() {
    static const std::vector<bytes> res = fuzz::seeds();
    return res;
}

#ifdef INFLLM_LIBFUZZER

extern "C" size_t LLVMFuzzerMutate(uint8_t * data, size_t size, size_t max_size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t * data, size_t size, size_t max_size, unsigned int seed);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t * data, size_t size, size_t max_size, unsigned int seed) {
    std::minstd_rand rng(seed);
    const auto & seeds = get_seeds();
    if (size < 16 || rng()%64 == 0) {
        const auto & from = seeds[rng()%seeds.size()];
        size = std::min(from.size(), max_size);
        std::copy_n(from.begin(), size, data);
    }
    size = LLVMFuzzerMutate(data, size, max_size);
    if (rng()%4 != 0) {
        bytes input(data, data + size);
        fuzz::repair(input);
        size = std::min(input.size(), max_size);
        std::copy_n(input.begin(), size, data);
    }
    return size;
}

#else

static uint64_t now_running; // the seed of the input

static void tell_input() {
    std::fprintf(stderr, "the input is made again by --seed %llu --runs 1\n", static_cast<unsigned long long>(now_running));
}

extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

static void mutate(bytes & input, std::mt19937_64 & rng) {
    const auto any = [&](size_t n) { return size_t(rng()%n); };

    // numbers come in words of 4 and 8 bytes, and most of them at the begin
    const auto     place   = [&](size_t n) { return any(2) == 0 ? any(std::min<size_t>(n, 512)) : any(n); };
    const uint64_t few[]   = { 0, 1, 2, 4, 15, 16, 63, 64, 255, 4095, 4096, 8192, 65535, 1u << 24, INT32_MAX, 1u << 31, UINT32_MAX,
                               uint64_t(1) << 32, INT64_MAX, uint64_t(1) << 63, UINT64_MAX - 4095, UINT64_MAX };
    for (size_t n = 1 + any(4); n > 0 && !input.empty(); --n) {
        const size_t p = place(input.size());
        const size_t m = 1 + any(std::min<size_t>(64, input.size() - p));
        switch (any(8)) {
            case 0: input[p] ^= uint8_t(1u << any(8)); break;
            case 1: input[p] = uint8_t(rng()); break;
            case 2:
            case 3: {
                const size_t   width = any(2) == 0 ? 4 : 8;
                const uint64_t value = any(3) == 0 ? rng() >> any(64) : few[any(std::size(few))];
                const size_t   at    = p/4*4;
                std::memcpy(&input[at], &value, std::min(width, input.size() - at));
                break;
            }
            case 4: input[p] = uint8_t(input[p] + any(9) - 4); break;
            case 5: input.resize(p); break;
            case 6: input.erase(input.begin() + long(p), input.begin() + long(p + m)); break;
            default: {
                const size_t from = any(input.size() - m + 1);
                const bytes  part(input.begin() + long(from), input.begin() + long(from + m));
                any(2) == 0 ? void(std::copy(part.begin(), part.end(), input.begin() + long(p)))
                            : void(input.insert(input.begin() + long(p), part.begin(), part.end()));
            }
        }
    }
}

static void run(uint64_t seed) {
    now_running = seed;
    std::mt19937_64 rng(seed);
    const auto & seeds = get_seeds();
    bytes input = seeds[seed < seeds.size() ? seed : rng()%seeds.size()];
    if (seed >= seeds.size()) { // first as they are
        mutate(input, rng);
        if (rng()%4 != 0) {
            fuzz::repair(input);
        }
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
}

int main(int argc, char ** argv) {
    double   seconds = 1e9;
    uint64_t n_runs  = UINT64_MAX;
    uint64_t seed    = 0; // of the first input

    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg.rfind("--", 0) != 0) {
            std::ifstream in(arg, std::ios::binary);
            const bytes input { std::istreambuf_iterator<char>(in), {} };
            LLVMFuzzerTestOneInput(input.data(), input.size());
            n_runs = 0;
        } else if (i + 1 < argc && arg == "--seconds") {
            seconds = std::atof(argv[++i]);
        } else if (i + 1 < argc && arg == "--runs") {
            n_runs = std::strtoull(argv[++i], nullptr, 10);
        } else if (i + 1 < argc && arg == "--seed") {
            seed = std::strtoull(argv[++i], nullptr, 10);
        } else {
            std::fprintf(stderr, "usage: %s [--seconds N] [--runs N] [--seed N] [FILE ...]\n", argv[0]);
            return 2;
        }
    }

    if (__sanitizer_set_death_callback) {
        __sanitizer_set_death_callback(tell_input);
    } else {
        std::signal(SIGABRT, [](int) { tell_input(); });
    }
    const auto begin = std::chrono::steady_clock::now();
    uint64_t n = 0;
    for (; n < n_runs && std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() < seconds; ++n) {
        run(seed + n);
    }
    std::printf("%llu inputs\n", static_cast<unsigned long long>(n));
    return 0;
}

#endif
