"""Data of each layout, written by the tool that people write them with."""

import base64
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.pipeline.own_data.conftest import Pair

Writer = Callable[[Path, list[Pair]], Path]


def frame(pairs: list[Pair], **columns):
    import pandas as pd

    return pd.DataFrame({name: [getattr(p, it) for p in pairs] for name, it in columns.items()})


def pandas_csv(folder: Path, pairs: list[Pair]) -> Path:
    table = frame(pairs, url="url", caption="caption")
    table.to_csv(folder / "it.csv", index=False)
    return folder / "it.csv"


def pandas_tsv_without_header(folder: Path, pairs: list[Pair]) -> Path:
    """CC3M's form: caption, tab, link, and quotes that enclose nothing."""
    lines = [f"{p.caption}\t{p.url}\n" for p in pairs]
    (folder / "it.tsv").write_text("".join(lines), encoding="utf-8")
    return folder / "it.tsv"


def pandas_json_lines(folder: Path, pairs: list[Pair]) -> Path:
    table = frame(pairs, image_url="url", alt_text="caption")
    table.to_json(folder / "it.jsonl", orient="records", lines=True)
    return folder / "it.jsonl"


def pandas_parquet_of_laion(folder: Path, pairs: list[Pair]) -> Path:
    table = frame(pairs, URL="url", TEXT="caption")
    table["WIDTH"], table["HEIGHT"] = 120.0, 90.0
    table["similarity"] = np.linspace(0.2, 0.4, len(pairs))
    table["NSFW"] = "UNLIKELY"
    table.to_parquet(folder / "it.parquet")
    return folder / "it.parquet"


def duckdb_parquet(folder: Path, pairs: list[Pair]) -> Path:
    import duckdb

    shown = frame(pairs, link="url", title="caption")  # noqa: F841  # DuckDB finds it by name
    duckdb.sql("SELECT * FROM shown").write_parquet(str(folder / "it.parquet"))
    return folder / "it.parquet"


def duckdb_csv(folder: Path, pairs: list[Pair]) -> Path:
    import duckdb

    shown = frame(pairs, img_url="url", description="caption")  # noqa: F841
    duckdb.sql("SELECT * FROM shown").write_csv(str(folder / "it.csv.gz"), compression="gzip")
    return folder / "it.csv.gz"


def spreadsheet_csv(folder: Path, pairs: list[Pair]) -> Path:
    """The cells of a sheet as a spreadsheet of many countries saves them: semicolons, a BOM."""
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    for row in [("image_link", "alt"), *((p.url, p.caption) for p in pairs)]:
        sheet.append(row)
    book.save(folder / "it.xlsx")
    rows = openpyxl.load_workbook(folder / "it.xlsx").active.values
    with (folder / "it.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    (folder / "it.xlsx").unlink()
    return folder / "it.csv"


def browsers_list(folder: Path, pairs: list[Pair]) -> Path:
    (folder / "it.txt").write_bytes("".join(f"{p.url}\r\n" for p in pairs).encode())
    return folder / "it.txt"


def pictures_and_texts(folder: Path, pairs: list[Pair]) -> Path:
    for pair in pairs:
        (folder / pair.name).write_bytes(pair.image)
        (folder / pair.name).with_suffix(".txt").write_text(f"{pair.caption}\n")
    return folder


def datasets_image_folder(folder: Path, pairs: list[Pair]) -> Path:
    split = folder / "train"
    split.mkdir()
    for pair in pairs:
        (split / pair.name).write_bytes(pair.image)
    table = frame(pairs, file_name="name", text="caption")
    table.to_json(split / "metadata.jsonl", orient="records", lines=True)
    return folder


def webdataset_tars(folder: Path, pairs: list[Pair]) -> Path:
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=10, verbose=0) as sink:
        for pair in pairs:
            key = Path(pair.name).stem
            sink.write({"__key__": key, "jpg": pair.image, "txt": pair.caption})
    return folder


def img2dataset(folder: Path, pairs: list[Pair], output_format: str) -> Path:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # a library of its asks the web otherwise
    from img2dataset import download

    listed = folder / "list"
    listed.mkdir()
    frame(pairs, url="url", caption="caption").to_parquet(listed / "0.parquet")
    download(
        url_list=str(listed),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=str(folder / "out"),
        output_format=output_format,
        image_size=96,
        resize_mode="keep_ratio_largest",
        processes_count=1,
        thread_count=4,
        number_sample_per_shard=20,
    )
    return folder / "out"


