// Attention over a text that does not fit, failures, traces.

#include "infllm-fixture.h"

#include <climits>
#include <cstring>

// with all layers
class InfllmWhole : public InfllmPosition {
protected:
    static void SetUpTestSuite() {
        if (!model_path().empty()) {
            load(model_path());
        }
    }
};

INSTANTIATE_TEST_SUITE_P(Position, InfllmPosition,
        testing::Values(LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM), position_name);
INSTANTIATE_TEST_SUITE_P(Position, InfllmWhole,
        testing::Values(LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM), position_name);

//
// attention
//

TEST_P(InfllmPosition, EqualsPlainWhileItFits) {
    auto plain  = make_plain();
    auto infllm = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(plain && infllm);
    EXPECT_TRUE (llama_infllm_active(infllm.get()));
    EXPECT_FALSE(llama_infllm_active(plain.get()));

    tokens_t next = random_tokens(100);
    while (n_tokens(plain.get()) < 110) {
        const auto a = feed(plain.get(),  next);
        const auto b = feed(infllm.get(), next);
        ASSERT_TRUE(all_finite(b));
        ASSERT_LE(max_diff(a, b), 1e-2f) << "after " << n_tokens(plain.get()) << " tokens";
        ASSERT_EQ(argmax(a), argmax(b));
        next = { argmax(a) };
    }
    EXPECT_EQ(get_stats(infllm.get()).n_select, 0u);
    EXPECT_EQ(get_stats(infllm.get()).n_blocks, 0u);
}

// A random text that repeats itself can only be continued by what was read one period ago. That is beyond the ring, so it has
// to be found, paged in and attended at the right positions. Search by keys finds it in every text. Published scores choose by
// the queries of a whole ubatch, and of such a text each wants another block: they find most, over several texts.
TEST_P(InfllmWhole, ContinuesFromPagedBlocks) {
    const uint32_t n_period = 64;
    const uint32_t n_test   = 31; // ubatches end at multiples of N_UBATCH

    // tokens of the last n_test that are predicted
    const auto n_right = [&](llama_context * ctx, const tokens_t & tokens) {
        llama_memory_clear(llama_get_memory(ctx), true);
        const size_t n = tokens.size() - n_test;
        feed(ctx, slice(tokens, 0, n - 1));
        EXPECT_EQ(decode(ctx, &tokens[n - 1], n_test, 0, true), 0);
        int res = 0;
        for (uint32_t i = 0; i < n_test; ++i) {
            const float * l = llama_get_logits_ith(ctx, int32_t(i));
            res += argmax(logits_t(l, l + llama_vocab_n_tokens(llama_model_get_vocab(model.get())))) == tokens[n + i];
        }
        return res;
    };

    auto prm = small_params(GetParam());
    prm.topk              = 8;
    prm.max_cached_blocks = 12;
    auto plain  = make_plain();
    auto infllm = make_infllm(prm);
    prm.topk              = 1;
    prm.max_cached_blocks = 1;
    auto forgetful = make_infllm(prm);
    prm = published_params(GetParam());
    prm.topk = 8;
    auto published = make_infllm(prm);
    ASSERT_TRUE(plain && infllm && forgetful && published);

    int sum_plain     = 0;
    int sum_published = 0;
    for (const uint32_t seed : { 1u, 2u, 3u }) {
        const auto period = random_tokens(n_period, seed);
        tokens_t tokens;
        for (int i = 0; i < 4; ++i) {
            tokens.insert(tokens.end(), period.begin(), period.end());
        }
        const int n_plain = n_right(plain.get(), tokens);
        EXPECT_GE(n_plain, int(n_test)*3/4) << "seed " << seed;
        EXPECT_GE(n_right(infllm.get(), tokens), n_plain*3/4) << "seed " << seed;
        EXPECT_LE(n_right(forgetful.get(), tokens), n_plain/2) << "seed " << seed; // or this test would see nothing
        const int n_published = n_right(published.get(), tokens);
        sum_plain     += n_plain;
        sum_published += n_published;
    }
    EXPECT_GT(2*sum_published, sum_plain);
    EXPECT_GT(get_stats(infllm.get()).n_page_in, 0u);
    EXPECT_GT(get_stats(published.get()).n_page_in, 0u);
}

