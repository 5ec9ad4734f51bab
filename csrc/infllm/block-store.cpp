#include "block-store.h"

#include <cassert>
#include <cstdlib>
#include <new>
#include <utility>

namespace infllm {

block_store::block_store(size_t block_bytes, uint64_t bytes_max) :
    n_bytes(block_bytes), limit(bytes_max), mem({ std::malloc, std::free }), is_default(true) {
}

block_store::block_store(size_t block_bytes, uint64_t bytes_max, allocator memory) :
    n_bytes(block_bytes), limit(bytes_max), mem(std::move(memory)), is_default(false) {
}

block_store::~block_store() {
    for (auto & b : blocks) {
        if (b.data && !b.owner) {
            give_back({ b.data, b.slab });
        }
    }
    for (const auto & r : reserved) {
        give_back(r);
    }
}

void block_store::give_back(const room & r) {
    if (r.slab) {
        elsewhere.erase(r.data);
        files->free(r.data);
    } else {
        mem.free(r.data);
    }
}

bool block_store::reserve(size_t n, bool in_memory) {
    if (in_memory && limit > 0 && (n_used - n_other + n)*n_bytes > limit) {
        return false;
    }

    const size_t n_before = reserved.size();

    bool ok = true;
    try {
        reserved.reserve(n);
        blocks.reserve(n_used + n);
        ids.reserve(n_used + n);
        while (ok && reserved.size() < n) {
            auto * data = in_memory ? static_cast<uint8_t *>(mem.alloc(n_bytes)) : files->alloc();
            ok = data != nullptr;
            if (ok) {
                reserved.push_back({ data, !in_memory });
            }
            if (ok && !in_memory) {
                elsewhere.insert(data);
            }
        }
    } catch (const std::bad_alloc &) {
        ok = false;
    }

    // when it fails nothing has changed; what a batch that was given up has left is not kept
    while (reserved.size() > (ok ? n : n_before)) {
        give_back(reserved.back());
        reserved.pop_back();
    }

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

    blocks[id].data  = reserved.back().data;
    blocks[id].slab  = reserved.back().slab;
    blocks[id].n_ref = 1;
    reserved.pop_back();
    n_used++;
    n_other += blocks[id].slab;

    return id;
}

int32_t block_store::map(const uint8_t * data, std::shared_ptr<const void> owner, home where) {
    assert(can_map());
    elsewhere.insert(data);
    if (ids.capacity() <= n_used) {
        ids.reserve(2*n_used + 1); // so that unref() cannot fail
    }
    const int32_t id = new_id();

    auto & b = blocks[id];
    b.data   = const_cast<uint8_t *>(data); // stored blocks never change
    b.n_ref  = 1;
    b.mapped = true;
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
        b.owner = std::shared_ptr<const void>(b.data, [f = b.slab ? files : nullptr](const void * data) {
            auto * bytes = static_cast<uint8_t *>(const_cast<void *>(data));
            if (f) {
                f->free(bytes);
            } else {
                std::free(bytes);
            }
        });
    }
    return b.owner;
}

void block_store::replace(const std::function<uint8_t *(uint8_t *)> & f) {
    for (auto & b : blocks) {
        if (b.data && !b.owner) {
            b.data = f(b.data);
        }
    }
    for (auto & r : reserved) {
        if (!r.slab) {
            r.data = f(r.data);
        }
    }
}

void block_store::ref(int32_t id) {
    assert(blocks[id].n_ref > 0);
    blocks[id].n_ref++;
}

void block_store::unref(int32_t id) {
    assert(blocks[id].n_ref > 0);
    if (--blocks[id].n_ref == 0) {
        n_other -= blocks[id].is_elsewhere();
        elsewhere.erase(blocks[id].data);
        if (!blocks[id].owner) {
            give_back({ blocks[id].data, blocks[id].slab });
        }
        blocks[id] = {};
        ids.push_back(id);
        n_used--;
    }
}

} // namespace infllm
