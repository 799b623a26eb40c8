"""Which files a model is loaded from, and whether they are still the same: without loading any of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from curator_dask.errors import CuratorError
from curator_dask.models.hub import find_whole, is_transformers
from curator_dask.models.weights import HUB_PREFIXES, LOCAL_PREFIXES
from curator_dask.settings import absolute
from curator_dask.storage import file_state

#: Nanoseconds by which clocks of a file's store and of this machine may differ, and in which a file may change twice.
_CLOCKS = 2_000_000_000

State = Mapping[str, tuple[int, ...]]
"""By path, the `curator_dask.storage.file_state` of a file."""


@dataclass(frozen=True)
class Sources:
    """Where the weights and the configuration of a model come from.

    Attributes
    ----------
    paths
        Files, and folders of which every file counts.
    repository
        Of the hub, as ``org/repo`` or ``org/repo@revision``, where each load asks for its newest state.
    asks_timm
        It comes from the hub, and timm alone knows from which repository.
    """

    paths: tuple[str, ...] = ()
    repository: str | None = None
    asks_timm: bool = False

    @classmethod
    def of(
        cls,
        model: str,
        model_dir: str | None,
        checkpoint: str | None,
        pretrained: bool,
        others: Iterable[str] = (),
    ) -> Sources | None:
        """Those of a model by its name, as ``embed`` takes it; None where they are not all here yet.

        Parameters
        ----------
        model, model_dir
            As `curator_dask.image.embedders.making.make_embedder` takes them.
        checkpoint, pretrained
            As `curator_dask.models.weights.create_timm_model` takes them.
        others
            Further files that count.
        """
        paths = tuple(
            str(absolute(each)) for each in (*others, *([] if checkpoint is None else [checkpoint]))
        )
        if is_transformers(model):
            folder = find_whole(model, model_dir)
            return None if folder is None else cls((str(folder), *paths))
        place = model.partition(":")[2]
        if model.startswith(LOCAL_PREFIXES):
            return cls((str(absolute(place)), *paths))
        if model.startswith(HUB_PREFIXES):  # its configuration is there, whatever the weights are
            return cls(paths, place)
        if os.environ.get(
            "TIMM_USE_OLD_CACHE"
        ):  # weights from before the hub, which another process may fetch anew
            return None
        return cls(paths, asks_timm=pretrained and checkpoint is None)

    def state(self) -> State | None:
        """Of the files of `paths`; None where one is not there."""
        return files_state(self.paths)


def cached_state(repository: str, ask: bool) -> State | None:
    """Of the files of a repository that the hub's cache has; None where it has none of its newest state.

    Parameters
    ----------
    repository
        ``org/repo`` or ``org/repo@revision``.
    ask
        The hub which state is its newest, as a load does; where that does not answer, or is not asked, it is the one
        that was fetched last.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    name, _, revision = repository.partition("@")
    revision = revision or constants.DEFAULT_REVISION
    cached = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    commit: str | None = None
    if ask and not constants.HF_HUB_OFFLINE:
        try:
            url = hf_hub_url(name, constants.CONFIG_NAME, revision=revision)
            commit = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT).commit_hash
        except Exception:  # of many types: then a load takes what is in the cache, too
            commit = None
    if commit is None:
        try:
            commit = (cached / "refs" / revision).read_text(encoding="utf-8").strip()
        except OSError:  # a commit has no file of its own there
            commit = revision
    snapshot = cached / "snapshots" / commit
    return files_state((str(snapshot),)) if snapshot.is_dir() else None


def changed_since(state: State, started: int) -> bool:
    """Whether a file may have changed since a time in nanoseconds: by its times, which a copy may set, or its own."""
    return any(max(written, changed) > started - _CLOCKS for _, written, changed, _ in state.values())


def model_state(model_name: str, model_dir: str | None) -> State | None:
    """Of the files in the folder of a transformers model; None where it is not there, which loading it tells.

    Parameters
    ----------
    model_name, model_dir
        See `curator_dask.models.hub.find_folder`.
    """
    try:
        folder = find_whole(model_name, model_dir)
    except CuratorError:
        return None
    return None if folder is None else files_state((str(folder),))


class OfTransformers:
    """Base of specs of models that transformers loads: frozen dataclasses with these fields.

    Attributes
    ----------
    model_name
        A folder, or a repository of the hub: ``"org/repo"``, ``"org/repo@revision"``.
    model_dir
        See `curator_dask.models.hub.find_folder`.
    """

    model_name: str
    model_dir: str | None

    def __str__(self) -> str:
        return self.model_name

    @property
    def source_state(self) -> State | None:
        """Of the files of its folder; see `curator_dask.cache.SpecCache.refresh`."""
        return model_state(self.model_name, self.model_dir)


def files_state(paths: Iterable[str]) -> State | None:
    """Of files, and of all in folders; None where one is not there."""
    found: dict[str, tuple[int, ...]] = {}
    try:
        for path in paths:
            files = sorted(each.path for each in os.scandir(path)) if os.path.isdir(path) else [path]  # noqa: PTH112
            for file in files:
                found[file] = file_state(file)
    except OSError:
        return None
    return found
