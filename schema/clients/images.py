"""Addresses of images, as clients send them: the image itself as a data URL, or where it is."""

import re

from pydantic import ValidationInfo

from schema.message import MAX_URL_CHARS, ImageBlock, rule

# Whatever type and parameters it names: the bytes say what kind of image it is.
_DATA_URL = re.compile(r"data:[^,]*;[ ]*base64[ ]*,", re.IGNORECASE)
ADDRESS_PATTERN = (
    r"^(?:[Hh][Tt][Tt][Pp][Ss]?:|[Ff][Ii][Ll][Ee]:"
    r"|[Dd][Aa][Tt][Aa]:[^,]*;[ ]*[Bb][Aa][Ss][Ee]64[ ]*,)"
)
"""As much of `check_address` as JSON Schema can say on every server."""
# What base64 has and browsers escape in a URL. Other escapes are no base64 that anybody writes, and
# `urllib.parse.unquote` takes half a minute for as many as fit into a body.
_ESCAPES = {
    escape: character
    for character in "+/= \t\n\f\r"
    for escape in (f"%{ord(character):02X}", f"%{ord(character):02x}")
}


def check_address(url: str, info: ValidationInfo) -> str:
    """Pydantic validator of an image's address: a data URL, or one that the operator allows."""
    # What follows the comma is checked when the task is made.
    if _DATA_URL.match(url):
        return url
    scheme = url.partition(":")[0].lower()
    if scheme in ("http", "https", "file"):
        if scheme not in (info.context or ()):  # see `ClientRequest.parse`
            raise rule(
                f"{scheme}: addresses are not opened by configuration; send the image itself: "
                '"data:image/png;base64,..."'
            )
        if len(url) > MAX_URL_CHARS:
            raise rule(f"must have at most {MAX_URL_CHARS} characters, and has {len(url)}")
        return url  # where it leads is checked when it is fetched
    if scheme == "data":
        raise rule('must have ";base64," before its data: "data:image/png;base64,..."')
    raise rule('must be an image as a data URL: "data:image/png;base64,..."')


def image_block(url: str) -> dict[str, str] | ImageBlock:
    """The image at an address that `check_address` has checked, as a task has it."""
    if not _DATA_URL.match(url):
        return ImageBlock.at(url)
    data = url.partition(",")[2]
    if "%" in data:
        for escape, character in _ESCAPES.items():
            data = data.replace(escape, character)
    return {"type": "image", "base64": data}
