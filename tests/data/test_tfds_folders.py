"""Prepared data sets of a user's own, as they lie on disk: whole, cut short, elsewhere, renamed."""

import json
import shutil

import pytest

from cnnbench.data.open import Access, open_dataset
from cnnbench.errors import DataError
from cnnbench.registry.kinds import DATASETS

FEATURES = "tensorflow_datasets.core.features."


def split(name, examples):
    return {
        "name": name,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": "0",
        "shardLengths": [str(examples)],
    }


@pytest.fixture
def prepared(tmp_path):
    """A data set of two classes, as `tfds build` leaves it, with empty files of records."""
    folder = tmp_path / "own/1.0.0"
    folder.mkdir(parents=True)
    image = {"dtype": "uint8", "shape": {"dimensions": ["8", "8", "3"]}}
    features = {
        "image": {"pythonClassName": f"{FEATURES}image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{FEATURES}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "2"},
        },
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{FEATURES}features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    info = {
        "name": "own",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "moduleName": "own",
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "splits": [split("train", 4), split("test", 2)],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "label.labels.txt").write_text("red\ngreen\n")
    for name in ("train", "test"):
        (folder / f"own-{name}.tfrecord-00000-of-00001").write_bytes(b"")
    return folder


def opened(place, builder="own"):
    return open_dataset(DATASETS.spec("tfds", builder=builder), Access(place, download=False))


def refusal(place, builder="own"):
    with pytest.raises(DataError) as refused:
        opened(place, builder).split("train")
    return str(refused.value)


def test_a_prepared_set_is_opened_without_its_code(prepared):
    assert opened(prepared.parents[1]).classes == ("red", "green")


def test_a_set_that_is_neither_there_nor_in_the_catalogue(prepared, tmp_path):
    none = "no data set 'own', and TFDS has none of that name to prepare"
    assert f"{tmp_path}/x: {none}; --data-dir or TFDS_DATA_DIR" in refusal(tmp_path / "x")
    assert f"{prepared}: {none}; it must contain own/VERSION/" in refusal(prepared)
    for name in ("incomplete.ABC_1.0.0", "latest"):
        prepared = prepared.rename(prepared.with_name(name))
        said = refusal(tmp_path)
        assert "own/VERSION must contain features.json" in said and said.endswith(f"has {name}")


def test_another_version_than_the_one_asked_for(prepared, tmp_path):
    said = refusal(tmp_path, "own:2.0.0")
    assert "own/2.0.0 must contain" in said and said.endswith("own has 1.0.0")


def test_a_set_whose_preparation_did_not_end(prepared, tmp_path):
    info = json.loads((prepared / "dataset_info.json").read_text())
    (prepared / "dataset_info.json").write_text(json.dumps(info | {"splits": []}))
    assert refusal(tmp_path).startswith(f"{prepared}: data set 'own' has no splits")


@pytest.mark.parametrize("text", ["", "{", "[]"])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_description_that_is_none(prepared, tmp_path, name, text):
    (prepared / name).write_text(text)
    assert refusal(tmp_path).startswith(f"{tmp_path}: TFDS cannot open 'own': ")


def test_class_names_that_do_not_fit(prepared, tmp_path):
    (prepared / "label.labels.txt").write_text("red\n")
    assert refusal(tmp_path) == f"{prepared}/label.labels.txt: 1 names of 2 classes"


def test_a_link_to_records_that_are_gone(prepared, tmp_path):
    records = prepared / "own-train.tfrecord-00000-of-00001"
    records.unlink()
    records.symlink_to(tmp_path / "gone")
    assert refusal(tmp_path) == f"{records}: cannot read: No such file or directory"


def test_a_set_that_is_stored_otherwise(prepared, tmp_path):
    text = (prepared / "dataset_info.json").read_text()
    (prepared / "dataset_info.json").write_text(text.replace('"tfrecord"', '"array_record"'))
    assert "stored as array_record; only tfrecord is read" in refusal(tmp_path)


def test_two_versions_and_a_link_to_a_folder(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "elsewhere")
    (prepared.parent / "1.0.1").symlink_to(tmp_path / "elsewhere")
    assert opened(tmp_path).classes == ("red", "green")
