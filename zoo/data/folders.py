"""What a path with ``*`` or a folder holds: files of one kind, in the order of their names.

    train/ and test/, and valid/ if it likes     splits, each with what stands below
    NAME.png, NAME.jpg, …                        images without classes
    CLASS/NAME.png, …                            images, the class is the folder
    NAME.txt, …, .jsonl, .tsv, .csv, .parquet    one kind, read one after the other

Files and folders whose name begins with a dot or an underscore are left out, and so are readme
and licence files where there are others.
"""

import glob
import os
import pathlib
import re
from collections.abc import Sequence

from zoo.data.lines import DECOMPRESSORS

IMAGES = (".png", ".jpg", ".jpeg")
TEXTS = (".txt", ".text", ".md")
TABLES = (".jsonl", ".tsv", ".csv", ".parquet")
SPLIT_NAMES = {
    "train": ("train",),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}
_NOT_DATA = re.compile(r"(readme|licen[cs]e)\b.*", re.IGNORECASE)


def kind_of(path: pathlib.PurePath) -> str:
    """The ending in lower case, that of the compression left out."""
    bare = path.with_suffix("") if path.suffix.lower() in DECOMPRESSORS else path
    return bare.suffix.lower()


def split_folders(folder: pathlib.Path) -> dict[str | None, pathlib.Path]:
    """The folder of every split; none unless there are at least those of train and test."""
    found: dict[str | None, pathlib.Path] = {
        split: folder / name
        for split, names in SPLIT_NAMES.items()
        for name in names
        if (folder / name).is_dir()
    }
    return found if {"train", "test"} <= found.keys() else {}


def list_files(path: pathlib.Path, uri: str) -> list[pathlib.Path]:
    """The data files behind a path: itself, those that it matches, or those of the folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if they are of several kinds.
    """
    if "*" in os.fspath(path) and not path.exists():
        found = sorted(pathlib.Path(n) for n in glob.glob(os.fspath(path), recursive=True))
        files = [file for file in found if file.is_file()]
    elif path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and not any(n[0] in "._" for n in file.relative_to(path).parts)
        )
        files = [file for file in files if not _NOT_DATA.fullmatch(file.name)] or files
    else:
        return [path]
    if not files:
        raise FileNotFoundError(2, "there is no data file in or at", os.fspath(path))
    if len(kinds := {_group(file, path.is_dir()) for file in files}) > 1:
        got = ", ".join(sorted({kind_of(file) or file.name for file in files}))
        raise ValueError(
            f"{uri} holds files of several kinds ({got}); name one with a pattern such as "
            f"{uri.partition('?')[0].rstrip('/').partition('*')[0]}/*.txt"
        )
    if None in kinds:
        raise ValueError(
            f"{uri} must hold images ({', '.join(IMAGES)}), text ({', '.join(TEXTS)}) or tables "
            f"({', '.join(TABLES)}), got {files[0].name}; name files that end otherwise with a "
            "pattern"
        )
    return files


def _group(file: pathlib.Path, in_folder: bool) -> str | None:
    kind = kind_of(file)
    if kind in IMAGES:
        return "image"
    if kind in TABLES:
        return kind
    return "text" if kind in TEXTS or not in_folder else None


def is_images(files: Sequence[pathlib.Path]) -> bool:
    """Whether they are images."""
    return kind_of(files[0]) in IMAGES


def class_of(root: pathlib.Path, file: pathlib.Path) -> str:
    """The folder of an image below the root of its split; empty if it lies in the root itself."""
    return file.relative_to(root).parts[0] if file.parent != root else ""


def root_of(path: pathlib.Path) -> pathlib.Path:
    """The folder below which classes are counted: the one, or that before the first ``*``."""
    if path.is_dir():
        return path
    parts = path.parts
    stars = [number for number, part in enumerate(parts) if "*" in part]
    return pathlib.Path(*parts[: stars[0]]) if stars else path.parent
