"""Decides which formats are written in which precisions."""

from __future__ import annotations

from collections.abc import Sequence

from cnnbench.errors import UsageError
from cnnbench.exports.formats.format import (
    FORMATS,
    require,
)
from cnnbench.exports.options import PRECISIONS

DEFAULT_FORMATS = ("saved_model", "tflite")


def plan(
    formats: Sequence[str], precisions: Sequence[str], *, quantized: bool = False
) -> list[tuple[str, str]]:
    """Returns which format is to be written in which precision.

    Args:
        formats: names in FORMATS; none: DEFAULT_FORMATS.
        precisions: names in PRECISIONS; none: the network's own.
        quantized: whether the network was trained with quantization.

    Raises:
        UsageError: there is no such format or precision, a format lacks one that is asked for, or
            it needs a package that is not installed; or the ranges of a network that was trained
            with quantization would be lost.
    """
    if quantized:
        return _plan_quantized(formats, precisions)
    precisions = precisions or ("float32",)
    for kind, names, known in (
        ("format", formats, tuple(FORMATS)),
        ("precision", precisions, PRECISIONS),
    ):
        for name in names:
            if name not in known:
                raise UsageError(f"there is no {kind} {name!r}", allowed=", ".join(known))
    wanted = [
        (form, precision)
        for form in formats or DEFAULT_FORMATS
        for precision in dict.fromkeys(precisions)
        if formats or precision in FORMATS[form].precisions
    ]
    for form, precision in wanted:
        if precision not in FORMATS[form].precisions:
            raise UsageError(
                f"{FORMATS[form].title} has no precision {precision}",
                allowed=f"it has {', '.join(FORMATS[form].precisions)}",
            )
        require(form)
    return wanted


def _plan_quantized(formats: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    own = {"saved_model": "float32", "tflite": "int8"}
    wanted = [
        (form, precision)
        for form in dict.fromkeys(formats or own)
        for precision in dict.fromkeys(precisions or [own.get(form, "float32")])
        if formats or precision == own[form] or precision not in own.values()
    ]
    for form, precision in wanted:
        if own.get(form) != precision:
            raise UsageError(
                f"{form} {precision} of a network that was trained with quantization",
                allowed="TFLite int8, which has its ranges, and SavedModel, which computes as it "
                "was trained",
            )
    return wanted


def _check_int8(
    options: str, formats: Sequence[str], wanted: Sequence[tuple[str, str]], is_quantized: bool
) -> None:
    """Refuses options for int8 where none is written in those formats, or its ranges are trained.

    Raises:
        UsageError: the message begins with the options and their verb.
    """
    if not any(form in formats and precision == "int8" for form, precision in wanted):
        what = f"{FORMATS[formats[0]].title} int8" if len(formats) == 1 else "int8"
        raise UsageError(f"{options} for {what}, which is not exported")
    if is_quantized:
        raise UsageError(
            f"{options} not for a network that was trained with quantization",
            allowed="those without; its ranges were trained, and all its layers have them",
        )
