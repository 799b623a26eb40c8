"""Writing about images with a model that is on its device: batches of one shape, no chance, and texts of tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curator_dask import backend
from curator_dask.errors import ConfigError
from curator_dask.models.caption_inputs import Inputs, Prepared
from curator_dask.models.precision import pictures
from curator_dask.models.towers import silent_transformers
from curator_dask.models.weights import first_line

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("curator_dask")

AHEAD = 4
"""Batches of images that are prepared together: those that become tensors of one shape go in together."""

_HELD = 1 << 30
"""Bytes of prepared images, above which no more are prepared before these are done."""

_ALIKE = 0.99
"""Least cosine of the first token's logits of a picture in a batch to those of it alone, as bf16 may round them."""


class Caption(NamedTuple):
    """What a model wrote about an image.

    Attributes
    ----------
    text
        None where there is a reason, and where the model wrote nothing.
    cut
        Whether it had not come to its end at the last token that was allowed.
    reason
        Why the model could not write; None also where it wrote nothing.
    """

    text: str | None
    cut: bool = False
    reason: str | None = None


class Captioner:
    """A model that writes texts about images, on this process's device.

    Parameters
    ----------
    model
        As transformers has it, on the device.
    inputs
        Its processor, tokenizer and prompt.
    info
        What makes its texts, JSON-able.
    max_new_tokens, num_beams
        See `CaptionSpec`.

    Raises
    ------
    ConfigError
        A text may become longer than the model can take.
    Exception
        What the model or its processor raises of a picture.
    """

    def __init__(
        self, model: Any, inputs: Inputs, info: dict[str, Any], max_new_tokens: int, num_beams: int
    ) -> None:
        self.info = info
        self._backend = backend.current()
        self._model, self._inputs = model, inputs
        self._most, self._beams = max_new_tokens, num_beams
        self._ends = _ends_of(model)
        self._is_forced = model.generation_config.forced_eos_token_id is not None
        self._lock = threading.Lock()
        self._limit: int | None = None
        with silent_transformers():  # which warns once
            self._try()

    def __call__(self, images: Sequence[Any], batch_size: int) -> list[Caption]:
        """Write about some images.

        Parameters
        ----------
        images
            uint8 (h, w, 3) each, upright, NumPy or CuPy.
        batch_size
            Images that go in together, at most; they do where their tensors have one shape. When the device runs out
            of memory the batch is halved, and stays halved for what comes after.
        """
        from PIL import Image

        with self._lock:
            found: dict[int, Caption] = {}
            waiting: dict[Any, list[tuple[int, Prepared]]] = {}
            held = 0
            for number, image in enumerate(images):
                pixels = image.get() if hasattr(image, "get") else image
                try:
                    with silent_transformers():  # some processors warn of each image
                        prepared = self._inputs.prepare(Image.fromarray(np.asarray(pixels)))
                except Exception as error:
                    if backend.is_out_of_memory(error):
                        raise
                    said = f"{type(error).__name__}: {first_line(error)}"
                    found[number] = Caption(
                        None, reason=f"not prepared: the model's processor failed: {said}"
                    )
                    continue
                waiting.setdefault(prepared.shapes, []).append((number, prepared))
                held += prepared.size
                if held > _HELD:
                    self._do(waiting, batch_size, found)
                    held = 0
            self._do(waiting, batch_size, found)
        return [found[number] for number in range(len(images))]

    def close(self) -> None:
        """Let the model and its device memory go."""
        self._model = None
        self._backend.release_memory()

    def _do(
        self, waiting: dict[Any, list[tuple[int, Prepared]]], size: int, found: dict[int, Caption]
    ) -> None:
        """Write about all that waits, and empty it."""
        while waiting:
            _, group = waiting.popitem()
            while group:
                some = group[: min(size, self._limit or size)]
                texts: list[Caption] | None
                try:
                    texts = self._write([each for _, each in some])
                except Exception as error:
                    is_full = backend.is_out_of_memory(error)
                    if (is_full and len(some) == 1) or self._backend.lost() is not None:
                        raise
                    texts = None if is_full else self._one_by_one([each for _, each in some], error)
                if texts is None:
                    self._halve(len(some))
                    continue
                found.update(zip((number for number, _ in some), texts, strict=True))
                del group[: len(some)]

    def _one_by_one(self, batch: Sequence[Prepared], error: Exception) -> list[Caption]:
        """Write about some images with which a model failed together, so that it costs those rows that it is due to."""
        if len(batch) == 1:
            said = f"{type(error).__name__}: {first_line(error)}"
            return [Caption(None, reason=f"not written: the model failed: {said}")]
        found = []
        for each in batch:
            try:
                found += self._write([each])
            except Exception as its:
                if backend.is_out_of_memory(its) or self._backend.lost() is not None:
                    raise
                found += self._one_by_one([each], its)
        return found

    def _halve(self, images: int) -> None:
        first, self._limit = self._limit is None, (images + 1) // 2
        self._backend.release_memory()
        logger.log(
            logging.WARNING if first else logging.DEBUG,
            "%s: out of memory with %d images at once, going on with %d (set batch_size=%d)",
            self.info["source"],
            images,
            self._limit,
            self._limit,
        )

    def _generate(self, batch: Sequence[Prepared], most: int, **options: Any) -> Any:
        """What ``generate`` gives, without sampling."""
        import torch

        device, dtype = self._backend.torch_device, self._model.dtype
        inputs = {}
        for name, first in batch[0].tensors.items():
            together = torch.cat([each.tensors[name] for each in batch])
            inputs[name] = together.to(device, dtype if first.is_floating_point() else None)
        with torch.inference_mode():
            return self._model.generate(
                **inputs,
                do_sample=False,
                num_beams=self._beams,
                num_return_sequences=1,
                use_cache=True,  # what was trained may say otherwise, and some models then see their image twice
                max_new_tokens=most,
                **options,
            )

    def _write(self, batch: Sequence[Prepared]) -> list[Caption]:
        finite = _Finite(len(batch), self._beams)
        tokens = self._generate(
            batch, self._most, logits_processor=[finite], return_dict_in_generate=False
        ).cpu()
        bad = finite.bad.tolist() if finite.bad is not None else [False] * len(batch)
        return [
            self._caption(row, each.prompt) if not is_bad else Caption(None, reason=self._not_finite)
            for row, each, is_bad in zip(tokens, batch, bad, strict=True)
        ]

    def _caption(self, row: torch.Tensor, prompt: torch.Tensor | None) -> Caption:
        """The text of a row of tokens: up to its end, without the prompt and special tokens."""
        import torch

        begin = 1 if prompt is None else len(prompt)
        if prompt is not None and not torch.equal(row[:begin], prompt):
            begin = 0  # the model gives what is new alone
        ends = torch.isin(row[begin:], self._ends).nonzero()
        stop = begin + int(ends[0]) if len(ends) else len(row)
        # Some models are made to end with the last token that is allowed.
        is_ended = len(ends) and not (self._is_forced and int(ends[0]) == self._most - 1)
        is_cut = not is_ended and len(row) - begin >= self._most
        text = self._decode(row[begin:stop])
        if prompt is not None and begin:
            # With what is before it, as of a word's second piece; as transformers' pipeline does it.
            before, whole = self._decode(prompt), self._decode(row[:stop])
            at = whole.find(before)
            text = whole[at + len(before) :] if 0 <= at <= 2 else text
        return Caption(text.strip() or None, is_cut)

    def _decode(self, tokens: torch.Tensor) -> str:
        found = self._inputs.decode(tokens[None], skip_special_tokens=True)
        return str(found[0] if isinstance(found, list) else found)

    @property
    def _not_finite(self) -> str:
        cure = "; dtype='bfloat16' (--dtype) has a larger range" if self.info["dtype"] == "float16" else ""
        return f"not finite: the model ({self.info['dtype']}) gave NaN{cure}"

    def _try(self) -> None:
        """Write two tokens about two pictures, alone and together: what follows the first goes in another way."""
        import torch
        from PIL import Image

        some = [self._inputs.prepare(Image.fromarray(each)) for each in pictures(256, 256)]
        config = self._model.config.get_text_config(decoder=True)
        room = getattr(config, "max_position_embeddings", None)
        length = self._most + (1 if some[0].prompt is None else len(some[0].prompt))
        if isinstance(room, int) and length > room:
            raise ConfigError(
                f"max_new_tokens={self._most} (--max-new-tokens): with the prompt these are {length} tokens, and the"
                f" model has room for {room}"
            )

        def logits(batch: Sequence[Prepared]) -> torch.Tensor:
            made = self._generate(batch, min(2, self._most), output_logits=True, return_dict_in_generate=True)
            found: torch.Tensor = made.logits[0].float()
            return found[:: self._beams]

        alone = torch.cat([logits([each]) for each in some])
        if bool(alone.isnan().any()):
            return  # its rows will say so
        try:
            together = logits(some) if some[0].shapes == some[1].shapes else alone
            least = float(torch.nn.functional.cosine_similarity(alone, together).min())
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise
            least = 0.0
        if not least >= _ALIKE:
            self._limit = 1
            logger.warning(
                "%s: takes one image at a time: several at once change what it writes", self.info["source"]
            )


class _Finite:
    """Looks, as one of ``generate``'s processors of logits, whether a row's are numbers; it changes none."""

    def __init__(self, rows: int, beams: int) -> None:
        self._rows, self._beams = rows, beams
        self.bad: torch.Tensor | None = None

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = scores.isnan().any(dim=-1).view(self._rows, -1).any(dim=1)
        self.bad = bad if self.bad is None else self.bad | bad
        return scores


def _ends_of(model: Any) -> torch.Tensor:
    """The tokens that end a text."""
    import torch

    if model.config.model_type == "blip":  # which says so itself
        found = model.config.text_config.sep_token_id
    else:
        found = model.generation_config.eos_token_id
        if model.config.model_type == "blip-2":  # whose language model generates
            found = model.language_model.generation_config.eos_token_id
    given = found if isinstance(found, list) else [] if found is None else [found]
    return torch.tensor(given, dtype=torch.int64)
