"""What weight files, and the files beside them, say of the network that they are of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbench.errors import UsageError
from cnnbench.models.pretrained.preprocessing import Preprocessing

METADATA = "weights_source"
# Arguments in timm's config.json that do not change what a network computes.
HARMLESS = {"num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "pretrained"}
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Claim:
    """What says of which network a file is: `evidence`, and how images are prepared, if it does."""

    evidence: str
    name: str
    preprocessing: Preprocessing | None = None
    key: str = "model.weights"


def claims_of(path: Path) -> list[Claim]:
    """Returns what a file's metadata and timm's config.json beside it say; [] if it is missing.

    Raises:
        UsageError: one of them is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    claims = []
    if name := header(path)[1].get(METADATA):
        claims.append(Claim(f"metadata of {path.name}", name))
    if (config := _config_of(path)) is not None and (claim := _claim_of_config(config)):
        claims.append(claim)
    return claims


def header(path: Path) -> tuple[set[str], dict[str, str]]:
    """Returns the names of the tensors of a .safetensors file, and its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return set(file.keys()), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read the weights: {error}", where=str(path)) from None


def _config_of(path: Path) -> Path | None:
    """Returns timm's config of a file: config.json if there is no other file it could be of."""
    config = path.with_name("config.json")
    if not config.is_file():
        return None
    is_only = len(list(path.parent.glob("*.safetensors"))) == 1
    return config if is_only or path.name == "model.safetensors" else None


def _claim_of_config(path: Path) -> Claim | None:
    """Returns what timm's config.json says; None if it is of another library.

    Raises:
        UsageError: it is damaged, or the network was built with arguments of its own.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        return None
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the file: {error}", where=str(path)) from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return None
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise UsageError(
            f"model_args is {arguments!r:.80}, not the arguments by their names", where=str(path)
        )
    if own := sorted(arguments.keys() - HARMLESS):
        raise UsageError(
            f"the network was built with model_args {', '.join(own)}",
            where=str(path),
            allowed="only timm's networks as they are",
        )
    prepared = config.get("pretrained_cfg", config)
    try:
        return Claim(str(path), f"timm:{config['architecture']}", _timm_preprocessing(prepared))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"the preprocessing is damaged: {error!r}",
            where=str(path),
            allowed="mean, std, crop_pct and interpolation as timm writes them",
        ) from None


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    if "mean" not in config and "std" not in config:
        return None
    mean, std = (tuple(float(x) for x in config[key]) for key in ("mean", "std"))
    crop = config.get("crop_pct")
    interpolation = config.get("interpolation")
    is_finite = all(map(math.isfinite, (*mean, *std)))
    if not (len(mean) == len(std) in (1, 3) and is_finite and min(std) > 0):
        raise ValueError(f"mean {mean}, std {std}")
    if crop is not None and not 0 < (crop := float(crop)) <= 1:
        raise ValueError(f"crop_pct {crop}")
    known = interpolation if interpolation in ("bilinear", "bicubic") else None
    mode = str(config.get("crop_mode") or "center")
    return Preprocessing(mean, std, "rgb" if len(mean) == 3 else "grey", crop, known, mode)
