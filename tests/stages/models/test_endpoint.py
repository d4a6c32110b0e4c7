"""What a reply says, whatever a server sends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.stages.models.endpoint import Generated, answer_of

NAMES = st.sampled_from(["choices", "message", "content", "text", "usage", "prompt_tokens"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def reply(**choice) -> dict:
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@given(JSON)
def test_any_json_is_an_answer_or_a_value_error(value):
    try:
        answer = answer_of(value)
    except ValueError:
        return
    assert (answer.text is None) != (answer.reason is None)
    assert min(answer.prompt_tokens, answer.completion_tokens) >= 0


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"message": {"content": " A cat. \n"}, "finish_reason": "stop"}, ("A cat.", None, False)),
        ({"text": " A cat", "message": None, "finish_reason": "length"}, ("A cat", None, True)),
        ({"message": {"content": None}, "finish_reason": "length"}, (None, "empty_answer", True)),
        ({"message": {"content": " \n"}}, (None, "empty_answer", False)),
        ({"message": {"content": None, "refusal": "No."}}, (None, "refused_content", False)),
        ({"text": "A", "finish_reason": "content_filter"}, (None, "refused_content", False)),
    ],
)
def test_a_choice_is_a_text_or_a_reason(choice, said):
    text, reason, cut = said
    tokens = {"prompt_tokens": 3, "completion_tokens": 2}
    assert answer_of(reply(**choice)) == Generated(text=text, reason=reason, cut=cut, **tokens)


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_what_a_server_has_not_finished_is_no_answer(finish):
    with pytest.raises(ValueError, match="no choice with a text"):
        answer_of(reply(message={"content": "A cat on"}, finish_reason=finish))


@pytest.mark.parametrize("tokens", [-3, None, 0, False])
def test_tokens_that_cannot_be_do_not_count(tokens):
    value = {"choices": [{"text": "A"}], "usage": {"prompt_tokens": tokens}}
    assert answer_of(value).prompt_tokens == 0


@pytest.mark.parametrize("tokens", ["many", float("inf"), float("nan"), [1]])
def test_tokens_that_are_no_number_make_no_answer(tokens):
    with pytest.raises(ValueError, match="no choice with a text"):
        answer_of({"choices": [{"text": "A"}], "usage": {"prompt_tokens": tokens}})
