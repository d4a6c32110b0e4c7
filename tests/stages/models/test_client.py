"""Asking a server that fails in every way: what is tried again, what ends a row, what the run."""

import asyncio
import contextlib
import json
import logging
import pickle
import threading
import time
from pathlib import Path

import pytest
from aiohttp import web

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.models import client
from clipmill.stages.models.endpoint import Endpoint
from clipmill.stages.models.generator import (
    REASONS,
    Asker,
    Decoding,
    Limits,
    Prompt,
    environments_of,
    open_asker,
)
from clipmill.stages.models.reference import reply
from tests.text_server import DEEP, TextServer

KEY = "sk-a-key-of-nobody"


@pytest.fixture
def server():
    with TextServer().running() as one:
        yield one


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Pauses of a tenth: what is tested is their order, not their length."""
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.05)


def worker(**given) -> Worker:
    return Worker(seed=0, stage="rewrite", device="cpu", threads=1, scratch=Path(), **given)


def asker(server: TextServer, at: Worker | None = None, model: str = "stand-in", **limits) -> Asker:
    return open_asker(
        f"openai:{server.url}#{model}",
        at or worker(),
        decoding=Decoding(max_tokens=20),
        limits=Limits(**limits),
        form="chat",
    )


def prompts(n: int, words: str = "a black cat on a mat") -> list[Prompt]:
    return [Prompt(text=f"{words} {i}") for i in range(n)]


def ask(one: Asker, *asked: Prompt) -> list:
    """The answers; the loop is shut down as a worker's is."""

    async def all_of_them():
        return await asyncio.gather(*(one.ask(prompt, seed=7) for prompt in asked))

    return asyncio.run(all_of_them())


RETRIED = {
    "500": "server_error",
    "503": "server_error",
    "half": "server_lost",
    "drop": "server_lost",
    "malformed": "bad_answer",
    "deep": "bad_answer",
    "empty": "bad_answer",
    "large": "bad_answer",
}


@pytest.mark.parametrize("fault", ["429", *RETRIED])
def test_a_fault_that_passes_is_tried_again(server, fault):
    server.script = lambda asked: None if asked.before else fault
    [answer] = ask(asker(server), *prompts(1))
    assert sorted(answer.text.split()) == sorted(["a", "black", "cat", "on", "a", "mat", "0"])
    assert (server.asked.total(), server.answered.total()) == (2, 1)


@pytest.mark.parametrize("fault", RETRIED)
def test_a_fault_that_stays_is_a_reason_and_is_not_stored(server, fault):
    server.script = lambda asked: fault
    at = worker()
    for times in (2, 4):
        [answer] = ask(asker(server, at, retries=1), *prompts(1))
        assert (answer.text, answer.reason) == (None, RETRIED[fault])
        assert server.asked.total() == times
    assert answer.reason in REASONS


@pytest.mark.parametrize(
    "said", [b"220 mail ready\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\xff" * 99]
)
def test_what_speaks_no_http_is_a_bad_answer_or_a_lost_server(said):
    async def asked():
        async def garbage(reader, writer):
            await reader.read(100)
            writer.write(said)
            writer.close()

        async with await asyncio.start_server(garbage, "127.0.0.1", 0) as mail:
            url = f"http://127.0.0.1:{mail.sockets[0].getsockname()[1]}/v1"
            given = {"decoding": Decoding(), "limits": Limits(retries=0), "form": "chat"}
            return await open_asker(f"openai:{url}#m", worker(), **given).ask(*prompts(1), seed=0)

    assert asyncio.run(asked()).reason in ("bad_answer", "server_lost")


@pytest.mark.parametrize(("status", "said"), [(400, "bad_request"), (404, "no list of models")])
def test_what_a_server_says_of_an_error_may_be_nested_without_end(status, said):
    async def asked():
        async def deep(request):
            return web.Response(status=status, body=DEEP)

        app = web.Application()
        app.router.add_route("*", "/{any:.*}", deep)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        given = {"decoding": Decoding(), "limits": Limits(retries=0), "form": "chat"}
        try:
            one = open_asker(f"openai:{url}#m", worker(), **given)
            return (await one.ask(*prompts(1), seed=0)).reason
        except StageError as error:
            return str(error)
        finally:
            await runner.cleanup()

    assert said in asyncio.run(asked())


