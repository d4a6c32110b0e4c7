"""Reads YAML files with line numbers, for errors that name a line."""

import yaml

from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import open_uri
from clipmill.pipeline.errors import RecipeError, did_you_mean

MOST_BYTES = 250_000


class Document:
    """A YAML mapping with line numbers; raises RecipeError if it cannot be read."""

    def __init__(self, uri: str) -> None:
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

    def wrong(self, found: str, place: yaml.Node | int | None, do: str) -> RecipeError:
        """Returns an error that names a line; `place` is a value or a line."""
        line = place if isinstance(place, int) else line_of(place)
        return RecipeError(found, f"{self.name}:{line}", do)

    def mapping(self, node: yaml.Node | None, what: str) -> dict[str, yaml.Node]:
        """Returns the values of a mapping by their keys; refuses repeated keys."""
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(f"no {what}", node, f"write {what} as `name: value`")
        values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in values:
                raise self.wrong(f"'{name}' stands twice", key, "keep one of the two")
            values[name] = value
        return values

    def items(self, name: str) -> list[yaml.Node]:
        """Returns the values of a field that is a list."""
        node = self.fields[name]
        if not isinstance(node, yaml.SequenceNode):
            raise self.wrong(f"`{name}` is no list", node, "write a `- ` before each")
        return list(node.value)

    def only(self, fields: dict[str, yaml.Node], needed: tuple[str, ...], *others: str) -> None:
        """Checks that no field is missing or unknown; raises RecipeError."""
        for name, value in fields.items():
            if name not in (*needed, *others):
                known = did_you_mean(name, (*needed, *others), "its fields are")
                raise self.wrong(f"unknown field '{name}'", value, known)
        first = min(map(line_of, fields.values()), default=1)
        for name in needed:
            if name not in fields:
                raise self.wrong(f"no field '{name}'", first, f"write `{name}:`")

    def text(self, node: yaml.Node, name: str) -> str:
        """Returns a text, stripped; refuses an empty one."""
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self.wrong(f"the field '{name}' is empty", node, "write a text there")
        return str(node.value).strip()


def line_of(node: yaml.Node | None) -> int:
    return node.start_mark.line + 1 if node else 1
