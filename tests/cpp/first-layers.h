#pragma once

#include "gguf.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <string>

// a GGUF file with the first layers of a model alone
inline void write_first_layers(const std::string & source, const std::string & target, uint32_t n_layer) {
    ggml_context * tensors = nullptr;
    gguf_context * in      = gguf_init_from_file(source.c_str(), { /*.no_alloc =*/ false, /*.ctx =*/ &tensors });
    gguf_context * out     = gguf_init_empty();
    ASSERT_TRUE(in) << "failed to read INFLLM_TEST_MODEL = " << source;

    const std::string arch = gguf_get_val_str(in, gguf_find_key(in, "general.architecture"));
    gguf_set_kv(out, in);
    gguf_set_val_u32(out, (arch + ".block_count").c_str(), n_layer);
    for (int64_t i = 0; i < gguf_get_n_tensors(in); ++i) {
        const char * name = gguf_get_tensor_name(in, i);
        uint32_t il;
        if (sscanf(name, "blk.%u.", &il) != 1 || il < n_layer) {
            gguf_add_tensor(out, ggml_get_tensor(tensors, name));
        }
    }
    EXPECT_TRUE(gguf_write_to_file(out, target.c_str(), false)) << target;

    gguf_free(out);
    gguf_free(in);
    ggml_free(tensors);
}
