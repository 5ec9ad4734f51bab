#!/usr/bin/env python3
"""Check and measure the method on a GPU; scripts/gpu_check.sh builds what this needs and runs it.

    python scripts/gpu_check.py verify                 paged by the device = by the host = on the CPU
    python scripts/gpu_check.py gather                 bandwidth of page-ins, against a pinned memcpy
    python scripts/gpu_check.py speed --depths 0,8192  prefill and decode, shape of an 8B model
    python scripts/gpu_check.py replay                 decode with the selections of a real model
    python scripts/gpu_check.py table                  what the JSON holds, as tables

Every part appends to the JSON at once, so that parts can be run one by one, and the last measurement of a
thing counts. Models are random weights (scripts/make_gguf.py): nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infllm_cpp import InfLLMConfig, Llama, local_devices
from infllm_cpp.trace import read_trace

ROOT = Path(__file__).resolve().parent.parent
# 96 steps of SmolLM2-135M decoding after 32,768 tokens (docs/trace.md)
TRACE = ROOT / "scripts" / "gpu_replay.trace"

TOPK = 8
SMALL = InfLLMConfig(n_init=32, n_local=256, block_size=32, topk=TOPK, max_cached_blocks=16)
N_DECODE = 32
TOLERANCE = 0.15  # of logits, against the CPU: other kernels, other sums

Report = Callable[..., None]


def model(args: argparse.Namespace, shape: str, kind: str) -> Path:
    path: Path = args.models / f"{shape}-{kind}.gguf"
    if not path.exists():
        args.models.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        script = ROOT / "scripts" / "make_gguf.py"
        subprocess.run([sys.executable, script, shape, part, "--type", kind], check=True)
        part.rename(path)
    return path


def tokens(n: int, seed: int = 0) -> list[int]:
    """Random bytes, as tokens of make_gguf.py."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 259, n)]


@contextmanager
def load(args: argparse.Namespace, path: Path, n_ctx: int, **options: Any) -> Iterator[Llama]:
    options = {"n_gpu_layers": args.n_gpu_layers, "n_threads": args.threads, **options}
    with Llama(path, n_ctx=n_ctx, **options) as llm:
        yield llm


def greedy(
    llm: Llama, n: int, forced: list[int] | None = None
) -> tuple[list[int], list[npt.NDArray[np.float32]], float]:
    """The most likely tokens, logits before each of them, and seconds per token; `forced` ones are read."""
    out: list[int] = []
    logits = []
    begin = time.perf_counter()
    for i in range(n):
        logits.append(np.array(llm.logits))
        out.append(int(logits[-1].argmax()))
        llm.eval([forced[i] if forced else out[-1]])
    return out, logits, (time.perf_counter() - begin) / n


# -- correctness -------------------------------------------------------------------------------------