TEST_P(InfllmPosition, PublishedScoresAreTruncatedAndCopied) {
    auto cprm = context_params();
    cprm.n_ctx     = 2*N_CTX;
    cprm.n_seq_max = 2;

    auto ctx   = make_infllm(published_params(GetParam()), cprm);
    auto fresh = make_infllm(published_params(GetParam()));
    ASSERT_TRUE(ctx && fresh);

    auto *     mem    = llama_get_memory(ctx.get());
    const auto tokens = random_tokens(350);
    feed(ctx.get(), tokens);

    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    const auto more = random_tokens(20, 2);
    EXPECT_EQ(max_diff(feed(ctx.get(), more, 0), feed(ctx.get(), more, 1)), 0.0f);
    EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);

    for (const uint32_t n : { 304u, 259u, 200u, 150u }) {
        ASSERT_TRUE(llama_memory_seq_rm(mem, 0, llama_pos(n), -1));
        ASSERT_TRUE(all_finite(feed(ctx.get(), slice(tokens, n, n + 20))));
        ASSERT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
    }

    // nothing is selected within the buffer
    llama_memory_seq_keep(mem, 1);
    ASSERT_TRUE(llama_memory_seq_rm(mem, 1, 70, -1));
    feed(fresh.get(), slice(tokens, 0, 70));
    EXPECT_EQ(get_stats(ctx.get()).n_blocks, 0u);
    EXPECT_EQ(max_diff(feed(ctx.get(), more, 1), feed(fresh.get(), more)), 0.0f);
}

TEST_P(InfllmPosition, PagesWithBoundedResidentMemory) {
    auto ctx = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx);

    const auto n_layer = uint32_t(llama_model_n_layer(model.get()));
    const auto tokens  = random_tokens(300);
    const auto before  = get_stats(ctx.get());
    EXPECT_EQ(before.n_layer, n_layer);
    EXPECT_EQ(before.n_slots, 8*n_layer);
    EXPECT_EQ(before.n_tokens, 0u);
    EXPECT_EQ(before.bytes_store, 0u);

    uint64_t bytes_block = 0;
    uint64_t n_ubatch    = 0; // that page
    for (uint32_t p = 0; p < tokens.size();) {
        const uint32_t n = p < 288 ? N_UBATCH : 1; // prompt, then single tokens
        ASSERT_TRUE(all_finite(feed(ctx.get(), slice(tokens, p, p + n)))) << "at " << p;

        const auto     stats = get_stats(ctx.get());
        const uint32_t n_blk = n_blocks(p, p + n);
        p += n;
        n_ubatch += n_blk > 0;

        ASSERT_EQ(stats.n_seq,    1u);
        ASSERT_EQ(stats.n_tokens, p);
        ASSERT_EQ(stats.n_blocks, uint64_t(n_blk)*n_layer);
        ASSERT_EQ(stats.n_tokens_resident, n_blk == 0 ? p : p - n_blk*8 + 8*8);
        ASSERT_LE(stats.n_tokens_resident, N_CELLS);
        ASSERT_EQ(stats.bytes_resident, before.bytes_resident);
        ASSERT_EQ(stats.bytes_repr,     before.bytes_repr);
        ASSERT_EQ(stats.n_selected, stats.n_hit + stats.n_page_in);
        ASSERT_EQ(stats.n_select,   n_ubatch*n_layer);
        ASSERT_EQ(stats.n_selected, 4*stats.n_select);

        // the store grows by the same number of bytes for every block
        if (n_blk > 0) {
            if (bytes_block == 0) {
                bytes_block = stats.bytes_store/n_blk;
            }
            ASSERT_EQ(stats.bytes_store, n_blk*bytes_block);
        }
        ASSERT_LE(stats.bytes_store_kv, stats.bytes_store);
    }

    const auto all = get_stats(ctx.get());
    EXPECT_GT(all.n_page_in, 0u);
    EXPECT_GT(all.n_hit,     0u);
    // for a prompt other slots are filled, too
    EXPECT_GE(all.bytes_paged_in, all.n_page_in*(all.bytes_store_kv/all.n_blocks));
    EXPECT_EQ(all.bytes_paged_in%(all.bytes_store_kv/all.n_blocks), 0u);
    EXPECT_EQ(all.bytes_store_kv/all.n_blocks, 8*all.bytes_resident/n_layer/N_ALLOC);

    // the layers add up
    uint64_t n_page_in = 0;
    for (uint32_t il = 0; il < n_layer; ++il) {
        n_page_in += get_stats(ctx.get(), int32_t(il)).n_page_in;
    }
    EXPECT_EQ(n_page_in, all.n_page_in);
    llama_infllm_stats none;
    EXPECT_FALSE(llama_infllm_get_stats(ctx.get(), int32_t(n_layer), &none));

    llama_infllm_reset_stats(ctx.get());
    const auto reset = get_stats(ctx.get());
    EXPECT_EQ(reset.n_selected, 0u);
    EXPECT_EQ(reset.n_blocks, all.n_blocks); // gauges stay
}

