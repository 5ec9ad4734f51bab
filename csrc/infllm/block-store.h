#pragma once

#include "file-slabs.h"
#include "ram-slabs.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace infllm {

// Host home of the offloaded blocks. It knows nothing of tokens, layers or sequences: a block is block_bytes bytes
// under an id, counted by its references. Its bytes lie in one of the tiers, where they stay: memory that is pinned for devices that
// page, plain memory, files; or they are somebody else's.
class block_store {
public:
    static constexpr int32_t NONE = -1;

    // a copy of a block on disk: bytes at an offset of a file, which stays open as long as somebody holds it
    struct home {
        std::shared_ptr<void> file;
        uint64_t              offset = 0;
        uint64_t              sum    = 0; // checksum
    };

    // bytes_max: limit of the memory of blocks, 0 for none
    block_store(size_t block_bytes, uint64_t bytes_max, ram_slabs::source memory = ram_slabs::system_memory());
    ~block_store();

    // blocks go there first, which devices can read, and to plain memory when it has no more
    void set_pinned(ram_slabs::source memory) { pinned = std::make_unique<ram_slabs>(n_bytes, std::move(memory)); }
    const ram_slabs * get_pinned() const { return pinned.get(); }

    // blocks for which there is no memory go to files
    void set_files(std::shared_ptr<file_slabs> f) { files = std::move(f); }
    const file_slabs * get_files() const { return files.get(); }

    block_store(const block_store &)             = delete;
    block_store & operator=(const block_store &) = delete;

    // take memory for n further blocks, and no more, so that the next n calls of alloc() succeed
    //   in_memory  false: in the files
    // returns false, with nothing changed, over the limit or out of memory; throws, likewise, what memory throws
    bool reserve(size_t n, bool in_memory = true);

    // a block with one reference, its bytes undefined; NONE over the limit or out of memory
    int32_t alloc();

    // a block with one reference whose bytes are somebody else's, and take no memory of this store; throws std::bad_alloc
    // only without pinned memory: devices cannot read others
    int32_t map(const uint8_t * data, std::shared_ptr<const void> owner, home where);
    bool    can_map() const { return !pinned; }

    // the owner of a block's bytes, for another store that maps them: they live as long as one of both needs them
    // only where can_map()
    std::shared_ptr<const void> share(int32_t id);

    // where on disk the bytes of a block are, too; file is nullptr: nowhere
    const home & get_home(int32_t id) const { return blocks[id].where; }
    void         set_home(int32_t id, home where) { blocks[id].where = std::move(where); }

    // references that a block holds to a file
    long n_holds(int32_t id, const std::shared_ptr<void> & file) const {
        return long(blocks[id].where.file == file) + long(blocks[id].owner == file);
    }

    void ref  (int32_t id);
    void unref(int32_t id); // the last reference gives the memory back

    // move what is in plain memory to pinned memory, as long as there is any: where blocks were, and where they are
    std::unordered_map<const uint8_t *, const uint8_t *> pin();

    uint8_t       * data(int32_t id)       { return blocks[id].data; }
    const uint8_t * data(int32_t id) const { return blocks[id].data; }

    // whether the bytes of a block are in files, or mapped
    bool is_elsewhere(const uint8_t * data) const { return !elsewhere.empty() && elsewhere.count(data) > 0; }

    size_t   block_bytes() const { return n_bytes; }
    size_t   n_blocks()    const { return n_used; }
    size_t   n_elsewhere() const { return n_other; } // of which in files, or mapped: they take no memory here
    size_t   n_unpinned()  const { return pinned ? plain->n_taken() : 0; } // blocks, and what is reserved, that devices cannot read
    uint64_t bytes_max()   const { return limit; }

    // blocks for which the system has given memory already
    size_t n_backed() const { return plain->n_backed() + (pinned ? pinned->n_backed() : 0); }

private:
    struct room {
        uint8_t *      data = nullptr;
        block_memory * tier = nullptr;
    };

    struct block : room { // no tier: it is mapped
        uint32_t n_ref = 0;
        home     where;

        std::shared_ptr<const void> owner; // of the bytes, if they are mapped or shared
    };

    const size_t   n_bytes;
    const uint64_t limit;

    size_t n_used = 0;
    size_t n_other = 0;

    std::unique_ptr<ram_slabs>       pinned; // nullptr: no device pages
    const std::shared_ptr<ram_slabs> plain;
    std::shared_ptr<file_slabs>      files;

    std::vector<block>   blocks;   // by id
    std::vector<int32_t> ids;      // free ids
    std::vector<room>    reserved; // memory without a block yet

    std::unordered_set<const uint8_t *> elsewhere; // blocks, and what is reserved

    bool is_elsewhere(const room & r) const { return !r.tier || r.tier == files.get(); }

    size_t  n_more() const; // blocks that the limit leaves room for
    void    take(size_t n, block_memory & tier);
    int32_t new_id();
    void    give_back(const room & r);
};

} // namespace infllm
