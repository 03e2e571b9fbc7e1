"""Trains on several logical CPUs, in a process of its own, and prints what it saw as JSON.

Arguments: the recipe, and the number of replicas. The folder of tests must be on PYTHONPATH.
"""

import json
import sys

import numpy as np
from test_steps import BATCH, CLASSES, FEATURES, LR, PLAIN, batches

from cnnbench import load_recipe
from cnnbench.backend.lazy import keras, tf
from cnnbench.models.layers.blocks import drop, drop_path
from cnnbench.training.optimizer import build_optimizer
from cnnbench.training.state import State
from cnnbench.training.steps import training_steps

# Sums of two such products are infinite, and NaN if their signs differ.
HUGE = 1e38


def mirrored(count):
    """A strategy over this number of logical CPUs."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def on_each(strategy, variable):
    """A variable on each replica."""
    local = strategy.experimental_local_results(variable.value)
    return [np.asarray(each).tolist() for each in local]


def with_overflow(images, kind, replica, share):
    """A batch whose gradients are infinite or NaN on one replica, which has this many images."""
    images = np.zeros_like(images)
    first = replica * share
    images[first : first + 2] = HUGE
    if kind == "nan":
        images[first + 1] = -HUGE
    return images


def overflows(recipe, strategy):
    """What a step leaves behind if the gradients of one replica are infinite or NaN.

    For each kind and replica: weights, loss scales and updates after each of the steps bad, good,
    good. The loss is finite in all of them: in the first, the weights are 0.
    """
    with strategy.scope():
        inputs = keras.Input((FEATURES,))
        layer = keras.layers.Dense(CLASSES, kernel_initializer="zeros", name="logits")
        model = keras.Model(inputs, layer(inputs))
        optimizer = build_optimizer(recipe.optimizer, recipe.train, model.trainable_variables)
        optimizer.dynamic_growth_steps = 2
    state = State(model, model, optimizer)
    steps = training_steps(recipe, state, strategy, lambda images: images, xla=False)
    start = {name: variable.numpy() for name, variable in state.variables().items()}
    replicas = range(strategy.num_replicas_in_sync)
    cases = [(kind, replica) for kind in ("inf", "nan") for replica in replicas]
    (good,), (labels,) = batches(1)
    bad = [with_overflow(good, *case, BATCH // len(replicas)) for case in cases]
    images = np.concatenate([each for one in bad for each in (one, good, good)])
    data = tf.data.Dataset.from_tensor_slices((images, np.tile(labels, 3 * len(cases))))
    iterator = iter(strategy.experimental_distribute_dataset(data.batch(BATCH)))
    rate, end, found = tf.fill((1,), LR), tf.constant([False]), []
    for case in cases:
        for name, variable in state.variables().items():
            variable.assign(start[name])
        for _ in range(3):
            result = steps(iterator, rate, tf.zeros(1), end, tf.constant(1))
            watched = {
                "kernel": layer.kernel, "bias": layer.bias,
                "scale": optimizer.dynamic_scale, "updates": optimizer.iterations,
            }  # fmt: skip
            values = {name: on_each(strategy, each) for name, each in watched.items()}
            finite = bool(np.isfinite(result[0]).all())
            found.append({"case": case, "finite": finite, **values})
    return found


def masks(strategy):
    """Where dropout and stochastic depth leave a one, in two steps and in the second again.

    A list for each, with a mask of 64 images for each replica.
    """
    with strategy.scope():
        inputs = keras.Input((1, 1, 4))
        whole, path = drop(inputs, 0.5, "dropout"), drop_path(inputs, 0.5, "path")
        model = keras.Model(inputs, [whole, path])
    step = tf.function(lambda: strategy.run(lambda: model(tf.ones((64, 1, 1, 4)), training=True)))
    seeds = [variable for variable in model.variables if "seed" in variable.path]

    def kept():
        found = [strategy.experimental_local_results(each) for each in step()]
        return [[(np.asarray(x) > 0).astype(int).tolist() for x in each] for each in found]

    first, states = kept(), [seed.numpy() for seed in seeds]
    second = kept()
    for seed, state in zip(seeds, states, strict=True):
        seed.assign(state)
    return [first, second, kept()]


def main(path, count):
    strategy = mirrored(count)
    recipe = load_recipe(path, (*PLAIN, "train.precision=mixed_float16"))
    found = {"overflows": overflows(recipe, strategy), "masks": masks(strategy)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
