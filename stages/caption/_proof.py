"""Tries a model with what caption stages ask: a rewrite, a caption of a picture, a score of one."""

import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from clipmill.metadata.schema import CAPTIONS, REASON, TEXT, UID
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Environment, Finding, Worker
from clipmill.stages.models import generator
from clipmill.stages.models.asking import Sampled
from clipmill.stages.models.generator import ADVICE, Asker, Decoding, Form, Limits, Prompt
from clipmill.stages.models.prompts import Template, load_prompt
from clipmill.stages.models.scores import Greedy, score_of

SECONDS, MOST_SHOWN = 60.0, 40  # for an answer; characters of it
CAPTION = "Two dogs, on a beach"
ROW = pa.table({UID.name: pa.array([bytes(16)], UID.dtype), TEXT.name: [CAPTION]})
RED = base64.b64decode(  # a JPEG of 64 x 64 pixels
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1"
    "tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSk"
    "pKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wAARCABAAEADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAT/xA"
    "AUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFgEBAQEAAAAAAAAAAAAAAAAAAAQF/8QAFBEBAAAAAAAAAAAAAAAAAAAAAP/a"
    "AAwDAQACEQMRAD8AhATtgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB//9k="
)
DO = ADVICE | {"empty_answer": "it may think before it writes: raise decoding.max_tokens"}
Answered = tuple[str | None, str]  # a text, and its form if any; or None, and why there is none
See = Callable[[Decoding, Template], Awaitable[Answered]]


def findings_on(
    model: str,
    worker: Worker,
    missing: Callable[[Sequence[Environment]], list[str]],
    stage: Callable[..., Any],
    rewritten: Callable[..., Awaitable[pa.Table]],
) -> list[Finding] | None:
    """Asks a model what caption.rewrite asks (by its class, `stage`, and its function `rewritten`)
    and, if the model may see pictures, what caption.synthesize and annotate.judge ask.

    Returns None for a model that writes nothing, and for `reference`, which embeds too. A local
    model's server is started; a Python whose packages are `missing` is not made, only noted.
    """
    import asyncio

    if model == "reference" or model.partition(":")[0] not in generator.SCHEMES:
        return None
    generator.look_for(model)
    if packages := missing(generator.environments_of(model)):
        do = "the first run makes it, in some minutes"
        return [Finding(model, "note", f"no Python with {', '.join(packages)} is made yet", do)]
    limits = Limits(timeout_s=SECONDS, deadline_s=SECONDS, retries=0)
    settings = stage(model=model, styles=("human",), limits=limits)
    return asyncio.run(_findings(model, worker, settings, rewritten))


async def _findings(
    model: str, worker: Worker, settings: Any, rewritten: Callable[..., Awaitable[pa.Table]]
) -> list[Finding]:
    first = settings.asker(worker, settings.form)  # starts a server, if the model has one

    async def rewrite(form: Form) -> Answered:
        asker = first.like(worker, decoding=settings.decoding, form=form)
        table = await rewritten(ROW, settings=settings, asker=asker, worker=worker)
        texts, reason = (table[name][0].as_py() for name in (CAPTIONS.name, REASON.name))
        return (texts[0]["text"], f"as {asker.form}") if texts else (None, _said(reason, asker))

    async def see(decoding: Decoding, template: Template) -> Answered:
        asker = first.like(worker, decoding=decoding, form="chat")
        text = template.filled(text=CAPTION)
        prompt = Prompt(
            text=text, system=template.system, image=RED, max_tokens=template.max_tokens
        )
        answer = await asker.ask(prompt, seed=0)
        return answer.text, "" if answer.text else _said(answer.reason or "", asker)

    rewriting = await _rewriting(model, rewrite)
    try:
        generator.refuse_blind(model)
    except RecipeError:
        return [rewriting]
    if rewriting.verdict == "bad":
        return [rewriting]
    seeing, sees = await _seeing(model, see)
    return [rewriting, seeing, *([await _judging(model, see)] if sees else [])]


def _said(reason: str, asker: Asker) -> str:
    """Returns a reason, with the server's words if any."""
    return f"{reason} ({asker.client.said})" if asker.client.said else reason


async def _rewriting(model: str, ask: Callable[[Form], Awaitable[Answered]]) -> Finding:
    """Asks for a completion, as the stage does; and as chat if the answer is empty."""
    began, refused = time.monotonic(), ""
    for form in ("completion", "chat"):
        text, said = await ask(form)
        if text is not None:
            found = f"rewrites in {time.monotonic() - began:.1f} s, {said}: {text[:MOST_SHOWN]!r}"
            do = f"write form: chat into caption.rewrite: as completion it says {refused}"
            return Finding(model, "note" if refused else "good", found, do if refused else "")
        refused = refused or said
        if not said.startswith("empty_answer"):
            break
    verdict: Literal["note", "bad"] = "note" if refused.startswith("empty_answer") else "bad"
    do = DO.get(refused.partition(" ")[0], "see its log")
    return Finding(model, verdict, f"no answer: {refused}", do)


async def _seeing(model: str, ask: See) -> tuple[Finding, bool]:
    """Asks for a caption of a picture with the stage's decoding, then with what all servers know;
    returns also whether there was one."""
    began, name, refused = time.monotonic(), f"{model}, pictures", ""
    for decoding in (Sampled(), replace(Sampled(), top_k=None, min_tokens=None)):
        try:
            text, said = await ask(decoding, load_prompt("short", "prompts"))
        except StageError as error:
            text, said = None, error.args[0]
        if text is not None:
            found = f"captions one in {time.monotonic() - began:.1f} s: {text[:MOST_SHOWN]!r}"
            do = "decoding: {top_k: null, min_tokens: null}"
            do = f"write {do} into caption.synthesize: else it says {refused}"
            return Finding(name, "note" if refused else "good", found, do if refused else ""), True
        refused = refused or said
    do = "for caption.synthesize and caption.fuse take a model that sees"
    return Finding(name, "note", f"no caption: {refused}", do), False


async def _judging(model: str, ask: See) -> Finding:
    """Asks how well a caption fits a picture that it does not fit."""
    began, name = time.monotonic(), f"{model}, scores"
    question = load_prompt("matching", "questions", needs=("text",), folder="annotate/questions")
    text, said = await ask(Greedy(), question)
    score = score_of(text, is_cut=False) if text else said
    if isinstance(score, int):
        found = f"judges a caption in {time.monotonic() - began:.1f} s: {score} of 100"
        return Finding(name, "good", found, "")
    do = "for annotate.judge take another model, or write a question of your own"
    return Finding(name, "note", f"no score: {score}, {(text or '')[:MOST_SHOWN]!r}", do)
