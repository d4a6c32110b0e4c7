import base64

import pyarrow as pa
import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data.data import UnsureError
from clipmill.pipeline.own_data.roles import roles_of

LINKS = ["https://a.test/1.jpg", "https://a.test/2.jpg", None]
TEXTS = ["a red shoe", "two blue chairs", None]
JPEG = b"\xff\xd8\xff\xe0 and more"


def roles(answers=(), **columns):
    return roles_of(pa.table(columns), dict(answers), "it.csv")


def test_names_in_any_spelling_tell_the_columns():
    found = roles(URL=LINKS, TEXT=TEXTS, WIDTH=[1, 2, 3], HEIGHT=[1.0, 2.0, None])
    assert (found.url, found.caption) == ("URL", "TEXT")
    assert (found.width, found.height) == ("WIDTH", "HEIGHT")
    assert found.scores == ()


def test_values_tell_where_names_do_not():
    found = roles(a=LINKS, b=TEXTS, c=["x", "y", "z"], d=["0" * 32, "1" * 32, None])
    assert (found.url, found.caption, found.uid) == ("a", "b", None)


def test_a_name_is_not_believed_against_its_values():
    found = roles(url=["a", "b", "c"], link=LINKS, text=TEXTS, uid=["1", "2", "3"])
    assert (found.url, found.uid) == ("link", None)


def test_a_column_of_an_image_name_that_holds_links_is_the_link():
    found = roles(image=LINKS, caption=TEXTS)
    assert (found.url, found.image) == ("image", None)


@pytest.mark.parametrize(
    "image",
    [
        pa.array([JPEG, JPEG, None]),
        pa.array([{"bytes": JPEG, "path": None}] * 3),
        pa.array([b"RIFF\0\0\0\0WEBP"] * 3, pa.large_binary()),
    ],
    ids=["bytes", "struct", "large"],
)
def test_pictures_are_known_by_their_bytes(image):
    found = roles(picture=image, sentence=TEXTS, origin=LINKS)
    assert (found.image, found.url, found.caption) == ("picture", "origin", "sentence")


def test_pictures_are_known_by_their_base64_too_and_before_links_and_paths():
    text = base64.b64encode(JPEG * 9).decode()
    for value in (text, f"data:image/jpeg;base64,{text}"):
        found = roles(a=[value] * 3, link=LINKS, path=["1.jpg"] * 3, caption=TEXTS)
        assert (found.image, found.url, found.caption) == ("a", "link", "caption")


def test_lists_of_texts_are_captions_and_lists_of_numbers_vectors():
    found = roles(
        url=LINKS,
        captions=pa.array([["a red shoe"], [], None]),
        emb=pa.array([[0.5] * 32] * 3, pa.list_(pa.float16())),
        txt_emb=pa.array([[0.5] * 32] * 3, pa.list_(pa.float32(), 32)),
        face_box=pa.array([[0.5] * 4] * 3),
    )
    assert found.caption == "captions"
    assert (found.image_embedding, found.text_embedding) == ("emb", "txt_emb")


def test_scores_are_numbers_that_mean_nothing_else():
    found = roles(
        url=LINKS,
        text=TEXTS,
        similarity=[0.1, 0.2, None],
        rating=[1, 2, 3],
        status=[200, 404, 200],
        width=[1.5, 2.5, 3.5],
        loss_weight=[1.0, 1.0, 1.0],
        __index_level_0__=[0.0, 1.0, 2.0],
    )
    assert found.scores == ("similarity", "rating", "width")


def test_a_plain_caption_goes_before_structs_of_texts():
    texts = pa.array([[{"text": text, "source": "original"}] for text in TEXTS])
    assert roles(url=LINKS, texts=texts).caption == "texts"
    assert roles(url=LINKS, texts=texts, caption=TEXTS).caption == "caption"


def test_a_conversation_is_no_caption_as_it_begins_with_a_question():
    talks = pa.array([[{"from": "human", "value": text}] for text in TEXTS])
    assert roles(url=LINKS, conversations=talks).caption is None
    talks = pa.array([[{"role": "assistant", "content": text}] for text in TEXTS])
    assert roles(url=LINKS, conversations=talks).caption == "conversations"


def test_two_that_fit_alike_are_a_question_with_examples():
    with pytest.raises(UnsureError) as unsure:
        roles(url=LINKS, title=TEXTS, alt=["nothing here"] * 3)
    assert unsure.value.ask == "caption"
    assert unsure.value.candidates == {"title": "a red shoe", "alt": "nothing here"}
    assert "say which: --caption title" in str(unsure.value)
    assert roles({"caption": "alt"}, url=LINKS, title=TEXTS, alt=TEXTS).caption == "alt"


def test_a_column_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'TEXT'"):
        roles({"caption": "text"}, URL=LINKS, TEXT=TEXTS)


def test_a_column_without_values_has_no_role():
    found = roles(url=LINKS, text=TEXTS, image=pa.nulls(3), title=pa.nulls(3, pa.string()))
    assert (found.image, found.caption) == (None, "text")


def test_an_id_is_no_score():
    ids = {"SAMPLE_ID": [1.0, 2.0, 3.0], "image_id": [1.0, 2.0, 3.0], "rowId": [1.0, 2.0, 3.0]}
    found = roles(url=LINKS, text=TEXTS, valid=[0.5, 0.5, 0.1], **ids)
    assert found.scores == ("valid",)
