"""Why weights do not fit a model, and what would make them fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_FEW = 3
"""Names of each kind that a message holds."""

_SHAPES = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\((\[.*?\])\) from checkpoint,"
    r" the shape in current model is torch\.Size\((\[.*?\])\)"
)


@dataclass(frozen=True)
class Misfit:
    """How the names and shapes of a state dict differ from a model's.

    Attributes
    ----------
    missing
        Names that the model has and the weights have not.
    extra
        Names that the weights have and the model has not.
    reshaped
        Name, the model's shape and the weights' shape, such as ``("head.bias", "[1000]", "[37]")``.
    """

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    reshaped: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, error: BaseException) -> Misfit | None:
        """What torch's ``load_state_dict`` says; None where the error is another.

        torch gives it as text only, and timm loads a folder's or a repository's weights out of reach.
        """
        text = str(error)
        made = cls(
            _listed("Missing", text),
            _listed("Unexpected", text),
            tuple((name, model, weights) for name, weights, model in _SHAPES.findall(text)),
        )
        return made if made.missing or made.extra or made.reshaped else None

    def __str__(self) -> str:
        shapes = [f"{name} (expected {model}, found {weights})" for name, model, weights in self.reshaped]
        parts = (("missing", self.missing), ("not the model's", self.extra), ("of another shape", shapes))
        return "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)

    @property
    def prefix(self) -> str:
        """What stands before the model's names in the weights', such as ``"visual.trunk."``; empty if nothing."""
        wanted = set(self.missing)
        found = Counter(
            name[: dot.end()]
            for name in self.extra
            for dot in re.finditer(r"\.", name)
            if name[dot.end() :] in wanted
        )
        # Names such as `bias` end many others: a prefix explains most of what is missing.
        prefix, count = max(found.items(), key=lambda item: item[1], default=("", 0))
        return prefix if 2 * count > len(wanted) else ""

    def advice(self, classifier: Collection[str], in_folder: bool) -> str:
        """What to do; empty where nothing is known to help.

        Parameters
        ----------
        classifier
            Names of the model's layers that give the classes, such as ``{"head"}``.
        in_folder
            The weights are a model folder's, and were not given as `checkpoint_path`.
        """
        prefix, missing, extra = self.prefix, set(self.missing), set(self.extra)
        said = []
        if prefix:
            renamed = {name.removeprefix(prefix) for name in extra if name.startswith(prefix)}
            missing, extra = missing - renamed, renamed - missing
            said.append(
                f"The names have the prefix {prefix!r}. Save the weights without it and pass them as checkpoint_path:"
                f" torch.save({{name.removeprefix({prefix!r}): value for name, value in"
                f" timm.models.load_state_dict(PATH).items() if name.startswith({prefix!r})}}, 'renamed.pth')"
            )
        classes = self._classes(missing, extra, classifier)
        if classes is not None:
            # A changed config.json would not do: timm then makes a random classifier, without a word.
            path = "the folder's weights as checkpoint_path= and " if in_folder and not prefix else ""
            what = f"a classifier of {classes} classes" if classes else "no classifier"
            said.append(f'The weights have {what}. Pass {path}model_kwargs={{"num_classes": {classes}}}')
        return ". ".join(said)

    def _classes(self, missing: set[str], extra: set[str], classifier: Collection[str]) -> int | None:
        """Classes of the weights where the classifier is all that differs."""
        reshaped = {name for name, _, _ in self.reshaped}
        differing = missing | reshaped
        if extra or not differing or any(name.rpartition(".")[0] not in classifier for name in differing):
            return None
        if missing:
            return None if reshaped else 0
        # The weights of a layer of classes begin with their count.
        return int(re.findall(r"\d+", self.reshaped[0][2])[0])


def classifier_of(architecture: str) -> frozenset[str]:
    """Names of the layers that give the classes in one of timm's architectures; empty where it is not known."""
    from timm.models import get_pretrained_cfg

    names = getattr(get_pretrained_cfg(architecture, allow_unregistered=True), "classifier", None) or ()
    return frozenset([names] if isinstance(names, str) else names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{', '.join(names[:_FEW])}{more}"


def _listed(kind: str, text: str) -> tuple[str, ...]:
    line = re.search(rf"{kind} key\(s\) in state_dict: (.*)", text)
    return tuple(re.findall(r'"([^"]+)"', line[1])) if line else ()