def img2dataset_tars(folder: Path, pairs: list[Pair]) -> Path:
    return img2dataset(folder, pairs, "webdataset")


def img2dataset_files(folder: Path, pairs: list[Pair]) -> Path:
    return img2dataset(folder, pairs, "files")


def img2dataset_parquet(folder: Path, pairs: list[Pair]) -> Path:
    return img2dataset(folder, pairs, "parquet")


def hugging_face(folder: Path, pairs: list[Pair]) -> Path:
    """A dataset folder as the Hub has it: data/*.parquet with an Image feature, and a card."""
    import datasets

    rows = {"image": [{"bytes": p.image, "path": p.name} for p in pairs]}
    rows["caption"] = [p.caption for p in pairs]
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    made = datasets.Dataset.from_dict(rows, features=features)
    (folder / "data").mkdir()
    made.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# pairs\n")
    return folder


def datacomp(folder: Path, pairs: list[Pair]) -> Path:
    """Metadata and vectors as DataComp's downloader leaves them."""
    table = frame(pairs, url="url", text="caption")
    table["uid"] = [hashlib.md5(p.url.encode()).hexdigest() for p in pairs]
    table["original_width"], table["original_height"] = 120, 90
    table["clip_b32_similarity_score"] = np.linspace(0.2, 0.4, len(pairs)).astype(np.float32)
    table["clip_l14_similarity_score"] = np.linspace(0.1, 0.3, len(pairs)).astype(np.float32)
    table["face_bboxes"] = [[] for _ in pairs]
    table["sha256"] = [hashlib.sha256(p.image).hexdigest() for p in pairs]
    table.to_parquet(folder / "0.parquet")
    widths = {"b32_img": 512, "b32_txt": 512, "l14_img": 768, "l14_txt": 768}
    ones = {name: np.ones((len(pairs), width), np.float16) for name, width in widths.items()}
    np.savez(folder / "0.npz", **ones)
    return folder


def bytes_and_vectors(folder: Path, pairs: list[Pair]) -> Path:
    """Parquet of raw pictures, captions in a list, and vectors, by pandas."""
    table = frame(pairs, jpg="image")
    table["captions"] = [[p.caption] for p in pairs]
    table["clip_embedding"] = list(np.random.default_rng(0).normal(size=(len(pairs), 32)))
    table.to_parquet(folder / "it.parquet")
    return folder / "it.parquet"


def metadata_csv(folder: Path, pairs: list[Pair]) -> Path:
    for pair in pairs:
        (folder / pair.name).write_bytes(pair.image)
    frame(pairs, file_name="name", text="caption").to_csv(folder / "metadata.csv", index=False)
    return folder


def beside(folder: Path, pairs: list[Pair], pictures: str) -> list[str]:
    """The pictures in a folder of their own; their paths."""
    (folder / pictures).mkdir(parents=True)
    for pair in pairs:
        (folder / pictures / pair.name).write_bytes(pair.image)
    return [f"{pictures}/{pair.name}" for pair in pairs]


def open_clips_csv(folder: Path, pairs: list[Pair]) -> Path:
    """What open_clip trains from: `--csv-img-key filepath --csv-caption-key title`, tabs."""
    table = frame(pairs, title="caption")
    table.insert(0, "filepath", beside(folder, pairs, "images"))
    table.to_csv(folder / "it.csv", sep="\t", index=False)
    return folder / "it.csv"


def parquet_of_file_links(folder: Path, pairs: list[Pair]) -> Path:
    """Whole file:// links, as a script writes `path.as_uri()`."""
    table = frame(pairs, caption="caption")
    table["image"] = [(folder / path).as_uri() for path in beside(folder, pairs, "my pictures")]
    table.to_parquet(folder / "it.parquet")
    return folder / "it.parquet"


def metadata_of_any_columns(folder: Path, pairs: list[Pair]) -> Path:
    beside(folder, pairs, "train")
    frame(pairs, photo="name", prompt="caption").to_csv(folder / "metadata.csv", index=False)
    return folder


