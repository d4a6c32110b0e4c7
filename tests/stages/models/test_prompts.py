"""Prompt files: what they fill in, and what is said of a bad one."""

import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.stages.models.prompts import HERE, load_prompt

FUSES = ("afc", "veclip")
SEES = ("detailed", "long", "short", "short_with_text")
GOOD = 'id: mine\nlabel: short\nmax_tokens: 20\ntext: >-\n  What is it?\n  They say "{text}".\n'


def test_a_prompt_is_shipped_of_each_length_and_each_fusion():
    assert sorted(file.stem for file in (HERE / "caption/prompts").glob("*.yaml")) == sorted(
        FUSES + SEES
    )
    sees = {name: load_prompt(name, "prompts", may=("text",)) for name in SEES}
    assert {name: it.label for name, it in sees.items()} == {
        "short": "short",
        "short_with_text": "short",
        "long": "long",
        "detailed": "detailed",
    }
    assert [name for name, it in sees.items() if it.places] == ["short_with_text"]
    assert sees["short"].max_tokens < sees["long"].max_tokens < sees["detailed"].max_tokens
    for name in FUSES:
        assert load_prompt(name, "prompt", needs=("caption", "text")).label == "fused"


def test_a_caption_is_filled_in_as_it_is(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text(GOOD)
    prompt = load_prompt(str(path), "prompts", may=("text",))
    assert prompt.filled(text=r"{text} \1 {caption}") == (
        r'What is it? They say "{text} \1 {caption}".'
    )
    assert prompt.prompt_id.startswith("mine@")
    path.write_text(GOOD.replace("20", "30"))
    assert load_prompt(str(path), "prompts", may=("text",)).prompt_id == prompt.prompt_id
    path.write_text(GOOD.replace("What", "Who"))
    assert load_prompt(str(path), "prompts", may=("text",)).prompt_id != prompt.prompt_id


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        (GOOD.replace("label: short\n", ""), 1, "no field 'label'"),
        (GOOD.replace("label", "lable"), 2, "unknown field 'lable'"),
        (GOOD.replace("mine", "My Prompt"), 1, "id is 'My Prompt'"),
        (GOOD.replace("short", "'a b'"), 2, "label is 'a b'"),
        (GOOD.replace("20", "0"), 3, "max_tokens is '0'"),
        (GOOD.replace("20", "many"), 3, "max_tokens is 'many'"),
        (GOOD.replace("20", "[20]"), 3, "'max_tokens' is empty"),
        (GOOD.replace("{text}", "{alt}"), 4, "unknown place {alt}"),
        (GOOD.replace("{text}", "{caption}"), 4, "unknown place {caption}"),
        (GOOD.partition("text:")[0], 1, "no field 'text'"),
        ("id: mine\n id: other", 2, "mapping values are not allowed here"),
    ],
)
def test_a_bad_prompt_stops_the_plan_with_its_line(text, line, found, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_prompt(str(path), "prompts", may=("text",))
    assert found in error.value.args[0]
    assert error.value.args[1] == f"{path}:{line}"
    assert error.value.args[2]


def test_a_prompt_that_fuses_needs_both_captions(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    with pytest.raises(RecipeError, match=r"no place \{caption\}"):
        load_prompt(str(path), "prompt", needs=("caption", "text"))
    with pytest.raises(RecipeError, match=r"no place \{caption\}"):
        load_prompt("short", "prompt", needs=("caption", "text"))
    with pytest.raises(RecipeError, match=r"no prompt 'shrt'[\s\S]*did you mean 'short'"):
        load_prompt("shrt", "prompts")
