"""What is wrong between the sections of a recipe, each of which is right by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cnnbench.errors import Problem
from cnnbench.models.pretrained.presets import PRESETS
from cnnbench.recipe.yaml_tree import Located
from cnnbench.registry.kinds import (
    AUGMENTATIONS,
    COMPRESSIONS,
    DATASETS,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    WEIGHT_FILES,
    excess,
    input_shape,
    kind_of,
    min_size,
)
from cnnbench.tasks.task import tasks_served

if TYPE_CHECKING:
    from cnnbench.recipe.recipe import Recipe


def mismatches(recipe: Recipe, tree: Located) -> Iterator[Problem]:
    """Yields what is wrong between the sections of a recipe that are each right."""

    def problem(path: str, what: str, allowed: str | None = None) -> Problem:
        keys = tuple(int(key) if key.isdecimal() else key for key in path.split("."))
        return Problem(tree.at(keys).where, f"{path}: {what}", allowed)

    data, train = recipe.data, recipe.train
    if weights := recipe.model.weights:
        fitting = [name for name, preset in PRESETS.items() if preset.model == recipe.model.name]
        if weights in PRESETS and weights not in fitting:
            what = f"{weights!r} are weights of {PRESETS[weights].model}"
            yield problem("model.weights", what, f"for {recipe.model.name}: {_either(fitting)}")
        elif weights not in PRESETS and Path(weights).suffix not in WEIGHT_FILES:
            yield problem("model.weights", repr(weights), _either(fitting))
    facts = DATASETS.get(data.name).facts
    for each in (*_unserved(recipe), *recipe.task.problems(recipe)):
        yield problem(*each)
    if examples := facts.get("train_examples"):
        examples = min(examples, data.limit or examples)
        kept = data.validation
        kept = kept if isinstance(kept, int) else round(kept * examples)
        if kept >= examples:
            yield problem("data.validation", f"{kept} of {examples} examples", "less than all")
        elif data.batch_size > examples - kept:
            most = f"at most the {examples - kept} examples there are to train on"
            yield problem("data.batch_size", f"{data.batch_size}", most)
        if not train.epochs and kept < examples:
            yield from _unfit_steps(recipe, (examples - kept) // data.batch_size, problem)
    stored = facts.get("shape", (None, None, 3))
    shape = None
    if data.image_size or None not in stored:
        shape = input_shape(data, stored)
        least = min_size(recipe.model)
        for i, small in enumerate(train.image_sizes):
            if not least <= small.size <= min(shape[:2]):
                what, allowed = f"{small.size} pixels", f"{least} to {min(shape[:2])}"
                yield problem(f"train.image_sizes.{i}.size", what, allowed)
        if min(shape[:2]) < least:
            yield problem(
                "data.image_size",
                f"{recipe.model.name} cannot take images of {shape[0]}x{shape[1]} pixels",
                f"at least {least}x{least}",
            )
    elif facts.get("shape"):
        yield problem("data.image_size", f"{data.name} has images of many sizes", "set one")
    known_channels = facts["shape"][2] if "shape" in facts else None
    for key in ("mean", "std"):
        values = getattr(data, key)
        channels = {"grey": 1, None: known_channels}.get(data.color, 3)
        if values is not None and channels is not None and len(values) != channels:
            yield problem(f"data.{key}", f"{len(values)} values", f"one per channel: {channels}")
    if data.resize_short and data.image_size and data.resize_short < data.image_size:
        yield problem(
            "data.resize_short", f"{data.resize_short}", f"at least image_size {data.image_size}"
        )
    if recipe.optimizer.options().get("nesterov") and not recipe.optimizer.options()["momentum"]:
        yield problem("optimizer.nesterov", "true without a momentum", "optimizer.momentum above 0")
    if decay := recipe.optimizer.options().get("weight_decay"):
        for key in ("l1", "l2"):
            if penalty := getattr(recipe.regularization, key):
                path = f"regularization.{key}"
                what = f"{penalty} and the weight decay {decay} of {recipe.optimizer.name} both act"
                allowed = f"one of them: optimizer.weight_decay 0 or {path} 0"
                yield problem(path, f"{what} on the kernels", allowed)
    if recipe.schedule.name == "one_cycle" and recipe.schedule.warmup_epochs:
        what = f"{recipe.schedule.warmup_epochs} with one_cycle, which warms up by itself"
        yield problem("schedule.warmup_epochs", what, "0; `rise` and `start` say how it does")
    if data.batch_size % train.accumulate:
        what = f"{train.accumulate} parts of a batch of {data.batch_size}"
        yield problem("train.accumulate", what, "a divisor of data.batch_size")
    scaled = any(group.weight_decay_scale != 1 for group in train.groups)
    if scaled and not OPTIMIZERS.get(recipe.optimizer.name).facts.get("decoupled_decay", True):
        what = f"weight_decay_scale with {recipe.optimizer.name}, whose decay is in its trust ratio"
        yield problem("train.groups", what, "an optimizer with a decoupled weight decay")
    elif scaled and not recipe.optimizer.options().get("weight_decay"):
        what = "weight_decay_scale without a weight decay of the optimizer"
        yield problem("train.groups", what, "set optimizer.weight_decay above 0")
    for i, (one, other) in enumerate(itertools.pairwise(train.image_sizes), start=1):
        if other.until <= one.until:
            what = f"{other.until} after {one.until}"
            yield problem(f"train.image_sizes.{i}.until", what, "a later epoch each")
    epochs = (recipe.compress[0].epochs if recipe.compress else None) or train.epochs
    if train.image_sizes and epochs and train.image_sizes[-1].until >= epochs:
        what = f"{train.image_sizes[-1].until} of {epochs:g} epochs"
        allowed = "less than all, so that the network sees images of its size"
        yield problem(f"train.image_sizes.{len(train.image_sizes) - 1}.until", what, allowed)
    if train.epochs and recipe.schedule.warmup_epochs >= train.epochs:
        yield problem(
            "schedule.warmup_epochs",
            f"{recipe.schedule.warmup_epochs} epochs of {train.epochs}",
            "less than the training takes",
        )
    yield from _unfit_augmentations(recipe, shape, problem)
    yield from _unfit_stages(recipe, problem)
    if data.resize_short and not data.image_size:
        yield problem("data.resize_short", "given without data.image_size", "give both or neither")
    if not data.validation and not facts.get("own_validation"):
        for path, used in (
            ("train.early_stopping", train.early_stopping is not None),
            ("schedule.name", SCHEDULES.get(recipe.schedule.name).facts.get("needs_validation")),
        ):
            if used:
                yield problem(path, "needs a validation split", "set data.validation above 0")


def _unserved(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yields what does not serve the task of the network: a key, what is wrong, what is allowed."""
    task = recipe.task
    parts = [("data.name", DATASETS, recipe.data), ("loss.name", LOSSES, recipe.loss)]
    parts += [(f"augment.{i}", AUGMENTATIONS, spec) for i, spec in enumerate(recipe.augment)]
    parts += [(f"compress.{i}", COMPRESSIONS, spec) for i, spec in enumerate(recipe.compress)]
    for key, registry, spec in parts:
        tasks = tasks_served(registry.get(spec.name))
        if task.name not in tasks:
            what = f"{spec.name} is for {' and '.join(tasks)}, {recipe.model.name} for {task.name}"
            fitting = [n for n in registry.names() if task.name in tasks_served(registry.get(n))]
            yield key, what, f"one of {', '.join(fitting) or 'none'}"
    if recipe.target is not None and not hasattr(recipe.target, task.score.key):
        yield "target", f"{recipe.model.name} is for {task.name}", f"its score, {task.score.key}"
    early = recipe.train.early_stopping
    if early is not None and early.metric not in ("loss", task.score.key):
        allowed = f"loss or {task.score.key}"
        yield "train.early_stopping.metric", f"{early.metric} with {recipe.model.name}", allowed
    if recipe.evaluation.tta != "none" and not task.averages_answers:
        yield "evaluation.tta", f"{recipe.evaluation.tta} with {task.name}", "none"


