"""Models that write texts, named `SCHEME:NAME` in a recipe, and the one way to ask them.

    openai:URL#MODEL   a server that speaks OpenAI's protocol, at http://host:port/v1
    vllm:MODEL         a vLLM server that the worker starts
    gguf:FILE          a llama.cpp server that the worker starts
    smollm2            the same, with weights that come in a package
    reference          no weights: for tests and trials

The file of a scheme, stages/models/SCHEME.py, has two functions that get the NAME:

    environments(name)              other Pythons that it needs; RecipeError for no such model
    endpoint(name, worker, limits)  the Endpoint to ask, once a worker

`environments` is asked while a recipe is planned. Two more where a scheme has something to say:

    look(name)                      StageError at plan where files of the model are not there
    sees(name)                      whether it takes images; without it, each model may

A good answer is stored, and no request that has one is sent again: its key is the digest of model,
prompt, image, decoding, candidate and seed. What may pass (a time-out) is never stored.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from msgspec import Meta

from clipmill.metadata.keys import without_keys
from clipmill.pipeline import own_code
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.stage import Environment, Finding, NonEmpty, OneUp, Usage, Worker
from clipmill.stages.models.endpoint import ADVICE as ADVICE  # a stage's file imports all from here
from clipmill.stages.models.endpoint import REASONS as REASONS
from clipmill.stages.models.endpoint import REFUSALS, Endpoint
from clipmill.stages.models.endpoint import TRANSIENT as TRANSIENT
from clipmill.stages.models.endpoint import Generated as Generated
from clipmill.stages.models.endpoint import Limits as Limits

if TYPE_CHECKING:
    import asyncio  # which a plan and a worker that asks nothing do without

Form = Literal["chat", "completion"]
QUESTION = "Say hello."  # of a proof
PROOF_TOKENS, MOST_SHOWN = 8, 40  # of its answer; characters of it
PROOF_S = 60.0
SCHEMES = ("openai", "vllm", "gguf", "smollm2", "reference")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked: a text, an encoded image already at its size, and how long an answer."""

    text: str
    system: str = ""
    image: bytes | None = None
    max_tokens: int | None = None  # of the answer, where that is fewer than its decoding's


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is drawn; what is null is left to the server."""

    max_tokens: OneUp = 128  # of an answer: a longer one is cut
    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0  # 0 takes the likeliest token
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None  # drawn from the likeliest, this share
    top_k: OneUp | None = None  # drawn from so many; vLLM and llama.cpp know it, OpenAI does not
    min_tokens: OneUp | None = None  # of an answer; vLLM knows it
    stop: tuple[NonEmpty, ...] = ()  # an answer ends before the first of these


def open_asker(
    model: str, worker: Worker, *, decoding: Decoding, limits: Limits, form: Form
) -> "Asker":
    """The Asker of a model, once a worker: it starts the server where the scheme has its own."""
    adapter, name = _adapter(model)
    endpoint = adapter.endpoint(name, worker, limits)
    where = f"stage '{worker.stage}', model '{model}'"
    return Asker(endpoint, worker, decoding=decoding, limits=limits, form=form, where=where)


def environments_of(model: str) -> tuple[Environment, ...]:
    """Other Pythons that a model's server needs; RecipeError where there is no such model."""
    adapter, name = _adapter(model)
    needed: tuple[Environment, ...] = adapter.environments(name)
    return needed


def look_for(model: str) -> None:
    """StageError where files that a model names are not there, before anything runs."""
    adapter, name = _adapter(model)
    if hasattr(adapter, "look"):
        adapter.look(name)


def refuse_blind(model: str) -> None:
    """RecipeError where a model is known to see no image."""
    adapter, name = _adapter(model)
    if hasattr(adapter, "sees") and not adapter.sees(name):
        do = "name one that does: openai:URL#MODEL, vllm:MODEL, or gguf:FILE#PROJECTOR"
        raise RecipeError(f"{model} takes texts alone, no image", "key `model`", do)


