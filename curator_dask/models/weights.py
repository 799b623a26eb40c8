"""Building a timm model with its weights, or saying clearly why that is not possible.

Only safe formats are read: safetensors, and PyTorch files with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dask.errors import ConfigError, WeightsError
from curator_dask.models.misfit import Misfit, classifier_of

if TYPE_CHECKING:
    import torch

#: Prefixes by which `timm.create_model` finds a model outside its registry.
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
LOCAL_PREFIXES = ("local-dir:", "local_dir:")
#: Said of a model whose weights were not loaded, behind its name.
RANDOM = "with random weights"
# torch's random state belongs to the process: two models built at once would draw from one seed in turns.
_SEEDED = threading.Lock()
_WORD = re.compile(r"\w+")


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
    if (is_hub or is_local) and not model_name.split(":", 1)[1]:
        raise ConfigError(f"model_name={model_name!r}: expected a repository or a folder after the colon")
    if is_local:
        _check_local_folder(model_name, pretrained and checkpoint_path is None)
    elif not is_hub:
        _check_registry_name(model_name)
        if pretrained and checkpoint_path is None and not timm.models.is_model_pretrained(model_name):
            raise WeightsError(
                f"{model_name}: timm {timm.__version__} knows no weights for it. Pass checkpoint_path=, or"
                " pretrained=False for random ones"
            )
    if checkpoint_path is not None and not Path(checkpoint_path).is_file():
        raise WeightsError(
            f"checkpoint_path={checkpoint_path!r}: no such file on this worker. Give a path that every worker sees"
        )
    # A checkpoint replaces all weights: fetching the others first would be waste, and needs a network.
    fetch = pretrained and checkpoint_path is None
    from_hub = is_hub or (fetch and not is_local)
    if from_hub:
        _check_hub(model_name)

    def create() -> Any:
        # Weights that are not loaded are random: seeded, so that every worker has the same.
        with _SEEDED, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(model_name, pretrained=fetch, **model_kwargs)

    try:
        try:
            model = create()
        except Exception as error:
            if not (from_hub and is_of_the_network(error)):
                raise
            # Some broken connections keep huggingface_hub from looking into its cache.
            with _offline():
                model = create()
    except Exception as error:
        if isinstance(error, TypeError) and model_kwargs:
            raise ConfigError(
                f"{model_name}: timm does not take model_kwargs={dict(model_kwargs)!r}: {error}"
            ) from error
        misfit = Misfit.of(error)
        if misfit is not None:
            what = f"{model_name}: its weights do not fit"
            classifier = classifier_of(_architecture_in(model_name)) if is_local else ()
            raise WeightsError(_not_fitting(what, misfit, classifier, is_local)) from error
        if is_local:
            raise WeightsError(
                f"{model_name}: the folder's model cannot be loaded: {type(error).__name__}: {first_line(error)}."
                " Its config.json must be one that timm wrote, with an architecture that this timm"
                f" ({timm.__version__}) has, and its weights that architecture's"
            ) from error
        if fetch or is_hub:
            raise _weights_error(model_name, error) from error
        raise ConfigError(f"{model_name}: timm could not build it: {error}") from error
    if checkpoint_path is not None:
        _load_checkpoint(model, checkpoint_path)
    return model.eval()


def state_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and buffers, as ``sha256:<hex>``."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


def check_name(model_name: str) -> None:
    """See that a model's name is none that no worker of this machine could load, before there are workers.

    timm is loaded, which takes seconds, only for a name whose words are nowhere in its sources.

    Raises
    ------
    ConfigError
        timm has no such model.
    WeightsError
        There is no such folder.
    """
    if model_name.startswith(LOCAL_PREFIXES):
        _check_local_folder(model_name, with_weights=False)
    elif not model_name.startswith(HUB_PREFIXES):
        timm = find_spec("timm")
        folders = timm.submodule_search_locations if timm is not None else None
        sources = sorted(Path(folders[0], "models").glob("*.py")) if folders else []
        words = {*_WORD.findall(model_name)}
        for source in sources:
            words.difference_update(_WORD.findall(source.read_text(encoding="utf-8")))
            if not words:
                return
        _check_registry_name(model_name)


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


def _check_local_folder(model_name: str, with_weights: bool) -> None:
    folder = Path(model_name.split(":", 1)[1])
    found = sorted(path.name for path in folder.iterdir())[:10] if folder.is_dir() else None
    if found is None:
        raise WeightsError(
            f"{model_name}: no folder {folder} on this worker. Give one that every worker sees"
        )
    if "config.json" not in found and not (folder / "config.json").is_file():
        raise WeightsError(f"{model_name}: no config.json in {folder}; it holds {found or 'nothing'}")
    if with_weights and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise WeightsError(
            f"{model_name}: no model.safetensors in {folder}; it holds {found}. Weights of another name or form:"
            " pass them as checkpoint_path="
        )


def _architecture_in(model_name: str) -> str:
    """The architecture that a folder's configuration names."""
    config = json.loads(Path(model_name.split(":", 1)[1], "config.json").read_text())
    return str(config["architecture"])


