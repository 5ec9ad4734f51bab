#include "llama-infllm-pinned.h"

#include "llama-impl.h"

#include <cstdlib>
#include <cstring>

void * llama_infllm_pinned::alloc_pinned(size_t size) {
    const bool limited = max_bytes > 0 && bytes + size > max_bytes;

    void * ptr = limited ? nullptr : api.alloc(size);
    if (!ptr) {
        is_limited = limited;
        return nullptr;
    }
    pinned[ptr]  = size;
    bytes       += size;
    return ptr;
}

void * llama_infllm_pinned::alloc(size_t size) {
    if (void * ptr = alloc_pinned(size)) {
        return ptr;
    }
    void * ptr = std::malloc(size);
    if (ptr) {
        pageable.insert(ptr);
    }
    return ptr;
}

void * llama_infllm_pinned::pin(void * ptr, size_t size) {
    if (pageable.count(ptr) == 0) {
        return ptr;
    }
    void * res = alloc_pinned(size);
    if (res) {
        std::memcpy(res, ptr, size);
        this->free(ptr);
    }
    return res;
}

std::string llama_infllm_pinned::why_pageable() const {
    if (pageable.empty()) {
        return "";
    }
    return is_limited ? ::format("pinned_max_bytes = %.1f MiB is reached", max_bytes/1024.0/1024.0)
                      : ::format("no more than %.1f MiB of memory can be pinned", bytes/1024.0/1024.0);
}

void llama_infllm_pinned::free(void * ptr) {
    if (pageable.erase(ptr) > 0) {
        std::free(ptr);
        return;
    }
    const auto it = pinned.find(ptr);
    bytes -= it->second;
    pinned.erase(it);
    api.free(ptr);
}
