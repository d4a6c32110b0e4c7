"""vLLM's server on a Unix socket, run as a file by a Python that has vLLM.

    VLLM_API_KEY=… python vllm_server.py SOCKET FLAGS…

Its packages for sound are often built for another torch, and end every import of transformers with
an OSError. Captions hear nothing: such a package counts as missing, in each process of vLLM.
"""

import runpy
import sys
from importlib import import_module
from pathlib import Path

SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` asks for a package of that very name

for name in ("torchaudio", "torchcodec"):
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError):
        sys.modules[name] = None  # type: ignore[assignment]  # as importlib marks what is not there

if __name__ == "__main__":
    socket, *rest = sys.argv[1:]
    Path(socket).unlink(missing_ok=True)  # of one that was killed
    sys.argv = [SERVER, *rest, "--uds", socket]
    runpy.run_module(SERVER, run_name="__main__")
