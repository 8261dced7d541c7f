"""`--sample-input` words become the Inputs of both models.

A word is `1x3x224x224`, `name=1x16:int64`, or a file: an image (`cat.png:224`), a text, or tensors in `.pt`, `.npy` or
`.safetensors`. The same words and seed give the same values for both models; integers are valid token ids for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from automap.errors import FileError, InputError, MissingExtraError
from automap.inputs import Inputs, bind, describe_call, takes

_SHAPE = re.compile(r"(\d+(?:x\d+)*)(?::(\w+))?")
_NAME = re.compile(r"([A-Za-z_]\w*)=(.+)", re.DOTALL)
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
_TENSORS = (".pt", ".pth", ".npy", ".safetensors")
_ALIASES = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SENSIBLE_VOCABULARY = 16  # below this an embedding is a table of token types or flags
FORMS = "`1x3x224x224`, `name=1x16:int64`, an image or text file, or tensors in .pt, .npy or .safetensors"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value for a forward call: its name if it has one, and whether its dtype was asked for as it is."""

    name: str | None
    value: Tensor
    is_exact: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The token ids that are valid for every model: `size` and above excluded, and those with a special meaning."""

    size: int = 2
    special: frozenset[int] = frozenset()

    @classmethod
    def of(cls, *models: nn.Module) -> Vocabulary:
        """Return the ids that all models take, from their configs or else from their embeddings."""
        sizes = [size for model in models if (size := _vocabulary_size(model))]
        special = {token for model in models for token in _special_tokens(model)}
        size = min(sizes, default=2)
        return cls(
            size, frozenset(token for token in special if 0 <= token < size) if size > 2 * len(special) else frozenset()
        )


def sample_inputs(
    words: Sequence[str], src: nn.Module, dest: nn.Module, *, dest_words: Sequence[str] = (), seed: int = 0
) -> tuple[Inputs, Inputs]:
    """Return the inputs of src and dest that words describe; dest_words describe dest's where they are given.

    Floating-point values take each model's own dtype unless a word says another. A name that only one of the models
    knows is a plain next argument to the other.

    Raises:
        InputError: a word cannot be read, or does not fit the models' signatures.
        FileError: a file that a word names does not exist.
    """
    vocabulary = Vocabulary.of(src, dest)
    samples = read_words(words, vocabulary, seed=seed)
    dest_samples = read_words(dest_words, vocabulary, seed=seed) if dest_words else samples
    _check_names(samples, [src] if dest_words else [src, dest])
    _check_names(dest_samples, [dest] if dest_words else [src, dest])
    return place(samples, src), place(dest_samples, dest)


def place(samples: Sequence[Sample], model: nn.Module) -> Inputs:
    """Return samples as the arguments of model's forward, floating-point ones in its dtype."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    fitted = [
        sample
        if sample.is_exact or not sample.value.is_floating_point()
        else replace(sample, value=sample.value.to(dtype))
        for sample in samples
    ]
    return bind([(sample.name, sample.value) for sample in fitted], model)


