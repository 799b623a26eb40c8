"""What is in an output: counts, columns and who made them, how values spread, what does not fit together."""

from curator_dask.info.describing import describe_output
from curator_dask.info.output import OutputInfo

__all__ = ["OutputInfo", "describe_output"]
