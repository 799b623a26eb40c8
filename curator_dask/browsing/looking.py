"""What the page asks: rows by chance, by a text, by an image, like one of them, or by a column."""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from curator_dask.browsing.mixing import mixed, parted
from curator_dask.browsing.rows import Rows
from curator_dask.browsing.shards import OpenShards
from curator_dask.decode.pillow import decode
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
from curator_dask.errors import ConfigError, CuratorError, OutputError
from curator_dask.frames.columns import unit
from curator_dask.frames.names import CAPTION_COLUMN, EMBEDDING_COLUMN
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.image.embedders.similar import maker_of, vector_of
from curator_dask.indexing.searching import RECALL, VectorIndex
from curator_dask.indexing.vectors import Vectors
from curator_dask.models.texts import TextEncoder
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.passing import Passing
from curator_dask.rows.thumbnails import data_uri, read_thumbnails
from curator_dask.rows.where import Where
from curator_dask.storage import Options
from curator_dask.text.embedders import TextEmbedder
from curator_dask.text.pairs import check_together

KINDS = ("random", "text", "like", "these", "image", "order")
#: Pixels of a picture's longer side, and WebP's quality.
SIDE, QUALITY = 320, 72
#: Rows that are wanted, and that are not, in a question, at most.
MOST_CHOSEN = 200
_FIRST = 96  # rows that are looked for at first; four times as many when these have been seen
_MOST = 10_000  # rows that a look goes on to
_REMEMBERED = 32  # looks, conditions, texts and images of which the answer is remembered
_DRAWN = 100_000  # rows that are drawn by chance

