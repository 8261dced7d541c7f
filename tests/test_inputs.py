"""Sample-input words become the arguments of both models' forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from automap.errors import FileError, InputError
from automap.inputs import Inputs, bind, describe_call, describe_value, short_dtype
from automap.models import build_model
from automap.samples import Vocabulary, read_dtype, read_words, sample_inputs


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, image: Any, mask: Any = None, *, scale: Any = 1.0) -> Any:
        return image


class Named(nn.Module):
    main_input_name = "pixel_values"

    def forward(self, labels: Any = None, pixel_values: Any = None, **kwargs: Any) -> Any:
        return pixel_values


class Open(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args


class Config:
    vocab_size = 50
    pad_token_id = 0
    eos_token_id = (7,)


@pytest.mark.parametrize(
    ("given_input", "args", "names"),
    [
        pytest.param(1, (1,), [], id="one value"),
        pytest.param((1, 2), (1, 2), [], id="tuple"),
        pytest.param({"a": 1}, (), ["a"], id="dict"),
        pytest.param(Inputs((3,), {"b": 1}), (3,), ["b"], id="inputs"),
        pytest.param([1, 2], ([1, 2],), [], id="list is one value"),
    ],
)
def test_sample_input_forms(given_input: Any, args: tuple[Any, ...], names: list[str]) -> None:
    inputs = Inputs.of(given_input)
    assert (inputs.args, list(inputs.kwargs)) == (args, names)


@pytest.mark.parametrize(
    ("model", "values", "args", "kwargs"),
    [
        pytest.param(Plain(), [(None, 1)], (1,), {}, id="first position"),
        pytest.param(Plain(), [("mask", 2), (None, 1)], (1,), {"mask": 2}, id="name and position"),
        pytest.param(Plain(), [("image", 1), (None, 2)], (), {"image": 1, "mask": 2}, id="what is left"),
        pytest.param(Plain(), [("ids", 1)], (1,), {}, id="unknown name is a position"),
        pytest.param(Named(), [(None, 1)], (), {"pixel_values": 1}, id="main input"),
        pytest.param(Named(), [(None, 1), (None, 2)], (), {"pixel_values": 1, "labels": 2}, id="main input first"),
        pytest.param(Open(), [(None, 1), ("x", 2)], (1,), {"x": 2}, id="any arguments"),
    ],
)
def test_values_find_their_parameters(
    model: nn.Module, values: list[tuple[str | None, int]], args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    assert bind(values, model) == Inputs(args, kwargs)


def test_too_many_values_show_the_signature() -> None:
    with pytest.raises(InputError, match=r"more sample inputs than Plain takes\nPlain.forward\(image, mask=None"):
        bind([(None, 1)] * 4, Plain())


def test_a_call_is_described_by_signature_and_values() -> None:
    text = describe_call(Plain(), Inputs((torch.zeros(1, 3),), {"scale": 2}))
    assert text == "Plain.forward(image, mask=None, scale=1.0)\n  called with (f32[1,3], scale=2)"
    assert describe_call(Open(), Inputs()) == "Open.forward(*args, **kwargs)\n  called with ()"
    assert describe_value({"a": [torch.zeros(2, dtype=torch.bool)]}) == "{a: (bool[2])}"
    assert short_dtype(torch.bfloat16) == "bf16"


def test_a_shape_word_is_a_seeded_random_tensor() -> None:
    first, again, other = (read_words(["1x3x4", "2"], Vocabulary(), seed=seed) for seed in (0, 0, 1))
    assert [tuple(sample.value.shape) for sample in first] == [(1, 3, 4), (2,)]
    assert torch.equal(first[0].value, again[0].value)
    assert not torch.equal(first[0].value, other[0].value)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from(["float32", "float64", "bf16", "int64", "i32", "bool"]),
    st.none() | st.from_regex(r"[a-z_]\w{0,8}", fullmatch=True),
)
def test_every_shape_word_gives_its_shape_name_and_dtype(sizes: list[int], dtype: str, name: str | None) -> None:
    word = f"{f'{name}=' if name else ''}{'x'.join(map(str, sizes))}:{dtype}"
    (sample,) = read_words([word], Vocabulary(40))
    assert (sample.name, list(sample.value.shape), sample.value.dtype) == (name, sizes, read_dtype(dtype))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        pytest.param("1x3x", "`1x3x` is no sample input", id="shape cut off"),
        pytest.param("1x3:flaot32", "`flaot32` is no dtype", id="dtype"),
        pytest.param("x=cat.tiff", "is no sample input", id="unknown file type"),
        pytest.param("", "is no sample input", id="empty"),
    ],
)
def test_a_bad_word_is_an_input_error(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_words([word], Vocabulary())


def test_a_missing_file_is_a_file_error() -> None:
    with pytest.raises(FileError, match=r"there is no file nowhere\.npy"):
        read_words(["x=nowhere.npy"], Vocabulary())


def test_token_ids_are_valid_and_not_special() -> None:
    model = Plain()
    model.config = Config()  # type: ignore[assignment]
    vocabulary = Vocabulary.of(model)
    (ids,) = read_words(["ids=64x32:int64"], vocabulary)
    found = set(ids.value.unique().tolist())
    assert vocabulary == Vocabulary(50, frozenset({0}))
    assert found == set(range(1, 50))


def test_the_vocabulary_is_read_off_the_embeddings_of_both_models(model_file: Path) -> None:
    large, small = (build_model(f"{model_file}:Tokens?vocabulary={size}") for size in (40, 30))
    assert Vocabulary.of(large).size == 40  # not 2, the table of token types
    assert Vocabulary.of(large, small).size == 30
    assert Vocabulary.of(Plain()).size == 2


def test_masks_and_positions_have_sensible_values() -> None:
    words = ["attention_mask=2x3:int64", "token_type_ids=1x3:int64", "position_ids=1x4:int64"]
    mask, types, positions = (sample.value.tolist() for sample in read_words(words, Vocabulary(40)))
    assert mask == [[1, 1, 1], [1, 1, 1]]
    assert types == [[0, 0, 0]]
    assert positions == [[0, 1, 2, 3]]


def test_tensor_files_give_their_values(tmp_path: Path) -> None:
    value = torch.randn(2, 3, dtype=torch.float64)
    numpy.save(tmp_path / "a.npy", value.numpy())
    torch.save([value, value + 1], tmp_path / "b.pt")
    torch.save({"x": value}, tmp_path / "c.pt")
    save_file({"y": value}, tmp_path / "d.safetensors")
    words = [str(tmp_path / name) for name in ("a.npy", "b.pt", "c.pt", "d.safetensors")]
    samples = read_words([f"first={words[0]}", *words[1:]], Vocabulary())
    assert [sample.name for sample in samples] == ["first", None, None, "x", "y"]
    assert all(torch.equal(sample.value, value) for sample in (*samples[:2], *samples[3:]))


def test_a_file_that_holds_no_tensor_or_code_is_refused(tmp_path: Path) -> None:
    torch.save({"x": 3}, tmp_path / "a.pt")
    torch.save(Config, tmp_path / "b.pt")
    (tmp_path / "c.npy").write_bytes(b"nonsense")
    for name in ("a.pt", "b.pt", "c.npy"):
        with pytest.raises(InputError, match="cannot be read"):
            read_words([str(tmp_path / name)], Vocabulary())


def test_text_becomes_byte_ids(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (sample,) = read_words([f"ids={tmp_path}/a.txt"], Vocabulary(256))
    assert (sample.name, sample.value.tolist()) == ("ids", [list(b"hello")])
    (small,) = read_words([f"{tmp_path}/a.txt"], Vocabulary(10))
    assert small.value.max() < 10
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match="is empty"):
        read_words([f"{tmp_path}/empty.txt"], Vocabulary())


def test_an_image_is_resized_and_normalised(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "red.png")
    (plain,) = read_words([f"{tmp_path}/red.png"], Vocabulary())
    (resized,) = read_words([f"x={tmp_path}/red.png:8"], Vocabulary())
    assert plain.value.shape == (1, 3, 10, 20)
    assert resized.value.shape == (1, 3, 8, 8)
    torch.testing.assert_close(
        resized.value[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    )
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read"):
        read_words([f"{tmp_path}/bad.png"], Vocabulary())


def test_both_models_get_the_same_values_in_their_own_dtype() -> None:
    src, dest = Plain(), Plain().double()
    src_inputs, dest_inputs = sample_inputs(["2x3"], src, dest)
    assert (src_inputs.args[0].dtype, dest_inputs.args[0].dtype) == (torch.float32, torch.float64)
    assert torch.equal(src_inputs.args[0].double(), dest_inputs.args[0].float().double())
    exact, _ = sample_inputs(["2x3:float64"], src, dest)
    assert exact.args[0].dtype is torch.float64


def test_dest_input_words_are_for_dest_alone() -> None:
    src_inputs, dest_inputs = sample_inputs(["image=1x3"], Plain(), Named(), dest_words=["pixel_values=1x4"])
    assert src_inputs.kwargs["image"].shape == (1, 3)
    assert dest_inputs.kwargs["pixel_values"].shape == (1, 4)


def test_a_name_of_one_model_is_a_position_of_the_other_but_an_unknown_one_is_refused() -> None:
    src_inputs, dest_inputs = sample_inputs(["pixel_values=1x3"], Plain(), Named())
    assert len(src_inputs.args) == 1
    assert list(dest_inputs.kwargs) == ["pixel_values"]
    with pytest.raises(
        InputError, match=r"no forward takes a parameter called `pixels`\nPlain.forward(.|\n)*Named.forward"
    ):
        sample_inputs(["pixels=1x3"], Plain(), Named())
