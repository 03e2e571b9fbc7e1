"""Times cnnbench's layers against the Keras layers they replace, forward and backward.

    python scripts/compare_layers.py [--rounds 5]

Each layer runs in its own process, in float32; rounds alternate. A ratio above 1 means that
cnnbench's layer is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

from cnnbench.backend.settings import ONEDNN
from cnnbench.system.environment import machine, versions
from cnnbench.system.memory import keep_freed_memory
from cnnbench.system.processes import Round, Worker, alternate

TIMEOUT_S = 600.0
ROUND_SECONDS = 0.5


class Case(NamedTuple):
    """The class name of a Keras layer, its options, and the shape of a batch of images."""

    layer: str
    options: dict[str, object]
    shape: tuple[int, int, int, int]

    def __str__(self) -> str:
        options = " ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{self.layer} {options} on {'x'.join(map(str, self.shape))}"


CASES = (
    Case("BatchNormalization", {}, (128, 32, 32, 16)),
    Case("BatchNormalization", {}, (64, 16, 16, 256)),
    Case("Conv2D", {"filters": 144, "kernel_size": 1}, (64, 8, 8, 24)),
    Case("Conv2D", {"filters": 960, "kernel_size": 1}, (64, 1, 1, 160)),
    Case("Conv2D", {"filters": 256, "kernel_size": 1}, (64, 4, 4, 1024)),
    Case("Conv2D", {"filters": 128, "kernel_size": 3, "groups": 8}, (8, 16, 16, 128)),
    Case("Conv2D", {"filters": 128, "kernel_size": 3, "groups": 32}, (8, 16, 16, 128)),
)


def training(case: Case, own: bool) -> Round:
    """Builds a layer; a round returns the seconds of one forward and backward pass."""
    from cnnbench.backend import session
    from cnnbench.backend.lazy import keras, tf
    from cnnbench.models.layers.fast import PLAIN

    keep_freed_memory()
    session.prepare(seed=0, deterministic=True)  # for both layers, to compare nothing else
    theirs = getattr(keras.layers, case.layer)
    kind = next(fast for fast, plain in PLAIN.items() if plain is theirs) if own else theirs
    layer = kind(**case.options)
    images = tf.random.stateless_normal(case.shape, (0, 1))
    layer(images)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images, training=True)
            total = tf.reduce_sum(outputs * outputs)
        return tape.gradient(total, [images, *(v.value for v in layer.trainable_variables)])

    def steps(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            step()[0].numpy()
        return (time.perf_counter() - start) / count

    steps(2)
    count = max(1, round(ROUND_SECONDS / steps(1)))
    return lambda: steps(count)


def main() -> None:
    """Prints a line per layer, with and without oneDNN's kernels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores; {time.strftime('%d %B %Y')}")
    print(f"TensorFlow {versions()['tensorflow']}, Keras {versions()['keras']}")
    for case in CASES:
        for onednn in ("1", "0"):
            environment = {ONEDNN: onednn}
            with (
                Worker(training, case, True, environment=environment) as ours,
                Worker(training, case, False, environment=environment) as theirs,
            ):
                for worker in (ours, theirs):
                    worker.ready(TIMEOUT_S)
                own, other = alternate((ours, theirs), rounds, TIMEOUT_S)
            ratios = [b / a for a, b in zip(own, other, strict=True)]
            print(
                f"{case}, {'with' if onednn == '1' else 'without'} oneDNN: "
                f"{1000 * statistics.median(own):.2f} ms, "
                f"{statistics.median(ratios):.2f} times as fast as Keras "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
