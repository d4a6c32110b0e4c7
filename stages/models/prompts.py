"""Reads prompts for language models: a text with places for captions, a label, and a length."""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import open_uri
from clipmill.pipeline.errors import RecipeError, did_you_mean

PLACE = re.compile(r"\{([a-z_]+)\}")
NUMBER = re.compile("[1-9][0-9]{0,5}")
MOST_BYTES = 250_000  # of a file
WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class Template:
    """A prompt, with places `{text}` for the pool's caption and `{caption}` for a generated one."""

    name: str  # `id` in the file
    label: str
    max_tokens: int
    text: str
    system: str

    @cached_property
    def prompt_id(self) -> str:
        return prompt_id(self.name, f"{self.system}\n{self.text}")

    @cached_property
    def places(self) -> frozenset[str]:
        return frozenset(PLACE.findall(self.text))

    def filled(self, **captions: str) -> str:
        return PLACE.sub(lambda place: captions[place[1]], self.text)


def load_prompt(
    name: str,
    key: str,
    needs: tuple[str, ...] = (),
    may: tuple[str, ...] = (),
    folder: str = "caption/prompts",
) -> Template:
    """Reads a prompt, ours or a user's file; raises RecipeError, with the line, for a bad one.

    `needs` are places that its text must have, `may` others that it may have.
    """
    document = Document(path_of(name, folder, key))
    document.only(document.fields, ("id", "label", "max_tokens", "text"), "system")
    values = {field: document.text(node, field) for field, node in document.fields.items()}
    for field in ("id", "label"):
        if not WORD.fullmatch(values[field]):
            do = "write small letters, digits and _"
            raise document.wrong(f"{field} is {values[field]!r}", document.fields[field], do)
    if not NUMBER.fullmatch(values["max_tokens"]):
        found = f"max_tokens is {values['max_tokens']!r}"
        do = "write a whole number from 1"
        raise document.wrong(found, document.fields["max_tokens"], do)
    places = set(PLACE.findall(values["text"]))
    for place in sorted(places - {*needs, *may}):
        known = ", ".join(f"{{{name}}}" for name in (*needs, *may)) or "none"
        do = f"places that this stage fills are: {known}"
        raise document.wrong(f"unknown place {{{place}}}", document.fields["text"], do)
    for place in needs:
        if place not in places:
            do = f"write {{{place}}} where that caption goes"
            raise document.wrong(f"no place {{{place}}}", document.fields["text"], do)
    return Template(
        name=values["id"],
        label=values["label"],
        max_tokens=int(values["max_tokens"]),
        text=values["text"],
        system=values.get("system", ""),
    )


HERE = Path(__file__).parents[1]  # stages
ENDINGS = (".yaml", ".yml")  # of a user's file, not one of ours


def stem(name: str) -> str:
    """Returns a file's name without folder and ending, for a `prompt_id`."""
    return Path(name).stem if name.endswith(ENDINGS) else name


def prompt_id(name: str, template: str) -> str:
    """Returns `NAME@8 hex digits`; the digits are a hash of the prompt's text."""
    return f"{stem(name)}@{hashlib.sha256(template.encode()).hexdigest()[:8]}"


def path_of(name: str, folder: str, key: str) -> str:
    """Returns the path of a named file; raises RecipeError if it is neither ours nor a path."""
    if name.endswith(ENDINGS):
        return name
    ours = sorted(file.stem for file in (HERE / folder).glob("*.yaml"))
    if name not in ours:
        do = f"{did_you_mean(name, ours)}; a file of your own ends in .yaml"
        raise RecipeError(f"no {Path(folder).name[:-1]} '{name}'", f"key `{key}`", do)
    return str(HERE / folder / f"{name}.yaml")


class Document:
    """A YAML mapping with line numbers; raises RecipeError if it cannot be read."""

    def __init__(self, uri: str) -> None:
        import yaml  # late: a worker reads no prompt

        self.name = redacted(uri)
        try:
            store, path = open_uri(uri)
            with store.open_input_stream(path) as file:
                body = file.read(MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            do = "mend the path: the file is read while the recipe is planned"
            raise RecipeError(f"no file: {error}", self.name, do) from None
        if len(body) > MOST_BYTES:
            raise self.wrong(f"more than {MOST_BYTES:,} bytes", 1, "write a shorter file")
        try:
            root = yaml.compose(body.decode(), yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error)
            raise self.wrong(problem, mark.line + 1 if mark else 1, "mend the YAML") from None
        self.fields = self.mapping(root, "fields")

    def wrong(self, found: str, place: Any, do: str) -> RecipeError:
        """Returns an error that names a line; `place` is a value or a line."""
        line = place if isinstance(place, int) else line_of(place)
        return RecipeError(found, f"{self.name}:{line}", do)

    def mapping(self, node: Any, what: str) -> dict[str, Any]:
        """Returns the values of a mapping by their keys; refuses repeated keys."""
        if node is None or node.id != "mapping":
            raise self.wrong(f"no {what}", node, f"write {what} as `name: value`")
        values: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in values:
                raise self.wrong(f"'{name}' stands twice", key, "keep one of the two")
            values[name] = value
        return values

    def items(self, name: str) -> list[Any]:
        """Returns the values of a field that is a list."""
        node = self.fields[name]
        if node.id != "sequence":
            raise self.wrong(f"`{name}` is no list", node, "write a `- ` before each")
        return list(node.value)

    def only(self, fields: dict[str, Any], needed: tuple[str, ...], *others: str) -> None:
        """Checks that no field is missing or unknown; raises RecipeError."""
        for name, value in fields.items():
            if name not in (*needed, *others):
                known = did_you_mean(name, (*needed, *others), "its fields are")
                raise self.wrong(f"unknown field '{name}'", value, known)
        first = min(map(line_of, fields.values()), default=1)
        for name in needed:
            if name not in fields:
                raise self.wrong(f"no field '{name}'", first, f"write `{name}:`")

    def text(self, node: Any, name: str) -> str:
        """Returns a text, stripped; refuses an empty one."""
        if node.id != "scalar" or not node.value.strip():
            raise self.wrong(f"the field '{name}' is empty", node, "write a text there")
        return str(node.value).strip()


def line_of(node: Any) -> int:
    return node.start_mark.line + 1 if node else 1
