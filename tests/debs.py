"""Debian packages made of files, as `apt-get download` leaves them."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

CONTROL = (
    "Package: {}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.example>\nDescription: d\n"
)


def write_deb(
    cache: Path, name: str, files: Mapping[str, bytes | str], links: Mapping[str, str] | None = None
) -> None:
    """Writes the package into the cache, its files below usr; hard links by their targets."""
    root = cache / "roots" / name
    for path, data in {"../DEBIAN/control": CONTROL.format(name), **files}.items():
        file = root / "usr" / path
        (root / "usr").mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
    for path, target in (links or {}).items():
        (root / "usr" / path).hardlink_to(root / "usr" / target)
    deb = cache / f"{name}_1_all.deb"
    subprocess.run(["dpkg-deb", "-Znone", "-b", root, deb], check=True, capture_output=True)