def hub_repository(model_name: str) -> str | None:
    """The repository of the hub that timm loads a model's weights from; None where they come from elsewhere."""
    from timm.models import get_pretrained_cfg

    if model_name.startswith(HUB_PREFIXES):
        return model_name.split(":", 1)[1]
    return getattr(get_pretrained_cfg(model_name), "hf_hub_id", None) or None


def _check_hub(model_name: str) -> None:
    """Fail at once where the hub does not answer and none of the model is cached.

    huggingface_hub would come to the same end after a minute of trying again.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    repository = hub_repository(model_name) or ""
    cached = Path(constants.HF_HUB_CACHE, "models--" + repository.partition("@")[0].replace("/", "--"))
    if not repository or cached.is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        raise _weights_error(model_name, error) from error


def is_of_the_network(error: Exception) -> bool:
    """Whether the connection failed, and not what came over it."""
    # huggingface_hub's HTTP library changes with its versions (requests, httpx, httpx2).
    modules = [kind.__module__ for kind in type(error).__mro__]
    return isinstance(error, ConnectionError | TimeoutError) or any(
        name.startswith(("httpx", "httpcore", "requests")) for name in modules
    )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let huggingface_hub look into its cache only."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_checkpoint(model: Any, checkpoint_path: str) -> None:
    from timm.models import load_checkpoint

    try:
        load_checkpoint(model, checkpoint_path, weights_only=True)
    except Exception as error:
        what = f"checkpoint_path={checkpoint_path!r} does not fit {type(model).__name__}"
        misfit = Misfit.of(error)
        if misfit is not None:
            classifier = classifier_of(model.pretrained_cfg["architecture"])
            raise WeightsError(_not_fitting(what, misfit, classifier)) from error
        raise WeightsError(
            f"{what}: {first_line(error)}."
            " It must be a state dict (.safetensors, or .pt/.pth without pickled objects) with the model's names"
        ) from error


def _not_fitting(what: str, misfit: Misfit, classifier: Collection[str], in_folder: bool = False) -> str:
    """The message: what differs, and what to do."""
    advice = misfit.advice(classifier, in_folder) or (
        "Give weights of this architecture and size, or the architecture and model_kwargs of these weights"
    )
    return f"{what}: {misfit}. {advice}"


def _weights_error(model_name: str, error: Exception) -> WeightsError:
    from huggingface_hub import constants

    hub = (
        "not the hub, as HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"then {constants.ENDPOINT}"
    )
    return WeightsError(
        f"{model_name}: the weights could not be loaded. Tried: the cache {constants.HF_HUB_CACHE}, {hub}. The last"
        " error was"
        f" {type(error).__name__}: {first_line(error)}. To work offline: fetch the weights on a machine with a"
        " network, copy that cache folder here (or point HF_HOME at it) and set HF_HUB_OFFLINE=1; or put"
        " config.json and model.safetensors into one folder and use model_name='local-dir:/that/folder'; or pass"
        " checkpoint_path="
    )


def first_line(error: Exception) -> str:
    """What an error says, short enough for a message."""
    return (str(error).strip() or repr(error)).splitlines()[0][:300]
