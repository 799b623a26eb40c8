"""Models of transformers' that write, on their device: what their ``generate`` gives, without chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from curator_dask import backend
from curator_dask.models.by_shape import ByShape, Found
from curator_dask.models.caption_inputs import Prepared

if TYPE_CHECKING:
    import torch

Written = TypeVar("Written", bound=Prepared)


class Generating(ByShape[Written, Found]):
    """Base of such models, whose images are prepared with a text."""

    #: Of a search by beams; 1: none.
    _beams = 1

    def _generate(self, batch: Sequence[Written], most: int, **options: Any) -> Any:
        """What ``generate`` gives, without sampling."""
        import torch

        inputs = self.inputs_of(batch)
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

    @property
    def _longest(self) -> int | None:
        """Tokens of a prompt and what is written behind it, at most; None where the configuration does not say."""
        config = self._model.config.get_text_config(decoder=True)
        found = getattr(config, "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def _same_together(
        self,
        some: Sequence[Written],
        look: Callable[[Sequence[Written]], torch.Tensor],
        is_alike: Callable[[torch.Tensor, torch.Tensor], bool],
    ) -> bool:
        """Whether pictures together come to what each comes to alone; NaN does, as their rows will say so."""
        import torch

        alone = torch.cat([look([each]) for each in some])
        if bool(alone.isnan().any()):
            return True
        try:
            return some[0].shapes != some[1].shapes or is_alike(alone, look(some))
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise
            return False


def ends_of(model: Any) -> torch.Tensor:
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
