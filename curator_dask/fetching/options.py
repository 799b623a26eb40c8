"""What is fetched, and how: the settings of `curator_dask.fetching.fetch_images`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yarl import URL

import curator_dask
from curator_dask.decode.smaller import DEFAULT_QUALITY, KEEP, SmallerImages
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
from curator_dask.errors import ConfigError

#: What servers are told of who asks.
USER_AGENT = f"curator-dask/{curator_dask.__version__}"
_COUNTS = ("rows_per_shard", "connections", "per_host", "max_bytes", "max_pixels")


@dataclass(frozen=True)
class FetchOptions:
    """The settings of a fetch.

    Attributes
    ----------
    url_column
        Column of the images' URLs.
    caption_column
        Column of the captions; None: there are none.
    id_column
        Column of the samples' keys; None: they are the shard's number and the row's in it.
    sha256_column, md5_column
        Column of the digest, in hexadecimal digits, that an image's bytes must have; rows without one are not compared.
    columns
        Other columns that are kept; None: all.
    column_names
        The names of all columns of a CSV or TSV that has no line with them; None: its first line is one.
    limit
        Rows of the table that are fetched, from its first on; None: all. A larger limit goes on from there.
    rows_per_shard
        Rows of the table that go into one shard, be their images there or not.
    connections
        Downloads at a time, of a worker.
    per_host
        Of these, from one host.
    timeout
        Seconds that an image may take in all, its redirects and its last byte too, each time it is tried.
    retries
        Times that it is tried again where the fault may pass.
    max_wait
        Seconds that are waited at most where a server says when to come again (``Retry-After``).
    max_bytes
        Of an image file; a larger one fails.
    max_pixels
        Height times width of an image; a larger one fails.
    max_redirects
        From one URL to the next.
    max_side, min_side, quality, image_format
        Images are made smaller, as an export does it: `curator_dask.decode.smaller.SmallerImages`. Without a side they
        keep their bytes.
    user_agent
        In the place of `USER_AGENT`: who asks, and how to reach them.
    ignore_robots_tags
        Take images also where ``X-Robots-Tag`` says not to.
    allow_private
        Connect also to addresses that are not of the public internet.
    proxy
        URL of a proxy that all requests go through; None: there is none, whatever the environment says.
    retry_failed
        Try rows of finished shards again that failed for a reason that may have passed.
    keep_going
        Do not stop where no server answers.
    overwrite
        Replace shards of another table, or of other settings.
    append
        The table has grown: of the shards that are there the last, which was not full, may be made anew, and no other.

    Raises
    ------
    ConfigError
        They cannot be carried out.
    """

    url_column: str = "url"
    caption_column: str | None = None
    id_column: str | None = None
    sha256_column: str | None = None
    md5_column: str | None = None
    columns: Sequence[str] | None = None
    column_names: Sequence[str] | None = None
    limit: int | None = None
    rows_per_shard: int = 10_000
    connections: int = 128
    per_host: int = 8
    timeout: float = 30.0
    retries: int = 2
    max_wait: float = 60.0
    max_bytes: int = 64_000_000
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_redirects: int = 5
    max_side: int | None = None
    min_side: int | None = None
    quality: int | None = None
    image_format: str = KEEP
    user_agent: str = USER_AGENT
    ignore_robots_tags: bool = False
    allow_private: bool = False
    proxy: str | None = None
    retry_failed: bool = False
    keep_going: bool = False
    overwrite: bool = False
    append: bool = False

    def __post_init__(self) -> None:
        for name in _COUNTS:
            self._check(name, int, 1)
        if self.limit is not None:
            self._check("limit", int, 1)
        if self.column_names is not None and (isinstance(self.column_names, str) or not self.column_names):
            raise ConfigError(
                f"column_names={self.column_names!r} (--column-names): expected a list of names, one a column"
            )
        for name in ("retries", "max_redirects"):
            self._check(name, int, 0)
        for name in ("timeout", "max_wait"):
            self._check(name, (int, float), 0)
        if not self.timeout:
            raise ConfigError("timeout=0 (--timeout): expected a number of seconds above 0")
        if not self.user_agent.isascii() or not self.user_agent.isprintable() or not self.user_agent.strip():
            raise ConfigError(
                f"user_agent={self.user_agent!r} (--user-agent): expected a line of ASCII, such as"
                f" {USER_AGENT + ' (me@example.org)'!r}"
            )
        if self.proxy is not None and URL(self.proxy).scheme not in ("http", "https"):
            raise ConfigError(f"proxy={self.proxy!r} (--proxy): expected a URL, such as http://proxy:3128")
        if self.smaller is None and (self.quality, self.image_format) != (None, KEEP):
            raise ConfigError(
                "quality and image_format are of images that are made smaller: give max_side or min_side (--max-side,"
                " --min-side)"
            )

    def _check(self, name: str, kind: Any, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) or isinstance(value, bool) or not value >= least:
            what = "a number" if isinstance(kind, tuple) else "a whole number"
            raise ConfigError(
                f"{name}={value!r} (--{name.replace('_', '-')}): expected {what} from {least} up"
            )

    @property
    def smaller(self) -> SmallerImages | None:
        """How images are made smaller; None: they are not."""
        if self.max_side is None and self.min_side is None:
            return None
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        return SmallerImages(self.max_side, self.min_side, self.image_format, quality)

    @property
    def digests(self) -> dict[str, str]:
        """By the digest's name in `hashlib`, the column that has it."""
        found = {"sha256": self.sha256_column, "md5": self.md5_column}
        return {name: column for name, column in found.items() if column is not None}

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides how a row's image and its files look, and not whether it can be had."""
        smaller = self.smaller
        return {
            "url": self.url_column,
            "caption": self.caption_column,
            "id": self.id_column,
            "digests": self.digests,
            "rows_per_shard": self.rows_per_shard,
            "smaller": None if smaller is None else vars(smaller),
        }