def flickrs_captions(folder: Path, pairs: list[Pair]) -> Path:
    """Flickr8k's: Images/ and a captions.txt with commas."""
    beside(folder, pairs, "Images")
    frame(pairs, image="name", caption="caption").to_csv(folder / "captions.txt", index=False)
    return folder


def coco(folder: Path, pairs: list[Pair]) -> Path:
    """COCO's folders, with boxes that are of no use here beside the captions."""
    beside(folder, pairs, "val2017")
    images = [
        {"id": i * 7, "file_name": p.name, "coco_url": p.url, "flickr_url": p.url, "height": 90}
        for i, p in enumerate(pairs)
    ]
    notes = [{"image_id": i * 7, "id": i, "caption": p.caption} for i, p in enumerate(pairs)]
    boxes = [{"image_id": 0, "bbox": [0, 0, 1, 1]}]
    (folder / "annotations").mkdir()
    for name, annotations in (("captions_val2017", notes[::-1]), ("instances_val2017", boxes)):
        whole = {"info": {"year": 2017}, "images": images, "annotations": annotations}
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(whole))
    return folder


def flickrs_tokens(folder: Path, pairs: list[Pair]) -> Path:
    """Flickr8k's as its authors gave it: names with a caption's number, no header."""
    beside(folder, pairs, "Flicker8k_Dataset")
    lines = [f"{p.name}#0\t{p.caption}\n" for p in pairs]
    (folder / "Flickr8k.token").write_text("".join(lines))
    return folder


def captions_in_a_folder_of_their_own(folder: Path, pairs: list[Pair]) -> Path:
    for pair, path in zip(pairs, beside(folder, pairs, "train/images"), strict=True):
        caption = folder / path.replace("/images/", "/captions/")
        caption.parent.mkdir(exist_ok=True)
        caption.with_suffix(".txt").write_text(pair.caption)
    return folder


def captions_by_split(folder: Path, pairs: list[Pair]) -> Path:
    """images/train, images/val, and the same folders below labels."""
    for split, part in (("train", pairs[:14]), ("val", pairs[14:])):
        beside(folder, part, f"images/{split}")
        (folder / "labels" / split).mkdir(parents=True)
        for pair in part:
            caption = (folder / "labels" / split / pair.name).with_suffix(".txt")
            caption.write_text(pair.caption)
    return folder


def trainers_caption_files(folder: Path, pairs: list[Pair]) -> Path:
    """kohya's trainer, by its default: cat.caption beside cat.jpg."""
    for pair, path in zip(pairs, beside(folder, pairs, "10_dog"), strict=True):
        (folder / path).with_suffix(".caption").write_text(pair.caption)
    return folder


def trainers_metadata(folder: Path, pairs: list[Pair]) -> Path:
    """kohya's `merge_captions_to_metadata.py`: an object a picture, by names without a suffix."""
    beside(folder, pairs, "img")
    fields = {Path(p.name).stem: {"caption": p.caption, "tags": "a, b"} for p in pairs}
    (folder / "meta_cap.json").write_text(json.dumps(fields, indent=2))
    return folder


def json_files_beside(folder: Path, pairs: list[Pair]) -> Path:
    """A generator's settings beside each picture, its prompt among them."""
    for i, (pair, path) in enumerate(zip(pairs, beside(folder, pairs, "out"), strict=True)):
        record = {"prompt": pair.caption, "seed": i, "sampler": {"name": "k_euler"}}
        (folder / path).with_suffix(".json").write_text(json.dumps(record))
    return folder


def packed_tars(folder: Path, pairs: list[Pair]) -> Path:
    """A folder of pictures and texts, by `tar czf`."""
    for pair, path in zip(pairs, beside(folder, pairs, "mine"), strict=True):
        (folder / path).with_suffix(".txt").write_text(pair.caption)
    shutil.make_archive(str(folder / "it"), "gztar", folder, "mine")
    shutil.rmtree(folder / "mine")
    return folder


def names_without_suffix(folder: Path, pairs: list[Pair]) -> Path:
    """A contest's: pictures in train/, their ids in a table beside."""
    beside(folder, pairs, "train")
    table = frame(pairs, caption="caption")
    table.insert(0, "image_id", [Path(p.name).stem for p in pairs])
    table.to_csv(folder / "train.csv", index=False)
    return folder


