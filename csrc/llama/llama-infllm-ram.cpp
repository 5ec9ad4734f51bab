#include "llama-infllm-impl.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(_WIN32)
#include <windows.h>
#elif defined(__APPLE__)
#include <mach/mach.h>
#include <unistd.h>
#endif

static constexpr uint64_t UNKNOWN = std::numeric_limits<uint64_t>::max();

#if defined(__linux__)

// the number after a key in a file of lines "key number", or alone in the file without a key
static uint64_t read_number(const char * path, const char * key) {
    FILE * file = std::fopen(path, "r");
    if (!file) {
        return UNKNOWN;
    }
    uint64_t res = UNKNOWN;
    char     line[256];
    while (res == UNKNOWN && std::fgets(line, sizeof(line), file)) {
        const size_t n = std::strlen(key);
        unsigned long long value;
        if (std::strncmp(line, key, n) == 0 && std::sscanf(line + n, "%llu", &value) == 1) {
            res = value;
        }
    }
    std::fclose(file);
    return res;
}

// what a control group leaves; the page cache in it can be taken back
static uint64_t cgroup_free() {
    const std::string dir = "/sys/fs/cgroup/";
    const uint64_t    max = read_number((dir + "memory.max").c_str(), "");
    const uint64_t    cur = read_number((dir + "memory.current").c_str(), "");
    if (max == UNKNOWN || cur == UNKNOWN) {
        return UNKNOWN;
    }
    const uint64_t cache = read_number((dir + "memory.stat").c_str(), "inactive_file ");
    const uint64_t used  = cur - (cache == UNKNOWN ? 0 : std::min(cache, cur));
    return used < max ? max - used : 0;
}

static uint64_t system_free() {
    const uint64_t kib = read_number("/proc/meminfo", "MemAvailable:");
    return std::min(kib == UNKNOWN ? UNKNOWN : 1024*kib, cgroup_free());
}

#elif defined(_WIN32)

static uint64_t system_free() {
    MEMORYSTATUSEX status = {};
    status.dwLength = sizeof(status);
    return GlobalMemoryStatusEx(&status) ? uint64_t(status.ullAvailPhys) : UNKNOWN;
}

#elif defined(__APPLE__)

static uint64_t system_free() {
    vm_statistics64_data_t stats;
    mach_msg_type_number_t n = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&stats), &n) != KERN_SUCCESS) {
        return UNKNOWN;
    }
    return (uint64_t(stats.free_count) + stats.inactive_count)*uint64_t(sysconf(_SC_PAGESIZE));
}

#else

static uint64_t system_free() {
    return UNKNOWN;
}

#endif

uint64_t llama_infllm_ram_free() {
    const uint64_t n = system_free();
    return n == UNKNOWN ? n : std::min<uint64_t>(n, PTRDIFF_MAX); // a process of 32 bits reaches no more
}

bool llama_infllm_ram_has(uint64_t size) {
    if (size <= llama_infllm_ram_free()) {
        return true;
    }
#if defined(__GLIBC__)
    malloc_trim(0); // what was freed may still be the allocator's
#endif
    return size <= llama_infllm_ram_free();
}
