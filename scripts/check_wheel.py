"""Builds the wheel, installs it into an empty environment, and runs the demo from there."""

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"


def run(*command: object, **options) -> None:
    """Runs a command; its failure ends this script with its exit code."""
    print("$", *command, file=sys.stderr, flush=True)
    done = subprocess.run([str(word) for word in command], **options)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """After the build, uses only the demo script and the lock file from the checkout."""
    with tempfile.TemporaryDirectory(prefix="cnnbench wheel ") as scratch:
        folder = Path(scratch)
        pip = (sys.executable, "-m", "pip")
        run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
        (wheel,) = folder.glob("cnnbench-*.whl")
        venv.create(folder / "environment", with_pip=True)
        python = folder / "environment" / "bin" / "python"
        pins = re.findall(r"^([\w.-]+==[\w.+!-]+)", LOCK.read_text(), re.MULTILINE)
        (folder / "pins.txt").write_text("\n".join(pins))
        # What the wheel requires and nothing else, in the versions of the lock.
        run(python, "-m", "pip", "install", "--quiet", wheel, "-c", folder / "pins.txt")
        (folder / "demo.py").write_bytes((ROOT / "scripts" / "demo.py").read_bytes())
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        run(python, "demo.py", cwd=folder, env=clean)


if __name__ == "__main__":
    main()
