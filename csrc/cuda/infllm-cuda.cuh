#pragma once

// What the hooks in ggml-cuda.cu call (see csrc/patches).

struct ggml_backend_cuda_context;
struct ggml_tensor;

#if defined(GGML_CUDA_INFLLM)

// whether op is the page op of the InfLLM memory
bool ggml_cuda_infllm_supports(const ggml_tensor * op);

void ggml_cuda_infllm_page(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

// infllm::pager_api, under the name "ggml_backend_infllm_pager_api"
const void * ggml_cuda_infllm_pager_api();

#else // ports of ggml-cuda to other platforms: the host pages

inline bool         ggml_cuda_infllm_supports(const ggml_tensor *)                            { return false; }
inline void         ggml_cuda_infllm_page    (ggml_backend_cuda_context &, ggml_tensor *)     {}
inline const void * ggml_cuda_infllm_pager_api()                                              { return nullptr; }

#endif
