"""deploy/Dockerfile, step by step in a folder: all of clipmill is in the image, and works there.

The steps are read from the file. Packages and users of Debian are left out: they would change
this machine.
"""

import os
import re
import subprocess
import venv
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.soak(cpu_s=130)
@pytest.mark.timeout(1800)
def test_the_steps_of_the_images_bring_all_of_clipmill_and_a_place_for_own_stages(tmp_path):
    """Each stage has a folder as its root; one that is built on another goes on in its folder."""
    roots: dict[str, Path] = {}
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    for step, said in re.findall(r"^([A-Z]+) (.+)$", text, re.MULTILINE):
        if step == "FROM":
            base, _, name = said.partition(" AS ")
            root = roots[name] = roots.get(base, tmp_path / name)
            if base not in roots:
                assert base.startswith("python:3.")
                venv.create(root / "python", with_pip=True)
                own = {"PATH": f"{root}/python/bin:{os.environ['PATH']}", "PYTHONPATH": ""}
                env = {**os.environ, **own, "PIP_NO_COMPILE": "1"}  # few modules are imported here
                sh = partial(
                    subprocess.run, shell=True, check=True, text=True, stdout=subprocess.PIPE
                )
                sh.keywords["env"] = env
            continue
        here = re.sub(r"(?<![^\s=\"])/", f"{root}/", said)  # its root is our folder
        if step == "COPY":
            if said.startswith("--from="):
                source, path, to = said.removeprefix("--from=").split()
                here = f"{roots[source]}{path} {root}{to}"
            folder = here.split()[-1].rpartition("/")[0]
            sh(f"mkdir -p {folder} && cp -r {here}", cwd=ROOT)
        elif step == "ENV":
            env |= dict(pair.split("=", 1) for pair in here.split())
        elif step == "WORKDIR":
            Path(here).mkdir()
            sh.keywords["cwd"] = here
        elif step == "RUN" and not said.startswith(("apt-get ", "useradd ")):
            sh(here.replace("--no-cache-dir", ""))  # which makes a layer small
        else:
            assert step in ("ARG", "RUN", "USER"), f"{step} is not known here"
    assert text.rstrip().endswith("USER 1000")  # not root
    assert roots["cpu"] == roots["cuda"] != roots["wheel"]
    assert sh("python -c 'import open_clip'").returncode == 0  # of `gpu`

    files = sh("git ls-files metadata pipeline stages", cwd=ROOT).stdout.split()
    installed = sh("python -c 'import clipmill; print(clipmill.__file__)'").stdout.strip()
    assert len(files) > 300
    assert [file for file in files if not (Path(installed).parent / file).is_file()] == []
    assert installed.startswith(str(root))
    assert sh("clipmill --version").stdout.startswith("clipmill ")
    assert "ok    ray jobs" in sh("clipmill doctor").stdout  # what KubeRay's probes ask for
    sh(f"cp -r {ROOT}/tests/own_stages/stages {root}/stages")
    assert "Each text of `said`" in sh("clipmill stages probe.says").stdout
