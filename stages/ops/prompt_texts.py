"""The texts of prompts and banks: all that a model is shown, wherever in the file it stands."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import open_uri
from clipmill.pipeline.errors import RecipeError

CAPTION = Path(__file__).parents[1] / "caption"  # its banks/ and prompts/ come with clipmill


def shipped() -> list[str]:
    """The prompt and bank files that come with clipmill."""
    return sorted(str(file) for file in CAPTION.glob("*/*.yaml"))


def prompt_texts(files: Sequence[str]) -> tuple[list[str], str]:
    """Every text in these YAML files, and a digest of them; RecipeError where one is no YAML."""
    texts: list[str] = []
    for file in files:
        store, path = open_uri(file)
        with store.open_input_stream(path) as stream:
            body = stream.read()
        try:
            texts += _texts(yaml.safe_load(body))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = f"key `prompts`: {redacted(file)}"
            said = str(error).splitlines()[0]
            raise RecipeError(f"no YAML: {said}", where, "mend the file") from None
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return texts, digest


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
