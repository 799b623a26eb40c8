"""Questions about images: how likely a model finds each answer."""

from curator_dask.image.asking.model import QUESTION_COLUMN, QuestionModel

__all__ = ["QUESTION_COLUMN", "QuestionModel"]