def paths_of_another_machine(folder: Path, pairs: list[Pair]) -> Path:
    table = frame(pairs, caption="caption")
    paths = beside(folder, pairs, "images/a")
    table["path"] = [f"/home/someone/data/{path}" for path in paths]
    table.to_parquet(folder / "it.parquet")
    return folder / "it.parquet"


def a_table_in_a_folder_beside(folder: Path, pairs: list[Pair]) -> Path:
    beside(folder, pairs, "images")
    (folder / "labels").mkdir()
    frame(pairs, file="name", caption="caption").to_csv(folder / "labels/train.csv", index=False)
    return folder / "labels" / "train.csv"


def a_zip_beside_its_table(folder: Path, pairs: list[Pair]) -> Path:
    beside(folder, pairs, "packed/images")
    shutil.make_archive(str(folder / "images"), "zip", folder / "packed")
    shutil.rmtree(folder / "packed")
    frame(pairs, image="name", caption="caption").to_csv(folder / "captions.csv", index=False)
    return folder


def llavas_conversations(folder: Path, pairs: list[Pair]) -> list[dict]:
    ask = {"from": "human", "value": "<image>\nDescribe it."}
    return [
        {"id": str(i), "image": path, "conversations": [ask, {"from": "gpt", "value": p.caption}]}
        for i, (p, path) in enumerate(zip(pairs, beside(folder, pairs, "images"), strict=True))
    ]


def llavas_json_lines(folder: Path, pairs: list[Pair]) -> Path:
    rows = llavas_conversations(folder, pairs)
    (folder / "it.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "it.jsonl"


def llavas_parquet(folder: Path, pairs: list[Pair]) -> Path:
    import datasets

    rows = llavas_conversations(folder, pairs)
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "it.parquet"))
    return folder / "it.parquet"


def messages(folder: Path, pairs: list[Pair]) -> Path:
    """What LLaMA-Factory trains from: `messages` and a list of one picture."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "<image>Describe it."},
                {"role": "assistant", "content": pair.caption},
            ],
            "images": [path],
        }
        for pair, path in zip(pairs, beside(folder, pairs, "images"), strict=True)
    ]
    (folder / "it.json").write_text(json.dumps(rows))
    return folder / "it.json"


def pandas_json_of_columns(folder: Path, pairs: list[Pair]) -> Path:
    frame(pairs, url="url", caption="caption").to_json(folder / "it.json")
    return folder / "it.json"


def json_of_two_arrays(folder: Path, pairs: list[Pair]) -> Path:
    """SBU's: an array of links and one of captions."""
    arrays = {"image_urls": [p.url for p in pairs], "captions": [p.caption for p in pairs]}
    (folder / "it.json").write_text(json.dumps(arrays))
    return folder / "it.json"


def pandas_json_array(folder: Path, pairs: list[Pair]) -> Path:
    frame(pairs, url="url", caption="caption").to_json(folder / "it.json", orient="records")
    return folder / "it.json"


def saved_to_disk(folder: Path, pairs: list[Pair]) -> Path:
    """Two splits of a dataset with pictures, a cache of a filter beside."""
    import datasets

    rows = {"image": [{"bytes": p.image, "path": p.name} for p in pairs]}
    rows["caption"] = [p.caption for p in pairs]
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    whole = datasets.Dataset.from_dict(rows, features=features)
    parts = {"train": whole.select(range(20)), "test": whole.select(range(20, len(pairs)))}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "it"), num_shards={"train": 2, "test": 1})
    (cache,) = (folder / "it" / "test").glob("*.arrow")
    cache.with_name("cache-0123456789.arrow").write_bytes(cache.read_bytes())
    return folder / "it"


def polars_ipc(folder: Path, pairs: list[Pair]) -> Path:
    import polars as pl

    table = pl.DataFrame({"link": [p.url for p in pairs], "alt": [p.caption for p in pairs]})
    table.with_columns(shop=pl.lit("a").cast(pl.Categorical)).write_ipc(
        folder / "it.arrow", compression="zstd"
    )
    return folder / "it.arrow"


