"""Saving: a model becomes a folder, a state dict a file; either all of it is there afterwards or none.

What is written goes to a temporary sibling first and is renamed when complete.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automap.errors import FileError

if TYPE_CHECKING:
    from torch import Tensor, nn

_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.md", "*.txt", "*.model")


def save_model(model: nn.Module, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write model and return folder: with `save_pretrained` where it has it, else as `model.safetensors`.

    Raises:
        FileError: folder is there and not empty (and overwrite is off, or it holds more than a model), or is a file.
    """
    from safetensors.torch import save_model as save_tensors

    with _new_folder(folder, overwrite=overwrite) as partial:
        save: Any = getattr(model, "save_pretrained", None)
        if callable(save):
            save(partial)
        else:
            save_tensors(model, str(partial / "model.safetensors"))
    return Path(folder)


def save_state_folder(state: Mapping[str, Tensor], folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write state as `model.safetensors` in folder and return that file; raises as `save_model` does."""
    with _new_folder(folder, overwrite=overwrite) as partial:
        save_state(state, partial / "model.safetensors")
    return Path(folder) / "model.safetensors"


def save_state(state: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write state to a `.safetensors` file and return path; tensors that share storage are written once each."""
    from safetensors.torch import save_file

    path = Path(path)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    with written_atomically(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    return path


def check_file(path: str | Path, *, overwrite: bool = True) -> None:
    """Raise FileError unless a file can be written at path: ask before long work, not after it."""
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileError(f"there is no folder {path.parent} to write {path.name} into")
    if path.is_dir():
        raise FileError(f"{path} is a folder, not a file")
    if path.exists() and not overwrite:
        raise FileError(f"the file {path} is there already", help="name another, or add --overwrite")


def check_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise FileError unless `save_model` may write to folder: ask before long work, not after it."""
    folder = Path(folder)
    if not folder.absolute().parent.is_dir():
        raise FileError(f"there is no folder {folder.parent} to write {folder.name} into")
    if folder.is_file():
        raise FileError(f"{folder} is a file, not a folder")
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if entries and not overwrite:
        raise FileError(f"the folder {folder} is not empty", help="name another, or add --overwrite")
    strange = [path for path in entries if path.is_dir() or not any(path.match(form) for form in _MODEL_FILES)]
    if strange:
        raise FileError(f"the folder {folder} holds more than a model, such as {strange[0].name}", help="name another")


@contextlib.contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """Give a temporary sibling of path to write to; it takes path's place at the end, or vanishes on an error."""
    path = Path(path).absolute()
    partial = _sibling(path)
    try:
        yield partial
        if path.is_dir():
            former = _sibling(path)
            path.rename(former)
            partial.rename(path)
            shutil.rmtree(former)
        else:
            partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _new_folder(folder: str | Path, *, overwrite: bool) -> Iterator[Path]:
    check_folder(folder, overwrite=overwrite)
    with written_atomically(folder) as partial:
        partial.mkdir()
        yield partial


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
