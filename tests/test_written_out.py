"""Methods over tiny bare encoders, their passes written out by hand."""

import pytest
import torch
import transformers as hf

from mope.encoders import TransformerEncoder, TunedEncoder
from mope.fusion import Inputs, Pmf
from mope.fusion.inputs import InputSource

D = 32


def encoders():
    shape = {"hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    image = hf.ViTModel(hf.ViTConfig(**shape, image_size=16, patch_size=8), add_pooling_layer=False)
    text = hf.BertModel(
        hf.BertConfig(**{**shape, "num_hidden_layers": 2}, vocab_size=50), add_pooling_layer=False
    )
    return {
        name: TunedEncoder(TransformerEncoder(model), "frozen").eval()
        for name, model in (("image", image), ("text", text))
    }


def small_batch():
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    return {
        "image": {"pixel_values": torch.randn(2, 3, 16, 16)},
        "text": {"input_ids": torch.randint(5, 13, (2, 5)), "attention_mask": mask},
    }


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("main", ["image", "text"])
def test_prompt_fuse_is_its_tokens_written_out(main, deep):
    """Tokens put behind the embeddings and run through the bare layers, by hand."""
    tuned = encoders()
    fusion = Inputs(tuned, main, length=2, deep=deep, dropout=0.0).eval()
    batch = small_batch()
    output = fusion(batch)
    other = "text" if main == "image" else "image"
    feature = tuned[other](batch[other]).pooled.unsqueeze(1)
    backbone = tuned[main].encoder.backbone
    layers = backbone.layers if main == "image" else backbone.encoder.layer
    hidden = backbone.embeddings(next(iter(batch[main].values())))
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
    if main == "text":
        mask = batch["text"]["attention_mask"].bool()
    mask = torch.cat([mask[:, :1], torch.ones(2, 3, dtype=torch.bool), mask[:, 1:]], dim=1)[:, None, None]
    mask = mask.expand(-1, -1, mask.shape[-1], -1)
    living = feature if deep else torch.cat([fusion.prompts[0].expand(2, -1, -1), feature], dim=1)
    for place, layer in enumerate(layers):
        fresh = [fusion.prompts[place].expand(2, -1, -1)] if deep else []
        whole = torch.cat([hidden[:, :1], *fresh, living, hidden[:, 1:]], dim=1)
        output_ = layer(whole, attention_mask=mask) if main == "text" else layer(whole)
        whole = output_[0] if isinstance(output_, tuple) else output_
        living = whole[:, 1 + (2 if deep else 0) : 4]
        hidden = torch.cat([whole[:, :1], whole[:, 4:]], dim=1)
    if main == "image":
        hidden = backbone.layernorm(hidden)
    torch.testing.assert_close(output.features, hidden[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("start", ["published", "quiet"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("main", ["image", "swin"])
def test_padding_of_another_input_is_no_token(main, deep, start):
    """A row whose text stands beside a longer one is as it is alone."""
    tuned = encoders()
    if main == "swin":
        shape = hf.SwinConfig(
            image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
        )
        tuned["image"] = TunedEncoder(TransformerEncoder(hf.SwinModel(shape)), "frozen").eval()
    fusion = Inputs(tuned, "image", length=2, deep=deep, source="tokens", dropout=0.0, start=start).eval()
    pixels, words = torch.randn(2, 3, 16, 16), torch.randint(1, 9, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    together = {
        "image": {"pixel_values": pixels},
        "text": {"input_ids": words, "attention_mask": mask},
    }
    alone = {
        "image": {"pixel_values": pixels[1:]},
        "text": {"input_ids": words[1:, :3], "attention_mask": mask[1:, :3]},
    }
    found, expected = fusion(together).features[1], fusion(alone).features[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    other = {**alone, "text": {**alone["text"], "input_ids": words[:1, :3]}}
    assert (fusion(other).features[0] - expected).abs().max() > 1e-4


@pytest.mark.parametrize("blind", [True, False])
@pytest.mark.parametrize("main", ["image", "text"])
def test_blind_prompts_do_not_see_the_main_input(main, blind, monkeypatch):
    """What becomes of the prompt doesn't change with any input; without blindness it does."""
    fusion, batch, seen = (
        Inputs(encoders(), main, length=2, blind=blind, dropout=0.0).eval(),
        small_batch(),
        [],
    )
    told = []
    receive = InputSource.receive

    def watch(self, layer, outputs):
        seen.append(outputs[:, :2])
        told.append(outputs[:, 2:])
        receive(self, layer, outputs)

    monkeypatch.setattr(InputSource, "receive", watch)
    fusion(batch)
    fusion({**batch, main: {name: tensor.flip(0) for name, tensor in batch[main].items()}})
    half = len(seen) // 2
    pairs = zip(seen[:half], seen[half:], strict=True)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in pairs) == blind
    assert not torch.allclose(told[0], told[half], atol=1e-6)  # features always see it


def test_pmf_written_out():
    """Both streams layer by layer: query, tell the other, fuse."""
    tuned = encoders()
    fusion = Pmf(tuned, "image", layers=2, length=2).eval()
    batch = small_batch()
    image, text = tuned["image"].encoder.backbone, tuned["text"].encoder.backbone
    layers = {"image": list(image.layers), "text": list(text.encoder.layer)}
    hidden = {
        "image": image.embeddings(batch["image"]["pixel_values"]),
        "text": text.embeddings(batch["text"]["input_ids"]),
    }
    real = batch["text"]["attention_mask"].bool()

    def run(name, place, extra):
        tokens = hidden[name]
        whole = torch.cat([tokens[:, :1], extra, tokens[:, 1:]], dim=1)
        if name == "image":
            out = layers[name][place](whole)
        else:
            mask = torch.cat(
                [real[:, :1], torch.ones(2, extra.shape[1], dtype=torch.bool), real[:, 1:]], dim=1
            )
            mask = mask[:, None, None].expand(-1, -1, mask.shape[1], -1)
            out = layers[name][place](whole, attention_mask=mask)
        out = out[0] if isinstance(out, tuple) else out
        n = extra.shape[1]
        return out[:, 1 : 1 + n], torch.cat([out[:, :1], out[:, 1 + n :]], dim=1)

    hidden["image"] = run("image", 0, hidden["image"][:, :0])[1]
    for step in range(2):
        told = {}
        for name in ("image", "text"):
            place = len(layers[name]) - 2 + step
            both = torch.cat([fusion.query[name][step], fusion.query_context[name][step]]).expand(2, -1, -1)
            told[name] = run(name, place, both)[0][:, :2]
        new = {}
        for name, other in (("image", "text"), ("text", "image")):
            place = len(layers[name]) - 2 + step
            mapped = fusion.maps[name][step](told[other])
            context = fusion.fusion_context[name][step].expand(2, -1, -1)
            new[name] = run(name, place, torch.cat([context, mapped], dim=1))[1]
        hidden = new
    expected = torch.cat([image.layernorm(hidden["image"])[:, 0], hidden["text"][:, 0]], dim=1)
    torch.testing.assert_close(fusion(batch).features, expected, atol=1e-5, rtol=1e-4)


def test_lora_and_adapters_start_as_the_frozen_encoder():
    for tuning in ("lora", "adaptformer", "bitfit"):
        for name, frozen in encoders().items():
            inputs = small_batch()[name]
            expected = frozen(inputs).tokens
            tuned = TunedEncoder(frozen.encoder, tuning).eval()
            torch.testing.assert_close(tuned(inputs).tokens, expected)
