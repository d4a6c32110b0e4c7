"""vllm:MODEL: what it asks of a worker. The server itself is tested by tests/vllm."""

import re

import pytest
from packaging.requirements import Requirement

from clipmill.pipeline.errors import ClipmillError, RecipeError
from clipmill.stages.models import gguf, smollm2, vllm
from clipmill.stages.models.endpoint import Limits
from clipmill.stages.models.generator import environments_of
from tests.stages.models.started import Started


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / ".cache").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_on_a_cpu_it_has_the_cpu_build_and_no_key_in_its_command(model, tmp_path):
    started = Started(tmp_path)
    endpoint = vllm.endpoint(str(model), started.worker, Limits())
    assert started.asked == vllm.CPU
    assert started.command[3:6] == [endpoint.url.removeprefix("unix:"), "--model", str(model)]
    assert {"--enable-prefix-caching", "--enforce-eager"} < set(started.command)
    assert "--tensor-parallel-size" not in started.command
    assert started.env["VLLM_API_KEY"] == endpoint.key
    assert started.env["HF_HUB_OFFLINE"] == "1"
    assert started.env["OMP_NUM_THREADS"] == "3"
    assert endpoint.key not in " ".join(started.command)
    assert started.pinned == {f"model {model}": endpoint.identity}


def test_on_gpus_it_has_the_cuda_build_and_all_gpus_of_its_worker(model, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    started = Started(tmp_path, device="cuda")
    vllm.endpoint(str(model), started.worker, Limits())
    assert started.asked == vllm.CUDA
    at = started.command.index("--tensor-parallel-size")
    assert started.command[at + 1] == "2"
    assert "VLLM_CPU_KVCACHE_SPACE" not in started.env


def test_a_name_on_the_hub_is_its_own_identity_and_may_be_fetched(tmp_path):
    started = Started(tmp_path)
    endpoint = vllm.endpoint("maker/model-3B", started.worker, Limits())
    assert endpoint.identity == "maker/model-3B"
    assert "HF_HUB_OFFLINE" not in started.env
    assert started.pinned == {}


def test_the_identity_of_a_folder_is_that_of_its_files(model):
    first = vllm.digest(model)
    (model / ".cache" / "lock").write_text("x")
    assert vllm.digest(model) == first
    (model / "config.json").rename(model / "other.json")
    renamed = vllm.digest(model)
    (model / "other.json").write_text("{ }")
    assert len({first, renamed, vllm.digest(model)}) == 3


def test_a_folder_that_is_not_there_and_no_model_are_errors(tmp_path):
    with pytest.raises(ClipmillError, match="nosuch"):
        vllm.endpoint(str(tmp_path / "nosuch"), Started(tmp_path).worker, Limits())
    with pytest.raises(RecipeError, match="no model is named"):
        environments_of("vllm:")


def test_a_machine_with_a_driver_plans_the_cuda_build(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "DRIVER", tmp_path / "none")
    assert environments_of("vllm:x") == (vllm.CPU,)
    monkeypatch.setattr(vllm, "DRIVER", tmp_path)
    assert environments_of("vllm:x") == (vllm.CUDA,)


@pytest.mark.parametrize(
    "made", [vllm.CPU, vllm.CUDA, *gguf.environments("any.gguf"), *smollm2.environments("")]
)
def test_a_python_of_its_own_is_made_of_known_files_alone(made):
    known = [line.split(" --hash=sha256:") for line in made.requirements]
    assert set(made.packages) <= {requirement for requirement, *_ in known}
    for requirement, *digests in known:
        assert str(Requirement(requirement).specifier).startswith("==")
        assert digests
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_without_a_gpu_torch_is_the_cpu_build_and_nothing_is_of_cuda():
    pinned = dict(line.split()[0].split("==") for line in vllm.CPU.requirements)
    assert pinned["torch"].endswith("+cpu")
    assert {"transformers", "tokenizers", "numba"} < pinned.keys()
    assert not [it for it in pinned if it in vllm.CPU.without or it.startswith("nvidia")]