@pytest.mark.parametrize("fault", ["429", "429:1000"])
def test_a_busy_server_is_waited_for_until_the_deadline_and_no_longer(server, fault):
    server.script = lambda asked: fault
    start = time.monotonic()
    [answer] = ask(asker(server, retries=0, deadline_s=0.5), *prompts(1))
    assert answer.reason == "server_busy"
    assert time.monotonic() - start < 5
    assert (server.asked.total() > 1) == (fault == "429")


@pytest.mark.parametrize("fault", ["drip", "hang"])
def test_a_server_that_takes_too_long_is_given_up(server, fault):
    server.script = lambda asked: fault
    start = time.monotonic()
    [answer] = ask(asker(server, timeout_s=0.3, retries=1), *prompts(1))
    assert answer.reason == "answer_timeout"
    assert time.monotonic() - start < 3


def test_a_slot_is_free_while_its_request_waits_as_long_as_the_server_asks(server):
    server.script = lambda asked: "429:1" if asked.number == 0 else None
    ended: dict[str, float] = {}

    async def one(of: Asker, prompt: Prompt) -> None:
        await of.ask(prompt, seed=0)
        ended[prompt.text[-1]] = time.monotonic()

    async def both() -> None:
        of = asker(server, concurrency=1)
        await asyncio.gather(*(one(of, prompt) for prompt in prompts(2)))

    start = time.monotonic()
    asyncio.run(both())
    assert ended["1"] < ended["0"]
    assert ended["0"] - start >= 1


def test_no_more_requests_are_under_way_than_concurrency(server):
    server.latency_s = 0.02
    ask(asker(server, concurrency=5), *prompts(40))
    assert server.most_at_once == 5


@pytest.mark.parametrize(
    ("fault", "reason", "is_stored"),
    [
        ("too_long", "prompt_too_long", True),
        ("filtered", "refused_content", True),
        ("400", "bad_request", False),
    ],
)
def test_what_no_retry_mends_is_a_reason_at_once(server, fault, reason, is_stored):
    server.script = lambda asked: fault
    at = worker()
    for _ in range(2):
        [answer] = ask(asker(server, at), *prompts(1))
        assert (answer.text, answer.reason) == (None, reason)
    assert server.asked.total() == (1 if is_stored else 6)  # each time two ask for the form


def test_a_wrong_model_is_named_with_those_that_the_server_has(server):
    with pytest.raises(StageError, match=r"(?s)no model 'stand-on'.*did you mean 'stand-in'"):
        ask(asker(server, model="stand-on"), *prompts(50))
    assert server.asked.total() <= 32  # those under way; nobody asks after the first refusal


def test_a_url_without_v1_is_told_to_end_in_it(server):
    one = asker(server)
    one.client.endpoint = Endpoint(url=server.url.removesuffix("/v1"), model="x", identity="x")
    with pytest.raises(StageError, match=r"(?s)HTTP 404.*ends in /v1"):
        ask(one, *prompts(1))


def test_a_server_that_never_was_there_ends_the_stage(server):
    server.die()
    with pytest.raises(StageError, match=r"(?s)is gone.*run again: what is stored stays"):
        ask(asker(server, retries=1), *prompts(3))
    server.come_back()  # the fixture takes it down


def test_a_server_that_dies_and_comes_back_at_its_port_is_waited_for(server):
    server.latency_s = 0.01

    async def all_of_them():
        one = asker(server, concurrency=4, retries=3)
        await one.ask(Prompt(text="is anybody there"), seed=0)
        asks = [asyncio.create_task(one.ask(prompt, seed=7)) for prompt in prompts(60)]
        await asyncio.wait(asks, timeout=0.05)
        await asyncio.to_thread(server.die)
        await asyncio.sleep(0.6)  # 0.05, 0.1, 0.2 and 0.4: more pauses than retries
        await asyncio.to_thread(server.come_back)
        return await asyncio.gather(*asks)

    assert all(answer.text for answer in asyncio.run(all_of_them()))


def test_after_a_server_vanished_the_next_run_asks_only_for_the_rest(server):
    def script(asked) -> None:
        if asked.number == 30:
            threading.Thread(target=server.die).start()

    at, server.script, server.latency_s = worker(), script, 0.01
    with pytest.raises(StageError, match="is gone"):
        ask(asker(server, at, concurrency=4, retries=1, deadline_s=0.5), *prompts(200))
    server.come_back()
    server.latency_s = 0
    server.script = lambda asked: None
    before = set(server.answered)
    answers = ask(asker(server, at), *prompts(200))
    assert all(answer.text for answer in answers)
    again = [digest for digest in before if server.asked[digest] > 1]
    assert len(before) >= 30 - 4
    assert len(again) <= 4  # answers that were on their way when it died


