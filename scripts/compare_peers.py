"""Times training steps of cnnbench, stock Keras and PyTorch against each other.

    python scripts/compare_peers.py [--rounds 5] [--compiled] [NETWORK...]

All train the same networks on the same inputs and batches, in float32 and with SGD with momentum;
everything else is the library's default. Each runs in its own process, and their rounds alternate.
PyTorch's networks are timm's, in channels_last. Libraries that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import time
from typing import NamedTuple

from cnnbench.bench import autotune, jobs
from cnnbench.recipe.load import parse_recipe
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import MODELS
from cnnbench.system.environment import machine, versions
from cnnbench.system.processes import Round, Worker, WorkerError, alternate

TIMEOUT_S = 900.0
PRODUCTS = "matrix products"
# If a round takes longer, only two rounds are run.
SLOW_S = 20.0


class Case(NamedTuple):
    """A network, the side of its input in pixels, the batch size, and timm's name of it."""

    model: str
    size: int
    batch: int
    timm: str


CASES = (
    Case("resnet20", 32, 128, "resnet20"),
    Case("resnet50", 64, 64, "resnet50"),
    Case("densenet121", 32, 64, "densenet121"),
    Case("mobilenet_v2", 32, 64, "mobilenetv2_100"),
    Case("efficientnet_b0", 32, 64, "tf_efficientnet_b0"),
    Case("resnext29_8x64d", 32, 32, "resnext29"),
)


def recipe_of(case: Case) -> Recipe:
    """Returns a recipe that trains a case on synthetic images, without weight decay."""
    classes = MODELS.get(case.model).facts["native_classes"]
    return parse_recipe(
        f"name: {case.model}\nmodel: {{name: {case.model}}}\n"
        f"data: {{name: synthetic, batch_size: {case.batch}, examples: {case.batch}, "
        f"classes: {classes}, shape: [{case.size}, {case.size}, 3]}}\n"
        "optimizer: {name: momentum, lr: 0.01}\ntrain: {steps: 1}\n"
    )


def torch_training(case: Case, classes: int, compiled: bool) -> Round:
    """Builds timm's network; a round returns the seconds of a step."""
    import torch

    torch.manual_seed(0)
    model = _timm(case.timm, classes).train().to(memory_format=torch.channels_last)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    criterion = torch.nn.CrossEntropyLoss()
    images = torch.randn(case.batch, 3, case.size, case.size)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(case.batch) % classes

    def steps(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(run(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        return time.perf_counter() - start

    steps(2)
    count = max(1, round(jobs.ROUND_SECONDS / steps(1)))
    return lambda: steps(count) / count


def _timm(name: str, classes: int):
    import timm
    import torch
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    if name not in ("resnet20", "resnext29"):
        return timm.create_model(name, num_classes=classes)
    # timm lacks these networks for 32 pixels: build them from its blocks, with a stem of stride 1.
    options = (
        {"block": BasicBlock, "channels": (16, 32, 64), "stem_width": 16}
        if name == "resnet20"
        else {"block": Bottleneck, "channels": (64, 128, 256), "cardinality": 8, "base_width": 64}
    )
    model = ResNet(layers=(3, 3, 3), num_classes=classes, **options)
    width = options["channels"][0]
    model.conv1 = torch.nn.Conv2d(3, width, 3, padding=1, bias=False)
    model.bn1 = torch.nn.BatchNorm2d(width)
    model.maxpool = model.layer4 = torch.nn.Identity()
    if name == "resnet20":  # built for a stem of 64 channels
        model.layer1[0].conv1 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
        model.layer1[0].downsample = None
    return model


def compare(case: Case, rounds: int, compiled: bool) -> dict[str, list[float]]:
    """Returns the seconds per step in each round, by library."""
    recipe = recipe_of(case)
    settings = autotune.choose(recipe, seconds=math.inf).settings
    classes = MODELS.get(case.model).facts["native_classes"]
    dumped = recipe.dump()
    workers = {
        f"cnnbench ({autotune.name(settings)})": Worker(
            jobs.training_steps, dumped, settings, environment=settings.environment()
        ),
        "stock Keras": Worker(jobs.stock_training, dumped),
        PRODUCTS: Worker(jobs.matrix_products),
    }
    if importlib.util.find_spec("timm"):
        workers["PyTorch eager"] = Worker(torch_training, case, classes, False)
        if compiled:
            workers["PyTorch compiled"] = Worker(torch_training, case, classes, True)
    try:
        ready = {}
        for name, worker in workers.items():
            try:
                worker.ready(TIMEOUT_S)
                ready[name] = worker
            except WorkerError as error:
                print(f"  {name}: {error}")
        slowest = max(worker.round(TIMEOUT_S) for worker in ready.values())
        rounds = rounds if slowest < SLOW_S else 2
        return dict(zip(ready, alternate(list(ready.values()), rounds, TIMEOUT_S), strict=True))
    finally:
        for worker in workers.values():
            worker.close()


def share_of_peak(case: Case, seconds: list[float], products: list[float]) -> float:
    """Returns the FLOP/s of a training step, as a share of those of a matrix product."""
    with Worker(jobs.counting, recipe_of(case).dump()) as worker:
        worker.ready(TIMEOUT_S)
        # Two operations per multiply-accumulate; the backward pass costs twice the forward pass.
        flops = 6 * case.batch * worker.round(TIMEOUT_S)
    peak = 2 * jobs.MATRIX_SIDE**3
    return statistics.median(flops / s / (peak / p) for s, p in zip(seconds, products, strict=True))


def main() -> None:
    """Prints a block per network, and the geometric means of the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("networks", nargs="*", choices=[[], *(case.model for case in CASES)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compiled", action="store_true", help="also time PyTorch with torch.compile"
    )
    arguments = parser.parse_args()
    about, installed = machine(), versions()
    print(f"{about['cpu']}, {about['cores']} cores; {time.strftime('%d %B %Y')}")
    print(f"TensorFlow {installed['tensorflow']}, Keras {installed['keras']}")
    ratios: dict[str, list[float]] = {}
    for case in CASES:
        if arguments.networks and case.model not in arguments.networks:
            continue
        seconds = compare(case, arguments.rounds, arguments.compiled)
        products = seconds.pop(PRODUCTS)
        own, *others = seconds
        share = share_of_peak(case, seconds[own], products)
        print(f"{case.model} @{case.size}, batch {case.batch}: {share:.0%} of the peak")
        for name, times in seconds.items():
            rates = [case.batch / s for s in times]
            line = f"  {name:24} {statistics.median(rates):8.1f} images/s"
            line += f" ({min(rates):.1f} to {max(rates):.1f})"
            if name in others:
                each = [theirs / ours for theirs, ours in zip(times, seconds[own], strict=True)]
                ratios.setdefault(name, []).append(statistics.median(each))
                line += f"   cnnbench is {statistics.median(each):.2f} times as fast"
                line += f" ({min(each):.2f} to {max(each):.2f})"
            print(line, flush=True)
    for name, values in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        print(f"geometric mean over {name}: {mean:.2f}")


if __name__ == "__main__":
    main()
