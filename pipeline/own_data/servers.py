"""Finds the language model that a server on this machine offers: Ollama, vLLM or llama-server."""

import json
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data.data import UnsureError

AUTO = "auto"
PORTS = {"ollama": 11434, "vllm": 8000, "llama-server": 8080}  # where they listen by default
ANSWER_S, MOST_BYTES = 2.0, 1 << 20
START = "`ollama serve`, `vllm serve MODEL` or `llama-server --model FILE`"
BLIND = re.compile(r"smollm2|gguf:[^#]*")  # models by name that see no picture


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """A model that writes captions. `sees` says if it takes pictures; None if it is unknown."""

    model: str
    server: str = ""
    sees: bool | None = None


def captioner(model: str) -> Captioner:
    """Returns the model that is named, or with `auto` the one that a server here offers.

    A model that sees goes before others. UnsureError if there are several, RecipeError for none.
    """
    if model != AUTO:
        return Captioner(model=model, sees=False if BLIND.fullmatch(model) else None)
    found = [offer for server, port in PORTS.items() for offer in _offered(server, port)]
    found = [offer for offer in found if offer.sees] or found
    if not found:
        ports = ", ".join(f"{port} ({server})" for server, port in PORTS.items())
        do = f"start one: {START}; or name one that listens elsewhere: --captions openai:URL#MODEL"
        raise RecipeError(f"no model answers at 127.0.0.1, ports {ports}", "--captions auto", do)
    if len(found) > 1:
        do = f"name one: --captions '{found[0].model}'"
        names = {offer.model: f"by {offer.server}" for offer in found}
        raise UnsureError("captions", names, "--captions auto", do)
    return found[0]


def _offered(server: str, port: int) -> list[Captioner]:
    """Returns the models of a server at its default port; none if it does not answer as one."""
    host = os.environ.get("OLLAMA_HOST", "") if server == "ollama" else ""
    named = re.fullmatch(r"(?:http://)?(?:127\.0\.0\.1|localhost|0\.0\.0\.0|):(\d+)/?", host)
    base = f"http://127.0.0.1:{named[1] if named else port}"
    listed = _json(f"{base}/v1/models").get("data")
    items = listed if isinstance(listed, list) else []
    names = [str(item["id"]) for item in items if isinstance(item, dict) and "id" in item]
    return [
        Captioner(model=f"openai:{base}/v1#{name}", server=server, sees=_sees(server, base, name))
        for name in names
    ]


def _sees(server: str, base: str, name: str) -> bool | None:
    """Returns whether a model takes pictures, as its server says; vLLM's does not."""
    if server == "ollama":
        able = _json(f"{base}/api/show", {"model": name}).get("capabilities")
        return "vision" in able if isinstance(able, list) else None
    kinds = _json(f"{base}/props").get("modalities") if server == "llama-server" else None
    return bool(kinds.get("vision")) if isinstance(kinds, dict) else None


def _json(url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the object that a URL on loopback answers with; empty if it does not."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_S) as answer:
            found = json.loads(answer.read(MOST_BYTES))
    except (OSError, HTTPException, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
