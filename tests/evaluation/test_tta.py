"""Test-time augmentation against explicit sums over views."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from cnnbench.backend.lazy import tf
from cnnbench.evaluation.tta import TTA
from cnnbench.recipe.sections import Evaluation

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (5, 4, 6, 3), np.uint8)
WEIGHTS = RANDOM.normal(size=(4 * 6 * 3, 7)).astype(np.float32) / 255


def logits_of(images):
    """A linear layer, then a bend: the mean over views is to be of the logits."""
    flat = tf.reshape(tf.cast(images, tf.float32), (-1, WEIGHTS.shape[0]))
    return tf.nn.relu(flat @ WEIGHTS)


def expected(views, weights):
    rows = [np.maximum(v.reshape(len(v), -1).astype(np.float32) @ WEIGHTS, 0) for v in views]
    return np.tensordot(weights, rows, 1)


def moved(down, right):
    """The images moved, pixel by pixel; what comes in is reflected about the border pixel."""
    out = np.empty_like(IMAGES)
    _, height, width, _ = IMAGES.shape
    for y in range(height):
        for x in range(width):
            row, column = abs(y - down), abs(x - right)
            row = 2 * (height - 1) - row if row >= height else row
            column = 2 * (width - 1) - column if column >= width else column
            out[:, y, x] = IMAGES[:, row, column]
    return out


def mirrored(images):
    return images[:, :, ::-1]


VIEWS = {
    "none": ([IMAGES], [1]),
    "flip": ([IMAGES, mirrored(IMAGES)], [1 / 2, 1 / 2]),
    "flip_shift": (
        [view for x in (IMAGES, moved(1, 1), moved(-1, -1)) for view in (x, mirrored(x))],
        [1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8],
    ),
}


@pytest.mark.parametrize("name", TTA)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_answer_is_the_weighted_mean_of_the_logits_of_the_views(name, dtype):
    answer = tf.function(lambda images: TTA[name](logits_of, images))
    found = answer(IMAGES.astype(dtype)).numpy()
    assert np.allclose(found, expected(*VIEWS[name]), atol=1e-5)


def test_the_views_differ():
    answers = [expected(*VIEWS[name]) for name in TTA]
    assert all(not np.allclose(a, b) for a, b in pairwise(answers))


def test_a_recipe_can_name_each():
    assert get_args(Evaluation.model_fields["tta"].annotation) == tuple(TTA)
