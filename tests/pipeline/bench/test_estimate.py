"""What a bench will cost: the pictures of its tasks."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.bench.estimate import pictures


def test_pictures_are_those_of_tars_and_of_parquet_files(tmp_path):
    for task in ("tars", "tables"):
        (tmp_path / task / "test").mkdir(parents=True)
    with tarfile.open(tmp_path / "tars" / "test" / "0.tar", "w") as tar:
        for name in ("./", "./a.png", "./a.cls", "./b.png", "./b.cls"):  # as `tar cf 0.tar .` does
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name == "./" else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO())
    (tmp_path / "tars" / "test" / "1.tar").touch()
    table = pa.table({"image": [b""] * 3, "caption": ["a"] * 3})
    pq.write_table(table, tmp_path / "tables" / "test" / "test.parquet")
    assert pictures(str(tmp_path)) == {"tars": 2 * 2, "tables": 3}
