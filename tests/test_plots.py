import pytest
from PIL import Image

from cnnbench import plots
from cnnbench.errors import UsageError
from cnnbench.show import show_model


def test_the_stages_of_a_network_are_drawn(tmp_path):
    plots.stages(show_model("lenet5"), tmp_path / "lenet5.png")
    with Image.open(tmp_path / "lenet5.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a file \.png"):
        plots.stages({}, tmp_path / "lenet5.pdf")
    assert not list(tmp_path.iterdir())
