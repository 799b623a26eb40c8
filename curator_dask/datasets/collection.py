"""`Collection`: what makes a dataset one of Dask's collections, so that `dask.compute` and `dask.persist` take it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import dask
import dask.dataframe as dd


class Collection(ABC):
    """A base of datasets with a lazy frame."""

    path: str
    metadata: dd.DataFrame
    id_col: str

    @abstractmethod
    def with_metadata(self, metadata: dd.DataFrame) -> Self:
        """The same dataset with another metadata frame."""

    @property
    def npartitions(self) -> int:
        """Partitions of `metadata`: shards, or ranges of them."""
        return int(self.metadata.npartitions)

    def compute(self, **kwargs: Any) -> Any:
        """All rows as one pandas or cuDF frame."""
        return self.metadata.compute(**kwargs)

    def persist(self, **kwargs: Any) -> Self:
        """The dataset with its metadata computed and kept on the workers."""
        return self.with_metadata(self.metadata.persist(**kwargs))

    @property
    def expr(self) -> Any:
        """Dask's expression of `metadata`; lets `dask.compute` take the dataset together with other work."""
        return self.metadata.expr

    def __dask_graph__(self) -> Any:
        return self.metadata.__dask_graph__()

    def __dask_keys__(self) -> Any:
        return self.metadata.__dask_keys__()

    def __dask_postcompute__(self) -> Any:
        return self.metadata.__dask_postcompute__()

    def __dask_postpersist__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        rebuild, arguments = self.metadata.__dask_postpersist__()
        return _rebuild, (self, rebuild, arguments)

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.path, self.id_col, self.metadata.__dask_tokenize__())

    __dask_scheduler__ = staticmethod(dask.threaded.get)


def _rebuild(graph: Any, dataset: Collection, rebuild: Any, arguments: tuple[Any, ...], **kwargs: Any) -> Any:
    return dataset.with_metadata(rebuild(graph, *arguments, **kwargs))
