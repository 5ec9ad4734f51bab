// Parameters: refused, resolved, read from text.

#include "infllm-fixture.h"

#include <cstring>

namespace {

struct bad_case {
    const char * name;
    void (*change)(llama_infllm_params &, llama_context_params &);
    std::vector<const char *> expected; // in the error
};

std::ostream & operator<<(std::ostream & os, const bad_case & c) { return os << c.name; }

} // namespace

class InfllmBadParams : public Infllm, public testing::WithParamInterface<bad_case> {};

INSTANTIATE_TEST_SUITE_P(Params, InfllmBadParams, testing::Values(
    bad_case { "NoFolder",         [](auto & p, auto &) { std::strcpy(p.store_path, "/none"); }, { "store_path = \"/none\"" } },
    bad_case { "FilesOfDevices",   [](auto & p, auto &) { p.store_path[0] = '.'; p.paging = LLAMA_INFLLM_PAGING_DEVICE; },
        { "paging = device", "store_path" } },
    bad_case { "TopkAboveSlots",   [](auto & p, auto &) { p.topk = 9; },           { "topk = 9", "max_cached_blocks = 8" } },
    bad_case { "NoBlockSize",      [](auto & p, auto &) { p.block_size = 0; },     { "block_size = 0", "1 to 4096" } },
    bad_case { "HugeBlockSize",    [](auto & p, auto &) { p.block_size = 5000; },  { "block_size = 5000", "1 to 4096" } },
    bad_case { "BlockAboveLocal",  [](auto & p, auto &) { p.block_size = 33; },    { "block_size = 33", "n_local = 32" } },
    bad_case { "ReprAboveBlock",   [](auto & p, auto &) { p.repr_topk = 9; },      { "repr_topk = 9", "0 to 8" } },
    bad_case { "ReprNoDivisor",    [](auto & p, auto &) { p.n_repr = 3; },         { "n_repr = 3", "block_size = 8" } },
    bad_case { "ReprAbovePart",    [](auto & p, auto &) { p.n_repr = 4; p.repr_topk = 3; }, { "n_repr = 4", "repr_topk = 3" } },
    bad_case { "HugeScore",        [](auto & p, auto &) { p.n_score = UINT32_MAX; }, { "n_score = 4294967295" } },
    bad_case { "ScoreAboveLocal",  [](auto & p, auto &) { p.n_score = 33; },       { "n_score = 33", "n_local = 32" } },
    bad_case { "HugeInit",         [](auto & p, auto &) { p.n_init = UINT32_MAX; }, { "n_init = 4294967295" } },
    bad_case { "UbatchAboveLocal", [](auto &, auto & c) { c.n_ubatch = 128; },     { "n_ubatch = 128", "n_local = 32" } },
    bad_case { "BadPosition",      [](auto & p, auto &) { p.position = llama_infllm_position(3); }, { "position = 3" } },
    bad_case { "BadAttend",        [](auto & p, auto &) { p.attend = llama_infllm_attend(2); }, { "attend = 2" } },
    bad_case { "BadScores",        [](auto & p, auto &) { p.scores = llama_infllm_scores(2); }, { "scores = 2" } },
    bad_case { "BadSearch",        [](auto & p, auto &) { p.search = llama_infllm_search(5); }, { "search = 5" } },
    bad_case { "PublishedByKeys",
        [](auto & p, auto &) { p.scores = LLAMA_INFLLM_SCORES_PUBLISHED; p.search = LLAMA_INFLLM_SEARCH_KEYS; p.paging = LLAMA_INFLLM_PAGING_HOST; },
        { "search = keys", "scores = published" } },
    bad_case { "PublishedOnce",
        [](auto & p, auto &) { p.scores = LLAMA_INFLLM_SCORES_PUBLISHED; p.search = LLAMA_INFLLM_SEARCH_PRESELECT; p.paging = LLAMA_INFLLM_PAGING_HOST; },
        { "search = preselect", "scores = published" } },
    bad_case { "BoundsOfSome",     [](auto & p, auto &) { p.search = LLAMA_INFLLM_SEARCH_QUEST; p.repr_topk = 1; },
        { "repr_topk = 1", "search = quest", "2 keys" } },
    bad_case { "AttendBelowSlots", [](auto & p, auto &) { p.attend = LLAMA_INFLLM_ATTEND_TOPK; p.topk = 4; },
        { "max_cached_blocks = 8", "attend = topk" } },
    bad_case { "PublishedOnDevice",
        [](auto & p, auto &) { p.scores = LLAMA_INFLLM_SCORES_PUBLISHED; p.paging = LLAMA_INFLLM_PAGING_DEVICE; },
        { "paging = device", "scores = published" } },
    bad_case { "FlashAttentionOff",
        [](auto &, auto & c) { c.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; }, { "flash_attn = off" } },
    bad_case { "UnsupportedType",
        [](auto &, auto & c) { c.type_v = GGML_TYPE_F32; }, { "type_v = f32", "q8_0" } }),
    [](const auto & info) { return info.param.name; });

TEST_P(InfllmBadParams, AreRefusedByName) {
    auto prm  = small_params();
    auto cprm = context_params();
    GetParam().change(prm, cprm);

    const context_ptr ctx(llama_infllm_init_from_model(model.get(), cprm, prm));
    EXPECT_EQ(ctx, nullptr);
    const std::string error = llama_infllm_last_error();
    for (const char * part : GetParam().expected) {
        EXPECT_NE(error.find(part), std::string::npos) << "no \"" << part << "\" in: " << error;
    }

    // the next context does not inherit anything
    EXPECT_NE(make_infllm(), nullptr);
    EXPECT_STREQ(llama_infllm_last_error(), "");
}

