#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infllm {

// the k highest scores, best first; the more recent block wins a tie (see topk.h)
void select_topk(const std::vector<float> & scores, uint32_t k, std::vector<int32_t> & out);

} // namespace infllm
