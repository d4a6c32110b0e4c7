"""Judges captions beside their images by a vision-language model: whole numbers from 0 to 100."""

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Annotated

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import IMAGE, REASON, REASON_TYPE, TEXT, Column
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import NonEmpty, OneUp, StreamFunction, Worker, location
from clipmill.stages.models import generator
from clipmill.stages.models.asking import UNDECODABLE, AskingStage, all_of, cleaned, seeds_of
from clipmill.stages.models.generator import Asker, Prompt
from clipmill.stages.models.prompts import Template, load_prompt
from clipmill.stages.models.scores import OUT_OF_RANGE, UNPARSABLE, Greedy, score_of

QUESTIONS = ("matching", "detail", "quality", "understanding")
OTHER = "take a larger model, or write a question of your own; `clipmill doctor` shows an answer"


@dataclass(frozen=True, kw_only=True)
class Judge(AskingStage):
    """Scores of a caption beside its image, 0 to 100, one for each question; null without a number.

    A question is a file in stages/annotate/questions; its `label` names the column. `matching` asks
    if the caption fits, `detail` how precise it is, `quality` how well it is written, and
    `understanding` what it adds to the picture. A row that lacks scores has the reason of the first
    one missing, and keeps the others.

    Source: MLM-Filter (Wang et al. 2024): the four questions, greedy decoding, whole numbers.
        Departs: words of our own, a model of your choice, 16 new tokens for 3.
    Error: the model's. An answer with no number, with several or a fraction is `unparsable`.
    Example: {after: [ingest.image_folder], model: reference}
    """

    # a model that sees images: openai:URL#MODEL, vllm:MODEL, gguf:FILE#PROJECTOR, or reference,
    # which draws lots and is for trials
    model: NonEmpty
    # some of matching, detail, quality, understanding, or YAML files of your own
    questions: Annotated[tuple[NonEmpty, ...], Meta(min_length=1)] = QUESTIONS
    image_size: OneUp = 448  # cap on pixels of the longer side, as the model sees it
    max_caption_words: OneUp = 256  # cap; a longer caption is cut
    # how answers are drawn: the likeliest, as published
    decoding: Greedy = Greedy()  # noqa: RUF009  # frozen
    # cores of one worker, for a server that it starts and for images (some 450 small ones a second)
    cpus: OneUp = location(1)

    version = 1
    batch_rows = 64
    reads = (IMAGE, TEXT)
    reasons = ("no_image", "undecodable", "no_text", UNPARSABLE, OUT_OF_RANGE, *generator.REASONS)
    advice = generator.ADVICE | UNDECODABLE | dict.fromkeys((UNPARSABLE, OUT_OF_RANGE), OTHER)

    def __post_init__(self) -> None:
        super().__post_init__()
        generator.refuse_blind(self.model)
        labels = [template.label for template in self.templates]
        if len(set(labels)) < len(labels):
            do = "name each once; the `label` of a file of your own is its column's name"
            raise RecipeError("two questions fill one column", "key `questions`", do)

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        return tuple(
            load_prompt(name, "questions", needs=("text",), folder="annotate/questions")
            for name in self.questions
        )

    @property
    def digests(self) -> Mapping[str, str]:
        return {"questions": digest([asdict(template) for template in self.templates])}

    @property
    def writes(self) -> tuple[Column, ...]:
        return tuple(
            Column(
                f"judge_{template.label}",
                pa.uint8(),
                "0 to 100",
                f"The model's answer to the question `{template.name}`.",
                better="high",
            )
            for template in self.templates
        )

    @property
    def bounds(self) -> Mapping[str, tuple[float, float]]:
        return {column.name: (0, 100) for column in self.writes}

    def open(self, worker: Worker) -> StreamFunction:
        start = partial(
            judged,
            settings=self,
            asker=self.asker(worker, "chat"),
            threads=ThreadPoolExecutor(worker.threads),
            worker=worker,
        )
        # Images take more memory: half as many rows are read ahead as of stages that read texts.
        return self.streamed(start, len(self.questions), a_slot=8)


async def judged(
    batch: pa.Table, *, settings: Judge, asker: Asker, threads: Executor, worker: Worker
) -> pa.Table:
    """Returns the scores of every caption, and a reason wherever one is missing."""
    import asyncio  # late: a plan needs neither this nor OpenCV

    from clipmill.stages.ops.images.opened import ImageError
    from clipmill.stages.ops.images.resize import jpeg_of

    loop, size = asyncio.get_running_loop(), settings.image_size
    templates = settings.templates
    seeds = [seeds_of(batch, worker, template.prompt_id) for template in templates]

    async def ask(number: int, row: int, jpeg: bytes, caption: str) -> int | str:
        template = templates[number]
        prompt = Prompt(
            text=template.filled(text=caption),
            system=template.system,
            image=jpeg,
            max_tokens=template.max_tokens,
        )
        answer = await asker.ask(prompt, seed=seeds[number][row])
        return answer.reason or score_of(answer.text or "", answer.cut)

    async def ask_row(row: int, image: bytes | None, text: str | None) -> list[int | str]:
        caption = cleaned(text or "", settings.max_caption_words)
        if image is None or not caption:
            return ["no_text" if image else "no_image"] * len(templates)
        try:
            jpeg = await loop.run_in_executor(threads, jpeg_of, image, size)
        except ImageError:
            return ["undecodable"] * len(templates)
        return await all_of(ask(number, row, jpeg, caption) for number in range(len(templates)))

    pairs = zip(batch[IMAGE.name].to_pylist(), batch[TEXT.name].to_pylist(), strict=True)
    waiting = (ask_row(row, image, text) for row, (image, text) in enumerate(pairs))
    rows = await all_of(waiting, worker.row_done)
    columns = {}
    for number, column in enumerate(settings.writes):
        scores = (row[number] for row in rows)
        values = [score if isinstance(score, int) else None for score in scores]
        columns[column.name] = pa.array(values, column.dtype)
    reason = [next((score for score in row if isinstance(score, str)), None) for row in rows]
    return pa.table({**columns, REASON.name: pa.array(reason, pa.string()).cast(REASON_TYPE)})
