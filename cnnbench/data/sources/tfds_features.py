"""Which features of a TFDS set are its images and labels."""

from __future__ import annotations

from typing import Any

from cnnbench.errors import DataError, UsageError


def image_and_label(builder: Any, image_key: str | None, label_key: str | None) -> tuple[str, str]:
    """Returns the names of the features that hold images and their classes.

    They are those that are asked for, else the set's own `supervised_keys`, else the only ones.

    Args:
        builder: of the data set.
        image_key: the recipe's, or None.
        label_key: likewise.

    Raises:
        DataError: the data set has no images or no classes.
        UsageError: it has several and does not say which, or not those that are asked for.
    """
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    own = (*(builder.info.supervised_keys or ()), None, None)
    found: list[str] = []
    for key, asked, supervised, kind in (
        ("data.image_key", image_key, own[0], tfds.features.Image),
        ("data.label_key", label_key, own[1], tfds.features.ClassLabel),
    ):
        names = [name for name, each in features.items() if _is(each, kind)]
        if not names:
            raise DataError(
                f"data set {builder.name!r} is not for image classification",
                allowed=f"its features are {', '.join(features)}",
            )
        chosen = asked or (supervised if supervised in names else None)
        if chosen is None and len(names) == 1:
            chosen = names[0]
        if chosen is None or chosen not in names:
            what = asked or f"data set {builder.name!r} does not say which feature to take"
            raise UsageError(what, key=key, allowed=f"one of {', '.join(names)}")
        found.append(chosen)
    return found[0], found[1]


def _is(feature: Any, kind: type) -> bool:
    """Returns whether a feature is of a kind; an image of labels is none."""
    import tensorflow_datasets as tfds

    return isinstance(feature, kind) and not isinstance(feature, tfds.features.LabeledImage)