def verify(args: argparse.Namespace, report: Report) -> None:
    """Device-paged against host-paged as they are, and both against the CPU with given selections.

    Other kernels round otherwise. Where two blocks are nearly equal in score, the GPU may select another one
    than the CPU, and go on with other tokens. This says nothing, so the CPU's tokens and a fixed stream of
    random selections are given to all.
    """
    path = model(args, "small", "f16")
    prompt = tokens(2000)
    ways: dict[str, dict[str, Any]] = {
        "cpu": {"n_gpu_layers": 0},
        "host": {},
        "device": {},
        # for prompts ggml lends weights of the CPU to the GPU: attention stays where its resident buffer is
        "half": {"n_gpu_layers": 3 if args.n_gpu_layers else 0},
        "kv_on_cpu": {"offload_kqv": False},
    }
    for position in ("true", "infllm"):
        for kind in ("f16", "q8_0", "q4_0"):
            runs: dict[str, Any] = {}
            for name, way in ways.items():
                paging = "device" if name == "device" else "host"
                config = InfLLMConfig(**{**vars(SMALL), "position": position, "paging": paging})
                options: dict[str, Any] = {"infllm": config, "type_k": kind, "type_v": kind, **way}
                with load(args, path, 4096, **options) as llm:
                    llm.eval(prompt)
                    out, logits, _ = greedy(llm, N_DECODE)
                    llm.truncate(1500)  # blocks come back into the ring
                    llm.eval(prompt[1500:])
                    out += greedy(llm, N_DECODE)[0]
                    n_wrong = llm._ctx.check_slots()

                    llm.reset()
                    stats = llm.stats()
                    assert stats is not None
                    steps = np.random.default_rng(1).integers(0, 40, (97, stats.n_layer, TOPK))
                    llm._ctx.set_replay(steps.astype(np.int32))
                    llm.eval(prompt)
                    forced = runs["cpu"]["tokens"] if runs else out
                    given = greedy(llm, N_DECODE, forced)[1]
                    stats = llm.stats()
                    assert stats is not None and stats.n_page_in > 0
                    n_layer_device = stats.n_layer if paging == "device" else 0
                    assert stats.n_layer_device == n_layer_device, stats.paging_reason
                    runs[name] = {
                        "tokens": out,
                        "logits": np.array(logits),
                        "given": np.array(given),
                        "page_ins": stats.n_page_in,
                        "wrong_slots": n_wrong + llm._ctx.check_slots(),
                    }
            cpu, host, device = runs["cpu"], runs["host"], runs["device"]
            others = [run for name, run in runs.items() if name != "cpu"]

            # where the CPU's two best tokens are further apart than the tolerance, the best one is the same
            best = np.sort(cpu["given"], axis=1)
            sure = best[:, -1] - best[:, -2] > 2 * TOLERANCE
            same = all((x["given"].argmax(1) == cpu["given"].argmax(1))[sure].all() for x in others)
            difference = max(float(np.abs(x["given"] - cpu["given"]).max()) for x in others)
            n_wrong = sum(run["wrong_slots"] for run in others)
            report(
                "verify",
                position=position,
                kv=kind,
                same_tokens=device["tokens"] == host["tokens"],
                device_host_diff=float(np.abs(device["logits"] - host["logits"]).max()),
                same_tokens_as_cpu=f"{same}, {sure.sum()} sure ones",
                cpu_diff=difference,
                page_ins=f"{device['page_ins']}/{host['page_ins']}/{cpu['page_ins']}",
                wrong_slots=n_wrong,
                ok=device["tokens"] == host["tokens"] and same and difference <= TOLERANCE and n_wrong == 0,
            )


# -- speed -------------------------------------------------------------------------------------------


def gather(args: argparse.Namespace, report: Report) -> None:
    program = os.environ.get("INFLLM_GATHER_BENCH", str(ROOT / "build" / "gpu" / "bin" / "bench-gather"))
    result = subprocess.run([program], capture_output=True, text=True, check=True)
    for line in result.stdout.splitlines():
        report("gather", **json.loads(line))


def kv_gib(llm: Llama, depth: int) -> float:
    stats = llm.stats()
    n_bytes = depth * llm.kv_bytes_per_token() if stats is None else stats.bytes_resident + stats.bytes_repr
    return n_bytes / 2**30


class Climb:
    """One context that grows from depth to depth, measured at each."""

    def __init__(self, llm: Llama, name: str, report: Report, args: argparse.Namespace) -> None:
        self.llm, self.name, self.report, self.args = llm, name, report, args
        self.seconds = 0.0

    def to(self, depth: int, n_decode: int = N_DECODE, copied: bool = False) -> None:
        llm = self.llm
        missing = max(depth, 1) - llm.n_tokens
        if not copied:
            begin = time.perf_counter()
            llm.eval(tokens(missing, seed=llm.n_tokens))
            self.seconds += time.perf_counter() - begin
        llm.reset_stats()
        seconds = [greedy(llm, n_decode)[2] for _ in range(3)]
        stats = llm.stats()
        n_token = 3 * n_decode
        self.report(
            "speed",
            mode=self.name,
            depth=depth,
            kv=self.args.kv,
            decode_tok_s=1 / statistics.median(seconds),
            prefill_tok_s=None if copied or depth == 0 else depth / self.seconds,
            device_kv_gib=kv_gib(llm, depth) if not self.name.startswith("(b)") else 0.0,
            page_ins_per_token=stats.n_page_in / n_token if stats else None,
            hit_rate=stats.n_hit / stats.n_selected if stats and stats.n_selected else None,
        )
        llm.truncate(max(depth, 1) - 1)
        llm.eval(tokens(1))


