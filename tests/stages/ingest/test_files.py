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
