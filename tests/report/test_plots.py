import numpy as np
import pytest
from PIL import Image

from cnnbench import load_recipe
from cnnbench.data.open import Access
from cnnbench.errors import UsageError
from cnnbench.report import image_grid, plots
from cnnbench.report.describe import show_model


def test_the_stages_of_a_network_are_drawn(tmp_path):
    plots.stages(show_model("lenet5"), tmp_path / "lenet5.png")
    with Image.open(tmp_path / "lenet5.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"must be a \.png file"):
        plots.stages({}, tmp_path / "lenet5.pdf")
    assert not list(tmp_path.iterdir())


def test_augmented_images_are_drawn_beside_the_stored_ones(tmp_path, small):
    flip = "augment=[{name: alternating_flip}]"
    recipe = load_recipe(small, (flip,))
    image_grid.augmented(recipe, tmp_path / "grid.png", Access(), epochs=3)
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    side = (pixels.shape[0] - image_grid.GRID_ROWS * image_grid.GAP) // image_grid.GRID_ROWS
    step = side + image_grid.GAP
    assert side >= image_grid.CELL and pixels.shape == (image_grid.GRID_ROWS * step, 4 * step)
    mirrored = 0
    for row in range(image_grid.GRID_ROWS):
        top = row * step + image_grid.GAP
        stored, *epochs = (
            pixels[top : top + side, left : left + side]
            for left in range(image_grid.GAP, 4 * step, step)
        )
        first = not np.array_equal(epochs[0], stored)
        mirrored += first
        for epoch, image in enumerate(epochs):
            flipped = first != (epoch % 2 == 1)
            assert np.array_equal(image, stored[:, ::-1] if flipped else stored)
    assert 0 < mirrored < image_grid.GRID_ROWS
