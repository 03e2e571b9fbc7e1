"""A walk over the folders of an image data set that accounts for every entry."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cnnbench.data.images import SUFFIXES
from cnnbench.data.inspection import may_be_damaged
from cnnbench.errors import DataError

# Bytes read at each end of an image file; see `Walk.content`.
COMPARED_BYTES = 4096
# Folders that operating systems, cameras and file servers leave between a user's own, casefolded.
HELPER_FOLDERS = frozenset(
    [
        "__macosx",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@__thumb",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "network trash folder",
        "temporary items",
        "thumbnails",
        "picasaoriginals",
        "__pycache__",
    ]
)
# First bytes of formats that are recognized whatever the file is called. Those of TIFF are missing:
# raw photographs begin with them too.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
# Suffixes of images that are not read.
FOREIGN = (
    ".heic .heif .avif .jp2 .j2k .jpx .jxl .psd .xcf .svg .eps .ai .tga .ico .icns .exr .hdr .pfm "
    ".dng .nef .cr2 .cr3 .arw .raf .orf .rw2 .dcm .nii .fits .npy .npz"
)
# What can become of an entry that is left out: its key in environment.json, and how it is said.
LEFT_OUT = {
    "other_suffix": "with image content but another suffix",
    "other_formats": "of image formats that are not read",
    "unreadable": "unreadable",
    "broken_links": "links to nothing",
    "repeated_links": "links into or around this data set",
    "outside_classes": "images outside of class folders",
    "hidden": "hidden",
    "helper_folders": "folders of the operating system or camera",
    "other_files": "other files",
    "other_folders": "folders that are no split",
}


@dataclass(frozen=True)
class Image:
    """An image file that is used.

    Attributes:
        content: its size, and the CRC-32 of its first and last COMPARED_BYTES.
        may_be_wide: whether its values may have more than 8 bits, by its first bytes.
        may_be_damaged: whether it has not the ends of a whole image.
    """

    path: Path
    content: str
    may_be_wide: bool
    may_be_damaged: bool = False


class Walk:
    """Finds the images of class folders, and counts what became of every entry.

    Args:
        root: the data set's folder.
        skip_unreadable: whether image files that cannot be opened are left out; otherwise they
            raise an error.

    Attributes:
        counts: entries by what became of them: "images", of them "without_suffix"
            and "in_subfolders", and the keys of LEFT_OUT.
        first: the first entry of each, for messages.
    """

    def __init__(self, root: Path, skip_unreadable: bool):
        self.root, self._skips = root, skip_unreadable
        self.counts: Counter[str] = Counter()
        self.first: dict[str, Path] = {}
        self._linked: list[Path] = [Path(os.path.realpath(root))]

    def folders(self, folder: Path) -> dict[str, Path]:
        """Returns the folders in a split's or the data set's, by name, in order of names.

        Images that lie beside them are counted as outside of classes.
        """
        found = {}
        for path, mode, is_link in self._entries(folder):
            if stat.S_ISDIR(mode):
                found[path.name] = path
                if is_link:
                    self._linked.append(Path(os.path.realpath(path)))
            else:
                is_image = path.suffix.lower() in SUFFIXES
                self.count("outside_classes" if is_image else "other_files", path)
        return found

    def images(self, folder: Path) -> list[Image]:
        """Returns the images in a class folder and the folders in it, sorted by path."""
        found = [image for path in self._files(folder) if (image := self._image(path))]
        for image in found:
            if image.path.parent != folder:
                self.count("in_subfolders", image.path)
        return sorted(found, key=lambda image: composed(image.path).parts)

    def summary(self) -> str:
        """Returns what became of the entries, as part of a line."""
        left = [
            f"{self.counts[kind]:,} {text} (such as {self.first[kind]})"
            for kind, text in LEFT_OUT.items()
            if self.counts[kind]
        ]
        said = f"left out: {', '.join(left) or 'nothing'}"
        if odd := self.counts["without_suffix"]:
            said = f"{odd:,} without a suffix are known by their content; {said}"
        if below := self.counts["in_subfolders"]:
            such = f"(such as {self.first['in_subfolders']})"
            said = f"{below:,} are in folders below that of their class {such}; {said}"
        return said

    def count(self, kind: str, path: Path) -> None:
        """Counts an entry as "images", "without_suffix", "in_subfolders" or one of LEFT_OUT."""
        self.counts[kind] += 1
        self.first.setdefault(kind, path.relative_to(self.root))

    def _entries(self, folder: Path) -> Iterator[tuple[Path, int, bool]]:
        """Yields a folder's entries in order, without those to leave out whatever they hold.

        Yields:
            The path, the mode of what it is or links to, and whether it is a link.
        """
        try:
            with os.scandir(folder) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            what = f"cannot read the folder: {error.strerror}"
            raise DataError(what, where=str(folder)) from None
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                self.count("hidden", path)
                continue
            try:
                mode = path.stat().st_mode
            except OSError as error:
                if not entry.is_symlink() and isinstance(error, PermissionError):
                    what = f"cannot enter the folder: {error.strerror}"
                    raise DataError(what, where=str(folder)) from None
                self._cannot_read(path, error, entry.is_symlink())
                continue
            if stat.S_ISDIR(mode) and entry.name.casefold() in HELPER_FOLDERS:
                self.count("helper_folders", path)
            else:
                yield path, mode, entry.is_symlink()

    def _cannot_read(self, path: Path, error: OSError, is_link: bool = False) -> None:
        if is_link and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            self.count("broken_links", path)
        elif self._skips or path.suffix.lower() not in SUFFIXES:
            self.count("unreadable", path)
        else:
            what = f"cannot read the image: {error.strerror}"
            raise DataError(what, where=str(path)) from None

    def _files(self, folder: Path) -> Iterator[Path]:
        """Yields the files in a folder and in the folders below it."""
        inside = [self._entries(folder)]  # no recursion: folders can be deeper than Python's stack
        while inside:
            for path, mode, is_link in inside[-1]:
                if stat.S_ISREG(mode):
                    yield path
                elif not stat.S_ISDIR(mode):  # a pipe or a device, which is never opened
                    self.count("other_files", path)
                elif not is_link or self._is_new(path):
                    inside.append(self._entries(path))
                    break
                else:
                    self.count("repeated_links", path)
            else:
                inside.pop()

    def _is_new(self, link: Path) -> bool:
        """Returns whether nothing that a linked folder holds was or will be read otherwise."""
        target = Path(os.path.realpath(link))
        if any(target.is_relative_to(seen) or seen.is_relative_to(target) for seen in self._linked):
            return False
        self._linked.append(target)
        return True

    def _image(self, path: Path) -> Image | None:
        """Returns the image in a file; otherwise counts the file."""
        suffix = path.suffix.lower()
        try:
            content, head, may_be_damaged = _content(path)
        except OSError as error:
            self._cannot_read(path, error)
            return None
        is_image = _is_image(head)
        if suffix not in SUFFIXES and (suffix or not is_image):
            other = "other_formats" if suffix in FOREIGN.split() else "other_files"
            self.count("other_suffix" if is_image else other, path)
            return None
        if not suffix:
            self.count("without_suffix", path)
        self.count("images", path)
        return Image(path, content, _may_be_wide(head), may_be_damaged)


def composed(path: Path) -> Path:
    """Returns a path in Unicode's form NFC, which macOS and its archives do not keep."""
    return Path(unicodedata.normalize("NFC", str(path)))


