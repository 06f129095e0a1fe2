"""What must not be written or shown: secrets in command lines, user names in addresses."""

import re
from collections.abc import Sequence

from gear_dist.errors import ConfigError

# Broad on purpose: hiding too much is harmless, except for known settings.
_SECRET_NAME = re.compile(
    r"secret|pass(?!es)|pwd|credential|signature|bearer|cookie|auth"
    r"|(api|access|private|account|encryption)[_-]?key|token$"
    r"|(^|[_-])(key|pat|sas)$",
    re.IGNORECASE,
)
_PLAIN_NAME = re.compile(r"-{0,2}[\w.-]+")
_USER_PART = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s]+@", re.IGNORECASE)
# The word in front of a secret in HTTP's headers; the secret may be the next word of a command.
_BEARER = re.compile(r"\b(?P<scheme>bearer)(?P<space>[\s:=]+)\S+", re.IGNORECASE)
_HIDDEN = "***"


def redact_command(command: Sequence[str], settings: frozenset[str] = frozenset()) -> list[str]:
    """The command without secrets.

    Hidden are the value of `name=value` and `name: value` and the word after `--name`, where the
    name tells of a secret, what follows the word bearer, and user and password of an address. Names
    in `settings` (`generator.token_dropout`) are known to hold none.
    """
    result: list[str] = []
    hide_next = False
    for word in command:
        shown = _HIDDEN if hide_next and not word.startswith("-") else _redact_word(word, settings)
        result.append(shown)
        is_option = word.startswith("-") and "=" not in word
        tells = is_option and word not in settings and bool(_SECRET_NAME.search(word))
        hide_next = tells or word.lower().rstrip(":").endswith("bearer")
    return result


def _redact_word(word: str, settings: frozenset[str]) -> str:
    # Neither the colon of an address nor, after base64, a trailing equals sign separates a name.
    name, separator, value = (*re.split(r"(=|:\s*(?!//))", word, maxsplit=1), "", "")[:3]
    if not separator or not _PLAIN_NAME.fullmatch(name):
        return redact_text(word)
    if name not in settings and _SECRET_NAME.search(name):
        return f"{name}{separator}{_HIDDEN}"
    return f"{name}{separator}{_redact_word(value, settings)}"


def redact_text(text: str) -> str:
    """`text` with the user part of every address, and what follows the word bearer, hidden."""
    text = _BEARER.sub(rf"\g<scheme>\g<space>{_HIDDEN}", text)
    return _USER_PART.sub(rf"\g<scheme>{_HIDDEN}@", text)


def refuse_user(setting: str, address: str, *, endpoint: bool = False) -> None:
    """Refuse an address with user and password: addresses are written to many places.

    Args:
        setting: where the address was given, for the message, which does not repeat it.
        address: a URL, or any text.
        endpoint: it is a server's address, which has no use for `@` at all.

    Raises:
        ConfigError: it has a user part.
    """
    if _USER_PART.search(address) or (endpoint and "@" in address):
        raise ConfigError(
            f"{setting}: the address holds a user or password, and addresses are written to logs "
            "and manifests: remove all up to the @, and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
