#include "session-file.h"

#include "checksum.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <stdexcept>

namespace infllm {

static const char MAGIC[8] = { 'i', 'n', 'f', 'l', 'l', 'm', 's', '1' };

static uint64_t pages(uint64_t size) {
    return (size + session_file::PAGE - 1)/session_file::PAGE*session_file::PAGE;
}

uint64_t session_file::header::get_sum() const {
    return checksum::of(this, offsetof(header, sum));
}

session_file::session_file(const std::string & path, file::mode mode) : disk(path, mode) {
}

session_file::~session_file() {
    if (!target.empty()) {
        disk.remove(); // it never was complete
    }
}

void session_file::refuse(const std::string & why) const {
    throw std::runtime_error(disk.get_path() + " cannot be read: " + why);
}

//
// reading
//

std::shared_ptr<session_file> session_file::open(const std::string & path) {
    std::shared_ptr<session_file> res(new session_file(path, file::READ));
    if (!res->disk.lock(false)) {
        throw std::runtime_error(path + " is being written by another process: try again when it is done");
    }
    res->read();
    return res;
}

void session_file::check_header(const header & h) const {
    const uint64_t size = disk.size();
    // each number is at most the file's size, so that none of these can overflow
    for (const uint64_t n : { h.n_blocks > 0 ? h.block_bytes : 0, h.n_tokens, h.n_blocks, h.n_state, h.n_data, h.rest.offset, h.rest.size }) {
        if (n > size) {
            refuse("it is damaged, or was cut off");
        }
    }
    const uint64_t n_rest = h.n_tokens*sizeof(int32_t) + h.n_blocks*sizeof(entry) + h.n_state + h.n_data;
    if (n_rest != h.rest.size || h.rest.offset%PAGE != 0 || h.rest.offset > size - h.rest.size) {
        refuse("it is damaged, or was cut off");
    }
}

void session_file::read() {
    if (disk.size() < sizeof(MAGIC) || std::memcmp(disk.data(), MAGIC, sizeof(MAGIC)) != 0) {
        // the first header may be the one that was being written
        if (disk.size() < PAGE + sizeof(MAGIC) || std::memcmp(disk.data() + PAGE, MAGIC, sizeof(MAGIC)) != 0) {
            refuse("it is not a session file");
        }
    }
    bool     found   = false;
    uint32_t version = VERSION;
    for (uint64_t i = 0; i < 2 && disk.size() >= 2*PAGE; ++i) {
        header h;
        std::memcpy(&h, disk.data() + i*PAGE, sizeof(h));
        if (std::memcmp(h.magic, MAGIC, sizeof(MAGIC)) != 0) {
            continue;
        }
        // the next generation goes to the other place; the first one is 1
        const bool in_place = h.generation%2 == i && h.generation > 0;
        if (h.version != VERSION) {
            version = h.version;
        } else if (in_place && h.sum == h.get_sum() && (!found || h.generation > head.generation)) {
            head  = h;
            found = true;
        }
    }
    if (!found && version != VERSION) {
        refuse("it is of version " + std::to_string(version) + ", this program reads version " + std::to_string(VERSION));
    }
    if (!found) {
        refuse("it is damaged, or was cut off");
    }
    check_header(head);

    const uint8_t * at = disk.data() + head.rest.offset;
    if (checksum::of(at, head.rest.size) != head.sum_rest) {
        refuse("it is damaged");
    }
    const auto take = [&](auto & res, uint64_t n) {
        res.resize(n);
        const size_t size = n*sizeof(res[0]);
        if (size > 0) {
            std::memcpy(res.data(), at, size);
        }
        at += size;
    };
    take(content.blocks, head.n_blocks);
    take(content.tokens, head.n_tokens);
    content.state = { at,                size_t(head.n_state) };
    content.data  = { at + head.n_state, size_t(head.n_data)  };

    for (const auto & e : content.blocks) {
        if (e.offset%PAGE != 0 || e.offset < 2*PAGE || e.offset > disk.size() || head.block_bytes > disk.size() - e.offset) {
            refuse("it is damaged, or was cut off");
        }
    }
}

void session_file::verify() const {
    for (size_t i = 0; i < content.blocks.size(); ++i) {
        if (checksum::of(block(content.blocks[i]), head.block_bytes) != content.blocks[i].sum) {
            refuse("block " + std::to_string(i) + " of " + std::to_string(content.blocks.size()) + " is damaged");
        }
    }
}

//
// saving
//

std::shared_ptr<session_file> session_file::create(const std::string & path, uint64_t block_bytes) {
    // no other save has this name, of this process or another one
    static std::atomic<uint32_t> n_created { 0 };
    const std::string name = path + ".new-" + std::to_string(process_id()) + "-" + std::to_string(n_created++);

    std::shared_ptr<session_file> res(new session_file(name, file::CREATE));
    res->target = path;
    res->head.block_bytes = block_bytes;
    return res;
}

bool session_file::begin() {
    if (head.generation == UINT64_MAX || !disk.lock(true)) {
        disk.lock(false);
        return false;
    }
    find_gaps();
    return true;
}

void session_file::find_gaps() {
    std::vector<extent> used = { { 0, 2*PAGE } };
    if (head.generation > 0) {
        used.push_back({ head.rest.offset, pages(head.rest.size) });
        for (const auto & e : content.blocks) {
            used.push_back({ e.offset, pages(head.block_bytes) });
        }
    }
    std::sort(used.begin(), used.end(), [](const extent & a, const extent & b) { return a.offset < b.offset; });

    gaps.clear();
    uint64_t end = 0;
    for (const auto & u : used) {
        if (u.offset > end) {
            gaps.push_back({ end, u.offset - end });
        }
        end = std::max(end, u.offset + u.size);
    }
    gaps.push_back({ end, UINT64_MAX - end });
}

uint64_t session_file::take(uint64_t size) {
    const auto gap = std::find_if(gaps.begin(), gaps.end(), [&](const extent & g) { return g.size >= size; });
    const uint64_t res = gap->offset;
    gap->offset += size;
    gap->size   -= size;
    if (gap->size == 0) {
        gaps.erase(gap);
    }
    return res;
}

session_file::entry session_file::add(const uint8_t * data) {
    const entry res = { take(pages(head.block_bytes)), checksum::of(data, head.block_bytes) };
    disk.write(res.offset, data, head.block_bytes);
    return res;
}

void session_file::commit(const rest & next) {
    const size_t n_blocks = next.blocks.size()*sizeof(entry);
    const size_t n_tokens = next.tokens.size()*sizeof(int32_t);
    const bytes  parts[]  = {
        { reinterpret_cast<const uint8_t *>(next.blocks.data()), n_blocks },
        { reinterpret_cast<const uint8_t *>(next.tokens.data()), n_tokens },
        next.state,
        next.data,
    };
    // whole pages, so that a reader's map has all that a header refers to
    const size_t size = n_blocks + n_tokens + next.state.size + next.data.size;
    std::vector<uint8_t> all;
    all.reserve(std::max(pages(size), PAGE));
    for (const auto & part : parts) {
        all.insert(all.end(), part.data, part.data + part.size);
    }
    const uint64_t sum = checksum::of(all.data(), all.size());
    all.resize(std::max(pages(size), PAGE));

    header h {};
    std::memcpy(h.magic, MAGIC, sizeof(MAGIC));
    h.version     = VERSION;
    h.generation  = head.generation + 1;
    h.block_bytes = head.block_bytes;
    h.n_tokens    = next.tokens.size();
    h.n_blocks    = next.blocks.size();
    h.n_state     = next.state.size;
    h.n_data      = next.data.size;
    h.rest        = { take(all.size()), size };
    h.sum_rest    = sum;
    h.sum         = h.get_sum();

    disk.write(h.rest.offset, all.data(), all.size());
    disk.sync();

    std::vector<uint8_t> page(PAGE);
    std::memcpy(page.data(), &h, sizeof(h));
    disk.write(h.generation%2*PAGE, page.data(), page.size());
    if (head.generation == 0) {
        disk.write((h.generation + 1)%2*PAGE, std::vector<uint8_t>(PAGE).data(), PAGE);
    }
    disk.sync();
    if (!target.empty()) {
        disk.move_to(target);
        target.clear();
    }

    head = h;
    content = { {}, next.blocks, {}, {} };
    gaps.clear();
    disk.lock(false);
}

void session_file::abandon() {
    gaps.clear();
    disk.lock(false);
}

} // namespace infllm
