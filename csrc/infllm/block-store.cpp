#include "block-store.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <utility>

namespace infllm {

// std::vector::reserve(), but so that many calls do not copy all each time
template <typename T>
static void make_room(std::vector<T> & v, size_t n) {
    if (v.capacity() < n) {
        v.reserve(std::max(n, 2*v.capacity()));
    }
}

block_store::block_store(size_t block_bytes, uint64_t bytes_max, ram_slabs::source memory) :
    n_bytes(block_bytes), limit(bytes_max), plain(std::make_shared<ram_slabs>(block_bytes, std::move(memory))) {
}

block_store::~block_store() {
    for (auto & b : blocks) {
        if (b.data && !b.owner) {
            give_back(b);
        }
    }
    for (const auto & r : reserved) {
        give_back(r);
    }
}

void block_store::give_back(const room & r) {
    elsewhere.erase(r.data);
    r.tier->give(r.data);
}

size_t block_store::n_more() const {
    const size_t n = n_used - n_other;
    return limit == 0 ? std::numeric_limits<size_t>::max() : std::max<uint64_t>(limit/n_bytes, n) - n;
}

// of n blocks those that are not reserved yet, as far as a tier has them
void block_store::take(size_t n, block_memory & tier) {
    if (reserved.size() >= n) {
        return;
    }
    std::vector<uint8_t *> data(n - reserved.size());
    data.resize(tier.take(data.size(), std::max(n_more(), n) - n, data.data()));
    for (auto * d : data) {
        reserved.push_back({ d, &tier });
    }
    if (&tier == files.get()) {
        elsewhere.insert(data.begin(), data.end());
    }
}

bool block_store::reserve(size_t n, bool in_memory) {
    if (in_memory && n > n_more()) {
        return false;
    }

    const size_t n_before = reserved.size();
    const auto keep = [&](size_t n_keep) {
        while (reserved.size() > n_keep) {
            give_back(reserved.back());
            reserved.pop_back();
        }
    };

    bool ok = true;
    try {
        make_room(reserved, n);
        make_room(blocks, n_used + n);
        make_room(ids,    n_used + n); // so that unref() cannot fail
        if (!in_memory) {
            take(n, *files);
        } else {
            if (pinned) {
                take(n, *pinned);
            }
            take(n, *plain);
        }
        ok = reserved.size() >= n;
    } catch (const std::bad_alloc &) {
        ok = false;
    } catch (...) {
        keep(n_before);
        throw;
    }

    // when it fails nothing has changed; what a batch that was given up has left is not kept
    keep(ok ? n : n_before);

    return ok;
}

int32_t block_store::new_id() {
    if (ids.empty()) {
        blocks.emplace_back();
        return static_cast<int32_t>(blocks.size()) - 1;
    }
    const int32_t id = ids.back();
    ids.pop_back();
    return id;
}

int32_t block_store::alloc() {
    if (reserved.empty() && !reserve(1)) {
        return NONE;
    }

    const int32_t id = new_id();

    auto & b = blocks[id];
    static_cast<room &>(b) = reserved.back();
    b.n_ref = 1;
    reserved.pop_back();
    n_used++;
    n_other += is_elsewhere(b);

    return id;
}

int32_t block_store::map(const uint8_t * data, std::shared_ptr<const void> owner, home where) {
    assert(can_map());
    elsewhere.insert(data);
    make_room(ids, n_used + 1);
    const int32_t id = new_id();

    auto & b = blocks[id];
    b.data   = const_cast<uint8_t *>(data); // stored blocks never change
    b.n_ref  = 1;
    b.owner  = std::move(owner);
    b.where  = std::move(where);
    n_used++;
    n_other++;

    return id;
}

std::shared_ptr<const void> block_store::share(int32_t id) {
    assert(can_map());
    auto & b = blocks[id];
    if (!b.owner) {
        // not of this store, which may end before the other one
        std::shared_ptr<block_memory> tier = files;
        if (b.tier == plain.get()) {
            tier = plain;
        }
        b.owner = std::shared_ptr<const void>(b.data, [tier](const void * data) {
            tier->give(static_cast<uint8_t *>(const_cast<void *>(data)));
        });
    }
    return b.owner;
}

std::unordered_map<const uint8_t *, const uint8_t *> block_store::pin() {
    std::unordered_map<const uint8_t *, const uint8_t *> res;

    // false: there is no more
    const auto move = [&](room & r) {
        if (r.tier != plain.get()) {
            return true;
        }
        uint8_t * data = nullptr;
        try {
            res[r.data] = nullptr;
            if (pinned->take(1, n_more(), &data) == 0) {
                data = nullptr;
            }
        } catch (const std::exception &) { // what has been moved already must be known
        }
        if (!data) {
            res.erase(r.data);
            return false;
        }
        std::memcpy(data, r.data, n_bytes);
        res[r.data] = data;
        plain->give(r.data);
        r = { data, pinned.get() };
        return true;
    };
    for (size_t i = 0; i < blocks.size() && move(blocks[i]); ++i) {}
    for (size_t i = 0; i < reserved.size() && move(reserved[i]); ++i) {}

    return res;
}

void block_store::ref(int32_t id) {
    assert(blocks[id].n_ref > 0);
    blocks[id].n_ref++;
}

void block_store::unref(int32_t id) {
    assert(blocks[id].n_ref > 0);
    auto & b = blocks[id];
    if (--b.n_ref > 0) {
        return;
    }
    n_other -= is_elsewhere(b);
    if (b.owner) {
        elsewhere.erase(b.data);
    } else {
        give_back(b);
    }
    b = {};
    ids.push_back(id);
    n_used--;
}

} // namespace infllm
