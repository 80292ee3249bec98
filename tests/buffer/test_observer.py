from buffer.observer import UNOBSERVED


def test_a_client_that_nobody_watches_makes_its_calls_itself() -> None:
    def call() -> int:
        return 1

    assert UNOBSERVED.timed("sample", call) is call
    UNOBSERVED.moved("in", [b"payload"])
