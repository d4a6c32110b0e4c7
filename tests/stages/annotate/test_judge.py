"""annotate.judge: which answers are scores, what is asked, what a row with a bad answer keeps."""

import pyarrow as pa
import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.stages.annotate.judge import Judge
from clipmill.stages.models.prompts import load_prompt
from clipmill.stages.models.scores import score_of
from tests.stages.caption.streaming import Counted, rows_of, run, worker
from tests.stages.caption.test_synthesize import IMAGES
from tests.text_server import Asked, TextServer

QUESTIONS = ("matching", "detail", "quality", "understanding")
COLUMNS = [f"judge_{name}" for name in QUESTIONS]


def batch_of(images=IMAGES, texts=("a red wall", "a green wall", "a blue wall")) -> pa.Table:
    return rows_of(image=pa.array(images, pa.binary()), text=pa.array(texts, pa.string()))


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        *[("87", 87), ("0", 0), ("100", 100), (" 87\n", 87), ("**87**", 87), ("87%", 87)],
        *[("87/100", 87), ("87 / 100.", 87), ("87 out of 100", 87), ("100/100", 100)],
        *[("Score: 87.", 87), ("Sure thing is hard, yet 87", "unparsable"), ("GPT4 says 87", 87)],
        *[("870", "out_of_range"), ("101", "out_of_range"), ("-5", "out_of_range")],
        *[("87 88", "unparsable"), ("80-90", "unparsable"), ("87.5", "unparsable")],
        *[("0.87", "unparsable"), ("1,000", "unparsable"), ("9" * 5000, "unparsable")],
        *[("I can't", "unparsable"), ("I can't rate its 3 dogs", "unparsable")],
        *[("", "unparsable"), ("high", "unparsable"), ("eighty-seven", "unparsable")],
        *[("评分：87分", 87), ("８７", 87), ("八十七", "unparsable"), ("Note : 87", 87)],  # noqa: RUF001
    ],
)
def test_a_score_is_the_one_whole_number_of_an_answer(answer, score):
    assert score_of(answer, is_cut=False) == score


def test_a_number_at_which_the_answer_was_cut_is_none():
    assert score_of("Score: 8", is_cut=True) == "unparsable"
    assert score_of("Score: 87 of", is_cut=True) == 87


def test_every_question_has_a_score_of_its_own():
    rows = run(Judge(model="reference"), batch_of())
    assert [row["reason"] for row in rows] == [None] * 3
    scores = [[row[name] for name in COLUMNS] for row in rows]
    assert all(0 <= score <= 100 for row in scores for score in row)
    assert len({score for row in scores for score in row}) > 6
    [alone, *_] = run(Judge(model="reference", questions=("quality",)), batch_of())
    assert {name for name in alone if name.startswith("judge_")} == {"judge_quality"}
    assert alone["judge_quality"] == rows[0]["judge_quality"], "not of what else is asked"


def test_an_answer_is_greedy_and_paid_for_once():
    answers = Counted()
    with TextServer().running() as server:
        stage = Judge(model=f"openai:{server.url}#{server.model}", questions=("matching",))
        for _ in range(2):
            run(stage, batch_of(), at=worker(answers=answers))
    questions = []
    for body in server.bodies:
        assert (body["temperature"], body["max_tokens"]) == (0, 16)
        assert not {"top_p", "top_k", "min_tokens", "stop"} & body.keys()
        picture, question = body["messages"][-1]["content"]
        assert picture["image_url"]["url"].startswith("data:image/jpeg")
        questions.append(question["text"])
    template = load_prompt("matching", "questions", needs=("text",), folder="annotate/questions")
    # Side by side, so in any order.
    words = ("red", "green", "blue")
    assert sorted(questions) == sorted(template.filled(text=f"a {word} wall") for word in words)


def test_a_bad_answer_is_null_with_its_reason_and_the_other_scores_stay():
    def second_is_bad(asked: Asked) -> str | None:
        if "precisely" not in asked.text:
            return None
        return next(
            fault
            for word, fault in (("red", "refusal"), ("green", "mute"), ("blue", "400"))
            if word in asked.text
        )

    with TextServer(script=second_is_bad).running() as server:
        rows = run(Judge(model=f"openai:{server.url}#{server.model}"), batch_of())
    assert [row["reason"] for row in rows] == ["unparsable", "empty_answer", "bad_request"]
    for row in rows:
        assert [row[name] is None for name in COLUMNS] == [False, True, False, False]


def test_a_row_that_cannot_be_asked_says_why_and_costs_nothing():
    images = [None, b"<html>", IMAGES[0], IMAGES[0], IMAGES[0]]
    texts = ["a", "a", None, " \n", "a"]
    answers = Counted()
    rows = run(Judge(model="reference"), batch_of(images, texts), at=worker(answers=answers))
    reasons = ["no_image", "undecodable", "no_text", "no_text", None]
    assert [row["reason"] for row in rows] == reasons
    assert [row["judge_detail"] is None for row in rows] == [True] * 4 + [False]
    assert answers.asked == 4


def test_a_question_of_ones_own_names_its_column_and_is_in_the_digest(tmp_path):
    path = tmp_path / "safe.yaml"
    path.write_text('id: safe\nlabel: safe\nmax_tokens: 8\ntext: "Is {text} safe, 0 to 100?"\n')
    stage = Judge(model="reference", questions=("matching", str(path)))
    assert [column.name for column in stage.writes] == ["judge_matching", "judge_safe"]
    assert stage.bounds["judge_safe"] == (0, 100)
    assert stage.digests != Judge(model="reference").digests
    with pytest.raises(RecipeError, match="two questions fill one column"):
        Judge(model="reference", questions=(str(path), str(path)))
    with pytest.raises(RecipeError, match="no question 'mathcing'"):
        Judge(model="reference", questions=("mathcing",))
    path.write_text("id: safe\nlabel: safe\nmax_tokens: 8\ntext: Is it safe?\n")
    with pytest.raises(RecipeError, match=r"no place \{text\}"):
        Judge(model="reference", questions=(str(path),))


def test_a_model_that_sees_nothing_is_refused():
    with pytest.raises(RecipeError, match="takes texts alone"):
        Judge(model="smollm2")
