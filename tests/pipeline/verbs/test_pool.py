"""`clipmill pool`: what it needs to be installed."""

import sys

import pytest


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generated", "--out", "it", "--workers", "-2"), "--workers -2"),
        (("generated", "--out", "it", "--port", "0"), "give 1 to 65535"),
        (("docs", "--out", "it", "--port", "65536"), "give 1 to 65535"),
        (("serve", "it", "--port", "65536"), "give 0 to 65535"),
    ],
)
def test_workers_and_ports_that_there_are_not_are_refused(arguments, words, clipmill):
    ended = clipmill("pool", *arguments)
    assert ended.code == 2
    assert words in ended.err
