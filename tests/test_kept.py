"""Prompts that are the same for every row are projected once: the same results, never of other weights."""

import copy

import pytest
import torch
import transformers as hf
from run_tester import tiny_run
from test_encoders import TEXT, WIDE

from mope.config import Config
from mope.encoders import TransformerEncoder, TunedEncoder, VideoEncoder
from mope.predictor import Predictor
from mope.prompts import DeepPrompts, FusionPrompts, KeptPrompts, MixedPrompts
from mope.training import train

MODELS = {
    "vit": lambda: hf.ViTModel(hf.ViTConfig(**WIDE, image_size=32, patch_size=8), add_pooling_layer=False),
    "dinov3": lambda: hf.DINOv3ViTModel(
        hf.DINOv3ViTConfig(**WIDE, image_size=32, patch_size=8, num_register_tokens=2)
    ),
    "swin": lambda: hf.SwinModel(
        hf.SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
        ),
        add_pooling_layer=False,
    ),
    "siglip": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**WIDE, image_size=32, patch_size=8)),
    "bert": lambda: hf.BertModel(hf.BertConfig(**TEXT), add_pooling_layer=False),
    "modernbert": lambda: hf.ModernBertModel(
        hf.ModernBertConfig(
            **TEXT,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
            local_attention=4,
            global_attn_every_n_layers=2,
        )
    ),
    "clip text": lambda: hf.CLIPTextModel(
        hf.CLIPTextConfig(**TEXT, max_position_embeddings=16, eos_token_id=95)
    ),
    "wav2vec2": lambda: hf.Wav2Vec2Model(
        hf.Wav2Vec2Config(
            **WIDE,
            conv_dim=(16, 16),
            conv_kernel=(10, 8),
            conv_stride=(5, 4),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )
    ),
    "hubert": lambda: hf.HubertModel(
        hf.HubertConfig(
            **WIDE,
            conv_dim=(16, 16),
            conv_kernel=(10, 8),
            conv_stride=(5, 4),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )
    ),
}
BF16 = {False: {"atol": 2e-6, "rtol": 1e-5}, True: {"atol": 1e-6, "rtol": 1e-6}}


def encoder_of(name, insertion=None):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    encoder = TransformerEncoder(model, insertion).requires_grad_(False).eval()
    return encoder


def inputs_of(encoder, batch=3):
    generator = torch.Generator().manual_seed(2)
    if encoder.kind == "image":
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}
    if encoder.kind == "video":
        return {"pixel_values": torch.randn(batch, 2, 3, 32, 32, generator=generator)}
    if encoder.kind == "audio":
        return {"input_values": torch.randn(batch, 800, generator=generator)}
    mask = torch.ones(batch, 7, dtype=torch.long)
    mask[1:, 5:] = 0
    return {"input_ids": torch.randint(5, 90, (batch, 7), generator=generator), "attention_mask": mask}


def prompts_of(encoder, **settings):
    torch.manual_seed(1)
    dims = encoder.layer_dims
    prompts = FusionPrompts(dims, {"other": 6}, length=3, experts=2, **settings)
    return prompts.requires_grad_(False).eval()


def features(batch=3):
    return {"other": torch.randn(batch, 6, generator=torch.Generator().manual_seed(3))}


def run(encoder, prompts, bf16=False, missing=None):
    source = prompts if isinstance(prompts, DeepPrompts) else prompts.bind(features(), missing)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return encoder(**inputs_of(encoder), prompts=source).tokens


