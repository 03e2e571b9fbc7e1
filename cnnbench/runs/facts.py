"""Facts about the training data that a run records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnbench.errors import RunError


class DataFacts(BaseModel):
    """Facts about the training data, so that the network can be used without the data set."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    fingerprint: str | None  # None: the weights were imported
    classes: list[str]
    stored_channels: int
    input_shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    train_examples: int = 0
    validation_examples: int = 0
    skipped_images: list[str] = []
    counts: dict[str, int] = {}  # of a folder, entries by what became of them
    pixels: dict[str, int] = {}  # of the images looked at, how many are of a kind
    removed_files: list[str] = []  # gone since the run started, which was accepted
    notes: list[str] = []  # how the data set is read
    data_dir: str | None = None
    color: str
    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, data: Any, shape: Sequence[int], prepare: Any, **facts: Any) -> DataFacts:
        """Returns the facts of a Dataset, given the network's input shape and its Preprocess."""
        return cls(
            name=data.name,
            fingerprint=data.fingerprint,
            classes=list(data.classes),
            stored_channels=data.shape[2],
            input_shape=list(shape),
            color=prepare.color,
            mean=list(prepare.mean),
            std=list(prepare.std),
            counts=dict(data.counts),
            pixels=dict(data.survey.found),
            removed_files=list(data.removed),
            notes=[*data.notes, *data.survey.note()],
            **facts,
        )


def facts_in(environment: Mapping[str, Any], path: Path) -> DataFacts:
    """Returns the facts of the data from the contents of environment.json.

    Args:
        environment: the contents of environment.json.
        path: the run directory, for error messages.

    Raises:
        RunError: they are missing or damaged.
    """
    try:
        return DataFacts.model_validate(environment.get("data"))
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, e["loc"])) or "data" for e in error.errors())
        raise RunError(
            f"environment.json is damaged: {wrong}", where=str(path / "environment.json")
        ) from None
