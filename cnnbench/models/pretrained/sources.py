"""Which published network a weight file is of.

Names and shapes do not tell: timm's efficientnet_b0 and tf_efficientnet_b0 have the same, and
compute differently. What tells is the recipe (`model.weights_source`), timm's config.json beside
the file, or the metadata of the file; a file that could be of several is refused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cnnbench.errors import UsageError
from cnnbench.models.pretrained import presets
from cnnbench.models.pretrained.claims import Claim, claims_of, header
from cnnbench.models.pretrained.preprocessing import TIMM, TORCHVISION, Preprocessing
from cnnbench.registry.kinds import MODELS, WEIGHT_FILES, ModelSpec
from cnnbench.registry.registry import did_you_mean
from cnnbench.system.files import expanded

# Options that change what a network computes, but no name or shape of its weights.
SILENT = ("padding", "epsilon", "stride", "max_pool_padding")
# Options that matter in training alone.
TRAINING = ("dropout", "drop_path_rate", "auxiliary_weight")
# A weight that every network has, and each publisher names in its own way.
HEAD = "logits/bias"


@dataclass(frozen=True)
class PublishedNetwork:
    """A network whose weights somebody publishes.

    Attributes:
        name: publisher and name there, such as "timm:resnet50d".
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

    @property
    def computation(self) -> tuple[Any, ...]:
        """Equal for networks of one `model` that compute the same."""
        return (self.differs, *sorted(self.options.items()))


@dataclass(frozen=True)
class Identification:
    """Of which published network a file is, and how that is known.

    Attributes:
        network: None if nobody publishes weights with the names and shapes of our network.
        evidence: what says so.
        preprocessing: None if `network` is.
        is_usual: whether the file does not say its preprocessing, which is that of most weights of
            its network.
    """

    network: PublishedNetwork | None = None
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


def published_networks(model: str) -> list[PublishedNetwork]:
    """Returns the published networks with the names and shapes of ours, under any options.

    Raises:
        UsageError: there are none for its family.
    """
    return [network for network in _of_family(names_of(model)) if network.model == model]


def _of_family(names: ModuleType) -> Iterator[PublishedNetwork]:
    known: Mapping[str, Preprocessing] = getattr(names, "PREPROCESSING", {})
    for model, name in names.KERAS_MODELS.items():
        options = getattr(names, "KERAS_OPTIONS", {}).get(model, {})
        prepared = names.KERAS_PREPROCESSING[model]
        yield PublishedNetwork(f"keras:{name}", model, options, prepared)
    same: dict[str, tuple[str, Mapping[str, Any]]] = {
        name: (model, {}) for model, name in names.TORCH_MODELS.items()
    }
    same |= getattr(names, "TORCH_VARIANTS", {})
    aliases = getattr(names, "TORCH_ALIASES", {})
    same |= {alias: same[name] for alias, name in aliases.items()}
    for name, (model, options) in same.items():
        default = TORCHVISION if name.startswith("torchvision:") else TIMM
        yield PublishedNetwork(name, model, options, known.get(name, default))
    for name, (model, options, why) in getattr(names, "LOOK_ALIKES", {}).items():
        yield PublishedNetwork(name, model, options, known.get(name, TIMM), why)


def identification_of(spec: ModelSpec) -> Identification | None:
    """Returns of which network the weights of a recipe's `model` are.

    Returns:
        None if it names no weights, or a file that is missing or has another format.

    Raises:
        UsageError: see `identify`.
    """
    if spec.weights is None:
        return None
    if preset := presets.PRESETS.get(spec.weights):
        claims = [Claim(f"preset {spec.weights}", preset.source, preset.preprocessing)]
        return identify(spec, Path(preset.address), claims)
    path = expanded(spec.weights)
    if path.suffix not in WEIGHT_FILES:
        return None
    if path.suffix == ".safetensors" and not path.is_file() and spec.weights_source is None:
        return None
    return identify(spec, path, claims_of(path))


def identify(spec: ModelSpec, path: Path, claims: Sequence[Claim] = ()) -> Identification:
    """Returns of which network a file is.

    Args:
        spec: a recipe's `model`.
        path: the file; it may be missing.
        claims: what the file says.

    Raises:
        UsageError: it is of another network, of none of those with the names and shapes of ours,
            could be of several that compute differently, or its network computes otherwise than
            ours with these options.
    """
    known = published_networks(spec.name)
    if spec.weights_source is not None:
        said = Claim("model.weights_source", spec.weights_source, key="model.weights_source")
        claims = [said, *claims]
    if claims:
        named = [_named(claim, spec.name, known, path) for claim in claims]
        _must_agree(claims, named)
        network, evidence = named[0], " and ".join(claim.evidence for claim in claims)
    elif not known:
        return Identification()
    else:
        network, evidence = _only_one(_fitting(spec, path, known), spec, path), "names and shapes"
    prepared = [claim.preprocessing for claim in claims if claim.preprocessing]
    is_usual = not prepared and network.publisher != "keras"
    prepared.append(network.preprocessing)
    identification = Identification(network, evidence, prepared[0], is_usual)
    _check_options(spec, identification, known, path)
    return identification


