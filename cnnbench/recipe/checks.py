"""Checks across the sections of a recipe, each of which is valid on its own.

Each check yields the key of the recipe, what is wrong, and what is allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from cnnbench.errors import Problem
from cnnbench.models.pretrained.presets import PRESETS
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.sections import total_steps
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

Mismatch = tuple[str, str, str | None]


def problems(recipe: Recipe) -> list[Problem]:
    """Returns the problems between sections of a recipe, each with its file:line."""
    found = itertools.chain(*(check(recipe) for check in CHECKS), recipe.task.problems(recipe))
    return [Problem(recipe.where(key), f"{key}: {what}", allowed) for key, what, allowed in found]


def _weights(recipe: Recipe) -> Iterator[Mismatch]:
    if not (weights := recipe.model.weights):
        if recipe.model.weights_source:
            yield "model.weights_source", "set without model.weights", "set both or neither"
        return
    fitting = [name for name, preset in PRESETS.items() if preset.model == recipe.model.name]
    if weights in PRESETS and weights not in fitting:
        what = f"{weights!r} is a preset of {PRESETS[weights].model}, not of {recipe.model.name}"
        yield "model.weights", what, _weights_for(fitting)
    elif weights not in PRESETS and Path(weights).suffix not in WEIGHT_FILES:
        what = f"{weights!r} is neither a preset nor a weight file"
        yield "model.weights", what, _weights_for(fitting)


def _task(recipe: Recipe) -> Iterator[Mismatch]:
    """Yields what does not serve the task of the network."""
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
        yield "target", f"{recipe.model.name} is for {task.name}", f"set target.{task.score.key}"
    early = recipe.train.early_stopping
    if early is not None and early.metric not in (None, "loss", task.score.key):
        what = f"{early.metric} is no metric of {task.name}"
        yield "train.early_stopping.metric", what, f"must be loss or {task.score.key}"
    if recipe.evaluation.tta != "none" and not task.averages_answers:
        yield "evaluation.tta", f"{recipe.evaluation.tta} with {task.name}", "must be none"


def _examples(recipe: Recipe) -> Iterator[Mismatch]:
    """Yields what does not fit the number of training examples, where it is known."""
    data = recipe.data
    if not (examples := DATASETS.get(data.name).facts.get("train_examples")):
        return
    examples = min(examples, data.limit or examples)
    kept = data.validation
    kept = kept if isinstance(kept, int) else round(kept * examples)
    if kept >= examples:
        what = f"{kept} of {examples} examples leave none to train on"
        yield "data.validation", what, f"must be less than {examples}"
        return
    if data.batch_size > examples - kept:
        what = f"{data.batch_size} is more than the {examples - kept} training examples"
        yield "data.batch_size", what, f"must be at most {examples - kept}"
    if not recipe.train.epochs:
        yield from _steps(recipe, (examples - kept) // data.batch_size)


def _steps(recipe: Recipe, per_epoch: int) -> Iterator[Mismatch]:
    """Yields what takes longer than a training whose length is given in steps or examples."""
    train, stages = recipe.train, recipe.compress
    total = total_steps(train, per_epoch, recipe.data.batch_size)
    # Stages may have epochs of their own.
    is_used = not stages or any(stage.epochs is None for stage in stages)
    if is_used and recipe.schedule.warmup_epochs * per_epoch >= total:
        epochs = recipe.schedule.warmup_epochs
        what = f"{epochs:g} epochs of warm-up are {epochs * per_epoch:g} steps"
        yield "schedule.warmup_epochs", what, f"must be less than the {total} steps of training"
    is_used = not stages or stages[0].epochs is None
    if is_used and train.image_sizes and train.image_sizes[-1].until * per_epoch >= total:
        until, last = train.image_sizes[-1].until, len(train.image_sizes) - 1
        what = f"epoch {until} ends at step {until * per_epoch}, and none is left at full size"
        allowed = f"must end before the {total} steps of training"
        yield f"train.image_sizes.{last}.until", what, allowed


def _shape(recipe: Recipe) -> tuple[int, int, int] | None:
    """Returns the (height, width, channels) that the network sees, where that is known."""
    stored = DATASETS.get(recipe.data.name).facts.get("shape", (None, None, 3))
    known = recipe.data.image_size or None not in stored
    return input_shape(recipe.data, stored) if known else None


def _image_size(recipe: Recipe) -> Iterator[Mismatch]:
    data, shape = recipe.data, _shape(recipe)
    if shape is None:
        if DATASETS.get(data.name).facts.get("shape"):
            what = f"not set, but {data.name} has images of different sizes"
            yield "data.image_size", what, "set the size that the network sees"
    else:
        least, most = min_size(recipe.model), min(shape[:2])
        for i, small in enumerate(recipe.train.image_sizes):
            if not least <= small.size <= most:
                what = f"{small.size} pixels is out of range"
                yield f"train.image_sizes.{i}.size", what, f"must be {least} to {most}"
        if most < least:
            what = f"{recipe.model.name} cannot take images of {shape[0]}x{shape[1]} pixels"
            yield "data.image_size", what, f"must be at least {least}x{least}"
    if data.resize_short and not data.image_size:
        yield "data.resize_short", "set without data.image_size", "set both or neither"
    elif data.resize_short and data.image_size and data.resize_short < data.image_size:
        what = f"{data.resize_short} is less than data.image_size"
        yield "data.resize_short", what, f"must be at least {data.image_size}"


def _channels(recipe: Recipe) -> Iterator[Mismatch]:
    stored = DATASETS.get(recipe.data.name).facts.get("shape")
    channels = {"grey": 1, None: stored[2] if stored else None}.get(recipe.data.color, 3)
    for key in ("mean", "std"):
        values = getattr(recipe.data, key)
        if values is not None and channels is not None and len(values) != channels:
            allowed = f"must have one value per channel: {channels}"
            yield f"data.{key}", f"{len(values)} values", allowed


def _optimizer(recipe: Recipe) -> Iterator[Mismatch]:
    options, train = recipe.optimizer.options(), recipe.train
    if options.get("nesterov") and not options["momentum"]:
        what = "true has no effect without momentum"
        yield "optimizer.nesterov", what, "set optimizer.momentum above 0"
    if decay := options.get("weight_decay"):
        for key in ("l1", "l2"):
            if penalty := getattr(recipe.regularization, key):
                path = f"regularization.{key}"
                what = f"{penalty} and weight_decay {decay} of {recipe.optimizer.name}"
                allowed = f"set optimizer.weight_decay or {path} to 0"
                yield path, f"{what} would shrink the kernels twice", allowed
    if recipe.data.batch_size % train.accumulate:
        what = f"{train.accumulate} does not divide data.batch_size {recipe.data.batch_size}"
        yield "train.accumulate", what, "must be a divisor of it"
    scaled = any(group.weight_decay_scale != 1 for group in train.groups)
    if scaled and not OPTIMIZERS.get(recipe.optimizer.name).facts.get("decoupled_decay", True):
        what = f"weight_decay_scale with {recipe.optimizer.name}, whose decay is in its trust ratio"
        yield "train.groups", what, "use an optimizer with decoupled weight decay"
    elif scaled and not options.get("weight_decay"):
        what = "weight_decay_scale has no effect without weight decay"
        yield "train.groups", what, "set optimizer.weight_decay above 0"


def _durations(recipe: Recipe) -> Iterator[Mismatch]:
    train, warmup = recipe.train, recipe.schedule.warmup_epochs
    if warmup and SCHEDULES.get(recipe.schedule.name).facts.get("own_warmup"):
        what = f"{warmup} with {recipe.schedule.name}, which has its own warm-up"
        yield "schedule.warmup_epochs", what, "set it to 0 and use `rise` and `start`"
    if train.epochs and warmup >= train.epochs:
        what = f"{warmup:g} of {train.epochs:g} epochs leave none after warm-up"
        yield "schedule.warmup_epochs", what, f"must be less than {train.epochs:g}"
    for i, (one, other) in enumerate(itertools.pairwise(train.image_sizes), start=1):
        if other.until <= one.until:
            what = f"{other.until} is not later than {one.until}, that of the entry before"
            yield f"train.image_sizes.{i}.until", what, f"must be more than {one.until}"
    epochs = (recipe.compress[0].epochs if recipe.compress else None) or train.epochs
    if train.image_sizes and epochs and train.image_sizes[-1].until >= epochs:
        what = f"{train.image_sizes[-1].until} leaves none of {epochs:g} epochs at full image size"
        last = len(train.image_sizes) - 1
        yield f"train.image_sizes.{last}.until", what, f"must be less than {epochs:g}"


def _validation(recipe: Recipe) -> Iterator[Mismatch]:
    if recipe.data.validation or DATASETS.get(recipe.data.name).facts.get("own_validation"):
        return
    plateau = SCHEDULES.get(recipe.schedule.name).facts.get("needs_validation")
    for key, needed in (
        ("train.early_stopping", recipe.train.early_stopping is not None),
        ("schedule.name", plateau),
    ):
        if needed:
            yield key, "needs a validation split", "set data.validation above 0"


def _augmentations(recipe: Recipe) -> Iterator[Mismatch]:
    shape = _shape(recipe)
    kinds = [kind_of(spec) for spec in recipe.augment]
    for i, (spec, kind) in enumerate(zip(recipe.augment, kinds, strict=True)):
        path = f"augment.{i}"
        if kind == "crop" and any(before != "crop" for before in kinds[:i]):
            what = f"{spec.name} changes the image size"
            yield path, what, "must come before augmentations that keep it"
        if shape and (found := excess(spec, shape)):
            option, most = found
            size = f"{shape[0]}x{shape[1]} pixels"
            what = f"{spec.options()[option]} is too large for images of {size}"
            yield f"{path}.{option}", what, f"must be at most {most}"
        if kind == "mix" and "mix" in kinds[:i]:
            what = f"{spec.name} after {recipe.augment[kinds.index('mix')].name} mixes images twice"
            allowed = "use one of them, or mixup_or_cutmix, which picks one for each batch"
            yield path, what, allowed


def _stages(recipe: Recipe) -> Iterator[Mismatch]:
    if recipe.init and recipe.model.weights:
        yield "init.run", "cannot be combined with model.weights", "set one of them"
    has_weights = bool(recipe.init or recipe.model.weights)
    quantized, pruned, patterns = False, None, []
    for i, stage in enumerate(recipe.compress):
        path, facts = f"compress.{i}", COMPRESSIONS.get(stage.name).facts
        if facts.get("needs_weights") and not (has_weights or i):
            what = f"{stage.name} needs a trained network"
            yield path, what, "set init.run or model.weights, or put a stage before it"
        if quantized:
            yield path, f"{stage.name} after qat", "qat must be the last stage"
        quantized = quantized or stage.name == "qat"
        options = stage.options()
        if options.get("pattern") == "2:4" and options["sparsity"] != 0.5:
            what = f"{options['sparsity']} with pattern 2:4, which prunes half of the weights"
            yield f"{path}.sparsity", what, "must be 0.5"
        if stage.name == "prune_filters" and "2:4" in patterns:
            what = "prune_filters after pattern 2:4 would break its groups of four input channels"
            yield path, what, "put prune_filters before it"
        patterns.append(options.get("pattern"))
        if stage.name == "prune" and options["begin"] >= options["end"]:
            what = f"{options['begin']} is not before end {options['end']}"
            yield f"{path}.begin", what, "must be less than end"
        if options.get("teacher") in PRESETS:
            known = PRESETS[options["teacher"]].classes
            expected = recipe.task.expected_head_size(recipe.data)
            if expected and expected != known:
                what = f"{options['teacher']} has {known} classes, but the data has {expected}"
                yield f"{path}.teacher", what, "use a run that was trained on these classes"
        if stage.name == "prune":
            is_less = pruned is not None and options["sparsity"] < pruned
            if is_less and options["pattern"] == "unstructured":
                what = f"{options['sparsity']} after {pruned}, but pruned weights stay pruned"
                yield f"{path}.sparsity", what, f"must be at least {pruned}"
            pruned = max(pruned or 0.0, options["sparsity"])
        if stage.name == "distill" and recipe.train.image_sizes:
            what = "distill with train.image_sizes: the teacher needs images of full size"
            yield path, what, "remove one of them"
        if stage.epochs and recipe.schedule.warmup_epochs >= stage.epochs:
            warmup = f"{recipe.schedule.warmup_epochs:g}"
            what = f"{stage.epochs} with schedule.warmup_epochs {warmup}"
            yield f"{path}.epochs", what, f"must be more than {warmup}"
    if quantized and recipe.data.color == "hsv":
        what = "hsv with qat, whose file converts colors by a convolution"
        yield "data.color", what, "use a linear color space: rgb, bgr, grey or yuv"
    if quantized and recipe.train.precision != "float32":
        yield "train.precision", f"{recipe.train.precision} with qat", "use float32"


def _weights_for(presets: list[str]) -> str:
    """Returns what model.weights may be for a model with these presets."""
    return "use " + " or ".join([*presets, *(f"a {suffix} file" for suffix in WEIGHT_FILES)])


CHECKS = (
    _weights,
    _task,
    _examples,
    _image_size,
    _channels,
    _optimizer,
    _durations,
    _augmentations,
    _stages,
    _validation,
)
