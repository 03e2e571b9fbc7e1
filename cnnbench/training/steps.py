"""The compiled steps: what one call into TensorFlow does to a batch, or to several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cnnbench.errors import UsageError
from cnnbench.lazy import keras, tf
from cnnbench.optim import penalty
from cnnbench.parts import LOSSES
from cnnbench.recipe import Recipe
from cnnbench.tasks.classification import in_top_k

if TYPE_CHECKING:
    from cnnbench.compress.distill import Lesson
    from cnnbench.compress.masking import Masking

# Of a batch: the gradient of each weight, and the sums of losses and of right answers.
Pass = tuple[list[Any], Any, Any]


def training_steps(
    recipe: Recipe,
    model: Any,
    optimizer: Any,
    strategy: Any,
    prepare: Callable[[Any], Any],
    classes: int,
    *,
    averaged: Any = None,
    slow: Sequence[Any] = (),
    masking: Masking | None = None,
    lesson: Lesson | None = None,
    size: int | None = None,
    xla: bool,
) -> Callable[..., tuple[Any, ...]]:
    """Compiles several training steps into one call.

    Args:
        recipe: its loss, penalties, batch size, precision, and what goes on around the optimizer.
        model: images to logits, or to those and the logits of auxiliary classifiers.
        optimizer: built for the model's trainable variables.
        strategy: of tf.distribute.
        prepare: uint8 pixels to the images that the model takes.
        classes: how many logits there are.
        averaged: a model like the first, which is given the moving average of its weights.
        masking: of a network that is pruned.
        lesson: of a network that is distilled; its guesses are the model's last outputs.
        size: height and width that images are scaled to; None: they are not.
        slow: Lookahead's slow weights, one for each trainable variable; none without it.
        xla: whether XLA compiles a step.

    Returns:
        A function of an iterator over batches, learning rates (steps,) float32, sparsities after
        each of the steps, likewise, whether an epoch ends with it, (steps,) bool, and how many of
        them to take. It returns, for each step, the
        sums over the batch of losses and of right answers, and a sum of all weights, which is not
        finite where one of them is not. It stops after a step that has a loss or leaves a weight
        that is not finite.
    """
    variables, lookahead = model.trainable_variables, recipe.train.lookahead
    replicas = strategy.num_replicas_in_sync
    seen = model if size is None else at_size(model, size)

    def look(images: Any) -> Any:
        return seen(prepare(images), training=True)

    differentiate = _differentiation(recipe, model, look, optimizer, classes, replicas, lesson)

    def step(images: Any, labels: Any) -> tuple[Any, Any, Any]:
        gradients, loss, right = differentiate(images, labels)
        if recipe.train.gradient_clip and replicas > 1:
            # Keras bounds the gradients before it adds up those of the replicas.
            gradients = [gradient / replicas for gradient in _over_replicas(gradients)]
        optimizer.apply(gradients, variables)
        # Finite if each weight is, and so each gradient that was used.
        total = tf.add_n([tf.cast(tf.reduce_sum(each), tf.float32) for each in variables])
        return loss, right, total

    compiled = tf.function(step, jit_compile=True) if xla else step

    def run_step(images: Any, labels: Any) -> tuple[Any, Any, Any]:
        if size is not None:  # not in the step, for XLA cannot resize
            images = tf.image.resize(images, (size, size), antialias=True)
        return compiled(images, labels)

    @tf.function(autograph=True)
    def steps(iterator: Any, rates: Any, sparsities: Any, ends: Any, count: Any) -> tuple[Any, ...]:
        # One that was not written is 0.
        arrays = tuple(tf.TensorArray(tf.float32, count, element_shape=()) for _ in range(3))
        i, finite = tf.constant(0), tf.constant(True)
        while i < count and finite:
            optimizer.learning_rate.assign(rates[i])
            if lookahead and optimizer.iterations == 0:
                follow(slow, variables, 1.0)
            one = strategy.run(run_step, next(iterator))
            sums = [strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None) for x in one]
            # At the end of an epoch too, for slow weights are what is validated and kept.
            if lookahead and (optimizer.iterations % lookahead.every == 0 or ends[i]):
                follow(slow, variables, lookahead.share)
            if averaged is not None:
                move(averaged, model, optimizer.iterations, recipe.train.ema or 0.0)
            if masking is not None:
                masking.obey(sparsities[i])
            arrays = tuple(array.write(i, x) for array, x in zip(arrays, sums, strict=True))
            finite = tf.math.is_finite(sums[0]) and tf.math.is_finite(sums[2])
            i += 1
        return tuple(array.stack() for array in arrays)

    return steps


def _differentiation(
    recipe: Recipe,
    model: Any,
    look: Callable[[Any], Any],
    optimizer: Any,
    classes: int,
    replicas: int,
    lesson: Lesson | None,
) -> Callable[[Any, Any], Pass]:
    """Returns what differentiates the loss of a replica's batch, scaled as the optimizer wants.

    Added up over the replicas, the gradients are those of the mean over the whole batch.
    """
    batch_size, parts = recipe.data.batch_size, recipe.train.accumulate
    variables = model.trainable_variables
    l1, l2 = recipe.regularization.l1, recipe.regularization.l2
    weight = recipe.model.options().get("auxiliary_weight", 0.0)
    guessed = len(model.outputs) - (lesson.guesses if lesson is not None else 0)

    def forward(images: Any, labels: Any) -> tuple[Any, Any, Any]:
        outputs = [tf.cast(output, tf.float32) for output in tf.nest.flatten(look(images))]
        logits, *auxiliary = outputs[:guessed]
        # Where images are mixed, labels are shares of the classes already.
        hot = labels if labels.dtype.is_floating else tf.one_hot(labels, classes)
        losses = LOSSES.build(recipe.loss, logits, hot)
        if lesson is not None:
            losses = lesson.losses(images, outputs, losses)
        loss = tf.reduce_sum(losses) / batch_size
        for other in auxiliary:
            loss += weight * tf.reduce_sum(LOSSES.build(recipe.loss, other, hot)) / batch_size
        if l1 or l2:
            loss += penalty(variables, l1, l2) / (replicas * parts)
        return optimizer.scale_loss(loss), losses, logits

    def differentiate(images: Any, labels: Any) -> Pass:
        with tf.GradientTape() as tape:
            loss, losses, logits = forward(images, labels)
        named = tf.argmax(labels, 1) if labels.dtype.is_floating else labels
        right = tf.cast(in_top_k(logits, named, 1), tf.float32)
        return tape.gradient(loss, variables), tf.reduce_sum(losses), tf.reduce_sum(right)

    once: Callable[[Any, Any], Pass] = differentiate
    if recipe.train.sam:
        once = _sharpness_aware(once, forward, model, recipe.train.sam.rho)
    return once if parts == 1 else _in_parts(once, parts)


def _sharpness_aware(
    differentiate: Callable[[Any, Any], Pass],
    forward: Callable[[Any, Any], tuple[Any, Any, Any]],
    model: Any,
    rho: float,
) -> Callable[[Any, Any], Pass]:
    """Returns what differentiates at w + rho * g / |g|, where g is the gradient at the weights w.

    Foret et al. 2021, equations 2 and 3, with g of all replicas together. As in the authors' code,
    both passes drop the same units, and batch norm's statistics are moved by the first alone; the
    loss and the right answers are those at w.
    """
    variables, state = model.trainable_variables, model.non_trainable_variables

    def twice(images: Any, labels: Any) -> Pass:
        before = [tf.identity(variable.value) for variable in state]
        gradients, loss, right = differentiate(images, labels)
        gradients = _over_replicas(gradients)
        scale = tf.math.divide_no_nan(rho, tf.linalg.global_norm(gradients))
        raised = [v + scale * gradient for v, gradient in zip(variables, gradients, strict=True)]
        values = zip([*variables, *state], [*raised, *before], strict=True)
        # Within the scope no variable is written.
        with tf.GradientTape() as tape, keras.StatelessScope(values):
            tape.watch(raised)
            upper, _, _ = forward(images, labels)
        return tape.gradient(upper, raised), loss, right

    return twice


def _in_parts(differentiate: Callable[[Any, Any], Pass], parts: int) -> Callable[[Any, Any], Pass]:
    """Returns what adds up the passes over equal parts of a batch, in the memory of one part."""

    def one_by_one(images: Any, labels: Any) -> Pass:
        total: Any = None
        for part in zip(tf.split(images, parts), tf.split(labels, parts), strict=True):
            # Not before the last part's gradients are there, and what they needed is freed.
            with tf.control_dependencies(total[0] if total else []):
                begun = [tf.identity(each) for each in part]
            found = differentiate(*begun)
            total = tf.nest.map_structure(tf.add, total, found) if total else found
        return total

    return one_by_one


def at_size(model: Any, size: int) -> Any:
    """Returns a model of the same layers, and so of the same weights, for images of another size.

    Raises:
        UsageError: the network has a layer that takes one size alone.
    """
    images = keras.Input((size, size, model.input_shape[-1]), name="images")
    try:
        return keras.models.clone_model(model, images, clone_function=lambda layer: layer)
    except ValueError as error:  # as a dense layer after images as they are
        raise UsageError(
            f"train.image_sizes: {model.name} cannot take {size}x{size} pixels with the weights "
            f"of {model.input_shape[1]}x{model.input_shape[2]}: {str(error).splitlines()[0]}"
        ) from None


def _over_replicas(gradients: list[Any]) -> list[Any]:
    """Returns the sums of the replicas' gradients, the same on each."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def slow_weights(variables: Sequence[Any]) -> list[Any]:
    """Returns Lookahead's slow weights, which take their values before the first update."""
    return [
        keras.Variable("zeros", v.shape, v.dtype, trainable=False, name=v.path.replace("/", "_"))
        for v in variables
    ]


def follow(slow: Sequence[Any], fast: Sequence[Any], share: float) -> None:
    """Moves slow weights a share of the way to the fast ones, which go on from there.

    Zhang et al. 2019, algorithm 1; the optimizer keeps its state between them.
    """
    for one, other in zip(slow, fast, strict=True):
        value = one + share * (other - one)
        one.assign(value)
        other.assign(value)


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
