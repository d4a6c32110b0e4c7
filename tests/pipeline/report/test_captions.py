"""The section of captions: figures of the ledger, examples with their pictures, hostile texts."""

from dataclasses import replace
from html import unescape

import pytest

from clipmill.pipeline.ledger.rows.captions import EXAMPLES, Caption, captions
from clipmill.pipeline.report.captions import shown

pytestmark = pytest.mark.usefixtures("own_stages")


TEXT = Caption(
    text="a", source="made", label="short", model=None, prompt_id="short@01234567", values={}
)


def section_of(page: str) -> str:
    return page[page.index('<section id="captions"') :].partition("</section>")[0]


def test_the_section_has_the_counts_of_the_ledger_and_twenty_rows(captioned, captioned_html):
    (found,) = captions(captioned)
    part = section_of(captioned_html)
    assert "Captions of best" in part
    total, kept = sum(found.texts.values()), sum(found.kept.values())
    assert 0 < kept < total
    assert f"{total} texts of {found.rows} rows, of which best keeps {kept}" in part
    for source, count in found.reasons["min_words"].items():
        assert f">{count} <small" in part, source
    assert part.count("<figure>") == part.count("data:image/") == EXAMPLES == 20
    assert part.count('class="gone"') == part.count('<span class="mark">')


def test_texts_stand_as_they_are_and_none_is_read_as_html(captioned, captioned_html):
    (found,) = captions(captioned)
    part = section_of(captioned_html)
    every = [it.text for example in found.examples for it in example.texts.texts]
    assert any("<b>" in text for text in every)
    assert all(text in unescape(part) for text in every)
    for tag in ("<script", "<img src=x", "<b>"):
        assert tag not in part


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("text_prompt_leak", "prompt leak"),
        ("text_is_refusal", "refusal"),
        ("text_clip_score >= 0.2", "clip score >= 0.2"),
        ("cut:short", "below the cut of short"),
        ("mix:short-synthetic", "the mix takes another"),
        ("undefined:text_clip_score", "clip score has no value"),
        ("min_words", "min_words"),
    ],
)
def test_a_verdict_says_in_words_why_a_text_went(reason, said):
    assert shown(replace(TEXT, reason=reason))["reason"] == said


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("openai:http://10.0.0.5:8000/v1#org/qwen", "org/qwen"),
        ("gguf:/data/models/small.gguf#eyes.gguf", "small.gguf#eyes.gguf"),
        ("vllm:/data/models/tiny/", "tiny"),
        ("smollm2", "smollm2"),
    ],
)
def test_a_model_is_named_without_its_place(model, said):
    assert shown(replace(TEXT, model=model))["made"] == f"made, short, {said}, short@01234567"


def test_the_language_stands_with_how_sure_it_is_and_zeros_are_left_out():
    values = {"text_language": "en", "text_language_confidence": 0.7218, "text_markup": 0}
    assert shown(replace(TEXT, values=values))["values"] == {"language": "en 0.72"}


def test_a_page_of_a_run_without_captions_has_no_such_section(html):
    assert 'id="captions"' not in html
