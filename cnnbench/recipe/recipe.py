"""The recipe of an experiment: model, data and training, checked before anything is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, PrivateAttr, model_validator

from cnnbench.errors import Problem, RecipeError, UsageError
from cnnbench.models.pretrained.presets import PRESETS
from cnnbench.recipe import yaml_tree
from cnnbench.recipe.sections import Evaluation, Init, Regularization, Section, Train
from cnnbench.registry.kinds import (
    AUGMENTATIONS,
    COMPRESSIONS,
    DATASETS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    SCHEDULES,
    TASKS,
    CompressionSpec,
    DataSpec,
    ModelSpec,
    ScheduleSpec,
)
from cnnbench.registry.registry import Spec
from cnnbench.system import files
from cnnbench.tasks.task import Task, task_named, task_of

if TYPE_CHECKING:
    from typing import TypeAlias

    AnyModel: TypeAlias = ModelSpec
    AnyAugmentation: TypeAlias = Spec
    AnyLoss: TypeAlias = Spec
    AnyOptimizer: TypeAlias = Spec
    AnyData: TypeAlias = DataSpec
    AnySchedule: TypeAlias = ScheduleSpec
    AnyCompression: TypeAlias = CompressionSpec
    AnyTarget: TypeAlias = Any
else:
    AnyModel, AnyData, AnyLoss = MODELS.any_spec(), DATASETS.any_spec(), LOSSES.any_spec()
    AnyAugmentation, AnyOptimizer = AUGMENTATIONS.any_spec(), OPTIMIZERS.any_spec()
    AnySchedule, AnyCompression = SCHEDULES.any_spec(), COMPRESSIONS.any_spec()
    AnyTarget = Union[  # noqa: UP007 - built from a tuple
        tuple(task_named(name).score.target_type() for name in TASKS.names())
    ]


# Most characters of a recipe's name.
MAX_NAME = 64


class _Origin:
    """Where a recipe was read from; it does not count when recipes are compared."""

    def __init__(self, tree: yaml_tree.Located | None = None):
        self.tree = tree

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Origin)

    __hash__ = None  # type: ignore[assignment]  # object's is a method; equal ones are no keys


class Recipe(Section):
    """One experiment: everything that determines its result."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: AnyModel
    init: Init | None = None
    data: AnyData
    augment: list[AnyAugmentation] = Field([])
    # `_with_defaults_of_task` fills in the default before validation.
    loss: AnyLoss = Field(  # type: ignore[assignment]  # so None is never seen
        default_factory=lambda: None, description="by default that of the network's task"
    )
    regularization: Regularization = Field(default_factory=Regularization)
    optimizer: AnyOptimizer
    # mypy knows only the union that the registry builds at run time.
    schedule: AnySchedule = SCHEDULES.spec("constant")  # type: ignore[assignment]  # one of it
    train: Train
    compress: list[AnyCompression] = Field(
        [], description="compression stages; each is a run that starts from the previous one"
    )
    evaluation: Evaluation = Field(default_factory=Evaluation)
    target: AnyTarget | None = None

    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_task(cls, values: Any) -> Any:
        """Fills in the task's default loss and its default metric for early stopping."""
        model = values.get("model") if isinstance(values, dict) else None
        name = model.get("name") if isinstance(model, dict) else getattr(model, "name", None)
        if not isinstance(name, str) or name not in MODELS.names():
            return values
        task = task_of(name)
        values = {"loss": {"name": task.default_loss}} | values
        train = values.get("train")
        if isinstance(train, dict) and isinstance(early := train.get("early_stopping"), dict):
            early = {"metric": task.score.key} | early
            values["train"] = train | {"early_stopping": early}
        return values

    @property
    def task(self) -> Task:
        """The task that the network is trained for."""
        return task_of(self.model)

    def read_from(self, tree: yaml_tree.Located) -> Recipe:
        """Stores the YAML tree that the recipe was read from, for errors; returns the recipe."""
        self._origin = _Origin(tree)
        return self

    def where(self, key: str) -> str:
        """Returns the file:line of a key such as "data.batch_size", or of its nearest parent."""
        if self._origin.tree is None:
            return f"recipe {self.name}"
        path = tuple(int(step) if step.isdecimal() else step for step in key.split("."))
        return self._origin.tree.at(path).where

    @contextmanager
    def located(self) -> Iterator[None]:
        """Converts errors that name a key of the recipe to errors with its file:line.

        Raises:
            RecipeError: a UsageError with a key was raised inside the context.
        """
        try:
            yield
        except UsageError as error:
            if error.key is None:
                raise
            problem = Problem(self.where(error.key), error.what, error.allowed)
            raise RecipeError([problem]) from None

    def absolute(self) -> Recipe:
        """Returns the recipe with absolute paths, so that it can be used from any folder."""
        return self.with_paths(lambda path: str(files.expanded(path).absolute()))

    def with_paths(self, change: Callable[[str], str]) -> Recipe:
        """Returns the recipe with each path in it changed, those of images, weights and runs."""
        update: dict[str, Any] = {}
        for section, key in (("data", "path"), ("model", "weights")):
            part = getattr(self, section)
            if (path := getattr(part, key, None)) and path not in PRESETS:
                update[section] = part.model_copy(update={key: change(path)})
        if self.init and "/" in self.init.run:
            update["init"] = Init(run=change(self.init.run))
        update["compress"] = [
            spec.model_copy(update={"teacher": change(teacher)})
            if (teacher := getattr(spec, "teacher", None)) and "/" in teacher
            else spec
            for spec in self.compress
        ]
        return self.model_copy(update=update)

    def of_last_stage(self) -> Recipe:
        """Returns the recipe with the duration and learning rate of its last compression stage.

        Only the first stage trains on smaller images: later ones should keep what was learned.
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
        """Returns the recipe as YAML with all defaults; `parse_recipe` returns an equal recipe."""
        return yaml_tree.dump(self.model_dump())
