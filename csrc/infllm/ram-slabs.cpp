#include "ram-slabs.h"

#include "file.h"

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <new>
#include <system_error>
#include <utility>

#ifndef _WIN32
#include <sys/mman.h>
#endif

// what is not a block in use must not be touched, which the sanitizer would not know
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define INFLLM_ASAN
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(INFLLM_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(ptr, size)   ((void) (ptr), (void) (size))
#define ASAN_UNPOISON_MEMORY_REGION(ptr, size) ((void) (ptr), (void) (size))
#endif

namespace infllm {

static constexpr size_t ALIGN       = 16;        // of a block, as malloc() does
static constexpr size_t GROWTH      = 4;         // a slab is at most this part of what is used, and so is what is made ahead
static constexpr size_t AHEAD_BYTES = 512 << 20; // that are made ahead, at most

//
// memory of the system: not by malloc(), which may keep what is given back
//

#ifndef _WIN32

static constexpr size_t PAGE      = 1 << 16; // no system has larger ones, but for huge ones
static constexpr size_t HUGE_PAGE = 2 << 20;

static size_t whole_pages(size_t size) {
    return (size + PAGE - 1)/PAGE*PAGE;
}

static void * map_memory(size_t size) {
    const size_t n_map = whole_pages(size);
    const size_t extra = size >= HUGE_PAGE ? HUGE_PAGE : 0; // to begin where a huge page does

    void * map = ::mmap(nullptr, n_map + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        return nullptr;
    }
    auto * begin = static_cast<uint8_t *>(map);
    if (extra > 0) {
        const size_t skip = (extra - reinterpret_cast<uintptr_t>(begin)%extra)%extra;
        if (skip > 0) {
            ::munmap(begin, skip);
        }
        begin += skip;
        ::munmap(begin + n_map, extra - skip);
#ifdef MADV_HUGEPAGE
        ::madvise(begin, n_map, MADV_HUGEPAGE);
#endif
    }
    return begin;
}

static void unmap_memory(void * data, size_t size) {
    ::munmap(data, whole_pages(size));
}

#else

static void * map_memory(size_t size)             { return std::malloc(size); }
static void   unmap_memory(void * data, size_t)   { std::free(data); }

#endif

ram_slabs::source ram_slabs::system_memory() {
    source res;
    res.alloc = map_memory;
    res.free  = unmap_memory;
    return res;
}

//
// slabs
//

ram_slabs::ram_slabs(size_t block_bytes, source from) :
    n_bytes(block_bytes), n_stride((std::max<size_t>(1, block_bytes) + ALIGN - 1)/ALIGN*ALIGN), from(std::move(from)) {
}

ram_slabs::~ram_slabs() {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        stop = true;
    }
    end_worker();
    while (!slabs.empty()) {
        release(slabs.begin());
    }
}

size_t ram_slabs::next_slab() const {
    const size_t n_min = std::max<size_t>(1, from.slab_min/n_stride);
    const size_t n_max = std::max<size_t>(1, from.slab_max/n_stride);
    return std::min(std::max(n_taken_all/GROWTH, n_min), n_max);
}

size_t ram_slabs::room() const {
    if (from.bytes_max == 0) {
        return std::numeric_limits<size_t>::max();
    }
    return from.bytes_max > n_bytes_all ? (from.bytes_max - n_bytes_all)/n_stride : 0;
}

void * ram_slabs::alloc(size_t n) const {
    try {
        return from.alloc(n*n_stride);
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

bool ram_slabs::add(void * data, size_t n) {
    if (!data) {
        return false;
    }
    auto * begin = static_cast<uint8_t *>(data);
    try {
        slab s = { begin, n, n, {} };
        s.given.reserve(n); // so that give() cannot fail
        slabs.emplace(begin, std::move(s));
    } catch (const std::bad_alloc &) {
        from.free(data, n*n_stride);
        return false;
    }
    ASAN_POISON_MEMORY_REGION(begin, n*n_stride);
    n_free_all  += n;
    n_bytes_all += n*n_stride;
    n_idle++;
    ahead_failed = false;
    return true;
}

void ram_slabs::release(std::map<uint8_t *, slab>::iterator it) {
    const auto & s = it->second;
    ASAN_UNPOISON_MEMORY_REGION(s.data, s.n*n_stride);
    from.free(s.data, s.n*n_stride);
    n_free_all  -= s.n_free();
    n_bytes_all -= s.n*n_stride;
    n_idle      -= s.n_taken() == 0;
    ahead_failed = false;
    error        = nullptr;
    if (last == &s) {
        last = nullptr;
    }
    slabs.erase(it);
}

// a slab of no more than n_max blocks, and a smaller one where memory is short
bool ram_slabs::grow(size_t n_max) {
    limited = room() == 0;
    for (size_t n = std::min({ next_slab(), n_max, room() }); n > 0; n /= 2) {
        if (add(alloc(n), n)) {
            return true;
        }
    }
    return false;
}

// The fullest one with a free block, so that others can become wholly free; there are few slabs, and mostly it is the last one.
ram_slabs::slab * ram_slabs::find() {
    if (n_free_all == 0) {
        return nullptr;
    }
    if (!last || last->n_free() == 0) {
        last = nullptr;
        for (auto & [begin, s] : slabs) {
            if (s.n_free() > 0 && (!last || s.n_taken() > last->n_taken())) {
                last = &s;
            }
        }
    }
    return last;
}

size_t ram_slabs::take(size_t n, size_t n_more, uint8_t ** blocks) {
    std::unique_lock<std::mutex> lock(mutex);

    n_left = n_more;
    if (n > 0) {
        n_batch = n;
    }

    const size_t n_all = n_more + std::min(n, std::numeric_limits<size_t>::max() - n_more);
    size_t i = 0;
    try {
        while (i < n) {
            slab * s = find();
            if (!s) {
                if (is_working()) {
                    awaited = true;
                    changed.wait(lock, [&] { return n_free_all > 0 || !working; });
                    awaited = false;
                } else if (error) {
                    std::rethrow_exception(std::exchange(error, nullptr));
                } else if (!grow(n_all - i)) {
                    break;
                }
                continue;
            }
            n_idle -= s->n_taken() == 0;
            size_t pos;
            if (s->given.empty()) {
                pos = s->n - s->n_fresh--;
            } else {
                pos = s->given.back();
                s->given.pop_back();
            }
            n_free_all--;
            n_taken_all++;
            blocks[i] = s->data + pos*n_stride;
            ASAN_UNPOISON_MEMORY_REGION(blocks[i], n_bytes);
            i++;
        }
    } catch (...) {
        while (i > 0) {
            put_back(blocks[--i]);
        }
        throw;
    }
    start_ahead();
    return i;
}

void ram_slabs::give(uint8_t * block) {
    const std::lock_guard<std::mutex> lock(mutex);
    put_back(block);
}

void ram_slabs::put_back(uint8_t * block) {
    const auto it = std::prev(slabs.upper_bound(block));
    auto &     s  = it->second;
    assert(block < s.data + s.n*n_stride && s.n_taken() > 0);

    ASAN_POISON_MEMORY_REGION(block, n_stride);
    s.given.push_back(static_cast<uint32_t>((block - s.data)/n_stride));
    n_free_all++;
    n_taken_all--;
    if (s.n_taken() > 0) {
        return;
    }
    n_idle++;
    if (n_taken_all == 0) {
        while (!slabs.empty()) {
            release(slabs.begin());
        }
    } else if (n_idle > 1) {
        release(it);
    }
}

size_t ram_slabs::n_taken() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return n_taken_all;
}

size_t ram_slabs::n_backed() const {
    const std::lock_guard<std::mutex> lock(mutex);
    size_t res = n_free_all;
    if (!from.ahead) {
        for (const auto & [begin, s] : slabs) {
            res -= s.n_fresh;
        }
    }
    return res;
}

uint64_t ram_slabs::bytes() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return n_bytes_all;
}

bool ram_slabs::is_limited() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return limited;
}

