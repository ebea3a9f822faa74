"""The offline demo set: pictures composed of OpenMoji glyphs, and texts about them.

All glyphs are designed by OpenMoji, the open-source emoji and icon project, licence CC BY-SA 4.0; so are the
pictures made of them.
"""

from mope.scenes.build import build_scenes

__all__ = ["build_scenes"]