def proof(
    model: str, worker: Worker, lacking: Callable[[Sequence[Environment]], list[str]]
) -> list[Finding] | None:
    """Whether a model answers a short question, with some tokens of its answer; None for a model
    that writes nothing, and for `reference`, which embeds too.

    A server of our own is started for it; a Python that it lacks is not made here.
    """
    import asyncio
    import time

    if model == "reference" or model.partition(":")[0] not in SCHEMES:
        return None
    look_for(model)
    if lacks := lacking(environments_of(model)):
        do = "the first run makes it, in some minutes"
        return [Finding(model, "note", f"no Python with {', '.join(lacks)} is made yet", do)]
    asker = open_asker(
        model,
        worker,
        decoding=Decoding(max_tokens=PROOF_TOKENS),
        limits=Limits(timeout_s=PROOF_S, deadline_s=PROOF_S, retries=0),
        form="chat",
    )
    began = time.monotonic()
    answer = asyncio.run(asker.ask(Prompt(text=QUESTION), seed=0))
    took_s = time.monotonic() - began
    if answer.reason is None:
        assert answer.text is not None
        found = f"answers in {took_s:.1f} s: {answer.text[:MOST_SHOWN]!r}"
        return [Finding(model, "good", found)]
    advice = {
        **ADVICE,
        "empty_answer": "it may think before it writes: raise decoding.max_tokens",
        "bad_request": "where it is not tuned to chat, write form: completion into the recipe",
    }
    do = advice.get(answer.reason, "see its log")
    is_note = answer.reason == "empty_answer"
    return [Finding(model, "note" if is_note else "bad", f"no answer: {answer.reason}", do)]


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
        from clipmill.stages.models.client import Client  # aiohttp: not while a recipe is planned
        from clipmill.stages.models.spending import Spending

        self.endpoint, self.form, self.answers = endpoint, form, worker.answers
        self.limits, self.took = limits, worker.took
        self.client = Client(endpoint, limits, Spending(worker, limits, where), where, worker.took)
        given = {name: value for name, value in vars(decoding).items() if value not in (None, ())}
        self.decoding, self.max_tokens = given, decoding.max_tokens
        self._asking: dict[bytes, asyncio.Future[Generated]] = {}

    async def ask(self, prompt: Prompt, *, seed: int, candidate: int = 0) -> Generated:
        """The answer that is stored, or the server's; equal requests in flight share one.

        StageError where no request can be answered: no server, no such model, no budget.
        """
        import asyncio

        # A server may take 31 bits; two candidates of one seed are two questions, to it too.
        drawn = (seed ^ (candidate * 0x9E3779B97F4A7C15)) % 2**31
        question = {**self._question(prompt), **self.decoding, "seed": drawn}
        question["max_tokens"] = min(self.max_tokens, prompt.max_tokens or self.max_tokens)
        key = self._key(question, prompt.image, candidate)
        while True:
            [stored] = self.answers.get([key])
            if stored is not None:
                answer = _loaded(stored)
                into, out = answer.prompt_tokens, answer.completion_tokens
                usd = self.limits.usd(into, out)
                self.took(Usage(prompt_tokens=into, completion_tokens=out, usd=usd))
                return answer
            if (other := self._asking.get(key)) is None:
                break
            await asyncio.wait([other])
            if not other.cancelled():  # else its answer may be stored all the same
                return other.result()
        future = self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._asked(prompt, question, key)
        except BaseException as error:
            future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            future.cancelled() or future.exception()  # read: nobody may be waiting
            raise
        finally:
            del self._asking[key]
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

    async def _asked(self, prompt: Prompt, question: Mapping[str, Any], key: bytes) -> Generated:
        """The answer of the server, within limits and budget; a good one is stored."""
        from clipmill.stages.models.client import Ask

        def keep(answer: Generated) -> None:
            if answer.reason is None or answer.reason in REFUSALS:
                self.answers.put(key, _stored(answer))

        ask = Ask(
            path="chat/completions" if self.form == "chat" else "completions",
            body=lambda: self._body(prompt, question),
            text_bytes=len((prompt.system + prompt.text).encode()),
            has_image=prompt.image is not None,
            max_tokens=question["max_tokens"],
            keep=keep,
        )
        return await self.client.answer(ask)

    def _body(self, prompt: Prompt, question: Mapping[str, Any]) -> dict[str, Any]:
        """The request as it is sent: with model and image."""
        body = {"model": self.endpoint.model, **question}
        if prompt.image is not None:
            image = {"type": "image_url", "image_url": {"url": data_uri(prompt.image)}}
            content = [image, {"type": "text", "text": prompt.text}]
            body["messages"] = [*body["messages"][:-1], {"role": "user", "content": content}]
        return body


def _stored(answer: Generated) -> bytes:
    """An answer as JSON, short where nothing went wrong: most texts are no longer than its keys."""
    short = [answer.text, answer.prompt_tokens, answer.completion_tokens]
    more = [answer.cut, answer.reason] if answer.cut or answer.reason else []
    return json.dumps([*short, *more], ensure_ascii=False, separators=(",", ":")).encode()


def _loaded(stored: bytes) -> Generated:
    text, prompt, completion, cut, reason = [*json.loads(stored), False, None][:5]
    return Generated(
        text=text, prompt_tokens=prompt, completion_tokens=completion, cut=cut, reason=reason
    )


def data_uri(image: bytes) -> str:
    """An encoded image as a URI that holds it."""
    kinds = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}
    return f"data:image/{kinds.get(image[:4], 'jpeg')};base64,{base64.b64encode(image).decode()}"


def _adapter(model: str) -> tuple[ModuleType, str]:
    """The file of a generator's scheme, and the name after the colon."""
    scheme, _, name = model.partition(":")
    found = own_code.find(f"models.{scheme}")
    adapter = own_code.load(f"models.{scheme}", f"model {model!r}") if found else None
    if not all(hasattr(adapter, function) for function in ("environments", "endpoint")):
        raise RecipeError(
            f"unknown scheme {scheme!r}",
            f"key `model`, {without_keys(model)!r}",
            f"{did_you_mean(scheme, SCHEMES)}: openai:URL#MODEL, vllm:MODEL, gguf:FILE",
        )
    return cast(ModuleType, adapter), name
