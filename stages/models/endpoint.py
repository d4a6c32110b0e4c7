"""A server that generates text, by OpenAI's protocol, and the limits within which it is asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from pipeline.stage import NonEmpty, OneUp, Seconds, ZeroUp

Price = Annotated[float, Meta(ge=0, le=1e6)]  # dollars a million tokens
# A server in this process: `chat/completions` or `completions`, and the request, to the reply.
Inside = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How a server is asked: never what, so that none of it is in a fingerprint."""

    concurrency: OneUp = 32  # requests at once, a worker
    timeout_s: Seconds = 120.0  # seconds of one request, to the last byte of its answer
    deadline_s: Seconds = 600.0  # seconds of an answer: its requests, and the pauses between them
    retries: ZeroUp = 4  # after time-outs, lost connections, 5xx, answers that cannot be read
    max_tokens_total: ZeroUp | None = None  # of prompts and answers, all workers, all runs
    max_usd: Annotated[float, Meta(ge=0)] | None = None  # the same in dollars, by the prices
    usd_per_million_input: Price | None = None  # the price of prompts
    usd_per_million_output: Price | None = None  # the price of answers
    api_key_env: NonEmpty = "OPENAI_API_KEY"  # the environment variable that holds the key

    def __post_init__(self) -> None:
        prices = (self.usd_per_million_input, self.usd_per_million_output)
        if self.max_usd is not None and None in prices:
            raise ValueError(
                "max_usd needs usd_per_million_input and usd_per_million_output: the prices"
            )


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server to ask.

    `url` is its base, with /v1 where it has one, or unix:/path/of.sock. `identity` stands for the
    model in the key of an answer: the digest of its weights, or its name where none is known.
    `revive` is called in a thread after the connection was lost, and returns when the server is
    up: a helper of ours is started again; StageError where it does not come up. `concurrency` is
    how many requests the server works on at once, where that is known.
    """

    url: str
    model: str
    identity: str
    key: str = field(default="", repr=False)
    revive: Callable[[], None] | None = None
    concurrency: int | None = None
    inside: Inside | None = None  # asked in the place of a URL

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("an endpoint holds a key: make it where it is used")
