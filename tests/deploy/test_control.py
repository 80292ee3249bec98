"""Orders to a pipeline, by a real desk that is frozen, killed and lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import ray

from buffer.errors import SsdkdError
from deploy import control as module
from deploy.control import NAME, Control, Order, ask, main, namespace
from tests.waiting import until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        namespace=namespace("x"),
    )
    yield
    ray.shutdown()


@pytest.fixture
def control() -> Iterator[Control]:
    control = Control("x")
    control.exchange({"phase": "filling"}, lambda order: None)
    yield control
    ray.kill(control._desk)
    until(lambda: not there())


def there() -> bool:
    try:
        ray.get_actor(NAME)
    except ValueError:
        return False
    return True


@pytest.fixture
def asking() -> Iterator[Callable[..., Future[dict[str, Any]]]]:
    with ThreadPoolExecutor() as pool:
        yield lambda *order: pool.submit(ask, "x", *order)


class Pipeline(threading.Thread):
    """Looks in until it ends; what it carried out."""

    def __init__(self, control: Control, refusal: str | None = None) -> None:
        super().__init__()
        self.carried_out: list[Order] = []
        self._control, self._refusal, self._ended = control, refusal, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self._control.exchange({"phase": "distilling"}, self._obey)

    def _obey(self, order: Order) -> str | None:
        self.carried_out.append(order)
        return self._refusal

    def __enter__(self) -> Pipeline:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self.join()


def test_an_order_is_carried_out_once_and_confirmed(control: Control) -> None:
    with Pipeline(control) as pipeline:
        assert ask("x", "scale", 3) == {}
        assert ask("x", "stop") == {}
        assert ask("x", "status") == {"phase": "distilling"}
        time.sleep(0.5)
    assert [order[1:] for order in pipeline.carried_out] == [("scale", 3), ("stop", 0)]


def test_a_refusal_reaches_who_gave_the_order(control: Control) -> None:
    with (
        Pipeline(control, "synthesizer.max_actors (2): too many") as pipeline,
        pytest.raises(SsdkdError, match=r"synthesizer\.max_actors \(2\): too many"),
    ):
        ask("x", "scale", 3)
    assert len(pipeline.carried_out) == 1


def pid_of_desk(control: Control) -> int:
    return int(ray.get(control._desk.__ray_call__.remote(lambda desk: os.getpid())))


def test_an_order_outlives_an_exchange_that_was_not_answered(
    control: Control,
    asking: Callable[..., Future[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EXCHANGE_SECONDS", 0.5)
    pid = pid_of_desk(control)
    answered = asking("stop")
    until(lambda: ray.get(control._desk.exchange.remote({})))
    os.kill(pid, signal.SIGSTOP)
    seen: list[Order] = []
    try:
        control.exchange({}, lambda order: seen.append(order))
        assert seen == []
    finally:
        os.kill(pid, signal.SIGCONT)
    with Pipeline(control) as pipeline:
        assert answered.result(30) == {}
    assert len(pipeline.carried_out) == 1


def test_an_order_outlives_its_desk_and_is_still_carried_out_once(
    control: Control, asking: Callable[..., Future[dict[str, Any]]]
) -> None:
    def kill() -> None:
        os.kill(pid_of_desk(control), signal.SIGKILL)

    seen: list[Order] = []

    def obey(order: Order) -> None:
        seen.append(order)
        kill()  # before the answer is there

    answered = asking("scale", 2)
    until(lambda: ray.get(control._desk.exchange.remote({})))
    kill()
    until(lambda: control.exchange({}, obey) or seen)
    with Pipeline(control) as pipeline:
        assert answered.result(30) == {}
    assert len(seen) == 1
    assert pipeline.carried_out == []


def test_an_order_that_nobody_confirms_is_said_to_be_so(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    with pytest.raises(SsdkdError, match=r"run\.name \(x\): .*not confirmed the order within"):
        ask("x", "stop")


def test_a_pipeline_that_ends_before_it_confirms_is_said_to_have_ended(
    control: Control, asking: Callable[..., Future[dict[str, Any]]]
) -> None:
    answered = asking("stop")
    until(lambda: ray.get(control._desk.exchange.remote({})))
    ray.kill(control._desk)
    with pytest.raises(SsdkdError, match="has ended, and had not confirmed the order"):
        answered.result(30)


def test_a_second_pipeline_of_a_name_is_refused(control: Control) -> None:
    with pytest.raises(
        SsdkdError, match=r"run\.name \(x\): another pipeline of this name"
    ) as error:
        Control("x")
    assert len(str(error.value).splitlines()) == 1


def test_without_a_pipeline_orders_are_refused_and_it_is_starting() -> None:
    assert ask("x", "status") == {"phase": "starting"}
    with pytest.raises(SsdkdError, match=r"run\.name \(x\): no pipeline of this name"):
        ask("x", "stop")


@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_a_number_that_cannot_be_is_refused(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["x", "scale", number])
    assert number in capsys.readouterr().err
