"""Captions images by a vision-language model."""

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import IMAGE, IMAGE_EMBEDDING, TEXT, Column
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import NonEmpty, OneUp, StreamFunction, Worker, location
from clipmill.stages.caption._outcomes import WRITES, Outcome, columns_of
from clipmill.stages.models import generator
from clipmill.stages.models.asking import (
    UNDECODABLE,
    AskingStage,
    Sampled,
    all_of,
    cleaned,
    paragraph_of,
    seeds_of,
)
from clipmill.stages.models.generator import Asker, Prompt
from clipmill.stages.models.image_text import ImageTextModel, checked_width, load, look_for
from clipmill.stages.models.prompts import Template, load_prompt
from clipmill.stages.ops.vectors.matrices import as_matrix

# Shapes: N rows of the batch, D width of the embedding, C candidates of a prompt, M distinct texts.

MOST_WORDS = 64  # cap of the pool's caption, if a prompt has a place for it
PLACES = ("text",)


@dataclass(frozen=True, kw_only=True)
class Synthesize(AskingStage):
    """Captions of the image, one or several for each prompt; null if no answer has a text.

    A prompt is a file in stages/caption/prompts; `short`, `long` and `detailed` are the three
    lengths of VeCap-v2. The image is sent as JPEG, reduced to `image_size`.

    Source: Nguyen et al. 2023 for decoding: temperature 0.75, top-k 50, from 5 tokens; VeCap-v2
        (Lai et al. 2024) for lengths: 10 to 15 tokens, 40 to 60, over 100; LAION-COCO for the best
        of several by CLIP score. Departs: prompts of our own.
    Error: the model may invent facts: judge captions with score.caption.
    Example: {after: [ingest.image_folder], model: reference}
    """

    # a model that sees images: openai:URL#MODEL, vllm:MODEL, gguf:FILE#PROJECTOR, or reference,
    # which needs no weights and is for trials
    model: NonEmpty
    # one or several of short, long, detailed, short_with_text, or YAML files of your own
    prompts: Annotated[tuple[NonEmpty, ...], Meta(min_length=1)] = ("short",)
    image_size: OneUp = 448  # cap on pixels of the longer side, as the model sees it
    candidates: OneUp = 1  # answers to each prompt
    keep: Literal["best", "all"] = "all"  # candidates to keep: the best for the image, or all
    # model that scores the candidates, as open_clip:NAME/TAG; it must be that of image_embedding
    best_by: NonEmpty | None = None
    # how answers are drawn; null leaves it to the server: OpenAI's have no top_k, min_tokens
    decoding: Sampled = Sampled()  # noqa: RUF009  # frozen
    # cores of one worker, for a server that it starts and for images (some 450 small ones a second)
    cpus: OneUp = location(1)

    version = 1
    writes = WRITES
    batch_rows = 64
    advice = generator.ADVICE | UNDECODABLE

    def __post_init__(self) -> None:
        super().__post_init__()
        generator.refuse_blind(self.model)
        names = [template.prompt_id for template in self.templates]
        if len(set(names)) < len(names):
            found = "two prompts are the same"
            raise RecipeError(found, "key `prompts`", "name each once; `candidates` asks for more")
        if self.is_judged and self.best_by is None:
            do = "name the model of `image_embedding`, or write keep: all"
            raise RecipeError("keep: best without a model that scores", "key `best_by`", do)
        if self.best_by is not None:
            checked_width(self.best_by)

    @property
    def is_judged(self) -> bool:
        return self.keep == "best" and self.candidates > 1

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        return tuple(load_prompt(name, "prompts", may=PLACES) for name in self.prompts)

    @property
    def digests(self) -> Mapping[str, str]:
        return {"prompts": digest([asdict(template) for template in self.templates])}

    @property
    def reads(self) -> tuple[Column, ...]:
        asks_text = any(template.places for template in self.templates)
        embedding = (IMAGE_EMBEDDING,) if self.is_judged else ()
        return (IMAGE, *((TEXT,) if asks_text else ()), *embedding)

    @property
    def reasons(self) -> tuple[str, ...]:
        of_text = ("no_text",) if TEXT in self.reads else ()
        of_score = ("no_image_embedding",) if self.is_judged else ()
        return ("no_image", "undecodable", *of_text, *of_score, *generator.REASONS)

    def look(self) -> None:
        super().look()
        if self.best_by is not None:
            look_for(self.best_by)

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        width = checked_width(self.best_by) if self.is_judged and self.best_by else None
        stored = types.get(IMAGE_EMBEDDING.name)
        if width and isinstance(stored, pa.FixedSizeListType) and stored.list_size != width:
            raise RecipeError(
                f"image_embedding has {stored.list_size} numbers, {self.best_by} makes {width}",
                "key `best_by`",
                "name the model of the stage that embeds the images",
            )

    def open(self, worker: Worker) -> StreamFunction:
        judge = None
        if self.is_judged and self.best_by is not None:
            judge = load(self.best_by, worker.device, worker.threads)
            if judge.sha256:
                worker.pin(self.best_by, judge.sha256)
        start = partial(
            synthesized,
            settings=self,
            asker=self.asker(worker, "chat"),
            judge=judge,
            threads=ThreadPoolExecutor(worker.threads),
            worker=worker,
        )
        asks = len(self.prompts) * self.candidates
        # Images take more memory: half as many rows are read ahead as of stages that read texts.
        return self.streamed(start, asks, a_slot=8)


