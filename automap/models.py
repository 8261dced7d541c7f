"""Model specs: the words that name a model on the command line, turned into an nn.Module in eval mode.

A spec is `timm:NAME`, `hf:CLASS`, `hf:FOLDER`, `hf:HUB_ID`, `torchvision:NAME`, `FILE.py:FACTORY` or
`PACKAGE.MODULE:FACTORY`, each with `?key=value&...` behind it where the factory or the config takes arguments. Nothing
heavy is imported before a spec needs it.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from automap.errors import AutomapError, MissingExtraError, SpecError

if TYPE_CHECKING:
    from torch import nn

FORMS = (
    "timm:resnet50, hf:ResNetForImageClassification, hf:./folder, hf:microsoft/resnet-50, torchvision:resnet50, "
    "path/to/file.py:factory or package.module:factory"
)
_IMAGENET_CLASSES = 1000  # the other libraries' default for image classifiers; transformers' own is 2
_ZOO = ("timm", "transformers", "torchvision")
_WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed spec: `text` as written, the `scheme` ("timm", "hf", "torchvision", "python"), `name` and arguments.

    For the scheme "python", `name` is the file or module and `factory` what to call in it.
    """

    text: str
    scheme: str
    name: str
    factory: str
    options: Mapping[str, Any]


def build_model(text: str, *, seed: int | None = None) -> nn.Module:
    """Return the model that a spec names, in eval mode.

    Args:
        text: a spec, for example `timm:vit_tiny_patch16_224?num_classes=10`.
        seed: what random weights are drawn from; the caller's random state is left as it was. None draws from it.

    Raises:
        SpecError: the spec names nothing that can be built, or what it names raised.
        MissingExtraError: it needs a package that is not installed.
    """
    import torch

    spec = parse_spec(text)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = _BUILDERS[spec.scheme](spec)
    if not isinstance(model, torch.nn.Module):
        raise SpecError(
            f"`{text}` gives a {type(model).__name__}, not a torch.nn.Module",
            help="name a factory that returns the model, or the model's class",
        )
    return model.eval()


def parse_spec(text: str) -> Spec:
    """Return text as a Spec, with the arguments behind `?` read as Python literals or else as strings.

    Example:
        >>> parse_spec("timm:resnet50?num_classes=10").options
        {'num_classes': 10}
    """
    head, _, query = text.partition("?")
    options = dict(_parse_option(text, part) for part in query.split("&") if part)
    scheme, colon, name = head.partition(":")
    if colon and name and scheme in _ZOO[:1] + _ZOO[2:] + ("hf",):
        return Spec(text, scheme, name, "", options)
    place, colon, factory = head.rpartition(":")
    if not colon or not place or not factory:
        raise SpecError(f"`{text}` is not a model spec", help=f"write one of {FORMS}")
    if "/" not in place and not place.endswith(".py") and not _can_be_module(place):
        near = difflib.get_close_matches(scheme, ("timm", "hf", "torchvision"), n=1)
        hint = f"did you mean `{near[0]}:{name}`? " if near else ""
        raise SpecError(f"`{text}` starts with the unknown scheme `{scheme}:`", help=f"{hint}write one of {FORMS}")
    return Spec(text, "python", place, factory, options)


def parse_value(text: str) -> Any:
    """Return text as a Python literal where it is one (also `true`, `false`, `none`), else as it is."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def close_matches(word: str, names: Iterable[str]) -> str:
    """Return "did you mean `a` or `b`?" with the names nearest to word, or "" where none is near."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=3)
    ratios = [difflib.SequenceMatcher(None, name, word.lower()).ratio() for name in near]
    best = [by_lower[name] for name, ratio in zip(near, ratios, strict=True) if ratio > ratios[0] - 0.1]
    return f"did you mean {' or '.join(f'`{name}`' for name in best)}?" if best else ""