TEST_F(Infllm, BufferMustFitTheTrainingLength) {
    auto prm = small_params(LLAMA_INFLLM_POSITION_INFLLM);
    prm.max_cached_blocks = 13; // 168 cells
    const context_ptr ctx(llama_infllm_init_from_model(small_model.get(), context_params(), prm));
    EXPECT_EQ(ctx, nullptr);
    const std::string error = llama_infllm_last_error();
    EXPECT_NE(error.find("max_cached_blocks = 13"), std::string::npos) << error;
    EXPECT_NE(error.find("n_ctx_train = 160"),      std::string::npos) << error;
}

TEST_F(Infllm, NoModelIsAnError) {
    EXPECT_EQ(llama_infllm_init_from_model(nullptr, context_params(), small_params()), nullptr);
    EXPECT_NE(std::string(llama_infllm_last_error()).find("model"), std::string::npos);
}

TEST_F(Infllm, AutomaticValuesAreResolved) {
    auto prm  = llama_infllm_default_params();
    auto cprm = context_params();

    ASSERT_TRUE(llama_infllm_params_resolve(model.get(), &cprm, &prm)) << llama_infllm_last_error();
    EXPECT_GE(prm.n_local, cprm.n_ubatch);
    EXPECT_EQ(prm.max_cached_blocks, prm.topk);
    EXPECT_EQ(prm.position, LLAMA_INFLLM_POSITION_TRUE); // n_ctx is below the training length

    prm = small_params(LLAMA_INFLLM_POSITION_AUTO);
    ASSERT_TRUE(llama_infllm_params_resolve(small_model.get(), &cprm, &prm)) << llama_infllm_last_error();
    EXPECT_EQ(prm.position, LLAMA_INFLLM_POSITION_INFLLM);
    EXPECT_EQ(llama_infllm_n_cells(&prm, N_UBATCH), N_ALLOC);

    auto ctx = make_infllm();
    ASSERT_TRUE(ctx);
    llama_infllm_params got = {};
    ASSERT_TRUE(llama_infllm_get_params(ctx.get(), &got));
    EXPECT_EQ(got.max_cached_blocks, 8u);
    EXPECT_FALSE(llama_infllm_get_params(make_plain().get(), &got));
}

TEST(InfllmParse, GoodTexts) {
    auto prm     = llama_infllm_default_params();
    bool enabled = false;

    EXPECT_TRUE(llama_infllm_params_parse("1", &prm, &enabled));
    EXPECT_TRUE(enabled);
    EXPECT_EQ(prm.block_size, llama_infllm_default_params().block_size);

    for (const char * off : { "", "0" }) {
        EXPECT_TRUE(llama_infllm_params_parse(off, &prm, &enabled));
        EXPECT_FALSE(enabled);
    }
    EXPECT_TRUE(llama_infllm_params_parse(nullptr, &prm, &enabled));
    EXPECT_FALSE(enabled);

    EXPECT_TRUE(llama_infllm_params_parse(
            "n_init=1,n_local=2,block_size=3,topk=4,max_cached_blocks=5,repr_topk=6,n_score=7,n_repr=8,position=infllm,"
            "attend=topk,scores=published,search=queries,paging=host,store_max_bytes=8589934592,store_path=/tmp", &prm, &enabled));
    EXPECT_TRUE(enabled);
    EXPECT_EQ(prm.n_init,            1u);
    EXPECT_EQ(prm.n_local,           2u);
    EXPECT_EQ(prm.block_size,        3u);
    EXPECT_EQ(prm.topk,              4u);
    EXPECT_EQ(prm.max_cached_blocks, 5u);
    EXPECT_EQ(prm.repr_topk,         6u);
    EXPECT_EQ(prm.n_repr,            8u);
    EXPECT_EQ(prm.n_score,           7u);
    EXPECT_EQ(prm.position,          LLAMA_INFLLM_POSITION_INFLLM);
    EXPECT_EQ(prm.attend,            LLAMA_INFLLM_ATTEND_TOPK);
    EXPECT_EQ(prm.scores,            LLAMA_INFLLM_SCORES_PUBLISHED);
    EXPECT_EQ(prm.search,            LLAMA_INFLLM_SEARCH_QUERIES);
    EXPECT_EQ(prm.paging,            LLAMA_INFLLM_PAGING_HOST);
    EXPECT_EQ(prm.store_max_bytes,   8589934592u);
    EXPECT_STREQ(prm.store_path,     "/tmp");
}

TEST(InfllmParse, BadTexts) {
    for (const char * text : {
            "2", "yes", "topk", "topk=", "topk=-1", "topk=4x", "topk=4294967296", "topk= 4", "window=4", "position=far",
            "position=", "attend=all", "search=tokens", "scores=", "store_max_bytes=99999999999999999999", "store_path=", "n_init=4,,topk=4", "n_init=4;topk=4" }) {
        auto prm     = llama_infllm_default_params();
        bool enabled = false;
        EXPECT_FALSE(llama_infllm_params_parse(text, &prm, &enabled)) << text;
        EXPECT_STRNE(llama_infllm_last_error(), "") << text;
    }
}
