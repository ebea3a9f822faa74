"""Encoders nobody can look into, their features on disk, CNN14, and videos."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import transformers as hf
from run_tester import enlarge
from torch import nn
from torch.nn import functional

from mope.config import Config
from mope.data.feed import numbered
from mope.encoders import BlackBoxEncoder, TransformerEncoder, TunedEncoder, VideoEncoder, load_encoder
from mope.encoders.cnn14 import Cnn14Config, Cnn14Model
from mope.encoders.features import fingerprint, row_keys
from mope.errors import UserError
from mope.fusion import Sequential
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.prompts import FusionPrompts, PromptFunction

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def vit() -> TransformerEncoder:
    config = hf.ViTConfig(**VIT, image_size=32, patch_size=8)
    return TransformerEncoder(hf.ViTModel(config, add_pooling_layer=False)).eval()


class Counting(nn.Module):
    """A convolution, averaged; counts the rows it has seen."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3)
        self.seen = SimpleNamespace(rows=0)  # no setting of the module

    def forward(self, pixel_values):
        self.seen.rows += len(pixel_values)
        return {"feature": self.convolution(pixel_values).mean((2, 3), keepdim=True)}


def counting(**options) -> BlackBoxEncoder:
    return BlackBoxEncoder(Counting(), dim=5, output="feature", **options)


@pytest.mark.parametrize(
    ("module", "output", "argument"),
    [
        (lambda pixel_values: pixel_values.mean((2, 3)), None, None),
        (lambda x: x.mean((2, 3)), None, "pixel_values"),
        (lambda pixel_values: (0, pixel_values.mean((2, 3), keepdim=True)), 1, None),
        (lambda pixel_values: {"feature": pixel_values.mean((2, 3))}, "feature", None),
        (lambda pixel_values: {"x": pixel_values}, lambda r: r["x"].mean((2, 3)), None),
    ],
)
def test_any_function_to_a_feature(module, output, argument):
    encoder = BlackBoxEncoder(module, dim=3, output=output, argument=argument)
    pixels = torch.randn(2, 3, 8, 8)
    result = encoder(pixel_values=pixels)
    torch.testing.assert_close(result.pooled, pixels.mean((2, 3)))
    assert result.tokens.shape == (2, 1, 3)


def test_what_a_black_box_says_when_it_cannot():
    pixels = torch.randn(2, 3, 8, 8)
    with pytest.raises(UserError, match=r"gives \(2, 3\) where \(2, 4\) is expected"):
        BlackBoxEncoder(lambda pixel_values: pixel_values.mean((2, 3)), dim=4)(pixel_values=pixels)
    with pytest.raises(UserError, match="a dict, has no 'nothing'"):
        BlackBoxEncoder(lambda pixel_values: {}, dim=4, output="nothing")(pixel_values=pixels)
    with pytest.raises(UserError, match="has no input 'x'"):
        BlackBoxEncoder(len, dim=4, argument="x")(pixel_values=pixels)
    with pytest.raises(UserError, match="takes no prompts"):
        counting()(pixel_values=pixels, prompts=PromptFunction(lambda layer, x0: None))
    with pytest.raises(UserError, match="can't be tuned by 'prompt'"):
        TunedEncoder(counting(), "prompt")


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_a_projection_is_trained_and_the_rest_as_the_tuning_says(tuning):
    tuned = TunedEncoder(counting(projection=7), tuning).train()
    assert tuned.pooled_dim == 7
    tuned({"pixel_values": torch.randn(2, 3, 8, 8)}).pooled.sum().backward()
    trained = {name for name, p in tuned.named_parameters() if p.grad is not None}
    projection = {"encoder.projection.weight", "encoder.projection.bias"}
    inner = {"encoder.module.convolution.weight", "encoder.module.convolution.bias"}
    assert trained == (projection | inner if tuning == "full" else projection)
    assert tuned.encoder.module.training == (tuning == "full")


def test_a_black_box_guides_a_transformer():
    main, guide = TunedEncoder(vit(), "frozen"), TunedEncoder(counting(), "frozen")
    prompts = FusionPrompts(main.encoder.layer_dims, {"other": 5}, length=2, experts=3)
    fusion = Sequential({"image": main, "other": guide}, "image", prompts).eval()
    batch = {"image": {"pixel_values": torch.randn(3, 3, 32, 32)}}
    one, other = ({**batch, "other": {"pixel_values": torch.randn(3, 3, 8, 8)}} for _ in range(2))
    assert (fusion(one).features - fusion(other).features).abs().max() > 1e-5


