"""What a worker holds: the functions of steps in use, and nothing of others."""

import weakref

from clipmill.pipeline.executors.worker import Functions


class Circle:
    """A function that holds itself, as whatever has callbacks does."""

    def __init__(self) -> None:
        self.itself = self

    def __call__(self, item: int) -> int:
        return item + 1


def test_what_a_step_held_is_gone_before_the_next_one_loads_its_own():
    functions, made = Functions(), []

    def start() -> Circle:
        circle = Circle()
        made.append(weakref.ref(circle))
        return circle

    functions.start("one", start, used=["one"])
    functions.start("two", start, used=["one", "two"])
    assert functions.run("one", 1) == 2
    assert made[0]() is not None

    def start_and_look() -> Circle:
        assert made[0]() is None
        assert made[1]() is not None
        return start()

    functions.start("three", start_and_look, used=["two", "three"])
    assert functions.run("two", 1) == functions.run("three", 1) == 2
