"""`infllm trace`: record which blocks a model selects, and report on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._format import format_bytes
from ..trace import TraceHeader, TraceWriter, read_trace
from . import terminal as term
from .answer import ParseSpecial, Quiet, print_answer, prompt_tokens, read_prompt
from .options import RunOptions, SamplingOptions, with_options


@with_options
def record(
    options: RunOptions,
    sampling: SamplingOptions,
    output: Annotated[Path, typer.Option("-o", "--output", help="Trace to write.")],
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What to answer.")] = "",
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Text file to put before the prompt; -: stdin.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text: no chat template.")] = False,
    quiet: Quiet = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    parse_special: ParseSpecial = False,
) -> None:
    """Answer a prompt, and record which blocks each layer selects at each step.

    The answer goes to stdout. Ctrl-C ends the recording; what was recorded until then is kept.

    Examples:

        infllm trace record -f book.txt -p "Who did it?" -o out.trace

        infllm trace record -m model.gguf -f book.txt --raw -n 128 -o out.trace
    """
    if options.no_infllm:
        raise typer.BadParameter("--no-infllm selects no blocks: there is nothing to trace")
    text = read_prompt(file, prompt)
    with options.load() as llm:
        llm.parse_special = parse_special
        tokens = prompt_tokens(llm, text, system, raw)
        with TraceWriter(output, TraceHeader.of(llm)) as writer:
            llm.set_trace(writer)
            try:
                print_answer(llm, tokens, sampling, quiet)
            finally:
                llm.set_trace(None)
                writer.close()
                if not quiet:
                    size = format_bytes(output.stat().st_size)
                    term.note(f"{output}: {writer.n_steps:,} steps, {size}")

        if writer.n_steps == 0:
            stats = llm.stats()
            n_resident = stats.n_tokens_resident if stats else 0
            raise ValueError(
                f"no block was selected: the {n_resident:,} tokens were all resident; "
                "use a longer text, or a smaller --n-local or --max-cached-blocks"
            )


@with_options
def report(
    trace: Annotated[Path, typer.Argument(help="What `infllm trace record` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write.")] = Path("report.html"),
    slots: Annotated[
        str | None,
        typer.Option(
            help="Slots per layer to simulate, separated by commas.", show_default="from topk to 8 times topk"
        ),
    ] = None,
) -> None:
    """Analyse a trace: tables on stdout, the same with figures in an HTML file.

    Needs the extra `trace` of this package: matplotlib and libcachesim.

    Examples:

        infllm trace report out.trace

        infllm trace report out.trace -o report.html --slots 4,8,16
    """
    from ..trace.analysis import analyse
    from ..trace.report import parse_slots, print_report, write_report

    n_slots = None if slots is None else parse_slots(slots)
    with term.console.status("simulating caches"):
        analysis = analyse(read_trace(trace), n_slots)
    print_report(analysis)
    write_report(analysis, output)
    term.note(f"wrote {output}")
