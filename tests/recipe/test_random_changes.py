"""Mutated recipes end in a RecipeError or a valid recipe, whatever was done to them.

`python tests/recipe/test_random_changes.py SECONDS SEED` runs for longer and prints what it finds.
"""

import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

from cnnbench.errors import RecipeError
from cnnbench.recipe import checks, yaml_tree
from cnnbench.recipe.load import check, parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
ODD = [
    "9" * 40, "-1", "0", "1e400", "-0.0", ".nan", ".inf", "2147483648", "1e-320", "null", "~",
    "true",
    "[]", "{}", "''", "[[[[]]]]", "{a: {a: {a: 1}}}", "&a", "*a", "!!python/object:os.system",
    "---",
    "...", "<<: *a", "? x", "|", ">", "\t", "%YAML 1.1", "\x00", "\x85", "\u2028", "\ufeff",
    "\u202e",
    "é" * 50, "猫", "\U0001f600", "\ud800", "/dev/zero", "../..", "${HOME}", "a" * 3000, "[" * 40,
    "(a+)+$", "(?P<", "sgd", "resnet8", "synthetic",
]  # fmt: skip


def mutated(text: str, random: random.Random) -> str:
    """Returns a recipe with a few bytes, tokens, lines or values replaced, doubled or removed."""
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(text) + 1)
        lines = text.splitlines(keepends=True) or [""]
        line = random.randrange(len(lines))
        values = list(re.finditer(r"(?<=: )[^\s,{}\[\]]+|[a-z_]+(?=:)", text))
        match random.randrange(6):
            case 0:
                text = text[:at] + chr(random.choice([*range(32, 127), 0x2028, 0xE9])) + text[at:]
            case 1:
                text = text[:at] + text[at + random.randint(1, 9) :]
            case 2:
                text = "".join(lines[:line] + lines[line + 1 :])
            case 3:
                text = "".join([*lines[:line], lines[random.randrange(len(lines))], *lines[line:]])
            case 4 if values:
                found = random.choice(values)
                text = text[: found.start()] + random.choice(ODD) + text[found.end() :]
            case _:
                text = text[:at] + random.choice(ODD) + text[at:]
    return text


def findings(seconds: float, seed: int) -> tuple[Counter[str], dict[str, str]]:
    """Mutates for some time; returns the count of each outcome, and a recipe of each unforeseen."""
    draw, counts, odd = random.Random(seed), Counter(), {}
    texts = [path.read_text() for path in sorted(RECIPES.glob("*.yaml"))]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = mutated(draw.choice(texts), draw)
        try:
            start = time.monotonic()
            recipe = check(yaml_tree.parse(text, "r.yaml"))
            outcome = "valid"
            if parse_recipe(recipe.dump()) != recipe:
                outcome = "dump differs"
        except RecipeError as error:
            outcome = "refused" if str(error).strip() else "refused without a word"
        except Exception as error:  # any other is what the test looks for
            outcome = f"{type(error).__name__}: {str(error)[:80]}"
        if time.monotonic() - start > 2:
            outcome = f"slow: {outcome}"
        counts[outcome] += 1
        if outcome not in ("valid", "refused"):
            odd.setdefault(outcome, text)
    return counts, odd


def test_mutated_recipes_are_refused_or_valid():
    assert checks.problems  # imported before the clock runs
    counts, odd = findings(5, seed=1)
    assert not odd, odd
    assert counts["valid"] and counts["refused"] > counts["valid"] / 100


if __name__ == "__main__":
    found, examples = findings(float(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(f"{found}\n")
    for outcome, example in examples.items():
        sys.stdout.write(f"--- {outcome}\n{example!r}\n")
