"""What holds for every family; a family's test names its tiny model and its inputs."""

import copy

import pytest
import torch

from mope.encoders import TransformerEncoder

LENGTH = 3


class EncoderTester:
    """Subclass with `model()` and `inputs(batch)`; the model is random, two layers, width 32."""

    tokens_insertion = True

    def model(self):
        raise NotImplementedError

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    @pytest.fixture
    def bare(self):
        torch.manual_seed(0)
        model = self.model().eval()
        for parameter in model.parameters():  # biases and gains that matter
            parameter.data += 0.02 * torch.randn_like(parameter)
        return model

    def encoder(self, bare, insertion="prefix") -> TransformerEncoder:
        return TransformerEncoder(copy.deepcopy(bare), insertion).eval()

    def source(self, encoder, batch: int, rows=slice(None)):
        """Different prompts for each row and layer, which depend on x0."""
        generator = torch.Generator().manual_seed(1)
        prompts = [torch.randn(batch, LENGTH, dim, generator=generator)[rows] for dim in encoder.layer_dims]
        self.asked = []

        def source(layer, x0):
            self.asked.append(layer)
            assert x0.shape == (len(prompts[layer]), encoder.layer_dims[layer])
            return prompts[layer] + x0.unsqueeze(1)

        return source

    def test_without_prompts_it_is_the_bare_model(self, bare):
        inputs = self.inputs(2)
        expected = bare(**inputs, **TransformerEncoder(copy.deepcopy(bare)).family.call).last_hidden_state
        for insertion in ("prefix", "tokens") if self.tokens_insertion else ("prefix",):
            encoder = self.encoder(bare, insertion)
            assert torch.equal(encoder(**inputs).tokens, expected)
            assert torch.equal(encoder(**inputs, prompts=lambda layer, x0: None).tokens, expected)

    def test_prefix_equals_tokens(self, bare):
        if not self.tokens_insertion:
            return
        inputs = self.inputs(3)
        results = []
        for insertion in ("prefix", "tokens"):
            encoder = self.encoder(bare, insertion)
            results.append(encoder(**inputs, prompts=self.source(encoder, 3)))
        torch.testing.assert_close(results[0].tokens, results[1].tokens, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(results[0].pooled, results[1].pooled, atol=2e-6, rtol=1e-5)

    def test_prompts_matter_and_every_layer_is_asked_once(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(2)
        prompted = encoder(**inputs, prompts=self.source(encoder, 2))
        plain = encoder(**inputs)
        assert self.asked == list(range(len(encoder.layer_dims)))
        assert prompted.tokens.shape == plain.tokens.shape
        assert prompted.pooled.shape == (2, encoder.pooled_dim)
        assert (prompted.tokens - plain.tokens).abs().max() > 1e-3

    def test_a_row_does_not_depend_on_its_batch(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(3)
        together = encoder(**inputs, prompts=self.source(encoder, 3))
        for row in range(3):
            one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
            alone = encoder(**one, prompts=self.source(encoder, 3, slice(row, row + 1)))
            torch.testing.assert_close(together.tokens[row : row + 1], alone.tokens, atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(together.pooled[row : row + 1], alone.pooled, atol=2e-6, rtol=1e-5)

    def test_gradients_reach_the_prompts_of_every_layer_alike(self, bare):
        gradients = []
        for insertion in ("prefix", "tokens") if self.tokens_insertion else ("prefix",):
            encoder = self.encoder(bare, insertion)
            generator = torch.Generator().manual_seed(1)
            prompts = [
                torch.nn.Parameter(torch.randn(2, LENGTH, dim, generator=generator))
                for dim in encoder.layer_dims
            ]
            encoder(
                **self.inputs(2), prompts=lambda layer, x0, p=prompts: p[layer]
            ).tokens.square().sum().backward()
            assert all(p.grad.abs().sum() > 0 for p in prompts)
            gradients.append(prompts)
        for one, other in zip(gradients[0], gradients[-1], strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)

    def test_bf16_autocast_stays_close(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(2)
        exact = encoder(**inputs, prompts=self.source(encoder, 2)).tokens
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(**inputs, prompts=self.source(encoder, 2)).tokens
        assert (exact - rough.float()).abs().max() < 0.05 * exact.abs().max()


class TextTester(EncoderTester):
    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(5, 90, (batch, 7), generator=generator)
        mask = torch.ones(batch, 7, dtype=torch.long)
        for row in range(1, batch):
            mask[row, 7 - row :] = 0
        return {"input_ids": ids, "attention_mask": mask}

    def test_padding_changes_nothing(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(3)
        short = encoder(**inputs, prompts=self.source(encoder, 3))
        longer = {
            "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 4), value=9),
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 4)),
        }
        padded = encoder(**longer, prompts=self.source(encoder, 3))
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(padded.tokens[:, :7][real], short.tokens[real], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(padded.pooled, short.pooled, atol=2e-6, rtol=1e-5)


class ImageTester(EncoderTester):
    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(2))}
