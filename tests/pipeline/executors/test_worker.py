"""What a worker holds: the functions of steps in use, and nothing of others."""

from clipmill.pipeline.executors.worker import Functions


class Server:
    """A function that holds itself, as a client of a server does: only `close` ends it."""

    def __init__(self, running: list[str], name: str) -> None:
        self.itself = self
        self.running, self.name = running, name
        running.append(name)

    def __call__(self, item: int) -> int:
        return item + 1

    def close(self) -> None:
        self.running.remove(self.name)


def test_a_step_that_is_over_is_closed_before_the_next_one_starts():
    functions, running, seen = Functions(), [], []

    def start(name: str) -> Server:
        seen.append(list(running))
        return Server(running, name)

    functions.start("one", lambda: start("one"), used=["one"])
    functions.start("two", lambda: start("two"), used=["one", "two"])
    assert functions.run("one", 1) == 2
    functions.start("three", lambda: start("three"), used=["two", "three"])
    assert seen == [[], ["one"], ["two"]]
    assert functions.run("two", 1) == functions.run("three", 1) == 2


def test_a_function_without_close_is_dropped():
    functions = Functions()
    functions.start("one", lambda: lambda item: item + 1, used=["one"])
    functions.start("two", lambda: lambda item: item + 2, used=["two"])
    assert functions.run("two", 1) == 3