def _unfit_steps(
    recipe: Recipe, per_epoch: int, problem: Callable[..., Problem]
) -> Iterator[Problem]:
    """Yields what takes more epochs than a training that is counted in steps or examples."""
    from cnnbench.recipe.sections import total_steps

    train, stages = recipe.train, recipe.compress
    total = total_steps(train, per_epoch, recipe.data.batch_size)
    # Stages may have epochs of their own.
    is_used = not stages or any(stage.epochs is None for stage in stages)
    if is_used and recipe.schedule.warmup_epochs * per_epoch >= total:
        what = f"{recipe.schedule.warmup_epochs} epochs of {per_epoch} steps"
        yield problem("schedule.warmup_epochs", what, f"less than the {total} steps of training")
    is_used = not stages or stages[0].epochs is None
    if is_used and train.image_sizes and train.image_sizes[-1].until * per_epoch >= total:
        what = f"{train.image_sizes[-1].until} epochs of {per_epoch} steps"
        allowed = f"less than the {total} steps of training, so that the network sees its size"
        yield problem(f"train.image_sizes.{len(train.image_sizes) - 1}.until", what, allowed)


def _unfit_augmentations(
    recipe: Recipe, shape: tuple[int, int, int] | None, problem: Callable[..., Problem]
) -> Iterator[Problem]:
    kinds = [kind_of(spec) for spec in recipe.augment]
    for i, (spec, kind) in enumerate(zip(recipe.augment, kinds, strict=True)):
        path = f"augment.{i}"
        if kind == "crop" and any(before != "crop" for before in kinds[:i]):
            yield problem(path, f"{spec.name} changes the size", "before all that keep it")
        if shape and (found := excess(spec, shape)):
            option, most = found
            what = f"{spec.options()[option]}, of images of {shape[0]}x{shape[1]} pixels"
            yield problem(f"{path}.{option}", what, f"at most {most}")
        if kind == "mix" and "mix" in kinds[:i]:
            what = f"{spec.name} after {recipe.augment[kinds.index('mix')].name} mixes images twice"
            yield problem(path, what, "one of them, or mixup_or_cutmix, which picks one per batch")


