"""Our networks against those of keras.applications, torchvision and timm, with equal weights.

Every weight is drawn at random, batch-norm statistics too, and imported as a published checkpoint
would be. `make parity` computes the logits of both sides and checks what parity.txt says of each
network; `--write` measures and says it anew. The tests take the smallest of each family.

Random weights amplify rounding, above all in training mode, so that the libraries' float32 would
differ by more than the tolerance in deep networks. Hence the last normalisation of each residual
block is drawn smaller, as training makes it; and where that is not enough, both sides compute in
float64, where a network that computes something else would differ as much, and the table says so.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from cnnbench.backend import lazy
from cnnbench.backend.lazy import keras
from cnnbench.models.build import build_model
from cnnbench.models.pretrained import load
from cnnbench.registry.kinds import MODELS, min_size

GOLDEN = Path(__file__).with_name("parity.txt")
TOLERANCE = 1e-4  # of the largest logit
BOUNDS = ("<1e-5", "<1e-4")
RESIDUAL = 0.2  # scale of the last normalisation of a residual block
MARGIN = 3  # between what was measured and the bound, for machines round differently
CLASSES = 1000


class Row(NamedTuple):
    """What the table says of one network."""

    network: str
    reference: str
    input: str
    arithmetic: str
    inference: str
    training: str

    @property
    def ok(self) -> bool:
        """Whether it is within the tolerance."""
        return self.inference in BOUNDS and self.training in (*BOUNDS, "-")

    def __str__(self) -> str:
        columns = zip(self, (19, 37, 5, 10, 9, 8), strict=True)
        return "  ".join(f"{cell:{width}}" for cell, width in columns).rstrip()


HEADER = Row(*Row._fields)


class Pair(NamedTuple):
    """One of our networks and what it is compared with."""

    network: str
    reference: str
    compare: Callable[[], tuple[float, float]]


def pairs() -> list[Pair]:
    """Everything to compare, in the order of the table."""
    found = [
        Pair(
            name,
            f"keras.applications:{load.names_of(name).KERAS_MODELS[name]}",
            lambda name=name: compare_keras(name),
        )
        for name in keras_models()
    ]
    return found + [
        Pair(name, reference, lambda job=(reference, name, options): compare_torch(*job))
        for reference, name, options in torch_models()
    ]


def families() -> dict[str, ModuleType]:
    """Every family whose weights somebody publishes, by its name."""
    found = {}
    for name in MODELS.names():
        family = MODELS.get(name).facts["family"]
        if family not in found and family not in ("airbench", "lenet"):
            found[family] = load.names_of(name)
    return found


def keras_models() -> list[str]:
    """Names of our networks that keras.applications has too, smallest first in each family."""
    by_size = [
        sorted(names.KERAS_MODELS, key=lambda name: MODELS.get(name).facts["params"])
        for names in families().values()
    ]
    return [name for family in by_size for name in family]


def torch_models() -> list[tuple[str, str, dict]]:
    """(reference, our name, our options) of what torchvision or timm has too."""
    rows = []
    for names in families().values():
        rows += [(reference, name, {}) for name, reference in names.TORCH_MODELS.items()]
        variants = getattr(names, "TORCH_VARIANTS", {})
        rows += [(reference, name, options) for reference, (name, options) in variants.items()]
    return rows


def input_size(name: str) -> int:
    """Height and width of a small input that the references take too."""
    family = MODELS.get(name).facts["family"]
    if family in ("vgg", "alexnet"):
        return 224  # the dense layers are made for it
    return max(64, min_size(MODELS.spec(name)))


def random_images(size: int) -> np.ndarray:
    """A batch of them, of the arithmetic in use."""
    batch = 2 if size > 100 else 8
    images = np.random.default_rng(1).normal(size=(batch, size, size, 3))
    return images.astype(keras.config.floatx())


def compare_keras(name: str) -> tuple[float, float]:
    """Returns how far our logits are from those of keras.applications, as a share of the largest.

    In inference, and in training mode (nan for networks without batch normalisation).
    """
    names = load.names_of(name)
    size = input_size(name)
    reference = getattr(keras.applications, names.KERAS_MODELS[name])
    inside = "V3" in reference.__name__ or name.startswith("efficientnet_v2")
    theirs = reference(
        weights=None,
        input_shape=(size, size, 3),
        classes=CLASSES,
        classifier_activation=None,
        **({"include_preprocessing": False} if inside else {}),
    )
    spec = MODELS.spec(name, **getattr(names, "KERAS_OPTIONS", {}).get(name, {}))
    ours = build_model(spec, (size, size, 3), CLASSES)
    without_dropout(ours), without_dropout(theirs)
    start = theirs.input
    if any(layer.name == "stem_conv_pad" for layer in theirs.layers):
        start = theirs.get_layer("stem_conv_pad").input  # behind what normalises the images
    body = keras.Model(start, theirs.output)
    images = random_images(size)
    random = np.random.default_rng(0)
    for weight in theirs.weights:
        kind = weight.path.rpartition("/")[2]
        if kind.endswith("kernel"):
            # Of (height, width, inputs, outputs); depthwise, an output sees one input.
            seen = weight.shape[:2] if weight.shape[-1] == 1 else weight.shape[:-1]
            weight.assign(draw(random, "kernel", weight.shape, fan=np.prod(seen)))
        elif kind in ("gamma", "beta", "bias"):
            weight.assign(draw(random, kind, weight.shape))
    for path in last_gammas(ours):
        gamma = theirs.get_layer(names.keras_name(name, path).partition("/")[0]).gamma
        gamma.assign(RESIDUAL * gamma)
    norms = [x for x in theirs.layers if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    body(images, training=True)
    for norm in norms:
        moved = move(random, norm.moving_mean.numpy(), norm.moving_variance.numpy())
        norm.moving_mean.assign(moved[0]), norm.moving_variance.assign(moved[1])
    arrays = load.from_keras(ours, name, load.of_keras_model(theirs))
    load.load(ours, arrays, where=reference.__name__)
    expected = [body(images, training=training) for training in (False, True)]
    return errors(ours, images, *expected)


def compare_torch(reference: str, name: str, options: dict[str, Any]) -> tuple[float, float]:
    """Returns the same for a network of torchvision or timm, given as "library:name"."""
    # PyTorch's compiler for GPUs, which crashes in a process that has TensorFlow's.
    sys.modules["triton"] = None
    import torch

    library, _, theirs_name = reference.partition(":")
    if library == "timm":
        import timm

        theirs = timm.create_model(theirs_name)
    else:
        import torchvision

        theirs = getattr(torchvision.models, theirs_name)(weights=None)
    theirs = theirs.to(getattr(torch, keras.config.floatx()))
    random = np.random.default_rng(0)
    norms = []
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        is_norm = isinstance(module, torch.nn.BatchNorm2d)
        norms += [module] if is_norm else []
        for kind, value in module.named_parameters(recurse=False):
            # A kernel is of (outputs, inputs, height, width).
            kind = {"weight": "gamma" if is_norm else "kernel"}.get(kind, kind)
            drawn = draw(random, kind, value.shape, value[0].numel())
            value.data.copy_(torch.from_numpy(drawn))
    size = input_size(name)
    ours = build_model(MODELS.spec(name, **options), (size, size, 3), CLASSES)
    without_dropout(ours)
    names = load.names_of(name)
    naming = getattr(names, "TORCH_NAMINGS", {}).get(library, names.torch_name)
    for path in last_gammas(ours):
        theirs.get_parameter(naming(name, path)).data.mul_(RESIDUAL)
    images = random_images(size)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        theirs.train()(pixels)
        for norm in norms:
            moved = move(random, norm.running_mean.numpy(), norm.running_var.numpy())
            norm.running_mean.copy_(torch.from_numpy(moved[0]))
            norm.running_var.copy_(torch.from_numpy(moved[1]))
        state = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
        expected = [theirs.train(training)(pixels).numpy() for training in (False, True)]
    load.load(ours, load.from_torch(ours, name, state), where=reference)
    return errors(ours, images, *expected)


def without_dropout(model: Any) -> None:
    """Sets every dropout to nothing, so that training mode is the same on both sides."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0


