"""Work in parts: one that fails ends no other, unless the others would fail alike."""

import pytest

from qinco.errors import DataError, ResourceError
from qinco.executors import run_parts
from qinco.progress import silent

PARTS = [range(10 * number, 10 * number + 10) for number in range(40)]
FULL = OSError(28, "No space left on device")


class Run:
    """An executor whose parts fail by given errors, and what it has done."""

    def __init__(self, error_of):
        self.error_of, self.asked, self.closed = error_of, [], False
        self.raised: Exception | None = None

    def __call__(self, function, numbers):
        try:
            for number in numbers:
                self.asked.append(number)
                yield number, None, self.error_of(number)
        finally:
            self.closed = True


def run(error_of, missing=range(40)) -> Run:
    executor = Run(error_of)
    with pytest.raises((DataError, ResourceError)) as caught:
        run_parts(executor, print, list(missing), PARTS, "encoding", silent)
    assert executor.closed
    executor.raised = caught.value
    return executor


@pytest.mark.parametrize("error", [FULL, ResourceError("cannot write codes"), FileNotFoundError("codes")])
def test_work_that_cannot_be_kept_ends_early(error):
    done = run(lambda number: error)
    assert isinstance(done.raised, ResourceError) and str(error) in str(done.raised)
    assert len(done.asked) == 8


def test_a_disk_that_fills_ends_the_rest():
    done = run(lambda number: FULL if number >= 20 else None)
    assert isinstance(done.raised, ResourceError) and len(done.asked) == 28


def test_vectors_that_cannot_be_encoded_end_no_others():
    done = run(lambda number: DataError("row holds NaN") if number < 30 else None)
    assert isinstance(done.raised, DataError) and done.asked == list(range(40))
    assert "30 of 40" in str(done.raised) and "vectors 290" not in str(done.raised)


def test_a_machine_among_others_that_fails_ends_no_others():
    done = run(lambda number: FULL if number % 2 else None)
    assert isinstance(done.raised, ResourceError) and len(done.asked) == 40
    assert isinstance(run(lambda number: FULL if number % 2 else DataError("NaN")).raised, DataError)


def test_few_parts_are_all_named():
    done = run(lambda number: FULL, range(3))
    assert (
        isinstance(done.raised, ResourceError)
        and "3 of 3" in str(done.raised)
        and "vectors 20 to 29" in str(done.raised)
    )


def test_what_is_lost_otherwise_ends_no_others():
    assert len(run(lambda number: RuntimeError("lost")).asked) == 40
