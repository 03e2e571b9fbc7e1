"""Decides which formats are written in which precisions, and refuses options without use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnnbench.errors import UsageError
from cnnbench.exports import calibrate
from cnnbench.exports.formats.format import CALIBRATED, known_formats, require
from cnnbench.exports.options import PRECISIONS, ExportOptions

DEFAULT_FORMATS = ("saved_model", "tflite")
# What a network that was trained with quantization can be written as.
QUANTIZED = {"saved_model": "float32", "tflite": "int8"}


@dataclass(frozen=True)
class Plan:
    """What is written.

    files: a format and a precision each.
    calibration_examples: training images that integer ranges are computed from; 0: none needed.
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
    """Returns which format is to be written in which precision.

    Args:
        names: of formats, each written in every precision; none: DEFAULT_FORMATS, in those of the
            precisions that they have.
        precisions: names in PRECISIONS; none: the network's own.
        options: checked against the files.
        quantized: whether the network was trained with quantization.

    Raises:
        UsageError: there is no such format or precision, a format lacks one that is asked for or a
            package that is not installed; the ranges of a network that was trained with
            quantization would be lost; or an option has no file to work on.
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
            "--calibration-examples is for int8 and int16x8 of a network that was not trained for "
            "them, which are not exported"
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
                raise UsageError(f"there is no {kind} {name!r}", allowed=", ".join(allowed))
    files = [
        (form, precision)
        for form in names or DEFAULT_FORMATS
        for precision in dict.fromkeys(precisions)
        if names or precision in known[form].precisions
    ]
    for form, precision in files:
        if precision not in known[form].precisions:
            raise UsageError(
                f"{known[form].title} has no precision {precision}",
                allowed=f"it has {', '.join(known[form].precisions)}",
            )
        require(form)
    return files


def _quantized(names: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    if names:
        own = [(form, QUANTIZED.get(form, "float32")) for form in dict.fromkeys(names)]
        files = [(form, each) for form, mine in own for each in dict.fromkeys(precisions or [mine])]
    elif precisions:
        # Without a format, a precision stands for the format that has it.
        files = [pair for pair in QUANTIZED.items() if pair[1] in precisions]
        files += [
            (form, p) for form in QUANTIZED for p in precisions if p not in QUANTIZED.values()
        ]
    else:
        files = list(QUANTIZED.items())
    for form, precision in files:
        if QUANTIZED.get(form) != precision:
            raise UsageError(
                f"{form} {precision} of a network that was trained with quantization",
                allowed="TFLite int8, which has its ranges, and SavedModel, which computes as it "
                "was trained",
            )
    return files


def _check_int8(
    options: str, names: Sequence[str], files: Sequence[tuple[str, str]], quantized: bool
) -> None:
    """Refuses options for int8 where none is written in those formats, or its ranges are trained.

    Raises:
        UsageError: the message begins with the options and their verb.
    """
    if not any(form in names and precision == "int8" for form, precision in files):
        what = f"{known_formats()[names[0]].title} int8" if len(names) == 1 else "int8"
        raise UsageError(f"{options} for {what}, which is not exported")
    if quantized:
        raise UsageError(
            f"{options} not for a network that was trained with quantization",
            allowed="those without; its ranges were trained, and all its layers have them",
        )
