"""Prompts and banks as YAML files: ours by a name, a user's by a path; errors name the line."""

import hashlib
from pathlib import Path

import yaml

from metadata.keys import redacted
from metadata.storage import open_uri
from pipeline.errors import RecipeError, did_you_mean

HERE = Path(__file__).parent
MOST_BYTES = 250_000
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


class Document:
    """A YAML mapping whose values know their lines; RecipeError where there is none."""

    def __init__(self, uri: str) -> None:
        self.name = redacted(uri)
        try:
            store, path = open_uri(uri)
            with store.open_input_stream(path) as file:
                body = file.read(MOST_BYTES + 1)
        except OSError as error:
            do = "mend the path: the file is read while the recipe is planned"
            raise RecipeError(f"no file: {error}", self.name, do) from None
        if len(body) > MOST_BYTES:
            raise self.wrong(f"more than {MOST_BYTES:,} bytes", 1, "write a shorter file")
        try:
            root = yaml.compose(body.decode(), yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            said = getattr(error, "problem", None) or "it is no UTF-8 text"
            raise self.wrong(said, mark.line + 1 if mark else 1, "mend the YAML") from None
        self.fields = self.mapping(root, "fields")

    def wrong(self, found: str, line: int, do: str) -> RecipeError:
        return RecipeError(found, f"{self.name}:{line}", do)

    def mapping(self, node: yaml.Node | None, what: str) -> dict[str, yaml.Node]:
        """The values of a mapping by their keys."""
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(f"no {what}", line_of(node), f"write {what} as `name: value`")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value in found:
                raise self.wrong(f"'{key.value}' stands twice", line_of(key), "keep one of the two")
            found[key.value] = value
        return found

    def only(self, fields: dict[str, yaml.Node], needed: tuple[str, ...], *others: str) -> None:
        """RecipeError where a field is missing or is none of these."""
        for name, value in fields.items():
            if name not in (*needed, *others):
                known = did_you_mean(name, (*needed, *others), "its fields are")
                raise self.wrong(f"unknown field '{name}'", line_of(value), known)
        first = min(map(line_of, fields.values()), default=1)
        for name in needed:
            if name not in fields:
                raise self.wrong(f"no field '{name}'", first, f"write `{name}:`")

    def text(self, node: yaml.Node, name: str) -> str:
        """A text that is not empty, without space around it."""
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self.wrong(f"the field '{name}' is empty", line_of(node), "write a text there")
        return str(node.value).strip()


def line_of(node: yaml.Node | None) -> int:
    return node.start_mark.line + 1 if node else 1
