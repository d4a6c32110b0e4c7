"""Asks models that write texts, named `SCHEME:NAME` in a recipe.

    openai:URL#MODEL   a server that speaks OpenAI's protocol, at http://host:port/v1
    vllm:MODEL         a vLLM server that the worker starts
    gguf:FILE          a llama.cpp server that the worker starts
    smollm2            a llama.cpp server, with weights that come in a package
    reference          no weights: for tests and trials

The file of a scheme, stages/models/SCHEME.py, has two functions that take the NAME:

    environments(name)              other Pythons that it needs; RecipeError for no such model
    endpoint(name, worker, limits)  the Endpoint, called once a worker

`environments` is called while a recipe is planned. Two more are optional:

    look(name)                      raises StageError at plan if the model's files are missing
    sees(name)                      returns whether it takes images; without it, any model may

A good answer, or a refusal, is stored by the digest of model, form, prompt, image, decoding,
candidate and seed; its request is never sent again. A server's form is stored too, by model and
first form. Transient failures (a time-out) are never stored.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal, cast

from msgspec import Meta

from clipmill.metadata.keys import without_keys
from clipmill.pipeline import own_code
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.stage import Environment, NonEmpty, OneUp, Usage, Worker
from clipmill.stages.models.endpoint import ADVICE as ADVICE  # a stage's file imports all from here
from clipmill.stages.models.endpoint import REASONS as REASONS
from clipmill.stages.models.endpoint import REFUSALS, Endpoint
from clipmill.stages.models.endpoint import TRANSIENT as TRANSIENT
from clipmill.stages.models.endpoint import Generated as Generated
from clipmill.stages.models.endpoint import Limits as Limits

Form = Literal["chat", "completion"]  # asked first; the other, where a server knows only that
NO_FORM = ("no_form", "bad_request", "unsent")  # of a server that may know the other form
SCHEMES = ("openai", "vllm", "gguf", "smollm2", "reference")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question: a text, an encoded image at its final size, and a cap on the answer."""

    text: str
    system: str = ""
    to_chat: str = ""  # said after the system message, to a chat model
    image: bytes | None = None
    max_tokens: int | None = None  # of the answer, if fewer than the decoding's


PROBE = Prompt(text="A dog on a beach =>")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Decoding of an answer; null leaves a setting to the server."""

    max_tokens: OneUp = 128  # cap of an answer; a longer one is cut
    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0  # 0 takes the likeliest token
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = (
        None  # nucleus: probability mass to draw from
    )
    top_k: OneUp | None = None  # likeliest tokens to draw from; vLLM and llama.cpp, not OpenAI
    min_tokens: OneUp | None = None  # of an answer; vLLM only
    stop: tuple[NonEmpty, ...] = ()  # texts at which an answer ends


def open_asker(
    model: str, worker: Worker, *, decoding: Decoding, limits: Limits, form: Form
) -> "Asker":
    """Returns the Asker of a model, once a worker; starts the scheme's own server, if any."""
    adapter, name = _adapter(model)
    endpoint = adapter.endpoint(name, worker, limits)
    where = f"stage '{worker.stage}', model '{model}'"
    return Asker(endpoint, worker, decoding=decoding, limits=limits, form=form, where=where)


def environments_of(model: str) -> tuple[Environment, ...]:
    """Returns other Pythons that a model's server needs; raises RecipeError for an unknown one."""
    adapter, name = _adapter(model)
    return cast(tuple[Environment, ...], adapter.environments(name))


def look_for(model: str) -> None:
    """Checks that a model's files are there, before anything runs; raises StageError."""
    adapter, name = _adapter(model)
    if hasattr(adapter, "look"):
        adapter.look(name)


def refuse_blind(model: str) -> None:
    """Checks that a model may see images; raises RecipeError."""
    adapter, name = _adapter(model)
    if hasattr(adapter, "sees") and not adapter.sees(name):
        do = "name one that does: openai:URL#MODEL, vllm:MODEL, or gguf:FILE#PROJECTOR"
        raise RecipeError(f"{model} takes texts alone, no image", "key `model`", do)


