"""The device path: resident buffers on another backend, reached only through the backend interface."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from conftest import N_FIRST_LAYERS, SMALL, Run
from infllm_cpp import DeviceLostError, InfLLMConfig, Llama
from rpc import Meter, Server, free_port, needs_server

pytestmark = needs_server

ROOT = Path(__file__).resolve().parents[2]
N_DECODE = 16

StartServer = Callable[[], Server]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(tmp_path / f"server-{len(servers)}.log"))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: a model that reads 32K tokens in seconds."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    subprocess.run([sys.executable, ROOT / "scripts/make_gguf.py", "small", path, "--type=f16"], check=True)
    return path


def answer(llm: Llama, tokens: list[int]) -> tuple[list[int], np.ndarray]:
    """Greedy tokens, and the logits before each of them."""
    llm.eval(tokens)
    out, logits = [], []
    for _ in range(N_DECODE):
        logits.append(np.array(llm.logits))
        out.append(int(logits[-1].argmax()))
        llm.eval(out[-1:])
    return out, np.array(logits)


def same_as_on_the_cpu(
    path: Path, tokens: list[int], config: InfLLMConfig, types: dict[str, str] | None = None, **device: object
) -> None:
    common = {"n_ctx": 1280, "n_batch": 128, "repack": False, "infllm": config, **(types or {})}
    with Llama(path, **common) as llm:  # type: ignore[arg-type]
        expected, expected_logits = answer(llm, tokens)
    with Llama(path, **common, **device) as llm:  # type: ignore[arg-type]
        got, logits = answer(llm, tokens)
        stats = llm.stats()
    assert got == expected
    # the server may choose other kernels: the same sums in another order
    assert np.abs(logits - expected_logits).max() < 0.1
    assert stats is not None and stats.n_page_in > 0 and stats.n_hit > 0


@pytest.mark.parametrize("position", ["true", "infllm"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_all_layers_on_a_device(
    start_server: StartServer,
    first_layers_path: Path,
    passkey: tuple[list[int], str],
    position: str,
    kv_type: str,
) -> None:
    config = dataclasses.replace(SMALL, position=position)
    server = start_server()
    same_as_on_the_cpu(
        first_layers_path,
        passkey[0],
        config,
        {"type_k": kv_type, "type_v": kv_type},
        rpc_servers=[server.address],
    )


@pytest.mark.parametrize("type_store", ["q8_0", "q4_0"])
def test_the_store_has_a_type_of_its_own(
    start_server: StartServer, first_layers_path: Path, passkey: tuple[list[int], str], type_store: str
) -> None:
    config = InfLLMConfig(**{**vars(SMALL), "type_store": type_store})
    same_as_on_the_cpu(first_layers_path, passkey[0], config, rpc_servers=[start_server().address])


@pytest.mark.parametrize("kind", ["windows", "recurrent", "latent"])
def test_layers_that_are_not_all_alike(start_server: StartServer, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    if kind == "windows":
        tiny_models.write("gemma3", path, n_layer=12)  # two of them attend to all tokens
    elif kind == "latent":
        tiny_models.write("deepseek2", path)
    else:
        script = ROOT / "scripts/make_gguf.py"
        subprocess.run([sys.executable, script, "small-hybrid", path], check=True, capture_output=True)
    tokens = np.random.default_rng(1).integers(3, 350, 900).tolist()
    same_as_on_the_cpu(path, tokens, SMALL, rpc_servers=[start_server().address])


def test_some_layers_on_a_device(
    start_server: StartServer, first_layers_path: Path, passkey: tuple[list[int], str]
) -> None:
    server = start_server()
    same_as_on_the_cpu(first_layers_path, passkey[0], SMALL, rpc_servers=[server.address], n_gpu_layers=4)


def test_layers_split_across_two_devices(
    start_server: StartServer, first_layers_path: Path, passkey: tuple[list[int], str]
) -> None:
    servers = [start_server(), start_server()]
    addresses = [server.address for server in servers]
    same_as_on_the_cpu(first_layers_path, passkey[0], SMALL, rpc_servers=addresses, tensor_split=[2, 1])

    # two thirds of the ten layers, of which the output is one, and their resident buffers are on the first
    with Llama(first_layers_path, n_ctx=1280, n_batch=128, infllm=SMALL) as llm:
        stats = llm.stats()
        assert stats is not None
        per_layer = stats.bytes_resident // stats.n_layer
        per_search = stats.bytes_repr // (stats.n_layer // 3)  # every third layer has representative keys
    for server, n_layer, n_search in zip(servers, (7, 2), (3, 0), strict=True):
        for n_bytes in (n_layer * per_layer, n_search * per_search):
            assert n_bytes == 0 or any(n_bytes <= n <= n_bytes + 4096 for n in server.buffer_sizes())


def test_sessions_move_between_devices(
    start_server: StartServer, first_layers_path: Path, passkey: tuple[list[int], str], tmp_path: Path
) -> None:
    """Devices have copies of weights that they share, here of the embeddings: it is the same model."""
    rpc = {"rpc_servers": [start_server().address]}
    places = {"cpu": {}, "plain layout": {"repack": False}, "device": rpc, "both": {**rpc, "n_gpu_layers": 4}}
    logits = {}
    for name, place in places.items():
        with Llama(first_layers_path, n_ctx=1280, n_batch=128, infllm=SMALL, **place) as llm:  # type: ignore[arg-type]
            llm.eval(passkey[0])
            llm.save_session(tmp_path / name)
            llm.eval([1])
            logits[name] = np.array(llm.logits)
    for saved in places:
        for name, place in places.items():
            with Llama(first_layers_path, n_ctx=1280, n_batch=128, infllm=SMALL, **place) as llm:  # type: ignore[arg-type]
                llm.load_session(tmp_path / saved)
                llm.eval([1])
                assert np.corrcoef(llm.logits, logits[saved])[0, 1] > 0.999, (saved, name)


def test_weights_count_once_on_all_devices(
    start_server: StartServer, infllm: Run, first_layers_path: Path
) -> None:
    """A context is as large as it is without devices: what attention may read follows from the weights."""
    args = ["info", "-m", str(first_layers_path), "--n-ctx", "65536"]
    rpc = ["--rpc", start_server().address]
    reads = [
        re.search(r"a token reads ([\d.]+ MiB) of weights", infllm(*args, *more).stdout)
        for more in ([], rpc, [*rpc, "--n-gpu-layers", "4"])
    ]
    assert all(reads) and len({read[1] for read in reads if read}) == 1, reads


def test_info_tells_what_each_device_will_hold(
    start_server: StartServer, infllm: Run, first_layers_path: Path
) -> None:
    servers = [start_server(), start_server()]
    devices = [arg for server in servers for arg in ("--rpc", server.address)]
    args = ["info", "-m", str(first_layers_path), "--n-ctx", "1280"]
    told = infllm(*args, *devices, "--tensor-split", "2,1").stdout

    with Llama(first_layers_path, n_ctx=1280) as llm:
        stats = llm.stats()
    assert stats is not None
    for layers in (7, 2):  # and the output
        per_device = stats.bytes_resident / stats.n_layer * layers / 2**20
        assert re.search(rf"on RPC\d+ +{layers} layers, {per_device:.1f} MiB resident", told), told
    assert not re.search(r"^on ", infllm(*args).stdout, re.MULTILINE)


def test_a_sequence_that_shrinks_and_grows(
    start_server: StartServer, first_layers_path: Path, passkey: tuple[list[int], str]
) -> None:
    tokens = passkey[0]

    def run(**device: object) -> list[int]:
        with Llama(first_layers_path, n_ctx=1280, n_batch=128, infllm=SMALL, **device) as llm:  # type: ignore[arg-type]
            llm.eval(tokens)
            llm.truncate(300)  # blocks come back into the ring
            return answer(llm, tokens[300:])[0]

    assert run(rpc_servers=[start_server().address]) == run()


def test_device_memory_is_bounded(start_server: StartServer, tiny_path: Path) -> None:
    config = InfLLMConfig(n_init=64, n_local=512, block_size=64, topk=8, max_cached_blocks=16)
    server = start_server()
    before = server.resident_set()
    rng = np.random.default_rng(0)
    resident_sets = {}
    with Llama(tiny_path, n_ctx=33024, n_ubatch=256, infllm=config, rpc_servers=[server.address]) as llm:
        for n_tokens in (8192, 32768):
            llm.eval(rng.integers(3, 259, n_tokens - llm.n_tokens).tolist())
            llm.eval([100])
            llm.truncate(n_tokens)
            resident_sets[n_tokens] = server.resident_set()
        model_bytes = llm._model.size()
        stats = llm.stats()
    assert stats is not None
    assert stats.bytes_store > 10 * stats.bytes_resident

    # design, section 3: [ init | slots | ring of n_local + block_size + n_ubatch ], and, in every third
    # layer, a key for 8 tokens
    n_layer, n_search, n_embd_k, bytes_k_and_v = 4, 2, 2 * 64, 2 * 2 * 64 * 2
    n_cells = 64 + 16 * 64 + (512 + 64 + 256)
    n_blocks = -(-(33024 - 64) // 64)
    formula = n_layer * n_cells * bytes_k_and_v + n_search * n_blocks * 8 * n_embd_k * 2
    padding = n_layer * 256 * bytes_k_and_v + n_search * 64 * 8 * n_embd_k * 2
    kv_bytes = stats.bytes_resident + stats.bytes_repr
    assert formula <= kv_bytes <= formula + padding

    # what the device has allocated: the weights, these, buffers for computing, and nothing else that grows
    sizes = server.buffer_sizes()
    for n_bytes in (stats.bytes_resident, stats.bytes_repr):
        assert any(n_bytes <= n <= n_bytes + 4096 for n in sizes)
    full_size = 33024 * n_layer * bytes_k_and_v
    assert all(n < full_size / 2 for n in sizes if not model_bytes <= n <= 1.1 * model_bytes)
    assert resident_sets[32768] <= 1.02 * resident_sets[8192]
    assert resident_sets[32768] - before <= sum(sizes) + (16 << 20)


@pytest.mark.parametrize("repr_topk", [2, 4])
def test_only_scores_queries_and_offloaded_blocks_come_to_the_host(
    start_server: StartServer, first_layers_path: Path, passkey: tuple[list[int], str], repr_topk: int
) -> None:
    config = dataclasses.replace(SMALL, n_repr=8, repr_topk=repr_topk)
    meter = Meter(start_server().address)
    n_layer, n_head, head_dim, n_vocab = N_FIRST_LAYERS, 9, 64, 49152
    with Llama(first_layers_path, n_ctx=1280, n_batch=128, infllm=config, rpc_servers=[meter.address]) as llm:
        llm.eval(passkey[0])
        llm.eval([100])
        llm.reset_stats()
        before = llm.stats()
        to_host, to_device = meter.to_host, meter.to_device
        for _ in range(N_DECODE):
            llm.eval([100])
        to_host, to_device = meter.to_host - to_host, meter.to_device - to_device
        stats = llm.stats()
    meter.stop()
    assert before is not None and stats is not None

    # of every third layer, F32, blocks padded to 64, in 8 parts of 4 keys, by sub-chunks of 16 and 8 tokens
    scores = 64 * 8 * 2 * 4
    # of every layer, if they choose among the keys
    queries = head_dim * n_head * 4 if repr_topk < 4 else 0
    offloaded = stats.bytes_store_kv - before.bytes_store_kv
    expected = N_DECODE * (n_layer // 3 * scores + n_layer * queries + n_vocab * 4) + offloaded
    assert expected <= to_host <= 1.01 * expected
    # page-ins go to the device, and what the backend itself sends: its graphs
    assert to_device >= stats.bytes_paged_in
    print(
        f"\nper token: {to_host / N_DECODE / 1e3:.1f} kB to the host, {to_device / N_DECODE / 1e3:.1f} kB "
        f"to the device, of which page-ins {stats.bytes_paged_in / N_DECODE / 1e3:.1f} kB"
    )


# -- no silent fallback ------------------------------------------------------------------------------


def test_no_server_at_the_address(model_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"rpc_servers: {address} cannot be reached"):
        Llama(model_path, rpc_servers=[address])


def test_something_else_at_the_address(model_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"

        def hang_up() -> None:
            while True:
                try:
                    other.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(ConnectionError, match="is not a server of this build's protocol"):
            Llama(model_path, rpc_servers=[address])


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:", ":50052", "127.0.0.1:0", "host:port"])
def test_a_malformed_address(model_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="is not an address: use host:port"):
        Llama(model_path, rpc_servers=[address])


def test_a_device_that_does_not_exist(model_path: Path) -> None:
    with pytest.raises(ValueError, match="devices: 'CUDA7' is unknown: this machine has"):
        Llama(model_path, devices=["CUDA7"])


def test_devices_without_layers(model_path: Path) -> None:
    with pytest.raises(ValueError, match="n_gpu_layers = 0 leaves no layers"):
        Llama(model_path, rpc_servers=["127.0.0.1:1"], n_gpu_layers=0)


def test_a_server_that_dies(
    start_server: StartServer, model_path: Path, passkey: tuple[list[int], str]
) -> None:
    server = start_server()
    llm = Llama(model_path, n_ctx=1280, n_batch=128, infllm=SMALL, rpc_servers=[server.address])
    llm.eval(passkey[0])
    server.stop()
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="an RPC server stopped to answer"):
            llm.eval([100])
    with pytest.raises(DeviceLostError):
        llm.reset()
    assert llm.stats() is not None
    llm.close()

    # the process is as good as new
    server = start_server()
    with Llama(model_path, n_ctx=1280, n_batch=128, infllm=SMALL, rpc_servers=[server.address]) as llm:
        out = llm.create_completion(passkey[0], max_tokens=8, temperature=0)
        assert out["choices"][0]["text"].strip().startswith(passkey[1])


def test_a_server_that_dies_in_the_middle_of_a_prompt(
    start_server: StartServer, model_path: Path, passkey: tuple[list[int], str]
) -> None:
    server = start_server()
    with Llama(model_path, n_ctx=1280, n_batch=128, infllm=SMALL, rpc_servers=[server.address]) as llm:

        def progress(n_done: int, n_total: int) -> None:
            if n_done >= n_total // 2:
                server.stop()

        with pytest.raises(DeviceLostError):
            llm.eval(passkey[0], progress=progress)


def test_command_line(start_server: StartServer, infllm: Run, model_path: Path, tmp_path: Path) -> None:
    args = ["run", "-m", str(model_path), "-p", "The capital of France is", "-n", "4", "--temperature", "0"]
    expected = infllm(*args)
    got = infllm(*args, "--rpc", start_server().address)
    assert (got.returncode, got.stdout) == (0, expected.stdout)

    failed = infllm(*args, "--rpc", f"127.0.0.1:{free_port()}")
    assert failed.returncode != 0
    assert "cannot be reached" in failed.stderr and "Traceback" not in failed.stderr
