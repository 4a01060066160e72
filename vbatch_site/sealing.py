"""Encrypt secrets that must be read again, so that a copy of the database alone does not give them away."""

from base64 import urlsafe_b64encode

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


class CannotUnseal(Exception):
    """The text was sealed under another VBATCH_SECRET_KEY, or was changed."""


def _fernet(purpose: str) -> Fernet:
    key = HKDF(SHA256(), length=32, salt=None, info=purpose.encode()).derive(settings.SECRET_KEY.encode())
    return Fernet(urlsafe_b64encode(key))


def seal(text: str, purpose: str) -> str:
    """Return the text encrypted under a key of the purpose's own."""
    return _fernet(purpose).encrypt(text.encode()).decode()


def unseal(sealed: str, purpose: str) -> str:
    """Return what was sealed for the purpose, or raise CannotUnseal."""
    try:
        return _fernet(purpose).decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise CannotUnseal(f"a {purpose} was sealed under another VBATCH_SECRET_KEY") from None
