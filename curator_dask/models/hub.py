"""The folder with a model's weights: found, or fetched from the hub once a node, and verified.

What is fetched lies in a hidden folder until all of it is verified, and is then renamed into place, the
configuration last: a folder that has it is whole. Only safetensors is fetched and read, never a pickle.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator_dask.errors import ConfigError, WeightsError
from curator_dask.models.downloads import HubFile, fetch, verify
from curator_dask.models.weights import first_line
from curator_dask.settings import absolute

logger = logging.getLogger("curator_dask")

CLIP_L14 = "openai/clip-vit-large-patch14"
"""The CLIP whose vectors the aesthetic and NSFW classifiers were trained on."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Of weights in several files: which tensor is in which."""

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Where transformers writes an image processor's settings, alone or among those of a whole processor."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Pin:
    """A revision of a repository, and what its files must be.

    Attributes
    ----------
    revision
        Commit.
    digests
        SHA-256 of each file, in hexadecimal. Only these files are fetched.
    """

    revision: str
    digests: Mapping[str, str]


PINS = {
    CLIP_L14: Pin(
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        {
            CONFIG: "8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a",
            PROCESSORS[0]: "910e70b3956ac9879ebc90b22fb3bc8a75b6a0677814500101a4c072bd7857bd",
            WEIGHTS: "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        },
    )
}

Check = Callable[[dict[str, Any]], None]


def find_folder(model_name: str, model_dir: str | None = None, check: Check | None = None) -> Path:
    """Find the folder with a model's weights; fetch it if it is nowhere.

    Parameters
    ----------
    model_name
        A folder, or a repository of the hub: ``"org/repo"``, ``"org/repo@revision"``.
    model_dir
        Folder that holds the files itself, or has them under ``org/repo``, or will have them there. None:
        huggingface_hub's own cache.
    check
        Called with the parsed ``config.json`` before the weights are fetched; raises if it is of no use.

    Returns
    -------
    pathlib.Path
        It holds ``config.json`` and ``model.safetensors``, or the latter in several files with their index. A
        folder that does so already is returned as it is, without any network.

    Raises
    ------
    WeightsError
        The folder lacks files, or they cannot be fetched, or what came is not what it should be.
    ConfigError
        The name is neither a folder nor that of a repository.
    """
    if names_folder(model_name):
        folder = absolute(model_name)
        if lacking(folder):
            raise WeightsError(f"{model_name}: {_what_is_wrong(folder)}")
        return folder
    repository = Repository.of(model_name)
    if model_dir is None:
        return _in_the_cache(repository, check)
    base = absolute(model_dir)
    target = base.joinpath(*model_name.split("/"))
    for folder in (target, base):
        if not lacking(folder):
            return folder
    return _in_folder(target, repository, check)


def find_whole(model_name: str, model_dir: str | None = None) -> Path | None:
    """The folder that `find_folder` finds without fetching anything; None where it would have to.

    Raises
    ------
    ConfigError
        The name is neither a folder nor that of a repository.
    """
    if names_folder(model_name):
        folders = [absolute(model_name)]
    elif model_dir is not None:
        base = absolute(model_dir)
        folders = [base.joinpath(*model_name.split("/")), base]
    else:
        cached = _cached(Repository.of(model_name))
        folders = [] if cached is None else [cached]
    return next((folder for folder in folders if not lacking(folder)), None)


def find_beside(model_name: str, model_dir: str | None, folder: Path, names: Sequence[str]) -> None:
    """Fetch further small files of a repository to its weights, where they are not there; a folder is left as it is.

    Parameters
    ----------
    model_name, model_dir
        As `find_folder` was given them.
    folder
        What it has found.
    names
        Of the files, of which the repository may lack some; where the last is there, all are.

    Raises
    ------
    WeightsError
        They cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if names_folder(model_name) or (folder / names[-1]).is_file():
        return
    repository = Repository.of(model_name)
    with explained(repository, None if model_dir is None else folder, names):
        if model_dir is None:
            for name in names:
                with contextlib.suppress(EntryNotFoundError):
                    hf_hub_download(repository.name, name, revision=folder.name)  # the commit of the weights
            return
        with locked(folder.with_name(f".{folder.name}.lock"), repository.name):
            for name in names:
                with contextlib.suppress(EntryNotFoundError):
                    fetch(repository.stated(name, repository.revision), folder)


def names_folder(model_name: str) -> bool:
    """Whether a model's name is a path: of a folder that is there, or one that no repository could have."""
    return model_name.startswith(("/", ".", "~")) or (model_name != "" and Path(model_name).is_dir())


def is_transformers(model_name: str) -> bool:
    """Whether a name is that of a repository, or of a folder whose configuration is transformers'."""
    if ":" in model_name:  # timm's hf-hub: and local-dir:
        return False
    if not names_folder(model_name):
        return "/" in model_name
    try:
        return "model_type" in read_json(absolute(model_name) / CONFIG)
    except WeightsError:
        return False


def lacking(folder: Path) -> list[str]:
    """The files that a model's folder lacks; none if it is whole."""
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    if (folder / WEIGHTS).is_file():
        return missing
    if not (folder / INDEX).is_file():
        return [*missing, WEIGHTS]
    return missing + [name for name in _shards(folder / INDEX) if not (folder / name).is_file()]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    WeightsError
        It cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON: {error}. Fetch it again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: expected a JSON object, found a {type(found).__name__}. Fetch it again")
    return found


def _shards(index: Path) -> list[str]:
    names = read_json(index).get("weight_map")
    files = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    if not files or any(Path(name).name != name for name in files):
        raise WeightsError(f"{index}: expected a weight_map from tensors to files beside it. Fetch it again")
    return files


def _what_is_wrong(folder: Path) -> str:
    """Of a folder that is not whole: what it lacks, what it has, and what to do."""
    if not folder.is_dir():
        return f"no folder {folder} here. Give one that every worker sees"
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    text = f"the folder {folder} lacks {', '.join(lacking(folder))}; it holds {', '.join(found[:10]) or 'nothing'}."
    if any(name.endswith(_PICKLES) for name in found):
        return (
            f"{text} Only safetensors is read, as a pickle can run code. Convert it where it is trusted: load it with"
            " transformers' from_pretrained, then save_pretrained to a new folder"
        )
    return f"{text} Put the model's files there, as transformers' save_pretrained writes them"


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at a revision, None being its newest."""

    name: str
    revision: str | None
    pin: Pin | None

    @classmethod
    def of(cls, model_name: str) -> Repository:
        """By its name; raises ConfigError for what is none."""
        name, at, revision = model_name.partition("@")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or ".." in model_name or bool(at) != bool(revision):
            raise ConfigError(
                f"model_name={model_name!r}: expected a folder that is there, or a repository of the hub as org/repo"
                " or org/repo@revision"
            )
        pin = PINS.get(name)
        if pin is not None and revision in ("", pin.revision):
            return cls(name, pin.revision, pin)
        return cls(name, revision or None, None)

    def stated(self, file: str, revision: str | None) -> HubFile:
        """What the hub says of a file; raises its EntryNotFoundError where there is none."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.name, file, revision=revision)
        found = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        pinned = self.pin.digests if self.pin else {}
        digest = pinned.get(file) or found.etag or ""  # a small file's is another
        return HubFile(
            file, url, found.commit_hash, found.size, digest if re.fullmatch("[0-9a-f]{64}", digest) else None
        )

    def files(self, check: Check | None) -> list[HubFile]:
        """Everything to fetch, all of one commit, the configuration last.

        The configuration and the index are fetched and read for that: they are small, and a model that is of
        no use should not cost the download of its weights.
        """
        from huggingface_hub.errors import EntryNotFoundError

        def first_of(names: Iterable[str]) -> HubFile | None:
            for name in names:
                with contextlib.suppress(EntryNotFoundError):
                    return self.stated(name, config.commit)
            return None

        with tempfile.TemporaryDirectory() as scratch:
            config = self.stated(CONFIG, self.revision)
            if config.commit not in (None, self.revision):  # a branch may move while its files are fetched
                config = self.stated(CONFIG, config.commit)
            fetch(config, Path(scratch))
            if check is not None:
                check(read_json(Path(scratch, CONFIG)))
            if self.pin is not None:
                return [
                    *(self.stated(name, config.commit) for name in self.pin.digests if name != CONFIG),
                    config,
                ]
            processor = first_of(PROCESSORS)
            weights = first_of([WEIGHTS, INDEX])
            if weights is None:
                raise WeightsError(
                    f"{config.url}: beside it is neither {WEIGHTS} nor {INDEX}. Only safetensors is read, as a pickle"
                    " can run code. Take a revision that has it (org/repo@revision), or convert the model: load it with"
                    " transformers' from_pretrained, save_pretrained to a folder, and use that as model_name"
                )
            shards = []
            if weights.name == INDEX:
                fetch(weights, Path(scratch))
                shards = [self.stated(name, config.commit) for name in _shards(Path(scratch, INDEX))]
        return [*([processor] if processor else []), *shards, weights, config]


def _in_folder(target: Path, repository: Repository, check: Check | None) -> Path:
    """Fetch into a folder, unless another process does."""
    hidden = target.with_name(f".{target.name}.partial")
    with explained(repository, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock"), repository.name):
            if not lacking(target):  # the other process has finished
                return target
            files = repository.files(check)
            # Beside what an interrupted run left of the same commit, to go on from there.
            partial = hidden / (files[-1].commit or "unknown")
            partial.mkdir(parents=True, exist_ok=True)
            size = sum(file.size or 0 for file in files)
            logger.warning("%s: fetching %.0f MB into %s", repository.name, size / 1e6, target)
            for file in files:
                fetch(file, partial)
            target.mkdir(exist_ok=True)
            for file in files:
                (partial / file.name).replace(target / file.name)
            shutil.rmtree(hidden, ignore_errors=True)
    return target


def _cached(repository: Repository) -> Path | None:
    """The snapshot in huggingface_hub's cache as it is, None where it has no configuration."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository.name, CONFIG, revision=repository.revision)
    return Path(found).parent if isinstance(found, str) else None


def _in_the_cache(repository: Repository, check: Check | None) -> Path:
    """The snapshot in huggingface_hub's cache, filled where it is not whole."""
    from huggingface_hub import constants, hf_hub_download

    found = _cached(repository)
    if found is not None and not lacking(found):
        return found
    with explained(repository, None):
        files = repository.files(check)
        size = sum(file.size or 0 for file in files)
        logger.warning("%s: fetching %.0f MB into %s", repository.name, size / 1e6, constants.HF_HUB_CACHE)
        for file in files:
            path = Path(hf_hub_download(repository.name, file.name, revision=repository.revision))
            verify(file, path)
        if lacking(path.parent):
            raise WeightsError(f"{repository.name}: it was changed while it was fetched. Run again")
    return path.parent


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Alone on this machine; a process that dies lets go."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning(
            "%s: another process is fetching the weights (it holds %s); waiting for it", name, path
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def explained(
    repository: Repository, folder: Path | None, files: Iterable[str] | None = None
) -> Iterator[None]:
    """What goes wrong while fetching, as one error that says where the files can be put by hand."""
    from huggingface_hub import constants

    try:
        yield
    except (ConfigError, WeightsError):
        raise
    except Exception as error:
        asked = f"{constants.ENDPOINT}{' (HF_HUB_OFFLINE is set)' if constants.HF_HUB_OFFLINE else ''}"
        what = "weights" if files is None else "files"
        # Which small files a repository has only the hub knows.
        every = f"{CONFIG}, {WEIGHTS} (or its parts and {INDEX}) and all small files beside them"
        names = ", ".join(repository.pin.digests) if repository.pin else every
        names = names if files is None else f"those of {', '.join(files)} that it has"
        said = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
        raise WeightsError(
            f"{repository.name}: the {what} are not in {folder or constants.HF_HUB_CACHE}, and could not be fetched"
            f" from {asked}: {said}. To work offline, fetch {names} on a machine with a network and put them into"
            f" {folder or 'a folder, to be given as model_dir (--model-dir)'}. Where a login is needed set HF_TOKEN"
        ) from error
