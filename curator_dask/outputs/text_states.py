"""Text states of an export: what the text encoders of a diffusion model see of each caption, as members."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import pyarrow as pa

from curator_dask.cache import ENCODERS
from curator_dask.cluster.mapping import on_cluster
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.models.hub import names_folder
from curator_dask.models.latents import npy_file
from curator_dask.models.text_states import States, TextStatesSpec
from curator_dask.outputs.placing import put
from curator_dask.outputs.scratch import scratch
from curator_dask.settings import absolute
from curator_dask.storage import Options, exists, join, read_bytes, remove
from curator_dask.words import counted, meant

#: What they are called where no name is given, and the column of the captions.
NAME, COLUMN = "text_states", "caption"
#: Beside the tars: what the states are. And in the settings of the export.
TOLD, SETTING = "text_states.json", "text_states_made"
#: Behind a name: of the member with the vector of a whole caption, and of the file of an empty caption.
POOLED, EMPTY = "_pooled", ".empty.npy"

_MADE_BY = "curator-dask export"
_NAMES = re.compile(r"[a-z0-9][a-z0-9_-]*")
_AT_ONCE = 64  # captions whose states are held before they are put away
_OWN = ("model", "name", "column", "batch_size")


@dataclass(frozen=True)
class TextStates:
    """The states of one encoder.

    Attributes
    ----------
    spec
        What makes them.
    name
        Of the members, before ``.npy``.
    column
        Of the captions.
    batch_size
        Captions a pass, at most.
    info
        See `TextStatesSpec.known`; empty before its files are looked at.
    """

    spec: TextStatesSpec
    name: str = NAME
    column: str = COLUMN
    batch_size: int = 32
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def all_of(cls, given: Any, shard_bytes: int | None = None) -> tuple[TextStates, ...]:
        """As `ImageTextPairDataset.to_webdataset` takes them: a model, a mapping, or several.

        Raises
        ------
        ConfigError
            A name or a value is none that it can have, or two have one name; or tars are to have so many bytes.
        """
        if given is None:
            return ()
        if shard_bytes is not None:
            raise ConfigError(
                f"shard_bytes={shard_bytes} (--shard-bytes) and text_states: tars are planned before states are"
                " made, so that they would be larger: give samples_per_shard or shards (--samples-per-shard, --shards)"
            )
        several = [given] if isinstance(given, str | Mapping) else [*given]
        found = tuple(cls._of(each) for each in several)
        names = [name.lower() for each in found for name in each.suffixes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(
                f"text_states: two encoders make members .{twice}: give each a name, as {{'model': ..., 'name': 't5'}}"
            )
        return found

    @classmethod
    def _of(cls, given: Any) -> TextStates:
        said = {"model": given} if isinstance(given, str) else given
        known = [*_OWN, *(each.name for each in fields(TextStatesSpec)[1:-1])]
        if not isinstance(said, Mapping) or not said.get("model"):
            raise ConfigError(
                f"text_states={given!r}: expected a text encoder, a folder or a repository (org/repo), or a mapping of"
                f" model and {', '.join(known[1:])}"
            )
        for name in said:
            if name not in known:
                raise ConfigError(
                    f"text_states: there is no {name!r}{meant(str(name), known)}: expected {', '.join(known)}"
                )
        name, column, batch = (
            said.get("name", NAME),
            said.get("column", COLUMN),
            said.get("batch_size", cls.batch_size),
        )
        if not isinstance(name, str) or not _NAMES.fullmatch(name):
            raise ConfigError(
                f"text_states: name={name!r}: expected small letters, digits, - and _, of which the members' names are"
            )
        if not isinstance(column, str) or not column:
            raise ConfigError(f"text_states: column={column!r}: expected the name of a column of captions")
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigError(f"text_states: batch_size={batch!r}: expected a whole number of at least 1")
        of_model: dict[str, Any] = {str(each): said[each] for each in said if each not in _OWN}
        return cls(TextStatesSpec(said["model"], **of_model), name, column, batch)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the members."""
        return (f"{self.name}.npy", *([f"{self.name}{POOLED}.npy"] if self.spec.pooled else []))

    def ready(self) -> TextStates:
        """The same with what its files say; they are fetched where they are nowhere.

        Raises
        ------
        ConfigError, WeightsError
            As `TextStatesSpec.known`.
        """
        spec, info = self.spec.known()
        return replace(self, spec=spec, info=info)

    @property
    def recipe(self) -> dict[str, Any]:
        """What identifies them, JSON-able."""
        return {**self.info, "name": self.name, "column": self.column}

    def told(self) -> str:
        """What the members are, as a card says it."""
        what = "all tokens" if self.spec.padded else "the caption's tokens"
        pooled = f" `.{self.name}{POOLED}.npy`: the vector of the whole caption." if self.spec.pooled else ""
        return (
            f"`.{self.name}.npy`: states of the text in `{self.column}`, (tokens, dim) of {what}, in"
            f" {self.spec.stored}; `{TOLD}` says of which text encoder.{pooled}"
        )

    def files_of(self, texts: Sequence[str], keys: Sequence[str], where: str) -> dict[str, list[memoryview]]:
        """By suffix, what is in the member of each sample.

        Parameters
        ----------
        texts, keys
            Of the samples; a caption may be empty.
        where
            The tar, for errors.

        Raises
        ------
        ShardError
            Of a caption no states come that can be kept.
        """
        places: dict[str, list[tuple[int, int]]] = {suffix: [] for suffix in self.suffixes}
        with scratch() as file, ENCODERS.lease(self.spec, self.spec.build) as encoder:
            for start in range(0, len(texts), _AT_ONCE):
                some = slice(start, start + _AT_ONCE)
                for key, states in zip(keys[some], encoder(texts[some], self.batch_size), strict=True):
                    if isinstance(states, str):
                        raise ShardError(f"{where} {key}: text_states: {states}")
                    for suffix, array in zip(self.suffixes, _arrays(states), strict=True):
                        places[suffix].append(file.put(npy_file(array)))
            whole = file.mapped()
        return {suffix: [whole[start:stop] for start, stop in lies] for suffix, lies in places.items()}


