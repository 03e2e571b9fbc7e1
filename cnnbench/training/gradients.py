"""Gradients of a batch: the loss, accumulation, and sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.optim.kernels import penalty
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import LOSSES
from cnnbench.tasks.classification import in_top_k

if TYPE_CHECKING:
    from cnnbench.compression.distill import Lesson


# Of a batch: the gradient of each weight, and the sums of losses and of right answers.
Pass = tuple[list[Any], Any, Any]


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


def _over_replicas(gradients: list[Any]) -> list[Any]:
    """Returns the sums of the replicas' gradients, the same on each."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
