"""All models that look at whole images beside those that embed them, by the names that recipes have for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.errors import ConfigError
from curator_dask.image.asking import QuestionModel
from curator_dask.image.captioning import CaptionModel
from curator_dask.image.classifiers import ClassificationModel
from curator_dask.image.classifiers.whole import WholeModel
from curator_dask.image.detection import DetectionModel

WHOLE_MODELS: dict[str, type[WholeModel]] = {
    "classify": ClassificationModel,
    "caption": CaptionModel,
    "detect": DetectionModel,
    "ask": QuestionModel,
}
_EXAMPLES = {
    "classify": "{'model_name': 'resnet50', 'prefix': 'seen_'}",
    "caption": "{'model_name': 'Salesforce/blip-image-captioning-base'}",
    "detect": "{'model_name': 'PekingU/rtdetr_r50vd', 'only': ['person']}",
    "ask": "{'model_name': 'org/repo', 'question': 'Is there a watermark?', 'answers': ['Yes', 'No']}",
}


def whole_models(given: Mapping[str, Any]) -> list[WholeModel]:
    """The models of a recipe.

    Parameters
    ----------
    given
        By a name of `WHOLE_MODELS`, the arguments of each model of that kind.

    Raises
    ------
    ConfigError
        They are no arguments of such a model, or two models would make the same column.
    """
    found: list[WholeModel] = []
    for name, models in given.items():
        if not isinstance(models, list | tuple) or not all(isinstance(each, Mapping) for each in models):
            raise ConfigError(f"{name}={models!r}: expected a list of models, as [{_EXAMPLES[name]}]")
        try:
            found += [WHOLE_MODELS[name](**each) for each in models]
        except TypeError as error:
            raise ConfigError(f"{name}: {error}") from None
    columns = [column for model in found for column in model.columns]
    if twice := [each for each in dict.fromkeys(columns) if columns.count(each) > 1]:
        raise ConfigError(f"{', '.join(given)}: two models would make {twice[0]!r}: give one another name")
    return found
