"""A grid of augmented training images as a PNG file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from cnnbench.data.open import Access, open_dataset
from cnnbench.data.pipeline import TrainingStream
from cnnbench.data.splits import training_splits
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import input_shape
from cnnbench.report.plots import must_be_png
from cnnbench.system import files

# Rows of the grid, one image each.
GRID_ROWS = 8
# Minimum pixels of a cell's shorter side, and pixels between cells.
CELL, GAP = 64, 2


def augmented(recipe: Recipe, path: Path, access: Access, epochs: int = 7) -> None:
    """Draws a grid with a row per training image: as stored, then as augmented in each epoch.

    The augmented images are those that the network gets in these epochs, before normalization.

    Args:
        recipe: the recipe to take the data and the augmentations from.
        path: path of the PNG file.
        access: where data sets are stored.
        epochs: number of epochs, from the first; one column each, after that of the stored images.

    Raises:
        UsageError: the file's name does not end in .png, or the recipe does not fit the data.
        DataError: the data set is missing.
        RunError: the file cannot be written.
    """
    must_be_png(path)
    dataset = open_dataset(recipe.data, access)
    examples = training_splits(dataset, recipe.data).train
    size = input_shape(recipe.data, dataset.shape)[:2]
    mixing = recipe.task.mixing(dataset)
    stored = TrainingStream(examples, recipe.data, size, [], recipe.seed, mixing)
    stream = TrainingStream(examples, recipe.data, size, recipe.augment, recipe.seed, mixing)
    _, positions = stream.positions(0)
    columns = [stored.batch(positions, 0)[0]]
    for epoch in range(epochs):
        images, labels = stream.batch(positions, epoch)
        step = np.int64(epoch * stream.steps_per_epoch)
        images, _ = stream.augmented(images, labels, positions.astype(np.int64), step)
        columns.append(np.asarray(images))
    cells = np.stack([column[:GRID_ROWS] for column in columns], axis=1)
    with files.new_file(path) as partial:
        _grid(cells).save(partial, format="PNG")


def _grid(cells: np.ndarray) -> Image.Image:
    """Tiles (rows, columns, height, width, channels) uint8 into one image; enlarges small cells."""
    scale = math.ceil(CELL / min(cells.shape[2:4]))
    cells = cells.repeat(scale, 2).repeat(scale, 3)
    if cells.shape[-1] == 1:
        cells = cells.repeat(3, -1)
    gaps = ((0, 0), (0, 0), (GAP, 0), (GAP, 0), (0, 0))
    cells = np.pad(cells, gaps, constant_values=255)
    rows, columns, height, width, channels = cells.shape
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return Image.fromarray(picture)
