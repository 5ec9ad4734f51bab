#include "chat-prompt.h"

#include <stdexcept>

chat_answer::chat_answer(const chat_prompt & prompt) : params(prompt.format) {
    if (!prompt.format.parser.empty()) {
        params.parser.load(prompt.format.parser);
    }
}

common_chat_msg chat_answer::parse(bool is_final) const {
    if (is_final) {
        try {
            return common_chat_parse(all, false, params);
        } catch (const std::runtime_error &) {
            // not in the format, or not to its end
        }
    }
    common_chat_msg res = msg;
    try {
        res = common_chat_parse(all, true, params);
    } catch (const std::runtime_error &) {
        // more text may help
    }
    if (is_final && res.tool_calls.empty() && res.reasoning_content.empty()) {
        res.content = all;
    }
    return res;
}

py::list chat_answer::push(const std::string & text, bool is_final) {
    all += text;
    std::vector<common_chat_msg_diff> diffs;
    try {
        py::gil_scoped_release no_gil;
        const common_chat_msg before = msg;
        msg   = parse(is_final);
        diffs = common_chat_msg_diff::compute_diffs(before, msg);
    } catch (const std::runtime_error &) {
        // what was said before cannot be taken back
    }

    py::list res;
    for (const auto & diff : diffs) {
        py::dict delta;
        if (!diff.reasoning_content_delta.empty()) {
            delta["reasoning_content"] = to_str(diff.reasoning_content_delta);
        }
        if (!diff.content_delta.empty()) {
            delta["content"] = to_str(diff.content_delta);
        }
        if (diff.tool_call_index != std::string::npos) {
            py::dict function;
            py::dict call;
            call["index"] = diff.tool_call_index;
            if (!diff.tool_call_delta.name.empty()) {
                call["id"]   = to_str(diff.tool_call_delta.id);
                call["type"] = "function";
                function["name"] = to_str(diff.tool_call_delta.name);
            }
            function["arguments"] = to_str(diff.tool_call_delta.arguments);
            call["function"]      = function;

            py::list calls;
            calls.append(call);
            delta["tool_calls"] = calls;
        }
        res.append(delta);
    }
    return res;
}