def _unfit_stages(recipe: Recipe, problem: Callable[..., Problem]) -> Iterator[Problem]:
    if recipe.init and recipe.model.weights:
        yield problem("init.run", "given besides model.weights", "one of them")
    begun = bool(recipe.init or recipe.model.weights)
    quantized, pruned, patterns = False, None, []
    for i, stage in enumerate(recipe.compress):
        path, facts = f"compress.{i}", COMPRESSIONS.get(stage.name).facts
        if facts.get("needs_weights") and not (begun or i):
            what = f"{stage.name} changes a network that was trained before"
            yield problem(path, what, "set init.run or model.weights, or put a stage before it")
        if quantized:
            yield problem(path, f"{stage.name} after qat", "qat is the last stage")
        quantized = quantized or stage.name == "qat"
        options = stage.options()
        if options.get("pattern") == "2:4" and options["sparsity"] != 0.5:
            what = f"{options['sparsity']}, where 2:4 leaves half of the weights"
            yield problem(f"{path}.sparsity", what, "0.5")
        if stage.name == "prune_filters" and "2:4" in patterns:
            what = "prune_filters after 2:4, whose groups of four input channels it would tear"
            yield problem(path, what, "prune_filters before it")
        patterns.append(options.get("pattern"))
        if stage.name == "prune" and options["begin"] >= options["end"]:
            what = f"begin {options['begin']} and end {options['end']}"
            yield problem(f"{path}.begin", what, "begin before the end")
        if options.get("teacher") in PRESETS:
            known = PRESETS[options["teacher"]].classes
            expected = recipe.task.expected_head_size(recipe.data)
            if expected and expected != known:
                what = f"{options['teacher']} knows {known} classes, the data have {expected}"
                yield problem(f"{path}.teacher", what, "a run that was trained on such data")
        if stage.name == "prune":
            is_less = pruned is not None and options["sparsity"] < pruned
            if is_less and options["pattern"] == "unstructured":
                what = f"{options['sparsity']} after {pruned}, and what is zero stays zero"
                yield problem(f"{path}.sparsity", what, f"{pruned} at least")
            pruned = max(pruned or 0.0, options["sparsity"])
        if stage.name == "distill" and recipe.train.image_sizes:
            what = "the teacher would see larger images than the network does"
            yield problem(path, what, "distill without train.image_sizes")
        if stage.epochs and recipe.schedule.warmup_epochs >= stage.epochs:
            what = f"{stage.epochs} with schedule.warmup_epochs {recipe.schedule.warmup_epochs}"
            yield problem(f"{path}.epochs", what, "more than the warm-up takes")
    if quantized and recipe.data.color == "hsv":
        what = "hsv with qat, whose file takes pixels to colours by a convolution"
        yield problem("data.color", what, "a colour space that is linear in the pixels")
    if quantized and recipe.train.precision != "float32":
        yield problem("train.precision", f"{recipe.train.precision} with qat", "float32")


def _either(presets: list[str]) -> str:
    files = f"a file {' or '.join(WEIGHT_FILES)}"
    return f"a preset, {' or '.join(presets)}, or {files}" if presets else files
