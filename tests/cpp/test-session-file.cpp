// Session files: what was saved is read again, only what is new is written, a crash at any byte leaves the last good state, and a
// damaged file is refused.

#include "checksum.h"
#include "session-file.h"
#include "temp-folder.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

using infllm::session_file;
using bytes_t = std::vector<uint8_t>;

namespace {

constexpr uint64_t BLOCK = 6000; // bytes, two pages

bytes_t block_of(uint32_t seed) {
    std::mt19937 rng(seed);
    bytes_t res(BLOCK);
    for (auto & b : res) {
        b = uint8_t(rng());
    }
    return res;
}

bytes_t read_file(const std::string & path) {
    std::ifstream in(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(in), {} };
}

void write_file(const std::string & path, const bytes_t & bytes) {
    std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char *>(bytes.data()), std::streamsize(bytes.size()));
}

struct SessionFile : testing::Test {
    // one that was saved with 6 tokens, then with 8
    std::shared_ptr<session_file> save_twice() const;

    const temp_folder folder;
    const std::string path  = folder/"a.session";
    const std::string other = folder/"b.session";
};

// n tokens in all, and a block for each two of them, some of which a file has
session_file::rest make_rest(session_file & file, uint32_t n, const std::vector<session_file::entry> & has = {}) {
    static bytes_t state;
    static bytes_t data;
    state.assign(5000, uint8_t(n));
    data .assign(n, uint8_t('d'));
    session_file::rest res {};
    for (uint32_t i = 0; i < n; ++i) {
        res.tokens.push_back(int32_t(i));
    }
    res.state = { state.data(), state.size() };
    res.data  = { data .data(), data .size() };
    res.blocks = has;
    while (res.blocks.size() < n/2) {
        res.blocks.push_back(file.add(block_of(uint32_t(res.blocks.size())).data()));
    }
    return res;
}

std::shared_ptr<session_file> SessionFile::save_twice() const {
    const auto file = session_file::create(path, BLOCK);
    file->begin();
    file->commit(make_rest(*file, 6));
    const auto has = session_file::open(path)->get_rest().blocks;
    file->begin();
    file->commit(make_rest(*file, 8, has));
    return file;
}

void expect_rest(const std::string & path, uint32_t n) {
    const auto   file = session_file::open(path);
    const auto & rest = file->get_rest();
    file->verify();
    ASSERT_EQ(rest.tokens.size(), n);
    EXPECT_EQ(bytes_t(rest.state.data, rest.state.data + rest.state.size), bytes_t(5000, uint8_t(n)));
    EXPECT_EQ(bytes_t(rest.data .data, rest.data .data + rest.data .size), bytes_t(n, uint8_t('d')));
    ASSERT_EQ(rest.blocks.size(), n/2);
    for (uint32_t b = 0; b < n/2; ++b) {
        EXPECT_EQ(bytes_t(file->block(rest.blocks[b]), file->block(rest.blocks[b]) + BLOCK), block_of(b));
    }
}

constexpr size_t N_HEADER = 88; // bytes of a header before its checksum

void forge(uint8_t * header) {
    const uint64_t sum = infllm::checksum::of(header, N_HEADER);
    std::memcpy(header + N_HEADER, &sum, sizeof(sum));
}

} // namespace

TEST_F(SessionFile, IsReadAsItWasWritten) {
    for (const uint32_t n : { 0, 1, 11 }) {
        const auto file = session_file::create(path, BLOCK);
        file->begin();
        file->commit(make_rest(*file, n));
        expect_rest(path, n);
    }
    EXPECT_EQ(folder.n_files(), 1u);

    // without blocks their size does not matter
    const auto file = session_file::create(path, uint64_t(1) << 40);
    file->begin();
    file->commit(make_rest(*file, 1));
    expect_rest(path, 1);
}

TEST_F(SessionFile, OnlyWhatIsNewIsWritten) {
    auto file = session_file::create(path, BLOCK);
    file->begin();
    auto rest = make_rest(*file, 10);
    file->commit(rest);

    size_t size = 0;
    for (uint32_t n = 12; n < 40; n += 2) {
        const bool again = n%8 == 0; // by another that opened it
        if (again) {
            file.reset();
            file = session_file::open(path);
            rest = file->get_rest();
        }
        const auto before = rest.blocks;
        file->begin();
        rest = make_rest(*file, n, before);
        file->commit(rest);
        expect_rest(path, n);
        const size_t grown = read_file(path).size() - size;
        EXPECT_LE(size > 0 ? grown : 0, 2*session_file::PAGE + 3*session_file::PAGE) << n; // a block, and two rests in turns
        size += grown;
    }

    // what is not needed any more is written over
    for (int i = 0; i < 20; ++i) {
        file->begin();
        rest = make_rest(*file, 10, { rest.blocks.begin(), rest.blocks.begin() + 2 });
        file->commit(rest);
        expect_rest(path, 10);
        if (i == 0) {
            size = read_file(path).size();
        }
    }
    EXPECT_EQ(read_file(path).size(), size);
}

