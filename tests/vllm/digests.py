"""Writes beside each version in vLLM's files the digests of all wheels that may be installed.

    python -m tests.vllm.digests stages/models/vllm*.txt

`uv` asks the index; nothing is resolved or installed. Wheels are those for Linux on x86_64 and
aarch64 and our Pythons; no source is among them, so no code runs while a Python is made. A line
of a build that the index lacks (`+cpu`) stays as it is.
"""

import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

PYTHONS = ((3, 11), (3, 12), (3, 13))
PLATFORMS = [
    f"{name}_{machine}"
    for machine in ("x86_64", "aarch64")
    for name in ("linux", "manylinux1", "manylinux2010", "manylinux2014")
] + [
    f"manylinux_2_{glibc}_{machine}" for glibc in range(5, 40) for machine in ("x86_64", "aarch64")
]
TAGS = {
    tag
    for python in PYTHONS
    for tag in itertools.chain(
        cpython_tags(python, platforms=PLATFORMS),
        compatible_tags(python, f"cp{python[0]}{python[1]}", PLATFORMS),
    )
}


def digests_of(requirements: list[str]) -> dict[str, list[str]]:
    """Returns the digests of each package's wheels for our machines, by its name."""
    command = "uv pip compile --no-config --no-deps --universal --python-version 3.11 --quiet"
    done = subprocess.run(
        [*command.split(), "--format", "pylock.toml", "-"],
        input="\n".join(requirements),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found = {}
    for package in tomllib.loads(done.stdout)["packages"]:
        wheels = {
            wheel["url"].rpartition("/")[2]: wheel["hashes"]["sha256"]
            for wheel in package.get("wheels", ())
        }
        found[package["name"]] = sorted(
            digest for name, digest in wheels.items() if parse_wheel_filename(name)[3] & TAGS
        )
    return found


def main(files: list[Path]) -> None:
    for file in files:
        lines = file.read_text("utf-8").splitlines()
        kept = [line for line in lines if line[:1] == "#" or "+" in line.partition(" ")[0]]
        asked = [line.partition(" --hash")[0] for line in lines if line not in kept]
        found = digests_of(asked)
        for requirement in asked:
            digests = found[canonicalize_name(Requirement(requirement).name)]
            assert digests, f"{requirement} has no wheel"
            kept.append(" ".join([requirement, *(f"--hash=sha256:{one}" for one in digests)]))
        kept.sort(key=lambda line: (line[:1] != "#", line.lower() if line[:1] != "#" else ""))
        file.write_text("\n".join(kept) + "\n", "utf-8")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
