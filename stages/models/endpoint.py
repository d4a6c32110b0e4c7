"""Text servers: the endpoint, the limits on requests to it, and the reasons for no answer."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from clipmill.pipeline.stage import NonEmpty, OneUp, Seconds, ZeroUp

SERVER = "look at the server's log: it fails at what it is asked"
ADVICE = {  # shown if most rows have the reason
    "prompt_too_long": "the model's context is too short: shorten prompts, or take another model",
    "bad_request": "the server refuses the requests as they are: it may not know a setting of"
    " `decoding`, or images, or the endpoint that the stage asks",
    "answer_timeout": "the server is slow or far: raise `limits.timeout_s`, lower"
    " `limits.concurrency`",
    "server_lost": SERVER,
    "server_error": SERVER,
    "server_busy": "the server asks for patience: lower `limits.concurrency`, raise"
    " `limits.deadline_s`",
    "bad_answer": "what answers there does not speak OpenAI's protocol: check the model's URL",
}
TRANSIENT = ("answer_timeout", "server_lost", "server_error", "server_busy", "bad_answer")
REFUSALS = ("prompt_too_long", "refused_content", "empty_answer")  # final: they are stored
REASONS = (*REFUSALS, "bad_request", *TRANSIENT)

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
Price = Annotated[float, Meta(ge=0, le=1e6)]  # dollars a million tokens
# A server in this process: takes `chat/completions` or `completions` and the request.
Inside = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on requests: they change no question, so they are in no fingerprint."""

    concurrency: OneUp = 32  # concurrent requests of one worker
    timeout_s: Seconds = 120.0  # seconds of one request, to the last byte of its answer
    deadline_s: Seconds = 600.0  # seconds of one answer, all retries and pauses included
    retries: ZeroUp = 4  # after time-outs, lost connections, 5xx and unreadable answers
    max_tokens_total: ZeroUp | None = None  # cap on tokens, prompts and answers, over all runs
    max_usd: Annotated[float, Meta(ge=0)] | None = None  # cap on dollars, over all runs
    usd_per_million_input: Price | None = None  # the price of a million tokens of prompts
    usd_per_million_output: Price | None = None  # the price of a million tokens of answers
    api_key_env: NonEmpty = "OPENAI_API_KEY"  # the environment variable that holds the key

    def __post_init__(self) -> None:
        if not VARIABLE.fullmatch(self.api_key_env):  # not shown: it may be the key itself
            raise ValueError(
                "api_key_env is no name of an environment variable: write one such as MY_KEY, and"
                " the key into the environment, never into a recipe"
            )
        prices = (self.usd_per_million_input, self.usd_per_million_output)
        if self.max_usd is not None and None in prices:
            raise ValueError(
                "max_usd needs usd_per_million_input and usd_per_million_output, the prices"
            )

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Returns the price of an answer in dollars; None without prices."""
        into, out = self.usd_per_million_input, self.usd_per_million_output
        if into is None or out is None:
            return None
        return (prompt_tokens * into + completion_tokens * out) / 1e6


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A text server.

    `url` is its base, /v1 included, or unix:/path/of.sock. `identity` is the model in an answer's
    key: the digest of its weights, or its name if that is not known. `revive` is called in a thread
    after a lost connection; it restarts a dead helper and returns when the server is up, or raises
    StageError. `concurrency` is the number of requests that the server works on at once, if known.
    """

    url: str
    model: str
    identity: str
    key: str = field(default="", repr=False)
    revive: Callable[[], None] | None = None
    concurrency: int | None = None
    inside: Inside | None = None  # called instead of the URL

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("an endpoint holds a key: make it where it is used")


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A text, or the reason that there is none; `cut`: it reached max_tokens."""

    text: str | None = None
    reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False


def answer_of(reply: Mapping[str, Any]) -> Generated:
    """Parses a reply of `chat/completions` or `completions`; raises ValueError without a choice.

    A choice that its server did not finish is none. Without `usage` the token counts are 0.
    """
    try:
        choice = reply["choices"][0]
        message = choice.get("message") or {}
        text = message.get("content") if message else choice["text"]
        usage = reply.get("usage") or {}
        finish = choice.get("finish_reason")
        if finish in ("abort", "error"):  # of vLLM, of gateways: the text is what there was of it
            raise ValueError(finish)
        refused = finish == "content_filter" or bool(message.get("refusal"))
        text = (text or "").strip()
        return Generated(
            text=None if refused else text or None,
            reason="refused_content" if refused else None if text else "empty_answer",
            prompt_tokens=max(0, int(usage.get("prompt_tokens") or 0)),
            completion_tokens=max(0, int(usage.get("completion_tokens") or 0)),
            cut=finish == "length",
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"no choice with a text in it ({type(error).__name__})") from error
