"""The folder with a VAE of diffusers': found, or fetched from the hub; by itself, or the ``vae`` of a whole pipeline.

Only safetensors is fetched and read, never a pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from curator_dask.errors import ConfigError, WeightsError
from curator_dask.models.downloads import HubFile, fetch, verify
from curator_dask.models.hub import CONFIG, Repository, explained, locked, names_folder, read_json
from curator_dask.settings import absolute

#: What diffusers' ``save_pretrained`` calls the weights.
WEIGHTS = "diffusion_pytorch_model.safetensors"
#: Where a VAE lies in a folder, or in a repository: alone there, or among the parts of a pipeline.
PLACES = ("", "vae")
#: Classes of diffusers', as ``_class_name`` of ``config.json`` says them.
CLASSES = ("AutoencoderKL", "AutoencoderDC")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def find_vae(model_name: str, model_dir: str | None = None) -> Path:
    """Find the folder with a VAE; fetch it if it is nowhere.

    Parameters
    ----------
    model_name
        A folder, or a repository of the hub: ``"org/repo"``, ``"org/repo@revision"``. Of a VAE, or of a pipeline, which
        has one in its folder ``vae``.
    model_dir
        Folder that holds it, or has it under ``org/repo``, or will have it there. None: huggingface_hub's own cache.

    Returns
    -------
    pathlib.Path
        It holds ``config.json`` and ``diffusion_pytorch_model.safetensors``.

    Raises
    ------
    ConfigError
        It is no VAE that `check_vae` knows, or the name is neither a folder nor that of a repository.
    WeightsError
        The folder lacks files, or they cannot be fetched, or what came is not what it should be.
    """
    if names_folder(model_name):
        folder = absolute(model_name)
        if (found := _whole_in(folder)) is None:
            raise WeightsError(f"{model_name}: {_what_is_wrong(folder)}")
        return found
    repository = Repository.of(model_name)
    if model_dir is None:
        return _in_the_cache(repository)
    base = absolute(model_dir)
    target = base.joinpath(*model_name.split("/"))
    for folder in (target, base):
        if (found := _whole_in(folder)) is not None:
            return found
    return _in_folder(target, repository)


def check_vae(config: Mapping[str, Any], name: str) -> None:
    """Raise ConfigError where a ``config.json`` is of no VAE that makes latents of one RGB image each."""
    kind = config.get("_class_name")
    if kind not in CLASSES:
        raise ConfigError(
            f"{name}: its {CONFIG} has the _class_name {kind!r}; expected one of diffusers' {' and '.join(CLASSES)},"
            " which SD, SDXL, SD3, FLUX.1 and Sana have"
        )
    if (channels := config.get("in_channels", 3)) != 3:
        raise ConfigError(f"{name}: takes images of {channels!r} channels; expected 3, of RGB")


def weights_digest(folder: Path) -> str:
    """SHA-256 of a VAE's weights, in hexadecimal."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole_in(folder: Path) -> Path | None:
    """The VAE in a folder; None where it has none, or not all of it."""
    places = [folder / place for place in PLACES]
    return next((each for each in places if all((each / name).is_file() for name in (CONFIG, WEIGHTS))), None)


def _what_is_wrong(folder: Path) -> str:
    """Of a folder without a VAE: what it has, and what to do."""
    if not folder.is_dir():
        return f"no folder {folder} here. Give one that every worker sees"
    found = sorted(path.name for each in (folder, folder / "vae") if each.is_dir() for path in each.iterdir())
    text = (
        f"the folder {folder} has no {CONFIG} with {WEIGHTS}, nor has its folder vae; it holds"
        f" {', '.join(found[:10]) or 'nothing'}."
    )
    if any(name.endswith(_PICKLES) for name in found):
        return (
            f"{text} Only safetensors is read, as a pickle can run code. Convert it where it is trusted: load it with"
            " diffusers' from_pretrained, then save_pretrained to a new folder"
        )
    return f"{text} Put the VAE's files there, as diffusers' save_pretrained writes them"


def _files(repository: Repository) -> list[HubFile]:
    """The two files in the hub, of one commit, the configuration last, whose class is looked at first."""
    from huggingface_hub.errors import EntryNotFoundError

    seen: list[str] = []
    for place in PLACES:
        path = f"{place}/{CONFIG}".removeprefix("/")
        with contextlib.suppress(EntryNotFoundError), tempfile.TemporaryDirectory() as scratch:
            config = repository.stated(path, repository.revision)
            if config.commit not in (None, repository.revision):  # a branch may move meanwhile
                config = repository.stated(path, config.commit)
            fetch(replace(config, name=CONFIG), Path(scratch))
            said = read_json(Path(scratch, CONFIG))
            if said.get("_class_name") not in CLASSES and not place:  # of a pipeline's own
                seen.append(path)
                continue
            check_vae(said, f"{repository.name}/{path}")
            return [repository.stated(path.replace(CONFIG, WEIGHTS), config.commit), config]
    raise ConfigError(
        f"{repository.name}: has no {' nor '.join([CONFIG, f'vae/{CONFIG}'])} of diffusers'"
        f" {' or '.join(CLASSES)} with {WEIGHTS}{' (another one is there)' * bool(seen)}. Only safetensors is read, as"
        " a pickle can run code. Take a revision that has it (org/repo@revision)"
    )


def _in_the_cache(repository: Repository) -> Path:
    """In huggingface_hub's cache, filled where it is not whole."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    for place in PLACES:
        names = [f"{place}/{name}".removeprefix("/") for name in (WEIGHTS, CONFIG)]
        there = [
            try_to_load_from_cache(repository.name, name, revision=repository.revision) for name in names
        ]
        if all(isinstance(each, str) for each in there):
            return Path(str(there[-1])).parent
    with explained(repository, None, [WEIGHTS, CONFIG]):
        for file in _files(repository):
            path = Path(hf_hub_download(repository.name, file.name, revision=repository.revision))
            verify(file, path)
        if not (path.parent / WEIGHTS).is_file():
            raise WeightsError(f"{repository.name}: it was changed while it was fetched. Run again")
    return path.parent


def _in_folder(target: Path, repository: Repository) -> Path:
    """Fetched into a folder, unless another process does; the configuration is there last."""
    with explained(repository, target, [WEIGHTS, CONFIG]):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock"), repository.name):
            if (found := _whole_in(target)) is not None:  # the other process has finished
                return found
            files = _files(repository)
            folder = (target / files[-1].name).parent
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                fetch(replace(file, name=Path(file.name).name), folder)
    return folder
