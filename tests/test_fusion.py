"""Fusion over encoders built in Python, of kinds that a table doesn't hold yet."""

import torch
import transformers as hf

from mope.encoders import TransformerEncoder, TunedEncoder
from mope.fusion import Sequential
from mope.prompts import FusionPrompts


def test_three_modalities_with_audio_as_main():
    """Audio guided by image and text: both reach the router, each has a mapper, and the loss reaches all."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    convolutions = {"conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 4)}
    wave = {**shape, **convolutions, "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8}
    models = {
        "audio": hf.Wav2Vec2Model(hf.Wav2Vec2Config(**wave, num_conv_pos_embedding_groups=4)),
        "image": hf.ViTModel(hf.ViTConfig(**shape, image_size=32, patch_size=8), add_pooling_layer=False),
        "text": hf.BertModel(hf.BertConfig(**shape, vocab_size=50), add_pooling_layer=False),
    }
    encoders = {
        name: TunedEncoder(TransformerEncoder(model), "frozen" if name == "audio" else "prompt")
        for name, model in models.items()
    }
    prompts = FusionPrompts(
        encoders["audio"].encoder.layer_dims, {"image": 32, "text": 32}, length=2, experts=3
    )
    fusion = Sequential(encoders, "audio", prompts).eval()
    batch = {
        "audio": {"input_values": torch.randn(4, 400)},
        "image": {"pixel_values": torch.randn(4, 3, 32, 32)},
        "text": {
            "input_ids": torch.randint(5, 50, (4, 6)),
            "attention_mask": torch.ones(4, 6, dtype=torch.long),
        },
    }
    output = fusion(batch)
    assert output.features.shape == (4, 32)
    assert [tuple(scores.shape) for scores in output.scores] == [(4, 3)] * 2
    output.features.square().sum().backward()
    trained = {name for name, p in fusion.named_parameters() if p.requires_grad}
    assert {
        name for name, p in fusion.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    } == trained
    for name, inputs in batch.items():
        key = next(iter(inputs))
        other = {**batch, name: {**inputs, key: inputs[key].roll(1, dims=0)}}
        assert (fusion(other).features - output.features).abs().max() > 1e-6, name
    one = {name: {key: value[1:2] for key, value in inputs.items()} for name, inputs in batch.items()}
    torch.testing.assert_close(fusion(one).features, output.features[1:2], atol=1e-5, rtol=1e-4)
