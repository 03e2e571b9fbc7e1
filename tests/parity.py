"""Our networks against those of keras.applications, torchvision and timm, with equal weights.

Every weight is drawn at random, batch-norm statistics too, and imported as a published checkpoint
would be. `make parity` prints the table of all of them; the tests take the smallest of each family.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np

from cnnbench import weights
from cnnbench.lazy import keras, load
from cnnbench.models import build_model
from cnnbench.parts import MODELS, min_size

TOLERANCE = 1e-4  # of the largest logit
CLASSES = 1000
BATCH = 8


def families() -> dict[str, ModuleType]:
    """Every family whose weights somebody publishes, by its name."""
    found = {}
    for name in MODELS.names():
        family = MODELS.get(name).facts["family"]
        if family not in found and family != "lenet":
            found[family] = weights.names_of(name)
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
    """A small input that the references take too, where they do not insist on their own."""
    family = MODELS.get(name).facts["family"]
    if family in ("vgg", "alexnet"):
        return 224  # the dense layers are made for it
    if family == "nasnet":
        return MODELS.get(name).facts["native"][0] if name == "nasnet_large" else 64
    return max(64, min_size(MODELS.spec(name)))


def compare_keras(name: str) -> tuple[float, float]:
    """Returns how far our logits are from those of keras.applications, as a share of the largest.

    In inference, and in training mode (nan for networks without batch normalisation).
    """
    names = weights.names_of(name)
    size = input_size(name)
    reference = getattr(keras.applications, names.KERAS_MODELS[name])
    options = {"include_preprocessing": False} if "V3" in reference.__name__ else {}
    if name.startswith("efficientnet_v2"):
        options = {"include_preprocessing": False}
    theirs = reference(
        weights=None,
        input_shape=(size, size, 3),
        classes=CLASSES,
        classifier_activation=None,
        **options,
    )
    spec = MODELS.spec(name, **getattr(names, "KERAS_OPTIONS", {}).get(name, {}))
    ours = build_model(spec, (size, size, 3), CLASSES)
    without_dropout(ours), without_dropout(theirs)
    images = np.random.default_rng(1).normal(size=(BATCH, size, size, 3)).astype(np.float32)
    start = theirs.input
    if any(layer.name == "stem_conv_pad" for layer in theirs.layers):
        start = theirs.get_layer("stem_conv_pad").input  # behind what normalises the images
    body = keras.Model(start, theirs.output)
    randomise(theirs)
    calibrate(theirs, body, images)
    arrays = weights.from_keras(ours, name, weights.of_keras_model(theirs))
    weights.load(ours, arrays, where=reference.__name__)
    inference = error(ours(images, training=False), body(images, training=False))
    if not any(isinstance(x, keras.layers.BatchNormalization) for x in ours.layers):
        return inference, float("nan")
    return inference, error(ours(images, training=True), body(images, training=True))


def compare_torch(reference: str, name: str, options: dict) -> tuple[float, float]:
    """Returns the same for a network of torchvision or timm, given as "library:name"."""
    import torch

    library, _, theirs_name = reference.partition(":")
    if library == "timm":
        import timm

        theirs = timm.create_model(theirs_name)
    else:
        import torchvision

        theirs = getattr(torchvision.models, theirs_name)(weights=None)
    size = input_size(name)
    generator = torch.Generator().manual_seed(2)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
            module.momentum = 1.0
    images = np.random.default_rng(1).normal(size=(BATCH, size, size, 3)).astype(np.float32)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        theirs.train()(pixels)  # statistics that fit the weights, as after training
        state = {key: value.numpy() for key, value in theirs.state_dict().items()}
        state = {key: value.copy() for key, value in state.items()}
        expected = theirs.eval()(pixels).numpy()
        in_training = theirs.train()(pixels).numpy()
    ours = build_model(MODELS.spec(name, **options), (size, size, 3), CLASSES)
    without_dropout(ours)
    weights.load(ours, weights.from_torch(ours, name, state), where=reference)
    inference = error(ours(images, training=False), expected)
    if not any(isinstance(x, keras.layers.BatchNormalization) for x in ours.layers):
        return inference, float("nan")
    return inference, error(ours(images, training=True), in_training)


def without_dropout(model) -> None:
    """Sets every dropout to nothing, so that training mode is the same on both sides."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0


def randomise(model) -> None:
    """Draws every weight, at a scale that keeps activations alive in a deep network."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        kind = weight.path.rpartition("/")[2]
        if kind in ("gamma", "moving_variance"):
            value = random.uniform(0.7, 1.3, weight.shape)
        elif kind in ("beta", "bias", "moving_mean"):
            value = random.uniform(-0.2, 0.2, weight.shape)
        elif "kernel" in kind:
            fan = np.prod(weight.shape[:-1]) if weight.shape[-1] != 1 else 9
            value = random.normal(size=weight.shape) * np.sqrt(2 / fan)
        else:
            continue  # what normalises the images
        weight.assign(value.astype(np.float32))


def calibrate(model, body, images) -> None:
    """Takes the statistics of one batch, then moves them: drawn ones would not fit the weights."""
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    body(images, training=True)
    random = np.random.default_rng(3)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        spread = np.sqrt(norm.moving_variance.numpy())
        shift = 0.1 * spread * random.normal(size=spread.shape)
        norm.moving_mean.assign(norm.moving_mean.numpy() + shift.astype(np.float32))
        scale = random.uniform(0.9, 1.1, spread.shape).astype(np.float32)
        norm.moving_variance.assign(norm.moving_variance.numpy() * scale)


def error(ours, theirs) -> float:
    """The largest difference of two batches of logits, as a share of the largest logit."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def main() -> None:
    """Prints the table; exits 1 if any network is further off than the tolerance."""
    load()
    print(f"{'network':22} {'reference':38} {'input':>5} {'inference':>10} {'training':>10}")
    jobs = [
        (
            f"keras.applications:{weights.names_of(n).KERAS_MODELS[n]}",
            n,
            lambda n=n: compare_keras(n),
        )
        for n in keras_models()
    ]
    jobs += [
        (reference, name, lambda job=(reference, name, options): compare_torch(*job))
        for reference, name, options in torch_models()
    ]
    wanted = sys.argv[1:]
    failed = 0
    for reference, name, compare in jobs:
        if wanted and not any(word in (name, reference.partition(":")[0]) for word in wanted):
            continue
        errors = compare()
        ok = all(not e > TOLERANCE for e in errors) and not np.isnan(errors[0])
        failed += not ok
        cells = " ".join(f"{'-' if np.isnan(e) else f'{e:.0e}':>10}" for e in errors)
        print(f"{name:22} {reference:38} {input_size(name):5} {cells}{'' if ok else '  FAILED'}",
              flush=True)  # fmt: skip
        keras.utils.clear_session()
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
