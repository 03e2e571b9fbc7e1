"""Checks across the sections of a recipe, each of which is valid on its own."""

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
    """Yields the problems between sections of a recipe that are each valid on their own."""

    def problem(path: str, what: str, allowed: str | None = None) -> Problem:
        keys = tuple(int(key) if key.isdecimal() else key for key in path.split("."))
        return Problem(tree.at(keys).where, f"{path}: {what}", allowed)

    data, train = recipe.data, recipe.train
    if weights := recipe.model.weights:
        fitting = [name for name, preset in PRESETS.items() if preset.model == recipe.model.name]
        if weights in PRESETS and weights not in fitting:
            what = (
                f"{weights!r} is a preset of {PRESETS[weights].model}, not of {recipe.model.name}"
            )
            yield problem("model.weights", what, _weights_for(fitting))
        elif weights not in PRESETS and Path(weights).suffix not in WEIGHT_FILES:
            what = f"{weights!r} is neither a preset nor a weight file"
            yield problem("model.weights", what, _weights_for(fitting))
    facts = DATASETS.get(data.name).facts
    for each in (*_unserved(recipe), *recipe.task.problems(recipe)):
        yield problem(*each)
    if examples := facts.get("train_examples"):
        examples = min(examples, data.limit or examples)
        kept = data.validation
        kept = kept if isinstance(kept, int) else round(kept * examples)
        if kept >= examples:
            what = f"{kept} of {examples} examples leave none to train on"
            yield problem("data.validation", what, f"must be less than {examples}")
        elif data.batch_size > examples - kept:
            what = f"{data.batch_size} is more than the {examples - kept} training examples"
            yield problem("data.batch_size", what, f"must be at most {examples - kept}")
        if not train.epochs and kept < examples:
            yield from _unfit_steps(recipe, (examples - kept) // data.batch_size, problem)
    stored = facts.get("shape", (None, None, 3))
    shape = None
    if data.image_size or None not in stored:
        shape = input_shape(data, stored)
        least = min_size(recipe.model)
        for i, small in enumerate(train.image_sizes):
            if not least <= small.size <= min(shape[:2]):
                what = f"{small.size} pixels is out of range"
                allowed = f"must be {least} to {min(shape[:2])}"
                yield problem(f"train.image_sizes.{i}.size", what, allowed)
        if min(shape[:2]) < least:
            yield problem(
                "data.image_size",
                f"{recipe.model.name} cannot take images of {shape[0]}x{shape[1]} pixels",
                f"must be at least {least}x{least}",
            )
    elif facts.get("shape"):
        what = f"not set, but {data.name} has images of different sizes"
        yield problem("data.image_size", what, "set the size that the network is to see")
    known_channels = facts["shape"][2] if "shape" in facts else None
    for key in ("mean", "std"):
        values = getattr(data, key)
        channels = {"grey": 1, None: known_channels}.get(data.color, 3)
        if values is not None and channels is not None and len(values) != channels:
            allowed = f"must have one value per channel: {channels}"
            yield problem(f"data.{key}", f"{len(values)} values", allowed)
    if data.resize_short and data.image_size and data.resize_short < data.image_size:
        what = f"{data.resize_short} is less than data.image_size"
        yield problem("data.resize_short", what, f"must be at least {data.image_size}")
    if recipe.optimizer.options().get("nesterov") and not recipe.optimizer.options()["momentum"]:
        what = "true has no effect without momentum"
        yield problem("optimizer.nesterov", what, "set optimizer.momentum above 0")
    if decay := recipe.optimizer.options().get("weight_decay"):
        for key in ("l1", "l2"):
            if penalty := getattr(recipe.regularization, key):
                path = f"regularization.{key}"
                what = f"{penalty} and weight_decay {decay} of {recipe.optimizer.name}"
                allowed = f"set optimizer.weight_decay or {path} to 0"
                yield problem(path, f"{what} would shrink the kernels twice", allowed)
    if recipe.schedule.name == "one_cycle" and recipe.schedule.warmup_epochs:
        what = f"{recipe.schedule.warmup_epochs} with one_cycle, which has its own warm-up"
        yield problem("schedule.warmup_epochs", what, "set it to 0 and use `rise` and `start`")
    if data.batch_size % train.accumulate:
        what = f"{train.accumulate} does not divide data.batch_size {data.batch_size}"
        yield problem("train.accumulate", what, "must be a divisor of it")
    scaled = any(group.weight_decay_scale != 1 for group in train.groups)
    if scaled and not OPTIMIZERS.get(recipe.optimizer.name).facts.get("decoupled_decay", True):
        what = f"weight_decay_scale with {recipe.optimizer.name}, whose decay is in its trust ratio"
        yield problem("train.groups", what, "use an optimizer with decoupled weight decay")
    elif scaled and not recipe.optimizer.options().get("weight_decay"):
        what = "weight_decay_scale has no effect without weight decay"
        yield problem("train.groups", what, "set optimizer.weight_decay above 0")
    for i, (one, other) in enumerate(itertools.pairwise(train.image_sizes), start=1):
        if other.until <= one.until:
            what = f"{other.until} is not later than {one.until}, that of the entry before"
            yield problem(f"train.image_sizes.{i}.until", what, f"must be more than {one.until}")
    epochs = (recipe.compress[0].epochs if recipe.compress else None) or train.epochs
    if train.image_sizes and epochs and train.image_sizes[-1].until >= epochs:
        what = f"{train.image_sizes[-1].until} leaves none of {epochs:g} epochs at full image size"
        path = f"train.image_sizes.{len(train.image_sizes) - 1}.until"
        yield problem(path, what, f"must be less than {epochs:g}")
    if train.epochs and recipe.schedule.warmup_epochs >= train.epochs:
        what = (
            f"{recipe.schedule.warmup_epochs:g} of {train.epochs:g} epochs leave none after warm-up"
        )
        yield problem("schedule.warmup_epochs", what, f"must be less than {train.epochs:g}")
    yield from _unfit_augmentations(recipe, shape, problem)
    yield from _unfit_stages(recipe, problem)
    if data.resize_short and not data.image_size:
        yield problem("data.resize_short", "set without data.image_size", "set both or neither")
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
    """Yields what takes longer than a training whose length is given in steps or examples."""
    from cnnbench.recipe.sections import total_steps

    train, stages = recipe.train, recipe.compress
    total = total_steps(train, per_epoch, recipe.data.batch_size)
    # Stages may have epochs of their own.
    is_used = not stages or any(stage.epochs is None for stage in stages)
    if is_used and recipe.schedule.warmup_epochs * per_epoch >= total:
        epochs = recipe.schedule.warmup_epochs
        what = f"{epochs:g} epochs of warm-up are {epochs * per_epoch:g} steps"
        allowed = f"must be less than the {total} steps of training"
        yield problem("schedule.warmup_epochs", what, allowed)
    is_used = not stages or stages[0].epochs is None
    if is_used and train.image_sizes and train.image_sizes[-1].until * per_epoch >= total:
        until = train.image_sizes[-1].until
        what = (
            f"epoch {until} ends at step {until * per_epoch}, which leaves none at full image size"
        )
        allowed = f"must end before the {total} steps of training"
        yield problem(f"train.image_sizes.{len(train.image_sizes) - 1}.until", what, allowed)


def _unfit_augmentations(
    recipe: Recipe, shape: tuple[int, int, int] | None, problem: Callable[..., Problem]
) -> Iterator[Problem]:
    kinds = [kind_of(spec) for spec in recipe.augment]
    for i, (spec, kind) in enumerate(zip(recipe.augment, kinds, strict=True)):
        path = f"augment.{i}"
        if kind == "crop" and any(before != "crop" for before in kinds[:i]):
            what = f"{spec.name} changes the image size"
            yield problem(path, what, "must come before augmentations that keep it")
        if shape and (found := excess(spec, shape)):
            option, most = found
            size = f"{shape[0]}x{shape[1]} pixels"
            what = f"{spec.options()[option]} is too large for images of {size}"
            yield problem(f"{path}.{option}", what, f"must be at most {most}")
        if kind == "mix" and "mix" in kinds[:i]:
            what = f"{spec.name} after {recipe.augment[kinds.index('mix')].name} mixes images twice"
            allowed = "use one of them, or mixup_or_cutmix, which picks one for each batch"
            yield problem(path, what, allowed)


def _unfit_stages(recipe: Recipe, problem: Callable[..., Problem]) -> Iterator[Problem]:
    if recipe.init and recipe.model.weights:
        yield problem("init.run", "cannot be combined with model.weights", "set one of them")
    begun = bool(recipe.init or recipe.model.weights)
    quantized, pruned, patterns = False, None, []
    for i, stage in enumerate(recipe.compress):
        path, facts = f"compress.{i}", COMPRESSIONS.get(stage.name).facts
        if facts.get("needs_weights") and not (begun or i):
            what = f"{stage.name} needs a trained network"
            yield problem(path, what, "set init.run or model.weights, or put a stage before it")
        if quantized:
            yield problem(path, f"{stage.name} after qat", "qat must be the last stage")
        quantized = quantized or stage.name == "qat"
        options = stage.options()
        if options.get("pattern") == "2:4" and options["sparsity"] != 0.5:
            what = f"{options['sparsity']} with pattern 2:4, which prunes half of the weights"
            yield problem(f"{path}.sparsity", what, "must be 0.5")
        if stage.name == "prune_filters" and "2:4" in patterns:
            what = "prune_filters after pattern 2:4 would break its groups of four input channels"
            yield problem(path, what, "put prune_filters before it")
        patterns.append(options.get("pattern"))
        if stage.name == "prune" and options["begin"] >= options["end"]:
            what = f"{options['begin']} is not before end {options['end']}"
            yield problem(f"{path}.begin", what, "must be less than end")
        if options.get("teacher") in PRESETS:
            known = PRESETS[options["teacher"]].classes
            expected = recipe.task.expected_head_size(recipe.data)
            if expected and expected != known:
                what = f"{options['teacher']} has {known} classes, but the data has {expected}"
                yield problem(
                    f"{path}.teacher", what, "use a run that was trained on these classes"
                )
        if stage.name == "prune":
            is_less = pruned is not None and options["sparsity"] < pruned
            if is_less and options["pattern"] == "unstructured":
                what = f"{options['sparsity']} after {pruned}, but pruned weights stay pruned"
                yield problem(f"{path}.sparsity", what, f"must be at least {pruned}")
            pruned = max(pruned or 0.0, options["sparsity"])
        if stage.name == "distill" and recipe.train.image_sizes:
            what = "distill with train.image_sizes: the teacher needs images of full size"
            yield problem(path, what, "remove one of them")
        if stage.epochs and recipe.schedule.warmup_epochs >= stage.epochs:
            warmup = f"{recipe.schedule.warmup_epochs:g}"
            what = f"{stage.epochs} with schedule.warmup_epochs {warmup}"
            yield problem(f"{path}.epochs", what, f"must be more than {warmup}")
    if quantized and recipe.data.color == "hsv":
        what = "hsv with qat, whose file converts colours by a convolution"
        yield problem("data.color", what, "use a linear colour space: rgb, grey or yuv")
    if quantized and recipe.train.precision != "float32":
        yield problem("train.precision", f"{recipe.train.precision} with qat", "use float32")


def _weights_for(presets: list[str]) -> str:
    """Returns what model.weights may be for a model with these presets."""
    return "use " + " or ".join([*presets, *(f"a {suffix} file" for suffix in WEIGHT_FILES)])
