"""A fusion of somebody else's, in one file, registered by one call."""

import pytest
from test_methods import batch_of

from mope.errors import UserError
from mope.fusion import FUSIONS, Fusion
from mope.methods import METHODS, load_plugin, register_method
from mope.model import FusionModel

PLUGIN = '''
import torch
from torch import nn
import mope
from mope.fusion import Fusion, FusionOutput
from mope.fusion.base import tune

class Product(Fusion):
    """Features multiplied, elementwise."""

    def __init__(self, encoders, main, power):
        super().__init__()
        self.main, self.power = main, power
        self.encoders = nn.ModuleDict(encoders)

    @classmethod
    def build(cls, config, encoders):
        return cls(tune(config, encoders), config.fusion.main, config.fusion.options["power"])

    def forward(self, batch):
        features = torch.stack([self.feature(name, batch) for name in self.encoders]).prod(0) ** self.power
        return FusionOutput(features, features.unsqueeze(1))

mope.register_method("Product", Product, {"fusion.options": {"power": 3}}, trained="head")
'''


def test_a_plugin_registers_a_method_in_one_call(config, tmp_path):
    file = tmp_path / "my_fusion.py"
    file.write_text(PLUGIN)
    try:
        load_plugin(file)
        model = FusionModel.build(METHODS["Product"].apply(config), ["a", "b"])
        assert isinstance(model.fusion, Fusion)
        assert model.fusion.power == 3
        assert model(**batch_of()).logits.shape == (6, 2)
        with pytest.raises(UserError, match="There is a method 'Product' already"):
            load_plugin(file)
    finally:
        METHODS.pop("Product")
        FUSIONS.pop("Product")
    for text, reason in (
        ("x = 1", "registers no method"),
        ("1 / 0", "can't be run: ZeroDivisionError"),
        ("import mope; mope.register_method('Mine', 'nothing')", "There is no fusion 'nothing'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=reason):
            load_plugin(file)
    with pytest.raises(UserError, match="There is no plugin"):
        load_plugin(tmp_path / "none.py")
    assert register_method is not None
