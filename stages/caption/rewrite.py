"""Other wordings of a caption, by a language model that never sees the image."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import TEXT
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import NonEmpty, OneUp, StreamFunction, Worker
from clipmill.stages.caption._asking import (
    AskingStage,
    Said,
    all_of,
    bits_of,
    cleaned,
    columns_of,
    seeds_of,
    sentence_of,
)
from clipmill.stages.caption._prompts import path_of, prompt_id, stem
from clipmill.stages.models import generator
from clipmill.stages.models.generator import Asker, Decoding, Form, Prompt

if TYPE_CHECKING:
    import yaml

    from clipmill.stages.caption._document import Document

# Shapes: N rows of the batch.

LABEL = "rewrite"
ALONE = "Answer with the new caption alone, on one line."  # which chat models need to be told


@dataclass(frozen=True, kw_only=True)
class OneLine(Decoding):
    """LaCLIP's decoding."""

    max_tokens: OneUp = 77
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.9
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = 0.95
    stop: tuple[NonEmpty, ...] = ("\n",)


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


@dataclass(frozen=True, kw_only=True)
class Rewrite(AskingStage):
    """Rewrites of the caption, `per_style` of each style; null where no answer has a text.

    The model sees an instruction, some pairs of a caption and its rewrite, and the caption; which
    pairs, a hash of the row decides. A bank of pairs is a file in stages/caption/banks.

    Source: LaCLIP (Fan et al. 2023), section 3 and its rewrite/ code: prompt, 3 pairs, temperature
        0.9, top-p 0.95, 77 new tokens, one line. Departs: pairs of our own; a caption that is too
        long is cut by words, as no tokenizer is at hand; one stage asks for all styles.
    Error: what the model makes up: judge rewrites with score.caption.
    Example: {after: [ingest.datacomp], model: reference}
    """

    # a model by its scheme: openai:URL#MODEL, vllm:MODEL, gguf:FILE, smollm2, whose weights are in
    # a package, or reference, which needs none and is for trials
    model: NonEmpty = "smollm2"
    # banks of pairs: chatgpt, bard, mscoco, human, or a YAML file of your own
    styles: Annotated[tuple[NonEmpty, ...], Meta(min_length=1)] = (
        *("chatgpt", "bard", "mscoco", "human"),
    )
    per_style: OneUp = 1  # rewrites of each style
    pairs: Annotated[int, Meta(ge=1, le=8)] = 3  # shown before the caption
    max_caption_words: OneUp = 64  # a longer caption is cut
    form: Form = "completion"  # as published; chat for servers that know nothing else
    decoding: OneLine = OneLine()

    version = 1
    proofs = (("model", generator.proof),)
    reads = (TEXT,)
    reasons = ("no_text", "empty_text", *generator.REASONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [stem(style) for style in self.styles]
        if twice := [name for name in names if names.count(name) > 1]:
            found = f"the style '{twice[0]}' stands twice"
            raise RecipeError(found, "key `styles`", "name each once; `per_style` asks for more")
        len(self.banks)  # a bank that is not as it should be stops the plan

    @cached_property
    def banks(self) -> tuple[Bank, ...]:
        return tuple(bank_of(style, self.pairs) for style in self.styles)

    @property
    def digests(self) -> dict[str, str]:
        return {"banks": digest([bank.template for bank in self.banks])}

    def open(self, worker: Worker) -> StreamFunction:
        start = partial(
            rewritten, settings=self, asker=self.asker(worker, self.form), worker=worker
        )
        asks = len(self.styles) * self.per_style
        return self.streamed(start, asks)


async def rewritten(
    batch: pa.Table, *, settings: Rewrite, asker: Asker, worker: Worker
) -> pa.Table:
    """The rewrites of every caption, and a reason wherever there is none."""
    captions = [
        None if text is None else cleaned(text, settings.max_caption_words)
        for text in batch[TEXT.name].to_pylist()
    ]
    asks = [(bank, number) for bank in settings.banks for number in range(settings.per_style)]
    drawn = [bits_of(batch, worker, f"pairs {stem(it.name)} {n}").tolist() for it, n in asks]
    seeds = [seeds_of(batch, worker, f"{it.prompt_id} {n}") for it, n in asks]

    async def said(row: int, caption: str, at: int) -> Said:
        bank, number = asks[at]
        examples = bank.examples(drawn[at][row], settings.pairs)
        prompt = asked(bank.instruction, examples, caption, settings.form)
        answer = await asker.ask(prompt, seed=seeds[at][row], candidate=number)
        text = sentence_of(answer.text or "", caption)
        reason = answer.reason or (None if text else "empty_answer")
        return Said(text=text, reason=reason, prompt_id=bank.prompt_id, label=LABEL)

    async def all_said(row: int, caption: str | None) -> list[Said] | str:
        if not caption:
            return "no_text" if caption is None else "empty_text"
        return await all_of(said(row, caption, at) for at in range(len(asks)))

    rows = await all_of(all_said(row, caption) for row, caption in enumerate(captions))
    return columns_of(rows, worker, settings.model)


def asked(instruction: str, examples: list[tuple[str, str]], caption: str, form: Form) -> Prompt:
    """The prompt of one caption: the instruction apart for a model that chats."""
    text = prompt_of(examples, caption)
    if form == "chat":
        return Prompt(system=f"{instruction} {ALONE}", text=text)
    return Prompt(text=f"{instruction}\n\n{text}")


ARROW = "=>"


def prompt_of(examples: list[tuple[str, str]], caption: str) -> str:
    """Each example, and the caption with its arrow, an empty line between."""
    shown = (f"{source} {ARROW} {target}" for source, target in examples)
    return "\n\n".join([*shown, f"{caption} {ARROW}"])


def bank_of(style: str, examples: int) -> Bank:
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
