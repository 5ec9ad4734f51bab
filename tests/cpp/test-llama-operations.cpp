// What can happen to a sequence: it is cut, copied, read again, paged by another one.

#include "infllm-fixture.h"

INSTANTIATE_TEST_SUITE_P(Position, InfllmPosition,
        testing::Values(LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM), position_name);

// the same blocks in the same slots, whoever pages, through all that can happen to a sequence
TEST_P(InfllmPosition, DevicePagedEqualsHostPaged) {
    const struct { ggml_type type; uint32_t repr_topk; } cases[] = {
        { GGML_TYPE_F16,  2 }, { GGML_TYPE_Q8_0, 2 }, { GGML_TYPE_Q4_0, 2 }, // all keys of a part
        { GGML_TYPE_F16,  1 }, { GGML_TYPE_Q8_0, 1 },                        // chosen by the queries that follow
    };
    for (const auto & [type, repr_topk] : cases) {
        SCOPED_TRACE(std::string(ggml_type_name(type)) + ", repr_topk = " + std::to_string(repr_topk));

        auto cprm = context_params();
        cprm.type_k = type;
        cprm.type_v = type;

        context_ptr ctx[2];
        for (int i = 0; i < 2; ++i) {
            auto prm = small_params(GetParam());
            prm.paging = i == 0 ? LLAMA_INFLLM_PAGING_HOST : LLAMA_INFLLM_PAGING_DEVICE;
            prm.repr_topk = repr_topk;
            ctx[i] = make_infllm(prm, cprm);
            ASSERT_TRUE(ctx[i]);
        }

        const auto same = [&](const tokens_t & tokens) {
            const auto logits = feed(ctx[0].get(), tokens);
            EXPECT_EQ(max_diff(feed(ctx[1].get(), tokens), logits), 0.0f);

            for (int32_t il = 0; il < llama_model_n_layer(model.get()); ++il) {
                const auto host   = get_stats(ctx[0].get(), il);
                const auto device = get_stats(ctx[1].get(), il);
                EXPECT_EQ(device.n_select,       host.n_select);
                EXPECT_EQ(device.n_selected,     host.n_selected);
                EXPECT_EQ(device.n_page_in,      host.n_page_in) << "layer " << il;
                EXPECT_EQ(device.bytes_paged_in, host.bytes_paged_in);
            }
            for (auto & c : ctx) {
                EXPECT_EQ(llama_infllm_check_slots(c.get()), 0u);
            }
        };

        const auto tokens = random_tokens(256);
        same(slice(tokens, 0, 70));    // fits
        same(slice(tokens, 70, 190));  // overflows
        for (size_t i = 190; i < 200; ++i) {
            same(slice(tokens, i, i + 1));
        }
        for (auto & c : ctx) { // blocks come back into the ring
            ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(c.get()), 0, 150, -1));
        }
        same(slice(tokens, 150, 256));
        EXPECT_GT(get_stats(ctx[1].get()).n_page_in, 0u);

        for (auto & c : ctx) {
            llama_memory_clear(llama_get_memory(c.get()), true);
            llama_infllm_reset_stats(c.get());
        }
        same(slice(tokens, 0, 200));
    }
}

// memory that can be pinned runs out in the middle: the host takes over what the device has done
TEST_P(InfllmPosition, HostTakesOverFromTheDevice) {
    auto prm = small_params(GetParam());
    prm.paging = LLAMA_INFLLM_PAGING_HOST;
    auto host = make_infllm(prm);
    ASSERT_TRUE(host);

    const auto tokens = random_tokens(240);
    feed(host.get(), slice(tokens, 0, 180));

    prm.paging           = LLAMA_INFLLM_PAGING_DEVICE;
    prm.pinned_max_bytes = get_stats(host.get()).bytes_store;
    auto device = make_infllm(prm);
    ASSERT_TRUE(device);
    feed(device.get(), slice(tokens, 0, 180));

    EXPECT_EQ(max_diff(feed(device.get(), slice(tokens, 180, 240)), feed(host.get(), slice(tokens, 180, 240))), 0.0f);
    EXPECT_EQ(get_stats(device.get()).n_page_in, get_stats(host.get()).n_page_in);

    // tracing needs the scores, which a device keeps to itself
    auto traced = make_infllm(prm);
    ASSERT_TRUE(traced);
    feed(traced.get(), slice(tokens, 0, 180));
    int n_event = 0;
    llama_infllm_set_trace(traced.get(), [](const llama_infllm_trace_event *, void * n) { ++*static_cast<int *>(n); }, &n_event);
    feed(traced.get(), slice(tokens, 180, 184));
    EXPECT_EQ(n_event, llama_model_n_layer(model.get()));
}

