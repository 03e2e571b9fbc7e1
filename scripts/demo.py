"""Trains, evaluates and exports a small network, and prints the results and where they are."""

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

RECIPE = "lenet5_digits"


def cnnbench(*arguments: str) -> tuple[str, float]:
    """Runs a command as a user would; returns its stdout and its duration in seconds."""
    print("\n$ cnnbench", *arguments, file=sys.stderr, flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "cnnbench", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout, time.perf_counter() - start


def main() -> None:
    """Runs the three commands on scikit-learn's digits."""
    stdout, train_seconds = cnnbench("train", RECIPE)
    run = stdout.splitlines()[-1]
    stdout, eval_seconds = cnnbench("eval", run, "--json")
    measured = json.loads(stdout)
    stdout, export_seconds = cnnbench("export", run, "--tflite", "--json")
    (row,) = json.loads(stdout)["rows"]

    table = Table("step", "result", "seconds", "path", title="cnnbench demo")
    epochs = len((Path(run) / "metrics.jsonl").read_text().splitlines())
    table.add_row("trained", f"{epochs} epochs of {RECIPE}", f"{train_seconds:.0f}", run)
    table.add_row(
        "evaluated",
        f"top-1 {measured['top1']:.4f} on {measured['examples']} test images, "
        f"target {measured['target']['top1']} "
        + ("reached" if measured["target"]["reached"] else "NOT reached"),
        f"{eval_seconds:.0f}",
        f"{run}/eval.json",
    )
    table.add_row(
        "exported",
        f"TFLite, {row['size_bytes'] / 1e3:.0f} kB, {row['latency_ms']['p50']:.2f} ms an image, "
        f"agrees with Keras on {row['agreement']:.2%}",
        f"{export_seconds:.0f}",
        row["path"],
    )
    Console(width=140).print(table)
    if not measured["target"]["reached"]:
        sys.exit("the demo missed its target")


if __name__ == "__main__":
    main()