def read_words(words: Sequence[str], vocabulary: Vocabulary, *, seed: int = 0) -> tuple[Sample, ...]:
    """Return the values that words describe, random ones drawn from seed.

    Example:
        >>> [sample.value.shape for sample in read_words(["1x3x8x8"], Vocabulary())]
        [torch.Size([1, 3, 8, 8])]
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(sample for word in words for sample in _read_word(word, vocabulary, generator))


def _read_word(word: str, vocabulary: Vocabulary, generator: torch.Generator) -> Iterator[Sample]:
    named = _NAME.fullmatch(word)
    name, text = (named[1], named[2]) if named else (None, word)
    shape = _SHAPE.fullmatch(text)
    if shape:
        sizes = tuple(map(int, shape[1].split("x")))
        dtype = read_dtype(shape[2]) if shape[2] else torch.float32
        yield Sample(name, _draw(name or "", sizes, dtype, vocabulary, generator), is_exact=shape[2] is not None)
        return
    path, size = _split_size(text)
    if path.suffix.lower() not in (*_IMAGES, *_TENSORS, ".txt", ".md"):
        raise InputError(f"`{word}` is no sample input", help=f"write {FORMS}")
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    for found, value in _read_file(path, size, vocabulary):
        yield Sample(name or found, value, is_exact=path.suffix.lower() in _TENSORS)


def read_dtype(word: str) -> torch.dtype:
    """Return the dtype that word names, such as `float32`, `bf16` or `int64`.

    Raises:
        InputError: torch has no such dtype.
    """
    short = re.fullmatch(r"(bf|f|i|u)(\d+)", word)
    full = {"bf": "bfloat", "f": "float", "i": "int", "u": "uint"}[short[1]] + short[2] if short else word
    dtype = getattr(torch, _ALIASES.get(full, full), None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"`{word}` is no dtype", help="write float32, float64, bfloat16, float16, int64 or bool")
    return dtype


# random values


def _draw(
    name: str, sizes: tuple[int, ...], dtype: torch.dtype, vocabulary: Vocabulary, generator: torch.Generator
) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)
    if name.endswith("attention_mask"):
        return torch.ones(sizes, dtype=dtype)
    if name == "position_ids":
        return torch.arange(sizes[-1], dtype=dtype).expand(sizes).contiguous()
    if name.startswith("token_type"):
        return torch.zeros(sizes, dtype=dtype)
    if dtype is torch.bool:
        return torch.rand(sizes, generator=generator) < 0.5
    ids = torch.randint(vocabulary.size - len(vocabulary.special), sizes, generator=generator)
    for token in sorted(vocabulary.special):
        ids += ids >= token
    return ids.to(dtype)


def _vocabulary_size(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for place in (text_config, config):
        size = getattr(place, "vocab_size", None)
        if isinstance(size, int) and size > 0:
            return size
    sizes = sorted(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    sensible = [size for size in sizes if size >= _SENSIBLE_VOCABULARY] or sizes
    return sensible[0] if sensible else None


def _special_tokens(model: nn.Module) -> Iterator[int]:
    config = getattr(model, "config", None)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"):
        token = getattr(config, name, None)
        yield from (item for item in (token if isinstance(token, list) else [token]) if isinstance(item, int))


# files


def _split_size(text: str) -> tuple[Path, int | None]:
    path, colon, size = text.rpartition(":")
    return (Path(path), int(size)) if colon and size.isdigit() else (Path(text), None)


def _read_file(path: Path, size: int | None, vocabulary: Vocabulary) -> list[tuple[str | None, Tensor]]:
    suffix = path.suffix.lower()
    if suffix in _IMAGES:
        return [(None, _read_image(path, size))]
    if suffix not in _TENSORS:
        values = list(path.read_bytes())
        if not values:
            raise InputError(f"the text file {path} is empty")
        return [(None, torch.tensor([values], dtype=torch.int64) % max(vocabulary.size, 2))]
    try:
        return _named_tensors(_load_tensors(path, suffix))
    except Exception as problem:
        reason = " ".join(str(problem).split())[:200]
        raise InputError(f"the sample input {path} cannot be read: {reason}") from problem


def _load_tensors(path: Path, suffix: str) -> Any:
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if suffix == ".npy":
        import numpy

        return torch.from_numpy(numpy.load(path, allow_pickle=False))
    return torch.load(path, map_location="cpu", weights_only=True)


def _named_tensors(value: Any) -> list[tuple[str | None, Tensor]]:
    if isinstance(value, Tensor):
        return [(None, value)]
    if isinstance(value, Mapping) and value and all(isinstance(item, Tensor) for item in value.values()):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor) for item in value):
        return [(None, item) for item in value]
    raise ValueError(f"it holds a {type(value).__name__}, not a tensor, or a dict or list of tensors")


def _read_image(path: Path, size: int | None) -> Tensor:
    """Return an image as (1, 3, height, width), normalised with ImageNet's mean and deviation."""
    try:
        from PIL import Image
    except ModuleNotFoundError as problem:
        message = f"the image {path} needs the package Pillow, which is not installed"
        raise MissingExtraError(message, help="pip install 'automap-weights[zoo]'") from problem
    import numpy

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as problem:
        raise InputError(f"the image {path} cannot be read: {problem}") from problem
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(numpy.asarray(image, dtype="float32") / 255).permute(2, 0, 1)
    return ((pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None])[None].contiguous()


def _check_names(samples: Sequence[Sample], models: Sequence[nn.Module]) -> None:
    """Refuse a name that none of the models knows."""
    for sample in samples:
        if sample.name is not None and not any(takes(model, sample.name) for model in models):
            given = Inputs(kwargs={other.name or f"#{i}": other.value for i, other in enumerate(samples, start=1)})
            calls = "\n".join(dict.fromkeys(describe_call(model, given) for model in models))
            raise InputError(f"no forward takes a parameter called `{sample.name}`\n{calls}")
