"""Each method of the paper on tiny encoders, against formulas of what it trains."""

import math

import pytest
import torch
import transformers as hf

from mope.config import Config
from mope.errors import UserError
from mope.methods import METHODS, find_method
from mope.model import FusionModel

D, LAYERS, CLASSES = 32, 2, 3
HEAD = D * CLASSES + CLASSES
BOTH_HEAD = 2 * D * CLASSES + CLASSES
HALF = math.ceil(D / 2)
MAPPER = (D * HALF + HALF) + 2 * HALF + (HALF * D + D)
DEEP = LAYERS * D  # per token of a prompt


def size(*modules) -> int:
    """Parameters of models, without DINOv2's mask token, which no forward pass reads."""
    named = (item for module in modules for item in module.named_parameters())
    return sum(p.numel() for name, p in named if not name.endswith("mask_token"))


@pytest.fixture
def bare(weights):
    return {name: hf.AutoModel.from_pretrained(weights[name], **_no_pooler(name)) for name in weights}


def _no_pooler(name):
    return {"add_pooling_layer": False} if name == "text" else {}


def biases(module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("bias"))


def mope(k: int, head: int = HEAD) -> int:
    router = LAYERS * (D * 8 + D * 2)
    return 6 * DEEP + k * 6 * DEEP + router + MAPPER + 4 * DEEP + head


