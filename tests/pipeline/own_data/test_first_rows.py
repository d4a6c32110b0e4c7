"""The first rows of data as a run reads them: none is lost, and captions are whole."""

import csv
import io

import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data.start import Request, Start, start

LINKS = [f"https://a.test/{i}.jpg" for i in range(60)]


def started(path, **answers) -> Start:
    return start(Request(path=str(path), columns=answers), "made by", "run as")


def read(path, **answers) -> list[str | None]:
    """The captions of the first rows, all of which can be used."""
    begun = started(path, **answers)
    assert begun.preview.unusable == {}
    return begun.preview.rows["text"].to_pylist()


def by_excel(rows: list[tuple[str, str]], delimiter: str) -> str:
    """Quotes by Excel's rules: where a cell holds delimiter, quote or line end, and nowhere else.

    Line ends of rows are CR LF, those in cells LF.
    """
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("delimiter", "suffix"), [(";", "csv"), ("\t", "txt"), ("|", "tsv")])
def test_cells_that_span_lines_are_read_though_no_other_is_quoted(
    delimiter, suffix, encoding, tmp_path
):
    lines = ["a café table", "two\nlines", "three blue\n\nchairs"]
    texts = [lines[i % 3 if i > 20 else 0] for i in range(60)]
    rows = by_excel([("image_link", "alt"), *zip(LINKS, texts, strict=True)], delimiter)
    (tmp_path / f"it.{suffix}").write_bytes(rows.encode(encoding))
    assert read(tmp_path / f"it.{suffix}") == texts


def test_quotes_after_the_first_64_kilobytes_are_seen(tmp_path):
    texts = [*["x " * 600] * 59, "two\nlines"]
    rows = by_excel([("url", "text"), *zip(LINKS, texts, strict=True)], "\t")
    (tmp_path / "it.tsv").write_bytes(rows.encode())
    assert read(tmp_path / "it.tsv") == texts


def test_quotes_that_are_never_closed_are_letters(tmp_path):
    """CC3M's form: the two quotes would make one row of all that stand between them."""
    texts = [f'"a red shoe {i}' if i in (3, 50) else f'a "red shoe {i}' for i in range(60)]
    rows = "".join(f"{text}\t{link}\n" for text, link in zip(texts, LINKS, strict=True))
    (tmp_path / "it.tsv").write_text(rows)
    assert read(tmp_path / "it.tsv") == texts


@pytest.mark.parametrize("head", ["url,caption\n", ""])
def test_rows_of_other_lengths_than_the_first_are_told(head, tmp_path):
    rows = "".join(f"{link},a shoe{', red' * (i % 4)}\n" for i, link in enumerate(LINKS))
    (tmp_path / "it.csv").write_text(head + rows)
    with pytest.raises(RecipeError) as error:
        started(tmp_path / "it.csv")
    found, where, do = error.value.args
    assert "of the first 20 rows have not 2 fields, as the first has: row " in found
    assert where == f"{tmp_path}/it.csv"
    assert do.startswith("put each text that holds ',' in quotes")
