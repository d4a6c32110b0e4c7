"""One path to every model that writes texts: stored answers, equal requests, budgets."""

import asyncio
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.models.generator import (
    Decoding,
    Limits,
    Prompt,
    environments_of,
    look_for,
    open_asker,
    refuse_blind,
)

CAPTION = Prompt(text="Write it anew.\na black cat on a mat =>")


def worker(**given) -> Worker:
    return Worker(seed=0, stage="rewrite", device="cpu", threads=1, scratch=Path(), **given)


def reference(at: Worker, form="chat", max_tokens=128, **limits):
    decoding = Decoding(max_tokens=max_tokens)
    return open_asker("reference", at, decoding=decoding, limits=Limits(**limits), form=form)


def ask(asker, *prompts, **given):
    async def all_of_them():
        return await asyncio.gather(*(asker.ask(prompt, seed=7, **given) for prompt in prompts))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_the_reference_turns_the_words_of_the_last_line_round(form):
    asker = reference(worker(), form)
    texts = {ask(asker, CAPTION, candidate=i)[0].text for i in range(20)}
    assert len(texts) == 5
    assert {" ".join(sorted(text.split())) for text in texts} == {"a a black cat mat on"}
    assert "a black cat on a mat" not in texts


def test_the_reference_names_an_images_size_and_colour():
    red_HW3 = np.full((24, 32, 3), (30, 40, 200), np.uint8)  # blue first
    image = cv2.imencode(".png", red_HW3)[1].tobytes()
    [answer] = ask(reference(worker()), Prompt(text="What is it?", image=image))
    assert "32 by 24 pixels" in answer.text
    assert "red" in answer.text


def test_an_image_is_sent_as_chat_though_a_text_took_completions():
    image = cv2.imencode(".png", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    asker = reference(worker())
    asker._settle("completion")
    [answer] = ask(asker, Prompt(text="What is it?", image=image))
    assert "32 by 24 pixels" in answer.text


def test_an_answer_of_max_tokens_is_cut():
    [answer] = ask(reference(worker(), max_tokens=3), CAPTION)
    assert (len(answer.text.split()), answer.completion_tokens, answer.cut) == (3, 3, True)


def test_a_prompt_may_ask_for_a_shorter_answer_than_its_decoding():
    prompt = Prompt(text="one two three four five", max_tokens=3)
    long = replace(prompt, max_tokens=99)
    first, second = ask(reference(worker(), max_tokens=4), prompt, long)
    assert [len(it.text.split()) for it in (first, second)] == [3, 4]


def test_a_budget_of_nothing_asks_nothing():
    with pytest.raises(StageError, match=r"0 of 0 tokens(.|\n)*raise limits\.max_tokens_total"):
        ask(reference(worker(), max_tokens_total=0), CAPTION)


@pytest.mark.parametrize("model", ["gguf:gone.gguf", "gguf:gone.gguf#eyes.gguf", "vllm:./gone"])
def test_weights_that_are_not_there_are_missed_before_anything_runs(model):
    with pytest.raises(StageError, match=r"no (file|folder) '.*gone"):
        look_for(model)


def test_a_name_on_a_hub_and_a_server_are_not_looked_for():
    for model in ("vllm:org/name", "openai:http://127.0.0.1:1/v1#a", "smollm2", "reference"):
        look_for(model)


def test_a_model_of_texts_alone_is_refused_where_images_are_sent():
    for model in ("smollm2", "gguf:model.gguf"):
        with pytest.raises(RecipeError, match=r"takes texts alone(.|\n)*gguf:FILE#PROJECTOR"):
            refuse_blind(model)
    for model in ("gguf:model.gguf#eyes.gguf", "vllm:org/name", "reference"):
        refuse_blind(model)


def test_a_remark_in_yaml_is_told_from_a_model():
    with pytest.raises(RecipeError, match="in quotes: a # behind a space begins a remark"):
        environments_of("openai:http://127.0.0.1:8000/v1")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(RecipeError, match="unknown scheme 'opnai'"):
        open_asker("opnai:x", worker(), decoding=Decoding(), limits=Limits(), form="chat")
