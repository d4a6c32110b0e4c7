"""Every layout that people have, as their tools write it: from `curate` to what others read.

Each has 26 rows: 24 good pairs, a copy of one of them, and a pair whose caption is a file's name.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.pipeline.own_data.written import LAYOUTS, pictures_and_texts


def curated(clipmill, data: Path, out: Path, *more: object):
    forms = ("parquet", "webdataset", "huggingface")
    said = clipmill("curate", data, "--out", out, "--to", *forms, "--workers", 0, *more)
    assert said.code == 0, said.out + said.err
    return said


def exported(out: Path, form: str) -> Path:
    (folder,) = out.glob(f"stages/{form}-*/out")
    return folder


def by_open_clip(folder: Path) -> list[str]:
    """The captions that open_clip's loader reads beside a picture."""
    import torch
    from open_clip_train.data import get_wds_dataset

    (tar,) = folder.glob("*.tar")
    asked = SimpleNamespace(val_data=str(tar), val_num_samples=100, batch_size=7, workers=0)

    def numbered(text: str) -> torch.Tensor:
        return torch.tensor([list(text.encode().ljust(77, b"\0")[:77])])

    def pixels(image) -> torch.Tensor:
        return torch.tensor(np.asarray(image.resize((8, 8))))

    loader = get_wds_dataset(asked, pixels, is_train=False, tokenizer=numbered).dataloader
    texts = []
    for images, codes in loader:
        assert images.shape[1:] == (8, 8, 3)
        texts += [bytes(code.tolist()).rstrip(b"\0").decode() for code in codes]
    return sorted(texts)


def by_datasets(folder: Path, builder: str, files: str, cache: Path) -> list[dict]:
    import datasets

    found = [str(path) for path in sorted(folder.glob(files))]
    return list(datasets.load_dataset(builder, data_files=found, cache_dir=cache, split="train"))


def uids_of(out: Path) -> np.ndarray:
    """The ids of METHODS 2.4: 128 bits as two halves, sorted."""
    uids = np.load(exported(out, "uids") / "uids.npy")
    assert uids.dtype == np.dtype("u8,u8")
    assert (np.sort(uids, order=["f0", "f1"]) == uids).all()
    return uids


def checked(out: Path, tmp_path: Path) -> list[str]:
    """The captions of the rows that stay, as each loader reads them."""
    tars = exported(out, "webdataset")
    texts = by_open_clip(tars)
    rows = by_datasets(tars, "webdataset", "*.tar", tmp_path / "cache")
    assert sorted(row["txt"] for row in rows) == texts
    assert all(row["jpg"].size[0] > 90 for row in rows)
    rows = by_datasets(exported(out, "parquet"), "parquet", "*.parquet", tmp_path / "cache")
    assert sorted(row["caption"] for row in rows) == texts
    rows = by_datasets(
        exported(out, "huggingface"), "parquet", "data/*.parquet", tmp_path / "cache"
    )
    assert sorted(row["caption"] for row in rows) == texts
    assert all(row["image"].size[0] > 90 for row in rows)
    assert len(uids_of(out)) == len(texts)
    return texts


@pytest.mark.drawn(cases=2, cpu_s=4)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_goes_to_exports_that_other_loaders_read(layout, pairs, kept, clipmill, tmp_path):
    folder, out = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    data = LAYOUTS[layout](folder, pairs)
    said = clipmill("init", data, "--out", tmp_path / "mine.yaml")
    assert said.code == 0, said.err
    fetches = "uses: download.images" in (tmp_path / "mine.yaml").read_text()
    curated(clipmill, data, out, *(["--set", ALLOW] if fetches else []))
    texts = checked(out, tmp_path)
    if layout == "browsers_list":  # no caption, so none of a file's name
        assert texts == [""] * (len(kept) + 2)
    else:
        assert len(texts) == len(kept) + 1  # one of the two equal pictures
        assert set(kept) <= set(texts)


ALLOW = "images.allow_private_addresses=true"


@pytest.mark.drawn(cpu_s=6)
@pytest.mark.parametrize("form", ["parquet", "webdataset", "huggingface"])
def test_an_export_of_ours_is_data_too(form, pairs, kept, clipmill, tmp_path):
    (tmp_path / "data").mkdir()
    curated(clipmill, pictures_and_texts(tmp_path / "data", pairs), tmp_path / "first")
    first = exported(tmp_path / "first", form)
    said = curated(clipmill, first, tmp_path / "second")
    assert re.search(r"is +.*clipmill's export, 24 rows", said.out)
    assert set(kept) <= set(checked(tmp_path / "second", tmp_path))
    assert (uids_of(tmp_path / "first") == uids_of(tmp_path / "second")).all()
