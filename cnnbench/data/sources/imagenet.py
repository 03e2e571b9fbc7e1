"""ImageNet's class names; TFDS and published weights have only synsets or numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def class_names() -> dict[str, str]:
    """Returns class names by synset, in the order of the labels.

    If two classes share a name, e.g. crane, the synset is appended.
    """
    text = Path(__file__).with_name("imagenet_classes.txt").read_text()
    words = dict(line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    count = Counter(words.values())
    return {
        synset: word if count[word] == 1 else f"{word} ({synset})" for synset, word in words.items()
    }
