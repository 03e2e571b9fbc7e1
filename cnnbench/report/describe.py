"""Descriptions of networks, recipes and registered parts, without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict

from cnnbench.models.build import build_model, stage_of
from cnnbench.models.complexity import count_macs, count_params, layer_macs
from cnnbench.models.pretrained.presets import PRESETS
from cnnbench.models.pretrained.sources import has_published, published_networks
from cnnbench.recipe.load import load_recipe
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import (
    AUGMENTATIONS,
    COMPRESSIONS,
    DATASETS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    SCHEDULES,
    input_shape,
)

REGISTRIES = {
    "datasets": DATASETS,
    "augmentations": AUGMENTATIONS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "losses": LOSSES,
    "compressions": COMPRESSIONS,
}


class ModelRow(TypedDict):
    """A registered network.

    Attributes:
        name: its name in a recipe's `model`.
        family: its family.
        params: number of trainable parameters, for its native input and number of classes.
        macs: multiply-accumulates of one image of that size.
        input: native [height, width, channels].
        source: the paper.
    """

    name: str
    family: str
    params: int
    macs: int
    input: list[int]
    source: str


def show_model(name: str) -> dict[str, Any]:
    """Describes a registered model at its native input and number of classes."""
    facts = MODELS.get(name).facts
    built = build_model(name, facts["native"], facts["native_classes"])
    return _describe(built, {"model": name, "family": facts["family"], "source": facts["source"]})


def show_recipe(recipe: Recipe) -> dict[str, Any]:
    """Describes what a recipe would train, with every default written out.

    If the number of classes is unknown until the data set is opened, the model's native number is
    used.
    """
    native = MODELS.get(recipe.model.name).facts
    facts = DATASETS.get(recipe.data.name).facts
    shape = input_shape(recipe.data, facts.get("shape", native["native"]))
    head_size = recipe.task.expected_head_size(recipe.data, recipe.model)
    assert head_size is not None  # the model has a native one
    built = build_model(recipe.model, shape, head_size)
    about = {"recipe": recipe.name, "model": recipe.model.name, "data": recipe.data.name}
    lr, batch = recipe.optimizer.options()["lr"], recipe.data.batch_size
    scaling = {"lr": lr, "batch_size": batch, "lr_per_256_images": lr * 256 / batch}
    return _describe(built, about) | {"learning_rate": scaling, "recipe": recipe.dump()}


def list_models() -> list[ModelRow]:
    """Lists the registered networks.

    Returns:
        One row per network, by name.

    Example:
        >>> import cnnbench
        >>> [row["params"] for row in cnnbench.list_models() if row["name"] == "resnet50"]
        [25557032]
    """
    return [_model_row(name) for name in MODELS.names()]


def parts(kind: str) -> Sequence[Mapping[str, Any]]:
    """Lists the registered parts of a kind ("models", "presets", "datasets", …), one row each."""
    if kind == "models":
        return list_models()
    if kind == "presets":
        return [_preset_row(name) for name in PRESETS]
    if kind == "weights":
        return weights()
    registry = REGISTRIES[kind]
    return [
        {
            "name": name,
            "options": ", ".join(
                f"{key}={field.default!r}" if not field.is_required() else key
                for key, field in registry.spec_type(name).model_fields.items()
                if key != "name" and key not in registry.base.model_fields
            ),
            "about": registry.get(name).summary,
        }
        for name in registry.names()
    ]


def _preset_row(name: str) -> dict[str, Any]:
    row = {"name": name} | asdict(PRESETS[name])
    return row | row.pop("preprocessing")


def weights() -> list[dict[str, Any]]:
    """Lists the published networks with the names and shapes of ours.

    Returns:
        One row per published network: "name", as `model.weights_source` takes it; "model", ours;
        "options" of `model` to set; "mean", "std" and "color" of its images; "importable": "yes",
        or why not.
    """
    rows = []
    for model in MODELS.names():
        if not has_published(model):
            continue
        for network in published_networks(model):
            prepared = network.preprocessing
            rows.append(
                {
                    "name": network.name,
                    "model": model,
                    "options": ", ".join(f"{k}={v!r}" for k, v in network.options.items()),
                    "color": prepared.color,
                    "mean": list(prepared.mean),
                    "std": list(prepared.std),
                    "importable": f"no: {network.differs}" if network.differs else "yes",
                }
            )
    return rows


def recipes(folder: Path) -> list[dict[str, Any]]:
    """Lists the recipes in a folder."""
    rows = []
    for path in sorted(folder.glob("*.yaml")):
        recipe = load_recipe(path)
        rows.append(
            {
                "name": path.stem,
                "model": recipe.model.name,
                "data": recipe.data.name,
                "target": recipe.task.score.of_target(recipe.target) if recipe.target else None,
            }
        )
    return rows


def _model_row(name: str) -> ModelRow:
    facts = MODELS.get(name).facts
    return {
        "name": name,
        "family": facts["family"],
        "params": facts["params"],
        "macs": facts["macs"],
        "input": list(facts["native"]),
        "source": facts["source"],
    }


def _describe(model: Any, about: dict[str, Any]) -> dict[str, Any]:
    facts = about | {
        "input": list(model.input_shape[1:]),
        "classes": model.output_shape[-1],
        "params": count_params(model),
        "macs": count_macs(model),
    }
    return {"facts": facts, "stages": list(_stages(model))}


def _stages(model: Any) -> Iterator[dict[str, Any]]:
    """Yields a row per stage: consecutive layers with a common prefix, such as stem or stage1."""
    layers = [layer for layer in model.layers if layer.name != "images"]
    for stage, group in groupby(layers, lambda layer: stage_of(layer.name)):
        members = list(group)
        yield {
            "stage": stage,
            "output": list(members[-1].output.shape[1:]),
            "layers": len(members),
            "params": sum(count_params(layer) for layer in members),
            "macs": sum(layer_macs(layer) for layer in members),
        }
