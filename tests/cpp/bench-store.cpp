// What the block store costs: time to store and to clear blocks, page faults, and memory beside the bytes of the blocks. Prints a line of
// JSON; nothing is asserted.
//   bench-store plain  [n_block] [block_bytes] [n_batch] [n_round]
//     medians of the rounds, in one store
//   bench-store pinned [n_block] [block_bytes] [n_batch] [ms]
//     memory that takes long to be had, as that which devices read: how long storing waits for it, where a batch takes ms to
//     compute, with slabs made ahead and without
//
// cmake --build build/dev --target bench-store; build/dev/bin/bench-store plain

#include "block-store.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

using infllm::block_store;
using clock_type = std::chrono::steady_clock;

static double ms_since(clock_type::time_point begin) {
    return std::chrono::duration<double, std::milli>(clock_type::now() - begin).count();
}

static long n_faults() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
}

static double resident_mib() {
    std::ifstream file("/proc/self/smaps_rollup");
    std::string   word;
    while (file >> word) {
        double kib = 0;
        if (word == "Rss:" && file >> kib) {
            return kib/1024;
        }
    }
    return 0;
}

// n blocks, reserved by batches; ms that reserve() took, in all and at most
static std::vector<int32_t> fill(block_store & store, size_t n, size_t n_batch, double ms_compute, double & ms_sum, double & ms_max) {
    std::vector<int32_t> ids;
    ids.reserve(n);
    while (ids.size() < n) {
        const size_t n_new = std::min(n_batch, n - ids.size());
        const auto   begin = clock_type::now();
        if (!store.reserve(n_new)) {
            std::fprintf(stderr, "out of memory after %zu blocks\n", ids.size());
            std::exit(1);
        }
        const double ms = ms_since(begin);
        ms_sum += ms;
        ms_max  = std::max(ms_max, ms);
        for (size_t i = 0; i < n_new; ++i) {
            ids.push_back(store.alloc());
            std::memset(store.data(ids.back()), 1, store.block_bytes());
        }
        if (ms_compute > 0) {
            std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(ms_compute));
        }
    }
    return ids;
}

static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size()/2];
}

static void bench_plain(size_t n, size_t block_bytes, size_t n_batch, size_t n_round) {
    block_store store(block_bytes, 0);
    const double before = resident_mib();
    const long   faults = n_faults();
    double       stored = 0;
    std::vector<double> ms_store, ms_reserve, ms_clear;
    for (size_t r = 0; r < n_round; ++r) {
        double ms_sum = 0;
        double ms_max = 0;

        auto       begin = clock_type::now();
        const auto ids   = fill(store, n, n_batch, 0, ms_sum, ms_max);
        ms_store  .push_back(ms_since(begin));
        ms_reserve.push_back(ms_sum);
        stored = resident_mib();

        begin = clock_type::now();
        for (const int32_t id : ids) {
            store.unref(id);
        }
        ms_clear.push_back(ms_since(begin));
    }
    std::printf("{\"blocks\": %zu, \"block_bytes\": %zu, \"batch\": %zu, \"ms_store\": %.1f, \"ms_reserve\": %.1f, \"ms_clear\": %.1f, "
            "\"faults\": %.0f, \"mib_blocks\": %.1f, \"mib_stored\": %.1f, \"mib_cleared\": %.1f}\n",
            n, block_bytes, n_batch, median(ms_store), median(ms_reserve), median(ms_clear),
            double(n_faults() - faults)/n_round, n*block_bytes/1048576.0, stored - before, resident_mib() - before);
}

static void bench_pinned(size_t n, size_t block_bytes, size_t n_batch, double ms_compute) {
    for (const bool ahead : { false, true }) {
        infllm::ram_slabs::source slow;
        slow.alloc = [](size_t size) {
            void * res = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
            return res == MAP_FAILED ? nullptr : res;
        };
        slow.free  = [](void * data, size_t size) { munmap(data, size); };
        slow.ahead = ahead;

        block_store store(block_bytes, 0);
        store.set_pinned(slow);
        double ms_sum = 0;
        double ms_max = 0;
        fill(store, n, n_batch, ms_compute, ms_sum, ms_max);
        std::printf("{\"blocks\": %zu, \"block_bytes\": %zu, \"batch\": %zu, \"ahead\": %s, \"ms_reserve\": %.1f, \"ms_reserve_max\": %.1f, "
                "\"mib_beside\": %.1f}\n", n, block_bytes, n_batch, ahead ? "true" : "false", ms_sum, ms_max,
                (store.get_pinned()->bytes() - n*block_bytes)/1048576.0);
    }
}

int main(int argc, char ** argv) {
    const auto arg = [&](int i, double value) { return argc > i ? std::atof(argv[i]) : value; };
    if (argc > 1 && std::string(argv[1]) == "plain") {
        bench_plain(size_t(arg(2, 100000)), size_t(arg(3, 16384)), size_t(arg(4, 16)), size_t(arg(5, 3)));
    } else if (argc > 1 && std::string(argv[1]) == "pinned") {
        bench_pinned(size_t(arg(2, 64)), size_t(arg(3, 16 << 20)), size_t(arg(4, 4)), arg(5, 100));
    } else {
        std::fprintf(stderr, "usage: %s plain|pinned [n_block] [block_bytes] [n_batch] [n_round|ms]\n", argv[0]);
        return 1;
    }
    return 0;
}
