"""The examples in the docstrings of the public names run and say what they say."""

import doctest
import shutil

import pytest

import cnnbench

FUNCTIONS = [name for name in cnnbench.__all__ if name.islower()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, digits_run):
    """A folder as the examples find it: a run, an image, and a recipe that trains in seconds."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(digits_run.path, folder / "runs" / "digits")
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(folder / "digit.png")
    (folder / "tiny.yaml").write_text(
        "name: tiny\nmodel: {name: lenet5}\ndata: {name: digits, batch_size: 128, image_size: 32}\n"
        "optimizer: {name: adam, lr: 1.0e-3}\ntrain: {steps: 4}\n"
    )
    return folder


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_public_function_runs(name, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    function = getattr(cnnbench, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert test.examples, f"{name} has no example"
    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert found.failed == 0 and found.attempted == len(test.examples)
