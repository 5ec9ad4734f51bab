#include "llama-infllm-split.h"

#include "../infllm/text-split.h"

#include "llama-impl.h"

#include <algorithm>
#include <stdexcept>

llama_infllm_split::llama_infllm_split(
        llama_batch_allocr & balloc,
        const llama_infllm_layers & layers,
        const std::vector<llama_infllm_sequence> & seqs,
        uint32_t n_ubatch,
        bool can_stream) :
    balloc(balloc),
    batch(balloc.get_batch()),
    layers(layers),
    n_ubatch(n_ubatch),
    can_stream(can_stream),
    parts(seqs.size()) {
    balloc.split_reset();

    for (size_t s = 0; s < seqs.size(); ++s) {
        plans.push_back({ 0, seqs[s].get_n_tokens(), seqs[s].get_n_offload() });
        parts[s].p1 = plans[s].p1;
    }
    for (int32_t j = 0; j < batch.n_tokens; ++j) {
        if (batch.n_seq_id[j] != 1) {
            throw std::runtime_error("a token belongs to several sequences, but the sequences of the InfLLM memory share no cells: "
                    "give each sequence its own tokens");
        }
        auto & p = parts[batch.seq_id[j][0]];
        p.p1          += 1;
        p.n_outputs   += batch.logits[j] != 0;
        p.last_output  = batch.logits[j] != 0;
    }
}

bool llama_infllm_split::is_split(int32_t i) const {
    return batch.pos[i] < llama_pos(plans[batch.seq_id[i][0]].p1);
}

uint32_t llama_infllm_split::n_tokens() const {
    const auto &   part = parts[batch.seq_id[i][0]];
    const uint32_t p0   = plans[batch.seq_id[i][0]].p1;
    if (!layers.can_page() || part.p1 <= layers.cells.n_cells() || p0 >= part.p1) {
        return n_ubatch;
    }
    const bool ends = part.n_outputs == 1 && part.last_output;
    return infllm::text_split { n_ubatch, ends ? layers.selector->n_end() : 0 }.next(p0, part.p1) - p0;
}

uint32_t llama_infllm_split::n_streams() const {
    uint32_t     n = 0;
    llama_seq_id s = batch.seq_id[i][0];
    for (int32_t j = i; can_stream && j < batch.n_tokens && n < n_ubatch; ++j) {
        if (batch.seq_id[j][0] == s && !is_split(j)) {
            if (parts[s].p1 != plans[s].p1 + 1) {
                break;
            }
            n++;
            s++;
        }
    }
    return n;
}

llama_ubatch llama_infllm_split::next() {
    while (i < batch.n_tokens && is_split(i)) {
        i++;
    }
    const bool     any      = i < batch.n_tokens;
    const uint32_t n_stream = any ? n_streams() : 0;

    // it takes one sequence more than it is asked for, and those that n_streams() has found
    auto res = n_stream > 1 ? balloc.split_equal(n_stream - 1, true, 0) : balloc.split_seq(any ? n_tokens() : n_ubatch);

    for (uint32_t j = 0; j < res.n_tokens; j += res.n_tokens/res.n_seqs_unq) {
        take(res.seq_id[j][0], res.pos[j], res.n_tokens/res.n_seqs_unq);
    }
    return res;
}

void llama_infllm_split::take(llama_seq_id s, llama_pos pos, uint32_t n) {
    const uint32_t p0 = plans[s].p1;

    if (pos != llama_pos(p0)) {
        throw std::runtime_error(::format("the tokens of sequence %d start at position %d, but must follow on position %d",
                s, pos, int(p0) - 1));
    }
    if (p0 + n > layers.prm.n_ctx_seq) {
        throw std::runtime_error(::format("sequence %d needs %u tokens, but n_ctx is %u per sequence: "
                "make the context larger or the text shorter", s, p0 + n, layers.prm.n_ctx_seq));
    }
    const auto plan = llama_infllm_sequence::make_plan(layers.cells, p0, p0 + n, plans[s].n_offload);
    n_blocks_new += plan.n_offload - plans[s].n_offload;
    n_block_max   = std::max(n_block_max, plan.n_offload);
    plans[s] = plan;
}
