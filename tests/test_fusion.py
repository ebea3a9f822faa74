"""Fusion over encoders built in Python, of kinds that a table doesn't hold yet."""

import torch
import transformers as hf
from torch import nn

from mope.encoders import BlackBoxEncoder, TransformerEncoder, TunedEncoder
from mope.fusion import Mutual, Sequential
from mope.prompts import FusionPrompts


def _three(tuning: str, main: str | None = None) -> dict[str, TunedEncoder]:
    """Tiny encoders of three kinds, 32 wide; the main one frozen."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    convolutions = {"conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 4)}
    wave = {**shape, **convolutions, "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8}
    models = {
        "audio": hf.Wav2Vec2Model(hf.Wav2Vec2Config(**wave, num_conv_pos_embedding_groups=4)),
        "image": hf.ViTModel(hf.ViTConfig(**shape, image_size=32, patch_size=8), add_pooling_layer=False),
        "text": hf.BertModel(hf.BertConfig(**shape, vocab_size=50), add_pooling_layer=False),
    }
    return {
        name: TunedEncoder(TransformerEncoder(model), "frozen" if name == main else tuning)
        for name, model in models.items()
    }


def _batch() -> dict[str, dict[str, torch.Tensor]]:
    return {
        "audio": {"input_values": torch.randn(4, 400)},
        "image": {"pixel_values": torch.randn(4, 3, 32, 32)},
        "text": {
            "input_ids": torch.randint(5, 50, (4, 6)),
            "attention_mask": torch.ones(4, 6, dtype=torch.long),
        },
    }


def test_three_modalities_with_audio_as_main():
    """Audio guided by image and text: both reach the router, each has a mapper, and the loss reaches all."""
    encoders, batch = _three("prompt", main="audio"), _batch()
    prompts = FusionPrompts(
        encoders["audio"].encoder.layer_dims, {"image": 32, "text": 32}, length=2, experts=3
    )
    fusion = Sequential(encoders, "audio", prompts).eval()
    output = fusion(batch)
    assert output.features.shape == (4, 32)
    assert [tuple(scores.shape) for scores in output.scores] == [(4, 3)] * 2
    output.features.square().sum().backward()
    # A bias in front of a norm is taken away again.
    trained = {
        name for name, p in fusion.named_parameters() if p.requires_grad and not name.endswith("down.0.bias")
    }
    assert {
        name for name, p in fusion.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    } == trained
    for name, inputs in batch.items():
        key = next(iter(inputs))
        other = {**batch, name: {**inputs, key: inputs[key].roll(1, dims=0)}}
        assert (fusion(other).features - output.features).abs().max() > 1e-6, name
    one = {name: {key: value[1:2] for key, value in inputs.items()} for name, inputs in batch.items()}
    torch.testing.assert_close(fusion(one).features, output.features[1:2], atol=1e-5, rtol=1e-4)


def test_both_directions_are_two_directed_fusions_side_by_side():
    """Each encoder's feature is that of the directed fusion in which it is main, with the same prompts."""
    encoders, batch = _three(tuning="prompt"), _batch()
    del encoders["audio"], batch["audio"]
    features = {"image": {"text": 32}, "text": {"image": 32}}
    prompts = {name: FusionPrompts([32, 32], own, length=2, experts=3) for name, own in features.items()}
    both = Mutual(encoders, "text", prompts).eval()
    directed = {name: Sequential(encoders, name, prompts[name]).eval() for name in prompts}
    found = both(batch)
    expected = {name: one(batch) for name, one in directed.items()}
    assert both.guides == ["image", "text"]
    assert both.routed_layers(4) == ["image 1", "image 2", "text 1", "text 2"]
    assert directed["text"].routed_layers(2) == ["1", "2"]
    assert directed["text"].routed_layers(3) == ["1", "2", "3"]  # of one that routes in a way of its own
    torch.testing.assert_close(found.features, torch.cat([o.features for o in expected.values()], dim=1))
    scores = [layer for output in expected.values() for layer in output.scores]
    for layer, own in zip(found.scores, scores, strict=True):
        torch.testing.assert_close(layer, own)


def test_both_directions_of_three_inputs_of_which_one_takes_no_prompts():
    """Each is guided by all others; a black box isn't, and what nothing depends on isn't trained."""
    encoders, batch = _three(tuning="prompt"), _batch()
    box = nn.Sequential(nn.Flatten(), nn.Linear(400, 32))
    encoders["audio"] = TunedEncoder(
        BlackBoxEncoder(box, dim=32, kind="audio", argument="input_values"), "frozen"
    )
    prompts = {
        name: FusionPrompts([32, 32], {"audio": 32, other: 32}, length=2, experts=3)
        for name, other in (("image", "text"), ("text", "image"))
    }
    fusion = Mutual(encoders, "image", prompts)
    output = fusion(batch)
    assert output.features.shape == (4, 96) == (4, fusion.feature_dim)
    torch.testing.assert_close(output.features[:, 64:], fusion.feature("audio", batch))  # as it is alone
    output.features.square().sum().backward()
    learns = {name: p for name, p in fusion.named_parameters() if p.requires_grad}
    still = [name for name, p in learns.items() if p.grad is None or not p.grad.abs().sum()]
    assert all(name.endswith("down.0.bias") for name in still)  # a norm takes it away again
    fusion.eval()
    expected = fusion(batch).features
    for name, inputs in batch.items():
        other = {**batch, name: {key: value.roll(1, dims=0) for key, value in inputs.items()}}
        parts = (fusion(other).features - expected).abs().unflatten(1, (3, 32)).amax(dim=(0, 2))
        assert (parts[:2] > 1e-6).all(), name  # it bears on both features
    static = {name: FusionPrompts([32, 32], {}, parts=["static"], length=2) for name in ("image", "text")}
    alone = Mutual(_three(tuning="prompt"), "image", static)
    alone(batch).features.square().sum().backward()
    assert alone.guides == []
    assert all(p.grad is not None for p in alone.parameters() if p.requires_grad)