// However often slots were filled and the ring went round, a key is what it was when it was written: it is rotated in slots alone,
// from what the store has.
TEST_P(InfllmPosition, TruncatedBelowTheBufferIsExact) {
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        SCOPED_TRACE(ggml_type_name(type));

        auto cprm = context_params();
        cprm.type_k = type;
        cprm.type_v = type;
        auto ctx   = make_infllm(small_params(GetParam()), cprm);
        auto fresh = make_infllm(small_params(GetParam()), cprm);
        ASSERT_TRUE(ctx && fresh);

        const auto tokens = random_tokens(400);
        feed(ctx.get(), tokens);
        EXPECT_GT(get_stats(ctx.get()).n_blocks, 0u);

        ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, 96, -1));
        EXPECT_EQ(n_tokens(ctx.get()), 96u);
        EXPECT_EQ(get_stats(ctx.get()).n_blocks, 0u);
        EXPECT_EQ(get_stats(ctx.get()).bytes_store, 0u);
        EXPECT_EQ(get_stats(ctx.get()).n_tokens_resident, 96u);

        feed(fresh.get(), slice(tokens, 0, 96));

        const auto more = random_tokens(20, 2);
        EXPECT_EQ(max_diff(feed(ctx.get(), more), feed(fresh.get(), more)), 0.0f);
        EXPECT_EQ(max_diff(feed(ctx.get(), { more[0] }), feed(fresh.get(), { more[0] })), 0.0f);
    }
}

TEST_P(InfllmPosition, TruncatedWhilePagingKeepsPaging) {
    auto ctx   = make_infllm(small_params(GetParam()));
    auto fresh = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && fresh);

    const auto tokens = random_tokens(350);
    feed(ctx.get(), tokens);
    for (const uint32_t n : { 304u, 259u, 200u, 150u, 129u }) {
        ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, llama_pos(n), -1));
        const auto stats = get_stats(ctx.get());
        ASSERT_EQ(stats.n_tokens, n);
        ASSERT_EQ(stats.n_blocks, uint64_t(n_blocks(n, n))*stats.n_layer);
        ASSERT_LE(stats.n_tokens_resident, N_CELLS);
        ASSERT_TRUE(all_finite(feed(ctx.get(), slice(tokens, n, n + 1))));
        ASSERT_EQ(n_tokens(ctx.get()), n + 1);
    }

    // from here on again, to the same gauges as without the detour
    feed(ctx.get(),   slice(tokens, 130, 350));
    feed(fresh.get(), tokens);
    const auto a = get_stats(ctx.get());
    const auto b = get_stats(fresh.get());
    EXPECT_EQ(a.n_tokens,          b.n_tokens);
    EXPECT_EQ(n_tokens(ctx.get()), 350u);
    EXPECT_GE(a.n_blocks + b.n_layer*2, b.n_blocks);
    EXPECT_LE(a.n_blocks, b.n_blocks + b.n_layer*2);
}

// what blocks are selected for every ubatch, by layer, and in which order
struct selections {
    std::vector<std::vector<int32_t>> blocks;

    static void trace(const llama_infllm_trace_event * e, void * user_data) {
        auto & s = *static_cast<selections *>(user_data);
        s.blocks.emplace_back(e->selected, e->selected + e->n_selected);
    }
};