def speed(args: argparse.Namespace, report: Report) -> None:
    path = model(args, args.shape, args.weights)
    # on for all: (b) takes over the state of (a), and must keep V in the same way
    kv: dict[str, Any] = {"type_k": args.kv, "type_v": args.kv, "flash_attn": True}
    plain = [n for n in args.depths if n <= args.plain_max]
    paged = [n for n in args.depths if n <= args.host_max]

    if "a" in args.modes and plain:
        with load(args, path, max(plain) + 512, infllm=None, **kv) as a:
            climb = Climb(a, "(a) plain, KV on the device", report, args)
            if "b" in args.modes:
                with load(args, path, max(plain) + 512, infllm=None, offload_kqv=False, **kv) as b:
                    other = Climb(b, "(b) plain, --no-kv-offload", report, args)
                    for depth in plain:
                        climb.to(depth)
                        # the CPU would take minutes to get there
                        b.reset()
                        b._ctx.copy_state_from(a._ctx)
                        b._stored.append(a.tokens)
                        b.truncate(max(depth, 1) - 1)
                        b.eval(tokens(1))
                        other.to(depth, n_decode=4, copied=True)
            else:
                for depth in plain:
                    climb.to(depth)
    n_ctx = max(args.n_ctx, max(args.depths) + 512)
    for mode, name, config, depths in (
        ("c", "(c) host-paged", InfLLMConfig(paging="host"), paged),
        ("d", "(d) device-paged", InfLLMConfig(paging="device"), args.depths),
    ):
        if mode in args.modes and depths:
            with load(args, path, n_ctx, infllm=config, **kv) as llm:
                climb = Climb(llm, name, report, args)
                for depth in depths:
                    climb.to(depth)


def replay(args: argparse.Namespace, report: Report) -> None:
    trace = read_trace(TRACE)
    selections = trace.selected  # [n_step, n_layer, topk]
    depth = int(trace.pos[-1])
    path = model(args, args.shape, args.weights)
    config = InfLLMConfig(topk=selections.shape[2], paging="device")
    with load(args, path, args.n_ctx, infllm=config) as llm:
        llm.eval(tokens(depth))
        for name, steps in (("random weights select", selections[:0]), ("real selections", selections)):
            llm._ctx.set_replay(steps)
            greedy(llm, 16)  # slots fill
            llm.reset_stats()
            _, _, seconds = greedy(llm, len(selections) - 16)
            stats = llm.stats()
            assert stats is not None
            report(
                "replay",
                selections=name,
                depth=depth,
                decode_tok_s=1 / seconds,
                page_ins_per_token=stats.n_page_in / (len(selections) - 16),
                hit_rate=stats.n_hit / stats.n_selected,
            )


# -- what must hold ----------------------------------------------------------------------------------


