"""The first rows of data as a run reads them: none is lost, and captions are whole."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data.data import UnsureError
from clipmill.pipeline.own_data.start import Request, Start, start

LINKS = [f"https://a.test/{i}.jpg" for i in range(60)]


def started(path, **answers) -> Start:
    return start(Request(path=str(path), columns=answers), "made by", "run as")


def read(path, **answers) -> list[str | None]:
    """The captions of the first rows, all of which can be used."""
    begun = started(path, **answers)
    assert begun.preview.unusable == {}
    return begun.preview.rows["text"].to_pylist()


def written(path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_table_of_paths_has_cells_that_span_lines_and_marks_too(delimiter, drawn, tmp_path):
    for pair in drawn[:4]:
        (tmp_path / pair.name).write_bytes(pair.image)
    lines = ["\ufeffa red\nshoe", "two, three; four", 'a "blue"\n\nchair', "plain"]
    rows = zip((pair.name for pair in drawn), lines, strict=False)
    (tmp_path / "it.csv").write_text(by_excel([("filepath", "title"), *rows], delimiter))
    for data in (tmp_path / "it.csv", tmp_path):  # the folder of both, too
        begun = started(data)
        assert (begun.data.uses, begun.data.rows) == ("ingest.table", 4)
        assert begun.preview.unusable == {}
        assert begun.preview.rows["text"].to_pylist() == [lines[0].strip("\ufeff"), *lines[1:]]
        assert "byte-order mark" in begun.data.notes[-1]


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


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_inside_others_are_found_by_dotted_paths(kind, tmp_path):
    said = [{"lang": "en", "n": i, "words": f"a red shoe {i}"} for i in range(60)]
    rows = [
        {"image": {"src": u, "width": 9}, "caption": s} for u, s in zip(LINKS, said, strict=True)
    ]
    begun = started(written(tmp_path / f"it.{kind}", rows))
    assert begun.data.columns["url"] == "image.src"
    assert begun.data.columns["caption"] == "caption.words"  # the only one of texts
    assert begun.preview.rows["text"].to_pylist() == [row["words"] for row in said]


def test_a_struct_of_several_captions_is_a_question_with_their_paths(tmp_path):
    rows = [{"url": u, "caption": {"en": "a shoe", "de": "ein Schuh"}, "more": {"title": "x y"}}
            for u in LINKS]  # fmt: skip
    path = written(tmp_path / "it.parquet", rows)
    with pytest.raises(UnsureError) as unsure:
        started(path)
    assert unsure.value.candidates == {
        **{"caption.en": "a shoe", "caption.de": "ein Schuh"},
        "more.title": "x y",
    }
    with pytest.raises(RecipeError, match=r"'caption' holds caption\.en, caption\.de"):
        started(path, caption="caption")
    assert set(read(path, caption="caption.de")) == {"ein Schuh"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("item", [str, lambda text: {"raw": text, "id": 1}], ids=["text", "struct"])
def test_all_texts_of_a_list_are_taken_and_that_is_said(item, kind, tmp_path):
    texts = [[f"a shoe {i}", f"shoe {i} again"] for i in range(60)]
    rows = [{"url": u, "sentences": list(map(item, t))} for u, t in zip(LINKS, texts, strict=True)]
    begun = started(written(tmp_path / f"it.{kind}", rows))
    assert begun.data.notes == (
        "sentences holds lists: the first text is the caption, the others leave with it",
    )
    rest = [[text["text"] for text in row] for row in begun.preview.rows["captions"].to_pylist()]
    firsts = begun.preview.rows["text"].to_pylist()
    assert [[first, *more] for first, more in zip(firsts, rest, strict=True)] == texts


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_byte_order_mark_in_a_cell_is_no_letter_of_the_caption(kind, tmp_path):
    """As whoever reads .txt files into a table leaves it."""
    rows = [{"url": u, "text": "\ufeff" * (i % 2) + f"a shoe {i}"} for i, u in enumerate(LINKS)]
    path = tmp_path / f"it.{kind}"
    if kind == "csv":
        path.write_text(by_excel([("url", "text"), *((r["url"], r["text"]) for r in rows)], ","))
    else:
        written(path, rows)
    assert read(path) == [f"a shoe {i}" for i in range(60)]
    assert started(path).data.notes == ("captions begin with a byte-order mark, which is left out",)


def test_a_text_among_lists_of_texts_is_read_too(tmp_path):
    rows = [{"url": u, "text": f"a shoe {i}" if i % 2 else [f"a shoe {i}", "shoe"]}
            for i, u in enumerate(LINKS)]  # fmt: skip
    assert read(written(tmp_path / "it.jsonl", rows)) == [f"a shoe {i}" for i in range(60)]


def tars(folder, record: dict, drawn) -> str:
    with webdataset.TarWriter(str(folder / "0.tar")) as sink:
        for pair in drawn[:4]:
            body = {key: at(pair) if callable(at) else at for key, at in record.items()}
            sink.write({"__key__": pair.name[:4], "jpg": pair.image, "json": body})
    return str(folder / "0.tar")


def test_captions_under_any_key_of_a_tars_json_are_found(drawn, tmp_path):
    path = tars(tmp_path, {"prompt": lambda pair: pair.caption, "at": "https://a.test"}, drawn)
    begun = started(path)
    assert begun.data.settings == {"caption_col": "prompt"}
    assert read(path) == [pair.caption for pair in drawn[:4]]
    with pytest.raises(RecipeError, match="did you mean 'prompt'"):
        started(path, caption="promt")


def test_several_keys_are_a_question_and_answered_by_a_dotted_path(drawn, tmp_path):
    text = {"en": "a red shoe", "de": "ein roter Schuh"}
    path = tars(tmp_path, {"caption": lambda _: text}, drawn)
    with pytest.raises(UnsureError, match=r"2 may be the caption: caption\.en"):
        started(path)
    assert set(read(path, caption="caption.de")) == {"ein roter Schuh"}


def test_tars_of_pictures_alone_have_no_captions(drawn, tmp_path):
    begun = started(tars(tmp_path, {"n": 1}, drawn))
    assert not begun.data.has_captions
    assert begun.data.notes == ("no .txt and no captions in the .json were found",)


def test_tars_without_any_json_or_txt_have_no_captions(drawn, tmp_path):
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as sink:
        for pair in drawn[:4]:
            sink.write({"__key__": pair.name[:4], "jpg": pair.image, "cls": 1})
    begun = started(tmp_path / "0.tar")
    assert not begun.data.has_captions
    assert begun.preview.unusable == {}


@pytest.mark.parametrize(
    ("name", "stated", "rows"),
    [
        ("0_stats.json", '{"successes": 4}', 4),
        ("0_stats.json", '{"successes": null}', None),
        ("0_stats.json", '{"succ', None),
        ("dataset.json", '{"counts": {}, "rows": 4}', 4),
        ("dataset.json", '{"counts": {}}', None),
    ],
)
def test_rows_that_no_file_states_are_not_told(name, stated, rows, drawn, tmp_path):
    path = tars(tmp_path, {"caption": "a red shoe"}, drawn)
    (tmp_path / name).write_text(stated)
    assert started(Path(path).parent).data.rows == rows


def test_views_of_texts_are_texts(tmp_path):
    links, texts = [f"https://a.test/{n}.jpg" for n in range(9)], ["a red shoe"] * 9
    views = {name: pa.array(v, pa.string_view()) for name, v in (("url", links), ("text", texts))}
    pq.write_table(pa.table(views), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == texts


def test_json_that_is_a_hole_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    """GNU tar's header of a sparse file: any size in 512 bytes."""
    header = tarfile.TarInfo("0.json")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % (7 << 30)  # its real size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "0.tar").write_bytes(bytes(block) + bytes(1024))
    monkeypatch.setattr("json.load", lambda file: pytest.fail(f"{file} is read"))
    assert started(tmp_path / "0.tar").data.rows is None
