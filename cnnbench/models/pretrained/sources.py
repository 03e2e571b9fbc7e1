"""Which published network a weight file is of.

Names and shapes do not tell: timm's efficientnet_b0 and tf_efficientnet_b0 have the same, and
compute differently. What tells is the recipe (`model.weights_source`), timm's config.json beside
the file, or the metadata of the file; a file that could be of several is refused.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cnnbench.errors import UsageError
from cnnbench.models.pretrained import presets
from cnnbench.models.pretrained.preprocessing import TIMM, TORCHVISION, Preprocessing
from cnnbench.registry.kinds import MODELS, WEIGHT_FILES, ModelSpec
from cnnbench.registry.registry import did_you_mean

# Options that change what a network computes, but no name or shape of its weights.
SILENT = ("padding", "epsilon", "stride", "max_pool_padding")
# Options that matter in training alone.
TRAINING = ("dropout", "drop_path_rate", "auxiliary_weight")
# Arguments in timm's config.json that do not change what a network computes.
HARMLESS = {"num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "pretrained"}
METADATA = "weights_source"
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """A published network.

    Attributes:
        name: library and name there, such as "timm:resnet50d".
        model: name of our network with its names and shapes.
        options: options with which ours computes the same; the others have their defaults.
        preprocessing: how images are prepared, unless the file says otherwise.
        differs: why our network cannot compute the same; None: it does.
    """

    name: str
    model: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing
    differs: str | None = None

    @property
    def publisher(self) -> str:
        """The library that publishes it."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Claim:
    """What says of which network a file is: `evidence`, and how images are prepared, if it does."""

    evidence: str
    name: str
    preprocessing: Preprocessing | None = None
    key: str = "model.weights"


@dataclass(frozen=True)
class Origin:
    """Of which network a file is, and how that is known.

    Attributes:
        source: None if no published network has the options of the recipe's.
        evidence: what says so.
        preprocessing: None if `source` is.
        is_usual: whether the file does not say its preprocessing, which is that of most weights of
            its network.
    """

    source: Source | None = None
    evidence: str = ""
    preprocessing: Preprocessing | None = None
    is_usual: bool = False


def names_of(name: str) -> ModuleType:
    """Returns the module with the weight names of a network's family.

    Raises:
        UsageError: there are no published weights for the family.
    """
    family = MODELS.get(name).facts["family"]
    if not has_published(name):
        raise UsageError(f"there are no published weights for {name!r}")
    return importlib.import_module(f"cnnbench.models.pretrained.names.{family}")


def has_published(name: str) -> bool:
    """Tells whether there are published weights for the family of a network."""
    family = MODELS.get(name).facts["family"]
    return importlib.util.find_spec(f"cnnbench.models.pretrained.names.{family}") is not None


def sources_of(model: str) -> list[Source]:
    """Returns the published networks with the names and shapes of ours, under any options.

    Raises:
        UsageError: there are none for its family.
    """
    return [source for source in _of_family(names_of(model)) if source.model == model]


def _of_family(names: ModuleType) -> Iterator[Source]:
    known: Mapping[str, Preprocessing] = getattr(names, "PREPROCESSING", {})
    for model, theirs in names.KERAS_MODELS.items():
        options = getattr(names, "KERAS_OPTIONS", {}).get(model, {})
        yield Source(f"keras:{theirs}", model, options, names.KERAS_PREPROCESSING[model])
    fitting: dict[str, tuple[str, Mapping[str, Any]]] = {
        reference: (model, {}) for model, reference in names.TORCH_MODELS.items()
    }
    fitting |= getattr(names, "TORCH_VARIANTS", {})
    aliases = getattr(names, "TORCH_ALIASES", {})
    fitting |= {alias: fitting[reference] for alias, reference in aliases.items()}
    for reference, (model, options) in fitting.items():
        default = TORCHVISION if reference.startswith("torchvision:") else TIMM
        yield Source(reference, model, options, known.get(reference, default))
    for reference, (model, options, why) in getattr(names, "LOOK_ALIKES", {}).items():
        yield Source(reference, model, options, known.get(reference, TIMM), why)


def origin_of(spec: ModelSpec) -> Origin | None:
    """Returns of which network the weights of a recipe's `model` are.

    Returns:
        None if it names no weights, or if neither it nor a file says of which network they are.

    Raises:
        UsageError: see `identify`.
    """
    if spec.weights is None:
        return None
    if preset := presets.PRESETS.get(spec.weights):
        claims = [Claim(f"preset {spec.weights}", preset.source, preset.preprocessing)]
        return identify(spec, Path(preset.address), claims)
    path = Path(spec.weights).expanduser()
    if path.suffix not in WEIGHT_FILES:
        return None
    if path.suffix == ".safetensors" and not path.is_file() and spec.weights_source is None:
        return None
    return identify(spec, path, claims_of(path))


