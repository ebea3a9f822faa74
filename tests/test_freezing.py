"""What is frozen is settled once, and never differs from the weights."""

import hashlib
from pathlib import Path

import pytest
import torch
from run_tester import tiny_run
from safetensors.torch import load_file
from transformers import SwinConfig, SwinModel

from mope.config import Config
from mope.data.dataset import collate
from mope.encoders import BlackBoxEncoder, TransformerEncoder, TunedEncoder, VideoEncoder, sources
from mope.encoders.features import fingerprint
from mope.errors import UserError
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.run import CHECKPOINTS, WEIGHTS
from mope.training import train
from mope.training.rows import prepare

SWIN = {
    "image_size": 28,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "window_size": 4,
}


@pytest.fixture(scope="module")
def swin(weights, tmp_path_factory):
    """A folder with a tiny Swin, prepared as the other image encoder is."""
    folder = tmp_path_factory.mktemp("swin")
    torch.manual_seed(0)
    model = SwinModel(SwinConfig(**SWIN), add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_bytes(
        (Path(weights["image"]) / "preprocessor_config.json").read_bytes()
    )
    return str(folder)


def loss_of_the_checkpoint(config: Config, step: int) -> float:
    """Validation loss of a checkpoint in a model just built, averaged as the trainer does."""
    model, datasets = prepare(config, None, lambda line: None)
    checkpoint = Path(config.output) / CHECKPOINTS / f"checkpoint-{step}"
    model.load_trained_state(load_file(checkpoint / WEIGHTS))
    model.eval()
    rows, size = datasets["validation"], 2 * config.training.batch_size
    losses = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(rows), size):
            places = list(range(start, min(start + size, len(rows))))
            batch = collate([rows[place] for place in places], rows.readers, model.task)
            losses += [model(**batch).loss] * len(places)
    return float(torch.stack(losses).numpy().mean())


@pytest.mark.parametrize(
    "tuning", ["frozen", "prompt", "full", "lora", "bitfit", "adaptformer", "swin", "many experts"]
)
def test_the_loss_in_a_run_is_that_of_the_checkpoint_it_writes(weights, swin, tables, tmp_path, tuning):
    """In bf16, where frozen weights are held in it: no optimizer's step goes unseen."""
    content = tiny_run(weights, tables, tmp_path / "run", precision="bf16", epochs=3, learning_rate=0.01)
    content["training"] |= {"encoder_learning_rate": 0.01, "complementary_learning_rate": 0.01, "patience": 9}
    # A kept feature was computed in another batch, whose rounding differs in the last bit.
    content["data"]["cache_features"] = False
    image, text = (content["inputs"][name]["encoder"] for name in ("image", "text"))
    if tuning == "swin":
        image["weights"], image["tuning"] = swin, "full"
    elif tuning == "many experts":
        content["fusion"] |= {"experts": 2048, "length": 2, "keys": "orthogonal"}
    else:
        text["tuning"] = tuning
        image["tuning"] = "frozen" if tuning == "prompt" else tuning
    config = Config.parse(content)
    history = train(config, report=lambda line: None)["history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in history}
    assert len(set(losses.values())) == 3
    kept = [int(path.name.rpartition("-")[2]) for path in (tmp_path / "run" / CHECKPOINTS).iterdir()]
    assert max(kept) == max(losses)
    for step in kept:
        assert loss_of_the_checkpoint(config, step) == losses[step]


def test_a_model_for_inference_is_neither_trained_nor_saved(config, tmp_path):
    model = FusionModel.build(config, ["blue", "green", "red"])
    model.save_pretrained(config.output)
    served = Predictor(config.output, device="cpu").model
    with pytest.raises(UserError, match="frozen for inference: to train it, load it anew"):
        served.train()
    with pytest.raises(UserError, match="frozen for inference, so it doesn't know what was trained"):
        served.save_pretrained(tmp_path / "other")
    assert not served.training
    loaded = FusionModel.from_pretrained(config.output).train()
    assert loaded.trained_state().keys() == model.trained_state().keys()


def test_a_swin_forgets_its_table_once_it_is_frozen():
    encoder = TransformerEncoder(SwinModel(SwinConfig(**SWIN))).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = encoder(pixel_values=pixels).tokens
    encoder.freeze()  # its table learns
    assert any("relative_position_bias_table" in name for name, _ in encoder.named_parameters())
    encoder.requires_grad_(False).freeze()
    assert not any("relative_position_bias_table" in name for name, _ in encoder.named_parameters())
    assert torch.equal(encoder(pixel_values=pixels).tokens, expected)


def test_features_are_known_by_all_that_makes_them(weights):
    """Two encoders of video that pool their frames differently give different features."""

    def encoder(pooling="cls", factor=1.0):
        from mope.encoders import load_encoder

        found = load_encoder(weights["image"], pooling=pooling)
        for parameter in found.parameters():
            parameter.data *= factor
        return found

    def known(encoder):
        return fingerprint(TunedEncoder(encoder, "frozen").encoder)

    assert known(VideoEncoder(encoder())) == known(VideoEncoder(encoder()))
    different = [
        encoder(),
        encoder("mean"),
        encoder(factor=1.5),
        VideoEncoder(encoder()),
        VideoEncoder(encoder("mean")),
        BlackBoxEncoder(encoder().backbone, dim=32, output="pooler_output"),
        BlackBoxEncoder(encoder().backbone, dim=32, output="last_hidden_state"),
    ]
    assert len({known(one) for one in different}) == len(different)


def test_a_function_s_features_are_not_kept(weights, tmp_path):
    from mope.encoders import load_encoder

    backbone = load_encoder(weights["image"]).backbone
    for output, kept in (("pooler_output", True), (lambda result: result.pooler_output, False)):
        tuned = TunedEncoder(BlackBoxEncoder(backbone, dim=32, output=output), "frozen")
        tuned.keep_features(tmp_path)
        assert (tuned.cache is not None) == kept


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: hashed.append(1) or digest(*args))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = sources._sha256(file)
    assert sources._sha256(file) == first == hashlib.sha256(b"one").hexdigest()
    assert len(hashed) == 1
    file.write_bytes(b"other")
    assert sources._sha256(file) == hashlib.sha256(b"other").hexdigest()
    assert len(hashed) == 2
