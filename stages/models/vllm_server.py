"""Runs vLLM's server on a Unix socket; a script for a Python that has vLLM.

VLLM_API_KEY=… python vllm_server.py SOCKET FLAGS…
"""

import runpy
import sys
from pathlib import Path

SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` needs a package of exactly that name

if __name__ == "__main__":
    socket, *rest = sys.argv[1:]
    Path(socket).unlink(missing_ok=True)  # of a killed server
    sys.argv = [SERVER, *rest, "--uds", socket]
    runpy.run_module(SERVER, run_name="__main__")
