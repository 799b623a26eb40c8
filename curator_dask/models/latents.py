"""Latents of images by the VAE of a diffusion model: diffusers' ``AutoencoderKL`` and ``AutoencoderDC``.

A `LatentSpec` (small, frozen, hashable) travels; its `build` makes the `LatentEncoder` on the worker.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask import backend
from curator_dask.errors import ConfigError, WeightsError
from curator_dask.fingerprint import fingerprint
from curator_dask.models.hub import CONFIG, read_json
from curator_dask.models.precision import pictures
from curator_dask.models.room import Room
from curator_dask.models.vae_files import WEIGHTS, check_vae, find_vae, weights_digest
from curator_dask.models.weights import first_line

if TYPE_CHECKING:
    import torch

#: What is kept of the distribution that a VAE gives: its mean (which is its mode); one draw; mean and deviation.
FORMS = ("mean", "sample", "moments")
#: Of the numbers that are kept; NumPy has no bfloat16.
STORED = ("float16", "float32")
#: Arithmetic of the model.
ARITHMETIC = ("float32", "bfloat16", "float16")

#: Of a configuration, what changes no latent.
_NO_MATTER = (
    *("_class_name", "_diffusers_version", "_name_or_path", "sample_size", "force_upcast"),
    *("scaling_factor", "shift_factor", "latents_mean", "latents_std"),
)
#: Of tensors, those that an encoder does not need.
_OF_DECODER = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True)
class LatentSpec:
    """Everything that decides the latents of an image.

    Attributes
    ----------
    model_name, model_dir
        See `curator_dask.models.vae_files.find_vae`.
    form
        One of `FORMS`.
    scaled
        They are as the diffusion model takes them: shifted and scaled by what the configuration says. False: as the
        VAE gives them.
    stored
        One of `STORED`.
    dtype
        One of `ARITHMETIC`.
    seed
        Of the draws, with the key of each image.
    weights
        SHA-256 of the weights that it must be; empty: whatever they are.

    Raises
    ------
    ConfigError
        A value is none that it can have.
    """

    model_name: str
    model_dir: str | None = None
    form: str = "mean"
    scaled: bool = False
    stored: str = "float16"
    dtype: str = "float32"
    seed: int = 0
    weights: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.model_name, str) or not self.model_name:
            raise ConfigError(
                f"latents: model={self.model_name!r}: expected the text of a folder, or of a repository (org/repo)"
            )
        for name, known in (("form", FORMS), ("stored", STORED), ("dtype", ARITHMETIC)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"latents: {name}={value!r}: expected one of {', '.join(map(repr, known))}")
        if not isinstance(self.scaled, bool):
            raise ConfigError(f"latents: scaled={self.scaled!r}: expected True or False")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"latents: seed={self.seed!r}: expected a whole number of at least 0")

    def __str__(self) -> str:
        return self.model_name

    def known(self) -> tuple[LatentSpec, dict[str, Any]]:
        """The same with the digest of its weights, and what the latents are; the files are fetched, none is loaded.

        Returns
        -------
        The spec; and JSON-able: ``model`` (class and digest of its configuration), ``weights`` (SHA-256), ``form``,
        ``scaled``, ``scaling_factor``, ``shift_factor``, ``latents_mean``, ``latents_std`` (of the configuration),
        ``channels`` (first dimension of a member), ``factor`` (pixels a side for each number), ``stored``, ``dtype``;
        and ``seed`` of draws.

        Raises
        ------
        ConfigError
            It is no such VAE, diffusers is not installed, or the VAE has no distribution to keep more of.
        WeightsError
            The weights cannot be had.
        """
        if find_spec("diffusers") is None:
            raise ConfigError(
                "latents need diffusers, which is not installed: install 'curator-dask[latents]', here and where the"
                " workers are"
            )
        folder = find_vae(self.model_name, self.model_dir)
        config = read_json(folder / CONFIG)
        check_vae(config, str(folder))
        kind, channels = str(config["_class_name"]), int(config.get("latent_channels") or 4)
        if kind == "AutoencoderDC" and self.form != "mean":
            raise ConfigError(
                f"latents: form={self.form!r}: {self.model_name} is an AutoencoderDC, which gives one latent and no"
                " distribution: give form='mean' (--latents-form mean)"
            )
        digest = weights_digest(folder)
        if self.weights not in ("", digest):
            raise WeightsError(
                f"{folder / WEIGHTS}: expected the weights with SHA-256 {self.weights}, which the client has,"
                f" found {digest}. Give every node the same files"
            )
        decides = {name: value for name, value in config.items() if name not in _NO_MATTER}
        info = {
            "model": f"{kind} [{fingerprint(decides)[:12]}]",
            "weights": digest,
            "form": self.form,
            "scaled": self.scaled,
            **{name: config.get(name) for name in ("scaling_factor", "shift_factor")},
            **{name: config.get(name) for name in ("latents_mean", "latents_std")},
            "channels": channels * (2 if self.form == "moments" else 1),
            "factor": _factor(config),
            "stored": self.stored,
            "dtype": self.dtype,
            **({"seed": self.seed} if self.form == "sample" else {}),
        }
        return replace(self, weights=digest), info

    def build(self) -> LatentEncoder:
        """Make it on this process's device.

        Raises
        ------
        ConfigError
            It is no such VAE.
        WeightsError
            The weights cannot be had, do not fit the configuration, or are others than `weights` says.
        """
        _, info = self.known()
        return LatentEncoder(self, _load(self), info)


def _factor(config: Mapping[str, Any]) -> int:
    """Pixels a side for each number of a latent: each block but the last halves both sides."""
    blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels") or (0,)
    return int(2 ** (len(blocks) - 1))


def _load(spec: LatentSpec) -> Any:
    """The model in eval mode on this process's device, without what decodes."""
    import diffusers
    import torch
    from diffusers.utils import logging

    folder = find_vae(spec.model_name, spec.model_dir)
    kind = getattr(diffusers, str(read_json(folder / CONFIG)["_class_name"]))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, said = kind.from_pretrained(
            str(folder),
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # else it asks for accelerate
            torch_dtype=getattr(torch, spec.dtype),
        )
    except Exception as error:
        if backend.is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{folder}: the VAE cannot be loaded: {type(error).__name__}: {first_line(error)}. Its config.json and its"
            f" weights must be of one model, as save_pretrained of diffusers (here {diffusers.__version__}) writes them"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    # diffusers only warns of tensors that are missing, and leaves them random.
    missing = sorted(each for each in said["missing_keys"] if not each.startswith(_OF_DECODER))
    more = sorted(each for each in said["unexpected_keys"] if not each.startswith(_OF_DECODER))
    if missing or more:
        what = f"lack {len(missing)} tensors" if missing else f"have {len(more)} tensors too many"
        raise WeightsError(
            f"{folder}: the weights {what} of {kind.__name__}: {', '.join((missing or more)[:3])}. They must be those"
            " of the config.json beside them"
        )
    model.decoder = None  # more than half of it, and never run
    return model.to(backend.current().torch_device).eval()


