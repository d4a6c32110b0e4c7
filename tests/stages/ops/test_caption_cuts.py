import pyarrow as pa

from clipmill.stages.select._captions import CUTS, Cut, first_failed


def test_the_first_cut_that_a_text_fails_is_its_reason_and_null_fails_none():
    values = {
        "text_words": pa.array([5, 0, 5, 5, None], pa.int32()),
        "text_is_refusal": pa.array([False, True, True, False, None]),
        "text_copy_ratio": pa.array([0.5, 1, 1, 0.9, None], pa.float32()),
    }
    cuts = {
        "text_words": Cut(least=1, most=9),
        "text_is_refusal": Cut(most=0),
        "text_invented": Cut(most=0),  # not among the values
        "text_copy_ratio": Cut(most=0.8),
    }
    first = [None, "text_words", "text_is_refusal", "text_copy_ratio", None]
    assert first_failed(values, cuts).to_pylist() == first
    assert first_failed({name: it[:0] for name, it in values.items()}, cuts).to_pylist() == []


def test_a_value_at_its_cut_passes():
    values = {"text_prompt_leak": pa.array([CUTS["text_prompt_leak"].most], pa.float32())}
    assert first_failed(values, CUTS).to_pylist() == [None]