TEST_F(Infllm, ContextIsFullAtNCtx) {
    auto cprm = context_params();
    cprm.n_ctx = 256;
    auto ctx = make_infllm(small_params(), cprm);
    ASSERT_TRUE(ctx);

    feed(ctx.get(), random_tokens(256u));
    EXPECT_EQ(n_tokens(ctx.get()), 256u);

    const llama_token token = 100;
    EXPECT_NE(decode(ctx.get(), &token, 1), 0);
    EXPECT_NE(std::string(llama_infllm_last_error()).find("n_ctx is 256"), std::string::npos) << llama_infllm_last_error();
    EXPECT_EQ(n_tokens(ctx.get()), 256u);
}

TEST_P(InfllmPosition, QuantisedCachesPage) {
    for (const ggml_type type : { GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        SCOPED_TRACE(ggml_type_name(type));

        auto cprm = context_params();
        cprm.type_k = type;
        cprm.type_v = type;
        auto ctx = make_infllm(small_params(GetParam()), cprm);
        ASSERT_TRUE(ctx);

        ASSERT_TRUE(all_finite(feed(ctx.get(), random_tokens(200))));
        EXPECT_GT(get_stats(ctx.get()).n_page_in, 0u);

        const auto n_embd_k = int64_t(llama_model_n_embd(model.get()))/llama_model_n_head(model.get())*
            llama_model_n_head_kv(model.get());
        EXPECT_EQ(get_stats(ctx.get(), 0).bytes_resident, 2*N_ALLOC*ggml_row_size(type, n_embd_k));
    }
}

//
// failures
//

TEST_P(InfllmPosition, FullStoreFailsTheBatchOnly) {
    auto probe = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(probe);
    feed(probe.get(), random_tokens(192));
    feed(probe.get(), random_tokens(4));
    const auto stats = get_stats(probe.get());

    auto prm = small_params(GetParam());
    prm.store_max_bytes = stats.bytes_store + 1;
    auto ctx = make_infllm(prm);
    ASSERT_TRUE(ctx);

    const auto tokens = random_tokens(296);
    feed(ctx.get(), slice(tokens, 0, 192));
    feed(ctx.get(), slice(tokens, 192, 196));
    const auto before = get_stats(ctx.get());

    EXPECT_NE(decode(ctx.get(), tokens.data() + 196, 100), 0);
    const std::string error = llama_infllm_last_error();
    EXPECT_NE(error.find("store_max_bytes"), std::string::npos) << error;
    EXPECT_EQ(n_tokens(ctx.get()), 196u);
    EXPECT_EQ(get_stats(ctx.get()).n_blocks, before.n_blocks);

    // what fits still works: here until the next block leaves
    EXPECT_TRUE(all_finite(feed(ctx.get(), { 300 })));
    EXPECT_EQ(n_tokens(ctx.get()), 197u);

    llama_memory_clear(llama_get_memory(ctx.get()), true);
    EXPECT_TRUE(all_finite(feed(ctx.get(), slice(tokens, 0, 196))));
    EXPECT_EQ(n_tokens(ctx.get()), 196u);
}

// where blocks are makes no difference to what is computed
TEST_P(InfllmPosition, TheStoreGoesOnInFiles) {
    auto prm = small_params(GetParam());
    prm.paging = LLAMA_INFLLM_PAGING_HOST;
    auto in_memory = make_infllm(prm);
    prm.store_max_bytes = 1;
    std::strcpy(prm.store_path, testing::TempDir().c_str());
    auto in_files = make_infllm(prm);
    ASSERT_TRUE(in_memory && in_files) << llama_infllm_last_error();

    const auto tokens = random_tokens(400);
    EXPECT_EQ(feed(in_files.get(), tokens), feed(in_memory.get(), tokens));
    EXPECT_EQ(feed(in_files.get(), { 7 }), feed(in_memory.get(), { 7 }));
    const auto stats = get_stats(in_files.get());
    EXPECT_GT(stats.bytes_store, 0u);
    EXPECT_EQ(stats.bytes_store_file, stats.bytes_store);
    EXPECT_EQ(get_stats(in_memory.get()).bytes_store_file, 0u);
    EXPECT_EQ(llama_infllm_check_slots(in_files.get()), 0u);

    llama_memory_seq_rm(llama_get_memory(in_files .get()), 0, 200, -1);
    llama_memory_seq_rm(llama_get_memory(in_memory.get()), 0, 200, -1);
    EXPECT_EQ(feed(in_files.get(), slice(tokens, 0, 250)), feed(in_memory.get(), slice(tokens, 0, 250)));
}

// what was computed before the failure is kept; what comes after it is as if there had been none
TEST_P(InfllmPosition, AbortedDecodeIsResumed) {
    auto ctx   = make_infllm(small_params(GetParam()));
    auto fresh = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && fresh);

    // The device keeps its slots to itself: for a single token, these are what the aborted computation left. (No device can be
    // aborted.)
    const bool device = small_params().paging == LLAMA_INFLLM_PAGING_DEVICE;

    const auto tokens = random_tokens(290);
    const struct { uint32_t n0; uint32_t n1; } cases[] = {
        { 112, 142 }, // the aborted batch begins to page
        { 240, 270 }, // it goes on, and the slots move
        { 250, 251 }, // a single token
    };
    for (const auto & [n0, n1] : cases) {
        SCOPED_TRACE(n0);
        const uint32_t n_new = n1 - n0;

        llama_memory_clear(llama_get_memory(fresh.get()), true);
        feed(fresh.get(), slice(tokens, 0, n0));
        const auto expected = feed(fresh.get(), slice(tokens, n0, n1));
        const auto after    = feed(fresh.get(), { 300 });

        // aborted after so many calls of the callback; returns what is left of them
        const auto decode_aborted = [&](int n_left, int expected_rc) {
            llama_memory_clear(llama_get_memory(ctx.get()), true);
            feed(ctx.get(), slice(tokens, 0, n0));
            llama_set_abort_callback(ctx.get(), [](void * data) { return --*static_cast<int *>(data) < 0; }, &n_left);
            EXPECT_EQ(decode(ctx.get(), tokens.data() + n0, n_new), expected_rc);
            llama_set_abort_callback(ctx.get(), nullptr, nullptr);
            return n_left;
        };
        const int n_calls = INT_MAX - decode_aborted(INT_MAX, 0);
        ASSERT_GT(n_calls, 4);

        for (const int eighths : { 1, 5 }) {
            SCOPED_TRACE(eighths);
            decode_aborted(n_calls*eighths/8, 2);
            const uint32_t n_kept = n_tokens(ctx.get());
            ASSERT_TRUE(n_kept == n0 || (n_new > 1 && (n_kept == n0 + n_new - N_END || n_kept%N_UBATCH == 0))) << n_kept;
            ASSERT_EQ(get_stats(ctx.get()).n_tokens, n_kept);

            const auto logits = feed(ctx.get(), slice(tokens, n_kept, n1));
            ASSERT_TRUE(all_finite(logits));
            ASSERT_EQ(n_tokens(ctx.get()), n1);
            if (!device || n_new > 1) {
                ASSERT_EQ(max_diff(logits, expected), 0.0f);
                ASSERT_EQ(max_diff(feed(ctx.get(), { 300 }), after), 0.0f);
            }
            ASSERT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
        }
    }
}

