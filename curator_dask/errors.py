"""The errors of curator_dask: one small tree.

Every message names what was looked at (shard, key, option), what was expected, what was found and what to
do. Each class takes the message alone, so that an error raised on a worker reaches the client unchanged.
"""


class CuratorError(Exception):
    """Base of every error that curator_dask raises on purpose."""


class ConfigError(CuratorError, ValueError):
    """An option, or a combination of options, that cannot be carried out."""


class NoColumnError(ConfigError):
    """A condition names a column that the rows do not have."""


class ClusterError(CuratorError, RuntimeError):
    """A cluster could not be started or reached."""


class NetworkError(CuratorError, RuntimeError):
    """No server on the network answers: what would be asked of others would fail, too."""


class DatasetError(CuratorError, ValueError):
    """The dataset as a whole cannot be used: no shards, no key column, schemas that do not fit."""


class NoMatchError(DatasetError):
    """A table has none of the rows that it is to give columns to."""


class ShardError(CuratorError, RuntimeError):
    """One shard cannot be read. The other shards of a run go on."""


class ImageError(CuratorError, ValueError):
    """One image cannot be used. Only its row is affected."""


class WeightsError(CuratorError, RuntimeError):
    """The weights of a model could not be found, fetched or loaded."""


class OutputError(CuratorError, RuntimeError):
    """Output cannot be written, or would replace something that it must not."""
