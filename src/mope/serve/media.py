"""Media in requests: from base64 to bytes, which are looked at before anything decodes them."""

import base64
import binascii
from collections.abc import Iterable

from mope.errors import UserError
from mope.media import safety
from mope.media.cells import BadCell
from mope.serve.limits import Refusal
from mope.serve.settings import ServeSettings


def decode_base64(text: str) -> bytes:
    """Bytes from base64, plain or as a data URI; line ends don't matter.

    Raises:
        BadCell: it is neither; a path or an address isn't.
    """
    if text[:5].lower() == "data:":
        head, _, rest = text.partition(",")
        text = rest if head[-7:].lower() == ";base64" else text
    if "\n" in text or " " in text:
        text = "".join(text.split())
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        reason = "it has other characters" if isinstance(error, UnicodeEncodeError) else str(error).lower()
        raise BadCell(f"not base64 ({reason}); a file's content is wanted, not its name") from None


def check_media(kind: str, content: bytes, settings: ServeSettings) -> None:
    """Make sure that content can be decoded safely and within the limits; see `safety.check_media`.

    Raises:
        BadCell: it is of another kind, or of a format that isn't taken.
        Refusal: it is larger or longer than the limits.
    """
    try:
        safety.check_media(kind, content, settings.media)
    except safety.TooLarge as error:
        text = str(error)
        raise Refusal(413, error.what, f"{text[0].upper()}{text[1:]}.") from None


def require_packages(kinds: Iterable[str]) -> None:
    """Make sure that what reads these kinds is installed, before the first caller finds that it isn't.

    Raises:
        UserError: saying what to install.
    """
    needed = {"audio": ("soundfile", "soxr"), "video": ("av",)}
    for kind in kinds:
        for name in needed.get(kind, ()):
            try:
                __import__(name)
            except ImportError:
                raise UserError(
                    f"The run reads {kind}, which takes {name}: pip install 'mope-fusion[{kind}]'."
                ) from None