def test_features_are_computed_once(tmp_path):
    tuned = TunedEncoder(counting(projection=4), "frozen")
    pixels = _pixels()
    expected = {name: tuned({"pixel_values": x}).pooled for name, x in pixels.items()}
    seen = tuned.encoder.module.seen.rows
    tuned.keep_features(tmp_path)
    for _ in range(2):
        for name, x in pixels.items():
            torch.testing.assert_close(tuned.feature({"pixel_values": x}), expected[name])
    assert tuned.encoder.module.seen.rows == seen + 5  # "b" has two of the rows of "a"
    assert (tuned.cache.hits, tuned.cache.misses) == (9, 5)
    tuned.feature({"pixel_values": pixels["a"]}).sum().backward()
    assert tuned.encoder.projection.weight.grad is not None

    again = TunedEncoder(counting(projection=4), "frozen")
    again.load_state_dict(tuned.state_dict())
    again.encoder.projection.weight.data.zero_()  # trained, so no part of what features are known by
    again.keep_features(tmp_path)
    again.feature({"pixel_values": pixels["a"]})
    assert again.encoder.module.seen.rows == 0
    with torch.autocast("cpu", torch.bfloat16):
        again.feature({"pixel_values": pixels["a"]})
    assert again.encoder.module.seen.rows == 4  # other arithmetic, other features
    again.encoder.module.convolution.weight.data += 1
    other = TunedEncoder(again.encoder, "frozen")
    other.keep_features(tmp_path)
    other.feature({"pixel_values": pixels["a"]})
    assert again.encoder.module.seen.rows == 8  # other weights, other features


def _pixels() -> dict[str, torch.Tensor]:
    first = torch.randn(4, 3, 8, 8)
    return {"a": first, "b": torch.cat([first[1:3], torch.randn(1, 3, 8, 8)])}


def test_only_what_nothing_trained_bears_on_is_kept(tmp_path):
    for tuned in (
        TunedEncoder(vit(), "prompt"),
        TunedEncoder(vit(), "full"),
        TunedEncoder(BlackBoxEncoder(len, dim=3), "frozen"),
    ):
        tuned.keep_features(tmp_path)
        assert tuned.cache is None


