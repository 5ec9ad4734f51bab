#pragma once

#include "file-slabs.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_set>
#include <vector>

namespace infllm {

// Host home of the offloaded blocks. It knows nothing of tokens, layers or sequences: a block is block_bytes bytes
// under an id, counted by its references. Memory is taken one block at a time, as the context grows.
class block_store {
public:
    static constexpr int32_t NONE = -1;

    // where the memory comes from: alloc returns nullptr when there is none left
    struct allocator {
        std::function<void *(size_t)> alloc;
        std::function<void(void *)>   free;
    };

    // a copy of a block on disk: bytes at an offset of a file, which stays open as long as somebody holds it
    struct home {
        std::shared_ptr<void> file;
        uint64_t              offset = 0;
        uint64_t              sum    = 0; // checksum
    };

    // bytes_max: limit of the memory of blocks, 0 for none
    block_store(size_t block_bytes, uint64_t bytes_max);
    block_store(size_t block_bytes, uint64_t bytes_max, allocator memory);
    ~block_store();

    // blocks for which there is no memory go to files
    void set_files(std::shared_ptr<file_slabs> f) { files = std::move(f); }
    const file_slabs * get_files() const { return files.get(); }

    block_store(const block_store &)             = delete;
    block_store & operator=(const block_store &) = delete;

    // take memory for n further blocks, and no more, so that the next n calls of alloc() succeed
    //   in_memory  false: in the files
    // returns false, with nothing changed, over the limit or out of memory
    bool reserve(size_t n, bool in_memory = true);

    // a block with one reference, its bytes undefined; NONE over the limit or out of memory
    int32_t alloc();

    // a block with one reference whose bytes are somebody else's, and take no memory of this store; throws std::bad_alloc
    // only where memory is the default one: devices cannot read others
    int32_t map(const uint8_t * data, std::shared_ptr<const void> owner, home where);
    bool    can_map() const { return is_default; }

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

    // give all memory to f, which returns what takes its place: the same, or other memory of the allocator with the same bytes
    void replace(const std::function<uint8_t *(uint8_t *)> & f);

    uint8_t       * data(int32_t id)       { return blocks[id].data; }
    const uint8_t * data(int32_t id) const { return blocks[id].data; }

    // whether the bytes of a block are in files, or mapped
    bool is_elsewhere(const uint8_t * data) const { return !elsewhere.empty() && elsewhere.count(data) > 0; }

    size_t   block_bytes() const { return n_bytes; }
    size_t   n_blocks()    const { return n_used; }
    size_t   n_elsewhere() const { return n_other; } // of which in files, or mapped: they take no memory here
    uint64_t bytes_max()   const { return limit; }

private:
    struct block {
        uint8_t * data  = nullptr;
        uint32_t  n_ref = 0;
        home      where;

        bool                        slab = false;   // of the files
        bool                        mapped = false;
        std::shared_ptr<const void> owner;          // of the bytes, if they are mapped or shared

        bool is_elsewhere() const { return slab || mapped; }
    };

    struct room {
        uint8_t * data;
        bool      slab;
    };

    const size_t    n_bytes;
    const uint64_t  limit;
    const allocator mem;
    const bool      is_default;

    size_t n_used = 0;
    size_t n_other = 0;

    std::shared_ptr<file_slabs> files;

    std::vector<block>   blocks;   // by id
    std::vector<int32_t> ids;      // free ids
    std::vector<room>    reserved; // memory without a block yet

    std::unordered_set<const uint8_t *> elsewhere; // blocks, and what is reserved

    int32_t new_id();
    void    give_back(const room & r);
};

} // namespace infllm
