"""vLLM's server on a Unix socket, run as a file by a Python that has vLLM.

VLLM_API_KEY=… python vllm_server.py SOCKET FLAGS…
"""

import runpy
import sys
from pathlib import Path

SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` asks for a package of that very name

if __name__ == "__main__":
    socket, *rest = sys.argv[1:]
    Path(socket).unlink(missing_ok=True)  # of one that was killed
    sys.argv = [SERVER, *rest, "--uds", socket]
    runpy.run_module(SERVER, run_name="__main__")
