"""Every supported family, against concatenated tokens or a reference written out here."""

from itertools import product

import pytest
import torch
import transformers as hf
from encoder_tester import LENGTH, ImageTester, TextTester
from torch.nn import functional

from mope.encoders import TransformerEncoder, TunedEncoder
from mope.errors import UserError

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


class TestViT(ImageTester):
    def model(self):
        return hf.ViTModel(
            hf.ViTConfig(**SHAPE, intermediate_size=64, image_size=32, patch_size=8), add_pooling_layer=False
        )


class TestViTAtAnotherSize(TestViT):
    def inputs(self, batch):
        return {"pixel_values": torch.randn(batch, 3, 48, 40, generator=torch.Generator().manual_seed(2))}


class TestDinov2(ImageTester):
    def model(self):
        return hf.Dinov2Model(hf.Dinov2Config(**SHAPE, image_size=28, patch_size=8))


class TestBert(TextTester):
    def model(self):
        return hf.BertModel(
            hf.BertConfig(**SHAPE, intermediate_size=64, vocab_size=100), add_pooling_layer=False
        )


class TestRoberta(TextTester):
    def model(self):
        return hf.RobertaModel(
            hf.RobertaConfig(**SHAPE, intermediate_size=64, vocab_size=100), add_pooling_layer=False
        )


class TestSwin(ImageTester):
    tokens_insertion = False  # a window's tokens are an image; see the reference below

    def model(self):
        settings = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
        return hf.SwinModel(hf.SwinConfig(**settings, image_size=32, patch_size=2), add_pooling_layer=False)

    def test_each_window_attends_to_its_own_image_s_prompts(self, bare):
        """Concatenate prompts window by window, for one image at a time (section 2 of the method)."""
        encoder, inputs = self.encoder(bare), self.inputs(3)
        fast = encoder(**inputs, prompts=self.source(encoder, 3)).tokens
        for row in range(3):
            source = self.source(encoder, 3, slice(row, row + 1))
            tokens, grid = bare.embeddings(inputs["pixel_values"][row : row + 1])
            layer = 0
            for stage in bare.encoder.layers:
                for block in stage.blocks:
                    tokens = reference_block(block, tokens, grid, source(layer, tokens.mean(dim=1)))
                    layer += 1
                if stage.downsample is not None:
                    tokens, grid = stage.downsample(tokens, grid), tuple((n + 1) // 2 for n in grid)
            torch.testing.assert_close(fast[row : row + 1], bare.layernorm(tokens), atol=1e-5, rtol=1e-4)


def reference_block(block, tokens, grid, prompts):
    """A Swin block of one image whose every window has the prompts' tokens in front of its own."""
    height, width = grid
    side, shift = (block.window_size, block.shift_size) if min(grid) > block.window_size else (min(grid), 0)
    normed = block.layernorm_before(torch.cat([prompts, tokens], dim=1))
    prompts, image = normed[0, :LENGTH], normed[0, LENGTH:].view(height, width, -1)
    image = image.roll((-shift, -shift), (0, 1))
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
    mixed = mixed.roll((shift, shift), (0, 1)).reshape(1, height * width, -1)
    tokens = tokens + mixed
    return tokens + block.mlp(block.layernorm_after(tokens))


def test_an_unsupported_model_gets_a_sentence():
    model = hf.GPT2Model(hf.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10))
    with pytest.raises(UserError, match=r"'gpt2' aren't supported: add a row"):
        TransformerEncoder(model)
    with pytest.raises(UserError, match="by insertion 'prefix' only"):
        TransformerEncoder(TestSwin().model(), "tokens")


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
