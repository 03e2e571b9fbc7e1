"""Published weights by name: URL, hash, license and normalization."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from cnnbench.errors import DataError, MissingDataError
from cnnbench.models.pretrained.preprocessing import (
    KERAS_TF,
    KERAS_TORCH,
    TORCHVISION,
    Preprocessing,
)
from cnnbench.system import files

CHUNK = 1 << 20
CONNECT_SECONDS = 8.0


@dataclass(frozen=True)
class Preset:
    """A file of published weights.

    Attributes:
        model: the network that the weights fit, with its default options.
        source: the published network, see `cnnbench.models.pretrained.sources`.
        address: URL of the file.
        sha256: SHA-256 of the file.
        licence: license of the weights, as stated by their publishers.
        preprocessing: how images are prepared.
        classes: number of classes; 1000 for ImageNet.
    """

    model: str
    source: str
    address: str
    sha256: str
    licence: str
    preprocessing: Preprocessing
    classes: int = 1000


def _timm(name: str, commit: str) -> str:
    return f"https://huggingface.co/timm/{name}/resolve/{commit}/model.safetensors"


def _efficientnet(size: int) -> str:
    return (
        "https://github.com/Callidior/keras-applications/releases/download/efficientnet/"
        f"efficientnet-b{size}_weights_tf_dim_ordering_tf_kernels_autoaugment.h5"
    )


# SHA-256 of the AutoAugment weights of EfficientNet B0 to B7.
_EFFICIENTNETS = (
    "163292582f1c6eaca8e7dc7b51b01c615b0dbc0039699b4dcd0b975cc21533dc",
    "d0a71ddf51ef7a0ca425bab32b7fa7f16043ee598ecee73fc674d9560c8f09b0",
    "bb5451507a6418a574534aa76a91b106f6b605f3b5dde0b21055694319853086",
    "03f1fba367f070bd2545f081cfa7f3e76f5e1aa3b6f4db700f00552901e75ab9",
    "98852de93f74d9833c8640474b2c698db45ec60690c75b3bacb1845e907bf94f",
    "30172f1d45f9b8a41352d4219bf930ee3339025fd26ab314a817ba8918fefc7d",
    "f5270466747753485a082092ac9939caa546eb3f09edca6d6fff842cad938720",
    "876a41319980638fa597acbbf956a82d10819531ff2dcb1a52277f10c7aefa1a",
)

# timm's evaluation of the A1 and the first EfficientNet weights.
_A1 = replace(TORCHVISION, crop=0.95, interpolation="bicubic")
_TF = replace(TORCHVISION, interpolation="bicubic")

PRESETS = {
    "resnet18.tv_in1k": Preset(
        "resnet18",
        "timm:resnet18",
        _timm("resnet18.tv_in1k", "bbd144b3e5565108aad885f145491d11bc6ce807"),
        "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
        "BSD-3-Clause",
        TORCHVISION,
    ),
    "resnet18.a1_in1k": Preset(
        "resnet18",
        "timm:resnet18",
        _timm("resnet18.a1_in1k", "491b427b45c94c7fb0e78b5474cc919aff584bbf"),
        "80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",
        "Apache-2.0",
        _A1,
    ),
    "resnet34.tv_in1k": Preset(
        "resnet34",
        "timm:resnet34",
        _timm("resnet34.tv_in1k", "1b7b21cca82ff974d341713f777bf740c2db38c4"),
        "0bb82595a564991a9d424708b33f5d843f5aaed7f6c0886ff10849ff97022235",
        "BSD-3-Clause",
        TORCHVISION,
    ),
    "resnet50.tv_in1k": Preset(
        "resnet50",
        "timm:resnet50",
        _timm("resnet50.tv_in1k", "78f3ecfdb38e06d9b8397f662e7ab8fee96026fa"),
        "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
        "BSD-3-Clause",
        TORCHVISION,
    ),
    "resnet50.a1_in1k": Preset(
        "resnet50",
        "timm:resnet50",
        _timm("resnet50.a1_in1k", "767268603ca0cb0bfe326fa87277f19c419566ef"),
        "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
        "Apache-2.0",
        _A1,
    ),
    "wide_resnet50_2.tv_in1k": Preset(
        "wide_resnet50_2",
        "timm:wide_resnet50_2",
        _timm("wide_resnet50_2.tv_in1k", "343c5fa59ca8a131e0cdf42144a641b36a0387c2"),
        "df6fb6c4824769769de18e14088475fd6ee94236849aa4e5d8022ba9d9a9a16c",
        "BSD-3-Clause",
        TORCHVISION,
    ),
    "tf_efficientnet_b0.in1k": Preset(
        "efficientnet_b0",
        "timm:tf_efficientnet_b0",
        _timm("tf_efficientnet_b0.in1k", "8186ca4217f9c67824ebe7566008bdc69976d15a"),
        "276dfe076f3fca30c2f7bf1e44039e395e6de50248caaa159d16530699f16995",
        "Apache-2.0",
        _TF,
    ),
    "mobilenet_v2.keras": Preset(
        "mobilenet_v2",
        "keras:MobileNetV2",
        "https://github.com/JonathanCMitchell/mobilenet_v2_keras/releases/download/v1.1/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5",
        "3e195a2857356cfc092cbbb460beb2a5bce279015d7792598b8d3d9e451902e3",
        "Apache-2.0",
        KERAS_TF,
    ),
} | {
    f"efficientnet_b{size}.autoaugment": Preset(
        f"efficientnet_b{size}",
        f"keras:EfficientNetB{size}",
        _efficientnet(size),
        digest,
        "Apache-2.0",
        KERAS_TORCH,
    )
    for size, digest in enumerate(_EFFICIENTNETS)
}


def download(name: str, progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Returns the verified file of a preset, downloading it if necessary.

    The file is stored in $XDG_CACHE_HOME/cnnbench/weights, by default under ~/.cache.

    Args:
        name: name of the preset.
        progress: called with the bytes received so far and the total, None if it is not known.

    Raises:
        MissingDataError: the file is not on this machine and cannot be downloaded.
        DataError: the download is not the published file; it is deleted.
    """
    preset = PRESETS[name]
    path = files.cache_folder("weights") / f"{name}{Path(preset.address).suffix}"
    if path.is_file() and files.sha256(path) == preset.sha256:
        return path
    with files.new_file(path) as partial:
        try:
            _fetch(preset.address, partial, progress)
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise MissingDataError(
                f"cannot download the weights {name!r}: {reason}",
                where=preset.address,
                allowed=f"or place a copy of that file at {path}",
            ) from None
        if (found := files.sha256(partial)) != preset.sha256:
            raise DataError(
                f"the download is not the published file: its SHA-256 is {found}",
                where=preset.address,
                allowed=f"must be {preset.sha256}",
            )
    return path


def _fetch(address: str, path: Path, progress: Callable[[int, int | None], None] | None) -> None:
    with (
        urllib.request.urlopen(address, timeout=CONNECT_SECONDS) as response,  # noqa: S310 - https of PRESETS
        path.open("wb") as file,
    ):
        total, done = response.length, 0
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
        if total is not None and done != total:
            raise ConnectionError(f"the connection closed after {done} of {total} bytes")
