"""`clipmill pool`: what it needs to be installed."""

import sys


def test_a_pool_without_its_drawing_library_says_what_to_install(tmp_path, monkeypatch, clipmill):
    monkeypatch.setitem(sys.modules, "resvg_py", None)  # as where it is not installed
    ended = clipmill("pool", "generated", "--out", tmp_path / "pool")
    assert ended.code == 2
    assert "pip install 'clipmill[pool]'" in ended.err
    assert not (tmp_path / "pool").exists()


def test_a_built_pool_says_its_rows_and_how_to_serve_it(tmp_path, monkeypatch, clipmill):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # built, then found
        said = clipmill("pool", "generated", "--out", "it", "--rows", 40, "--port", 9000)
        assert said.code == 0
        assert said.out.startswith("it: 40 rows in it/metadata, ")
        assert said.out.endswith("\nnext: clipmill pool serve it\n")
