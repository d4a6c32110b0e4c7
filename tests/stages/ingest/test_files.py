"""What every ingest stage says of its pool's files, by which a run folder knows its pool."""

import pytest

from clipmill.stages.ingest.datacomp import DataComp
from clipmill.stages.ingest.image_folder import ImageFolder
from clipmill.stages.ingest.url_list import UrlList
from clipmill.stages.ingest.webdataset import WebDataset


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (UrlList, {"a.parquet", "b/c.tsv"}),
        (DataComp, {"a.parquet"}),
        (WebDataset, {"b/d.tar"}),
        (ImageFolder, {"b/e.jpg"}),
    ],
)
def test_the_files_that_a_root_reads_are_listed_by_name_and_size(stage, names, tmp_path):
    (tmp_path / "b").mkdir()
    for size, name in enumerate(("a.parquet", "b/c.tsv", "b/d.tar", "b/e.jpg", "b/.f.jpg")):
        (tmp_path / name).write_bytes(b"x" * size)
    files = stage(path=str(tmp_path)).files()
    assert files == {name: (tmp_path / name).stat().st_size for name in names}


def test_a_link_to_a_folder_above_brings_no_file_again(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("a/0.tar", "other/1.tar"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "there").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "a")
    assert [*WebDataset(path=str(tmp_path / "a")).files()] == ["0.tar", "there/1.tar"]