//
// slabs made ahead
//

size_t ram_slabs::n_ahead() const {
    const size_t n = std::min({ n_batch, n_taken_all/GROWTH, AHEAD_BYTES/n_stride });
    return std::min(std::max(n, next_slab()), n_left);
}

bool ram_slabs::is_working() {
    if (working && worker_process != process_id()) {
        end_worker();
    }
    return working;
}

void ram_slabs::start_ahead() {
    if (!from.ahead || ahead_failed || error || n_free_all >= n_ahead() || is_working()) {
        return;
    }
    end_worker(); // it has come to its end
    try {
        worker_process = process_id();
        working        = true;
        worker = std::make_unique<std::thread>([this] { work(); });
    } catch (const std::exception &) { // without one it is slower
        working      = false;
        ahead_failed = true;
    }
}

void ram_slabs::work() {
    std::unique_lock<std::mutex> lock(mutex);

    while (!stop && n_free_all < n_ahead()) {
        const size_t n = std::min({ next_slab(), n_left - n_free_all, room() });
        if (n == 0) {
            break;
        }
        lock.unlock();
        void *             data = nullptr;
        std::exception_ptr thrown;
        try {
            data = alloc(n);
        } catch (...) {
            thrown = std::current_exception();
        }
        lock.lock();
        if (data && n_taken_all == 0 && !awaited) { // nobody is left who wants it
            from.free(data, n*n_stride);
            break;
        }
        if (!add(data, n)) {
            ahead_failed = true;
            error        = thrown;
            break;
        }
        changed.notify_all();
    }
    working = false;
    changed.notify_all();
}

void ram_slabs::end_worker() {
    if (worker && worker_process == process_id()) {
        worker->join();
    } else {
        (void) worker.release(); // of the process that this one was forked from
    }
    worker.reset();
    working = false;
}

} // namespace infllm