// Whatever came after the truncation point, and whatever it had paged in: more slots than are selected, or as many
TEST_P(InfllmPosition, TheSameTextAgainGivesTheSameLogitsAndSelections) {
    for (const uint32_t n_slot : { 4u, 8u }) {
        SCOPED_TRACE(n_slot);

        auto prm = small_params(GetParam());
        prm.topk              = std::min(4u, n_slot);
        prm.max_cached_blocks = n_slot;
        auto ctx = make_infllm(prm);
        ASSERT_TRUE(ctx);
        auto * mem = llama_get_memory(ctx.get());

        // a text that ends with a question, and what is decoded afterwards
        const auto text = random_tokens(230);
        const auto run  = [&](uint32_t from, selections & sel) {
            EXPECT_TRUE(llama_memory_seq_rm(mem, 0, llama_pos(from), -1));
            if (prm.paging != LLAMA_INFLLM_PAGING_DEVICE) { // the host would take over
                llama_infllm_set_trace(ctx.get(), selections::trace, &sel);
            }
            auto res = feed(ctx.get(), slice(text, from, text.size()));
            for (int i = 0; i < 20; ++i) {
                const auto next = feed(ctx.get(), { 300 + i });
                res.insert(res.end(), next.begin(), next.end());
            }
            llama_infllm_set_trace(ctx.get(), nullptr, nullptr);
            EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
            return res;
        };

        selections first;
        const auto expected = run(0, first);
        ASSERT_TRUE(all_finite(expected));
        // another text comes in between; from the start, from where any ubatch begins, and from where the question begins
        for (const uint32_t from : { 0u, 112u, 208u, uint32_t(text.size()) - N_END }) {
            SCOPED_TRACE("again from " + std::to_string(from));
            feed(ctx.get(), random_tokens(60, from));
            selections again;
            ASSERT_EQ(max_diff(run(from, again), expected), 0.0f);
            ASSERT_LE(again.blocks.size(), first.blocks.size());
            ASSERT_TRUE(std::equal(again.blocks.rbegin(), again.blocks.rend(), first.blocks.rbegin()));
        }
    }
}

// any n_batch that is not below n_ubatch, where batches end at multiples of n_ubatch and before the question
TEST_P(InfllmPosition, BatchesOfAnySizeGiveTheSameLogits) {
    const auto text = random_tokens(262);
    const auto p1   = uint32_t(text.size());

    logits_t expected;
    for (const uint32_t n_batch : { 512u, 64u, 33u, 16u }) {
        auto cprm = context_params();
        cprm.n_batch = n_batch;
        auto ctx = make_infllm(small_params(GetParam()), cprm);
        ASSERT_TRUE(ctx);

        for (uint32_t p0 = 0; p0 < p1;) {
            const uint32_t end = llama_infllm_batch_end(ctx.get(), p0, p1, true);
            ASSERT_LE(end - p0, n_batch);
            llama_batch batch = llama_batch_get_one(const_cast<llama_token *>(text.data()) + p0, int32_t(end - p0));
            std::vector<int8_t> outputs(end - p0, 0);
            outputs.back() = end == p1;
            batch.logits = outputs.data();
            ASSERT_EQ(llama_decode(ctx.get(), batch), 0);
            p0 = end;
        }
        const float * l = llama_get_logits_ith(ctx.get(), -1);
        const logits_t logits(l, l + llama_vocab_n_tokens(llama_model_get_vocab(model.get())));
        if (expected.empty()) {
            expected = logits;
        }
        EXPECT_EQ(max_diff(logits, expected), 0.0f) << n_batch;
    }
}

TEST_P(InfllmPosition, RemovingTheMiddleChangesNothing) {
    auto ctx  = make_infllm(small_params(GetParam()));
    auto same = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && same);

    const auto tokens = random_tokens(200);
    feed(ctx.get(),  tokens);
    feed(same.get(), tokens);

    auto * mem = llama_get_memory(ctx.get());
    EXPECT_FALSE(llama_memory_seq_rm(mem, 0, 10, 20));
    EXPECT_FALSE(llama_memory_seq_rm(mem, 0, 170, 199));
    EXPECT_FALSE(llama_memory_seq_rm(mem, -1, 0, 100));
    EXPECT_TRUE (llama_memory_seq_rm(mem, 0, 200, -1)); // nothing is there
    EXPECT_FALSE(llama_memory_can_shift(mem));
    llama_memory_seq_add(mem, 0, 100, -1, -50);
    llama_memory_seq_div(mem, 0, 0, -1, 2);

    EXPECT_EQ(n_tokens(ctx.get()), 200u);
    EXPECT_EQ(llama_memory_seq_pos_min(mem, 0), 0);
    EXPECT_EQ(get_stats(ctx.get()).n_blocks, get_stats(same.get()).n_blocks);
    EXPECT_EQ(max_diff(feed(ctx.get(), { 300 }), feed(same.get(), { 300 })), 0.0f);
}

