"""The compiled steps: what one call into TensorFlow does to a batch, or to several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnbench.lazy import tf
from cnnbench.optim import penalty
from cnnbench.parts import LOSSES
from cnnbench.recipe import Recipe
from cnnbench.tasks.classification import in_top_k


def training_steps(
    recipe: Recipe,
    model: Any,
    optimizer: Any,
    strategy: Any,
    prepare: Callable[[Any], Any],
    classes: int,
    *,
    averaged: Any = None,
    xla: bool,
) -> Callable[..., tuple[Any, ...]]:
    """Compiles several training steps into one call.

    Args:
        recipe: its loss, penalties, batch size and precision.
        model: images to logits, or to those and the logits of auxiliary classifiers.
        optimizer: built for the model's trainable variables.
        strategy: of tf.distribute.
        prepare: uint8 pixels to the images that the model takes.
        classes: how many logits there are.
        averaged: a model like the first, which is given the moving average of its weights.
        xla: whether XLA compiles a step.

    Returns:
        A function of an iterator over batches, learning rates (steps,) float32 and how many of
        them to take. It returns, for each step, the sums over the batch of losses and of right
        answers, and a sum of all weights, which is not finite where one of them is not. It stops
        after a step that has a loss or leaves a weight that is not finite.
    """
    variables, batch_size = model.trainable_variables, recipe.data.batch_size
    replicas = strategy.num_replicas_in_sync
    l1, l2 = recipe.regularization.l1, recipe.regularization.l2
    weight = recipe.model.options().get("auxiliary_weight", 0.0)

    def step(images: Any, labels: Any) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(model(prepare(images), training=True))
            logits, *auxiliary = (tf.cast(output, tf.float32) for output in outputs)
            # Where images are mixed, labels are shares of the classes already.
            hot = labels if labels.dtype.is_floating else tf.one_hot(labels, classes)
            losses = LOSSES.build(recipe.loss, logits, hot)
            loss = tf.reduce_sum(losses) / batch_size
            for other in auxiliary:
                loss += weight * tf.reduce_sum(LOSSES.build(recipe.loss, other, hot)) / batch_size
            if l1 or l2:
                loss += penalty(variables, l1, l2) / replicas
            loss = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(loss, variables), variables)
        right = tf.cast(in_top_k(logits, tf.argmax(hot, 1), 1), tf.float32)
        # Finite if each weight is, and so each gradient that was used.
        total = tf.add_n([tf.cast(tf.reduce_sum(each), tf.float32) for each in variables])
        return tf.reduce_sum(losses), tf.reduce_sum(right), total

    run_step = tf.function(step, jit_compile=True) if xla else step

    @tf.function(autograph=True)
    def steps(iterator: Any, rates: Any, count: Any) -> tuple[Any, ...]:
        # One that was not written is 0.
        arrays = tuple(tf.TensorArray(tf.float32, count, element_shape=()) for _ in range(3))
        i, finite = tf.constant(0), tf.constant(True)
        while i < count and finite:
            optimizer.learning_rate.assign(rates[i])
            one = strategy.run(run_step, next(iterator))
            sums = [strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None) for x in one]
            if averaged is not None:
                move(averaged, model, optimizer.iterations, recipe.train.ema or 0.0)
            arrays = tuple(array.write(i, x) for array, x in zip(arrays, sums, strict=True))
            finite = tf.math.is_finite(sums[0]) and tf.math.is_finite(sums[2])
            i += 1
        return tuple(array.stack() for array in arrays)

    return steps


def move(averaged: Any, model: Any, step: Any, decay: float) -> None:
    """Moves averages of weights and batch statistics towards those of a model.

    The decay is less in the first steps, (1 + step) / (10 + step), as in TensorFlow's
    ExponentialMovingAverage, so that the initial weights are soon forgotten.
    """
    step = tf.cast(step, tf.float32)
    share = 1 - tf.minimum(decay, (1 + step) / (10 + step))
    for average, variable in zip(averaged.variables, model.variables, strict=True):
        if average.dtype.startswith("float"):  # the others are states of random generators
            average.assign(average + share * (variable - average))


def evaluation_step(
    recipe: Recipe, network: Any, prepare: Callable[[Any], Any], classes: int
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compiles a function from a batch to each image's loss and whether its class was named."""

    @tf.function(autograph=False)
    def evaluate(images: Any, labels: Any) -> tuple[Any, Any]:
        logits = tf.cast(network(prepare(images), training=False), tf.float32)
        losses = LOSSES.build(recipe.loss, logits, tf.one_hot(labels, classes))
        return losses, in_top_k(logits, labels, 1)

    return evaluate