def check_all_options(spec: ModelSpec, identification: Identification) -> None:
    """Raises UsageError unless the network is the published one in all its options.

    To train on from weights, one may change the stem or the activation; to use them as they are,
    one may not.
    """
    path = Path(spec.weights or "")
    if identification.network is None:
        raise UsageError(
            f"nobody publishes weights with the names and shapes of {spec.name}, so it is not "
            f"known how the network of {path.name} computes",
            allowed="weights to use as they are must be of a published network: cnnbench list "
            "weights; others can be trained on",
            key="model.weights",
        )
    given = [key for key in spec.options() if key not in TRAINING]
    _check_options(spec, identification, [identification.network], path, given)


def _must_agree(claims: Sequence[Claim], named: Sequence[PublishedNetwork]) -> None:
    for claim, network in zip(claims[1:], named[1:], strict=True):
        if network.computation != named[0].computation:
            raise UsageError(
                f"{claims[0].evidence} says {named[0].name}, {claim.evidence} {network.name}",
                key=claims[0].key,
            )


def _only_one(fitting: Sequence[PublishedNetwork], spec: ModelSpec, path: Path) -> PublishedNetwork:
    """Returns the first of the networks that a file may be of, if all of them compute the same.

    Raises:
        UsageError: they do not, there are none, or ours computes otherwise.
    """
    names = ", ".join(network.name for network in fitting)
    if not fitting:
        what = f"no published {spec.name} with these options has the names of its weights"
        allowed = "set the options of a published one: cnnbench list weights has them"
    elif len({network.computation for network in fitting}) > 1:
        what = f"these have the same names and shapes, but compute differently: {names}"
        allowed = (
            "set model.weights_source to the one it is of, or keep timm's config.json beside the "
            "file"
        )
    elif fitting[0].differs is not None:
        what = (
            f"those with its names and shapes compute differently ({fitting[0].differs}): {names}"
        )
        allowed = "there is no such network here"
    else:
        return fitting[0]
    raise UsageError(
        f"{path.name} does not say of which network it is, and {what}",
        allowed=allowed,
        key="model.weights",
    )


def _fitting(
    spec: ModelSpec, path: Path, known: Sequence[PublishedNetwork]
) -> list[PublishedNetwork]:
    """Returns the published networks that a file without claims may be of."""
    if path.suffix == ".h5":
        return [network for network in known if network.publisher == "keras"]
    names = names_of(spec.name)
    publishers = {network.publisher for network in known} - {"keras"}
    if path.is_file() and (namings := getattr(names, "TORCH_NAMINGS", {})):
        keys = header(path)[0]
        publishers = {each for each, name in namings.items() if name(spec.name, HEAD) in keys}
    options, default = spec.options(), MODELS.spec(spec.name).options()
    return [
        network
        for network in known
        if network.publisher in publishers
        and all(
            options[key] == network.options.get(key, default[key])
            for key in _keys(known)
            if key in options and key not in SILENT
        )
    ]


def _keys(known: Sequence[PublishedNetwork]) -> set[str]:
    return {key for network in known for key in network.options}


def _named(
    claim: Claim, model: str, known: Sequence[PublishedNetwork], path: Path
) -> PublishedNetwork:
    """Returns the published network that a claim names.

    Raises:
        UsageError: it is not our network, or we cannot compute it.
    """
    publisher, _, tagged = claim.name.partition(":")
    name = f"{publisher}:{tagged.partition('.')[0]}"  # timm adds a tag, as in resnet50.a1_in1k
    network = next((network for network in known if network.name == name), None)
    if network is None:
        names = [each.name for each in known if each.differs is None]
        raise UsageError(
            f"{claim.evidence} says {claim.name}, which is not {model}",
            allowed=did_you_mean(name, names),
            key=claim.key,
        )
    if network.differs is not None:
        raise UsageError(
            f"{claim.evidence} says {claim.name}: its weights have the names and shapes of "
            f"{model}, but it computes differently ({network.differs})",
            allowed="there is no such network here",
            key=claim.key,
        )
    if (publisher == "keras") != (path.suffix == ".h5"):
        raise UsageError(
            f"{claim.evidence} says {claim.name}, but the file is {path.name}",
            allowed="keras.applications has .h5 files, the others .safetensors",
            key=claim.key,
        )
    return network


def _check_options(
    spec: ModelSpec,
    identification: Identification,
    known: Sequence[PublishedNetwork],
    path: Path,
    keys: Sequence[str] | None = None,
) -> None:
    """Raises UsageError if an option is not that of the published network."""
    network = identification.network
    assert network is not None
    options, default = spec.options(), MODELS.spec(spec.name).options()
    wanted = default | dict(network.options)
    keys = sorted(_keys(known)) if keys is None else keys
    wrong = [key for key in keys if key in options and options[key] != wanted[key]]
    if wrong:
        given = " and ".join(f"{key} {options[key]!r}" for key in wrong)
        raise UsageError(
            f"{options[wrong[0]]!r} does not match the weights of {path}: {network.name} "
            f"({identification.evidence}) is not {spec.name} with {given}",
            allowed="set " + " and ".join(f"model.{key} to {wanted[key]!r}" for key in wrong),
            key=f"model.{wrong[0]}",
        )
