"""Models that write texts, named `SCHEME:NAME` in a recipe, and the one way to ask them.

    openai:URL#MODEL   a server that speaks OpenAI's protocol, at http://host:port/v1
    vllm:MODEL         a vLLM server that the worker starts
    gguf:FILE          a llama.cpp server that the worker starts
    smollm2            the same, with weights that come in a package
    reference          no weights: for tests and trials

The file of a scheme, stages/models/SCHEME.py, has two functions that get the NAME:

    environments(name)              other Pythons that it needs; RecipeError for no such model
    endpoint(name, worker, limits)  the Endpoint to ask, once a worker

`environments` is asked while a recipe is planned.

A good answer is stored, and no request that has one is sent again: its key is the digest of model,
prompt, image, decoding, candidate and seed. What may pass (a time-out) is never stored.
"""

import asyncio
import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, Literal

from msgspec import Meta

from pipeline.errors import RecipeError, StageError
from pipeline.stage import Budget, Environment, OneUp, Worker
from stages.models.endpoint import Endpoint
from stages.models.endpoint import Limits as Limits  # a stage's file imports all from here

Form = Literal["chat", "completion"]

SERVER = "look at the server's log: it fails at what it is asked"
SLOW = "the server is slow or far: raise `limits.timeout_s`, lower `limits.concurrency`"
ADVICE = {  # for a reason that most rows have
    "prompt_too_long": "the model's context is too short: shorten prompts, or take another model",
    "bad_request": "the server refuses the requests as they are: its message is in the error",
    "answer_timeout": SLOW,
    "server_lost": SERVER,
    "server_error": SERVER,
    "server_busy": "the server asks for patience: lower `limits.concurrency`, raise"
    " `limits.deadline_s`, then --retry it",
    "bad_answer": "what answers there does not speak OpenAI's protocol: check the model's URL",
}
TRANSIENT = ("answer_timeout", "server_lost", "server_error", "server_busy", "bad_answer")
REASONS = ("prompt_too_long", "bad_request", "refused_content", "empty_answer", *TRANSIENT)
STORED = ("prompt_too_long", "refused_content", "empty_answer")  # the others may end otherwise
IMAGE_TOKENS = 1200  # set aside for an image: what common models take for a megapixel


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked: a text, and an encoded image already at its size."""

    text: str
    system: str = ""
    image: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is drawn; what is null is left to the server."""

    max_tokens: OneUp = 128  # of an answer: a longer one is cut
    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0  # 0 takes the likeliest token
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None  # drawn from the likeliest, this share
    top_k: OneUp | None = None  # drawn from so many; vLLM and llama.cpp know it, OpenAI does not
    min_tokens: OneUp | None = None  # of an answer; vLLM knows it
    stop: tuple[str, ...] = ()  # an answer ends before the first of these


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A text, or the reason that there is none; `cut`: it reached max_tokens."""

    text: str | None
    reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False


def open_asker(
    model: str, worker: Worker, *, decoding: Decoding, limits: Limits, form: Form
) -> "Asker":
    """The Asker of a model, once a worker: it starts the server where the scheme has its own."""
    adapter, name = _adapter(model)
    endpoint = adapter.endpoint(name, worker, limits)
    return Asker(endpoint, worker, decoding=decoding, limits=limits, form=form, where=model)


def environments_of(model: str) -> tuple[Environment, ...]:
    """Other Pythons that a model's server needs; RecipeError where there is no such model."""
    adapter, name = _adapter(model)
    needed: tuple[Environment, ...] = adapter.environments(name)
    return needed


class Asker:
    """Asks one endpoint, within limits; answers that are stored cost nothing."""

    def __init__(
        self,
        endpoint: Endpoint,
        worker: Worker,
        *,
        decoding: Decoding,
        limits: Limits,
        form: Form,
        where: str,
    ) -> None:
        self.endpoint, self.limits, self.form = endpoint, limits, form
        self.where = f"stage '{worker.stage}', model {where!r}"
        self.answers = worker.answers
        self.purse = Purse(worker, limits, self.where)
        given = {name: value for name, value in vars(decoding).items() if value not in (None, ())}
        self.decoding = given
        self.max_tokens = decoding.max_tokens
        self._asking: dict[bytes, asyncio.Future[Generated]] = {}

    async def ask(self, prompt: Prompt, *, seed: int, candidate: int = 0) -> Generated:
        """The answer that is stored, or the server's; equal requests in flight share one.

        StageError where no request can be answered: no server, no such model, no budget.
        """
        # A server may take 31 bits; two candidates of one seed are two questions, to it too.
        drawn = (seed ^ (candidate * 0x9E3779B97F4A7C15)) % 2**31
        body = {**self._question(prompt), **self.decoding, "seed": drawn}
        key = self._key(body, prompt.image, candidate)
        [stored] = self.answers.get([key])
        if stored is not None:
            return Generated(**json.loads(stored))
        if (other := self._asking.get(key)) is not None:
            return await asyncio.shield(other)
        future = self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._paid(prompt, body)
        except BaseException as error:
            future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            future.cancelled() or future.exception()  # read: nobody may be waiting
            raise
        finally:
            del self._asking[key]
        if answer.reason is None or answer.reason in STORED:
            self.answers.put(key, json.dumps(vars(answer)).encode())
        future.set_result(answer)
        return answer

    def _question(self, prompt: Prompt) -> dict[str, Any]:
        """The request's messages or prompt; an image is left out, and put in when it is sent."""
        if self.form == "completion":
            return {"prompt": "\n\n".join(filter(None, [prompt.system, prompt.text]))}
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return {"messages": [*system, {"role": "user", "content": prompt.text}]}

    def _key(self, body: Mapping[str, Any], image: bytes | None, candidate: int) -> bytes:
        digest = hashlib.sha256(image).hexdigest() if image is not None else None
        asked = [self.endpoint.identity, self.form, body, digest, candidate]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()

    async def _paid(self, prompt: Prompt, body: dict[str, Any]) -> Generated:
        text = prompt.system + prompt.text
        estimate = len(text.encode()) // 3 + 16 + (IMAGE_TOKENS if prompt.image else 0)
        reserved = await self.purse.reserve(estimate, self.max_tokens)
        answer = Generated(text=None)
        try:
            answer = await self._sent(prompt, body)
        finally:
            await self.purse.settle(reserved, answer.prompt_tokens, answer.completion_tokens)
        return answer

    async def _sent(self, prompt: Prompt, body: dict[str, Any]) -> Generated:
        body = {"model": self.endpoint.model, **body}
        if prompt.image is not None:
            content = [{"type": "image_url", "image_url": {"url": data_uri(prompt.image)}}]
            text = {"type": "text", "text": prompt.text}
            body["messages"] = [
                *body["messages"][:-1],
                {"role": "user", "content": [*content, text]},
            ]
        path = "chat/completions" if self.form == "chat" else "completions"
        assert self.endpoint.inside is not None
        await asyncio.sleep(0)  # others have their turn
        return answer_of(self.endpoint.inside(path, body))


