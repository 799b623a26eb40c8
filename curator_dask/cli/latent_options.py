"""Options of ``export`` for what models make: the latents of a VAE, and the states of text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from curator_dask.cli.options import json_object

Model = Annotated[
    str | None,
    typer.Option(
        "--latents",
        metavar="VAE",
        help="Latents of the images of --bucket-size, KEY.latent.npy, by a VAE of diffusers': a folder, or org/repo.",
        show_default=False,
    ),
]


class Forms(StrEnum):
    """What is kept of a VAE's distribution."""

    mean = "mean"
    sample = "sample"
    moments = "moments"


class Stored(StrEnum):
    """Of which numbers latents are."""

    float16 = "float16"
    float32 = "float32"


class Arithmetic(StrEnum):
    """Of a VAE."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Form = Annotated[
    Forms | None,
    typer.Option(
        help="Of --latents: the mean of the distribution, a draw, or means and deviations.  [default: mean]",
        show_default=False,
    ),
]
Scaled = Annotated[
    bool, typer.Option("--latents-scaled", help="Shifted and scaled as the VAE's config.json says.")
]
Kept = Annotated[
    Stored | None, typer.Option(help="Of their numbers.  [default: float16]", show_default=False)
]
Dtype = Annotated[
    Arithmetic | None,
    typer.Option(help="Arithmetic of the VAE.  [default: float32]", show_default=False),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the draws.  [default: 0]", show_default=False)]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help="Images a forward pass, at most.  [default: 8]", show_default=False),
]
Only = Annotated[bool, typer.Option("--latents-only", help="Leave the images out: latents take their place.")]


States = Annotated[
    list[str] | None,
    typer.Option(
        "--text-states",
        metavar="ENCODER",
        help="States of captions, KEY.text_states.npy, by a text encoder of transformers': a folder, org/repo, or JSON:"
        ' \'{"model": "google/t5-v1_1-xxl", "name": "t5", "max_length": 120}\'. Several times, too.',
        show_default=False,
    ),
]


def states(encoders: Sequence[str] | None) -> list[str | dict[str, Any]] | None:
    """The encoders as `ImageTextPairDataset.to_webdataset` takes them; None where there are none."""
    found = [
        json_object(each, "--text-states") if each.lstrip().startswith(("{", "[")) else each
        for each in encoders or ()
    ]
    return found or None


def given(
    model: str | None, options: Mapping[str, Any], model_dir: str | None = None
) -> dict[str, Any] | None:
    """The options of latents as `ImageTextPairDataset.to_webdataset` takes them; None where there are none.

    Parameters
    ----------
    model
        The VAE.
    options
        By name, those that were given; None and False: they were not.
    model_dir
        Where it is, or will be.
    """
    said = {name: getattr(value, "value", value) for name, value in options.items()}
    said = {name: value for name, value in said.items() if value is not None and value is not False}
    if model is None:
        if said or model_dir:
            raise typer.BadParameter(
                "--latents-… and --model-dir say how latents are made: give the VAE (--latents)",
                param_hint="--latents",
            )
        return None
    images = {} if "only" not in said else {"images": not said.pop("only")}
    return {"model": model, **said, **images, **({} if model_dir is None else {"model_dir": model_dir})}
