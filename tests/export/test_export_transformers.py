"""The transformers export: from_pretrained reads src's checkpoints bitwise, save_pretrained writes them again."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, plan_of, rows, transposed
from exported import differing, random_state, reformatted
from holder import Holder, holder_config, loaded, loaded_in_memory, registered, reverted, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from models.pairs import PAIRS
from plan_strategies import layouts
from torch import Tensor, nn

import automap
from automap.errors import ExportError
from automap.export import export_transformers
from automap.plan import (
    Affine,
    Concat,
    Expr,
    Fill,
    Gather,
    Multiply,
    Permute,
    Plan,
    Reshape,
    Slice,
    Source,
    sources_of,
)
from automap.plan.expr import args_of, with_args
from automap.plan.template import rename_sources

pytestmark = pytest.mark.zoo
REAL = [
    "vit",
    "beit",
    "swin",
    "resnet",
    "llama with fused grouped queries",
    "llama with interleaved rotary",
    "mixture of experts",
]


@pytest.mark.parametrize("name", REAL)
def test_real_models_load_and_save_checkpoints_of_src_bitwise(name: str, tmp_path: Path) -> None:
    plan, case = plan_of(name), CASES[name]
    state, dest = dict(case.src().state_dict()), case.dest()
    text = export_transformers(plan)
    with registered(text):
        model = loaded(type(dest), dest.config, state, tmp_path / "in")  # type: ignore[arg-type]
        expected = plan.apply(state)
        assert differing({key: model.state_dict()[key] for key in expected}, expected) == []
        for again in ("once", "twice"):
            assert differing(saved(model, tmp_path / again), state) == []
    with torch.no_grad():
        logits = model.eval()(case.sample()).logits
        torch.testing.assert_close(logits, outputs_of(case.src(), case.sample()), rtol=1e-3, atol=1e-3)
    assert reformatted(text) == [text]


def test_a_checkpoint_in_bfloat16_stays_bitwise(tmp_path: Path) -> None:
    plan, dest = plan_of("mixture of experts"), CASES["mixture of experts"].dest()
    state = random_state(plan, dtype=torch.bfloat16)
    with registered(export_transformers(plan)):
        model = loaded(type(dest), dest.config, state, tmp_path / "in", dtype=torch.bfloat16)  # type: ignore[arg-type]
        expected = plan.apply(state)
        assert differing({key: model.state_dict()[key] for key in expected}, expected) == []
        assert differing(saved(model, tmp_path / "out"), state) == []


def outputs_of(model: nn.Module, sample: Tensor) -> Any:
    with torch.no_grad():
        return model(sample)


@pytest.mark.parametrize("name", ["vit", "swin", "mixture of experts"])
def test_checkpoints_of_dest_load_as_before(name: str, tmp_path: Path) -> None:
    dest = CASES[name].dest()
    with registered(export_transformers(plan_of(name))):
        dest.save_pretrained(tmp_path / "own", save_original_format=False)  # type: ignore[operator]
        model = type(dest).from_pretrained(tmp_path / "own")  # type: ignore[attr-defined]
    assert differing(model.state_dict(), dest.state_dict()) == []


def test_conversions_of_real_models_are_those_of_transformers() -> None:
    assert "[Chunk(dim=0)]," in export_transformers(plan_of("swin"))
    assert "[Split(dim=0)]," in export_transformers(plan_of("llama with fused grouped queries"))
    text = export_transformers(plan_of("mixture of experts"))
    assert "[MergeModulelist(dim=0), Concatenate(dim=1)]," in text
    assert r'[r"^layers\.(\d+)\.feed_forward\.experts\.*.w2\.weight"],' in text
    assert "[Mapped(load_q_proj, save_q_proj)]," in text


def test_modules_are_renamed_whole_and_blocks_are_one_group() -> None:
    text = export_transformers(plan_of("swin"))
    assert r'r"^layers\.(\d+\.blocks\.\d+)\.mlp\.",' in text
    assert r'r"^swin\.encoder\.layers\.(\d+\.blocks\.\d+)\.mlp\.",' in text
    assert r'rf"^layers\.{i + 1}\.downsample\.",' in text


SPELLINGS = [pytest.param(name, id=name) for name in PAIRS if name != "module-prefix"]  # Holder's own word


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_loads_and_saves_bitwise_or_has_nothing_to_convert(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    src = pair.src()
    plan = automap.match(src, pair.dest(), pair.sample(), dest_input=pair.dest_input).plan
    state = {key: tensor for key, tensor in src.state_dict().items() if key in plan.src_shapes}
    if all(isinstance(expr, Source) and expr.name == dest for dest, expr in plan.entries.items()):
        with pytest.raises(ExportError, match="there is nothing to export to transformers"):
            export_transformers(plan, model_class="Holder")
        return
    assert_both_ways(plan, state, tmp_path)


def assert_both_ways(plan: Plan, state: dict[str, Tensor], folder: Path) -> str:
    text = export_transformers(plan, model_class="Holder")
    with registered(text):
        model = loaded(Holder, holder_config(plan.dest_shapes), state, folder / "in")
        assert differing(model.state_dict(), plan.apply(state)) == []
        assert differing(saved(model, folder / "out"), state) == []
    return text


NAMES = [f"{kind}.{n}.{leaf}" for kind in "hl" for n in range(4) for leaf in ("weight", "bias")] + ["x", "a.weight"]
CLASHING = ("h.0.weight", "h.1.weight", "h.2.weight", "x", "a.weight", "l.1.bias", "q.0.w", "q.1.w", "q.2.w", "q.3.w")


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(NAMES), layouts(max_steps=3), min_size=1, max_size=5))
def test_any_layout_loads_bitwise_and_is_saved_bitwise_or_not_at_all(made: dict[str, Expr]) -> None:
    sources = dict.fromkeys(source.name for expr in made.values() for source in sources_of(expr))
    table = dict(zip(sources, CLASHING, strict=False))
    plan = Plan({dest: rename_sources(expr, lambda name: table.get(name, name)) for dest, expr in made.items()})
    plan = Plan({dest: in_float32(expr) for dest, expr in plan.entries.items()}, dest="Holder")
    state = random_state(plan)
    if not state or all(isinstance(expr, Source) and expr.name == dest for dest, expr in plan.entries.items()):
        return
    with registered(export_transformers(plan)):
        model = loaded_in_memory(plan.dest_shapes, state)
        assert differing(model.state_dict(), plan.apply(state)) == []
        with suppress(NotImplementedError):
            assert differing(reverted(model), state) == []


def in_float32(expr: Expr) -> Expr:
    """The same expression over sources and constants in float32, as Holder has its weights."""
    if isinstance(expr, Source | Fill):
        return replace(expr, dtype="float32")
    return with_args(expr, tuple(map(in_float32, args_of(expr))))


def stacked(*names: str, shape: tuple[int, ...] = (2, 3)) -> Expr:
    return Concat(tuple(Reshape(Source(name, shape), (1, *shape)) for name in names), 0)


FUSED = Source("h.0.qkv.weight", (6, 4))
PACKED = Source("h.0.packed", (4, 2, 3))
EXACT = [
    pytest.param(
        {f"l.0.experts.{n}.w": Slice(FUSED, (n, 0), (n + 1, 4), (1, 1)) for n in range(6)},
        r'\.experts\.{e}\.w" for e in range(6)],',
        id="counted rows",
    ),
    pytest.param(
        {f"l.0.experts.{n}.w": Reshape(Slice(PACKED, (n, 0, 0), (n + 1, 2, 3), (1, 1, 1)), (2, 3)) for n in range(4)},
        r'\.experts\.{e}\.w" for e in range(4)],',
        id="packed experts",
    ),
    pytest.param({"a.w": Source("b.w", (2,)), "b.w": Source("a.w", (2,))}, "PrefixChange", id="swapped names"),
    pytest.param({"b.w": Source("a.w", (2,)), "c.w": Source("b.w", (2,))}, "PrefixChange", id="chained names"),
    pytest.param(
        {"b.x": transposed("a.w", 4, 3), "b.y": Source("b.x", (3,))}, "Transpose(dim0=0, dim1=1)", id="chained ops"
    ),
    pytest.param({"a.w": transposed("a.w", 4, 3)}, "Do not import it to load Holder's own checkpoints", id="same name"),
    pytest.param({"a.w": Source("w", (2,)), "b.w": Source("w", (2,))}, "present(", id="one for two"),
    pytest.param(
        {f"h.{n}.{key}": Source(f"h.{key}", (2,)) for n in range(3) for key in "xy"}, "present(", id="shared block"
    ),
    pytest.param(
        {"h.q.weight": rows(FUSED, 1, 3), "h.k.weight": rows(FUSED, 0, 3), "h.v.weight": rows(FUSED, 2, 3)},
        "[Chunk(dim=0)]",
        id="chunks in another order",
    ),
    pytest.param(
        {"f.w": Concat((Source("q", (4, 2)), Source("k", (2, 2))), 0)},
        "def save_w(w):",
        id="joined, of different sizes",
    ),
    pytest.param({"f.w": Concat((Source("q", (2, 2)), Source("k", (2, 2))), 1)}, "Concatenate(dim=1)", id="joined"),
    pytest.param({"e.w": stacked(*(f"e.{n}.w" for n in range(12)))}, "MergeModulelist(dim=0)", id="twelve experts"),
    pytest.param({"e.w": stacked("e.1.w", "e.0.w", "e.2.w")}, "Mapped(", id="experts in another order"),
    pytest.param(
        {"k.weight": Source("kw", (4, 2)), "k.bias": Fill(0.0, (4,)), "v.bias": Source("vb", (4,))},
        "new_zeros(4)",
        id="a constant",
    ),
    pytest.param(
        {f"e.{n}.w": Reshape(rows(Source("e.up", (3, 4, 2)), n, 3), (4, 2)) for n in (1, 0, 2)},
        "for part in up.chunk(3)",
        id="experts apart, listed in another order",
    ),
    pytest.param(
        {name: rows(Source("v", (4,)), part, 2) for name, part in (("e.0.w", 0), ("x", 1), ("e.1.w", 0), ("e.2.w", 0))},
        "present(",
        id="copies among numbered ones",
    ),
    pytest.param(
        {"e.0.w": Fill(1.0, (2,)), "e.1.w": rows(Source("v", (4,)), 1, 2), "e.2.w": rows(Source("v", (4,)), 0, 2)},
        "new_ones(2)",
        id="a constant among numbered ones",
    ),
    pytest.param({"w": Gather(Source("v", (4, 2)), 0, (2, 0, 3, 1))}, "take(", id="rows in another order"),
    pytest.param({"w": Concat((Fill(0.0, (1, 2)), Source("v", (4, 2))), 0)}, "load_w", id="a row of zeros"),
    pytest.param(
        {f"l.{n}.w": Source(f"h.{n}.w" if n < 2 else "last.w", (2,)) for n in range(3)},
        r'rf"^h\.{i}\.',
        id="a block apart",
    ),
    pytest.param(
        {
            **{f"l.{n}.w": Source(f"h.{n}.w", (2,)) for n in range(2)},
            "l.2.w": transposed("h.2.w", 2, 3),
            "l.3.w": Source("h.3.w", (2,)),
        },
        r'r"^h\.2\.',
        id="a block made in another way",
    ),
    pytest.param(
        {f"d.{n}.w": Source(f"u.{n + 1}.w", (2,)) for n in range(3)}, r'rf"^u\.{i + 1}\.', id="numbers shifted"
    ),
    pytest.param({"a-b.w": Source("c:d/e.w", (2,))}, r"^c:d/e\.", id="other signs"),
]


@pytest.mark.parametrize(("entries", "shown"), EXACT)
def test_plans_load_and_save_bitwise(entries: dict[str, Expr], shown: str, tmp_path: Path) -> None:
    plan = Plan(entries, src="Src", dest="Holder")
    text = assert_both_ways(plan, random_state(plan), tmp_path)
    assert shown in text
    assert reformatted(text) == [text]


IRREVERSIBLE = [
    pytest.param(
        {"w": Affine(Source("v", (3,)), scale=2.0)}, "`w` is computed, not moved, which cannot be undone", id="affine"
    ),
    pytest.param(
        {"w": Multiply(Source("v", (3,)), Source("g", (3,)))}, "`w` is computed, not moved", id="product of two"
    ),
    pytest.param({"w": Slice(Source("v", (4, 2)), (0, 0), (3, 2), (1, 1))}, "`v` is only partly used", id="cut off"),
    pytest.param({"w": Gather(Source("v", (3,)), 0, (0, 0, 1, 2))}, "`v` is used twice", id="repeated"),
    pytest.param(
        {"w": Source("v", (4,)), "x": Slice(Source("v", (4,)), (0,), (2,), (1,))}, "`v` is used twice", id="overlapping"
    ),
]


@pytest.mark.parametrize(("entries", "reason"), IRREVERSIBLE)
def test_what_cannot_be_undone_loads_and_says_why_it_is_not_saved(
    entries: dict[str, Expr], reason: str, tmp_path: Path
) -> None:
    plan = Plan(entries, dest="Holder")
    state = random_state(plan)
    with registered(export_transformers(plan)):
        model = loaded(Holder, holder_config(plan.dest_shapes), state, tmp_path / "in")
        assert differing(model.state_dict(), plan.apply(state)) == []
        with pytest.raises(NotImplementedError, match=re.escape(reason)) as raised:
            saved(model, tmp_path / "out")
        assert str(raised.value).endswith("; pass save_original_format=False")
        assert differing(saved(model, tmp_path / "own", save_original_format=False), model.state_dict()) == []


@pytest.mark.parametrize(
    ("entries", "changed"),
    [
        pytest.param({"w": Source("v", (3,)), "b": Fill(0.0, (3,))}, "b", id="constant"),
        pytest.param({"w": Concat((Fill(0.0, (1, 2)), Source("v", (4, 2))), 0)}, "w", id="row of zeros"),
        pytest.param({"w": Source("v", (3,)), "x": Source("v", (3,))}, "x", id="two of one"),
    ],
)
def test_a_change_that_src_has_no_place_for_is_not_lost_on_saving(
    entries: dict[str, Expr], changed: str, tmp_path: Path
) -> None:
    plan = Plan(entries, dest="Holder")
    with registered(export_transformers(plan)):
        model = loaded(Holder, holder_config(plan.dest_shapes), random_state(plan), tmp_path / "in")
        with torch.no_grad():
            model.get_parameter(changed).view(-1)[0] += 1.0
        with pytest.raises(ValueError, match="for which the format they were loaded from has no place"):
            saved(model, tmp_path / "out")


def test_tied_weights_come_from_one_tensor_and_go_back_to_it(tmp_path: Path) -> None:
    from cases import CONFIG
    from transformers import LlamaConfig, LlamaForCausalLM

    dest = LlamaForCausalLM(LlamaConfig(**CONFIG, tie_word_embeddings=True))
    entries: dict[str, Expr] = {}
    for name, tensor in dest.state_dict().items():
        words = name in ("lm_head.weight", "model.embed_tokens.weight")
        entries[name] = Source("words" if words else name.replace("model.", "m."), tuple(tensor.shape))
    plan = Plan(entries, dest="LlamaForCausalLM")
    state = random_state(plan)
    with registered(export_transformers(plan)):
        model = loaded(LlamaForCausalLM, dest.config, state, tmp_path / "in")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert differing(model.state_dict(), plan.apply(state)) == []
        assert differing(saved(model, tmp_path / "out"), state) == []


def test_a_missing_part_is_an_error_of_loading(tmp_path: Path) -> None:
    plan = Plan({"f.w": Concat((Source("q", (4, 2)), Source("k", (2, 2))), 0)}, dest="Holder")
    with registered(export_transformers(plan)), pytest.raises(RuntimeError):
        loaded(Holder, holder_config(plan.dest_shapes), {"q": torch.randn(4, 2)}, tmp_path / "in")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        pytest.param(Plan({"b": Source("w", (2,))}), "neither plan nor option names a model class", id="no class"),
        pytest.param(Plan({"b": Source("w", (2,))}, dest="a.b"), "`a.b` is not the name of a model class", id="class"),
        pytest.param(
            Plan({"b": Source("w+", (2,))}, dest="Holder"), "`w\\+` has characters that mean something else", id="plus"
        ),
        pytest.param(
            Plan({"b_": Source("w", (2,))}, dest="Holder"), "`b_` has characters that mean something else", id="ending"
        ),
        pytest.param(Plan({"b": Fill(0.0, (2,))}, dest="Holder"), "made of a src tensor", id="no source"),
        pytest.param(Plan({"b": Source("b", (2,))}, dest="Holder"), "there is nothing to export", id="nothing"),
        pytest.param(
            Plan({"a.w": Source("v", (2,)), "a.w.x": Permute(Source("v.x", (2, 2)), (1, 0))}, dest="Holder"),
            "no patterns tell `v.x` from other names",
            id="a tensor and a module of one name",
        ),
    ],
)
def test_what_no_patterns_can_say_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_transformers(plan)
