"""What every step, sink and stage must do, as test classes to run for your own.

With pytest: subclass one, give its fixtures, and its tests run::

    from curator_dask.testing import StepTests


    class TestMyScore(StepTests):
        @pytest.fixture
        def step(self):
            return MyScore()

        @pytest.fixture
        def frame(self):
            return pd.DataFrame({"key": ["a", "b"], "width": [1, 2]})
"""

from curator_dask.testing.sinks import SinkTests
from curator_dask.testing.stages import StageTests
from curator_dask.testing.steps import StepTests

__all__ = ["SinkTests", "StageTests", "StepTests"]
