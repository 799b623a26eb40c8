"""`StepTests`: what every step must do."""

from __future__ import annotations

import json
import pickle
from typing import Any

import cloudpickle
import pyarrow as pa
import pytest
from dask.base import tokenize

from curator_dask import backend
from curator_dask.frames.columns import embedding_columns, vectors_in, with_columns
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.runs.step import Step, check_step, meta_with, types_of


class StepTests:
    """The contract of `curator_dask.runs.step.Step`; a subclass gives the fixtures `step` and `frame`."""

    @pytest.fixture
    def step(self) -> Step:
        """The step, made anew."""
        raise pytest.UsageError(f"{type(self).__name__} must have a fixture 'step'")

    @pytest.fixture
    def frame(self) -> Any:
        """Some rows for it, pandas or cuDF, two at least; they find their images where it needs these."""
        raise pytest.UsageError(f"{type(self).__name__} must have a fixture 'frame'")

    def test_it_is_a_step(self, step: Step) -> None:
        """It has all that a step has, of the right types."""
        assert check_step(step) is step

    def test_it_makes_the_columns_that_it_promises(self, step: Step, frame: Any) -> None:
        """With their types, as the last, and ``image_error`` as the very last."""
        made = step(frame)
        names = list(made.columns)
        empty = meta_with(frame.iloc[:0], [step])
        expected = list(empty.columns)
        assert names == expected, f"expected the columns {expected}, found {names}"
        for name in step.columns:
            kind, found = (types_of(each).field(name).type for each in (empty, made))
            assert found == kind or pa.types.is_null(found), f"{name}: expected {kind}, found {found}"

    def test_rows_stay_in_place(self, step: Step, frame: Any) -> None:
        """No row is lost, doubled or moved, and no other column changes, if it says that it keeps rows."""
        if not step.keeps_rows:
            pytest.skip("this step may leave rows out")
        before, after = backend.frame_to_arrow(frame), backend.frame_to_arrow(step(frame))
        kept = [name for name in before.column_names if name not in step.columns]
        assert after.select(kept).equals(before.select(kept))

    def test_each_row_gets_its_own(self, step: Step, frame: Any) -> None:
        """What a row gets does not depend on its neighbours, nor on their order."""
        columns = [name for name in step.columns if name != ERROR_COLUMN]

        def made_of(rows: list[int]) -> list[dict[str, Any]]:
            made = step(frame.iloc[rows].reset_index(drop=True))
            values: list[dict[str, Any]] = backend.frame_to_arrow(made).select(columns).to_pylist()
            return values

        numbers = list(range(len(frame)))
        together = made_of(numbers)
        if not step.keeps_rows:
            assert sorted(map(str, together)) == sorted(map(str, made_of(numbers[::-1])))
            return
        for number, row in zip(numbers, together, strict=True):
            (alone,) = made_of([number])
            for name, value in row.items():
                assert _near(alone[name], value), f"row {number} alone has another {name}"

    def test_no_rows(self, step: Step, frame: Any) -> None:
        """An empty partition gives the same columns."""
        assert list(step(frame.iloc[:0]).columns) == list(step(frame).columns)

    def test_rows_without_vectors(self, step: Step, frame: Any) -> None:
        """A partition in which every image has failed gives the same columns."""
        if "vectors" not in step.needs:
            pytest.skip("this step needs no vectors")
        nulls = pa.nulls(len(frame), pa.list_(pa.float32()))
        lacking = with_columns(frame, dict.fromkeys(embedding_columns(frame), nulls))
        assert {*step(lacking).columns} == {*step(frame).columns}

    def test_the_rows_that_were_given_stay_as_they_were(self, step: Step, frame: Any) -> None:
        """The frame that it is called with is not changed."""
        before = backend.frame_to_arrow(frame)
        step(frame)
        assert backend.frame_to_arrow(frame).equals(before)

    def test_it_travels(self, step: Step, frame: Any) -> None:
        """A pickled copy makes the same, and is small: it holds settings, not models."""
        packed = cloudpickle.dumps(step)
        assert len(packed) < 1_000_000, f"{len(packed)} bytes: models are loaded on the worker"
        copy = pickle.loads(packed)
        assert tokenize(copy.recipe) == tokenize(step.recipe), "a copy must have the same recipe"
        one, other = (backend.frame_to_arrow(each(frame)) for each in (step, copy))
        assert one.schema.names == other.schema.names and len(one) == len(other)

    def test_it_says_what_it_is(self, step: Step) -> None:
        """In JSON, the same each time, with the length of vectors."""
        said = {name: dict(info) for name, info in step.describe().items()}
        assert json.loads(json.dumps(said)) == said == {k: dict(v) for k, v in step.describe().items()}
        assert set(said) <= set(step.columns)
        vectors = [said[name] for name in vectors_in(pa.schema(dict(step.columns))) if name in said]
        assert all(isinstance(info["dim"], int) for info in vectors)
        assert json.loads(json.dumps(dict(step.arguments))) == dict(step.arguments)

    def test_given_up_rows_say_why(self, step: Step, frame: Any) -> None:
        """Without its work, each row that it would have made something of has the reason."""
        made = step.give_up("gave up: a test")(frame)
        assert list(made.columns) == list(step(frame).columns)
        if ERROR_COLUMN in step.columns:
            reasons = backend.frame_to_arrow(made).column(ERROR_COLUMN).to_pylist()
            assert reasons and all("gave up: a test" in str(reason) for reason in reasons)


def _near(one: Any, other: Any) -> bool:
    """Whether values are the same, numbers to 1e-4, also those in lists of lists."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_near, one, other))
    return bool(one == pytest.approx(other, abs=1e-4))