def test_padding_is_no_part_of_a_row_s_key():
    ids, mask = torch.tensor([[4, 5, 6], [7, 8, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    keys = row_keys({"input_ids": ids, "attention_mask": mask})
    short = row_keys({"input_ids": ids[1:, :2], "attention_mask": mask[1:, :2]})
    longer = row_keys({"input_ids": functional.pad(ids, (0, 2), value=9), "attention_mask": mask_of(mask)})
    assert keys[1:] == short
    assert keys == longer
    assert keys[0] != row_keys({"input_ids": ids + 1, "attention_mask": mask})[0]


def mask_of(mask):
    return functional.pad(mask, (0, 2))


def text_passes(monkeypatch) -> list[bool]:
    """Whether each pass of an encoder from now on is over texts."""
    calls, original = [], TransformerEncoder.forward

    def forward(self, *args, **kwargs):
        calls.append("input_ids" in kwargs)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TransformerEncoder, "forward", forward)
    return calls


def test_training_keeps_features_and_reads_them_again(config: Config, tmp_path, monkeypatch):
    from mope.training import train

    enlarge(config, tmp_path)
    monkeypatch.setenv("MOPE_CACHE", str(tmp_path / "cache"))
    config.inputs["text"].encoder.tuning = "frozen"
    config.training.head_start = "random"  # a probe would make more of roundings
    first = train(config, report=lambda line: None)
    files = list((tmp_path / "cache" / "features").glob("*.sqlite"))
    assert len(files) == 1
    calls = text_passes(monkeypatch)
    config.output = str(tmp_path / "again")
    second = train(config, report=lambda line: None)
    assert not any(calls)
    assert first["validation"] == second["validation"]
    config.output, config.data.cache_features = str(tmp_path / "without"), False
    third = train(config, report=lambda line: None)
    assert any(calls)
    assert third["validation"]["loss"] == pytest.approx(first["validation"]["loss"], abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluations_keep_features_and_predictions_none(config: Config, precision, tmp_path, monkeypatch):
    from mope.bulk.evaluate import evaluate
    from mope.training import train

    monkeypatch.setenv("MOPE_CACHE", str(tmp_path / "cache"))
    config.inputs["text"].encoder.tuning, config.training.precision = "frozen", precision
    train(config, report=lambda line: None)
    kept, own = tmp_path / "cache" / "features", tmp_path / "own"
    (file,) = kept.glob("*.sqlite")
    shutil.move(kept, own)
    predictor, rows = Predictor(config.output, batch_size=8), str(config.data.test)
    predictor.predict(rows)
    assert not kept.exists()
    first = evaluate(config.output, rows, workers=0)
    assert list(kept.glob("*.sqlite")) == [file]  # where training keeps them, too
    texts = text_passes(monkeypatch)
    assert evaluate(config.output, rows, workers=0) == first
    assert texts
    assert not any(texts)
    predictor.workers, stream = 0, predictor.stream(rows)
    list(predictor.measure(stream, numbered(stream), False))
    assert not any(texts)
    predictor.predict(rows)
    assert any(texts)  # no longer, once measuring has ended
    monkeypatch.setenv("MOPE_CACHE", "/proc/nowhere")
    assert evaluate(config.output, rows, workers=0)["accuracy"] == first["accuracy"]


class TestCnn14:
    CHANNELS = (4, 6, 8, 10, 12, 14)

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """A small checkpoint with the published one's names."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.rand(*shape, generator=generator)

        state = {
            "spectrogram_extractor.stft.conv_real.weight": random(513, 1, 1024),
            "spectrogram_extractor.stft.conv_imag.weight": random(513, 1, 1024),
            "logmel_extractor.melW": random(513, 64) / 100,
        }
        norms = {"bn0": 64}
        for place, (inputs, outputs) in enumerate(
            zip((1, *self.CHANNELS), self.CHANNELS, strict=False), start=1
        ):
            name = f"conv_block{place}"
            state[f"{name}.conv1.weight"] = random(outputs, inputs, 3, 3) - 0.5
            state[f"{name}.conv2.weight"] = random(outputs, outputs, 3, 3) - 0.5
            norms |= {f"{name}.bn1": outputs, f"{name}.bn2": outputs}
        for name, width in norms.items():
            for part in ("weight", "bias", "running_mean", "running_var"):
                state[f"{name}.{part}"] = random(width) + 0.5
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        state["fc1.weight"], state["fc1.bias"] = random(9, 14) - 0.5, random(9)
        state["fc_audioset.weight"], state["fc_audioset.bias"] = random(527, 9), random(527)
        return state

    def reference(self, state: dict[str, torch.Tensor], wave: torch.Tensor) -> torch.Tensor:
        """The published forward pass, frame by frame and with a Fourier transform written out."""
        samples = numpy.pad(wave.double().numpy(), 512, mode="reflect")
        window = 0.5 - 0.5 * numpy.cos(2 * math.pi * numpy.arange(1024) / 1024)
        angles = 2 * math.pi * numpy.outer(numpy.arange(513), numpy.arange(1024)) / 1024
        frames = []
        for start in range(0, len(samples) - 1023, 320):
            frame = samples[start : start + 1024] * window
            frames.append((numpy.cos(angles) @ frame) ** 2 + (numpy.sin(angles) @ frame) ** 2)
        mel = numpy.stack(frames) @ state["logmel_extractor.melW"].double().numpy()
        x = torch.from_numpy(10 * numpy.log10(numpy.maximum(mel, 1e-10))).float()[None, None]

        def norm(x, name, axis):
            shape = [1] * x.ndim
            shape[axis] = -1
            mean, var, gain, bias = (
                state[f"{name}.{part}"].view(shape)
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            return (x - mean) / (var + 1e-5).sqrt() * gain + bias

        x = norm(x, "bn0", 3)
        for block in range(1, 7):
            for half in (1, 2):
                kernel = state[f"conv_block{block}.conv{half}.weight"]
                x = norm(functional.conv2d(x, kernel, padding=1), f"conv_block{block}.bn{half}", 1).relu()
            if block < 6:
                x = functional.avg_pool2d(x, 2)
        x = x.mean(dim=3)
        x = x.max(dim=2).values + x.mean(dim=2)
        return functional.linear(x, state["fc1.weight"], state["fc1.bias"]).relu()[0]

    def test_a_published_checkpoint_gives_the_published_embedding(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MOPE_CACHE", str(tmp_path / "cache"))
        state = self.checkpoint()
        torch.save({"model": state, "iteration": 600000}, tmp_path / "Cnn14_mAP=0.431.pth")
        encoder = load_encoder(str(tmp_path / "Cnn14_mAP=0.431.pth"), kind="audio", projection=3).eval()
        waves = torch.rand(3, 20000, generator=torch.Generator().manual_seed(1)) - 0.5
        mask = torch.ones(3, 20000)
        mask[1, 12345:] = 0
        lengths = [20000, 12345, 20000]
        features = encoder.feature(input_values=waves * mask, attention_mask=mask)
        for wave, length, feature in zip(waves, lengths, features, strict=True):
            expected = self.reference(state, wave[:length])
            torch.testing.assert_close(feature, expected, atol=2e-3 * float(expected.max()), rtol=1e-3)
        alone = encoder.feature(input_values=waves[1:2, :12345])
        torch.testing.assert_close(features[1:2], alone, atol=1e-5, rtol=1e-4)
        assert encoder(input_values=waves, attention_mask=mask).pooled.shape == (3, 3)
        assert encoder(input_values=waves[:, :100]).pooled.isfinite().all()  # shorter than one pooled frame

    def test_other_files_are_refused(self, tmp_path):
        state = self.checkpoint()
        state.pop("conv_block2.bn1.weight")
        torch.save({"model": state}, tmp_path / "lacking.pth")
        torch.save({"weights": 1}, tmp_path / "other.pth")
        (tmp_path / "none.pth").write_text("no checkpoint")
        with pytest.raises(UserError, match=r"'conv_block2.bn1.weight' is missing"):
            load_encoder(str(tmp_path / "lacking.pth"))
        for name in ("other", "none"):
            with pytest.raises(UserError, match="isn't a checkpoint this library reads"):
                load_encoder(str(tmp_path / f"{name}.pth"))
        with pytest.raises(UserError, match="There are no weights"):
            load_encoder(str(tmp_path / "nowhere.pth"))

    def test_a_folder_of_it_is_one_like_any_other(self, tmp_path):
        model = Cnn14Model(Cnn14Config(channels=[4, 8], embedding_size=6)).eval()
        model.save_pretrained(tmp_path)
        waves = torch.randn(2, 4000)
        expected = model(waves).pooler_output
        torch.testing.assert_close(load_encoder(str(tmp_path)).eval()(input_values=waves).pooled, expected)


class TestVideo:
    def test_it_is_the_mean_over_frames(self):
        frames = vit()
        video, pixels = VideoEncoder(frames).eval(), torch.randn(2, 8, 3, 32, 32)
        output = video(pixel_values=pixels)
        for row in range(2):
            expected = torch.stack([frames(pixel_values=pixels[row, t : t + 1]).pooled for t in range(8)])
            torch.testing.assert_close(output.pooled[row], expected.mean(dim=0)[0], atol=1e-5, rtol=1e-4)
        assert output.tokens.shape == (2, 8 * 17, 32)

    def test_prompts_belong_to_the_video(self):
        video, pixels = VideoEncoder(vit()).eval(), torch.randn(2, 8, 3, 32, 32)
        asked = []

        def source(layer, x0):
            asked.append(tuple(x0.shape))
            return x0.unsqueeze(1) + torch.ones(1, 3, 1)

        source = PromptFunction(source)
        together = video(pixel_values=pixels, prompts=source)
        assert asked == [(2, 32)] * 2
        alone = video(pixel_values=pixels[1:], prompts=source)
        torch.testing.assert_close(together.pooled[1:], alone.pooled, atol=1e-5, rtol=1e-4)
        assert (together.pooled - video(pixel_values=pixels).pooled).abs().max() > 1e-4
        tuned = TunedEncoder(video, "prompt")
        tuned({"pixel_values": pixels}).pooled.sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in tuned.prompts.parameters())

    def test_what_is_no_video_is_refused(self):
        with pytest.raises(UserError, match="Videos are"):
            VideoEncoder(vit())(pixel_values=torch.randn(2, 3, 32, 32))
        with pytest.raises(UserError, match="an encoder of audios can't do it"):
            VideoEncoder(counting(kind="audio"))


def test_efficientnet_from_its_package():
    encoder = load_encoder("package:efficientnet-lite0").eval()
    assert (encoder.pooled_dim, encoder.layer_dims) == (1280, [])
    pixels = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        together, alone = encoder(pixel_values=pixels).pooled, encoder(pixel_values=pixels[1:]).pooled
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-3)
    assert fingerprint(encoder) == fingerprint(load_encoder("package:efficientnet-lite0"))


def test_a_config_may_name_a_black_box(config: Config):
    config.inputs["text"].encoder.projection = 5
    with pytest.raises(UserError, match="A projection is for black-box encoders"):
        FusionModel.build(config, ["a", "b"])
    config.inputs["text"].encoder.projection = None
    config.inputs["image"].encoder.weights = "package:efficientnet-lite0"
    with pytest.raises(UserError, match="'image' takes no prompts"):
        FusionModel.build(config, ["a", "b"])
    config.fusion.main = "text"
    config.inputs["text"].encoder.tuning = "frozen"
    config.inputs["image"].encoder.projection = 5
    model = FusionModel.build(config, ["a", "b"])
    counts = model.count_parameters()["image encoder"]
    assert counts == {"trainable": 1280 * 5 + 5, "frozen": 3_371_008}
    assert Path(config.output).name == "run"