def goals(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Goal, figure, and whether it is met."""
    speeds = {(r["mode"][1], r["depth"]): r for r in rows if r["part"] == "speed"}

    def ratio(
        goal: str, of: tuple[str, int], to: tuple[str, int], key: str, least: float
    ) -> tuple[str, str, str]:
        a, b = speeds.get(of, {}).get(key), speeds.get(to, {}).get(key)
        if not a or not b:
            return goal, "not measured", "-"
        return goal, f"{a / b:.2f}", "yes" if a / b >= least else "NO"

    sizes = [r["device_kv_gib"] for (mode, depth), r in speeds.items() if mode == "d" and depth >= 8192]
    if sizes:
        ok = max(sizes) == min(sizes) and max(sizes) <= 2
        text = f"{min(sizes):.3f} .. {max(sizes):.3f} GiB"
        yield "device KV equal at all depths, <= 2 GiB", text, "yes" if ok else "NO"
    key = "decode_tok_s"
    yield ratio("decode at 128K, (d)/(b) >= 7.1", ("d", 131072), ("b", 131072), key, 7.1)
    for depth in (32768, 131072):
        yield ratio(f"decode at {depth // 1024}K, (d)/(a) >= 1", ("d", depth), ("a", depth), key, 1.0)
    yield ratio("decode (d), 1M/8K >= 0.8", ("d", 1048576), ("d", 8192), key, 0.8)
    yield ratio("decode, context fits, (d)/(a) >= 0.95", ("d", 0), ("a", 0), key, 0.95)
    yield ratio("prefill of 128K, (d)/(a) >= 1.5", ("d", 131072), ("a", 131072), "prefill_tok_s", 1.5)
    shares = [r["share"] for r in rows if r["part"] == "gather"]
    if shares:
        yield "gather / pinned memcpy >= 0.7", f"{max(shares):.2f}", "yes" if max(shares) >= 0.7 else "NO"
    checks = [r["ok"] for r in rows if r["part"] == "verify"]
    if checks:
        yield "verified", f"{sum(checks)} of {len(checks)}", "yes" if all(checks) else "NO"


def table(args: argparse.Namespace) -> bool:
    """Print the last measurement of everything; whether all goals that were measured are met."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in args.json.read_text().splitlines():
        row = json.loads(line)
        names = ("part", "position", "mode", "depth", "kv", "selections", "type")
        last[tuple(row.get(name) for name in names)] = row
    rows = list(last.values())
    for part in ("verify", "gather", "speed", "replay"):
        chosen = [r for r in rows if r["part"] == part]
        if not chosen:
            continue
        columns = [name for name in chosen[0] if name not in ("part", "date", "machine")]
        print(f"\n### {part}, {chosen[-1]['date']}, {chosen[-1]['machine']}\n")
        print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
        for row in chosen:
            print("| " + " | ".join(cell(row.get(name)) for name in columns) + " |")
    print("\n### goals\n\n| goal | figure | met |\n|---|---|---|")
    results = list(goals(rows))
    for result in results:
        print("| " + " | ".join(result) + " |")
    return all(met != "NO" for _, _, met in results)


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return str(value)


PARTS = {"verify": verify, "gather": gather, "speed": speed, "replay": replay}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = lambda s: [int(x) for x in s.split(",")]  # noqa: E731
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "table"])
    parser.add_argument("--json", type=Path, default=Path("gpu_check.jsonl"), help="lines are appended here")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "gpu" / "models")
    parser.add_argument("--shape", default="llama-3.1-8b", help="of scripts/make_gguf.py")
    parser.add_argument("--weights", default="q4_0", choices=("q4_0", "f16"))
    parser.add_argument("--kv", default="f16", choices=("f16", "q8_0", "q4_0"), help="type of K and V")
    parser.add_argument("--depths", type=numbers, default=[0, 8192, 32768, 131072, 524288])
    parser.add_argument("--plain-max", type=int, default=131072, help="largest depth of (a) and (b)")
    parser.add_argument("--host-max", type=int, default=131072, help="largest depth of (c)")
    parser.add_argument("--n-ctx", type=int, default=1 << 20, help="context of (c) and (d)")
    parser.add_argument("--modes", default="abcd", help="of speed: any of a, b, c, d")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--allow-cpu", action="store_true", help="without a GPU: to try this script")
    args = parser.parse_args()

    devices = local_devices()
    if not devices and not args.allow_cpu and args.parts != ["table"]:
        raise SystemExit("No GPU was found: is this a build with CUDA, and does nvidia-smi show a card?")
    machine = ", ".join(f"{d.name} {d.description}" for d in devices) or "NO GPU: these are CPU figures"
    args.n_gpu_layers = -1 if devices else 0

    def report(part: str, **values: Any) -> None:
        row = {"part": part, "date": str(date.today()), "machine": machine, **values}
        with args.json.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(part + ": " + ", ".join(f"{k} {cell(v)}" for k, v in values.items()), flush=True)

    for part in args.parts:
        if part in PARTS:
            PARTS[part](args, report)
    if not table(args):
        sys.exit(1)


if __name__ == "__main__":
    main()
