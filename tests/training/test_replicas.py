"""Several replicas, which are logical CPUs of another process: see replicas.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from test_steps import batches, descend, gradient

SCRIPT = Path(__file__).parent / "replicas.py"


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def seen(request, tmp_path_factory):
    """What a process with 2 or 3 replicas saw."""
    path = tmp_path_factory.mktemp("replicas") / "small.yaml"
    path.write_text(SMALL)
    command = [sys.executable, str(SCRIPT), str(path), str(request.param)]
    places = [str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"replicas": request.param}


def alike(values):
    """The value that all replicas have."""
    first, *others = map(np.array, values)
    assert all(np.array_equal(first, other, equal_nan=True) for other in others)
    return first


def test_an_overflow_in_any_replica_is_one_for_all(seen):
    images, labels = batches(1)
    count, steps = seen["replicas"], seen["overflows"]
    assert len(steps) == 2 * count * 3
    for i in range(0, len(steps), 3):
        bad, *good = steps[i : i + 3]
        expected, case = [np.zeros((5, 3)), np.zeros(3)], str(bad["case"])
        # The scale doubles after two good steps.
        for step, scale, updates in zip((bad, *good), (14, 14, 15), (0, 1, 2), strict=True):
            if step is not bad:
                expected = descend(expected, gradient(expected, images[0], labels[0]))
            assert step["finite"], case
            for name, values in zip(("kernel", "bias"), expected, strict=True):
                np.testing.assert_allclose(
                    alike(step[name]), values, rtol=1e-5, atol=1e-6, err_msg=case
                )
            assert alike(step["scale"]) == 2.0**scale, case
            assert alike(step["updates"]) == updates, case


def test_each_replica_drops_units_and_paths_of_its_own(seen):
    first, second, again = map(np.array, seen["masks"])
    assert np.array_equal(second, again)  # from the state that a checkpoint has
    assert first.shape == (2, seen["replicas"], 64, 1, 1, 4)
    for kind in (0, 1):
        masks = [mask for step in (first, second) for mask in step[kind]]
        assert len({mask.tobytes() for mask in masks}) == len(masks) == 2 * seen["replicas"]
        assert all(0.25 < mask.mean() < 0.75 for mask in masks)
    assert all(len(set(path.ravel())) == 1 for path in first[1].reshape(-1, 4))
