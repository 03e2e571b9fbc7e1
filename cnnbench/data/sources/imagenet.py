"""The names of ImageNet's classes, which TFDS and published weights know by number alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def class_names() -> dict[str, str]:
    """Returns the name of each class by its synset, in the order of the labels.

    Where two classes have one name, as crane has, the synset is added.
    """
    text = Path(__file__).with_name("imagenet_classes.txt").read_text()
    words = dict(line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    count = Counter(words.values())
    return {
        synset: word if count[word] == 1 else f"{word} ({synset})" for synset, word in words.items()
    }
