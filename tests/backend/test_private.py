"""The private names in use still do what they did, and no other module uses any."""

import ast
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import cnnbench
from cnnbench.backend import private, session
from cnnbench.exports.formats import tflite_file

PACKAGE = Path(cnnbench.__file__).parent
PRIVATE = PACKAGE / "backend" / "private.py"

# Modules that their packages keep to themselves.
PRIVATE_MODULES = (
    "keras.src",
    "keras._tf_keras",
    "tensorflow.compiler",
    "tensorflow.core",
    "tensorflow.lite",
    "tensorflow.python",
    "tensorflow.security",
    "tensorflow.tools",
    "tensorflow.tsl",
    "tensorflow_datasets.core",
)
# By what they are called in the code: `tfds.core` is public as an attribute.
ROOTS = {"keras": "keras", "tf": "tensorflow", "tensorflow": "tensorflow"}
ALLOWED = {
    "_replace": "the public method of a NamedTuple",
}


def test_whether_onednn_is_used():
    wanted = not private.uses_onednn()
    code = "from cnnbench.backend.private import uses_onednn; print(uses_onednn())"
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": str(int(wanted))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(wanted)


def test_whether_xla_compiles_the_function():
    found = []

    def traced(x):
        found.append(private.is_compiled_by_xla())
        return x + 1

    tf.function(traced)(tf.constant(1.0))
    tf.function(traced, jit_compile=True)(tf.constant(1.0))
    # Within another function too, which is how a training step has it.
    inner = tf.function(traced)
    tf.function(lambda x: inner(x) * 2, jit_compile=True)(tf.constant(1.0))
    assert found == [False, True, True]


def test_records_are_read_by_their_offsets(tmp_path):
    file = str(tmp_path / "some.tfrecord")
    records = [b"first", b"the second", b"third"]
    with tf.io.TFRecordWriter(file) as writer:
        for record in records:
            writer.write(record)
    size = 8 + 4 + 5 + 4  # of the first: its length, a checksum, the bytes, a checksum
    reader = private.record_reader(file)
    second, after = reader.read(size)
    assert (second, after) == (b"the second", size + 8 + 4 + 10 + 4)
    assert reader.read(0) == (b"first", size)
    assert reader.read(after)[0] == b"third"


def test_a_trace_of_the_profiler_is_read(tmp_path):
    with tf.profiler.experimental.Profile(str(tmp_path)):
        tf.matmul(tf.ones((64, 64)), tf.ones((64, 64))).numpy()
    (file,) = tmp_path.rglob("*.xplane.pb")
    names = {
        plane.event_metadata[event.metadata_id].name
        for plane in private.read_trace(file).planes
        for line in plane.lines
        for event in line.events
    }
    assert any("MatMul" in name for name in names)


def test_determinism_is_read_and_switched_off():
    with session.isolated():
        tf.config.experimental.enable_op_determinism()
        assert private.is_deterministic()
        private.disable_determinism()
        assert not private.is_deterministic()


def test_kernels_are_made_anew():
    draws = []
    for _ in range(3):
        draws.append(tf.random.uniform((), seed=5).numpy())
    assert len(set(draws)) == 3
    private.clear_kernels()
    again = tf.random.uniform((), seed=5).numpy()
    private.clear_kernels()
    assert tf.random.uniform((), seed=5).numpy() == again


def random_draws() -> list[float]:
    dense = keras.layers.Dense(3)
    dense.build((None, 2))
    drawn = [tf.random.normal((2,)), keras.random.normal((2,)), dense.kernel]
    traced = tf.function(lambda: tf.random.uniform((2,)))()
    drawn += [traced, tf.random.uniform((2,)), keras.layers.Dropout(0.5)(tf.ones(8), training=True)]
    return [dense.name, *(float(value) for each in drawn for value in np.ravel(each))]


def test_seeds_do_what_the_public_functions_do():
    with session.isolated():
        keras.layers.Dense(3)  # so that the names have begun
        keras.config.set_dtype_policy("float64")
        session.prepare(seed=7, deterministic=False)
        own = random_draws()
        assert keras.config.dtype_policy().name == "float32"
        keras.utils.clear_session()
        keras.utils.set_random_seed(7)
        assert random_draws() == own
        session.prepare(seed=8, deterministic=False)
        assert random_draws() != own


