"""Building a timm model with its weights, or saying clearly why that is not possible.

Only safe formats are read: safetensors, and PyTorch files with ``weights_only=True``.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dask.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import torch

#: Prefixes by which `timm.create_model` finds a model outside its registry.
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
LOCAL_PREFIXES = ("local-dir:", "local_dir:")


def create_timm_model(
    model_name: str, pretrained: bool, checkpoint_path: str | None, model_kwargs: Mapping[str, Any]
) -> Any:
    """Build a timm model with its weights, in eval mode, on the CPU.

    Parameters
    ----------
    model_name
        Any name that `timm.create_model` takes: a registry name with or without tag, ``hf-hub:org/repo``,
        ``local-dir:/folder`` (``config.json`` and ``model.safetensors``).
    pretrained
        Load the weights that belong to the name. False: random weights, the same in every process.
    checkpoint_path
        A state dict to load over the model (``.safetensors``, or a PyTorch file that is safe to load).
    model_kwargs
        Passed to `timm.create_model`.

    Raises
    ------
    ConfigError
        The name, or an argument in `model_kwargs`, is not one that timm knows.
    WeightsError
        The weights cannot be found, fetched or loaded.
    """
    import timm
    import torch

    is_hub, is_local = model_name.startswith(HUB_PREFIXES), model_name.startswith(LOCAL_PREFIXES)
    if is_local:
        _check_local_folder(model_name, pretrained)
    elif not is_hub:
        _check_registry_name(model_name)
    if checkpoint_path is not None and not Path(checkpoint_path).is_file():
        raise WeightsError(
            f"checkpoint_path={checkpoint_path!r}: no such file on this worker. Give a path that every worker sees"
        )
    # A checkpoint replaces all weights: fetching the others first would be waste, and needs a network.
    fetch = pretrained and checkpoint_path is None
    try:
        # Weights that are not loaded are random: seeded, so that every worker has the same.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(model_name, pretrained=fetch, **model_kwargs)
    except TypeError as error:
        raise ConfigError(
            f"{model_name}: timm does not take model_kwargs={dict(model_kwargs)!r}: {error}"
        ) from error
    except Exception as error:
        if fetch or is_hub:
            raise _weights_error(model_name, error) from error
        raise ConfigError(f"{model_name}: timm could not build it: {error}") from error
    if checkpoint_path is not None:
        _load_checkpoint(model, checkpoint_path)
    return model.eval()


def check_timm_name(model_name: str) -> None:
    """Raise `ConfigError` if the name is not one that timm can know; nothing is built or fetched."""
    if model_name.startswith(LOCAL_PREFIXES + HUB_PREFIXES):
        if not model_name.split(":", 1)[1]:
            raise ConfigError(f"model_name={model_name!r}: nothing after the colon")
    else:
        _check_registry_name(model_name)


def state_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and buffers, as ``sha256:<hex>``."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


def _check_registry_name(model_name: str) -> None:
    import timm

    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        near = difflib.get_close_matches(architecture, known, n=5, cutoff=0.5)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise ConfigError(
            f"model_name={model_name!r}: timm {timm.__version__} has no architecture {architecture!r}.{hint}"
            " Other sources need a prefix: hf-hub:org/repo or local-dir:/folder"
        )
    if tag:
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
        if tag not in tags:
            near = difflib.get_close_matches(tag, tags, n=5, cutoff=0.0)
            raise ConfigError(
                f"model_name={model_name!r}: timm {timm.__version__} has no weights {tag!r} for {architecture};"
                f" it has: {', '.join(near) or 'none'}"
            )


def _check_local_folder(model_name: str, pretrained: bool) -> None:
    folder = Path(model_name.split(":", 1)[1])
    found = sorted(path.name for path in folder.iterdir())[:10] if folder.is_dir() else None
    if found is None:
        raise WeightsError(
            f"{model_name}: no folder {folder} on this worker. Give one that every worker sees"
        )
    if "config.json" not in found and not (folder / "config.json").is_file():
        raise WeightsError(f"{model_name}: no config.json in {folder}; it holds {found or 'nothing'}")
    if pretrained and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise WeightsError(f"{model_name}: no model.safetensors in {folder}; it holds {found}")


def _load_checkpoint(model: torch.nn.Module, checkpoint_path: str) -> None:
    from timm.models import load_checkpoint

    try:
        load_checkpoint(model, checkpoint_path, weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"checkpoint_path={checkpoint_path!r} does not fit {type(model).__name__}: {_first_line(error)}."
            " It must be a state dict (.safetensors, or .pt/.pth without pickled objects) with the model's names"
        ) from error


def _weights_error(model_name: str, error: Exception) -> WeightsError:
    from huggingface_hub import constants

    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    return WeightsError(
        f"{model_name}: the weights could not be loaded{offline}. Tried: the cache {constants.HF_HUB_CACHE}, then"
        f" {os.environ.get('HF_ENDPOINT', 'the Hugging Face hub')}. The last error was"
        f" {type(error).__name__}: {_first_line(error)}. To work offline: fetch the weights on a machine with a"
        " network, copy that cache folder here (or point HF_HOME at it) and set HF_HUB_OFFLINE=1; or put"
        " config.json and model.safetensors into one folder and use model_name='local-dir:/that/folder'; or pass"
        " checkpoint_path="
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:300]
