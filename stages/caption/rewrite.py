"""Other wordings of a caption, by a language model that never sees the image."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import TEXT
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import (
    Environment,
    Gigabytes,
    Gpus,
    NonEmpty,
    OneUp,
    Resources,
    RowStage,
    StreamFunction,
    Worker,
    location,
)
from clipmill.stages.caption import _banks
from clipmill.stages.caption._answers import (
    WRITES,
    Said,
    all_of,
    bits_of,
    columns_of,
    seeds_of,
    streamed,
)
from clipmill.stages.caption._files import stem
from clipmill.stages.caption._texts import cleaned, sentence_of
from clipmill.stages.models import generator
from clipmill.stages.models.generator import Asker, Decoding, Form, Limits, Prompt, open_asker

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


@dataclass(frozen=True, kw_only=True)
class Rewrite(RowStage):
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
    decoding: OneLine = OneLine()  # how answers are drawn; null leaves it to the server
    limits: Limits = location(Limits())  # how fast and for how much the server is asked
    cpus: OneUp = location(1)  # cores of one worker, for a server that it starts
    gpus: Gpus = location(0)  # GPUs of one worker, for a server that it starts
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 1
    determinism = "recorded"
    proofs = (("model", generator.proof),)
    streams = True
    asks = True
    batch_rows = 128
    reads = (TEXT,)
    writes = WRITES
    reasons = ("no_text", "empty_text", *generator.REASONS)
    transient = generator.TRANSIENT
    advice = generator.ADVICE

    def __post_init__(self) -> None:
        generator.environments_of(self.model)
        names = [stem(style) for style in self.styles]
        if twice := [name for name in names if names.count(name) > 1]:
            found = f"the style '{twice[0]}' stands twice"
            raise RecipeError(found, "key `styles`", "name each once; `per_style` asks for more")
        len(self.banks)  # a bank that is not as it should be stops the plan

    @cached_property
    def banks(self) -> tuple[_banks.Bank, ...]:
        return tuple(_banks.load(style, self.pairs) for style in self.styles)

    @property
    def digests(self) -> dict[str, str]:
        return {"banks": digest([bank.template for bank in self.banks])}

    @property
    def environments(self) -> tuple[Environment, ...]:
        return generator.environments_of(self.model)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.cpus, gpus=self.gpus, memory_gb=self.memory_gb)

    def look(self) -> None:
        generator.look_for(self.model)

    def open(self, worker: Worker) -> StreamFunction:
        asker = open_asker(
            self.model, worker, decoding=self.decoding, limits=self.limits, form=self.form
        )
        start = partial(rewritten, settings=self, asker=asker, worker=worker)
        asks = len(self.styles) * self.per_style
        return streamed(start, self.batch_rows, self.limits, asks)


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
    text = _banks.prompt_of(examples, caption)
    if form == "chat":
        return Prompt(system=f"{instruction} {ALONE}", text=text)
    return Prompt(text=f"{instruction}\n\n{text}")