def _arrays(states: States) -> list[Any]:
    return [states.tokens] if states.pooled is None else [states.tokens, states.pooled]


def texts_in(table: pa.Table, column: str) -> list[str]:
    """The captions of rows; empty where there is none."""
    if column not in table.column_names:
        return [""] * len(table)
    return [each or "" for each in table.column(column).cast(pa.string()).to_pylist()]


def members_of(
    states: Sequence[TextStates], table: pa.Table, keys: Sequence[str], where: str
) -> dict[str, list[memoryview]]:
    """By suffix, the members that the samples of rows get.

    Raises
    ------
    ShardError
        As `TextStates.files_of`.
    """
    found: dict[str, list[memoryview]] = {}
    for each in states if keys else ():
        found |= each.files_of(texts_in(table, each.column), keys, where)
    return found


def check_new_states(states: Sequence[TextStates], found: Iterable[Mapping[str, int]]) -> None:
    """Raise ConfigError where samples have such members already: by suffix, how many, of each file of rows."""
    if not states:
        return
    mine = {suffix.lower() for each in states for suffix in each.suffixes}
    for some in found:
        for suffix, count in some.items():
            if suffix.lower() in mine and count:
                raise ConfigError(
                    f"text_states: {counted(count, 'sample')} of the source have a member .{suffix} already: give the"
                    " encoder another name"
                )


def settings_of_states(path: str, before: Mapping[str, Any], states: Sequence[TextStates]) -> dict[str, Any]:
    """What is noted of an export's text states.

    Parameters
    ----------
    path
        Of the tars.
    before
        The settings of tars that stay; empty where none do.
    states
        What is asked for.

    Raises
    ------
    OutputError
        Those of the tars that stay are of another model.
    """
    if not states:
        return {}
    said = json.loads(json.dumps([each.recipe for each in states]))
    if before and (was := before.get(SETTING)) != said:
        raise OutputError(
            f"{path}: the text states of its tars were made otherwise: {was}, now {said}. States of two models do not"
            " go together: give the same, or write to another path"
        )
    return {SETTING: said}


def asked_of_states(states: Sequence[TextStates]) -> list[dict[str, Any]] | None:
    """Of the options what must be the same of all tars, JSON-able; the models are in `settings_of_states`."""
    return [{"name": each.name, "column": each.column} for each in states] or None


def put_states(folder: str, options: Options, states: Sequence[TextStates]) -> None:
    """Write what the states are beside the tars, and those of an empty caption, which training without one needs.

    Parameters
    ----------
    folder, options
        Of the tars, for fsspec.
    states
        Which; none: what another export has said is removed.

    Raises
    ------
    ShardError
        They cannot be made.
    """
    if not states:
        remove_states(folder, options)
        return
    said = {"made_by": _MADE_BY, "encoders": [{**_source(each), **each.recipe} for each in states]}
    content = f"{json.dumps(said, indent=1)}\n".encode()
    path = join(folder, TOLD)
    names = [_empty(suffix) for each in states for suffix in each.suffixes]
    are_there = all(exists(each, options) for each in (path, *(join(folder, name) for name in names)))
    if are_there and read_bytes(path, options) == content:
        return
    for files in on_cluster(partial(_of_nothing), [*states]):
        for suffix, data in files.items():
            put(join(folder, _empty(suffix)), data, options)
    put(path, content, options)


def _empty(suffix: str) -> str:
    return suffix.removesuffix(".npy") + EMPTY


def _of_nothing(states: TextStates) -> dict[str, bytes]:
    """The files of an empty caption, made on a worker."""
    return {
        suffix: bytes(data[0]) for suffix, data in states.files_of([""], [""], "an empty caption").items()
    }


def _source(states: TextStates) -> dict[str, str]:
    name = states.spec.model_name  # of a folder the end of its path alone, as all else is nobody else's
    return {"source": absolute(name).name if names_folder(name) else name}


def remove_states(folder: str, options: Options) -> None:
    """Remove what an export has said of its text states; files of these names that are somebody's own stay."""
    path = join(folder, TOLD)
    try:
        said = json.loads(read_bytes(path, options)) if exists(path, options) else None
    except (OSError, ValueError):
        return
    if not isinstance(said, dict) or said.get("made_by") != _MADE_BY:
        return
    names = (str(each.get("name")) for each in said.get("encoders", ()) if isinstance(each, dict))
    for name in filter(_NAMES.fullmatch, names):
        for suffix in (f"{name}.npy", f"{name}{POOLED}.npy"):
            remove(join(folder, _empty(suffix)), options)
    remove(path, options)
