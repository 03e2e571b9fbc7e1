"""The recipe: what to train, on what and how, checked as a whole before anything is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from cnnbench import recipe_checks, recipe_yaml
from cnnbench.errors import Problem, RecipeError
from cnnbench.parts import (
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
from cnnbench.presets import PRESETS
from cnnbench.recipe_yaml import Located
from cnnbench.registry import Spec, did_you_mean

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
# Put into words; a recipe that has more is none.
MAX_PROBLEMS = 200


class Section(BaseModel):
    """A part of the recipe with fixed keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Regularization(Section):
    """Penalties on the kernels of convolutions and dense layers, added to the loss."""

    l1: Annotated[float, Field(ge=0)] = Field(default=0.0, description="l1 * sum |w|")
    l2: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="l2 / 2 * sum w^2: the papers' weight decay of SGD"
    )


class EarlyStopping(Section):
    """Stops when the validation metric has not improved for `patience` epochs."""

    patience: Annotated[int, Field(ge=1)] = 10
    metric: Literal["loss", "top1"] = "top1"
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class Runtime(Section):
    """How TensorFlow runs the training; what is not given is chosen as under `auto`."""

    onednn: bool | None = Field(
        default=None, description="oneDNN's kernels for convolutions on a CPU"
    )
    xla: bool | None = Field(default=None, description="compile each training step by XLA")
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="that one operation may use; null: one a core"
    )


class GradientClip(Section):
    """Bounds the gradient of the whole batch before the update; exactly one of norm and value."""

    norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of all gradients together (Pascanu et al. 2013, algorithm 1)"
    )
    value: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of each element, which stays between -value and value"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> GradientClip:
        if (self.norm is None) == (self.value is None):
            raise ValueError("give exactly one of norm and value")
        return self


class Sam(Section):
    """Sharpness-aware minimisation (Foret et al. 2021): two passes over each batch."""

    rho: Annotated[float, Field(gt=0)] = Field(
        0.05, description="how far up the gradient the weights go before the second pass"
    )


class Lookahead(Section):
    """Slow weights that follow the fast ones (Zhang et al. 2019, algorithm 1)."""

    every: Annotated[int, Field(ge=1, le=10**6)] = Field(
        5, description="updates after which the slow weights move, the paper's k"
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="of the way that they move, the paper's alpha"
    )


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


class Group(Section):
    """Weights with a learning rate and a weight decay of their own."""

    match: Annotated[str, Field(min_length=1), AfterValidator(_regular_expression)] = Field(
        description="regular expression, searched in a weight's path such as stem_norm/beta"
    )
    lr_scale: Annotated[float, Field(ge=0)] = Field(1.0, description="times optimizer.lr")
    weight_decay_scale: Annotated[float, Field(ge=0)] = Field(
        1.0, description="times optimizer.weight_decay, which the learning rate multiplies too"
    )


class ImageSize(Section):
    """What training images are scaled to in its first epochs (Tan & Le 2021, section 4)."""

    until: Annotated[int, Field(ge=1)] = Field(description="the epoch that ends it")
    size: Annotated[int, Field(ge=1, le=4096)] = Field(description="height and width in pixels")


class Train(Section):
    """How long to train, in which arithmetic, and what goes on around the optimizer.

    Exactly one of epochs, steps and examples is given.
    """

    epochs: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=10**12)] | None = None
    examples: Annotated[int, Field(ge=1, le=10**15)] | None = None
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    strategy: Literal["auto", "one_device", "mirrored", "tpu"] = "auto"
    runtime: Literal["auto"] | Runtime = Field(
        "auto", description="auto: the fastest on this machine, measured before a long training"
    )
    steps_per_call: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="training steps that one call into TensorFlow runs"
    )
    deterministic: bool = Field(True, description="the same bits from the same seed, on a CPU")
    checkpoint_every: (
        Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}m$")]
    ) = Field("10m", description="steps as an integer, or minutes as in 10m; besides each epoch")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of the moving average of all weights, which is then what is validated, "
        "kept and exported; less in the first steps: (1 + step) / (10 + step)",
    )
    gradient_clip: GradientClip | None = None
    accumulate: Annotated[int, Field(ge=1, le=256)] = Field(
        1,
        description="parts in which a batch goes through the network, for less memory; their "
        "gradients make one update, their statistics for batch norm as many moves",
    )
    sam: Sam | None = None
    lookahead: Lookahead | None = None
    groups: list[Group] = Field([], description="the first that matches a weight counts for it")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="of the learning rate from each stage to the one before it (Bao et al. 2022); "
        "the head has the whole",
    )
    image_sizes: list[ImageSize] = Field(
        [], description="smaller images at first, each entry up to its epoch; then the whole size"
    )
    on_nan: Literal["stop", "rollback"] = Field(
        "stop",
        description="where a loss or weight is not finite: stop, or go back to the last "
        "checkpoint and halve the learning rate, three times at most",
    )
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _one_duration(self) -> Train:
        given = [k for k in ("epochs", "steps", "examples") if getattr(self, k) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"found {found}: give exactly one of epochs, steps and examples")
        return self


