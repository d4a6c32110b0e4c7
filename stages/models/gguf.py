"""Serves `gguf:FILE`, weights in llama.cpp's format, by llama.cpp beside the worker.

`gguf:FILE#PROJECTOR` is a model that sees images; its second file turns them into tokens.
"""

from pathlib import Path

from clipmill.metadata.outputs import digest_of
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Environment, Worker
from clipmill.stages.models import gguf_server
from clipmill.stages.models.endpoint import Endpoint, Limits
from clipmill.stages.models.served import serve
from clipmill.stages.ops.outside import need_file

# A prebuilt wheel of llama.cpp (MIT), the only one tested; one person builds it, so it is pinned.
LLAMA = "xllamacpp==2026.10.11549"
LLAMA_WHEELS = (
    f"{LLAMA}"
    " --hash=sha256:c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261"  # x86_64
    " --hash=sha256:e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e"  # aarch64
)
# Concurrent answers: 16 are no faster than 8 on two cores; a GPU has room for more. A slot caches
# 2,048 tokens, in 16-bit keys and values: 23 kB a token for SmolLM2-135M, 131 kB for a 7B with
# grouped heads, so 8 slots take 2 GB.
SLOTS, SLOTS_ON_GPU, CONTEXT = 8, 32, 2048
WAIT_S = 600.0  # to start: tens of gigabytes from a slow disk


def environments(name: str) -> tuple[Environment, ...]:
    model, _ = _files(name)
    if not model:
        do = "write gguf:FILE, or gguf:FILE#PROJECTOR"
        raise RecipeError("no file is named", f"key `model`, 'gguf:{name}'", do)
    return (Environment(packages=(LLAMA,), requirements=(LLAMA_WHEELS,), imports="xllamacpp"),)


def sees(name: str) -> bool:
    """Returns whether the model sees images, by its second file."""
    return bool(_files(name)[1])


def look(name: str) -> None:
    for file in filter(None, _files(name)):
        need_file(file, "model", "copy the weights there, or mend the path")


def endpoint(name: str, worker: Worker, limits: Limits) -> Endpoint:
    """Pins the digests of the files, and starts the server."""
    [environment] = environments(name)
    look(name)
    model, projector = _files(name)
    return served(worker, limits, worker.environment(environment), model, projector, name)


def served(
    worker: Worker, limits: Limits, python: Path, model: str, projector: str, name: str
) -> Endpoint:
    """Starts the server of these files, by a Python that has llama.cpp."""
    files = [model, *filter(None, [projector])]
    identity = "+".join(digest_of(Path(file)) for file in files)
    worker.pin(f"model {name}", identity)
    most = SLOTS if worker.device == "cpu" else SLOTS_ON_GPU
    slots = min(limits.concurrency, most)
    numbers = [str(number) for number in (slots, CONTEXT, worker.threads)]
    script = gguf_server.__file__
    return serve(
        worker,
        lambda path: [str(python), "-I", script, str(path), model, projector, *numbers],
        key_env="LLAMA_API_KEY",
        env={"OMP_WAIT_POLICY": "passive"},  # on busy cores spinning threads are 40 times slower
        model="model",
        identity=identity,
        concurrency=slots,
        wait_s=WAIT_S,
    )


def _files(name: str) -> tuple[str, str]:
    """Splits a name into the model's file and the projector's, which may be empty."""
    model, _, projector = name.partition("#")
    return _home(model), _home(projector)


def _home(file: str) -> str:
    return str(Path(file).expanduser()) if file else ""
