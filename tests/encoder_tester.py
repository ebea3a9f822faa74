"""What holds for every family; a family's test names its tiny model and its inputs."""

import copy
import math

import pytest
import torch

from mope.encoders import TransformerEncoder, TunedEncoder, kernels
from mope.encoders.families import follow
from mope.prompts import PromptFunction

LENGTH = 3


class EncoderTester:
    """Subclass with `model()` and `inputs(batch)`; the model is random, two layers, width 32."""

    prefix_insertion = True
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

    @property
    def insertions(self) -> list[str]:
        both = {"prefix": self.prefix_insertion, "tokens": self.tokens_insertion}
        return [insertion for insertion, works in both.items() if works]

    def encoder(self, bare, insertion=None) -> TransformerEncoder:
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

        return PromptFunction(source)

    def test_without_prompts_it_is_the_bare_model(self, bare):
        inputs = self.inputs(2)
        for insertion in self.insertions:
            encoder = self.encoder(bare, insertion)
            inner = bare.get_submodule(encoder.family.inner) if encoder.family.inner else bare
            expected = inner(**inputs, **encoder.family.call).last_hidden_state
            assert torch.equal(encoder(**inputs).tokens, expected)
            nothing = PromptFunction(lambda layer, x0: None)
            assert torch.equal(encoder(**inputs, prompts=nothing).tokens, expected)
            assert torch.equal(encoder(**inputs).tokens, expected)

    def test_prefix_equals_tokens(self, bare):
        if len(self.insertions) < 2:
            assert self.insertions == [self.encoder(bare).insertion]
            return
        inputs = self.inputs(3)
        results = []
        for insertion in self.insertions:
            encoder = self.encoder(bare, insertion)
            results.append(encoder(**inputs, prompts=self.source(encoder, 3)))
        torch.testing.assert_close(results[0].tokens, results[1].tokens, atol=3e-6, rtol=1e-5)
        torch.testing.assert_close(results[0].pooled, results[1].pooled, atol=3e-6, rtol=1e-5)

    def test_prompts_matter_and_every_layer_is_asked_once(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(2)
        prompted = encoder(**inputs, prompts=self.source(encoder, 2))
        plain = encoder(**inputs)
        assert self.asked == list(range(len(encoder.layer_dims)))
        assert prompted.tokens.shape == plain.tokens.shape
        assert prompted.pooled.shape == (2, encoder.pooled_dim)
        assert (prompted.tokens - plain.tokens).abs().max() > 1e-3

    def test_a_hidden_prompt_is_no_prompt(self, bare):
        for insertion in self.insertions:
            encoder, inputs = self.encoder(bare, insertion), self.inputs(2)
            prompts = self.source(encoder, 2)
            first = PromptFunction(lambda layer, x0, prompts=prompts: prompts(layer, x0)[:, :1])
            all_ = prompts
            hidden = torch.tensor([[False, True, True], [False, False, False]])
            none = PromptFunction(prompts, torch.zeros(2, 3).masked_fill(hidden, float("-inf")))
            found = encoder(**inputs, prompts=none).tokens
            for row, source in enumerate((first, all_)):
                expected = encoder(**inputs, prompts=source).tokens[row]
                torch.testing.assert_close(found[row], expected, atol=3e-6, rtol=1e-5)

    def test_a_row_does_not_depend_on_its_batch(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(3)
        together = encoder(**inputs, prompts=self.source(encoder, 3))
        for row in range(3):
            one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
            alone = encoder(**one, prompts=self.source(encoder, 3, slice(row, row + 1)))
            torch.testing.assert_close(together.tokens[row : row + 1], alone.tokens, atol=3e-6, rtol=1e-5)
            torch.testing.assert_close(together.pooled[row : row + 1], alone.pooled, atol=3e-6, rtol=1e-5)

    def test_gradients_reach_the_prompts_of_every_layer_alike(self, bare):
        gradients = []
        for insertion in self.insertions:
            encoder = self.encoder(bare, insertion)
            prompts = self.parameters(encoder)
            self.loss(encoder, prompts).backward()
            assert all(p.grad.abs().sum() > 0 for p in prompts)
            gradients.append([p.grad for p in prompts])
        for one, other in zip(gradients[0], gradients[-1], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)

    def parameters(self, encoder):
        generator = torch.Generator().manual_seed(1)
        shapes = [(2, LENGTH, dim) for dim in encoder.layer_dims]
        return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]

    def loss(self, encoder, prompts):
        source = PromptFunction(lambda layer, x0: prompts[layer])
        return encoder(**self.inputs(2), prompts=source).tokens.square().mean()

    def test_training_and_inference_kernels_agree(self, bare):
        encoder = self.encoder(bare)
        prompts = self.parameters(encoder)
        with torch.inference_mode():
            fast = self.loss(encoder, prompts)
        torch.testing.assert_close(self.loss(encoder, prompts), fast, atol=1e-5, rtol=1e-5)
        with torch.inference_mode():
            assert torch.equal(self.loss(encoder, prompts), fast)

    def test_gradients_in_bf16_are_as_good_as_the_fused_kernel_s(self, bare, monkeypatch):
        """In bf16 training has a kernel of its own."""
        encoder = self.encoder(bare).requires_grad_(False)

        def gradient(bf16: bool) -> torch.Tensor:
            prompts = self.parameters(encoder)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = self.loss(encoder, prompts)
            loss.backward()
            return torch.cat([p.grad.flatten() for p in prompts])

        exact, plain = gradient(bf16=False), gradient(bf16=True)
        monkeypatch.setattr(kernels, "use_plain", lambda *tensors: False)
        fused = gradient(bf16=True)
        similarity = [torch.nn.functional.cosine_similarity(exact, g, dim=0) for g in (plain, fused)]
        assert similarity[0] > similarity[1] - 0.01

    def test_bf16_autocast_stays_close(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(2)
        exact, plain = encoder(**inputs, prompts=self.source(encoder, 2)).tokens, encoder(**inputs).tokens
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                rough = encoder(**inputs, prompts=self.source(encoder, 2)).tokens
                bare_rough = encoder(**inputs).tokens
            # Convolutions over waves are rough by themselves; prompts must not make a model much rougher.
            allowed = 0.05 * exact.abs().max() + 2 * (plain - bare_rough.float()).abs().max()
            assert (exact - rough.float()).abs().max() < allowed

    def test_gradient_checkpointing_changes_nothing(self, bare):
        encoder = self.encoder(bare)
        prompts = self.parameters(encoder)
        self.loss(encoder, prompts).backward()
        expected = [p.grad.clone() for p in prompts]
        for p in prompts:
            p.grad = None
        encoder.gradient_checkpointing()
        recomputed = []
        layer = next(follow(encoder.backbone, encoder.family.layers))
        projection = layer.get_submodule(f"{encoder.family.attention}.{encoder.family.key}")
        handle = projection.register_forward_hook(lambda *a: recomputed.append(1))
        loss = self.loss(encoder, prompts)
        in_forward = len(recomputed)
        loss.backward()
        handle.remove()
        for p, gradient in zip(prompts, expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, atol=1e-6, rtol=1e-4)
        # Dropout stays off although the layers are told to train.
        assert len(recomputed) == 2 * in_forward > 0
        assert not any(m.training for m in encoder.modules() if isinstance(m, torch.nn.Dropout))

    def test_a_copy_and_a_state_dict_are_the_same_encoder(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(2)
        expected = encoder(**inputs, prompts=self.source(encoder, 2)).tokens
        copied = copy.deepcopy(encoder)
        other = TransformerEncoder(self.model()).eval()
        other.load_state_dict(encoder.state_dict())
        for parameter in encoder.parameters():
            parameter.data.zero_()
        for again in (copied, other):
            assert torch.equal(again(**inputs, prompts=self.source(again, 2)).tokens, expected)

    def test_a_bias_is_added_to_the_logits_of_prompts(self, bare):
        """Twice the weight of a prompt is the prompt twice; for one bias, or one per row."""
        for insertion in self.insertions:
            encoder, inputs = self.encoder(bare, insertion), self.inputs(2)
            prompts = self.source(encoder, 2)
            twice = PromptFunction(lambda layer, x0, p=prompts: torch.cat([p(layer, x0)] * 2, dim=1))
            expected = encoder(**inputs, prompts=twice).tokens
            for rows in (1, 2):
                louder = PromptFunction(prompts, torch.full((rows, LENGTH), math.log(2)))
                found = encoder(**inputs, prompts=louder).tokens
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    def test_what_is_frozen_is_the_same_function_and_follows_its_weights(self, bare):
        """Nothing is kept beside frozen weights: not even an edit behind autograd's back goes unseen."""
        encoder, inputs = self.encoder(bare).requires_grad_(False), self.inputs(2)

        def tokens(encoder):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                return encoder(**inputs, prompts=self.source(encoder, 2)).tokens

        expected = tokens(encoder)
        encoder.freeze(torch.bfloat16)
        assert torch.equal(tokens(encoder), expected)
        assert torch.equal(tokens(encoder), expected)
        edits = {
            "data": lambda parameter: parameter.data.mul_(1.5),
            "load_state_dict": lambda parameter: None,
            "an optimizer's step": lambda parameter: parameter.detach().mul_(1.5),
        }
        for edit in edits.values():
            for parameter in encoder.parameters():
                edit(parameter)
            state = {name: 1.25 * tensor for name, tensor in encoder.state_dict().items()}
            encoder.load_state_dict(state)
            fresh = copy.deepcopy(encoder)
            found = tokens(encoder)
            assert torch.equal(found, tokens(fresh))
            assert not torch.equal(found, expected)
            expected = found

    def test_all_that_learns_is_used(self, bare):
        """Several processes wait for the gradient of every parameter that requires one."""
        for maps in (False, True):
            tuned = TunedEncoder(self.encoder(bare), "full").train()
            if maps and len(tuned.encoder.map_dims) != 4:
                return
            if maps:
                tuned.give_maps()
            output = tuned(self.inputs(2), maps=maps)
            found = output.stages if maps else [output.pooled]
            sum(one.square().sum() for one in found).backward()
            learns = {name for name, p in tuned.named_parameters() if p.requires_grad}
            assert learns == {name for name, p in tuned.named_parameters() if p.grad is not None}
            assert any(tuned.encoder.family.key in name for name in learns)

    def test_layers_one_at_a_time_are_the_forward_pass(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(2)
        if not encoder.family.tokens:
            return
        expected = encoder(**inputs)
        encoder.make_steppable()
        for _ in range(2):
            stack = encoder.stack(**inputs)
            for _ in range(stack.depth):
                stack.advance()
            found = stack.finish()
            assert torch.equal(found.tokens, expected.tokens)
            assert torch.equal(found.pooled, expected.pooled)
        assert torch.equal(encoder(**inputs).tokens, expected.tokens)


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
        torch.testing.assert_close(padded.tokens[:, :7][real], short.tokens[real], atol=3e-6, rtol=1e-5)
        torch.testing.assert_close(padded.pooled, short.pooled, atol=3e-6, rtol=1e-5)


class ImageTester(EncoderTester):
    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(2))}

    def test_other_sizes_work_and_leave_no_trace(self, bare):
        encoder, inputs = self.encoder(bare), self.inputs(2)
        expected = encoder(**inputs, prompts=self.source(encoder, 2)).tokens
        for height, width in ((48, 40), (40, 64)):
            pixels = torch.randn(2, 3, height, width)
            output = encoder(pixel_values=pixels, prompts=self.source(encoder, 2))
            alone = encoder(pixel_values=pixels[1:], prompts=self.source(encoder, 2, slice(1, 2)))
            torch.testing.assert_close(output.tokens[1:], alone.tokens, atol=3e-6, rtol=1e-5)
        assert torch.equal(encoder(**inputs, prompts=self.source(encoder, 2)).tokens, expected)
