"""The recipes that ship: valid, complete, and honest about what they are to reach."""

from functools import cache

import pytest
from conftest import RECIPES

from cnnbench import load_recipe
from cnnbench.data.open import Access
from cnnbench.recipe.stand_in import shortened
from cnnbench.registry.kinds import DATASETS, MODELS, min_size
from cnnbench.training.smoke import BATCH, EXAMPLES, SIZE, smoke

PATHS = sorted(RECIPES.glob("*.yaml"))
FAMILIES = sorted({MODELS.get(name).facts["family"] for name in MODELS.names()})
NEEDED = [(family, "cifar10") for family in FAMILIES]
# Neither was ever meant for so many classes.
NEEDED += [(f, "imagenet2012") for f in FAMILIES if f not in ("airbench", "lenet")]

load = cache(load_recipe)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_how_it_is_run_and_what_it_is_to_reach(path):
    recipe = load(path)
    assert recipe.name == path.stem
    command, *about = path.read_text().partition("\nname: ")[0].splitlines()
    assert command.split()[:4] == ["#", "cnnbench", "train", f"recipes/{path.name}"]
    assert about and all(line.startswith("# ") for line in about)
    if "classes" in DATASETS.get(recipe.data.name).facts:
        assert recipe.target is not None and recipe.target.source
    else:  # your own images, of which nobody knows what can be reached
        assert recipe.target is None


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_schedule_ends_within_the_training(path):
    recipe = load(path)
    if recipe.schedule.name == "step":
        last = max(recipe.schedule.options()["epochs"])
        assert recipe.schedule.warmup_epochs + last < recipe.train.epochs


@pytest.mark.parametrize(("family", "dataset"), NEEDED)
def test_every_family_has_a_recipe(family, dataset):
    recipes = [load(path) for path in PATHS]
    assert any(
        MODELS.get(recipe.model.name).facts["family"] == family and recipe.data.name == dataset
        for recipe in recipes
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_smoke_run_takes_small_images_of_the_same_kind(path, tmp_path):
    recipe = load(path)
    small, note = smoke(recipe, Access(tmp_path))
    size, short = small.data.image_size, small.data.resize_short
    if recipe.data.image_size and recipe.data.image_size > SIZE:
        assert size == max(SIZE, min_size(recipe.model)) <= short
        assert short / size == pytest.approx(
            recipe.data.resize_short / recipe.data.image_size, 0.01
        )
        assert f"{size} pixels, not {recipe.data.image_size}" in note
    else:
        assert (size, short) == (recipe.data.image_size, recipe.data.resize_short)
    assert small.model == recipe.model and small.augment == recipe.augment
    # The first of several sizes, and then its own; in a probe of the speed, its own alone.
    assert len(small.train.image_sizes) == min(1, len(recipe.train.image_sizes))
    assert all(x.until * EXAMPLES // BATCH < small.train.steps for x in small.train.image_sizes)
    assert not shortened(recipe).train.image_sizes


def test_augmentations_of_large_images_are_cut_down_with_them(tmp_path):
    cutout = "augment=[{name: random_resized_crop}, {name: cutout, size: 160}]"
    recipe = load_recipe(RECIPES / "resnet50_imagenet.yaml", (cutout,))
    small, _ = smoke(recipe, Access(tmp_path))
    assert [spec.options().get("size") for spec in small.augment] == [None, 2 * SIZE - 2]
