"""Chooses the formats and precisions to write, and rejects options that have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnnbench.errors import UsageError
from cnnbench.exports import calibrate
from cnnbench.exports.formats.format import CALIBRATED, known_formats, require
from cnnbench.exports.options import PRECISIONS, ExportOptions

DEFAULT_FORMATS = ("saved_model", "tflite")
# What a network trained with quantization can be exported as.
QUANTIZED = {"saved_model": "float32", "tflite": "int8"}


@dataclass(frozen=True)
class Plan:
    """The artifacts to write.

    files: the format and the precision of each.
    calibration_examples: training images that integer ranges are computed from; 0: none are needed.
    """

    files: Sequence[tuple[str, str]]
    calibration_examples: int


def plan(
    names: Sequence[str],
    precisions: Sequence[str],
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    *,
    quantized: bool = False,
) -> Plan:
    """Returns the artifacts to write.

    Args:
        names: names of formats, each written in every precision; if empty, DEFAULT_FORMATS, each in
            the precisions that it supports.
        precisions: names in PRECISIONS; if empty, the network's own.
        options: checked against the artifacts.
        quantized: whether the network was trained with quantization.

    Raises:
        UsageError: a format or a precision is unknown; a format does not support a precision or
            needs a package that is not installed; the ranges of a network trained with quantization
            would be lost; or an option applies to none of the artifacts.
    """
    files = _quantized(names, precisions) if quantized else _plain(names, precisions)
    if options.explain or options.keep_float:
        _check_int8("--explain and --keep-float are", ("tflite",), files, quantized)
    if options.calibration_method != "min_max":
        _check_int8("--calibration-method is", tuple(known_formats()), files, quantized)
    is_calibrated = not quantized and any(precision in CALIBRATED for _, precision in files)
    count = options.calibration_examples
    if count is not None and not is_calibrated:
        raise UsageError(
            "--calibration-examples has no effect, as no artifact is calibrated",
            allowed="it is only for int8 and int16x8 of a network trained without quantization",
        )
    if not is_calibrated:
        return Plan(files, 0)
    count = calibrate.EXAMPLES if count is None else count
    calibrate.check(count, options.calibration_method)
    return Plan(files, count)


def _plain(names: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    precisions, known = precisions or ("float32",), known_formats()
    for kind, given, allowed in (
        ("format", names, tuple(known)),
        ("precision", precisions, PRECISIONS),
    ):
        for name in given:
            if name not in allowed:
                raise UsageError(
                    f"unknown {kind} {name!r}", allowed=f"must be one of {', '.join(allowed)}"
                )
    files = [
        (form, precision)
        for form in names or DEFAULT_FORMATS
        for precision in dict.fromkeys(precisions)
        if names or precision in known[form].precisions
    ]
    for form, precision in files:
        if precision not in known[form].precisions:
            raise UsageError(
                f"{known[form].title} does not support precision {precision}",
                allowed=f"it supports {', '.join(known[form].precisions)}",
            )
        require(form)
    return files


def _quantized(names: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    if names:
        files = [
            (form, precision)
            for form in dict.fromkeys(names)
            for precision in dict.fromkeys(precisions or [QUANTIZED.get(form, "float32")])
        ]
    elif precisions:
        # Without formats, a precision selects the format that has it.
        files = [pair for pair in QUANTIZED.items() if pair[1] in precisions]
        files += [
            (form, p) for form in QUANTIZED for p in precisions if p not in QUANTIZED.values()
        ]
    else:
        files = list(QUANTIZED.items())
    for form, precision in files:
        if QUANTIZED.get(form) != precision:
            raise UsageError(
                f"{form} {precision} is not available for a network trained with quantization",
                allowed="use TFLite int8, which has its trained ranges, or SavedModel, which "
                "computes as in training",
            )
    return files


def _check_int8(
    options: str, names: Sequence[str], files: Sequence[tuple[str, str]], quantized: bool
) -> None:
    """Checks that options for int8 apply to an artifact.

    Args:
        options: the options and a verb, which begin the message.
        names: names of the formats that the options are for.
        files: the format and the precision of each artifact.
        quantized: whether the network was trained with quantization.

    Raises:
        UsageError: no int8 artifact is written in these formats, or its ranges are trained.
    """
    if not any(form in names and precision == "int8" for form, precision in files):
        what = f"{known_formats()[names[0]].title} int8" if len(names) == 1 else "int8"
        raise UsageError(f"{options} only for {what}, which is not exported")
    if quantized:
        raise UsageError(
            f"{options} only for networks trained without quantization",
            allowed="this one has trained ranges in all layers",
        )
