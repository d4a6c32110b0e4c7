"""deploy/: manifests have the operator's fields, scripts are clean shell, commands are clipmill's.

tests/test_image.py runs the steps of the image; tests/chaos/test_slurm.py the script of Slurm.
"""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import yaml
from lightkube.models.core_v1 import PodTemplateSpec
from lightkube.models.meta_v1 import ObjectMeta
from packaging.requirements import Requirement

from clipmill.pipeline.cli import _parser

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


class Fields(msgspec.Struct, forbid_unknown_fields=True):
    """Fields of KubeRay's types, those that our manifests may use.

    Source: ray-operator/apis/ray/v1 of KubeRay 1.6, as of August 2026.
    """


class Auth(Fields):
    mode: Literal["disabled", "token"]


class Autoscaler(Fields):
    idleTimeoutSeconds: int
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None


class HeadGroup(Fields):
    rayStartParams: dict[str, str]
    template: PodTemplateSpec


class WorkerGroup(HeadGroup):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class Cluster(Fields):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: bool
    autoscalerOptions: Autoscaler
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class Job(Fields):
    entrypoint: str
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: Cluster


class RayCluster(Fields, tag_field="kind"):
    apiVersion: Literal["ray.io/v1"]
    metadata: ObjectMeta
    spec: Cluster


class RayJob(Fields, tag_field="kind"):
    apiVersion: Literal["ray.io/v1"]
    metadata: ObjectMeta
    spec: Job


def manifest(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def known(value: Any) -> Any:
    """The fields of a manifest that the operator or Kubernetes knows; raises on a wrong type.

    Kubernetes' types drop unknown fields of a pod without a word.
    """
    typed = msgspec.convert(value, RayCluster | RayJob)
    return without_nulls(msgspec.to_builtins(typed))


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(it) for name, it in value.items() if it is not None}
    return [without_nulls(it) for it in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_a_manifest_has_fields_that_the_operator_and_kubernetes_know(name):
    assert known(manifest(name)) == manifest(name)


def test_a_wrong_field_or_value_is_found_wherever_it_stands():
    right = manifest("rayjob.yaml")

    def changed(*path: str | int, value: Any) -> Any:
        found = copy.deepcopy(right)
        below = found["spec"]
        for step in path[:-1]:
            below = below[step]
        below[path[-1]] = value
        return found

    group = ("rayClusterSpec", "workerGroupSpecs", 1)
    pod = changed(*group, "template", "spec", "containers", 0, "resource", value={})
    assert known(pod) == right != pod
    for wrong in (
        changed("backofLimit", value=3),
        changed("rayClusterSpec", "authOptions", "mode", value="tokens"),
        changed("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus", value=0),
        changed(*group, "template", "spec", "containers", 0, "image", value=["clipmill"]),
        changed(*group, "replicas", value="0"),
    ):
        with pytest.raises(msgspec.ValidationError):
            known(wrong)


def test_the_job_makes_the_cluster_of_the_other_manifest():
    job, cluster = manifest("rayjob.yaml")["spec"], manifest("raycluster.yaml")["spec"]
    assert job["rayClusterSpec"] == cluster
    assert job["backoffLimit"] > 0  # a lost head is tried again, and goes on
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    limits = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name, group in groups.items()
    }
    assert limits["gpu"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits["cpu"]
    assert groups["gpu"]["minReplicas"] == 0  # no GPU waits for a stage that needs none


def test_the_cluster_asks_for_a_ray_that_clipmill_takes():
    extras = (ROOT / "pyproject.toml").read_text("utf-8")
    (ours,) = re.findall(r'^ray = \["(.*?)"\]', extras, re.MULTILINE)
    named = manifest("raycluster.yaml")["spec"]["rayVersion"]
    assert Requirement(ours).specifier.contains(named)


def test_commands_of_the_manifests_and_scripts_are_clipmills():
    texts = [manifest("rayjob.yaml")["spec"]["entrypoint"]]
    texts += re.findall(r"^clipmill .*?(?= &$)", (DEPLOY / "slurm.sh").read_text(), re.MULTILINE)
    assert len(texts) == 2
    for text in texts:
        words = shlex.split(text.replace('"$@"', "mine.yaml --out run"))
        options = _parser().parse_args(words[1:])
        assert (words[0], options.verb) == ("clipmill", "run")
        assert options.executor == "ray"


def test_scripts_are_clean_shell():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    scripts = [*DEPLOY.glob("*.sh"), ROOT / ".ci" / "run"]
    checked = subprocess.run(
        [shellcheck, "--severity=style", *scripts], stdout=subprocess.PIPE, text=True
    )
    assert checked.stdout == ""
    assert checked.returncode == 0