def last_gammas(ours: Any) -> list[str]:
    """Returns the paths of the scales of the last normalisation in each residual block."""
    adds = [x.name for x in ours.layers if isinstance(x, keras.layers.Add)]
    blocks = {name.removesuffix("add"): "" for name in adds}
    for layer in ours.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        for block in blocks:
            if is_norm and layer.name.startswith(block) and "shortcut" not in layer.name:
                blocks[block] = f"{layer.name}/gamma"
    return [path for path in blocks.values() if path]


def draw(random: np.random.Generator, kind: str, shape: Any, fan: float = 1) -> np.ndarray:
    """Draws a weight, at a scale that keeps activations alive in a deep network."""
    if kind == "kernel":
        return random.normal(size=shape) * np.sqrt(2 / fan)
    return random.uniform(0.7, 1.3, shape) if kind == "gamma" else random.uniform(-0.2, 0.2, shape)


def move(random: np.random.Generator, mean: Any, variance: Any) -> tuple[np.ndarray, np.ndarray]:
    """Draws batch-norm statistics near those of a batch: any others would not fit the weights."""
    shift = 0.1 * np.sqrt(variance) * random.normal(size=mean.shape)
    return mean + shift, variance * random.uniform(0.9, 1.1, mean.shape)


def errors(ours: Any, images: np.ndarray, inference: Any, training: Any) -> tuple[float, float]:
    """How far our logits are from those expected."""
    found = error(ours(images, training=False), inference)
    if not any(isinstance(x, keras.layers.BatchNormalization) for x in ours.layers):
        return found, float("nan")
    return found, error(ours(images, training=True), training)