TEST_F(Infllm, TokensMustFollowOnEachOther) {
    auto ctx = make_infllm();
    ASSERT_TRUE(ctx);
    feed(ctx.get(), random_tokens(10));

    llama_batch batch = llama_batch_init(1, 0, 1);
    batch.n_tokens = 1;
    batch.token   [0]    = 300;
    batch.pos     [0]    = 20;
    batch.n_seq_id[0]    = 1;
    batch.seq_id  [0][0] = 0;
    batch.logits  [0]    = 1;
    EXPECT_NE(llama_decode(ctx.get(), batch), 0);
    llama_batch_free(batch);

    EXPECT_EQ(n_tokens(ctx.get()), 10u);
    EXPECT_TRUE(all_finite(feed(ctx.get(), { 300 })));
}

TEST_F(Infllm, SequenceBeyondTheContextIsRefused) {
    auto cprm = context_params();
    cprm.kv_unified = true; // a plain cache then takes sequences as they come; this one has a buffer for each
    auto ctx = make_infllm(small_params(), cprm);
    ASSERT_TRUE(ctx);
    feed(ctx.get(), random_tokens(10));

    llama_batch batch = llama_batch_init(1, 0, 1);
    batch.n_tokens = 1;
    batch.token   [0]    = 300;
    batch.pos     [0]    = 0;
    batch.n_seq_id[0]    = 1;
    batch.seq_id  [0][0] = 7;
    batch.logits  [0]    = 1;
    EXPECT_NE(llama_decode(ctx.get(), batch), 0);
    llama_batch_free(batch);

    EXPECT_EQ(n_tokens(ctx.get()), 10u);
}

