"""A real vLLM server on the CPU: text, an image, a killed server, and nothing left at the end."""

import asyncio
import gc
import io
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from clipmill.pipeline.engine.environments import python_of
from clipmill.pipeline.engine.helpers import HelperProcess
from clipmill.pipeline.stage import Worker
from clipmill.stages.models import vllm, vllm_server
from clipmill.stages.models.generator import Asker, Decoding, Limits, Prompt, open_asker
from tests.captioned import judged, run_recipe, served_pool
from tests.family import left_after, serving

pytestmark = [pytest.mark.soak(cpu_s=100), pytest.mark.timeout(1500)]

TINY = Path(__file__).with_name("tiny_models.py")
DECODING = Decoding(max_tokens=8, min_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Tiny models with random weights, made by vLLM's own Python."""
    folder = tmp_path_factory.mktemp("models")
    command = [str(python_of(vllm.CPU)), "-I", str(TINY), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Iterator[Path]:
    with served_pool(tmp_path_factory.mktemp("pool"), rows=40) as folder:
        yield folder


def opened(model: Path, scratch: Path) -> Asker:
    start = partial(HelperProcess, "recaption", scratch)
    here = {"seed": 0, "stage": "recaption", "device": "cpu", "threads": 1, "scratch": scratch}
    worker = Worker(**here, environment=python_of, start_helper=start)
    limits = Limits(timeout_s=600, deadline_s=1200)
    return open_asker(f"vllm:{model}", worker, decoding=DECODING, limits=limits, form="chat")


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(file, "PNG")
    return file.getvalue()


def test_a_text_model_answers_is_revived_and_leaves_no_process(models, tmp_path):
    script = vllm_server.__file__
    before = serving(script)

    async def talk() -> None:
        asker = opened(models / "text", tmp_path)
        answers = await asyncio.gather(
            *(asker.ask(Prompt(text=f"caption {i}"), seed=i) for i in range(8))
        )
        assert all(one.completion_tokens == 8 and one.cut for one in answers), answers
        assert all(one.prompt_tokens > 8 for one in answers)
        os.kill(max(set(serving(script)) - set(before)), signal.SIGKILL)
        again = await asker.ask(Prompt(text="another"), seed=0)
        assert again.completion_tokens == 8, again

    asyncio.run(talk())
    gc.collect()
    assert not left_after(set(serving(script)) - set(before), 20)


RECIPES = {  # of each its stages that ask a model, and the select of captions
    "veclip": (("short", "fused"), "chosen", "shards"),
    "recaption-short-long": (("made",), "mixed", "for_clip"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_whose_answers_are_nonsense_ends_well_and_keeps_the_originals(
    recipe, models, pool, clipmill, tmp_path
):
    """32 prompts at once, each with a seed and an image, are more than vLLM takes in one step."""
    asking, select, last = RECIPES[recipe]
    settings = [f"{stage}.model=vllm:{models}/vision" for stage in asking]
    settings += [f"{stage}.decoding.max_tokens=16" for stage in asking]
    before = serving(vllm_server.__file__)
    run_recipe(clipmill, recipe, pool, tmp_path, last, *settings)
    gc.collect()  # the worker was this process
    assert not left_after(set(serving(vllm_server.__file__)) - set(before), 20)
    rows = judged(tmp_path, select)
    made = [text for row in rows for text in row["read"] or () if text["label"] != "original"]
    why = [it for row in rows for it in row["text_reasons"] or ()]
    assert len(made) > 10
    assert why.count("text_garbled") > len(made) / 2
    for row in rows:  # no row that had a text is left without one
        assert bool(row["texts"]) == bool(row["read"])
        assert not row["fell_back"] or [it["label"] for it in row["texts"]] == ["original"]


def test_a_vision_model_takes_an_image(models, tmp_path):
    async def talk() -> None:
        asker = opened(models / "vision", tmp_path)
        shown = [
            await asker.ask(Prompt(text="What is this?", image=picture(colour)), seed=0)
            for colour in ("red", "blue")
        ]
        blind = await asker.ask(Prompt(text="What is this?"), seed=0)
        assert all(one.completion_tokens == 8 for one in shown), shown
        assert shown[0].prompt_tokens == blind.prompt_tokens + 16  # 4 x 4 patches

    asyncio.run(talk())
