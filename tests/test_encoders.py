"""Every supported family, against concatenated tokens or a reference written out here."""

from itertools import product

import pytest
import torch
import transformers as hf
from encoder_tester import LENGTH, EncoderTester, ImageTester, TextTester
from torch.nn import functional

from mope.encoders import FAMILIES, TransformerEncoder, TunedEncoder
from mope.encoders.weights import build_backbone, read_architecture
from mope.errors import UserError
from mope.prompts import PromptFunction

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SHAPE, "intermediate_size": 64}
TEXT = {**WIDE, "vocab_size": 100}


class TestViT(ImageTester):
    def model(self):
        return hf.ViTModel(hf.ViTConfig(**WIDE, image_size=32, patch_size=8), add_pooling_layer=False)


class TestDeiT(ImageTester):
    def model(self):
        return hf.DeiTModel(hf.DeiTConfig(**WIDE, image_size=32, patch_size=8), add_pooling_layer=False)


class TestDinov2(ImageTester):
    def model(self):
        return hf.Dinov2Model(hf.Dinov2Config(**SHAPE, image_size=28, patch_size=8))


class TestDinov3(ImageTester):
    def model(self):
        return hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(**WIDE, image_size=32, patch_size=8, num_register_tokens=2)
        )


class TestBeit(ImageTester):
    def model(self):
        return hf.BeitModel(hf.BeitConfig(**WIDE, image_size=32, patch_size=8, layer_scale_init_value=1.0))


class TestBeitWithPositionBias(TestBeit):
    tokens_insertion = False  # its bias has the size of the tokens that reach the layer

    def model(self):
        settings = {"use_relative_position_bias": True, "layer_scale_init_value": 1.0}
        return hf.BeitModel(hf.BeitConfig(**WIDE, image_size=32, patch_size=8, **settings))

    def test_prompts_have_no_position_bias(self, bare):
        """A layer's attention written out: the bias covers the tokens, and is zero for prompts in front."""
        encoder = self.encoder(bare)
        layer, tokens = bare.layers[0], torch.randn(2, 17, 32)
        prompts = torch.randn(2, LENGTH, 32)
        states = layer.layernorm_before(torch.cat([prompts, tokens], dim=1))
        query, key, value = (
            projection(states).unflatten(-1, (4, 8)).transpose(1, 2)
            for projection in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)
        )
        bias = layer.relative_position_bias((4, 4), False, dim_size=17)
        logits = query @ key.transpose(2, 3) / 8**0.5 + functional.pad(bias, (LENGTH, 0, LENGTH, 0))
        mixed = (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)[:, LENGTH:]
        expected = tokens + layer.lambda_1 * layer.attention.o_proj(mixed)
        expected = expected + layer.lambda_2 * layer.mlp(layer.layernorm_after(expected))
        found = encoder.backbone.layers[0](
            tokens, None, resolution=(32, 32), mope=PromptFunction(lambda index, x0: prompts)
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


class TestClipVision(ImageTester):
    def model(self):
        return hf.CLIPVisionModel(hf.CLIPVisionConfig(**WIDE, image_size=32, patch_size=8))


class TestSiglipVision(ImageTester):
    prefix_insertion = False  # its attention keeps keyword arguments to itself

    def model(self):
        return hf.SiglipVisionModel(hf.SiglipVisionConfig(**WIDE, image_size=32, patch_size=8))


class TestBert(TextTester):
    def model(self):
        return hf.BertModel(hf.BertConfig(**TEXT), add_pooling_layer=False)


class TestRoberta(TextTester):
    def model(self):
        return hf.RobertaModel(hf.RobertaConfig(**TEXT), add_pooling_layer=False)


class TestElectra(TextTester):
    def model(self):
        return hf.ElectraModel(hf.ElectraConfig(**TEXT, embedding_size=16))


class TestDistilBert(TextTester):
    def model(self):
        return hf.DistilBertModel(
            hf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=100)
        )


