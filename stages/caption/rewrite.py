"""Rewrites captions by a language model that does not see the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import TEXT
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Environment, Finding, NonEmpty, OneUp, StreamFunction, Worker
from clipmill.stages.caption._outcomes import WRITES, Outcome, columns_of
from clipmill.stages.models import generator
from clipmill.stages.models.asking import (
    AskingStage,
    all_of,
    bits_of,
    cleaned,
    seeds_of,
    sentence_of,
)
from clipmill.stages.models.generator import Asker, Decoding, Form, Prompt
from clipmill.stages.models.prompts import Document, path_of, prompt_id, stem

# Shapes: N rows of the batch.

LABEL = "rewrite"
ALONE = "Answer with the new caption alone, on one line."  # an instruction for chat models


@dataclass(frozen=True, kw_only=True)
class OneLine(Decoding):
    """LaCLIP's decoding."""

    max_tokens: OneUp = 77
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.9
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = 0.95
    stop: tuple[NonEmpty, ...] = ("\n",)


@dataclass(frozen=True)
class Bank:
    """An instruction, and example pairs of a caption and its rewrite."""

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
        """Draws `count` distinct pairs, uniformly, in random order; `bits` are 64 random bits."""
        left = list(self.pairs)
        drawn = []
        for _ in range(count):
            bits, place = divmod(bits, len(left))
            drawn.append(left.pop(place))
        return drawn


def proof(
    model: str, worker: Worker, missing: Callable[[Sequence[Environment]], list[str]]
) -> list[Finding] | None:
    """Asks a model the questions of caption stages; returns None for one that writes nothing."""
    from clipmill.stages.caption._proof import findings_on

    return findings_on(model, worker, missing, Rewrite, rewritten)


@dataclass(frozen=True, kw_only=True)
class Rewrite(AskingStage):
    """Rewrites of the caption, `per_style` of each style; null if no answer has a text.

    The model sees an instruction, example pairs of a caption and its rewrite, chosen by a hash of
    the row, and the caption. A bank of pairs is a file in stages/caption/banks.

    Source: LaCLIP (Fan et al. 2023), section 3 and its rewrite/ code: prompt, 3 pairs, temperature
        0.9, top-p 0.95, 77 new tokens, one line. Departs: pairs of our own; long captions are cut
        by words, as no tokenizer is at hand; one stage asks for all styles.
    Error: the model may invent facts: judge rewrites with score.caption.
    Example: {after: [ingest.datacomp], model: reference}
    """

    # a model by its scheme: openai:URL#MODEL, vllm:MODEL, gguf:FILE, smollm2 (its weights come in a
    # package), or reference, which needs no weights and is for trials
    model: NonEmpty = "smollm2"
    # banks of pairs: chatgpt, bard, mscoco, human, or a YAML file of your own
    styles: Annotated[tuple[NonEmpty, ...], Meta(min_length=1)] = (
        *("chatgpt", "bard", "mscoco", "human"),
    )
    per_style: OneUp = 1  # rewrites of each style
    pairs: Annotated[int, Meta(ge=1, le=8)] = 3  # example pairs before the caption
    max_caption_words: OneUp = 64  # cap; a longer caption is cut
    form: Form = "completion"  # asked first, as published; chat where a server knows only that
    decoding: OneLine = OneLine()

    version = 1
    writes = WRITES
    proofs = (("model", proof),)
    reads = (TEXT,)
    reasons = ("no_text", "empty_text", *generator.REASONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [stem(style) for style in self.styles]
        if twice := [name for name in names if names.count(name) > 1]:
            found = f"the style '{twice[0]}' stands twice"
            raise RecipeError(found, "key `styles`", "name each once; `per_style` asks for more")
        len(self.banks)  # reads the banks, so that a bad one stops the plan

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
    """Returns the rewrites of every caption, or a reason."""
    captions = [
        None if text is None else cleaned(text, settings.max_caption_words)
        for text in batch[TEXT.name].to_pylist()
    ]
    asks = [(bank, number) for bank in settings.banks for number in range(settings.per_style)]
    drawn = [bits_of(batch, worker, f"pairs {stem(bank.name)} {n}").tolist() for bank, n in asks]
    seeds = [seeds_of(batch, worker, f"{bank.prompt_id} {n}") for bank, n in asks]

    async def ask(row: int, caption: str, index: int) -> Outcome:
        bank, number = asks[index]
        examples = bank.examples(drawn[index][row], settings.pairs)
        prompt = prompt_for(bank.instruction, examples, caption)
        answer = await asker.ask(prompt, seed=seeds[index][row], candidate=number)
        text = sentence_of(answer.text or "", caption)
        reason = answer.reason or (None if text else "empty_answer")
        return Outcome(text=text, reason=reason, prompt_id=bank.prompt_id, label=LABEL)

    async def ask_row(row: int, caption: str | None) -> list[Outcome] | str:
        if not caption:
            return "no_text" if caption is None else "empty_text"
        return await all_of(ask(row, caption, index) for index in range(len(asks)))

    waiting = (ask_row(row, caption) for row, caption in enumerate(captions))
    rows = await all_of(waiting, worker.row_done)
    return columns_of(rows, worker, settings.model)


def prompt_for(instruction: str, examples: list[tuple[str, str]], caption: str) -> Prompt:
    """Returns the prompt of one caption; a chat model gets the instruction as system message."""
    return Prompt(text=prompt_of(examples, caption), system=instruction, to_chat=ALONE)


ARROW = "=>"


def prompt_of(examples: list[tuple[str, str]], caption: str) -> str:
    """Returns a paragraph for each example pair, and last the caption with an open arrow."""
    shown = (f"{source} {ARROW} {target}" for source, target in examples)
    return "\n\n".join([*shown, f"{caption} {ARROW}"])


def bank_of(style: str, examples: int) -> Bank:
    """Reads the bank of a style, ours or a user's file; raises RecipeError, with the line."""
    document = Document(path_of(style, "caption/banks", "styles"))
    document.only(document.fields, ("instruction", "pairs"))
    instruction = document.text(document.fields["instruction"], "instruction")
    pairs: dict[str, tuple[str, str]] = {}
    for node in document.items("pairs"):
        fields = document.mapping(node, "pair")
        document.only(fields, ("source", "target"))
        source, target = (_line(document, fields[name], name) for name in ("source", "target"))
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


def _line(document: Document, node: Any, name: str) -> str:
    text = document.text(node, name)
    if "\n" in text or ARROW in text:
        raise document.wrong(
            f"'{name}' holds a line break or '{ARROW}'", node, "write it on one line"
        )
    return text