//
// trace
//

// a question often ends a text: blocks are selected for it alone, whatever comes before it in the batch
TEST_F(Infllm, EndOfATextIsAUbatchOfItsOwn) {
    auto prm = small_params();
    prm.n_score = 5;

    std::vector<uint32_t> sizes;
    const auto trace = [](const llama_infllm_trace_event * e, void * user_data) {
        if (e->il == 0) {
            static_cast<std::vector<uint32_t> *>(user_data)->push_back(e->n_tokens);
        }
    };
    const auto trace_sizes = [&](llama_infllm_search search, bool all_logits) {
        prm.search = search;
        auto ctx = make_infllm(prm);
        EXPECT_TRUE(ctx);

        const auto tokens = random_tokens(236);
        feed(ctx.get(), slice(tokens, 0, 100));
        llama_infllm_set_trace(ctx.get(), trace, &sizes);
        sizes.clear();
        EXPECT_EQ(decode(ctx.get(), tokens.data() + 100, 100, 0, all_logits), 0);
        EXPECT_EQ(decode(ctx.get(), tokens.data() + 200, 1,   0, all_logits), 0);
        return sizes;
    };

    // the first ubatches fit
    EXPECT_EQ(trace_sizes(LLAMA_INFLLM_SEARCH_KEYS, false),    (std::vector<uint32_t> { 16, 16, 16, 14, 10, 1 }));
    EXPECT_EQ(trace_sizes(LLAMA_INFLLM_SEARCH_KEYS, true),     (std::vector<uint32_t> { 16, 16, 16, 16, 8, 1 }));
    EXPECT_EQ(trace_sizes(LLAMA_INFLLM_SEARCH_QUERIES, false), (std::vector<uint32_t> { 16, 16, 16, 16, 8, 1 }));
}

TEST_F(Infllm, TraceSeesEveryLayer) {
    auto ctx = make_infllm();
    ASSERT_TRUE(ctx);
    const auto n_layer = llama_model_n_layer(model.get());
    const auto tokens  = random_tokens(240);

    struct seen {
        std::vector<int> n_events;
        uint64_t n_selected = 0;
        uint64_t n_page_in  = 0;
        bool     ok         = true;
    } res;
    res.n_events.resize(size_t(n_layer));

    feed(ctx.get(), slice(tokens, 0, 208));
    llama_infllm_reset_stats(ctx.get());
    llama_infllm_set_trace(ctx.get(), [](const llama_infllm_trace_event * e, void * user_data) {
        auto & r = *static_cast<seen *>(user_data);
        r.n_events.at(size_t(e->il))++;
        r.n_selected += e->n_selected;
        r.n_page_in  += e->n_page_in;
        r.ok = r.ok && e->seq_id == 0 && (e->pos == 208 || e->pos == 224) && e->n_tokens == N_UBATCH;
        r.ok = r.ok && e->n_selected == 4 && e->n_page_in <= e->n_selected;
        r.ok = r.ok && e->n_blocks == n_blocks(uint32_t(e->pos), uint32_t(e->pos) + N_UBATCH);
        for (uint32_t i = 0; i < e->n_selected; ++i) {
            const int32_t b = e->selected[i];
            r.ok = r.ok && b >= 0 && uint32_t(b) < e->n_blocks;
            r.ok = r.ok && (i == 0 || e->scores[e->selected[i - 1]] >= e->scores[b]);
            for (uint32_t j = 0; j < i; ++j) {
                r.ok = r.ok && e->selected[j] != b;
            }
        }
        for (uint32_t b = 0; b < e->n_blocks; ++b) {
            r.ok = r.ok && std::isfinite(e->scores[b]);
        }
    }, &res);
    feed(ctx.get(), slice(tokens, 208, 240));

    EXPECT_TRUE(res.ok);
    for (const int n : res.n_events) {
        EXPECT_EQ(n, 2);
    }
    const auto stats = get_stats(ctx.get());
    EXPECT_EQ(stats.n_selected, res.n_selected);
    EXPECT_EQ(stats.n_page_in,  res.n_page_in);

    llama_infllm_set_trace(ctx.get(), nullptr, nullptr);
    feed(ctx.get(), { 300 });
    EXPECT_EQ(res.n_events[0], 2);
}
