"""A cluster of another Ray or Python: named with both, and what to do."""

import platform

import pytest
from ray._private.utils import check_version_info

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors import ray_session


@pytest.mark.parametrize(
    ("ray", "python", "there"),
    [("2.52.0", None, "Ray 2.52.0 and Python"), (None, "3.9.4", "and Python 3.9.4")],
)
def test_a_cluster_of_another_version_is_named_with_both(ray, python, there, monkeypatch):
    def init(**_):
        mine = {
            "ray_version": ray_session.ray.__version__,
            "python_version": platform.python_version(),
        }
        other = {"ray_version": ray, "python_version": python}
        check_version_info(mine | {k: v for k, v in other.items() if v}, "it")

    monkeypatch.setattr(ray_session, "_check_grpc", lambda _: None)
    monkeypatch.setattr(ray_session.ray, "init", init)
    with pytest.raises(RecipeError) as error:
        ray_session._init("10.0.0.1:6379", {})
    found, where, do = error.value.args
    assert there in found
    assert f"here is Ray {ray_session.ray.__version__} and Python 3." in found
    assert where == "--address 10.0.0.1:6379"
    assert "clipmill submit" in do
