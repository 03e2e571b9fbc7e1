"""What a run records about its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnbench.errors import RunError


class DataFacts(BaseModel):
    """What a run remembers of its data, so that its network can be used without them."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    fingerprint: str | None  # None: the weights were trained elsewhere
    classes: list[str]
    stored_channels: int
    input_shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    train_examples: int = 0
    validation_examples: int = 0
    skipped_images: list[str] = []
    data_dir: str | None = None
    color: str
    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, data: Any, shape: Sequence[int], prepare: Any, **facts: Any) -> DataFacts:
        """Returns the facts of a Dataset, for a network's input shape and the Preprocess before."""
        return cls(
            name=data.name,
            fingerprint=data.fingerprint,
            classes=list(data.classes),
            stored_channels=data.shape[2],
            input_shape=list(shape),
            color=prepare.color,
            mean=list(prepare.mean),
            std=list(prepare.std),
            **facts,
        )


def facts_in(environment: Mapping[str, Any], path: Path) -> DataFacts:
    """Returns the facts of the data in what environment.json says.

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
