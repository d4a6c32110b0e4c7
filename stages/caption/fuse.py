"""Joins the pool's caption and a generated one by a language model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Annotated

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import CAPTIONS, TEXT, Column
from clipmill.pipeline.stage import NonEmpty, OneUp, StreamFunction, Worker
from clipmill.stages.caption._outcomes import WRITES, Outcome, columns_of
from clipmill.stages.models import generator
from clipmill.stages.models.asking import (
    AskingStage,
    all_of,
    cleaned,
    is_reply,
    paragraph_of,
    seeds_of,
)
from clipmill.stages.models.generator import Asker, Decoding, Form, Prompt
from clipmill.stages.models.prompts import Template, load_prompt

PLACES = ("caption", "text")
MOST_WORDS = {"text": 64, "caption": 256}  # of the pool's caption, of a generated one


@dataclass(frozen=True, kw_only=True)
class Fused(Decoding):
    """Decoding of a fused sentence; the prompt sets its length."""

    max_tokens: OneUp = 1024  # cap of an answer, besides that of the prompt's file
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.7
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = 0.95


@dataclass(frozen=True, kw_only=True)
class Fuse(AskingStage):
    """The pool's caption joined with each generated one, a text for each; null without any.

    A model that refuses, or begins with a courtesy, is asked again, up to `attempts` times in all.

    Source: VeCLIP (Lai et al. 2023) for `veclip`, one short sentence; VeCap-v2 (2024) for `afc`,
        the web caption in a long description. Departs: prompts and decoding of our own, as theirs
        are not published.
    Error: the model may invent or omit facts: judge texts with score.caption.
    Example: {after: [ingest.datacomp, caption.rewrite], model: reference}
    """

    # lists of generated captions, as `captions` or `stage.captions`; each text is joined
    captions: Annotated[tuple[NonEmpty, ...], Meta(min_length=1)] = ("captions",)
    prompt: NonEmpty = "veclip"  # veclip, afc, or a YAML file of your own
    attempts: OneUp = 3  # cap on answers, until one is a caption
    form: Form = "chat"  # asked first; completion for models that are not tuned to chat
    decoding: Fused = Fused()

    version = 2
    writes = WRITES
    reasons = ("no_text", "empty_text", "no_captions", "no_caption_in_answer", *generator.REASONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        len(self.template.text)  # reads the prompt, so that a bad one stops the plan

    @cached_property
    def template(self) -> Template:
        return load_prompt(self.prompt, "prompt", needs=PLACES)

    @property
    def digests(self) -> Mapping[str, str]:
        return {"prompt": digest(asdict(self.template))}

    @property
    def reads(self) -> tuple[Column, ...]:
        return (TEXT, *(replace(CAPTIONS, name=name) for name in self.captions))

    def open(self, worker: Worker) -> StreamFunction:
        start = partial(fused, settings=self, asker=self.asker(worker, self.form), worker=worker)
        return self.streamed(start)


async def fused(batch: pa.Table, *, settings: Fuse, asker: Asker, worker: Worker) -> pa.Table:
    """Returns the joined captions of every row, or a reason."""
    template = settings.template
    seeds = seeds_of(batch, worker, template.prompt_id)
    rows_of_lists = zip(*(batch[name].to_pylist() for name in settings.captions), strict=True)
    generated = [
        [entry["text"] for entries in lists for entry in entries or () if entry["text"]]
        for lists in rows_of_lists
    ]

    async def ask(seed: int, text: str, caption: str) -> Outcome:
        filled = template.filled(text=text, caption=caption)
        prompt = Prompt(text=filled, system=template.system, max_tokens=template.max_tokens)
        reason = None
        for attempt in range(settings.attempts):
            answer = await asker.ask(prompt, seed=seed, candidate=attempt)
            joined = paragraph_of(answer.text or "", answer.cut)
            if answer.reason not in (None, "empty_answer"):
                reason = answer.reason
                break
            if joined and not is_reply(joined):
                return Outcome(text=joined, prompt_id=template.prompt_id, label=template.label)
            reason = "no_caption_in_answer" if joined else "empty_answer"
        return Outcome(reason=reason, prompt_id=template.prompt_id, label=template.label)

    async def ask_row(number: int, text: str | None) -> list[Outcome] | str:
        if text is None:
            return "no_text"
        text = cleaned(text, MOST_WORDS["text"])
        if not text:
            return "empty_text"
        captions = [cleaned(caption, MOST_WORDS["caption"]) for caption in generated[number]]
        captions = list(filter(None, captions))
        if not captions:
            return "no_captions"
        return await all_of(ask(seeds[number], text, caption) for caption in captions)

    texts = batch[TEXT.name].to_pylist()
    waiting = (ask_row(number, text) for number, text in enumerate(texts))
    rows = await all_of(waiting, worker.row_done)
    return columns_of(rows, worker, settings.model)
