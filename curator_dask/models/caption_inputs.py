"""What goes into a model that writes texts about images: an image's tensors, as the model's own processor makes them.

Each image goes through the processor alone, so what it becomes depends on no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dask.errors import ConfigError
from curator_dask.models import by_shape
from curator_dask.models.hub import CONFIG, PROCESSORS
from curator_dask.models.parts import load_part, name_of_parts
from curator_dask.models.tokens import TOKENIZERS

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

TEMPLATES = ("chat_template.json", "chat_template.jinja")
FILES = ("generation_config.json", *TEMPLATES, *PROCESSORS, *TOKENIZERS)
"""What a model has besides its weights, as transformers writes it; the last is always there."""

IMAGE_ALONE = "vision-encoder-decoder"
MAY_HAVE_TEXT = ("blip", "blip-2", "git")
NEED_TEXT = ("florence2", "paligemma")
"""``model_type`` of models without a chat template, by whether a text goes in with the image."""


@dataclass(frozen=True)
class Prepared(by_shape.Prepared):
    """What goes into a model for one image.

    Attributes
    ----------
    tensors
        As ``generate`` takes them.
    prompt
        int64 (length,): the tokens that the output begins with, where it has those of the input; None where the
        output begins with a token that only starts it.
    """

    prompt: torch.Tensor | None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """By which images may go in together, without padding."""
        return (None if self.prompt is None else len(self.prompt), *super().shapes)


Prepare = Callable[..., Prepared]
"""Of an image, and of a prompt that takes the place of the one for all."""


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Raise ConfigError where a ``config.json`` is of no model of transformers' that writes texts about images."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    found = config.get("model_type")
    if found not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(
            f"{name}: its {CONFIG} has the model_type {found!r}, which is none of transformers' that write texts about"
            " images (AutoModelForImageTextToText), such as BLIP, GIT, LLaVA, SmolVLM or Qwen2-VL"
        )


class Inputs:
    """A model's processor and tokenizer, and the prompt.

    Parameters
    ----------
    folder
        With their files.
    config
        The model's, as transformers has it.
    prompt
        What is asked, or how the text begins; None: nothing.

    Raises
    ------
    ConfigError
        They cannot be loaded, or the model cannot be asked so.
    """

    #: ``model_type`` of models without a chat template that take a text with the image, and need it.
    need_text: tuple[str, ...] = NEED_TEXT

    def __init__(self, folder: Path, config: Any, prompt: str | None) -> None:
        self._folder, self._config, self._prompt = folder, config, prompt
        kind = config.model_type
        if kind == IMAGE_ALONE:
            if prompt is not None:
                raise ConfigError(
                    f"prompt={prompt!r} (--prompt): {folder} ({kind}) takes an image, and no text"
                )
            self._images, self.tokenizer = self._load("AutoImageProcessor"), self._load("AutoTokenizer")
            self._parts: list[Any] = [self._images, self.tokenizer]
            self.decode: Callable[..., Any] = self.tokenizer.decode
            self.prepare: Prepare = self._image_alone
            return
        self._processor = processor = self._load("AutoProcessor")
        self._images = getattr(processor, "image_processor", None)
        self.tokenizer = getattr(processor, "tokenizer", None)
        if self._images is None or self.tokenizer is None:
            raise ConfigError(
                f"{folder}: expected a processor with one of images and a tokenizer, found {type(processor).__name__}:"
                f" put {PROCESSORS[1]} there, as save_pretrained of the model's processor writes it"
            )
        self._parts = [processor, self._images, self.tokenizer]
        self.decode = processor.post_process_image_text_to_text
        if kind in MAY_HAVE_TEXT:
            self.prepare = {"blip": self._of_blip, "blip-2": self._of_blip2, "git": self._of_git}[kind]
            return
        is_chat = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if kind not in self.need_text and not is_chat:
            raise ConfigError(
                f"{folder}: {kind} has no chat template, and how it is asked for a caption is not known here."
                f" Expected a model with one ({' or '.join(TEMPLATES)}), or one of"
                f" {', '.join((IMAGE_ALONE, *MAY_HAVE_TEXT, *self.need_text))}"
            )
        if prompt is None:
            example = "'<CAPTION>'" if kind == "florence2" else "'Describe this image in one sentence.'"
            raise ConfigError(
                f"{folder}: {kind} has to be asked: give a prompt (--prompt), such as {example}"
            )
        self.prepare = self._of_text if kind in self.need_text else self._of_chat

    @property
    def name(self) -> str:
        """The processor, and twelve digits of its files."""
        return name_of_parts(self._folder, self._parts, {*TEMPLATES, *PROCESSORS, *TOKENIZERS})

    def _load(self, kind: str) -> Any:
        return load_part(self._folder, kind, FILES)

    def _image_alone(self, image: Image) -> Prepared:
        return Prepared(_tensors(self._images(images=image, return_tensors="pt")), None)

    def _of_blip(self, image: Image) -> Prepared:
        """As BLIP's documentation has it: the text is how the caption begins, or there is none."""
        import torch

        text = {} if self._prompt is None else {"text": self._prompt}
        tensors = _tensors(self._processor(images=image, return_tensors="pt", **text))
        begin = torch.tensor([self._config.text_config.bos_token_id])
        if self._prompt is None:
            return Prepared(tensors, begin)
        # `generate` takes the first token for another, and leaves out the last, which ends the text.
        return Prepared(tensors, torch.cat([begin, tensors["input_ids"][0, 1:-1]]))

    def _of_git(self, image: Image, prompt: str | None = None) -> Prepared:
        """As GIT's documentation has it: the text without the token that ends it."""
        import torch

        text = self._prompt if prompt is None else prompt
        ids = [] if text is None else self.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([self.tokenizer.cls_token_id, *ids])
        pixels = _tensors(self._images(images=image, return_tensors="pt"))
        inputs = {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None]}
        return Prepared({**pixels, **inputs}, tokens)

    def _of_blip2(self, image: Image, prompt: str | None = None) -> Prepared:
        """As BLIP-2's documentation has it."""
        import torch

        if self._prompt is not None:
            return self._of_text(image, prompt)
        config = self._config
        tensors = _tensors(self._images(images=image, return_tensors="pt"))
        begin = [*[config.image_token_index] * config.num_query_tokens, config.text_config.bos_token_id]
        return Prepared(tensors, None if config.text_config.is_encoder_decoder else torch.tensor(begin))

    def _of_text(self, image: Image, prompt: str | None = None) -> Prepared:
        text = self._prompt if prompt is None else prompt
        return self._with_ids(self._processor(images=image, text=text, return_tensors="pt"))

    def _of_chat(self, image: Image, prompt: str | None = None) -> Prepared:
        text = self._prompt if prompt is None else prompt
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        return self._with_ids(
            self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )

    def _with_ids(self, made: Mapping[str, Any]) -> Prepared:
        tensors = _tensors(made)
        apart = (
            self._config.is_encoder_decoder or self._config.get_text_config(decoder=True).is_encoder_decoder
        )
        return Prepared(tensors, None if apart else tensors["input_ids"][0])


def _tensors(made: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor gives, if it is what images can be put together of: tensors with a first dimension.

    Raises
    ------
    ConfigError
        It is something else, or has nothing of the image.
    """
    import torch

    found = dict(made)
    others = {name: type(each).__name__ for name, each in found.items() if not isinstance(each, torch.Tensor)}
    if others or not all(each.ndim for each in found.values()):
        raise ConfigError(f"expected tensors of the processor, found {others or found}")
    if not any(each.is_floating_point() for each in found.values()):
        raise ConfigError(f"the processor puts no image into what it makes: {', '.join(found) or 'nothing'}")
    return found