class Init(Section):
    """What training starts from in place of random weights."""

    run: Annotated[str, Field(min_length=1)] = Field(
        description="a run directory, or the name of a recipe: its newest finished run below runs/"
    )


class Evaluation(Section):
    """How `cnnbench eval` asks the network; training, exports and `predict` do without."""

    tta: Literal["none", "flip", "flip_shift"] = Field(
        default="none",
        description="test-time augmentation, the mean of logits over an image and its mirror; "
        "flip_shift: half the weight on both of them moved by one pixel either way",
    )


class Target(Section):
    """The published or measured number that the recipe is to reach."""

    top1: Annotated[float, Field(gt=0, le=1)]
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0
    source: str


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
        return recipe_yaml.dump(self.model_dump())


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a YAML file.
        overrides: assignments such as `train.epochs=3`, checked as the file is.

    Raises:
        RecipeError: with every problem found, each with its file:line and what was allowed.
    """
    tree = recipe_yaml.read(Path(path))
    for assignment in overrides:
        recipe_yaml.override(tree, assignment)
    return check(tree)


def parse_recipe(text: str) -> Recipe:
    """Reads back what `Recipe.dump` wrote."""
    return _validated(recipe_yaml.parse(text, "recipe"))


def read_recipe(path: Path) -> Recipe:
    """Reads back a file that has what `Recipe.dump` wrote.

    That its sections fit each other was seen to before; a smoke run may begin with a stage that
    otherwise needs a trained network.

    Raises:
        RecipeError: it has something else.
    """
    return _validated(recipe_yaml.read(path))


def check(tree: Located) -> Recipe:
    """Turns a located tree into a recipe, or raises RecipeError with every problem in it."""
    recipe = _validated(tree)
    if problems := list(recipe_checks.mismatches(recipe, tree)):
        raise RecipeError(problems)
    return recipe


def _validated(tree: Located) -> Recipe:
    """Turns a located tree into a recipe whose sections are each right by themselves."""
    if not isinstance(tree.value, dict):
        raise RecipeError([Problem(tree.where, "not a mapping", "a recipe has keys and values")])
    try:
        return Recipe.model_validate(tree.plain())
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_problem(detail, tree) for detail in found[:MAX_PROBLEMS]]
        if more := len(found) - len(problems):
            problems.append(Problem(tree.where, f"{more} more problems"))
        raise RecipeError(_merged(problems)) from None


def _problem(detail: Any, tree: Located) -> Problem:
    """Turns one of pydantic's errors into words a user of YAML understands."""
    loc, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    path, section = _resolve(loc, tree)
    node = tree.at(tuple(path))
    dotted = ".".join(map(str, path)) or "recipe"
    given = repr(node.plain())[:80]
    if kind == "extra_forbidden":
        allowed = did_you_mean(str(loc[-1]), section.model_fields if section else ())
        return Problem(node.where, f"unknown key {dotted!r}", allowed)
    if kind == "missing":
        return Problem(node.where, f"{dotted!r} is missing")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        if "tag" not in context:
            return Problem(node.where, f"{dotted}: no name", "write {name: …, options…}")
        names = [name.strip(" '") for name in context["expected_tags"].split(",")]
        where = tree.at((*path, "name")).where
        return Problem(
            where, f"unknown {dotted} {context['tag']!r}", did_you_mean(context["tag"], names)
        )
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = re.sub(r"a valid dictionary or (object|instance of \w+)", "a section", message)
    return Problem(node.where, f"{dotted}: {given}", message)


def _merged(problems: list[Problem]) -> list[Problem]:
    """Joins what the members of a union say of one value, each once."""
    allowed: dict[tuple[str, str], dict[str | None, None]] = {}
    for problem in problems:
        allowed.setdefault((problem.where, problem.what), {})[problem.allowed] = None
    return [
        Problem(where, what, " or ".join(filter(None, each)) or None)
        for (where, what), each in allowed.items()
    ]


def _resolve(loc: tuple[Any, ...], tree: Located) -> tuple[list[Any], type[BaseModel] | None]:
    """Returns the path in the YAML of pydantic's location, and the section that its parent is.

    A location has steps that no key stands for: the name of a part, the member of a union.
    """
    path: list[Any] = []
    section: type[BaseModel] | None = Recipe
    registries = {
        "model": MODELS, "data": DATASETS, "augment": AUGMENTATIONS, "loss": LOSSES,
        "optimizer": OPTIMIZERS, "schedule": SCHEDULES,
        "compress": COMPRESSIONS,
    }  # fmt: skip
    for i, step in enumerate(loc):
        parent = tree.at(tuple(path))
        last = i == len(loc) - 1
        if isinstance(step, int):
            path.append(step)
        elif (
            section is None
            and path[0] in registries
            and isinstance(parent.value, dict)
            and "name" in parent.value
            and step == parent.value["name"].value
        ):
            section = registries[path[0]].spec_type(step)
        elif section is not None and (step in section.model_fields or last):
            path.append(step)
            if not last:
                section = _section_of(section, step)
    return path, section


def _section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    annotation = section.model_fields[key].annotation
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None
