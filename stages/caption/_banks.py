"""Banks of captions and their rewrites: examples that a model sees before a caption of its own."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from clipmill.stages.caption._files import path_of, prompt_id

if TYPE_CHECKING:
    import yaml

    from clipmill.stages.caption._document import Document

ARROW = "=>"


@dataclass(frozen=True)
class Bank:
    """An instruction, and pairs of a caption and its rewrite."""

    name: str
    instruction: str
    pairs: tuple[tuple[str, str], ...]

    @cached_property
    def prompt_id(self) -> str:
        return prompt_id(self.name, self.template)

    @property
    def template(self) -> str:
        lines = [self.instruction, *(f"{source} {ARROW} {target}" for source, target in self.pairs)]
        return "\n".join(lines)

    def examples(self, bits: int, count: int) -> list[tuple[str, str]]:
        """So many different pairs, in an order: each choice as likely as any other.

        `bits` is a number of 64 uniform bits, whose remainders say which.
        """
        left = list(self.pairs)
        drawn = []
        for _ in range(count):
            bits, at = divmod(bits, len(left))
            drawn.append(left.pop(at))
        return drawn


def prompt_of(examples: list[tuple[str, str]], caption: str) -> str:
    """Each example, and the caption with its arrow, an empty line between."""
    shown = (f"{source} {ARROW} {target}" for source, target in examples)
    return "\n\n".join([*shown, f"{caption} {ARROW}"])


def load(style: str, examples: int) -> Bank:
    """The bank of a style, ours or a user's file; RecipeError, with the line, for a bad one."""
    from clipmill.stages.caption._document import Document  # YAML: not in a worker

    document = Document(path_of(style, "banks", "styles"))
    document.only(document.fields, ("instruction", "pairs"))
    instruction = document.text(document.fields["instruction"], "instruction")
    pairs: dict[str, tuple[str, str]] = {}
    for node in document.items("pairs"):
        fields = document.mapping(node, "pair")
        document.only(fields, ("source", "target"))
        source, target = (_side(document, fields[name], name) for name in ("source", "target"))
        if source.casefold() in pairs:
            raise document.wrong(f"'{source}' stands twice", node, "keep one of the two")
        pairs[source.casefold()] = source, target
    if len(pairs) < examples:
        raise document.wrong(
            f"{len(pairs)} pairs, and {examples} are drawn",
            document.fields["pairs"],
            "write more pairs, or lower `pairs`",
        )
    return Bank(style, instruction, tuple(pairs.values()))


def _side(document: "Document", node: "yaml.Node", name: str) -> str:
    text = document.text(node, name)
    if "\n" in text or ARROW in text:
        raise document.wrong(
            f"'{name}' holds a line break or '{ARROW}'", node, "write it on one line"
        )
    return text