TEST_F(SessionFile, ACrashAtAnyByteLeavesTheLastGoodState) {
    save_twice();
    const auto before = read_file(path);
    {
        const auto file = session_file::open(path);
        file->begin();
        file->commit(make_rest(*file, 12, file->get_rest().blocks));
    }
    const auto after = read_file(path);

    // Of what was written any part may be on the disk, in any order, before the first sync: all but the header. Then the header's
    // bytes come one by one.
    const size_t header = before.size() > 0 && !std::equal(before.begin(), before.begin() + 4096, after.begin()) ? 0 : 4096;
    std::mt19937 rng(1);
    for (int i = 0; i < 200; ++i) {
        auto now = after;
        for (size_t p = 0; p < after.size(); p += 512) {
            const bool is_header = p >= header && p < header + 4096;
            if (is_header || rng()%2 == 0) {
                for (size_t j = p; j < p + 512 && j < now.size(); ++j) {
                    now[j] = j < before.size() ? before[j] : 0;
                }
            }
        }
        now.resize(std::max<size_t>(before.size(), rng()%now.size()));
        write_file(other, now);
        expect_rest(other, 8);
    }
    for (size_t n = 0; n <= 160; ++n) {
        auto now = after;
        std::copy(before.begin() + long(header) + long(n), before.begin() + long(header) + 4096, now.begin() + long(header) + long(n));
        write_file(other, now);
        expect_rest(other, std::equal(now.begin(), now.end(), after.begin()) ? 12 : 8);
    }
}

TEST_F(SessionFile, WhatFailsChangesNothing) {
    const auto file = session_file::create(path, BLOCK);
    file->begin();
    file->commit(make_rest(*file, 6));
    const auto entries = session_file::open(path)->get_rest().blocks;

    file->begin();
    make_rest(*file, 20, entries);
    file->abandon();
    expect_rest(path, 6);

    // somebody else has it open
    {
        const auto reader = session_file::open(path);
        EXPECT_FALSE(file->begin());
    }
    // nobody can read what is being written, and nothing is left of what never was
    file->begin();
    EXPECT_THROW(session_file::open(path), std::runtime_error);
    file->abandon();
    {
        const auto one = session_file::create(other, BLOCK);
        const auto two = session_file::create(other, BLOCK); // neither is in the other's way
        EXPECT_TRUE(one->begin() && two->begin());
        EXPECT_EQ(folder.n_files(), 3u);
    }
    EXPECT_EQ(folder.n_files(), 1u);
    EXPECT_THROW(session_file::create(folder/"none/a", BLOCK), std::runtime_error);
    EXPECT_THROW(session_file::open(folder/""), std::runtime_error);
    EXPECT_THROW(session_file::open(folder/"none"), std::runtime_error);
    expect_rest(path, 6);
}

// a header counts where its generation is written alone, so that the next one never takes its place
TEST_F(SessionFile, AGenerationHasItsPlace) {
    save_twice();
    const auto good = read_file(path);
    for (const size_t head : { 0, 4096 }) {
        uint64_t generation;
        std::memcpy(&generation, good.data() + head + 16, sizeof(generation));
        for (const uint64_t forged : { uint64_t(0), generation + 1, generation + 2, UINT64_MAX - 1, UINT64_MAX }) {
            auto bad = good;
            std::fill_n(bad.begin() + long(4096 - head), 4096, uint8_t(0)); // the other header
            std::memcpy(bad.data() + head + 16, &forged, sizeof(forged));
            forge(bad.data() + head);
            write_file(other, bad);
            if (forged%2 != head/4096 || forged == 0) {
                EXPECT_THROW(session_file::open(other), std::runtime_error) << forged;
                continue;
            }
            expect_rest(other, head == 0 ? 8 : 6);
            const auto file = session_file::open(other);
            EXPECT_EQ(file->begin(), forged < UINT64_MAX); // or the next one would be 0
            if (forged < UINT64_MAX) {
                file->commit(make_rest(*file, 10, file->get_rest().blocks));
                expect_rest(other, 10);
            }
        }
    }
}

// flipped, cut, swapped, forged; INFLLM_TEST_FUZZ: how many files
TEST_F(SessionFile, ADamagedFileIsRefusedOrRight) {
    save_twice();
    const auto good = read_file(path);
    auto same = good;
    forge(same.data());
    forge(same.data() + 4096);
    ASSERT_EQ(same, good); // so it does forge

    const char * env = std::getenv("INFLLM_TEST_FUZZ");
    const int    n   = env ? std::atoi(env) : 2000;
    std::mt19937 rng(2);
    int n_refused = 0;
    for (int i = 0; i < n; ++i) {
        auto bad = good;
        const auto any  = [&](size_t end) { return size_t(rng())%end; };
        const auto head = any(2)*4096 + any(128)/8*8; // a number of a header
        switch (i%5) {
            case 0: bad[any(bad.size())] ^= uint8_t(1 << any(8)); break;
            case 1: bad.resize(any(bad.size())); break;
            case 2: std::swap_ranges(bad.begin(), bad.begin() + 512, bad.begin() + long(512*(1 + any(bad.size()/512 - 1)))); break;
            case 3: for (size_t j = 0; j < 8; ++j) { bad[head + j] = uint8_t(rng()); } break;
            default:
                // a header whose checksum is right
                for (size_t j = 0; j < 8; ++j) { bad[head + j] = j < any(9) ? uint8_t(rng()) : 0; }
                forge(bad.data() + head/4096*4096);
        }
        write_file(other, bad);
        try {
            const auto file = session_file::open(other);
            file->verify();
            const auto n_tokens = uint32_t(file->get_rest().tokens.size());
            EXPECT_TRUE(n_tokens == 6 || n_tokens == 8 || i%5 == 4);
        } catch (const std::runtime_error &) {
            n_refused++;
        }
    }
    EXPECT_GT(n_refused, n/4);
}