async def synthesized(
    batch: pa.Table,
    *,
    settings: Synthesize,
    asker: Asker,
    judge: ImageTextModel | None,
    threads: Executor,
    worker: Worker,
) -> pa.Table:
    """Returns the captions of every image, or a reason."""
    import asyncio  # late: a plan needs neither this nor OpenCV

    from clipmill.stages.ops.images.opened import ImageError
    from clipmill.stages.ops.images.resize import jpeg_of

    loop = asyncio.get_running_loop()
    images = batch[IMAGE.name].to_pylist()
    texts = batch[TEXT.name].to_pylist() if TEXT in settings.reads else [None] * len(batch)
    embedded = [True] * len(batch)
    if judge is not None:
        embedded = batch[IMAGE_EMBEDDING.name].is_valid().to_pylist()
    seeds = {
        template.prompt_id: seeds_of(batch, worker, template.prompt_id)
        for template in settings.templates
    }

    async def ask(row: int, template: Template, jpeg: bytes, candidate: int) -> Outcome:
        known = {"prompt_id": template.prompt_id, "label": template.label}
        text = cleaned(texts[row] or "", MOST_WORDS) if template.places else ""
        if template.places and not text:
            return Outcome(reason="no_text", **known)
        prompt = Prompt(
            text=template.filled(text=text),
            system=template.system,
            image=jpeg,
            max_tokens=template.max_tokens,
        )
        answer = await asker.ask(prompt, seed=seeds[template.prompt_id][row], candidate=candidate)
        caption = paragraph_of(answer.text or "", answer.cut)
        reason = answer.reason or (None if caption else "empty_answer")
        return Outcome(text=caption, reason=reason, **known)

    async def ask_row(row: int, image: bytes | None) -> list[Outcome] | str:
        if image is None:
            return "no_image"
        if not embedded[row]:
            return "no_image_embedding"
        try:
            jpeg = await loop.run_in_executor(threads, jpeg_of, image, settings.image_size)
        except ImageError:
            return "undecodable"
        return await all_of(
            ask(row, template, jpeg, candidate)
            for template in settings.templates
            for candidate in range(settings.candidates)
        )

    waiting = (ask_row(number, image) for number, image in enumerate(images))
    rows = await all_of(waiting, worker.row_done)
    if judge is not None:
        image_ND = as_matrix(batch[IMAGE_EMBEDDING.name])
        rows = await loop.run_in_executor(threads, best, rows, image_ND, settings.candidates, judge)
    return columns_of(rows, worker, settings.model)


def best(
    rows: list[list[Outcome] | str],
    image_ND: NDArray[np.float32],
    candidates: int,
    judge: ImageTextModel,
) -> list[list[Outcome] | str]:
    """Returns each prompt's candidate whose embedding is nearest to the image's.

    Ties go to the first. A candidate without a text is taken only if no candidate has one.
    """
    asked_rows = [row for row in rows if not isinstance(row, str)]
    texts = {candidate.text for row in asked_rows for candidate in row if not candidate.reason}
    place = {text: number for number, text in enumerate(sorted(texts))}
    text_MD = judge.embed_texts(list(place)) if place else np.empty((0, judge.width), np.float32)

    def chosen(group: list[Outcome], image_D: NDArray[np.float32]) -> Outcome:
        score_C = [-np.inf if c.reason else text_MD[place[c.text]] @ image_D for c in group]
        # NaN counts as less than any cosine.
        return group[int(np.argmax(np.nan_to_num(score_C, nan=-2, neginf=-np.inf)))]

    return [
        row
        if isinstance(row, str)
        else [
            chosen(row[first : first + candidates], image_D)
            for first in range(0, len(row), candidates)
        ]
        for row, image_D in zip(rows, image_ND, strict=True)
    ]