def _parse_option(text: str, part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals or not key:
        raise SpecError(f"`{part}` in `{text}` is not `key=value`", help="write `?key=value&other=value`")
    return unquote(key), parse_value(unquote(value))


def _can_be_module(place: str) -> bool:
    if not all(part.isidentifier() for part in place.split(".")):
        return False
    with _importable_from(Path.cwd()), contextlib.suppress(ModuleNotFoundError, ValueError):
        return "." in place or importlib.util.find_spec(place) is not None
    return False


@contextlib.contextmanager
def _blaming(spec: Spec, what: str) -> Iterator[None]:
    """Turn whatever foreign code raises into a SpecError with its text."""
    try:
        yield
    except AutomapError:
        raise
    except (Exception, SystemExit) as problem:
        reason = " ".join(str(problem).split())
        text = f"{type(problem).__name__}: {reason}" if reason else type(problem).__name__
        raise SpecError(f"`{spec.text}`: {what} raised {text}", help="add --debug to see where") from problem


def _require(package: str, spec: Spec) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as problem:
        if (problem.name or "").partition(".")[0] not in _ZOO:
            raise
        raise MissingExtraError(
            f"`{spec.text}` needs the package {problem.name}, which is not installed",
            help="pip install 'automap-weights[zoo]'",
        ) from problem


# timm and torchvision


def _build_timm(spec: Spec) -> nn.Module:
    timm = _require("timm", spec)
    is_elsewhere = spec.name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    if not is_elsewhere and not timm.is_model(spec.name):
        raise SpecError(
            f"timm has no model `{spec.name}`",
            help=close_matches(spec.name.partition(".")[0], timm.list_models()) or "see timm.list_models()",
        )
    with _blaming(spec, "timm.create_model"):
        return _as_module(timm.create_model(spec.name, **spec.options))


def _build_torchvision(spec: Spec) -> nn.Module:
    models = _require("torchvision", spec).models
    known = models.list_models()
    if spec.name not in known:
        raise SpecError(
            f"torchvision has no model `{spec.name}`",
            help=close_matches(spec.name, known) or "see torchvision.models.list_models()",
        )
    options = dict(spec.options)
    if options.pop("pretrained", False):
        options["weights"] = "DEFAULT"
    with _blaming(spec, "torchvision.models.get_model"):
        return _as_module(models.get_model(spec.name, **options))


# transformers


def _build_hf(spec: Spec) -> nn.Module:
    transformers = _require("transformers", spec)
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SpecError(f"`{spec.text}`: the folder {spec.name} has no config.json")
        return _from_saved(spec, transformers, str(folder), _has_weights(folder))
    if spec.name.startswith((".", "/", "~")):
        raise SpecError(f"`{spec.text}`: there is no folder {spec.name}")
    if "/" not in spec.name and spec.name.isidentifier() and spec.name[0].isupper():
        return _from_class(spec, transformers)
    return _from_saved(spec, transformers, spec.name, True)


def _from_class(spec: Spec, transformers: Any) -> nn.Module:
    model_class = getattr(transformers, spec.name, None)
    if model_class is None:
        names = [name for name in dir(transformers) if name[0].isupper() and not name.endswith("Config")]
        raise SpecError(
            f"transformers has no class `{spec.name}`",
            help=close_matches(spec.name, names) or "name a model class, such as ViTForImageClassification",
        )
    config_class = getattr(model_class, "config_class", None)
    if config_class is None:
        raise SpecError(
            f"`{spec.text}`: {spec.name} has no config of its own, so it says nothing about the model to build",
            help="name a model class, such as ViTForImageClassification",
        )
    with _blaming(spec, config_class.__name__):
        options = _config_options(spec, config_class(), spec.options)
        if "ForImageClassification" in spec.name and not {"num_labels", "id2label", "label2id"} & set(options):
            options["num_labels"] = _IMAGENET_CLASSES
        config = config_class(**options)
    with _blaming(spec, spec.name):
        return _as_module(model_class(config))


def _from_saved(spec: Spec, transformers: Any, place: str, has_weights: bool) -> nn.Module:
    """Build from a folder or a hub id: the class named in its config, with its weights where it has them."""
    transformers.utils.logging.disable_progress_bar()
    options = dict(spec.options)
    is_pretrained = options.pop("pretrained", has_weights)
    with _blaming(spec, "AutoConfig.from_pretrained"):
        plain = transformers.AutoConfig.from_pretrained(place)
        changed = _config_options(spec, plain, options)
        config = transformers.AutoConfig.from_pretrained(place, **changed) if changed else plain
    model_class = _architecture(spec, transformers, config)
    with _blaming(spec, f"{model_class.__name__}.from_pretrained" if is_pretrained else model_class.__name__):
        if is_pretrained:
            return _as_module(model_class.from_pretrained(place, config=config))
        return _as_module(model_class(config))


def _architecture(spec: Spec, transformers: Any, config: Any) -> Any:
    names = getattr(config, "architectures", None) or []
    classes = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if classes:
        return classes[0]
    with _blaming(spec, "AutoModel"):
        try:
            return transformers.AutoModel._model_mapping[type(config)]
        except KeyError:
            raise SpecError(
                f"`{spec.text}`: its config names the architecture {names or 'nothing'}, unknown to transformers",
                help="if it brings its own code, name it as path/to/file.py:factory",
            ) from None


def _config_options(spec: Spec, default: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as config arguments: dotted keys nested, unknown ones refused."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        head, dot, rest = key.partition(".")
        if head != "attn_implementation" and not hasattr(default, head):
            names = {*default.to_dict(), *getattr(default, "attribute_map", {}), "num_labels", "attn_implementation"}
            raise SpecError(
                f"`{spec.text}`: {type(default).__name__} has no `{head}`",
                help=close_matches(head, names) or f"it has {', '.join(sorted(names)[:12])}, ...",
            )
        if dot:
            part = result.setdefault(head, {})
            part |= _config_options(spec, getattr(default, head), {rest: value})
        else:
            result[head] = value
    return result


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "pytorch_model*.bin"))