class TestModernBert(TextTester):
    def model(self):
        special = {
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        }
        return hf.ModernBertModel(
            hf.ModernBertConfig(**TEXT, **special, local_attention=4, global_attn_every_n_layers=2)
        )


class TestClipText(TextTester):
    def model(self):
        return hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT, max_position_embeddings=16, eos_token_id=95))

    def inputs(self, batch):
        inputs = super().inputs(batch)
        lengths = inputs["attention_mask"].sum(dim=1)
        inputs["input_ids"][torch.arange(batch), lengths - 1] = 95
        return inputs

    def test_a_causal_model_stays_causal_without_padding(self, bare):
        """Without a mask the kernel itself is causal; prompts in front must not break that."""
        encoder = self.encoder(bare)
        ids = torch.randint(5, 90, (2, 7))
        changed = ids.clone()
        changed[:, 5:] = 7
        prompts = [torch.randn(2, LENGTH, 32) for _ in encoder.layer_dims]
        one, other = (
            encoder(input_ids=i, prompts=PromptFunction(lambda layer, x0: prompts[layer])).tokens
            for i in (ids, changed)
        )
        torch.testing.assert_close(one[:, :5], other[:, :5])
        assert (one[:, 5:] - other[:, 5:]).abs().max() > 1e-3


CONVOLUTIONS = {"conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 4)}
AUDIO = {**WIDE, **CONVOLUTIONS, "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8}


class WaveTester(EncoderTester):
    def inputs(self, batch):
        generator = torch.Generator().manual_seed(2)
        return {"input_values": torch.randn(batch, 400, generator=generator)}


NORMED = {**AUDIO, "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer", "conv_bias": True}


class LayerNormWaveTester(WaveTester):
    """Models whose convolutions look at one frame at a time, so that padding can be left out."""

    def inputs(self, batch):
        inputs = super().inputs(batch)
        mask = torch.ones(batch, 400, dtype=torch.long)
        for row in range(1, batch):
            mask[row, 400 - 60 * row :] = 0
        return {"input_values": inputs["input_values"] * mask, "attention_mask": mask}

    def test_padding_changes_nothing(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(3)
        short = encoder(**inputs, prompts=self.source(encoder, 3))
        longer = {
            "input_values": functional.pad(inputs["input_values"], (0, 80), value=0.5),
            "attention_mask": functional.pad(inputs["attention_mask"], (0, 80)),
        }
        padded = encoder(**longer, prompts=self.source(encoder, 3))
        torch.testing.assert_close(padded.pooled, short.pooled, atol=1e-5, rtol=1e-4)


class TestWav2Vec2(WaveTester):
    def model(self):
        return hf.Wav2Vec2Model(hf.Wav2Vec2Config(**AUDIO, num_conv_pos_embedding_groups=4))


class TestWav2Vec2Stable(LayerNormWaveTester):
    def model(self):
        return hf.Wav2Vec2Model(hf.Wav2Vec2Config(**NORMED, do_stable_layer_norm=True))


class TestHubert(LayerNormWaveTester):
    def model(self):
        return hf.HubertModel(hf.HubertConfig(**NORMED))


class TestWhisper(EncoderTester):
    def model(self):
        layers = {
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
        }
        size = {
            "d_model": 32,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "num_mel_bins": 8,
            "vocab_size": 100,
        }
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        return hf.WhisperModel(hf.WhisperConfig(**layers, **size, **special, max_source_positions=10))

    def inputs(self, batch):
        return {"input_features": torch.randn(batch, 8, 20, generator=torch.Generator().manual_seed(2))}


class TestAST(EncoderTester):
    def model(self):
        return hf.ASTModel(
            hf.ASTConfig(
                **WIDE, patch_size=4, max_length=16, num_mel_bins=8, frequency_stride=4, time_stride=4
            )
        )

    def inputs(self, batch):
        return {"input_values": torch.randn(batch, 16, 8, generator=torch.Generator().manual_seed(2))}


class TestSwin(ImageTester):
    tokens_insertion = False  # a window's tokens are an image; see the reference below

    def model(self):
        settings = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
        return hf.SwinModel(hf.SwinConfig(**settings, image_size=32, patch_size=2), add_pooling_layer=False)

    @pytest.mark.parametrize("size", [(32, 32), (48, 40), (36, 52)])
    def test_each_window_attends_to_its_own_image_s_prompts(self, bare, size):
        """Concatenate prompts window by window, for one image at a time (section 2 of the method)."""
        encoder = self.encoder(bare)
        pixels = torch.randn(3, 3, *size)
        with torch.inference_mode():
            fast = encoder(pixel_values=pixels, prompts=self.source(encoder, 3), stages=True)
        for row in range(3):
            source = self.source(encoder, 3, slice(row, row + 1))
            tokens, grid = bare.embeddings(pixels[row : row + 1])
            layer = 0
            for number, stage in enumerate(bare.encoder.layers):
                for block in stage.blocks:
                    tokens = reference_block(block, tokens, grid, source(layer, tokens.mean(dim=1)))
                    layer += 1
                expected = tokens.transpose(1, 2).unflatten(2, grid)
                torch.testing.assert_close(fast.stages[number][row : row + 1], expected, atol=2e-5, rtol=1e-4)
                if stage.downsample is not None:
                    tokens, grid = stage.downsample(tokens, grid), tuple((n + 1) // 2 for n in grid)
            tokens = bare.layernorm(tokens)
            torch.testing.assert_close(fast.tokens[row : row + 1], tokens, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(fast.pooled[row : row + 1], tokens.mean(dim=1), atol=2e-5, rtol=1e-4)


def reference_block(block, tokens, grid, prompts):
    """A Swin block of one image whose every window has the prompts' tokens in front of its own."""
    normed = block.layernorm_before(torch.cat([prompts, tokens], dim=1))
    prompts, image = normed[0, :LENGTH], normed[0, LENGTH:].view(*grid, -1)
    side, shift = 4, block.shift_size if min(grid) > 4 else 0
    height, width = (-(-n // side) * side for n in grid)
    image = functional.pad(image, (0, 0, 0, width - grid[1], 0, height - grid[0])).roll(
        (-shift, -shift), (0, 1)
    )
    region = torch.zeros(height, width)
    if shift:
        for number, (top, left) in enumerate(product(range(3), range(3))):
            cuts = [0, height - side, height - shift, height], [0, width - side, width - shift, width]
            region[cuts[0][top] : cuts[0][top + 1], cuts[1][left] : cuts[1][left + 1]] = number
    attention, mixed = block.attention, torch.zeros_like(image)
    heads = attention.num_attention_heads
    bias = attention.relative_position_bias()[0]
    for top in range(0, height, side):
        for left in range(0, width, side):
            area = slice(top, top + side), slice(left, left + side)
            window = torch.cat([prompts, image[area].reshape(side * side, -1)])
            query, key, value = (
                projection(window).unflatten(-1, (heads, -1)).transpose(0, 1)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            logits = query @ key.transpose(1, 2) * attention.scaling
            labels = region[area].flatten()
            mask = torch.where(labels[:, None] == labels[None, :], 0.0, -100.0)
            logits = logits + functional.pad(bias + mask, (LENGTH, 0, LENGTH, 0))
            output = (logits.softmax(dim=-1) @ value).transpose(0, 1).flatten(1)[LENGTH:]
            mixed[area] = attention.o_proj(output).view(side, side, -1)
    mixed = mixed.roll((shift, shift), (0, 1))[: grid[0], : grid[1]].reshape(1, grid[0] * grid[1], -1)
    tokens = tokens + mixed
    return tokens + block.mlp(block.layernorm_after(tokens))


@pytest.mark.parametrize("size", [24, 25, 31, 32, 48])
def test_pictures_smaller_than_a_swin_s_windows_are_refused(size):
    """Where transformers' own fails at its position bias."""
    shape = hf.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1] * 3, num_heads=[2] * 3, window_size=4
    )
    model = hf.SwinModel(shape).eval()
    pixels = torch.randn(1, 3, size, size)
    try:
        expected = model(pixels).last_hidden_state
    except RuntimeError:
        with pytest.raises(UserError, match=r"stage 3 would be 3 wide, and its windows are 4. .* 32 or more"):
            TransformerEncoder(model)(pixel_values=pixels)
        return
    assert size > 24
    torch.testing.assert_close(TransformerEncoder(model).eval()(pixel_values=pixels).tokens, expected)


def test_an_unsupported_model_gets_a_sentence():
    model = hf.GPT2Model(hf.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10))
    with pytest.raises(UserError, match=r"'gpt2' aren't supported: add a row"):
        TransformerEncoder(model)
    for tester in (TestSwin, TestBeitWithPositionBias):
        with pytest.raises(UserError, match="by insertion 'prefix' only"):
            TransformerEncoder(tester().model(), "tokens")
    with pytest.raises(UserError, match="by insertion 'tokens' only"):
        TransformerEncoder(TestSiglipVision().model(), "prefix")
    with pytest.raises(UserError, match="gives no feature maps"):
        TransformerEncoder(TestViT().model())(**TestViT().inputs(1), stages=True)


class TestTimmViT(ImageTester):
    prefix_insertion = False  # its attention isn't called through the interface

    def model(self):
        return build_backbone(timm_config("vit_tiny_patch16_224", class_token=True))


class TestTimmViTWithoutClassToken(TestTimmViT):
    def model(self):
        settings = {"class_token": False, "global_pool": "avg", "reg_tokens": 2}
        return build_backbone(timm_config("vit_tiny_patch16_224", **settings))


def timm_config(architecture, **settings):
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return read_architecture(
        {"model_type": "timm_wrapper", "architecture": architecture, "model_args": {**small, **settings}}
    )


def test_every_family_is_tested():
    tested = {
        value().model().config.model_type
        for value in globals().values()
        if isinstance(value, type) and value.__name__.startswith("Test")
    }
    assert tested == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("tester", [TestViT, TestBert, TestSwin])
def test_torch_compile(tester):
    torch._dynamo.reset()
    encoder = TransformerEncoder(tester().model()).eval().requires_grad_(False)
    prompts = [torch.randn(2, LENGTH, dim) for dim in encoder.layer_dims]
    compiled = torch.compile(encoder, backend="aot_eager")
    inputs = tester().inputs(2)
    with torch.no_grad():
        expected = encoder(**inputs, prompts=PromptFunction(lambda layer, x0: prompts[layer])).tokens
        found = compiled(**inputs, prompts=PromptFunction(lambda layer, x0: prompts[layer])).tokens
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tuning", ["frozen", "prompt", "full"])
def test_tuning_says_what_is_trained_and_what_drops_out(tuning):
    bare = hf.BertModel(hf.BertConfig(**SHAPE, vocab_size=100), add_pooling_layer=False)
    encoder = TunedEncoder(TransformerEncoder(bare), tuning, prompt_length=2, dropout=0.0).train()
    inputs = TestBert().inputs(2)
    same = torch.equal(encoder(inputs).tokens, encoder(inputs).tokens)
    assert same == (tuning != "full")  # BERT drops out 0.1 in training mode, and only then
    trained = {name.split(".")[0] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"frozen": set(), "prompt": {"prompts"}, "full": {"encoder"}}[tuning]


def test_layer_dims_follow_the_stages():
    encoder = TransformerEncoder(TestSwin().model())
    assert encoder.layer_dims == [16, 16, 32, 32]
    assert encoder.pooled_dim == 32
    assert encoder.patch_area == 4


def test_mean_pooling_leaves_padding_out():
    encoder = TransformerEncoder(TestBert().model(), pooling="mean").eval()
    inputs = TestBert().inputs(3)
    output = encoder(**inputs)
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(output.pooled[row], output.tokens[row][real].mean(dim=0))