TEST_P(InfllmPosition, ClearStartsAnew) {
    auto ctx   = make_infllm(small_params(GetParam()));
    auto fresh = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && fresh);

    for (const bool data : { true, false }) {
        feed(ctx.get(), random_tokens(150, 2));
        llama_memory_clear(llama_get_memory(ctx.get()), data);
        EXPECT_EQ(n_tokens(ctx.get()), 0u);
        EXPECT_EQ(get_stats(ctx.get()).bytes_store, 0u);
        EXPECT_EQ(get_stats(ctx.get()).n_seq, 0u);
    }

    const auto tokens = random_tokens(200);
    EXPECT_EQ(max_diff(feed(ctx.get(), tokens), feed(fresh.get(), tokens)), 0.0f);
}

TEST_P(InfllmPosition, InterleavedSequencesAreIndependent) {
    auto cprm = context_params();
    cprm.n_ctx     = 2*N_CTX;
    cprm.n_seq_max = 2;

    auto both = make_infllm(small_params(GetParam()), cprm);
    ASSERT_TRUE(both);

    const tokens_t tokens[2] = { random_tokens(224, 1), random_tokens(160, 2) };
    logits_t last[2];
    for (size_t i = 0; i < 224; i += 32) {
        for (int s = 0; s < 2; ++s) {
            if (i < tokens[s].size()) {
                last[s] = feed(both.get(), slice(tokens[s], i, i + 32), s);
            }
        }
    }
    EXPECT_EQ(get_stats(both.get()).n_seq, 2u);
    EXPECT_EQ(get_stats(both.get()).n_tokens, 224u + 160u);

    for (int s = 0; s < 2; ++s) {
        auto alone = make_infllm(small_params(GetParam()));
        ASSERT_TRUE(alone);
        logits_t logits;
        for (size_t i = 0; i < tokens[s].size(); i += 32) {
            logits = feed(alone.get(), slice(tokens[s], i, i + 32));
        }
        EXPECT_EQ(max_diff(last[s], logits), 0.0f) << "sequence " << s;
    }
}

TEST_P(InfllmPosition, CopyContinuesLikeItsSource) {
    auto cprm = context_params();
    cprm.n_ctx     = 2*N_CTX;
    cprm.n_seq_max = 2;

    auto ctx   = make_infllm(small_params(GetParam()), cprm);
    auto alone = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && alone);

    const auto tokens = random_tokens(200);
    const auto more   = random_tokens(40, 2);
    feed(ctx.get(),   tokens);
    feed(alone.get(), tokens);

    auto * mem = llama_get_memory(ctx.get());
    const auto n_stored = get_stats(ctx.get()).n_blocks;
    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    EXPECT_EQ(n_tokens(ctx.get(), 1), 200u);
    EXPECT_EQ(get_stats(ctx.get()).n_blocks, n_stored); // shared

    const auto expected = feed(alone.get(), more);
    EXPECT_EQ(max_diff(feed(ctx.get(), more, 1), expected), 0.0f);
    EXPECT_EQ(max_diff(feed(ctx.get(), more, 0), expected), 0.0f);

    // the copy outlives its source
    EXPECT_TRUE(llama_memory_seq_rm(mem, 0, -1, -1));
    EXPECT_EQ(n_tokens(ctx.get(), 0), 0u);
    EXPECT_EQ(max_diff(feed(ctx.get(), { 300 }, 1), feed(alone.get(), { 300 })), 0.0f);

    llama_memory_seq_keep(mem, 0);
    EXPECT_EQ(get_stats(ctx.get()).bytes_store, 0u);
}