T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """What is asked.

    Attributes
    ----------
    kind
        One of `KINDS`.
    likes, unlikes
        Numbers of the rows that others are to be like (``"these"``), and not to be like, whatever is looked for.
    text, number, image, column
        What is looked for: words; number of a row; name of an image that was given; column of numbers.
    descending
        The largest values of the column first.
    where
        Condition that rows pass; empty: none.
    seed
        Of the rows that are drawn.
    """

    kind: str = "random"
    text: str = ""
    number: int = -1
    image: str = ""
    column: str = ""
    descending: bool = True
    where: str = ""
    seed: int = 0
    likes: tuple[int, ...] = ()
    unlikes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What was found so far.

    Attributes
    ----------
    numbers
        int64 (n,), of rows.
    scores
        float64 (n,), their cosines; None where nothing is compared.
    whole
        Whether there are no more.
    passing
        How many rows pass the condition.
    """

    numbers: np.ndarray
    scores: np.ndarray | None
    whole: bool
    passing: int


class Browser:
    """An output that is looked at. What it loads stays: models, open shards, conditions.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files.
    embedder
        For texts; None: there is no search by a text.
    column
        Of the vectors; where there is none, rows are shown all the same.
    caption
        Column of the captions.
    index
        By which vectors are searched; None: all are compared.
    recall, check, storage_options
        See `curator_dask.text.search.search`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        embedder: TextEmbedder | None = None,
        *,
        column: str = EMBEDDING_COLUMN,
        caption: str = CAPTION_COLUMN,
        index: VectorIndex | None = None,
        recall: float = RECALL,
        check: bool = True,
        storage_options: Options = None,
    ) -> None:
        self.path = os.fspath(path)
        self._embedder, self._check = embedder, check
        self._lacking: str | None = None  # why no vectors can be compared
        try:
            self._vectors = Vectors.of(path, column, storage_options, index, recall)
        except OutputError as error:
            if index is not None:
                raise
            self._vectors = Vectors(VectorFiles.find(path, column, storage_options, needed=False))
            self._lacking = str(error)
        self.rows = Rows(self._vectors.files, caption)
        self.shards = OpenShards()
        self._options = storage_options
        self._encoder: TextEncoder | None = None
        self._models = threading.Lock()
        self._lock = threading.Lock()
        self._memory: OrderedDict[Any, Any] = OrderedDict()
        self._images: OrderedDict[str, np.ndarray] = OrderedDict()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="curator-pictures")

    @property
    def searched(self) -> str:
        """How vectors are searched, in words."""
        if self._lacking is not None:
            return "no vectors"
        if self._vectors.index is None:
            return "every vector is compared"
        return f"by an index: {self._vectors.index.recall(_FIRST, self._vectors.recall)}"

    @property
    def why_no_text(self) -> str | None:
        """Why there is no search by a text; None: there is one."""
        if self._lacking is not None:
            return "there are no vectors to compare with"
        return (
            None
            if self._embedder is not None
            else "--model names the text tower that belongs to the vectors, and is not given"
        )

    @property
    def why_no_image(self) -> str | None:
        """Why there is no search by an image; None: there is one, as far as is known."""
        return None if self._lacking is None else "there are no vectors to compare with"

    def load(self) -> None:
        """Load the model of texts, which else the first text does.

        Raises
        ------
        ConfigError
            It does not belong to the vectors.
        """
        with self._models:
            if self._encoder is None and self._embedder is not None and self._lacking is None:
                spec = self._embedder.encoder_spec()
                encoder = spec.build()
                if self._check:
                    origin = one_origin(self._vectors.files.column, self._vectors.files.records)
                    check_together(origin, encoder.info.to_dict(), None, f"browse ({spec})")
                self._encoder = encoder

    def close(self) -> None:
        """Let go of all."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.shards.close()
        if self._models.acquire(blocking=False):  # one that is at work goes with the process
            encoder, self._encoder = self._encoder, None
            self._models.release()
            if encoder is not None:
                encoder.close()

    def take_image(self, data: bytes) -> str:
        """Embed an image that was given, by the model that made the output's vectors.

        Returns
        -------
        str
            Its name, for `Look`.

        Raises
        ------
        CuratorError
            It is none, or nothing says what made the vectors.
        """
        if self.why_no_image:
            raise ConfigError(self.why_no_image)
        decode(data, DEFAULT_MAX_PIXELS)  # what is no image is told before a model is loaded
        files = self._vectors.files
        with tempfile.TemporaryDirectory(prefix="curator_dask-") as folder, self._models:
            file = Path(folder, "image")
            file.write_bytes(data)
            try:
                vector = vector_of(file, maker_of(files), files)
            except CuratorError as error:
                raise ConfigError(str(error).replace(str(file), "the image")) from None
        name = uuid.uuid4().hex
        with self._lock:
            self._images[name] = vector
            while len(self._images) > _REMEMBERED:
                self._images.popitem(last=False)
        return name

    def find(self, look: Look, start: int, count: int) -> Seen:
        """Some of what is asked for: those from a number on, and how many there are before.

        Raises
        ------
        CuratorError
            It cannot be answered, and why.
        """
        if look.kind not in KINDS:
            raise ConfigError(f"kind={look.kind!r}: expected one of {', '.join(KINDS)}")
        passing = self._passing(look.where)
        top = _FIRST
        while top < min(start + count, _MOST):
            top *= 4
        seen = self._remembered((look, top), lambda: self._find(look, min(top, _MOST), passing))
        end = start + count
        scores = None if seen.scores is None else seen.scores[start:end]
        whole = (seen.whole and end >= len(seen.numbers)) or end >= _MOST
        return Seen(seen.numbers[start:end], scores, whole, seen.passing)

    def pictures(self, numbers: Sequence[int]) -> dict[int, str]:
        """Pictures of rows as data URIs; or the reasons why there is none, which do not begin with ``data:``."""
        rows = self.rows.read(list(numbers))
        shards: dict[str | None, list[dict[str, Any]]] = {}
        for row in rows:
            shards.setdefault(row["url"], []).append(row)
        found: dict[int, str] = {}
        for some in self._pool.map(self._pictures_of, list(shards.values())):
            found.update(some)
        return found

    def _pictures_of(self, rows: Sequence[dict[str, Any]]) -> dict[int, str]:
        found: dict[int, str] = {}
        keys, urls = [row["id"] for row in rows], [row["url"] for row in rows]
        try:
            for at, picture in read_thumbnails(
                keys, urls, SIDE, self._options, enlarge=False, opener=self.shards
            ):
                found[rows[at]["number"]] = (
                    picture if isinstance(picture, str) else data_uri(picture, "WEBP", QUALITY)
                )
        except CuratorError as error:  # a shard that is gone costs its own rows alone
            for row in rows:
                found.setdefault(row["number"], str(error))
        return found

    def _find(self, look: Look, top: int, passing: Passing | None) -> Seen:
        count = len(self.rows) if passing is None else passing.count
        if look.kind == "random":
            numbers = self._drawn(look.seed, passing)
            return Seen(numbers, None, True, count)
        if look.kind == "order":
            numbers = self._remembered(
                ("order", look.column, look.descending, look.where),
                lambda: self.rows.in_order(look.column, look.descending, passing),
            )
            return Seen(numbers[:top], None, len(numbers) <= top, count)
        if self._lacking is not None:
            raise OutputError(self._lacking)
        own = [self.rows.place(each) for each in self._likes(look)]
        away = [self.rows.place(each) for each in dict.fromkeys(look.unlikes)]
        alone = len(own) + len(away) == 1
        wanted, unwanted = ([self._vector_of_row(*each, alone) for each in some] for some in (own, away))
        if look.kind == "image":
            with self._lock:
                given = self._images.get(look.image)
            if given is None:
                raise ConfigError("the image is not known any more: give it again")
            wanted.append(given)
        elif look.kind == "text":
            text, not_text = parted(look.text)
            if not_text and not text.strip():
                raise ConfigError(
                    "words behind a minus are not wanted: give some that are, too, as in: cat -dog"
                )
            wanted.append(self._vector_of_text(text))
            unwanted += [self._vector_of_text(not_text)] if not_text else []
        own = [*dict.fromkeys([*own, *away])]
        ranked = self._vectors.ranked(mixed(wanted, unwanted), "what is looked for", top + len(own), passing)
        whole = len(ranked) < ranked.top
        for each in own:
            ranked = ranked.without(*each)
        ranked = ranked.first(top)
        return Seen(self.rows.firsts[ranked.files] + ranked.rows, ranked.cosines, whole, count)

    def _likes(self, look: Look) -> list[int]:
        """Numbers of the rows that others are to be like."""
        likes = {"like": (look.number,), "these": look.likes}.get(look.kind, ())
        if look.kind == "these" and not likes:
            raise ConfigError("choose some rows first")
        return [*dict.fromkeys(likes)]

    def _drawn(self, seed: int, passing: Passing | None) -> np.ndarray:
        """Rows in an order by chance; of very many some."""
        random = np.random.default_rng(seed)
        if passing is not None:
            left = np.flatnonzero(np.concatenate(list(passing.masks.values())))
            return random.permutation(left)[:_DRAWN]
        count = len(self.rows)
        if count <= 20 * _DRAWN:
            return random.permutation(count)[:_DRAWN]
        return random.permutation(np.unique(random.integers(0, count, _DRAWN)))

    def _vector_of_row(self, file: int, row: int, alone: bool) -> np.ndarray:
        vector = self._vectors.files.vector_at(self.rows.paths[file], row)
        if vector is None or not np.isfinite(vector).all() or not vector.any():
            key = self.rows.read([int(self.rows.firsts[file]) + row])[0]["key"]
            which = "this row" if alone else f"of the chosen rows {key}"
            raise ConfigError(f"{which} has no vector, so nothing is near it; its image_error says why")
        return vector

    def _vector_of_text(self, text: str) -> np.ndarray:
        if self.why_no_text:
            raise ConfigError(self.why_no_text)
        if not text.strip():
            raise ConfigError("expected some words")
        self.load()

        def embedded() -> np.ndarray:
            with self._models:
                assert self._encoder is not None
                found: np.ndarray = unit(self._encoder([text], 1).vectors)[0]
                return found

        return self._remembered(("text", text), embedded)

    def _passing(self, where: str) -> Passing | None:
        if not where.strip():
            return None
        return self._remembered(("where", where), lambda: Passing.of(self._vectors.files, Where(where)))

    def _remembered(self, key: Any, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                found: T = self._memory[key]
                return found
        made = make()
        with self._lock:
            self._memory[key] = made
            while len(self._memory) > _REMEMBERED:
                self._memory.popitem(last=False)
        return made
