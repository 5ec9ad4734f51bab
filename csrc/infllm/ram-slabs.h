#pragma once

#include "block-memory.h"

#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace infllm {

// Memory of the machine for blocks of one size, in slabs, each with a list of its free blocks. Slabs grow with what is used, so that a
// small context takes little and a large one few of them. One that is wholly free goes back, but for one that is kept in spare;
// with the last block all do.
class ram_slabs : public block_memory {
public:
    // Where slabs come from. Both functions may be called by two threads at a time.
    struct source {
        std::function<void *(size_t)>       alloc; // nullptr if there is none left
        std::function<void(void *, size_t)> free;

        uint64_t bytes_max = 0;     // of all slabs, 0 for no limit
        bool     ahead     = false; // alloc is slow: another thread makes the next slabs before there are too few free blocks

        size_t slab_min = 2  << 20; // bytes of a slab, but a block at least: a huge page,
        size_t slab_max = 64 << 20; // and so much that what a slab costs by itself is nothing beside its bytes
    };

    // memory of the system, in huge pages where it has them; taken when it is written
    static source system_memory();

    ram_slabs(size_t block_bytes, source from);
    ~ram_slabs() override;

    ram_slabs(const ram_slabs &)             = delete;
    ram_slabs & operator=(const ram_slabs &) = delete;

    size_t take(size_t n, size_t n_more, uint8_t ** blocks) override;
    void   give(uint8_t * block) override;

    size_t   n_taken()  const;
    size_t   n_backed() const; // free blocks that have been written, or are pinned: they need no more of the machine's memory
    uint64_t bytes()    const; // of all slabs

    // whether bytes_max was why there was no memory, the last time that there was none
    bool is_limited() const;

private:
    struct slab {
        uint8_t * data;
        size_t    n;       // blocks
        size_t    n_fresh; // of which the last were never taken

        std::vector<uint32_t> given; // back

        size_t n_free()  const { return n_fresh + given.size(); }
        size_t n_taken() const { return n - n_free(); }
    };

    const size_t n_bytes;
    const size_t n_stride; // from a block to the next
    const source from;

    mutable std::mutex      mutex;
    std::condition_variable changed; // by the other thread

    std::map<uint8_t *, slab> slabs; // by their begin
    slab * last = nullptr;           // that a block was taken from

    size_t   n_free_all  = 0;
    size_t   n_taken_all = 0;
    size_t   n_idle      = 0; // slabs that are wholly free
    uint64_t n_bytes_all = 0;
    bool     limited     = false;

    size_t n_batch = 0; // blocks that were asked for last: probably so many are next time
    size_t n_left  = 0; // blocks that are going to be taken, at most

    // A thread lives while it makes slabs, and no longer: there is none that waits.
    std::unique_ptr<std::thread> worker;
    int64_t            worker_process = 0; // a fork does not have it
    bool               working        = false;
    bool               awaited        = false;
    bool               stop           = false;
    bool               ahead_failed   = false; // until there is memory again
    std::exception_ptr error;                  // of the other thread

    size_t next_slab() const; // blocks
    size_t n_ahead()   const; // blocks that should be free
    size_t room()      const; // blocks, under bytes_max

    void * alloc(size_t n) const;
    bool   add(void * data, size_t n); // memory for n blocks, or nullptr
    bool   grow(size_t n_max);
    slab * find();
    void   put_back(uint8_t * block);
    void   release(std::map<uint8_t *, slab>::iterator it);

    bool is_working();
    void start_ahead();
    void work();
    void end_worker();
};

} // namespace infllm
