"""timm's models that aren't ViTs; those are with the other families."""

import pytest
import torch

from mope.encoders import FAMILIES, TransformerEncoder
from mope.encoders.weights import build_backbone, empty_encoder, read_architecture, wrap
from mope.errors import UserError


@pytest.mark.parametrize("image_size", [32, 48])
def test_timm_s_swin_is_transformers_swin(image_size):
    settings = {
        "img_size": image_size,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": (2, 2, 2),
        "window_size": 4,
    }
    config = read_architecture(
        {
            "model_type": "timm_wrapper",
            "architecture": "swin_tiny_patch4_window7_224",
            "model_args": {**settings, "num_heads": (2, 4, 4)},
        }
    )
    bare = build_backbone(config).eval()
    for parameter in bare.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    encoder = wrap(bare).eval()
    assert isinstance(encoder, TransformerEncoder)
    assert encoder.family is FAMILIES["swin"]
    pixels = torch.randn(2, 3, image_size, image_size)
    expected, found = bare(pixels), encoder(pixel_values=pixels, stages=True)
    torch.testing.assert_close(found.tokens, expected.last_hidden_state.flatten(1, 2), atol=3e-6, rtol=1e-5)
    torch.testing.assert_close(found.pooled, expected.pooler_output, atol=3e-6, rtol=1e-5)
    assert [tuple(stage.shape[1:]) for stage in found.stages] == [
        (16 * 2**s, image_size // 2 ** (s + 1), image_size // 2 ** (s + 1)) for s in range(3)
    ]


def test_other_timm_models_are_black_boxes():
    config = read_architecture({"model_type": "timm_wrapper", "architecture": "test_byobnet"})
    encoder = wrap(build_backbone(config)).eval()
    assert encoder.layer_dims == []
    assert encoder(pixel_values=torch.randn(2, 3, 64, 64)).pooled.shape == (2, encoder.pooled_dim)
    with pytest.raises(UserError, match="pools as it was trained to"):
        wrap(build_backbone(config), pooling="mean")


def test_a_timm_model_is_counted_without_memory():
    for name in ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "resnet18"):
        empty = empty_encoder(None, architecture={"model_type": "timm_wrapper", "architecture": name})
        assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
        assert empty.pooled_dim == {"s": 768, "v": 192, "r": 512}[name[0]]