def claims_of(path: Path) -> list[Claim]:
    """Returns what a file's metadata and timm's config.json beside it say; [] if it is missing.

    Raises:
        UsageError: one of them is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    claims = []
    if name := _header(path)[1].get(METADATA):
        claims.append(Claim(f"metadata of {path.name}", name))
    if (config := _config_of(path)) is not None and (claim := _claim_of_config(config)):
        claims.append(claim)
    return claims


def identify(spec: ModelSpec, path: Path, claims: Sequence[Claim] = ()) -> Origin:
    """Returns of which network a file is.

    Args:
        spec: a recipe's `model`.
        path: the file; it may be missing.
        claims: what the file says.

    Raises:
        UsageError: it is of another network, could be of several that compute differently, or its
            network computes otherwise than ours with these options.
    """
    known = sources_of(spec.name)
    if spec.weights_source is not None:
        said = Claim("model.weights_source", spec.weights_source, key="model.weights_source")
        claims = [said, *claims]
    if claims:
        named = [_named(claim, spec.name, known, path) for claim in claims]
        _must_agree(claims, named)
        source, evidence = named[0], " and ".join(claim.evidence for claim in claims)
    else:
        fitting = _fitting(spec, path, known)
        _must_be_one(fitting, path)
        if not fitting:
            return Origin()
        source, evidence = fitting[0], "names and shapes"
    prepared = [claim.preprocessing for claim in claims if claim.preprocessing]
    is_usual = not prepared and source.publisher != "keras"
    origin = Origin(source, evidence, [*prepared, source.preprocessing][0], is_usual)
    _check_options(spec, origin, known, path)
    return origin


def check_all_options(spec: ModelSpec, origin: Origin) -> None:
    """Raises UsageError if an option changes what the published network computes.

    To train on from weights, one may change the stem or the activation; to use them as they are,
    one may not.
    """
    if origin.source is not None:
        given = [key for key in spec.options() if key not in TRAINING]
        _check_options(spec, origin, [origin.source], Path(spec.weights or ""), given)


def _must_agree(claims: Sequence[Claim], named: Sequence[Source]) -> None:
    for claim, source in zip(claims[1:], named[1:], strict=True):
        if _computation(source) != _computation(named[0]):
            raise UsageError(
                f"{claims[0].evidence} says {named[0].name}, {claim.evidence} {source.name}",
                key=claims[0].key,
            )


def _must_be_one(fitting: Sequence[Source], path: Path) -> None:
    if len({_computation(source) for source in fitting}) > 1:
        names = ", ".join(source.name for source in fitting)
        raise UsageError(
            f"{path.name} does not say of which network it is, and these have the same names "
            f"and shapes, but compute differently: {names}",
            allowed="set model.weights_source to the one it is of, or keep timm's config.json "
            "beside the file",
            key="model.weights",
        )


def _computation(source: Source) -> tuple[Any, ...]:
    return (source.differs, *sorted(source.options.items()))


def _fitting(spec: ModelSpec, path: Path, known: Sequence[Source]) -> list[Source]:
    """Returns the sources that a file without claims may be of."""
    if path.suffix == ".h5":
        return [source for source in known if source.publisher == "keras"]
    names = names_of(spec.name)
    libraries = {source.publisher for source in known} - {"keras"}
    if path.is_file() and (namings := getattr(names, "TORCH_NAMINGS", {})):
        keys = _header(path)[0]
        libraries = {lib for lib, name in namings.items() if name(spec.name, "logits/bias") in keys}
    options, default = spec.options(), MODELS.spec(spec.name).options()
    return [
        source
        for source in known
        if source.publisher in libraries
        and all(
            options[key] == source.options.get(key, default[key])
            for key in _keys(known)
            if key in options and key not in SILENT
        )
    ]


def _keys(known: Sequence[Source]) -> set[str]:
    return {key for source in known for key in source.options}


def _named(claim: Claim, model: str, known: Sequence[Source], path: Path) -> Source:
    """Returns the source that a claim names.

    Raises:
        UsageError: it is of another network, or of one that we cannot compute.
    """
    library, _, theirs = claim.name.partition(":")
    name = f"{library}:{theirs.partition('.')[0]}"  # timm adds a tag, as in resnet50.a1_in1k
    source = next((source for source in known if source.name == name), None)
    if source is None:
        names = [each.name for each in known if each.differs is None]
        raise UsageError(
            f"{claim.evidence} says {claim.name}, which is not {model}",
            allowed=did_you_mean(name, names),
            key=claim.key,
        )
    if source.differs is not None:
        raise UsageError(
            f"{claim.evidence} says {claim.name}: its weights have the names and shapes of "
            f"{model}, but it computes differently ({source.differs})",
            allowed="there is no such network here",
            key=claim.key,
        )
    if (library == "keras") != (path.suffix == ".h5"):
        raise UsageError(
            f"{claim.evidence} says {claim.name}, but the file is {path.name}",
            allowed="keras.applications has .h5 files, the others .safetensors",
            key=claim.key,
        )
    return source


def _check_options(
    spec: ModelSpec,
    origin: Origin,
    known: Sequence[Source],
    path: Path,
    keys: Sequence[str] | None = None,
) -> None:
    """Raises UsageError if an option is not that of the source."""
    assert origin.source is not None
    options, default = spec.options(), MODELS.spec(spec.name).options()
    wanted = default | dict(origin.source.options)
    keys = sorted(_keys(known)) if keys is None else keys
    wrong = [key for key in keys if key in options and options[key] != wanted[key]]
    if wrong:
        given = " and ".join(f"{key} {options[key]!r}" for key in wrong)
        raise UsageError(
            f"{options[wrong[0]]!r} does not match the weights of {path}: {origin.source.name} "
            f"({origin.evidence}) is not {spec.name} with {given}",
            allowed="set " + " and ".join(f"model.{key} to {wanted[key]!r}" for key in wrong),
            key=f"model.{wrong[0]}",
        )


def _header(path: Path) -> tuple[set[str], dict[str, str]]:
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
    alone = len(list(path.parent.glob("*.safetensors"))) == 1
    return config if config.is_file() and (alone or path.name == "model.safetensors") else None


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
    if own := sorted(map(str, set(config.get("model_args") or {}) - HARMLESS)):
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
