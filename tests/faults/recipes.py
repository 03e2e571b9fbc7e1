"""Recipes, and folders of images, that mean harm."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .images import image_folder

# Makes what is hostile in a folder and returns the action and its arguments.
Make = Callable[[Path], Sequence[object]]
ESC = r"\e]0;pwned\a\e[31m"
# What stands for each section unless a recipe has another text for it.
SECTIONS = {
    "name": "bad",
    "seed": "0",
    "model": "{name: lenet5}",
    "data": "{name: digits, batch_size: 32, image_size: 32}",
    "optimizer": "{name: sgd, lr: 0.1}",
    "train": "{epochs: 1}",
}


def recipe(extra: str = "", **sections: str) -> bytes:
    """A recipe that is right but for the sections given and the text added."""
    lines = [f"{key}: {value}" for key, value in (SECTIONS | sections).items()]
    return ("\n".join(lines) + f"\n{extra}\n").encode()


def data(options: str) -> str:
    """A section of made-up images, which is right but for the options."""
    return f"{{name: synthetic, batch_size: 32, {options}}}"


def _folder_data(path: str) -> str:
    return f"{{name: image_folder, path: {path}, batch_size: 2, image_size: 32}}"


_TAG = "tag:yaml.org,2002:python/object/apply:os.system"
_LAUGHS = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12))
RECIPES: dict[str, bytes] = {
    # Tags and aliases
    "tag apply": recipe(seed='!!python/object/apply:os.system ["touch ../outside/pwned"]'),
    "tag new": recipe(seed='!!python/object/new:os.system ["touch ../outside/pwned"]'),
    "tag name": recipe(seed="!!python/name:os.system"),
    "tag module": recipe(seed='!!python/module:antigravity ""'),
    "tag verbatim": recipe(seed=f'!<{_TAG}> ["touch ../outside/pwned"]'),
    "tag directive": f"%TAG ! {_TAG}\n---\n".encode() + recipe(seed='!x ["touch pwned"]'),
    "tag binary": recipe(name="!!binary aGVsbG8="),
    "tag of a key": recipe("? !!python/tuple [a, b]\n: 1"),
    "billion laughs": b"l0: &l0 [x, x]\n" + _LAUGHS.encode() + b"\n" + recipe(),
    "alias of itself": recipe("x: &x [*x]"),
    "merge key": recipe("base: &b {seed: 3}\nmore:\n  <<: *b"),
    "merge without alias": recipe("<<: {seed: 3}"),
    "anchor": recipe(seed="&a 0"),
    # Depth
    "deep lists": recipe(seed="[" * 100_000),
    "deep mappings": recipe(seed="{a: " * 50_000),
    "deep blocks": recipe("x: \n  " + "- " * 100_000 + "x"),
    "deep keys": recipe("? " * 50_000 + "x"),
    "deep sections": recipe("\n".join(" " * i + "a:" for i in range(600))),
    # Size
    "too many bytes": recipe("# " + "x" * 300_000),
    "huge word": recipe(name="x" * 200_000),
    "huge key": recipe("k" * 200_000 + ": 1"),
    "huge model name": recipe(model="{name: " + "l" * 200_000 + "}"),
    "huge integer": recipe(seed="9" * 200_000),
    "integer of 30 digits": recipe(train="{steps: 999999999999999999999999999999}"),
    "examples of 30 digits": recipe(train="{examples: 999999999999999999999999999999}"),
    "huge exponent": recipe(optimizer="{name: sgd, lr: 1e999999999}"),
    "endless epochs": recipe(data=data("examples: 64"), train="{epochs: 1.0e308}"),
    "huge batch": recipe(data="{name: synthetic, batch_size: 99999999999999999999}"),
    "terabytes of images": recipe(data=data("examples: 10000000, shape: [4096, 4096, 3]")),
    "gigabytes of images": recipe(data=data("examples: 50000, shape: [512, 512, 3]")),
    "huge validation": recipe(data=data("validation: 99999999999999999999")),
    "many unknown keys": recipe("\n".join(f"k{i}: 1" for i in range(20_000))),
    "many unknown parts": recipe("augment: [" + "{name: x}, " * 15_000 + "]"),
    "many duplicates": recipe("\n".join("a: 1" for _ in range(30_000))),
    "many words": recipe("x: [" + "a," * 100_000 + "]"),
    "many numbers": recipe(data="{name: digits, mean: [" + "0.5," * 40_000 + "]}"),
    # Paths
    "name leaves": recipe(name="../../outside/pwned"),
    "name absolute": recipe(name="/tmp/pwned"),
    "name with a line": recipe(name=r'"bad\n../x"'),
    "path to nowhere": recipe(data=_folder_data("../../../../../../proc/self")),
    "path with NUL": recipe(data=_folder_data(r'"images\0/etc"')),
    "builder leaves": recipe(data="{name: tfds, builder: ../../outside}"),
    "weights leave": recipe(model="{name: lenet5, weights: ../outside/secret.txt}"),
    # Terminals
    "escape in name": recipe(name=f'"{ESC}"'),
    "escape in path": recipe(data=_folder_data(f'"{ESC}"')),
    "escape in key": recipe(f'"{ESC}": 1'),
    "escape in model": recipe(model=f'{{name: "{ESC}"}}'),
    "escape in weights": recipe(model=f'{{name: lenet5, weights: "{ESC}.pth"}}'),
    "C1 and returns": recipe(data=_folder_data(r'"\x9b31mx\r\x85error: fine"')),
    "turned writing": recipe(data=_folder_data(r'"\u202egpj.exe"')),
    "markup in path": recipe(data=_folder_data('"[red]x[/nothing]"')),
    # Encodings
    "NUL bytes": recipe() + bytes(100),
    "UTF-16": recipe().decode().encode("utf-16"),
    "UTF-16 unmarked": recipe().decode().encode("utf-16-le"),
    "UTF-32": recipe().decode().encode("utf-32"),
    "mark and a fault": b"\xef\xbb\xbf" + recipe("unknown: 1"),
    "half a pair": recipe(data=_folder_data(r'"\ud800"')),
}


def train(text: bytes, work: Path) -> Sequence[object]:
    """Writes a recipe, and returns the command that trains it."""
    (work / "recipe.yaml").write_bytes(text)
    return ("command", "train", "recipe.yaml", "--no-tune")


def _shown(extra: str, work: Path) -> Sequence[object]:
    (work / "recipe.yaml").write_bytes(recipe(extra))
    return ("show", "recipe.yaml")


def _linked(target: str, work: Path) -> Sequence[object]:
    (work / "recipe.yaml").symlink_to(target)
    return ("command", "train", "recipe.yaml", "--no-tune")


def _pipe(work: Path) -> Sequence[object]:
    os.mkfifo(work / "recipe.yaml")
    return ("command", "train", "recipe.yaml", "--no-tune")


def _deep_setting(work: Path) -> Sequence[object]:
    return (*train(recipe(), work), "--set", ".".join("a" * 5_000) + "=1")


def _folder(harm: Callable[[Path], None], work: Path) -> Sequence[object]:
    harm(image_folder(work / "images"))
    return train(recipe(data=_folder_data("images")), work)


def _strange_class(root: Path) -> None:
    (root / "test" / "\x1b]0;pwned\x07\x1b[31m[red]").mkdir()


def _strange_image(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.rename(path.with_name(f"\x1b]0;pwned\x07{path.name}"))
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")


def _linked_images(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.unlink()
        path.symlink_to("../../../../outside/secret.txt")


def _linked_class(root: Path) -> None:
    (root / "train/c").symlink_to("/")


FOLDERS = {
    "escape in a class": _strange_class,
    "escape in an image": _strange_image,
    "images that are links": _linked_images,
    "a class that is the root": _linked_class,
}
REFUSED: dict[str, Make] = {
    **{name: functools.partial(train, text) for name, text in RECIPES.items()},
    **{name: functools.partial(_folder, harm) for name, harm in FOLDERS.items()},
    "recipe without end": functools.partial(_linked, "/dev/zero"),
    "recipe is a folder": functools.partial(_linked, "."),
    "recipe is a pipe": _pipe,
    "deep setting": _deep_setting,
    "half a pair in a text": functools.partial(_shown, r'target: {top1: 0.5, source: "\ud800"}'),
}
# Those that only look strange, and may be shown.
SHOWN: dict[str, Make] = {
    "escape in a text": functools.partial(
        _shown, f'target: {{top1: 0.5, source: "{ESC} in a text"}}'
    ),
    "markup in a text": functools.partial(
        _shown, 'target: {top1: 0.5, source: "[red]x[/nothing]"}'
    ),
}