def _content(path: Path) -> tuple[str, bytes, bool]:
    """Returns a file's size with the CRC-32 of its ends, its first bytes, and if it may be damaged.

    Any change to a file of at most twice COMPARED_BYTES is detected. Larger files are not read
    whole, to save time: a change of their size, header or end is detected, which covers a
    re-encoded or replaced picture; a change in the middle of an uncompressed file, or a flipped
    bit there, is not.
    """
    with path.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        head = opened.read(COMPARED_BYTES)
        opened.seek(max(COMPARED_BYTES, size - COMPARED_BYTES))
        tail = opened.read(COMPARED_BYTES)
    damaged = may_be_damaged(head, (head + tail)[-COMPARED_BYTES:], size)
    return f"{size}:{zlib.crc32(tail, zlib.crc32(head)):08x}", head, damaged


def _is_image(head: bytes) -> bool:
    """Returns whether a file's first bytes are those of a JPEG, PNG, GIF, WebP or BMP."""
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_bmp = head[:2] == b"BM" and head[6:10] == bytes(4)
    return head.startswith(MAGIC) or is_webp or is_bmp


def _may_be_wide(head: bytes) -> bool:
    """Returns whether a file's values can have more than 8 bits, or be signed or floats."""
    is_png = head.startswith(b"\x89PNG") and head[24:25] == b"\x10"
    return is_png or head[:2] in (b"II", b"MM", b"P2", b"P5", b"P6", b"Pf", b"PF")