def test_the_seed_of_tensorflow_keeps_the_kernels():
    with session.isolated():
        tf.random.set_seed(3)
        expected = [tf.random.uniform((), seed=6).numpy() for _ in range(3)]
        tf.random.set_seed(3)
        found = [tf.random.uniform((), seed=6).numpy() for _ in range(2)]
        private.seed_tensorflow(3)
        assert [*found, tf.random.uniform((), seed=6).numpy()] == expected


def test_the_state_is_taken_and_put_back():
    with session.isolated():
        keras.utils.clear_session()
        keras.utils.set_random_seed(11)
        keras.config.set_dtype_policy("mixed_bfloat16")
        random_draws()
        here = random.getstate(), private.take_state()
        assert keras.layers.Dense(1).name == "dense"  # fresh
        assert keras.config.dtype_policy().name == "float32"
        random.setstate(here[0])
        private.put_state_back(here[1])
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        after = random_draws()
        keras.utils.clear_session()
        keras.utils.set_random_seed(11)
        keras.config.set_dtype_policy("mixed_bfloat16")
        random_draws()
        assert random_draws() == after


def test_the_state_needs_neither_package():
    code = (
        "import sys; from cnnbench.backend import session\n"
        "with session.isolated(): pass\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "with session.isolated(): session.prepare(seed=1, deterministic=True)\n"
        "from cnnbench.backend import private; import keras, tensorflow as tf\n"
        "assert not private.is_deterministic() and private.take_state().seed is None\n"
        "assert tf.get_logger().level == 40  # loaded quietly, though seeding was the first use\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def calibrated():
    """A float32 TFLite file with ranges, of a dense layer, and the one without."""
    function = tf.function(
        lambda x: {"out": tf.nn.relu(tf.matmul(x, tf.eye(16) * 0.5))},
        input_signature=[tf.TensorSpec((1, 16), tf.float32)],
    )
    images = [[np.full((1, 16), value, np.float32)] for value in (0.0, 4.0)]

    def converted(only: bool) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function()]
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT] if only else []
        if only:
            converter.representative_dataset = lambda: images
            private.calibrate_only(converter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on options that are not needed
            return converter.convert()

    return converted(True), converted(False)


def ranges(content: bytes) -> list[tuple[float, float]]:
    (graph,) = tflite_file.opened(content).subgraphs
    known = [t.quantization for t in graph.tensors if t.quantization is not None]
    return [(float(q.min[0]), float(q.max[0])) for q in known if q.min is not None]


def dtypes(content: bytes) -> set[int]:
    (graph,) = tflite_file.opened(content).subgraphs
    return {tensor.type for tensor in graph.tensors}


def test_a_converter_stops_at_the_ranges(calibrated):
    from ai_edge_litert.schema_py_generated import TensorType

    content, plain = calibrated
    assert dtypes(content) == {TensorType.FLOAT32}
    assert (0.0, 4.0) in ranges(content)
    assert (0.0, 2.0) in ranges(content)
    assert not ranges(plain)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_ranges_of_other_images(calibrated):
    found = private.calibrate(calibrated[0], [[np.full((1, 16), 8.0, np.float32)]])
    assert (8.0, 8.0) in ranges(found)


def test_a_calibrated_file_is_quantized_but_for_what_is_kept(calibrated):
    from ai_edge_litert.schema_py_generated import TensorType

    content, _ = calibrated
    types = {"input_data_type": tf.int8, "output_data_type": tf.int8}
    assert TensorType.FLOAT32 not in dtypes(private.quantize(content, **types))
    (graph,) = tflite_file.opened(content).subgraphs
    (out,) = graph.outputs
    kept = [graph.tensors[out].name.decode()]
    assert TensorType.FLOAT32 in dtypes(private.quantize(content, **types, denylisted_nodes=kept))
    verified = private.quantize(content, enable_numeric_verify=True)
    assert len(verified) > len(private.quantize(content))


def test_the_error_of_the_converter():
    function = tf.function(
        lambda x: tf.raw_ops.Betainc(a=x, b=x, x=x),  # which TFLite lacks
        input_signature=[tf.TensorSpec((2,), tf.float32)],
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    with pytest.raises(private.converter_error(), match="Betainc"):
        converter.convert()


def test_the_maker_of_a_tensor():
    images = keras.Input((4,))
    dense = keras.layers.Dense(2)
    outputs = dense(images)
    assert private.maker_of(outputs) is dense
    assert isinstance(private.maker_of(images), keras.layers.InputLayer)
    assert private.maker_of(outputs + 1).name.startswith("add")


def test_the_place_of_a_variable():
    variables = [keras.Variable(np.zeros(n, np.float32)) for n in (1, 2, 3)]
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(variables)
    assert [private.variable_index(optimizer, each) for each in reversed(variables)] == [2, 1, 0]


def test_tfds_does_not_ask_its_bucket(monkeypatch, tmp_path):
    """A default of TFDS that cnnbench counts on: looking up a data set needs no network."""
    import socket

    import tensorflow_datasets as tfds

    def refused(*_):
        raise AssertionError("TFDS asks a server")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    assert not tfds.builder("mnist", data_dir=str(tmp_path)).info.splits


def dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def own_names(tree: ast.AST) -> set[str]:
    """The names that a module gives to its own functions, classes, fields and objects."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def private_uses(source: str) -> list[str]:
    """The names that a module uses of what TensorFlow, Keras and TFDS keep to themselves.

    An attribute with an underscore is taken for theirs unless the module itself defines it.
    """
    tree = ast.parse(source)
    own, found = own_names(tree), []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name for name in names if not name.startswith("cnnbench.")]
        elif isinstance(node, ast.Attribute):
            root, _, rest = dotted(node).partition(".")
            names = [f"{ROOTS[root]}.{rest}"] if root in ROOTS else []
            if root in ROOTS and rest.startswith("lite"):
                names = []  # `tf.lite` is public, and what is inside of it by underscores is not
            if is_private(node.attr) and node.attr not in own and node.attr not in ALLOWED:
                found.append(node.attr)
        elif isinstance(node, ast.Call) and dotted(node.func) in ("getattr", "setattr", "hasattr"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            found += [t for t in texts if isinstance(t, str) and is_private(t)]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        inside = tuple(f"{module}." for module in PRIVATE_MODULES)
        found += [name for name in names if f"{name}.".startswith(inside)]
        found += [n for n in names if any(is_private(p) for p in n.split("."))]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "from tensorflow.python.util import _pywrap_util_port",
        "def f():\n    from tensorflow.lite.python.convert import mlir_quantize",
        "from tensorflow.lite import python",
        "import keras.src.backend",
        "from keras import src",
        "tf.python.ops",
        "keras.src.backend.config",
        "from tensorflow_datasets.core.utils import gcs_utils",
        "converter._experimental_calibrate_only = True",
        "tensor._keras_history",
        "class A(SGD):\n    def f(self, v):\n        self._get_variable_index(v)",
        "getattr(context, '_rng', None)",
        "importlib.import_module('tensorflow.python.eager')",
        "from keras import _private",
    ],
)
def test_private_names_are_recognised(source):
    assert private_uses(source)


@pytest.mark.parametrize(
    "source",
    [
        "import tensorflow as tf; tf.lite.TFLiteConverter; tf.config.experimental",
        "class A(SGD):\n    def _own(self): self._kept = self._own()",
        "spec._replace(lr=1)",
        "import tensorflow_datasets as tfds; tfds.core.DatasetNotFoundError",
        "from cnnbench.models.pretrained.names._torch import TORCH_WEIGHTS",
        "model.__class__.__name__",
    ],
)
def test_other_names_are_left_alone(source):
    assert not private_uses(source)


def test_private_names_are_used_in_one_module():
    found = {path: private_uses(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert found.pop(PRIVATE)
    assert not {path: uses for path, uses in found.items() if uses}


def test_float32_is_exact_inside_and_the_callers_setting_is_put_back():
    settings = tf.config.experimental
    before = settings.tensor_float_32_execution_enabled()
    try:
        for wanted in (True, False):
            settings.enable_tensor_float_32_execution(wanted)
            with pytest.raises(KeyError), session.exact_float32():
                assert not settings.tensor_float_32_execution_enabled()
                raise KeyError
            assert settings.tensor_float_32_execution_enabled() == wanted
    finally:
        settings.enable_tensor_float_32_execution(before)
