"""A worker that notes which Python, which helper and which pins a model asks for."""

from pathlib import Path

from clipmill.pipeline.stage import Environment, Worker


class Started:
    """A worker that notes what is asked of it; nothing is started."""

    def __init__(self, scratch: Path, **more) -> None:
        self.pinned: dict[str, str] = {}
        self.asked: Environment | None = None
        self.command: list[str] = []
        self.env: dict[str, str] = {}
        given = {"seed": 0, "stage": "rewrite", "device": "cpu", "threads": 3, **more}
        self.worker = Worker(
            scratch=scratch,
            pin=self.pinned.__setitem__,
            environment=self._environment,
            start_helper=self._start,
            **given,
        )

    def _environment(self, environment):
        self.asked = environment
        return Path("/other/python")

    def _start(self, command, *, is_healthy, wait_s, env):
        assert not is_healthy()  # nobody listens
        self.command, self.env = list(command), dict(env)
        return self

    def is_alive(self):
        return True
