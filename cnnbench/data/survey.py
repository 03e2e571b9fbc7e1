"""A look at some images of a data set, before they are read as 8 bits."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from cnnbench.backend.lazy import load as load_tensorflow
from cnnbench.data import images, large, pixels
from cnnbench.data.pixels import Stored, ValueRange
from cnnbench.errors import DataError, UsageError

# Images whose header is read, of all and as many more of those that may have more than 8 bits; of
# the latter, those that are decoded.
HEADERS, DECODED = 256, 64
# If no value of several images of 16 bits is above this, they probably have 10, 12 or 14.
SUSPICIOUS = 2**14 - 1
NOTES = {
    "alpha": "with an alpha channel (transparent pixels become white)",
    "invisible": "transparent everywhere (they become white)",
    "lab": "in Lab (converted to RGB)",
    "palette": "with a palette (its colors are used)",
    "cmyk": "in CMYK (converted to RGB)",
    "turned": "turned as their EXIF data says",
    "frames": "of several frames or pages (the first is used)",
    "no data": "with pixels that are NaN, infinite or have no data (they become 0)",
}


@dataclass
class Survey:
    """What was found in the images looked at.

    Attributes:
        looked_at: number of images.
        found: how many of them are of a kind: those of `pixels.Stored` and the keys of NOTES.
        highest: the largest value of 16-bit images; None without any.
    """

    value_range: ValueRange | None
    looked_at: int = 0
    found: Counter[str] = field(default_factory=Counter)
    highest: float | None = None

    def note(self) -> list[str]:
        """Returns a line on what is not read as it is stored; none if everything is."""
        said = [f"{count:,} {self._text(kind)}" for kind, count in sorted(self.found.items())]
        return [f"pixels of {self.looked_at:,} images looked at: {', '.join(said)}"] if said else []

    def _text(self, kind: str) -> str:
        if kind in NOTES:
            return NOTES[kind]
        bits = int(kind.split("-")[0]) if kind[0].isdigit() else 0
        low, high = self.value_range or (0, 2**bits - 1 if bits else 1)
        return f"of {kind} values ({low:g} to {high:g} becomes 0 to 255)"


def look(
    open_image: Callable[[int], Path | bytes],
    count: int,
    may_be_wide: Iterable[int],
    value_range: ValueRange | None,
    name: Callable[[int], str] = "image {}".format,
) -> Survey:
    """Looks at some images, evenly spread.

    Args:
        open_image: returns the file, or the bytes, of the image with an index.
        count: number of images.
        may_be_wide: indices of images that may have more than 8 bits per value.
        value_range: the recipe's, or None.
        name: returns the name of the image with an index, for messages.

    Raises:
        UsageError: `data.value_range` must be set for these images.
    """
    survey = Survey(value_range)
    indices = dict.fromkeys([*_spread(list(may_be_wide)), *_spread(range(count))])
    survey.looked_at = len(indices)
    for index in indices:
        # Whoever reads a damaged image later says so.
        try:
            data = open_image(index)
            with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream:
                _look_at(stream, str(data) if isinstance(data, Path) else name(index), survey)
        except UsageError:
            raise
        except Exception:  # noqa: S112 - of Pillow's decoders; see above
            continue
    if value_range is None and survey.highest is not None and survey.highest <= SUSPICIOUS:
        top = next(2**bits - 1 for bits in (8, 10, 12, 14) if survey.highest < 2**bits)
        raise pixels.must_be_set(
            f"the {survey.found['16-bit']} images of 16 bits looked at have no value above "
            f"{survey.highest:.0f}",
            f", probably [0, {top}]; [0, 65535] if they are dark",
        )
    return survey


def must_be_known(
    path: Path,
    seen: Mapping[str, int],
    value_range: ValueRange | None,
    data: bytes | None = None,
) -> None:
    """Raises if it cannot be known what is black and white in an image to predict.

    Args:
        path: the image.
        seen: the kinds of pixels of the training data, as in `Survey.found`.
        value_range: the recipe's.
        data: the image's bytes; None: they are read from the file.

    Raises:
        DataError: it has values of 16 bits that are probably fewer, or values without a default.
    """
    if "16-bit" in seen:
        return
    try:
        look(lambda _: path if data is None else data, 1, (), value_range, lambda _: str(path))
    except UsageError as error:
        raise DataError(
            f"what is black and white is not known: {error.what.split(': ', 1)[1]}",
            where=str(path),
            allowed="convert it to 8 bits, as the training images",
        ) from None


def _spread(indices: range | list[int]) -> list[int]:
    step = max(1, -(-len(indices) // HEADERS))
    return list(indices[::step])


def _look_at(stream: BinaryIO, name: str, survey: Survey) -> None:
    image = large.opened(stream, images.FORMATS)
    kept = pixels.stored(image)
    found = {
        "alpha": image.has_transparency_data,
        "palette": image.mode in ("P", "PA"),
        "cmyk": image.mode == "CMYK",
        "lab": image.mode == "LAB",
        "turned": image.format != "PNG" and large.orientation(image) != 1,
        "frames": getattr(image, "is_animated", False) or "mp" in image.info,
        kept.kind: not kept.is_plain,
    }
    survey.found.update(kind for kind, is_so in found.items() if is_so)
    if found["alpha"] and survey.found["alpha"] <= DECODED and not large.is_large(image):
        image.load()
        alpha = pixels.without_empty_alpha(image).convert("RGBA").getchannel("A")
        if not alpha.getbbox():
            survey.found["invisible"] += 1
    if not kept.is_plain and survey.found[kept.kind] <= DECODED:
        _look_at_values(image, stream, kept, name, survey)


def _look_at_values(
    image: Image.Image, stream: BinaryIO, kept: Stored, name: str, survey: Survey
) -> None:
    load_tensorflow()  # in this thread: those that read images would import it at once
    large.must_fit(image, name)
    if kept.high_byte:  # no copy of the values: they can be half a gigabyte
        array, kept = np.asarray(image), replace(kept, no_data=None)
    else:
        array = images.values(image, stream, kept)
    extremes = pixels.extremes(array, kept)
    if extremes is None:
        return
    if kept.high_byte:
        extremes = extremes[0] * 257, extremes[1] * 257
    if kept.kind == "16-bit":
        survey.highest = max(survey.highest or 0, extremes[1])
    pixels.range_of(extremes, kept, name, survey.value_range)
    can_lack = kept.no_data is not None or array.dtype.kind == "f"
    if can_lack and not pixels.has_data(array, kept).all():
        survey.found["no data"] += 1
