"""Exports: artifacts that carry their own preprocessing, each proven on real images."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench import files, network
from cnnbench.data.datasets import Access
from cnnbench.data.pipeline import evaluation_batches, evaluation_examples
from cnnbench.errors import VerificationError
from cnnbench.evaluation import latency_ms
from cnnbench.lazy import keras, tensorflow_errors, tf
from cnnbench.network import Network
from cnnbench.run import Run

# A float32 artifact passes if it names the same class for so many images,
MIN_AGREEMENT = 0.999
# and no logit differs by more than this share of the largest one.
MAX_LOGIT_DIFFERENCE = 1e-2
EXAMPLES = 1000
FORMATS = ("saved_model", "tflite")


def export(
    run: Run,
    formats: Sequence[str] = FORMATS,
    *,
    verify: bool = True,
    examples: int = EXAMPLES,
    access: Access | None = None,
) -> list[dict[str, Any]]:
    """Writes artifacts of a run's best weights, and proves each on images of the test split.

    An artifact lies in `folder_of(run, format)` with metadata.json and, verified, verify.json. One
    that fails lies in a folder named *.failed instead.

    Args:
        run: a run with weights.
        formats: some of FORMATS.
        verify: whether each artifact is run by its own run-time and compared with Keras.
        examples: how many test images to compare on, at the most.
        access: where data sets lie; None: where the training found them.

    Returns:
        A row a format, as verify.json has it; without verification only format, precision and
        size.

    Raises:
        VerificationError: an artifact differs from the network beyond tolerance.
        RunError: the run has no weights, or its folder cannot be written.
        DataError: the test images are not there.
    """
    from cnnbench.models.fast_layers import plain  # imports Keras

    net = network.restore(run)
    reference = _Reference(run, net, examples, access or Access()) if verify else None
    exported = replace(net, model=plain(net.model))
    rows, failed = [], []
    for form in formats:
        folder = folder_of(run, form)
        with tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch:
            artifact = Path(scratch) / form
            with files.storage_errors(artifact), tensorflow_errors(artifact):
                _WRITERS[form](exported, artifact)
            files.write_json(artifact / "metadata.json", _metadata(run, net, form))
            row = {"format": form, "precision": "float32", "size_bytes": _size(artifact)}
            if reference is not None:
                row["zip_bytes"] = _zipped(artifact)
                row |= reference.compare(_RUNNERS[form](artifact))
                files.write_json(artifact / "verify.json", {"rows": [row]})
                if not row["passed"]:
                    folder = folder.with_name(f"{folder.name}.failed")
                    failed.append((form, row, folder))
            files.recover(folder)
            with files.new_folder(folder) as partial:
                shutil.copytree(artifact, partial, dirs_exist_ok=True)
            other = folder_of(run, form).with_name(f"{folder_of(run, form).name}.failed")
            shutil.rmtree(other if folder != other else folder_of(run, form), ignore_errors=True)
        rows.append(row | {"path": str(folder)})
    if failed:
        form, row, folder = failed[0]
        raise VerificationError(
            f"{form} agrees with Keras on {row['agreement']:.2%} of {row['examples']} images; "
            f"largest difference of a logit: {row['max_abs_logit_diff'] or 'NaN or infinite'}",
            where=str(folder),
            allowed=f"at least {MIN_AGREEMENT:.1%}, and {MAX_LOGIT_DIFFERENCE:.0%} of the largest "
            f"logit, {row['max_abs_logit']:.3g}",
        )
    return rows


def folder_of(run: Run, form: str) -> Path:
    """Returns where a run keeps its artifact of a format."""
    return run.path / "saved_model" if form == "saved_model" else run.path / "exports" / form


class _Reference:
    """The network's own answers on test images, which artifacts are compared with."""

    def __init__(self, run: Run, net: Network, examples: int, access: Access):
        dataset = network.open_data(run, access)
        chosen, _ = evaluation_examples(dataset, run.recipe.data, "test")
        chosen = chosen.take(slice(examples))
        answer = tf.function(net, autograph=False)
        batch_size = min(run.recipe.data.batch_size, len(chosen))
        pixels, truth, logits = [], [], []
        for images, labels, count in evaluation_batches(
            chosen, run.recipe.data, net.pixel_shape[:2], batch_size
        ):
            pixels.append(images[:count])
            truth.append(labels[:count])
            logits.append(answer(images)["logits"].numpy()[:count])
        self.images, self.labels = np.concatenate(pixels), np.concatenate(truth)
        self.logits = np.concatenate(logits)

    def compare(self, run: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        """Runs an artifact, a function from one image to its logits, on every image."""
        logits = np.concatenate([run(image[None]) for image in self.images])
        own, theirs = self.logits.argmax(axis=1), logits.argmax(axis=1)
        agreement = float((own == theirs).mean())
        difference = float(np.abs(self.logits - logits).max())
        largest = float(np.abs(self.logits).max())
        if not np.isfinite(largest):
            raise VerificationError("the network's own logits are not finite")
        # A NaN compares false, and so fails.
        passed = agreement >= MIN_AGREEMENT and difference <= MAX_LOGIT_DIFFERENCE * largest
        return {
            "examples": len(self.labels),
            "top1": float((theirs == self.labels).mean()),
            "reference_top1": float((own == self.labels).mean()),
            "agreement": agreement,
            "max_abs_logit_diff": difference if np.isfinite(difference) else None,
            "max_abs_logit": largest,
            "latency_ms": latency_ms(lambda: run(self.images[:1])),
            "passed": passed,
        }


def _write_saved_model(net: Network, folder: Path) -> None:
    """Writes a SavedModel for images of any size, uint8 (0-255) or float32 (0-1).

    Images of another size than the network's are treated as `predict` does: the short side is
    scaled, bilinear with antialiasing, and the centre cut out.
    """
    height, width, channels = net.pixel_shape

    def scaled(images: Any) -> Any:
        size = tf.shape(images)[1:3]
        scale = net.short_side / tf.reduce_min(size)
        target = tf.cast(tf.round(tf.cast(size, tf.float64) * scale), tf.int32)
        target = tf.maximum(target, (height, width))
        pixels = tf.image.resize(tf.cast(images, tf.float32), target, antialias=True)
        top, left = tf.unstack((target - (height, width)) // 2)
        return pixels[:, top : top + height, left : left + width]

    def serve(images: Any) -> dict[str, Any]:
        as_it_is = tf.reduce_all(tf.equal(tf.shape(images)[1:3], (height, width)))
        as_it_is = tf.logical_and(as_it_is, net.short_side == max(height, width))
        pixels = tf.cond(as_it_is, lambda: tf.cast(images, tf.float32), lambda: scaled(images))
        pixels.set_shape((None, height, width, channels))
        out = net(pixels)
        return out | {"classes": tf.constant(net.classes)}

    any_size = (None, None, None, channels)
    archive = keras.export.ExportArchive()
    archive.track(net.model)
    archive.add_endpoint("serve", serve, [tf.TensorSpec(any_size, tf.uint8, name="images")])
    archive.add_endpoint(
        "serve_float",
        lambda images: serve(images * 255),
        [tf.TensorSpec(any_size, tf.float32, name="images")],
    )
    archive.write_out(str(folder), verbose=False)


def _write_tflite(net: Network, folder: Path) -> None:
    """Writes model.tflite: (1, height, width, channels) uint8 to "probabilities" and "logits"."""
    spec = tf.TensorSpec((1, *net.pixel_shape), tf.uint8, name="images")
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as saved_model:
        archive = keras.export.ExportArchive()
        archive.track(net.model)
        archive.add_endpoint("serve", lambda images: net(images), [spec])
        archive.write_out(saved_model, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
        (folder / "model.tflite").write_bytes(converter.convert())


def _run_saved_model(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures["serving_default"]
    return lambda images: serve(images=tf.constant(images))["logits"].numpy()


def _run_tflite(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(folder / "model.tflite")).get_signature_runner()
    return lambda images: runner(images=images)["logits"]


_WRITERS = {"saved_model": _write_saved_model, "tflite": _write_tflite}
_RUNNERS = {"saved_model": _run_saved_model, "tflite": _run_tflite}


def _metadata(run: Run, net: Network, form: str) -> dict[str, Any]:
    height, width, channels = net.pixel_shape
    return {
        "format": form,
        "recipe": run.recipe.name,
        "recipe_sha256": files.sha256(run.path / "recipe.yaml"),
        "classes": list(net.classes),
        "input": {"height": height, "width": width, "channels": channels},
        "preprocessing": "inside: the artifact takes pixels",
        "color": net.preprocess.color,
        "mean": list(net.preprocess.mean),
        "std": list(net.preprocess.std),
    }


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "metadata.json"]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _zipped(folder: Path) -> int:
    """Returns the bytes of a zip of an artifact."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _files(folder):
            archive.write(path, path.relative_to(folder))
    return packed.getbuffer().nbytes