@pytest.mark.parametrize("first", ["chat", "completion"])
@pytest.mark.parametrize("known", ["prompt", "messages", "both"])
@pytest.mark.parametrize("says", ["404", "400"])
def test_the_form_that_a_server_takes_is_found_by_asking_once_and_stays(first, known, says):
    paths = {"prompt": "/v1/completions", "messages": "/v1/chat/completions"}
    server, at = TextServer(), worker()
    if known != "both" and says == "404":
        server.paths = (paths[known],)
    elif known != "both":
        server.script = lambda asked: None if known in asked.body else "400"

    def answers(count: int) -> list:
        name = f"openai:{server.url}#stand-in"
        given = {"decoding": Decoding(max_tokens=20), "limits": Limits(), "form": first}
        return ask(open_asker(name, at, **given), *prompts(count))

    with server.running():
        answered = answers(200)
    assert all(answer.text for answer in answered)
    taken = {"chat": "messages", "completion": "prompt"}[first] if known == "both" else known
    usual = len(server.bodies)
    server.script, server.paths = (lambda asked: None), tuple(paths.values())
    with server.running():  # which takes both by now
        assert answers(200) == answered
        answers(201)
    assert [taken in body for body in server.bodies[usual:]] == [True]


@pytest.mark.parametrize("first", ["chat", "completion"])
def test_another_server_of_the_same_name_is_asked_in_the_form_that_it_takes(first):
    at = worker()
    for number, path in enumerate(["completions", "chat/completions", "completions"]):
        with TextServer(paths=(f"/v1/{path}",)).running() as one:
            given = {"decoding": Decoding(max_tokens=20), "limits": Limits(), "form": first}
            asked = open_asker(f"openai:{one.url}#stand-in", at, **given)
            [answer] = ask(asked, *prompts(1, f"a cat at door {number}, number"))
            assert answer.text


