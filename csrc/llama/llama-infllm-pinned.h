#pragma once

#include "../infllm/pager-api.h"

#include <cstdint>
#include <map>
#include <string>
#include <unordered_set>

// Memory for the store that devices which page can read. What cannot be pinned is given all the same, and then why_pageable() says
// why: the host has to page.
class llama_infllm_pinned {
public:
    // max_bytes: 0 for no limit
    llama_infllm_pinned(const infllm::pager_api & api, uint64_t max_bytes) : api(api), max_bytes(max_bytes) {}

    void * alloc(size_t size);
    void   free (void * ptr);

    std::string why_pageable() const; // "": all of it is pinned

    // ptr, if it is pinned; else pinned memory with the same bytes in its place, nullptr if there still is none
    void * pin(void * ptr, size_t size);

private:
    void * alloc_pinned(size_t size); // nullptr if there is none

    const infllm::pager_api & api;
    const uint64_t            max_bytes;

    uint64_t bytes      = 0;
    bool     is_limited = false; // memory that was not pinned would have passed max_bytes

    std::unordered_set<void *> pageable;
    std::map<void *, size_t>   pinned;
};
