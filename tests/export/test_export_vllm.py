"""The vllm export: a WeightsMapper where new names are all there is to it, else a refusal that says what is not."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field

import pytest
from cases import plan_of, rows, transposed
from exported import module_of, reformatted

from automap.errors import ExportError
from automap.export import export_vllm
from automap.plan import Expr, Fill, Plan, Source


@dataclass
class WeightsMapper:
    """Renames as vLLM's class of this name does: parts of names, then prefixes, then suffixes, each once, in order."""

    orig_to_new_substr: dict[str, str | None] = field(default_factory=dict)
    orig_to_new_prefix: dict[str, str | None] = field(default_factory=dict)
    orig_to_new_suffix: dict[str, str | None] = field(default_factory=dict)

    def renamed(self, name: str) -> str:
        for old, new in self.orig_to_new_substr.items():
            assert new is not None
            name = name.replace(old, new, 1)
        for old, new in self.orig_to_new_prefix.items():
            assert new is not None
            name = name.replace(old, new, 1) if name.startswith(old) else name
        return name


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "vllm.model_executor.models.utils"
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    sys.modules[path].WeightsMapper = WeightsMapper  # type: ignore[attr-defined]


def mapper_of(entries: dict[str, Expr]) -> WeightsMapper:
    text = export_vllm(Plan(entries, src="Src", dest="Dest"))
    assert reformatted(text) == [text]
    mapper: WeightsMapper = module_of(text)["hf_to_vllm_mapper"]
    return mapper


def renames(*pairs: tuple[str, str]) -> dict[str, Expr]:
    return {dest: Source(name, (2,)) for name, dest in pairs}


BLOCK = [
    ("attn.q.weight", "self_attn.q_proj.weight"),
    ("norm1.weight", "input_layernorm.weight"),
    ("gamma", "ls.scale"),
]
LAYERS = [(f"blocks.{n}.{name}", f"model.layers.{n}.{dest}") for n in range(12) for name, dest in BLOCK]


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([*LAYERS, ("norm.weight", "model.norm.weight"), ("head.weight", "lm_head.weight")], id="decoder"),
        pytest.param([(f"h.{n}.w", f"layers.{n + 1}.w") for n in range(3)], id="numbers shifted"),
        pytest.param([("a.w", "b.w"), ("b.w", "c.w")], id="a chain that has an order"),
        pytest.param([("model.a.w", "model.a.w"), ("model.b.w", "lm.b.w")], id="some keep their names"),
        pytest.param([("a.attn.w", "x.self_attn.w"), ("b.attn.w", "b.attn.w")], id="one part, two fates"),
    ],
)
def test_every_name_arrives(pairs: list[tuple[str, str]]) -> None:
    mapper = mapper_of(renames(*pairs))
    assert [mapper.renamed(name) for name, _ in pairs] == [dest for _, dest in pairs]


def test_blocks_are_told_by_a_prefix_and_parts_of_names() -> None:
    mapper = mapper_of(renames(*LAYERS))
    assert mapper.orig_to_new_prefix == {"blocks.": "model.layers."}
    assert mapper.orig_to_new_substr == {
        ".attn.q.": ".self_attn.q_proj.",
        ".norm1.": ".input_layernorm.",
        ".gamma": ".ls.scale",
    }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param(
            {f"{n}.weight": rows(Source("qkv.weight", (6, 4)), k, 3) for k, n in enumerate("qkv")},
            "gives each src tensor one new name, but `qkv.weight` becomes `q.weight`, `k.weight` and `v.weight`$",
            id="fused",
        ),
        pytest.param({"a.w": transposed("b.w", 3, 2)}, "but `a.w` is b.w.T$", id="transposed"),
        pytest.param({**renames(("w", "a")), **renames(("w", "b"))}, "but `w` becomes `a` and `b`$", id="two names"),
        pytest.param(
            {"a.w": Source("w", (2,)), "a.b": Fill(0.0, (2,))}, "but `w` becomes `a.w` and `a.b`$", id="constant"
        ),
        pytest.param(
            {f"{n}.w": transposed(f"{n}.v", 2, 3) for n in "abcde"}, "; `c.w` is c.v.T; and 2 more$", id="many"
        ),
        pytest.param(
            renames(("a.w", "b.w"), ("b.w", "a.w")),
            "its replacements follow each other, `[ab].w` would become `[ab].w`, not `[ab].w` \\(tried parts of names, "
            "then a prefix for each module and each tensor\\)$",
            id="swapped",
        ),
    ],
)
def test_what_a_mapper_cannot_do_is_named(entries: dict[str, Expr], message: str) -> None:
    with pytest.raises(ExportError, match=message) as raised:
        export_vllm(Plan(entries))
    assert str(raised.value).startswith("cannot export to vllm: ")


@pytest.mark.zoo
def test_a_real_model_with_fused_weights_is_refused_with_a_way_out() -> None:
    with pytest.raises(ExportError, match=r"`blocks.\{i\}.attn.qkv.weight` becomes `vit.layers") as raised:
        export_vllm(plan_of("vit"))
    assert raised.value.help is not None
    assert "--format python" in raised.value.help
