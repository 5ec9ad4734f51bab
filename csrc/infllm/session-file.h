#pragma once

#include "file.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace infllm {

// A context on disk. Blocks never change once they are written, so that saving again adds the new ones and writes the rest, which is
// small, beside the old one:
//
//     [ header | header | blocks and rests, each from a page's start on ]
//
// Of the two headers the valid one of the higher generation counts, and nothing that it refers to is overwritten: a crash at any byte
// leaves the last good state. What only older generations refer to is overwritten by the next one.
//
// What is wrong throws std::runtime_error, a sentence with the file's name.
class session_file {
public:
    static constexpr uint32_t VERSION = 1;
    static constexpr uint64_t PAGE    = 4096;

    // where a block is, and the checksum of its bytes
    struct entry {
        uint64_t offset;
        uint64_t sum;
    };

    struct bytes {
        const uint8_t * data;
        size_t          size;
    };

    // what a context is beside its blocks
    struct rest {
        std::vector<int32_t> tokens;
        std::vector<entry>   blocks;
        bytes                state;
        bytes                data; // the user's
    };

    // Read the header and the rest of a session, not its blocks. As long as it is open nobody else can write to it.
    static std::shared_ptr<session_file> open(const std::string & path);

    // an empty one, beside path, which commit() puts into its place
    static std::shared_ptr<session_file> create(const std::string & path, uint64_t block_bytes);

    ~session_file();

    // Of the generation that was opened; its state and data are in the map, and good until the next commit.
    const rest & get_rest()        const { return content; }
    uint64_t     get_block_bytes() const { return head.block_bytes; }
    uint64_t     get_generation()  const { return head.generation; }
    uint64_t     get_size()        const { return disk.size(); }

    // bytes of a block, which is in the map
    const uint8_t * block(const entry & e) const { return disk.data() + e.offset; }

    // throws unless all blocks are what was written
    void verify() const;

    bool is(const std::string & path) const { return disk.is(path); }

    //
    // saving: begin(), add() for every new block, commit(); else abandon()
    //

    bool  begin(); // false: others have it open, or no generation can follow
    entry add(const uint8_t * data);
    void  commit(const rest & content);
    void  abandon(); // as it was at the last commit

private:
    struct extent {
        uint64_t offset;
        uint64_t size;
    };

    struct header {
        char     magic[8];
        uint32_t version;
        uint32_t reserved;
        uint64_t generation;
        uint64_t block_bytes;
        uint64_t n_tokens;
        uint64_t n_blocks;
        uint64_t n_state; // bytes
        uint64_t n_data;  // bytes
        extent   rest;
        uint64_t sum_rest;
        uint64_t sum; // of all before

        uint64_t get_sum() const;
    };

    explicit session_file(const std::string & path, file::mode mode);

    file        disk;
    std::string target; // where commit() puts a new one, else ""
    header      head {};
    rest        content {};

    std::vector<extent> gaps; // to write to, the last one has no end

    [[noreturn]] void refuse(const std::string & why) const;

    void     read();
    void     check_header(const header & h) const;
    uint64_t take(uint64_t size); // of a gap
    void     find_gaps();
};

} // namespace infllm