def error(ours: Any, theirs: Any) -> float:
    """The largest difference of two batches of logits, as a share of the largest logit."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    largest = np.abs(theirs).max()
    if not np.ptp(theirs, axis=0).max() > 0.01 * largest:
        raise ValueError("the logits are the same for every image, so they show nothing")
    return float(np.nan_to_num(np.abs(ours - theirs).max() / largest, nan=np.inf))


@contextmanager
def arithmetic(dtype: str) -> Iterator[None]:
    """Builds the networks of both sides to compute in float32 or float64."""
    try:
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        yield
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        keras.utils.clear_session()
        gc.collect()


def measure(pair: Pair, dtype: str) -> tuple[float, float]:
    """Compares two networks in an arithmetic."""
    with arithmetic(dtype):
        return pair.compare()


def within(found: float, bound: str) -> bool:
    """Tells whether an error is what a cell of the table says."""
    return np.isnan(found) if bound == "-" else found < float(bound.removeprefix("<"))


def bound_of(found: float) -> str:
    """Returns the cell for an error, "-" for one that there is not, or the error if too large."""
    if np.isnan(found):
        return "-"
    fitting = (bound for bound in BOUNDS if within(MARGIN * found, bound))
    return next(fitting, f"{found:.0e}")


def read_golden() -> dict[tuple[str, str], Row]:
    """Returns the rows of parity.txt by (network, reference)."""
    lines = GOLDEN.read_text().splitlines() if GOLDEN.exists() else []
    rows = [Row(*line.split()) for line in lines[1:]]
    return {row[:2]: row for row in rows}


def write_golden(rows: dict[tuple[str, str], Row]) -> None:
    """Writes parity.txt, in the order of the table."""
    known = [rows[pair[:2]] for pair in pairs() if pair[:2] in rows]
    GOLDEN.write_text("".join(f"{row}\n" for row in (HEADER, *known)))


def new_row(pair: Pair) -> Row:
    """Measures in float32, or in float64 where that is too coarse."""
    for dtype in ("float32", "float64"):
        cells = map(bound_of, measure(pair, dtype))
        row = Row(*pair[:2], str(input_size(pair.network)), dtype, *cells)
        if row.ok:
            break
    return row


def main() -> None:
    """Prints the table; exits with 1 if a row of it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="*", help="networks, references or libraries; default: all")
    parser.add_argument("--write", action="store_true", help=f"measure and write {GOLDEN.name}")
    args = parser.parse_args()
    lazy.load()
    golden = read_golden()
    failed = False
    print(HEADER)
    for pair in pairs():
        names = {pair.network, pair.reference, pair.reference.partition(":")[0]}
        if args.only and names.isdisjoint(args.only):
            continue
        problem = ""
        if args.write:
            row = golden[pair[:2]] = new_row(pair)
            write_golden(golden)  # each time, for the whole takes long
            problem = "" if row.ok else "  FAILED"
        elif row := golden.get(pair[:2]):
            found = measure(pair, row.arithmetic)
            if not all(map(within, found, row[4:])):
                problem = "  FAILED with " + " and ".join(f"{x:.0e}" for x in found)
        else:
            row = Row(*pair[:2], "", "", "", "")
            problem = f"  FAILED, for it is not in {GOLDEN.name}"
        failed = failed or bool(problem)
        print(f"{row}{problem}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