class LatentEncoder:
    """A VAE that makes latents, on this process's device; what is done with it is done by one thread at a time.

    Parameters
    ----------
    spec
        What is wanted.
    model
        As diffusers has it, on the device.
    info
        See `LatentSpec.known`.

    Raises
    ------
    ConfigError
        The model cannot make latents of a picture, or makes others than its configuration says.
    """

    def __init__(self, spec: LatentSpec, model: Any, info: dict[str, Any]) -> None:
        self.info, self._spec, self._model = info, spec, model
        self._lock = threading.Lock()
        self._room = Room(spec.model_name, "{} images at once")
        self._backend = backend.current()
        self._shift, self._scale = _affine(spec, info, self._backend.torch_device)
        side = 4 * info["factor"]
        try:
            (found,) = self([pictures(side, side)[0]], [""])
        except Exception as error:
            if backend.is_out_of_memory(error) or self._backend.lost() is not None:
                raise
            raise ConfigError(
                f"{spec.model_name}: {type(model).__name__} cannot make latents of a picture:"
                f" {type(error).__name__}: {first_line(error)}"
            ) from error
        wanted = (info["channels"], 4, 4)
        if not isinstance(found, str) and found.shape != wanted:
            raise ConfigError(
                f"{spec.model_name}: expected latents of shape {wanted} of a picture of {side} pixels a side, by its"
                f" {CONFIG}; found {found.shape}"
            )

    def __call__(self, images: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray | str]:
        """Make latents of images of one shape, all at once unless memory runs out.

        Parameters
        ----------
        images
            uint8 (height, width, 3) each, RGB, sides multiples of ``info["factor"]``.
        keys
            Of each, which decide its draw.

        Returns
        -------
        Of each image (channels, height / factor, width / factor), float16 or float32: with ``moments`` the means, then
        the standard deviations. Or the reason why there is none.
        """
        found: list[np.ndarray | str] = []
        with self._lock:
            while len(found) < len(images):
                count = self._room.of(len(images) - len(found))
                some = slice(len(found), len(found) + count)
                try:
                    made = self._together(images[some], keys[some])
                except Exception as error:
                    if self._backend.lost() is not None:
                        raise
                    if not backend.is_out_of_memory(error):
                        reason = f"not encoded: the VAE failed: {type(error).__name__}: {first_line(error)}"
                        made = [reason] * count
                    elif not self._room.may_be_made(error, count):
                        raise
                    else:
                        made = []
                if not made:
                    self._room.make(count)
                found += made
        return found

    def close(self) -> None:
        """Let the model and its device memory go."""
        self._model = None
        self._backend.release_memory()

    def _together(self, images: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray | str]:
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(images)).to(self._backend.torch_device)
            # As diffusers' VaeImageProcessor makes it of a picture, to the last bit: 0 to 255 becomes -1 to 1.
            inputs = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 * 2 - 1).contiguous()
            made = self._model.encode(inputs.to(getattr(torch, self._spec.dtype)))
            latents = self._scaled(made, keys).cpu().numpy()
        return [self._stored(each) for each in latents]

    def _scaled(self, made: Any, keys: Sequence[str]) -> torch.Tensor:
        """Of what the model gives, what is asked for, in float32."""
        import torch

        if not hasattr(made, "latent_dist"):
            found: torch.Tensor = made.latent.float()
            return (found - self._shift) * self._scale
        mean, deviation = made.latent_dist.mean.float(), made.latent_dist.std.float()
        if self._spec.form == "sample":
            noise = [draw(key, self._spec.seed, tuple(mean.shape[1:])) for key in keys]
            mean = mean + deviation * torch.stack(noise).to(mean.device)
        scaled: torch.Tensor = (mean - self._shift) * self._scale
        if self._spec.form == "moments":
            return torch.cat([scaled, deviation * self._scale], dim=1)
        return scaled

    def _stored(self, latent: np.ndarray) -> np.ndarray | str:
        """As it is kept; or why it cannot be."""
        if not np.isfinite(latent).all():
            half = self._spec.dtype == "float16"
            cure = "; dtype='float32' or 'bfloat16' (--latents-dtype) have a larger range" * half
            return f"not finite: the VAE ({self._spec.dtype}) gave NaN or infinity{cure}"
        with np.errstate(over="ignore"):
            kept = latent.astype(self._spec.stored)
        if not np.isfinite(kept).all():
            return (
                f"not finite: a latent has the value {np.abs(latent).max():.6g}, too large for {self._spec.stored}:"
                " stored='float32' (--latents-stored) holds it"
            )
        return kept


