"""sample_index: dense from 0 over an export in the order of its files, whatever the format."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.stages.export.huggingface import HuggingFace
from clipmill.stages.export.parquet import Parquet
from clipmill.stages.export.pixels import Pixels
from clipmill.stages.export.webdataset import WebDataset

SMALL = {"rows_per_shard": 30}


def numbers(folder: Path) -> list[int]:
    out = folder / "out"
    files = json.loads((out / "dataset.json").read_text())["files"]
    found = []
    for file in files:
        if file["file"].endswith(".tar"):
            with tarfile.open(out / file["file"]) as tar:
                told = [tar.extractfile(m).read() for m in tar if m.name.endswith(".json")]
            found += [json.load(io.BytesIO(one))["sample_index"] for one in told]
        else:
            found += pq.read_table(out / file["file"])["sample_index"].to_pylist()
    assert len(files) > 1
    return found


@pytest.mark.parametrize("stage", [Parquet(**SMALL), HuggingFace(**SMALL), WebDataset(**SMALL)])
def test_it_counts_the_samples_in_the_order_of_the_files(stage, made):
    found = numbers(made(stage))
    assert found == list(range(len(found)))
    assert len(found) > 100


def test_an_export_of_an_export_numbers_anew_and_pixels_keep_the_numbers(made):
    first = made(Parquet(**SMALL))
    again = numbers(made(Parquet(**SMALL), data=first))
    assert again == list(range(len(numbers(first))))
    pixels = made(Pixels(image_size=8), data=first)
    assert numbers(pixels) == numbers(first)
