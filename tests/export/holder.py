"""A model of transformers that holds tensors of any names, and checkpoints through it and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from exported import module_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

State = dict[str, Tensor]


class HolderConfig(PretrainedConfig):
    model_type = "automap-holder"


class Holder(PreTrainedModel):
    """Parameters by the names and shapes in its config."""

    config_class = HolderConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name, shape in config.shapes.items():
            module: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(torch.zeros(shape)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """All weights come from checkpoints."""


def holder_config(shapes: Mapping[str, tuple[int, ...]]) -> HolderConfig:
    return HolderConfig(shapes={name: list(shape) for name, shape in shapes.items()})


@contextmanager
def registered(text: str) -> Iterator[dict[str, Any]]:
    """Imports exported conversions, and forgets them again at the end."""
    conversion_mapping.get_checkpoint_conversion_mapping("")
    before = dict(conversion_mapping._checkpoint_conversion_mapping_cache)
    users = set(conversion_mapping.USER_REGISTERED_MAPPINGS)
    try:
        yield module_of(text)
    finally:
        conversion_mapping._checkpoint_conversion_mapping_cache = before
        conversion_mapping.USER_REGISTERED_MAPPINGS.clear()
        conversion_mapping.USER_REGISTERED_MAPPINGS.update(users)


def loaded(
    model_class: type[PreTrainedModel], config: PretrainedConfig, state: State, folder: Path, **options: Any
) -> PreTrainedModel:
    """The model that `from_pretrained` gives for a checkpoint; everything in it has to be used, and nothing missing."""
    folder.mkdir()
    config.save_pretrained(folder)
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})
    model, said = model_class.from_pretrained(folder, output_loading_info=True, **options)
    said = {what: names for what, names in said.items() if names}
    assert said == {}, json.dumps(said, default=str)
    return model


def saved(model: PreTrainedModel, folder: Path, **options: Any) -> State:
    """What `save_pretrained` writes."""
    model.save_pretrained(folder, **options)
    return load_file(folder / "model.safetensors")


def loaded_in_memory(shapes: Mapping[str, tuple[int, ...]], state: State) -> PreTrainedModel:
    """The model that `from_pretrained` gives for a state dict, without a file."""
    given = {name: tensor.clone() for name, tensor in state.items()}
    model, said = Holder.from_pretrained(None, config=holder_config(shapes), state_dict=given, output_loading_info=True)
    assert not any(said.values()), said
    return model


def reverted(model: PreTrainedModel) -> State:
    """What `save_pretrained` would write, without a file."""
    found: State = revert_weight_conversion(model, dict(model.state_dict()))
    return found
