// embeddings of texts, see context.h

#include "context.h"

#include <stdexcept>

// ends with its scope
struct batch_owner {
    explicit batch_owner(int32_t n_tokens) : batch(llama_batch_init(n_tokens, 0, 1)) {}
    ~batch_owner() { llama_batch_free(batch); }

    batch_owner(const batch_owner &) = delete;

    llama_batch batch;
};

std::vector<py::array_t<float>> context::embed(const std::vector<std::vector<llama_token>> & texts) {
    size_t n_tokens = 0;
    for (const auto & text : texts) {
        n_tokens += text.size();
        for (const llama_token token : text) {
            mdl->check_token(token);
        }
        if (text.empty()) {
            throw std::invalid_argument("a text without tokens has no embedding");
        }
    }
    if (n_tokens == 0 || n_tokens > llama_n_ubatch(ptr.get()) || texts.size() > llama_n_seq_max(ptr.get())) {
        throw std::invalid_argument(std::to_string(texts.size()) + " texts of " + std::to_string(n_tokens) + " tokens: at most "
            + std::to_string(llama_n_seq_max(ptr.get())) + " texts and n_ubatch = " + std::to_string(llama_n_ubatch(ptr.get()))
            + " tokens can be embedded at once");
    }

    batch_owner owner(n_tokens);
    auto & batch = owner.batch;
    for (size_t s = 0; s < texts.size(); ++s) {
        for (size_t i = 0; i < texts[s].size(); ++i) {
            batch.token   [batch.n_tokens]    = texts[s][i];
            batch.pos     [batch.n_tokens]    = i;
            batch.n_seq_id[batch.n_tokens]    = 1;
            batch.seq_id  [batch.n_tokens][0] = s;
            batch.logits  [batch.n_tokens]    = true;
            batch.n_tokens++;
        }
    }

    clear();
    run(batch);
    clear();

    const size_t n_embd = llama_model_n_embd_out(mdl->get());
    const bool   pooled = llama_pooling_type(ptr.get()) != LLAMA_POOLING_TYPE_NONE;

    std::vector<py::array_t<float>> res;
    const float * rows = pooled ? nullptr : llama_get_embeddings(ptr.get());
    for (size_t s = 0; s < texts.size(); ++s) {
        const float * src = pooled ? llama_get_embeddings_seq(ptr.get(), s) : rows;
        if (!src) {
            throw std::runtime_error("the model gave no embeddings");
        }
        if (pooled) {
            res.emplace_back(n_embd, src);
        } else {
            res.emplace_back(std::vector<size_t> { texts[s].size(), n_embd }, src);
            rows += texts[s].size()*n_embd;
        }
    }
    return res;
}