def test_a_second_answer_to_one_request_is_none_to_the_next():
    async def twice(reader, writer):
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().partition(b"content-length:")[2].split()[0])
                body = json.loads(await reader.readexactly(size))
                said = json.dumps({"choices": [{"text": body["prompt"]}]}).encode()
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)
                writer.write(answer)
                await asyncio.sleep(0.002)
                writer.write(answer)

    async def asked():
        async with await asyncio.start_server(twice, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            limits = Limits(concurrency=2)
            given = {"decoding": Decoding(), "limits": limits, "form": "completion"}
            one = open_asker(f"openai:{url}#m", worker(), **given)
            answers = await asyncio.gather(*(one.ask(prompt, seed=0) for prompt in prompts(12)))
            await asyncio.sleep(0.06)
            return [*answers, await one.ask(*prompts(1, "late"), seed=0)]

    assert [answer.text for answer in asyncio.run(asked())] == [
        prompt.text for prompt in [*prompts(12), *prompts(1, "late")]
    ]


def test_a_helper_that_dies_is_revived_once_for_all_who_lost_it(server):
    revived = []

    def revive() -> None:
        revived.append(time.monotonic())
        server.come_back()

    endpoint = Endpoint(url=server.url, model="stand-in", identity="x", revive=revive)
    server.die()
    limits = Limits(retries=2)
    given = {"decoding": Decoding(), "limits": limits, "form": "completion", "where": "here"}
    answers = ask(Asker(endpoint, worker(), **given), *prompts(20))
    assert all(answer.text for answer in answers)
    assert len(revived) == 1


def test_a_helper_that_is_up_and_still_refuses_is_not_revived_for_ever(server):
    revived = []
    revive = lambda: revived.append(1)  # noqa: E731
    endpoint = Endpoint(url=server.url, model="stand-in", identity="x", revive=revive)
    given = {"decoding": Decoding(), "limits": Limits(retries=2), "form": "chat", "where": "here"}
    one = Asker(endpoint, worker(), **given)
    ask(one, *prompts(1))
    server.die()
    with pytest.raises(StageError, match="is gone"):
        ask(one, *prompts(2)[1:])
    assert len(revived) == 2
    server.come_back()


def test_a_helper_that_does_not_come_up_is_started_once_and_ends_the_stage(server):
    tried = []

    def revive() -> None:
        tried.append(1)
        raise StageError("no memory left", "the helper", "take a smaller model")

    endpoint = Endpoint(url=server.url, model="stand-in", identity="x", revive=revive)
    server.die()
    given = {"decoding": Decoding(), "limits": Limits(), "form": "chat", "where": "here"}
    with pytest.raises(StageError, match="no memory left"):
        ask(Asker(endpoint, worker(), **given), *prompts(20))
    assert len(tried) == 1
    server.come_back()


def test_a_server_that_fails_from_the_first_answer_of_a_worker_on_ends_the_stage_too(server):
    at = worker()
    ask(asker(server, at), *prompts(1))
    server.script = lambda asked: "500"
    with pytest.raises(StageError, match="64 requests in a row had no answer"):
        ask(asker(server, at, retries=0), *prompts(70, "a dog"))


def test_a_server_that_only_fails_ends_the_stage_and_says_why(server):
    server.script = lambda asked: "400"
    with pytest.raises(StageError, match=r"64 requests in a row.*Unrecognized request argument"):
        ask(asker(server), *prompts(200))
    assert server.asked.total() <= 64 + 32


def test_equal_requests_in_flight_share_one(server):
    server.latency_s = 0.05
    answers = ask(asker(server), *prompts(1) * 9)
    assert server.asked.total() == 1
    assert len({answer.text for answer in answers}) == 1


def test_who_shares_a_request_that_is_cancelled_asks_again(server):
    server.latency_s = 0.1

    async def two():
        one = asker(server)
        first, second = (asyncio.create_task(one.ask(*prompts(1), seed=7)) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        return await second

    assert asyncio.run(two()).text
    assert server.asked.total() == 1  # whose answer came, and is stored


def test_two_workers_that_ask_the_same_share_what_is_stored(server):
    at = worker()
    first = ask(asker(server, at), *prompts(20))
    second = ask(asker(server, worker(answers=at.answers)), *prompts(20))
    assert first == second
    assert server.asked.total() == 20


def test_another_prompt_model_decoding_seed_or_candidate_asks_anew(server):
    at = worker()

    async def all_of_them():
        one = asker(server, at)
        await one.ask(Prompt(text="a cat"), seed=1)
        await one.ask(Prompt(text="a cat"), seed=2)
        await one.ask(Prompt(text="a cat"), seed=1, candidate=1)
        await one.ask(Prompt(text="a cat", system="be short"), seed=1)
        for decoding in (Decoding(max_tokens=21), Decoding(max_tokens=20, top_p=0.9)):
            given = {"decoding": decoding, "limits": Limits(), "form": "chat"}
            other = open_asker(f"openai:{server.url}#stand-in", at, **given)
            await other.ask(Prompt(text="a cat"), seed=1)

    asyncio.run(all_of_them())
    assert sorted(server.asked.values()) == [1] * 6


def test_a_budget_stops_before_it_is_passed_and_a_larger_one_goes_on(server):
    at = worker()
    with pytest.raises(StageError, match=r"of 600 tokens(.|\n)*raise limits.max_tokens_total"):
        ask(asker(server, at, max_tokens_total=600), *prompts(200))
    used = sum(14 for _ in server.answered.elements())  # 7 words in, 7 out
    assert 500 < used <= 600
    first = set(server.answered)
    answers = ask(asker(server, at, max_tokens_total=100_000), *prompts(200))
    assert all(answer.text for answer in answers)
    assert all(server.asked[digest] == 1 for digest in first)


def test_dollars_are_counted_by_their_prices(server):
    prices = {"usd_per_million_input": 1e5, "usd_per_million_output": 2e5}  # a word 0.1 and 0.2
    with pytest.raises(StageError, match=r"of 40 dollars(.|\n)*raise limits\.max_usd"):
        ask(asker(server, max_usd=40, **prices), *prompts(200))
    assert 30 < 2.1 * server.answered.total() <= 40
    with pytest.raises(ValueError, match="max_usd needs usd_per_million_input"):
        Limits(max_usd=1)


def test_an_answer_that_nobody_counted_costs_what_was_set_aside(server):
    server.script = lambda asked: "no_usage"
    with pytest.raises(StageError, match="the budget is spent"):
        ask(asker(server, max_tokens_total=200), *prompts(50))
    assert 3 <= server.answered.total() <= 5  # 20 of the answer and about 23 of the prompt


def test_a_retry_waiting_for_its_slot_and_one_waiting_for_budget_do_not_lock(server):
    server.script = lambda asked: None if asked.before else "500"
    one = asker(server, concurrency=1, max_tokens_total=60)  # room for one at once
    with pytest.raises(StageError, match="the budget is spent"):
        ask(one, *prompts(10))
    assert server.answered.total() >= 1


class TestKeys:
    def test_a_key_comes_from_the_environment_and_is_sent(self, server, monkeypatch):
        server.key = KEY
        monkeypatch.setenv("MY_KEY", KEY)
        [answer] = ask(asker(server, api_key_env="MY_KEY"), *prompts(1))
        assert answer.text

    def test_a_refused_key_is_named_by_its_variable(self, server, monkeypatch):
        server.key = KEY
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(StageError, match=r"variable OPENAI_API_KEY is not set"):
            ask(asker(server), *prompts(1))

    @pytest.mark.parametrize("fault", ["401", "400", "500", "malformed", "drop", None])
    def test_a_key_stands_in_no_error_log_repr_pickle_or_answer(
        self, server, monkeypatch, caplog, capfd, fault
    ):
        monkeypatch.setenv("MY_KEY", KEY)
        caplog.set_level(logging.DEBUG)
        server.key, server.script = KEY, lambda asked: fault
        at = worker()
        one = asker(server, at, api_key_env="MY_KEY", retries=0)
        said = []
        try:
            said += ask(one, *prompts(70))
        except StageError as error:
            said += [error, pickle.dumps(error)]
        printed = capfd.readouterr()
        said += [one.client.endpoint, at, pickle.dumps(at), at.answers._answers, caplog.text]
        said += [vars(one), vars(one.client.limits), printed]
        for text in said:
            assert KEY not in str(text)
            assert KEY.encode() not in (text if isinstance(text, bytes) else b"")
        with pytest.raises(TypeError, match="holds a key"):
            pickle.dumps(one.client.endpoint)

    @pytest.mark.parametrize("name", ["sk-a-key", "gsk_aKey", "$MY_KEY"])
    def test_a_key_in_the_place_of_its_variable_is_refused_without_showing_it(self, name):
        with pytest.raises(ValueError, match="never into a recipe") as refused:
            Limits(api_key_env=name)
        assert name not in str(refused.value)

    @pytest.mark.parametrize(
        "url",
        [
            f"http://me:{KEY}@host/v1#m",
            f"http://{KEY}@host/v1#m",
            f"http://host/v1?api_key={KEY}#m",
        ],
    )
    def test_a_url_with_a_key_in_it_is_refused_without_showing_it(self, url):
        with pytest.raises(RecipeError, match=r"limits\.api_key_env") as refused:
            environments_of(f"openai:{url}")
        assert KEY not in str(refused.value)


@pytest.mark.parametrize("name", ["", "#m", "host/v1#m", "http://host/v1", "http://h:port/v1#m"])
def test_a_model_string_without_a_server_or_a_model_is_refused(name):
    with pytest.raises(RecipeError, match="write openai:https://host/v1#MODEL"):
        environments_of(f"openai:{name}")


def test_a_server_may_listen_on_a_unix_socket(tmp_path):
    async def answered():
        app = web.Application()
        app.router.add_post("/v1/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        endpoint = Endpoint(url=f"unix:{tmp_path}/s", model="m", identity="m")
        given = {"limits": Limits(), "form": "completion", "where": "here"}
        one = Asker(endpoint, worker(), decoding=Decoding(), **given)
        try:
            return await one.ask(Prompt(text="a cat on a mat"), seed=0)
        finally:
            await runner.cleanup()

    async def answer(request):
        return web.json_response(reply(request.path, await request.json()))

    assert sorted(asyncio.run(answered()).text.split()) == ["a", "a", "cat", "mat", "on"]


def test_a_stored_answer_is_the_answer(server):
    at = worker()
    asked = [Prompt(text='Ein "größerer" Hund \\ 犬'), *prompts(1)]
    assert ask(asker(server, at), *asked) == ask(asker(server, at), *asked)
    server.script = lambda asked: "too_long"
    refused = prompts(1, "a long story")
    assert ask(asker(server, at), *refused) == ask(asker(server, at), *refused)
    assert server.asked.total() == 3


def test_an_image_is_sent_once_as_a_data_uri(server):
    import cv2
    import numpy as np

    image = cv2.imencode(".jpg", np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    [answer] = ask(asker(server), Prompt(text="What is it?", image=image))
    assert "9 by 8 pixels" in answer.text
    assert str(server.bodies[0]).count("data:image/jpeg;base64,") == 1