def pandas_feather(folder: Path, pairs: list[Pair]) -> Path:
    frame(pairs, picture="image", caption="caption").to_feather(folder / "it.feather")
    return folder / "it.feather"


def sqlite(folder: Path, pairs: list[Pair]) -> Path:
    """A table of bytes as an app keeps them, with an index that holds another order."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(folder / "it.db")) as connection, connection:
        connection.execute("CREATE TABLE photos (id INTEGER PRIMARY KEY, body BLOB, title TEXT)")
        rows = [(p.image, p.caption) for p in pairs]
        connection.executemany("INSERT INTO photos (body, title) VALUES (?, ?)", rows)
        connection.execute("CREATE INDEX by_title ON photos (title DESC, body)")
    return folder / "it.db"


def duckdb_file(folder: Path, pairs: list[Pair]) -> Path:
    import duckdb

    shown = frame(pairs, link="url", title="caption")  # noqa: F841  # DuckDB finds it by name
    with duckdb.connect(str(folder / "it.duckdb")) as connection:
        connection.sql("CREATE TABLE pairs AS SELECT * FROM shown")
    return folder / "it.duckdb"


def excel(folder: Path, pairs: list[Pair]) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    book.create_sheet("Sheet2")
    sheet = book.active
    for row in [
        ("sku", "image_link", "alt"),
        *((i, p.url, p.caption) for i, p in enumerate(pairs)),
    ]:
        sheet.append(row)
    book.save(folder / "it.xlsx")
    return folder / "it.xlsx"


def csv_of_base64(folder: Path, pairs: list[Pair]) -> Path:
    table = frame(pairs, caption="caption")
    table["image"] = [base64.b64encode(p.image).decode() for p in pairs]
    table.to_csv(folder / "it.csv", index=False)
    return folder / "it.csv"


def json_lines_of_data_links(folder: Path, pairs: list[Pair]) -> Path:
    """Pictures as a web page holds them, links beside."""
    table = frame(pairs, source_url="url", prompt="caption")
    head = "data:image/jpeg;base64,"
    table["picture"] = [head + base64.encodebytes(p.image).decode() for p in pairs]
    table.to_json(folder / "it.jsonl", orient="records", lines=True)
    return folder / "it.jsonl"


def zipped(writer: Writer) -> Writer:
    """What another writer made, in a zip as a file manager packs it."""

    def write(folder: Path, pairs: list[Pair]) -> Path:
        inside = folder / "packed" / "my data"
        inside.mkdir(parents=True)
        writer(inside, pairs)
        shutil.make_archive(str(folder / "it"), "zip", folder / "packed")
        shutil.rmtree(folder / "packed")
        return folder / "it.zip"

    write.__name__ = f"zip_of_{writer.__name__}"
    return write


LAYOUTS: dict[str, Writer] = {
    writer.__name__: writer
    for writer in (
        *(pandas_csv, pandas_tsv_without_header, pandas_json_lines, pandas_parquet_of_laion),
        *(duckdb_parquet, duckdb_csv, spreadsheet_csv, browsers_list, pictures_and_texts),
        *(datasets_image_folder, metadata_csv, webdataset_tars, img2dataset_tars),
        *(img2dataset_files, img2dataset_parquet, hugging_face, datacomp, bytes_and_vectors),
        *(open_clips_csv, parquet_of_file_links, metadata_of_any_columns, flickrs_captions),
        *(coco, pandas_json_array, saved_to_disk, polars_ipc, pandas_feather, sqlite, duckdb_file),
        *(excel, *map(zipped, (pictures_and_texts, excel, flickrs_captions, open_clips_csv))),
        *(csv_of_base64, json_lines_of_data_links),
        *map(zipped, (sqlite, hugging_face, webdataset_tars)),
        *(flickrs_tokens, captions_in_a_folder_of_their_own, trainers_caption_files),
        *(trainers_metadata, json_files_beside, packed_tars, names_without_suffix, messages),
        *(paths_of_another_machine, a_table_in_a_folder_beside, llavas_json_lines, llavas_parquet),
        *(pandas_json_of_columns, json_of_two_arrays, captions_by_split),
        a_zip_beside_its_table,
    )
}