def settle(prompts, encoder, bf16=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        prompts.settle(encoder)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_results_are_the_same(name, bf16):
    encoder = encoder_of(name)
    encoder.freeze(torch.bfloat16 if bf16 else None)
    depth = len(encoder.layer_dims)
    deep = DeepPrompts(encoder.layer_dims, length=3, start="quiet").requires_grad_(False).eval()
    rows = {"other": torch.tensor([False, True, False])}
    hides = encoder.insertion == "prefix"
    cases = [(deep, None)] if hides else []
    cases += [(prompts_of(encoder), None), (prompts_of(encoder, parts=("static",)), None)]
    cases += [(prompts_of(encoder, start="quiet"), rows)] if hides else []
    cases += [(prompts_of(encoder, joining="added"), None)]
    for prompts, missing in cases:
        expected = run(encoder, prompts, bf16, missing)
        settle(prompts, encoder, bf16)
        added = isinstance(prompts, FusionPrompts) and prompts.added
        assert len(prompts.projected) == (depth if hides and not added else 0)
        torch.testing.assert_close(run(encoder, prompts, bf16, missing), expected, **BF16[bf16])


def test_nothing_of_kept_prompts_is_projected_again():
    encoder = encoder_of("bert")
    deep = DeepPrompts(encoder.layer_dims, length=3).requires_grad_(False).eval()
    calls = []
    projection = encoder.layers[0].attention.self.key
    projection.register_forward_hook(lambda *a: calls.append(1))
    run(encoder, deep)
    before = len(calls)
    settle(deep, encoder)
    calls.clear()
    run(encoder, deep)
    assert (before, len(calls)) == (2, 1)


CHANGES = ["prompt", "encoder", "optimizer", "half", "learns", "train", "freeze", "replaced", "gone", "layer"]


@pytest.mark.parametrize("kind", CHANGES)
def test_other_weights_give_other_results(kind):
    encoder, other = encoder_of("vit"), encoder_of("vit")
    prompts = prompts_of(encoder)
    settle(prompts, encoder)
    before = run(encoder, prompts)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.25
    if kind == "prompt":
        prompts.load_state_dict({name: 1.5 * one for name, one in prompts.state_dict().items()})
        assert len(prompts.projected) == 0
    elif kind == "encoder":
        encoder.load_state_dict(other.state_dict())
    elif kind == "optimizer":
        with torch.no_grad():
            encoder.layers[1].attention.k_proj.weight.mul_(2)
            prompts.static[0].add_(1)
    elif kind == "half":
        encoder.half().float()
    elif kind == "learns":
        prompts.requires_grad_(True)
        loss = encoder(**inputs_of(encoder), prompts=prompts.bind(features())).tokens.sum()
        loss.backward()
        assert prompts.static[0].grad.abs().sum() > 0
    elif kind == "train":
        prompts.train().eval()
        assert len(prompts.projected) == 0
    elif kind == "freeze":
        encoder.freeze(torch.bfloat16)
        encoder.float()
    elif kind == "replaced":  # by another tensor in its place
        prompts.static[1] = torch.nn.Parameter(prompts.static[1].flip(1) + 1, requires_grad=False)
    elif kind == "gone":
        prompts.static = None
    elif kind == "layer":  # another module in its place
        encoder.layers[0].attention.k_proj = copy.deepcopy(other.layers[1].attention.k_proj)
    found = run(encoder, prompts)
    fresh = copy.deepcopy(prompts)
    assert len(fresh.projected) == 0
    torch.testing.assert_close(found, run(encoder, fresh), atol=2e-6, rtol=1e-5)
    if kind in ("prompt", "encoder", "optimizer", "replaced", "gone", "layer"):
        assert (found - before).abs().max() > 1e-3


def test_another_arithmetic_is_another_function():
    encoder = encoder_of("vit")
    prompts = prompts_of(encoder)
    expected = run(encoder, prompts, bf16=True)
    settle(prompts, encoder)
    assert torch.equal(run(encoder, prompts, bf16=True), expected)


def test_what_learns_is_not_kept():
    encoder = encoder_of("vit")
    prompts = prompts_of(encoder).requires_grad_(True)
    settle(prompts, encoder)
    assert len(prompts.projected) == 0
    prompts.requires_grad_(False)
    encoder.layers[0].attention.k_proj.weight.requires_grad_(True)
    settle(prompts, encoder)
    assert len(prompts.projected) == 1
    settle(prompts.train(), encoder)
    assert len(prompts.projected) == 0


def test_videos_and_mixtures_of_runs():
    frames = encoder_of("swin")
    video = VideoEncoder(frames)
    prompts = prompts_of(video)
    expected = run(video, prompts)
    settle(prompts, video)
    assert len(prompts.projected) == 4
    torch.testing.assert_close(run(video, prompts), expected, **BF16[False])

    one, two = prompts_of(frames, start="quiet"), prompts_of(frames)
    three = FusionPrompts(frames.layer_dims, {"other": 6}, length=2, parts=("static",)).requires_grad_(False)
    three.eval()
    for third in (None, three):

        def mixed(third=third):
            sources = [one.bind(features(1)), two.bind(features(1))]
            sources += [third.bind(features(1))] if third is not None else [two.bind(features(1))]
            with torch.inference_mode():
                return frames(**inputs_of(frames), prompts=MixedPrompts(sources, [1, 1, 1])).tokens

        for prompts in (one, two, three):
            prompts.projected.drop()
        expected = mixed()
        settle(one, frames)
        torch.testing.assert_close(mixed(), expected, **BF16[False])
        settle(two, frames)
        torch.testing.assert_close(mixed(), expected, **BF16[False])
        settle(three, frames)
        torch.testing.assert_close(mixed(), expected, **BF16[False])


def test_a_tuned_encoder_settles_its_own_prompts():
    tuned = TunedEncoder(encoder_of("bert"), "prompt").requires_grad_(False).eval()
    with torch.inference_mode():
        expected = tuned(inputs_of(tuned.encoder)).tokens
        tuned.settle_prompts()
        assert len(tuned.prompts.projected) == 2
        torch.testing.assert_close(tuned(inputs_of(tuned.encoder)).tokens, expected, **BF16[False])
    tuned.train()
    assert len(tuned.prompts.projected) == 0


def test_every_layer_of_a_predictor_takes_what_is_kept(weights, tables, tmp_path, monkeypatch):
    """Of two that share their encoders as well."""
    train(Config.parse(tiny_run(weights, tables, tmp_path / "run", epochs=1)), report=lambda line: None)
    both = [Predictor(tmp_path / "run", device="cpu", precision="bf16") for _ in range(2)]
    rows, given = both[0].table().select(range(2)), []
    find = KeptPrompts.find

    def watched(self, layer, x0):
        given.append(find(self, layer, x0))
        return given[-1]

    monkeypatch.setattr(KeptPrompts, "find", watched)
    for predictor in both:
        given.clear()
        predictor.predict(rows)
        assert len(given) == 4  # two layers of each encoder
        assert all(one is not None for one in given)


@pytest.mark.parametrize(("name", "insertion"), [("siglip", None), ("vit", "tokens"), ("vit", None)])
@pytest.mark.parametrize("settled", [False, True])
def test_one_video_alone(name, insertion, settled):
    video = VideoEncoder(encoder_of(name, insertion))
    deep = DeepPrompts(video.layer_dims, length=3).requires_grad_(False).eval()
    inputs = inputs_of(video)
    if settled:
        settle(deep, video)
    with torch.inference_mode():
        expected = video(**inputs, prompts=deep).pooled[:1]
        alone = video(**{key: value[:1] for key, value in inputs.items()}, prompts=deep).pooled
    torch.testing.assert_close(alone, expected, **BF16[False])