class Purse:
    """The part of an Asker that counts tokens and dollars against the limits."""

    def __init__(self, worker: Worker, limits: Limits, where: str) -> None:
        self.limits, self.where = limits, where
        caps = {"tokens": limits.max_tokens_total, "usd": limits.max_usd}
        self.caps = {unit: float(cap) for unit, cap in caps.items() if cap is not None}
        self.budget: Budget | None = worker.budget(self.caps) if self.caps else None
        self.out = 0  # reservations that are not settled
        self.settled = asyncio.Event()  # another one for each that is

    async def reserve(self, prompt: int, completion: int) -> dict[str, float]:
        """Sets aside what an answer may take; StageError where that is not left.

        What others have set aside may come back: it waits for those of this worker.
        """
        amounts = self._amounts(prompt, completion)
        if self.budget is None:
            return amounts
        while True:
            out, settled = self.out, self.settled
            if await asyncio.to_thread(self.budget.reserve, amounts):
                self.out += 1
                return amounts
            if not out:
                raise await asyncio.to_thread(self._spent, amounts)
            await settled.wait()

    async def settle(self, reserved: Mapping[str, float], prompt: int, completion: int) -> None:
        if self.budget is not None:
            spent = self._amounts(prompt, completion)
            try:
                await asyncio.to_thread(self.budget.settle, reserved, spent)
            finally:
                self.out -= 1
                self.settled.set()
                self.settled = asyncio.Event()

    def _amounts(self, prompt: int, completion: int) -> dict[str, float]:
        per_input = self.limits.usd_per_million_input or 0
        per_output = self.limits.usd_per_million_output or 0
        usd = (prompt * per_input + completion * per_output) / 1e6
        amounts = {"tokens": float(prompt + completion), "usd": usd}
        return {unit: amounts[unit] for unit in self.caps}

    def _spent(self, amounts: Mapping[str, float]) -> StageError:
        assert self.budget is not None
        spent = self.budget.spent()
        unit = max(self.caps, key=lambda unit: spent[unit] + amounts[unit] - self.caps[unit])
        words = {"tokens": ("max_tokens_total", "tokens"), "usd": ("max_usd", "dollars")}
        key, name = words[unit]
        return StageError(
            f"the budget is spent: {spent[unit]:,.10g} of {self.caps[unit]:,.10g} {name}, and the"
            f" next answer may take {math.ceil(amounts[unit] * 1e4) / 1e4:,.10g}",
            self.where,
            f"raise limits.{key} and run again: what is stored stays, and is not asked for again",
        )


def answer_of(reply: Mapping[str, Any]) -> Generated:
    """What a reply of `chat/completions` or `completions` says; ValueError for anything else."""
    choice = reply["choices"][0]
    message = choice.get("message") or {}
    text: str = message["content"] if message else choice["text"]
    usage = reply.get("usage") or {}
    return Generated(
        text=text.strip() or None,
        reason=None if text.strip() else "empty_answer",
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        completion_tokens=int(usage.get("completion_tokens", 0)),
        cut=choice.get("finish_reason") == "length",
    )


def data_uri(image: bytes) -> str:
    """An encoded image as a URI that holds it."""
    kinds = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}
    return f"data:image/{kinds.get(image[:4], 'jpeg')};base64,{base64.b64encode(image).decode()}"


def _adapter(model: str) -> tuple[ModuleType, str]:
    """The file of a generator's scheme, and the name after the colon."""
    scheme, _, name = model.partition(":")
    try:
        adapter = import_module(f"stages.models.{scheme}")
    except ModuleNotFoundError:
        adapter = None
    if adapter is None or not hasattr(adapter, "endpoint"):
        raise RecipeError(
            f"unknown scheme {scheme!r}",
            f"key `model`, {model!r}",
            "write openai:URL#MODEL, vllm:MODEL, gguf:FILE, smollm2 or reference",
        )
    return adapter, name
