"""Asks `openai:URL#MODEL`: a running server that speaks OpenAI's protocol."""

import os
from urllib.parse import urlsplit

from clipmill.metadata.keys import without_keys
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Environment, Worker
from clipmill.stages.models.endpoint import Endpoint, Limits


def environments(name: str) -> tuple[Environment, ...]:
    """Returns no environment; raises RecipeError for an unusable URL, or one that holds a key."""
    url, _, model = name.partition("#")
    where = f"key `model`, 'openai:{without_keys(name)}'"
    do = "write openai:https://host/v1#MODEL"
    try:
        parts = urlsplit(url)
        is_server = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        is_server = False
    if not is_server or not model:
        do += "" if model else ", in quotes: a # behind a space begins a remark in YAML"
        raise RecipeError("no URL of a server with a model after #", where, do)
    if parts.username or parts.password or parts.query:
        do = f"{do}, and put the key into the environment variable that limits.api_key_env names"
        raise RecipeError("a URL with a name, a password or a query", where, do)
    return ()


def endpoint(name: str, worker: Worker, limits: Limits) -> Endpoint:
    """Returns the server; its key comes from the worker's environment."""
    environments(name)
    url, _, model = name.partition("#")
    key = os.environ.get(limits.api_key_env, "")
    return Endpoint(url=url, model=model, identity=model, key=key)