FORMULAS = {
    "ImgOnly": lambda image, text: size(image) + HEAD,
    "TextOnly": lambda image, text: size(text) + HEAD,
    "P-ImgOnly": lambda image, text: 6 * DEEP + HEAD,
    "P-TextOnly": lambda image, text: 6 * DEEP + HEAD,
    "LateConcat": lambda image, text: size(image, text) + BOTH_HEAD,
    "P-LateConcat": lambda image, text: 12 * DEEP + BOTH_HEAD,
    "SeqFuse": lambda image, text: size(image, text) + MAPPER + HEAD,
    "P-SeqFuse": lambda image, text: 6 * DEEP + MAPPER + 4 * DEEP + HEAD,
    "MMBT": lambda image, text: size(image, text) + (D * D + D) + HEAD,
    "P-MMBT": lambda image, text: 12 * DEEP + (D * D + D) + HEAD,
    "PromptFuse": lambda image, text: 6 * D + HEAD,
    "BlindPrompt": lambda image, text: 6 * D + HEAD,
    "PromptFuse-deep": lambda image, text: 6 * DEEP + HEAD,
    "Frozen": lambda image, text: size(image) + (D * 2 * D + 2 * D) + HEAD,
    "PMF": lambda image, text: 2 * (3 * 6 * DEEP + LAYERS * (D * D + D // 2 + D)) + BOTH_HEAD,
    "MoPE": lambda image, text: mope(4),
    "MoPE-k16": lambda image, text: mope(16),
    "MoPE-clusters": lambda image, text: mope(4),
    "MoPE-both": lambda image, text: 2 * mope(4, 0) + BOTH_HEAD,
    "Probe": lambda image, text: BOTH_HEAD,
    "LoRA + P_m": lambda image, text: 2 * LAYERS * 3 * 8 * 2 * D + MAPPER + HEAD,
    "BitFit + P_m": lambda image, text: biases(image) + biases(text) + MAPPER + HEAD,
    "AdaptFormer + P_m": lambda image, text: 2 * LAYERS * (2 * 64 * D + 64 + D) + MAPPER + HEAD,
}


def batch_of(rows: int = 6) -> dict:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(rows, 5, dtype=torch.long)
    mask[1, 3:] = 0
    return {
        "image": {"pixel_values": torch.randn(rows, 3, 28, 28, generator=generator)},
        "text": {"input_ids": torch.randint(5, 13, (rows, 5), generator=generator), "attention_mask": mask},
    }


def test_every_method_has_a_formula():
    assert set(FORMULAS) == set(METHODS)


@pytest.fixture
def base(config: Config) -> Config:
    settings = config.model_dump()
    settings["fusion"].update(length=6, experts=4, cross_dim=8)
    return Config.parse(settings)


@pytest.mark.parametrize("name", list(FORMULAS))
def test_a_method_trains_what_it_declares_and_learns(base, bare, name, tmp_path):
    config = METHODS[name].apply(base)
    config.output = str(tmp_path / "run")
    torch.manual_seed(0)
    model = FusionModel.build(config, ["a", "b", "c"])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = FORMULAS[name](bare["image"], bare["text"])
    assert sum(p.numel() for p in trained.values()) == expected
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = {key: batch_of()[key] for key in model.fusion.encoders}
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3 if expected < 30_000 else 1e-3)
    losses = []
    for _ in range(12):
        loss = model.train()(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]
    assert not {n for n, p in trained.items() if p.grad is None}
    for n, p in model.named_parameters():
        if n not in trained:
            assert torch.equal(p, before[n]), n

    model.eval().save_pretrained(config.output)
    again = FusionModel.from_pretrained(config.output)
    with torch.no_grad():
        logits = model(**batch).logits
        assert torch.equal(again(**batch).logits, logits)
        for row in (0, 1):  # alone as in its batch
            one = {key: {n: t[row : row + 1] for n, t in inputs.items()} for key, inputs in batch.items()}
            torch.testing.assert_close(model(**one).logits, logits[row : row + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_method_leaves_where_the_head_begins_to_the_config(base, name):
    """So all rows of a study begin alike."""
    for start in ("probe", "random"):
        base.training.head_start = start
        assert METHODS[name].apply(base).training.head_start == start


def test_a_config_that_names_no_routing_is_the_recipe_s():
    """`mope train` without a method trains what the tables call MoPE-clusters; the paper's routing stays its
    own, whatever the defaults are."""
    content = {"task": "classification", "fusion": {"main": "image"}, "data": {"train": "t", "label": "l"}}
    content["inputs"] = {
        "image": {"kind": "image", "column": "i", "encoder": {"weights": "hub:a"}},
        "text": {"kind": "text", "column": "t", "encoder": {"weights": "hub:b", "tuning": "prompt"}},
    }
    default = Config.parse(content)
    recipe, paper = (METHODS[name].apply(default) for name in ("MoPE-clusters", "MoPE"))
    assert recipe.fusion.tau == default.fusion.tau
    free = {"temperature"}  # null means the same
    assert recipe.fusion.model_dump(exclude=free) == default.fusion.model_dump(exclude=free)
    assert recipe.training == default.training
    routing = paper.fusion.model_dump(include={"standardise", "similarity", "keys", "joining", "top"})
    assert routing == {
        "standardise": False,
        "similarity": "dot",
        "keys": "orthogonal",
        "joining": "beside",
        "top": None,
    }
    assert (paper.fusion.tau, paper.training.router_factor, paper.fusion.experts) == (0.1, 1.0, 4)


def test_what_defines_a_method_isn_t_the_config_s(base):
    base = base.with_settings({"fusion.top": 1, "fusion.expert_dropout": 0.5})
    for name in ("MoPE", "MoPE-k16", "MoPE-clusters", "MoPE-both"):
        fusion = METHODS[name].apply(base).fusion
        assert (fusion.top, fusion.expert_dropout) == (None, 0.0)
    base = METHODS["BlindPrompt"].apply(base)
    base = base.with_settings({"fusion.deep": True, "fusion.input_from": "tokens"})
    for name in ("PromptFuse", "BlindPrompt", "PromptFuse-deep", "MMBT", "P-MMBT", "Frozen"):
        fusion = METHODS[name].apply(base).fusion
        assert fusion.deep == (name in ("PromptFuse-deep", "MMBT", "P-MMBT"))
        assert fusion.blind == (name == "BlindPrompt")
        assert fusion.input_from == ("tokens" if "MMBT" in name else "feature")
        assert fusion.input_tokens == (2 if name == "Frozen" else 1)


def test_a_main_input_of_the_method_s_kind_stays(base):
    """The one that the config names is trained, not the first of its kind."""
    content = base.model_dump()
    content["inputs"]["title"] = {**content["inputs"]["text"]}
    content["fusion"]["main"] = "title"
    content["inputs"] = {name: content["inputs"][name] for name in ("text", "title", "image")}
    found = METHODS["TextOnly"].apply(Config.parse(content))
    assert found.fusion.main == "title"
    assert found.inputs["title"].encoder.tuning == "full"
    assert found.inputs["text"].encoder.tuning != "full"
    assert METHODS["ImgOnly"].apply(Config.parse(content)).fusion.main == "image"


@pytest.mark.parametrize("name", FORMULAS)
def test_all_that_learns_is_used_where_inputs_may_be_missing_too(base, name):
    """Several processes wait for the gradient of every parameter that requires one."""
    for entry in base.inputs.values():
        entry.missing = "learn"
    model = FusionModel.build(METHODS[name].apply(base), ["a", "b", "c"]).train()
    batch = {key: {**batch_of()[key], "present": torch.arange(6) % 3 > 0} for key in model.fusion.encoders}
    model(**batch, labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
    assert_all_that_learns_is_used(model)


def assert_all_that_learns_is_used(model: FusionModel) -> None:
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learns
    assert not [name for name, p in learns.items() if p.grad is None]


@pytest.mark.parametrize(
    "name", [n for n in FORMULAS if METHODS[n].fusion not in ("concat", "pmf", "mutual")]
)
def test_all_that_learns_is_used_for_masks(base, name):
    settings = METHODS[name].apply(base).model_dump()
    if settings["fusion"]["main"] != "image":
        return
    config = Config.parse({**settings, "task": "referring-segmentation", "segmentation": {"channels": 8}})
    model = FusionModel.build(config, ["mask"]).train()
    batch = {key: batch_of()[key] for key in model.fusion.encoders}
    model(**batch, labels=torch.rand(6, 28, 28).round()).loss.backward()
    assert_all_that_learns_is_used(model)


@pytest.mark.parametrize("parts", [["static"], ["dynamic"], ["static", "dynamic"], ["mapped"]])
@pytest.mark.parametrize("cross", [0, 8])
def test_an_input_that_no_prompt_depends_on_is_not_encoded(base, parts, cross):
    config = find_method("MoPE").apply(base)
    config.fusion.prompts, config.fusion.cross_dim = parts, cross
    model = FusionModel.build(config, ["a", "b", "c"]).train()
    asked = []
    model.fusion.encoder("text").register_forward_hook(lambda *args: asked.append(1))
    model(**batch_of(), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
    assert_all_that_learns_is_used(model)
    assert bool(asked) == ("mapped" in parts or ("dynamic" in parts and cross > 0))


def test_what_the_head_sees_is_encoded_though_no_prompt_depends_on_it(base):
    config = find_method("MoPE").apply(base)
    config.fusion.prompts, config.fusion.head_sees = ["static"], "all"
    model = FusionModel.build(config, ["a", "b", "c"]).train()
    model(**batch_of(), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
    assert_all_that_learns_is_used(model)
    model.eval()
    other = {n: t.roll(1, dims=0) for n, t in batch_of()["text"].items()}
    with torch.no_grad():
        changed = model(**{**batch_of(), "text": other}).logits - model(**batch_of()).logits
    assert changed.abs().max() > 1e-4


@pytest.mark.parametrize("name", [n for n in FORMULAS if "Only" not in n])
def test_every_input_bears_on_the_answer(base, name):
    config = METHODS[name].apply(base)
    model = FusionModel.build(config, ["a", "b", "c"]).eval()
    batch = batch_of()
    with torch.no_grad():
        logits = model(**batch).logits
        for key in batch:
            other = {n: t.roll(1, dims=0) for n, t in batch[key].items()}
            assert (model(**{**batch, key: other}).logits - logits).abs().max() > 1e-6, key


def test_what_methods_say_when_they_cannot(base, weights):
    with pytest.raises(UserError, match="did you mean 'P-SeqFuse'"):
        find_method("P-SeqFus")
    assert find_method("mope-K16").name == "MoPE-k16"
    with pytest.raises(UserError, match="see `mope compare --list`"):
        find_method("xyz")
    alone = Config.parse(
        {**base.model_dump(), "inputs": {"text": base.inputs["text"].model_dump()}}
        | {"fusion": {"main": "text"}}
    )
    with pytest.raises(UserError, match="ImgOnly needs an input of kind image"):
        METHODS["ImgOnly"].apply(alone)
    with pytest.raises(UserError, match="PMF fuses two inputs, not 1"):
        FusionModel.build(METHODS["PMF"].apply(alone), ["a", "b"])
    swin = {
        "model_type": "swin",
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2],
        "num_heads": [2],
    }
    base.inputs["image"].encoder.weights = None
    base.inputs["image"].encoder.architecture = {**swin, "window_size": 4}
    with pytest.raises(UserError, match="PMF needs plain transformers"):
        FusionModel.build(METHODS["PMF"].apply(base), ["a", "b"])
    model = FusionModel.build(METHODS["PromptFuse"].apply(base), ["a", "b"]).eval()
    batch = batch_of()
    batch["image"]["pixel_values"] = torch.randn(6, 3, 32, 32)
    other = {**batch, "text": {n: t.roll(1, dims=0) for n, t in batch["text"].items()}}
    assert (model(**batch).logits - model(**other).logits).abs().max() > 1e-7