# files and modules


def _build_python(spec: Spec) -> nn.Module:
    module = _load_file(spec) if spec.name.endswith(".py") or "/" in spec.name else _load_module(spec)
    found: Any = module
    for part in spec.factory.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            raise SpecError(
                f"`{spec.text}`: {spec.name} has no `{spec.factory}`",
                help=close_matches(part, names) or f"it has {', '.join(names[:12])}",
            )
        found = getattr(found, part)
    if not callable(found) or _is_instance_of_module(found):
        if spec.options:
            raise SpecError(f"`{spec.text}`: `{spec.factory}` is no factory, so it takes no arguments")
        return _as_module(found)
    with _blaming(spec, f"{spec.factory}()"):
        return _as_module(found(**spec.options))


def _load_file(spec: Spec) -> Any:
    path = Path(spec.name).expanduser().resolve()
    if not path.is_file():
        raise SpecError(f"`{spec.text}`: there is no file {spec.name}")
    name = f"automap_spec_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    loader = importlib.util.spec_from_file_location(name, path)
    if loader is None or loader.loader is None:
        raise SpecError(f"`{spec.text}`: {spec.name} is not a Python file")
    module = importlib.util.module_from_spec(loader)
    with _blaming(spec, f"importing {spec.name}"), _importable_from(path.parent):
        sys.modules[name] = module
        loader.loader.exec_module(module)
    return module


def _load_module(spec: Spec) -> Any:
    with _blaming(spec, f"importing {spec.name}"), _importable_from(Path.cwd()):
        try:
            return importlib.import_module(spec.name)
        except ModuleNotFoundError as problem:
            if not f"{spec.name}.".startswith(f"{problem.name}."):
                raise
            raise SpecError(
                f"`{spec.text}`: there is no module `{spec.name}`", help=f"write one of {FORMS}"
            ) from problem


@contextlib.contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    """Let imports find what lies in folder, as `python -m` and `python file.py` do."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _is_instance_of_module(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _as_module(value: Any) -> nn.Module:
    """Pass foreign, untyped code's value on; `build_model` checks what it is."""
    return value  # type: ignore[no-any-return]


_BUILDERS: Mapping[str, Callable[[Spec], nn.Module]] = {
    "timm": _build_timm,
    "hf": _build_hf,
    "torchvision": _build_torchvision,
    "python": _build_python,
}
