"""How a command reaches the API: address and key from options and settings."""

from serve.client import Client
from serve.settings import Settings, find_api_key


def connect(url: str | None = None) -> Client:
    """A client of the API at the URL, or at SM4LL_URL, with the key that is for it."""
    settings = Settings()
    address = url or settings.url
    return Client(address, find_api_key(settings, address))