class Asker:
    """A cached client of one endpoint, within limits; stored answers cost nothing."""

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
        import asyncio  # which a plan and a worker that asks nothing do without

        from clipmill.stages.models.client import Client  # aiohttp, likewise
        from clipmill.stages.models.spending import Spending

        self.endpoint, self.form, self.answers = endpoint, form, worker.answers
        self.limits, self.took = limits, worker.took
        self.client = Client(endpoint, Spending(worker, limits, where), worker.took)
        settings = vars(decoding).items()
        self.decoding = {name: value for name, value in settings if value not in (None, ())}
        self.max_tokens = decoding.max_tokens
        self._asking: dict[bytes, asyncio.Future[Generated]] = {}
        first = json.dumps([endpoint.identity, "form", form])
        self._form_key, self._finding = hashlib.sha256(first.encode()).digest(), asyncio.Lock()
        self.client.is_settled = endpoint.inside is not None  # which takes both

    def like(self, worker: Worker, *, decoding: Decoding, form: Form) -> "Asker":
        """Returns an asker of the same endpoint, which asks otherwise."""
        limits, where = self.limits, self.client.where
        return Asker(
            self.endpoint, worker, decoding=decoding, limits=limits, form=form, where=where
        )

    async def ask(self, prompt: Prompt, *, seed: int, candidate: int = 0) -> Generated:
        """Returns the stored answer, or the server's; equal requests in flight share one.

        A server that refuses the first questions is asked once which form it takes. Raises
        StageError if no request can be answered: no server, no such model, no budget.
        """
        stored = None if self.client.is_settled else self.answers.get([self._form_key])[0]
        if stored is not None:
            self.form = cast(Form, stored.decode())  # until another server answers at the URL
        form = self.form if prompt.image is None else "chat"
        answer = await self._asked(prompt, form, seed, candidate)
        if answer.reason in NO_FORM and prompt.image is None:
            async with self._finding:
                if not self.client.is_settled:
                    await self._find_form()
            if self.form != form or answer.reason == "unsent":
                return await self._asked(prompt, self.form, seed, candidate)
        elif answer.text and not self.client.is_settled:
            self._settle(form)
        if answer.reason == "no_form":
            raise cast(Exception, self.client.no_form)
        return answer

    async def _find_form(self) -> None:
        """Takes the first form in which a server answers what any model can."""
        forms: tuple[Form, ...] = self.form, "chat" if self.form == "completion" else "completion"
        for form in forms:
            if (await self._asked(PROBE, form, 0, 0)).reason in (None, "empty_answer"):
                return self._settle(form)
        self.client.is_settled = True

    def _settle(self, form: Form) -> None:
        self.form, self.client.is_settled = form, True
        self.answers.put(self._form_key, form.encode())

    async def _asked(self, prompt: Prompt, form: Form, seed: int, candidate: int) -> Generated:
        """Returns the answer in a form, or a reason."""
        import asyncio

        # Servers may take 31 bits only; each candidate gets a seed of its own.
        drawn = (seed ^ (candidate * 0x9E3779B97F4A7C15)) % 2**31
        question = {**question_of(prompt, form), **self.decoding, "seed": drawn}
        question["max_tokens"] = min(self.max_tokens, prompt.max_tokens or self.max_tokens)
        key = self._key(question, form, prompt.image, candidate)
        while True:
            [stored] = self.answers.get([key])
            if stored is not None and prompt is not PROBE:
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
            answer = await self._from_server(prompt, question, form, key)
        except BaseException as error:
            future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            future.cancelled() or future.exception()  # read, or asyncio warns if nobody waits
            raise
        finally:
            del self._asking[key]
        future.set_result(answer)
        return answer

    def _key(
        self, body: Mapping[str, Any], form: Form, image: bytes | None, candidate: int
    ) -> bytes:
        digest = hashlib.sha256(image).hexdigest() if image is not None else None
        parts = [self.endpoint.identity, form, body, digest, candidate]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()

    async def _from_server(
        self, prompt: Prompt, question: Mapping[str, Any], form: Form, key: bytes
    ) -> Generated:
        """Returns the server's answer, within limits and budget; stores a good one."""
        from clipmill.stages.models.client import Ask

        def keep(answer: Generated) -> None:
            if answer.reason is None or answer.reason in REFUSALS:
                self.answers.put(key, _stored(answer))

        ask = Ask(
            path="chat/completions" if form == "chat" else "completions",
            body=lambda: self._body(prompt, question),
            text_bytes=len((prompt.system + prompt.to_chat + prompt.text).encode()),
            has_image=prompt.image is not None,
            is_probe=prompt is PROBE,
            max_tokens=question["max_tokens"],
            keep=keep,
        )
        return await self.client.answer(ask)

    def _body(self, prompt: Prompt, question: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the request as it is sent: with model and image."""
        body = {"model": self.endpoint.model, **question}
        if prompt.image is not None:
            image = {"type": "image_url", "image_url": {"url": data_uri(prompt.image)}}
            content = [image, {"type": "text", "text": prompt.text}]
            body["messages"] = [*body["messages"][:-1], {"role": "user", "content": content}]
        return body


def question_of(prompt: Prompt, form: Form) -> dict[str, Any]:
    """Returns a request's messages or prompt; the image is added when it is sent."""
    if form == "completion":
        return {"prompt": "\n\n".join(filter(None, [prompt.system, prompt.text]))}
    system = " ".join(filter(None, [prompt.system, prompt.to_chat]))
    first = [{"role": "system", "content": system}] if system else []
    return {"messages": [*first, {"role": "user", "content": prompt.text}]}


def _stored(answer: Generated) -> bytes:
    """Returns an answer as a JSON list, without keys, which would be as long as most texts."""
    short = [answer.text, answer.prompt_tokens, answer.completion_tokens]
    more = [answer.cut, answer.reason] if answer.cut or answer.reason else []
    return json.dumps([*short, *more], ensure_ascii=False, separators=(",", ":")).encode()


def _loaded(stored: bytes) -> Generated:
    text, prompt, completion, cut, reason = [*json.loads(stored), False, None][:5]
    return Generated(
        text=text, prompt_tokens=prompt, completion_tokens=completion, cut=cut, reason=reason
    )


def data_uri(image: bytes) -> str:
    """Returns an encoded image as a data URI."""
    kinds = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}
    return f"data:image/{kinds.get(image[:4], 'jpeg')};base64,{base64.b64encode(image).decode()}"


def _adapter(model: str) -> tuple[ModuleType, str]:
    """Returns the module of a generator's scheme, and the name after the colon."""
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
