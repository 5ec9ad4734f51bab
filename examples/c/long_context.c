// A question about a text that may be longer than what is resident, and than the model was trained for.
//
//     long_context MODEL.gguf TEXT.txt QUESTION SESSION [PARAMS]
//
// The text is read once: SESSION keeps it, and if there is such a file, it is opened and TEXT.txt is not looked at. The answer
// goes to stdout, all else to stderr. PARAMS are written as in LLAMA_INFLLM: "budget=64000000", "n_local=1024,topk=16".

#include "llama-infllm.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_BATCH  = 256, // tokens computed at once
    N_ANSWER = 64,
    N_MORE   = 1024, // tokens after the text: the question and its answer
};

struct tokens {
    llama_token * data; // [n]
    int32_t       n;
};

static _Noreturn void fail(const char * format, ...) {
    va_list args;
    va_start(args, format);
    fputs("long_context: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static void print_errors(enum ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static char * read_file(const char * path) {
    FILE * file = fopen(path, "rb");
    if (!file) {
        fail("%s cannot be opened", path);
    }
    char * text = NULL;
    size_t n    = 0;
    for (size_t n_max = 1 << 16; ; n_max *= 2) {
        text = realloc(text, n_max);
        if (!text) {
            fail("no memory for %s", path);
        }
        n += fread(text + n, 1, n_max - 1 - n, file);
        if (n < n_max - 1) {
            break;
        }
    }
    fclose(file);
    text[n] = '\0';
    return text;
}

// appends the tokens of a text. Only with is_template does "<|im_end|>" become a special token: what a file contains is text
static void add_text(struct tokens * tokens, const struct llama_vocab * vocab, const char * text, bool is_template) {
    const int32_t n_text  = (int32_t) strlen(text);
    const bool    add_bos = is_template && tokens->n == 0;
    const int32_t n       = -llama_tokenize(vocab, text, n_text, NULL, 0, add_bos, is_template);
    if (n <= 0) {
        return;
    }
    tokens->data = realloc(tokens->data, sizeof(llama_token)*(size_t)(tokens->n + n));
    if (!tokens->data) {
        fail("no memory for %d tokens", tokens->n + n);
    }
    llama_tokenize(vocab, text, n_text, tokens->data + tokens->n, n, add_bos, is_template);
    tokens->n += n;
}

// what the chat template puts before and after what a user says; nothing where llama.cpp does not know the template
static void get_template(const struct llama_model * model, char * buf, int32_t n_buf, const char ** before, const char ** after) {
    const char * MARK = "\x01";
    const char * tmpl = llama_model_chat_template(model, NULL);
    const struct llama_chat_message message = { "user", MARK };

    const int32_t n = tmpl ? llama_chat_apply_template(tmpl, &message, 1, true, buf, n_buf - 1) : -1;
    *before = "";
    *after  = "\n";
    if (n > 0 && n < n_buf) {
        buf[n] = '\0';
        char * mark = strstr(buf, MARK);
        if (mark) {
            *mark   = '\0';
            *before = buf;
            *after  = mark + 1;
        }
    }
}

static struct llama_context * make_context(struct llama_model * model, struct llama_infllm_params params, uint64_t n_text) {
    struct llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx    = (uint32_t) n_text + N_MORE;
    cparams.n_batch  = N_BATCH;
    cparams.n_ubatch = N_BATCH;
    struct llama_context * ctx = llama_infllm_init_from_model(model, cparams, params);
    if (!ctx) {
        fail("%s", llama_infllm_last_error());
    }
    return ctx;
}

// computes tokens that follow on n_past others; with `ends` the last one has logits
static void decode(struct llama_context * ctx, uint32_t n_past, struct tokens tokens, bool ends) {
    const uint32_t p1 = n_past + (uint32_t) tokens.n;
    for (uint32_t p0 = n_past; p0 < p1;) {
        // where a batch ends has a part in the bits of the logits: so it is the library that says where
        const uint32_t end = llama_infllm_batch_end(ctx, p0, p1, ends);

        int8_t outputs[N_BATCH] = { 0 };
        outputs[end - p0 - 1] = ends && end == p1;
        struct llama_batch batch = llama_batch_get_one(tokens.data + (p0 - n_past), (int32_t)(end - p0));
        batch.logits = outputs;
        if (llama_decode(ctx, batch) != 0) {
            fail("tokens %u to %u cannot be computed: %s", p0, end, llama_infllm_last_error());
        }
        if (!ends) {
            fprintf(stderr, "\r%u of %u tokens", end, p1);
        }
        p0 = end;
    }
}

// reads the text into a new context and saves it
static void save(struct llama_model * model, struct llama_infllm_params params, const char * before, const char * text_path,
        const char * session_path) {
    const struct llama_vocab * vocab = llama_model_get_vocab(model);

    char * text = read_file(text_path);
    struct tokens tokens = { NULL, 0 };
    add_text(&tokens, vocab, before, true);
    add_text(&tokens, vocab, text, false);
    free(text);
    if (tokens.n == 0) {
        fail("%s is empty", text_path);
    }

    struct llama_context * ctx = make_context(model, params, (uint64_t) tokens.n);
    // better now than after an hour
    if (!llama_infllm_check_tokens(ctx, 0, (uint32_t) tokens.n + N_MORE)) {
        fail("%s", llama_infllm_last_error());
    }
    decode(ctx, 0, tokens, false);

    // the parameters as they were resolved: a session opens only with those that it was made with
    llama_infllm_get_params(ctx, &params);
    if (!llama_infllm_session_save(ctx, 0, session_path, tokens.data, (size_t) tokens.n, (const uint8_t *) &params, sizeof params)) {
        fail("%s", llama_infllm_last_error());
    }
    fprintf(stderr, "\r%d tokens read, saved in %s\n", tokens.n, session_path);
    free(tokens.data);
    llama_free(ctx);
}

// a new context that goes on where the session was saved
static struct llama_context * open_session(struct llama_model * model, const char * path, uint32_t * n_past) {
    struct llama_infllm_session * session = llama_infllm_session_open(path);
    if (!session) {
        fail("%s", llama_infllm_last_error());
    }
    struct llama_infllm_session_info info;
    llama_infllm_session_get_info(session, &info);

    struct llama_infllm_params params;
    if (info.bytes_data != sizeof params) {
        fail("%s was saved by another program", path);
    }
    memcpy(&params, llama_infllm_session_data(session), sizeof params);

    struct llama_context * ctx = make_context(model, params, info.n_tokens);
    if (!llama_infllm_session_load(session, ctx, 0)) {
        fail("%s", llama_infllm_last_error());
    }
    llama_infllm_session_free(session); // the context has its blocks for as long as it needs them
    fprintf(stderr, "%" PRIu64 " tokens opened, %" PRIu64 " blocks in %" PRIu64 " bytes\n", info.n_tokens, info.n_blocks, info.bytes);
    *n_past = (uint32_t) info.n_tokens;
    return ctx;
}

static void answer(struct llama_context * ctx, const struct llama_vocab * vocab, uint32_t n_past, struct tokens question) {
    struct llama_sampler * sampler = llama_sampler_init_greedy();
    decode(ctx, n_past, question, true);
    n_past += (uint32_t) question.n;
    for (int i = 0; i < N_ANSWER; ++i) {
        llama_token token = llama_sampler_sample(sampler, ctx, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        char piece[256];
        const int32_t n = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
        fwrite(piece, 1, n > 0 ? (size_t) n : 0, stdout);
        fflush(stdout);
        decode(ctx, n_past++, (struct tokens) { &token, 1 }, true);
    }
    fputc('\n', stdout);
    llama_sampler_free(sampler);
}

static void print_stats(const struct llama_context * ctx) {
    struct llama_infllm_stats stats;
    llama_infllm_get_stats(ctx, -1, &stats); // of all layers
    fprintf(stderr,
        "%" PRIu64 " tokens, %" PRIu64 " of them resident\n"
        "%" PRIu64 " bytes resident, %" PRIu64 " of representative keys, %" PRIu64 " in the store, %" PRIu64 " of these in the session\n"
        "%" PRIu64 " blocks selected, %" PRIu64 " of them paged in\n",
        stats.n_tokens, stats.n_tokens_resident,
        stats.bytes_resident, stats.bytes_repr, stats.bytes_store, stats.bytes_store_file,
        stats.n_selected, stats.n_page_in);
}

int main(int argc, char ** argv) {
    if (argc < 5 || argc > 6) {
        fail("usage: %s MODEL.gguf TEXT.txt QUESTION SESSION [PARAMS]", argv[0]);
    }
    const char * session_path = argv[4];
    llama_log_set(print_errors, NULL);

    struct llama_infllm_params params = llama_infllm_default_params();
    bool enabled = true;
    if (argc == 6 && !llama_infllm_params_parse(argv[5], &params, &enabled)) {
        fail("%s", llama_infllm_last_error());
    }

    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fail("%s cannot be loaded", argv[1]);
    }
    const struct llama_vocab * vocab = llama_model_get_vocab(model);

    char buf[4096];
    const char * before;
    const char * after;
    get_template(model, buf, sizeof buf, &before, &after);

    FILE * saved = fopen(session_path, "rb");
    if (saved) {
        fclose(saved);
    } else {
        save(model, params, before, argv[2], session_path);
    }
    uint32_t n_past;
    struct llama_context * ctx = open_session(model, session_path, &n_past);

    struct tokens question = { NULL, 0 };
    add_text(&question, vocab, "\n\n", false);
    add_text(&question, vocab, argv[3], false);
    add_text(&question, vocab, after, true);
    if (question.n + N_ANSWER > N_MORE) {
        fail("the question has %d tokens: at most %d have room", question.n, N_MORE - N_ANSWER);
    }
    answer(ctx, vocab, n_past, question);
    print_stats(ctx);

    free(question.data);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
