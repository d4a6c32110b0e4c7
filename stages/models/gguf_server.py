"""Runs llama.cpp's server on a Unix socket; a script for a Python that has xllamacpp.

    LLAMA_API_KEY=… python gguf_server.py SOCKET MODEL PROJECTOR SLOTS CONTEXT THREADS

PROJECTOR is empty for a model that sees no images; CONTEXT is tokens a slot. llama.cpp's default
cuts of unlikely tokens (top-k, top-p, min-p) are off, unless a request sets them.
"""

import os
import signal
import sys
from contextlib import suppress


def main(path: str, model: str, projector: str, slots: int, context: int, threads: int) -> None:
    """Serves until a signal ends it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.hostnames = [path]
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.ui = False
    params.offline = True
    params.model.path = model
    params.model_alias = {"model"}
    if projector:
        params.mmproj.path = projector
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # by default up to 8 GB beside the slots' own caches
    params.sampling.top_k, params.sampling.top_p, params.sampling.min_p = 0, 1.0, 0.0
    with suppress(FileNotFoundError):
        os.unlink(path)  # of a killed server
    server = xllamacpp.Server(params)
    signal.pause()
    del server


if __name__ == "__main__":
    path, model, projector, *numbers = sys.argv[1:]
    main(path, model, projector, *map(int, numbers))
