#include "selection.h"

#include "topk.h"

#include <algorithm>

namespace infllm {

void select_topk(const std::vector<float> & scores, uint32_t k, std::vector<int32_t> & out) {
    const auto n = static_cast<uint32_t>(scores.size());
    out.resize(std::min(k, n));

    topk_scratch          scratch = {};
    std::vector<uint64_t> keys(out.size());
    select_topk(single_thread(), scores.data(), n, static_cast<uint32_t>(out.size()), scratch, keys.data(), out.data());
}

} // namespace infllm
