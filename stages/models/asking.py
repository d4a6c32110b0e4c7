"""The base of stages that ask a language model: settings, clean prompts, parsed answers."""

import re
import unicodedata
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.stage import (
    Environment,
    Gigabytes,
    Gpus,
    NonEmpty,
    OneUp,
    RowStage,
    StreamFunction,
    Worker,
    ignored,
    location,
)
from clipmill.stages.models import generator
from clipmill.stages.models.generator import Asker, Decoding, Form, Limits

# Shapes: N rows of the batch.

# Tokens that a server's tokenizer or template may treat as commands: <|im_start|>, <image>, [INST].
COMMANDS = re.compile(r"<[^<>\s]{1,40}>")
BRACKETS = re.compile(r"\[(/?[A-Z_]{2,20})\]")
CHARACTERS_A_WORD = 12  # cap on a caption's mean, as some scripts write no spaces
# Controls, direction marks, surrogates, private use, unassigned.
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn")
JOINERS = "\u200c\u200d"  # part of words in Persian and Indic scripts, and of emoji
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`"}  # noqa: RUF001
LABEL = re.compile(
    r"(?:[-*•]\s+|\d{1,2}[.)]\s+)?"
    r"(?:\**(?:(?:new|rewritten|short|long|detailed|image|visual|final|fused)\s+)?"
    r"(?:caption|rewrite|description|answer|output|target|sentence|alt[- ]text)\**\s*:\**\s*)?",
    re.IGNORECASE,
)
# Beginnings of answers that address the user: a refusal, or a courtesy before the text.
REPLY = re.compile(
    r"(?:i'?m|i am|we are|we're) (?:very |so |really )?(?:sorry|afraid|unable|not able)\b"
    r"|(?:i|we) (?:can(?:'?t| ?not)|could(?:n't| not)|do(?:n't| not)|am not|won't)\b"
    r"|sorry\b|(?:my )?apolog|unfortunately\b|as an? (?:ai|artificial|language)\b"
    r"|(?:sure|certainly|absolutely|of course|great|okay|ok|happy to) ?[,!.:]|sure thing\b"
    r"|here(?: is|'s| are) (?:the|a|an|your|my|one|some) (?:\w+ ){0,2}"
    r"(?:sentence|caption|description|version|rewrite|answer)\b"
    r"|(?:please|could you|can you) (?:provide|share|upload|give|send)\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.!?。！？](?=[\s\"'”’)]|$)[\"'”’)]*|[。！？]")  # noqa: RUF001


def cleaned(caption: str, max_words: int) -> str:
    """Returns the caption on one line, cut to `max_words`, without text that could break a prompt.

    Removes control characters, direction marks, arrows and servers' command tokens. Instructions in
    plain words stay: a caption may say anything.
    """
    caption = caption[: 4 * max_words * CHARACTERS_A_WORD]  # a caption of 100 kB is not scanned
    if not (caption.isascii() and caption.isprintable()):
        caption = "".join(
            c if c.isprintable() or c in JOINERS else _instead_of(c)
            for c in unicodedata.normalize("NFC", caption)
        )
    caption = BRACKETS.sub(r" \1 ", COMMANDS.sub(" ", caption)).replace("=>", "->")
    return " ".join(caption.split()[:max_words])[: max_words * CHARACTERS_A_WORD].strip()


def _instead_of(character: str) -> str:
    if character.isspace():
        return " "
    kind = unicodedata.category(character)
    return "" if kind == "Cf" else " " if kind in UNSEEN else character


def sentence_of(answer: str, caption: str = "") -> str:
    """Returns the first line of an answer that has text, without arrows, labels and quotes."""
    lines = (line.strip() for line in answer.splitlines())
    first = next((line for line in lines if line.strip("=>-*# ")), "")
    parts = [part.strip() for part in first.split("=>")]
    is_echo = not parts[0] or (caption and parts[0].casefold() == caption.casefold())
    return unlabelled(parts[1] if is_echo and len(parts) > 1 else parts[0])


def paragraph_of(answer: str, is_cut: bool) -> str:
    """Returns a longer answer on one line, without labels and quotes.

    A cut answer loses its last, incomplete sentence, unless it is the only one.
    """
    text = unlabelled(" ".join(answer.split()))
    ends = [match.end() for match in SENTENCE_END.finditer(text)] if is_cut else []
    return text[: ends[-1]] if ends else text


def unlabelled(text: str) -> str:
    """Removes a label such as `Caption:` before a text, and quotes around it."""
    text = LABEL.sub("", text, count=1).strip()  # may match empty, so only at the start
    close = QUOTES.get(text[:1])
    if close and len(text) > 1 and text.endswith(close) and close not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def is_reply(text: str) -> bool:
    """Returns whether a text addresses the user (a refusal, a courtesy), and so is no caption."""
    return REPLY.match(text.replace("\u2019", "'")) is not None


UNDECODABLE = {"undecodable": "open some of these pictures: does `image` hold images?"}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sampled(Decoding):
    """Nguyen et al.'s decoding, except the length, which the prompt sets."""

    max_tokens: OneUp = 1024  # cap of an answer, besides that of the prompt's file
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.75
    top_k: OneUp | None = 50
    min_tokens: OneUp | None = 5


@dataclass(frozen=True, kw_only=True)
class AskingStage(RowStage):
    """A row stage whose texts are answers of a language model, within limits."""

    # a model by its scheme: openai:URL#MODEL, vllm:MODEL, gguf:FILE, smollm2, or reference, which
    # needs no weights and is for trials
    model: NonEmpty
    decoding: Decoding  # how answers are drawn; null leaves it to the server
    limits: Limits = location(Limits())  # on requests and spending
    cpus: OneUp = location(1)  # cores of one worker, for a server that it starts
    gpus: Gpus = location(0)  # GPUs of one worker, for a server that it starts
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    determinism = "recorded"
    streams = True
    asks = True
    batch_rows = 128
    transient = generator.TRANSIENT
    advice: ClassVar[Mapping[str, str]] = generator.ADVICE

    def __post_init__(self) -> None:
        generator.environments_of(self.model)

    @property
    def environments(self) -> tuple[Environment, ...]:
        return generator.environments_of(self.model)

    def look(self) -> None:
        generator.look_for(self.model)

    def asker(self, worker: Worker, form: Form) -> Asker:
        return generator.open_asker(
            self.model, worker, decoding=self.decoding, limits=self.limits, form=form
        )

    def streamed(
        self,
        start: Callable[[pa.Table], Coroutine[Any, Any, pa.Table]],
        asks: int = 1,
        a_slot: int = 16,
    ) -> StreamFunction:
        """Returns the stage's function, which runs batches concurrently; a row asks `asks` times.

        Rows are read ahead until `a_slot` questions for each concurrent request are begun: one
        answer may take that many times as long as others before a slot is idle.
        """
        from clipmill.stages.ops.ahead import ahead

        rows_ahead = max(4 * self.batch_rows, a_slot * self.limits.concurrency // asks)
        return lambda batches: ahead(batches, start, rows_ahead)


def bits_of(batch: pa.Table, worker: Worker, purpose: str) -> NDArray[np.uint64]:
    """Returns (N,) 64 random bits of each row for one purpose of the stage."""
    return coin_hash(batch[UID.name], seed=worker.seed, stage=worker.stage, purpose=purpose)


def seeds_of(batch: pa.Table, worker: Worker, prompt: str) -> list[int]:
    """Returns (N,) the seed of each row's answer to a prompt: 31 bits, which all servers take."""
    return (bits_of(batch, worker, f"answer {prompt}") >> np.uint64(33)).tolist()


async def all_of(
    waiting: Iterable[Coroutine[Any, Any, T]], done: Callable[[], None] = ignored
) -> list[T]:
    """Awaits all concurrently and returns their results; if one fails, cancels the others.

    Calls `done` at the end of each.
    """
    import asyncio

    tasks = [asyncio.ensure_future(coroutine) for coroutine in waiting]
    for task in tasks:
        task.add_done_callback(lambda _: done())
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