def _affine(
    spec: LatentSpec, info: Mapping[str, Any], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is taken from latents, and what they are then multiplied by: (1, channels, 1, 1) or (1, 1, 1, 1).

    As diffusers' pipelines undo it: by ``latents_mean``, ``latents_std`` and ``scaling_factor`` where a configuration
    has the first two (its ``StableDiffusionXLPipeline``), else by ``shift_factor`` and ``scaling_factor``.
    """
    import torch

    shift, scale = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    if spec.scaled:
        scale = scale * float(info["scaling_factor"] or 1.0)
        if info["latents_mean"] is not None and info["latents_std"] is not None:
            shift = torch.tensor(info["latents_mean"], dtype=torch.float32).view(1, -1, 1, 1)
            scale = scale / torch.tensor(info["latents_std"], dtype=torch.float32).view(1, -1, 1, 1)
        else:
            shift = shift + float(info["shift_factor"] or 0.0)
    return shift.to(device), scale.to(device)


def draw(key: str, seed: int, shape: Sequence[int]) -> torch.Tensor:
    """Normal noise for an image, float32 on the CPU: the same for its key and a seed, whatever others are beside it."""
    import torch

    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogateescape")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(tuple(shape), generator=generator)


def npy_file(array: np.ndarray) -> bytes:
    """An array in NumPy's format 1.0, in the order of bytes that all read, without pickle."""
    file = io.BytesIO()
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    np.lib.format.write_array(file, little, (1, 0), allow_pickle=False)
    return file.getvalue()
