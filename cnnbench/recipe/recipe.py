"""The recipe: what to train, on what and how, checked as a whole before anything is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    Field,
)

from cnnbench.models.pretrained.presets import PRESETS
from cnnbench.recipe import yaml_tree
from cnnbench.recipe.sections import Evaluation, Init, Regularization, Section, Target, Train
from cnnbench.registry.kinds import (
    AUGMENTATIONS,
    COMPRESSIONS,
    DATASETS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    SCHEDULES,
    CompressionSpec,
    DataSpec,
    ModelSpec,
    ScheduleSpec,
)
from cnnbench.registry.registry import Spec

if TYPE_CHECKING:
    from typing import TypeAlias

    AnyModel: TypeAlias = ModelSpec
    AnyAugmentation: TypeAlias = Spec
    AnyLoss: TypeAlias = Spec
    AnyOptimizer: TypeAlias = Spec
    AnyData: TypeAlias = DataSpec
    AnySchedule: TypeAlias = ScheduleSpec
    AnyCompression: TypeAlias = CompressionSpec
else:
    AnyModel, AnyData, AnyLoss = MODELS.any_spec(), DATASETS.any_spec(), LOSSES.any_spec()
    AnyAugmentation, AnyOptimizer = AUGMENTATIONS.any_spec(), OPTIMIZERS.any_spec()
    AnySchedule, AnyCompression = SCHEDULES.any_spec(), COMPRESSIONS.any_spec()


# Characters of a recipe's name.
MAX_NAME = 64


class Recipe(Section):
    """One experiment, whole: everything that decides its result."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: AnyModel
    init: Init | None = None
    data: AnyData
    augment: list[AnyAugmentation] = []
    loss: AnyLoss = LOSSES.spec("cross_entropy")
    regularization: Regularization = Field(default_factory=Regularization)
    optimizer: AnyOptimizer
    schedule: AnySchedule = SCHEDULES.spec("constant")  # type: ignore[assignment]  # is one
    train: Train
    compress: list[AnyCompression] = Field(
        [], description="stages, each a training of its own that starts from the one before it"
    )
    evaluation: Evaluation = Field(default_factory=Evaluation)
    target: Target | None = None

    def absolute(self) -> Recipe:
        """Returns the recipe with the paths in it made absolute, to be read from anywhere."""
        update: dict[str, Any] = {}
        for section, key in (("data", "path"), ("model", "weights")):
            part = getattr(self, section)
            if (path := getattr(part, key, None)) and path not in PRESETS:
                update[section] = part.model_copy(update={key: _absolute(path)})
        if self.init and "/" in self.init.run:
            update["init"] = Init(run=_absolute(self.init.run))
        update["compress"] = [
            spec.model_copy(update={"teacher": _absolute(teacher)})
            if (teacher := getattr(spec, "teacher", None)) and "/" in teacher
            else spec
            for spec in self.compress
        ]
        return self.model_copy(update=update)

    def of_last_stage(self) -> Recipe:
        """Returns the recipe with the duration and the learning rate of its last stage.

        Small images are for the first one alone: what comes after is to keep what was learned.
        """
        if not self.compress:
            return self
        stage, lr = self.compress[-1], self.optimizer.options()["lr"]
        changed: dict[str, Any] = {}
        if stage.epochs:
            changed |= {"epochs": stage.epochs, "steps": None, "examples": None}
        if len(self.compress) > 1:
            changed["image_sizes"] = []
        update: dict[str, Any] = {
            "train": self.train.model_copy(update=changed),
            "optimizer": self.optimizer.model_copy(update={"lr": lr * stage.lr_scale}),
        }
        return self.model_copy(update=update)

    def dump(self) -> str:
        """Returns the recipe as YAML, every default written out; reading it back gives the same."""
        return yaml_tree.dump(self.model_dump())


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
