"""Finding the guilty in a batch, with actions that fail for chosen items."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import RuntimeUnavailable
from service.worker.isolation import is_fatal, isolate


class Batch:
    """An action that doubles numbers, raises for the `guilty`, and counts its calls."""

    def __init__(self, guilty: set[int], error: Exception | None = None) -> None:
        self.guilty = guilty
        self.error = error or ValueError("guilty")
        self.calls = 0

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls += 1
        if self.guilty & set(items):
            raise self.error
        return [2 * item for item in items]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 200))
def test_only_the_guilty_are_given_up_for_two_calls_a_halving(data: st.DataObject, count: int) -> None:
    guilty = data.draw(st.sets(st.integers(0, max(0, count - 1)), max_size=5)) & set(range(count))
    action, given_up = Batch(guilty), set[int]()
    parts = isolate(action, range(count), lambda _: True, lambda item, error: given_up.add(item))
    assert given_up == guilty
    assert [number for part in parts for number in part] == [2 * k for k in range(count) if k not in guilty]
    assert action.calls <= 1 + 2 * math.ceil(math.log2(max(count, 1))) * len(guilty)


def test_companions_of_what_was_given_up_are_not_tried_any_more() -> None:
    action, gone = Batch({0, 1, 2, 3}), set[int]()
    family = dict.fromkeys(range(8), 0) | dict.fromkeys(range(8, 10), 1)
    parts = isolate(
        action, range(10), lambda item: family[item] not in gone, lambda item, _: gone.add(family[item])
    )
    assert gone == {0}
    assert [number for part in parts for number in part] == [16, 18]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: unspecified launch failure"),
        MemoryError(),
        # As onnxruntime and TensorRT say it.
        RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h"),
        RuntimeError("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0"),
        RuntimeUnavailable(
            "TensorRT cannot run the plan of step: Error Code 1: Cuda Runtime (an illegal memory access)"
        ),
    ],
)
def test_what_ends_the_process_goes_up_from_the_first_call(error: Exception) -> None:
    action = Batch({1}, error)
    assert is_fatal(error)
    with pytest.raises(type(error)):
        isolate(action, range(8), lambda _: True, lambda item, error: pytest.fail("nobody is to blame"))
    assert action.calls == 1


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=h",
    ],
)
def test_a_lack_of_memory_leaves_the_context_usable(text: str) -> None:
    assert not is_fatal(RuntimeError(text))
