"""Prompts and banks by name: files of ours, or a user's by a path."""

import hashlib
from pathlib import Path

from clipmill.pipeline.errors import RecipeError, did_you_mean

HERE = Path(__file__).parent
ENDINGS = (".yaml", ".yml")


def is_path(name: str) -> bool:
    """Whether a setting names a user's file, and not one of ours."""
    return name.endswith(ENDINGS)


def stem(name: str) -> str:
    """The name of a file without its folder and ending: what a `prompt_id` begins with."""
    return Path(name).stem if is_path(name) else name


def prompt_id(name: str, template: str) -> str:
    """`NAME@8 hex digits`: other words of a prompt give another id."""
    return f"{stem(name)}@{hashlib.sha256(template.encode()).hexdigest()[:8]}"


def path_of(name: str, folder: str, key: str) -> str:
    """Where the file of a name lies; RecipeError where it is neither ours nor a path."""
    if is_path(name):
        return name
    ours = sorted(file.stem for file in (HERE / folder).glob("*.yaml"))
    if name not in ours:
        do = f"{did_you_mean(name, ours)}; a file of your own ends in .yaml"
        raise RecipeError(f"no {folder[:-1]} '{name}'", f"key `{key}`", do)
    return str(HERE / folder / f"{name}.yaml")
