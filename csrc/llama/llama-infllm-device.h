#pragma once

#include "llama-infllm-layers.h"

#include "ggml-backend.h"

// Throws unless the device can do all that reads or writes a resident buffer and its representative keys, which is computed
// where they are (see llama_infllm_pin_attn). l has its tensors but for those, not yet allocated.
//   attn_soft_cap  of the model, 0: none
//   sinks          of the layer, or nullptr
void llama_infllm_check_device(ggml_backend_dev_t dev, const llama_infllm_layers & layers, const llama_infllm_layer & l,
        float attn_soft_cap, ggml_tensor * sinks);
