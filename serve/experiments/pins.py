"""Which versions a tenant's collections are pinned to, remembered for at most two seconds."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from serve.config import VersionId
from serve.messages import Expert
from serve.store.engine import Database
from serve.store.experiment_tables import Pin
from serve.store.pins import find_pin

MAX_AGE_S = 2.0
MAX_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """A version as it was when it was pinned."""

    version: VersionId
    bundle_sha256: str
    """`Bundle.fingerprint`: another one paints other pictures."""


Manifest = Mapping[Expert, PinnedVersion]


def load_manifest(pin: Pin) -> Manifest:
    return {
        expert: PinnedVersion(pinned["version"], pinned["bundle_sha256"])  # type: ignore[misc]
        for expert, pinned in pin.manifest.items()
    }


def dump_manifest(manifest: Manifest) -> dict[str, dict[str, str]]:
    return {expert: asdict(pinned) for expert, pinned in manifest.items()}


class PinBook:
    """Looks pins up. Used from one event loop.

    A database that does not answer is told to whoever asks: another version than the pinned one
    would be worse than none.
    """

    def __init__(self, database: Database, now_s: Callable[[], float] = time.monotonic):
        self._database = database
        self._now_s = now_s
        self._known: OrderedDict[tuple[str, str], tuple[float, Manifest]] = OrderedDict()

    async def find(self, tenant_id: str, collection: str) -> Manifest:
        """Empty where the collection is not pinned.

        Raises:
            StoreUnavailable: it would have to be read, and the database does not answer.
        """
        key = tenant_id, collection
        asked_at_s = self._now_s()  # before the read: what changes meanwhile counts as not seen
        known = self._known.get(key)
        if known is not None and asked_at_s - known[0] < MAX_AGE_S:
            return known[1]
        async with self._database.reading() as session:
            pin = await find_pin(session, tenant_id, collection)
        manifest: Manifest = {} if pin is None else load_manifest(pin)
        self._known[key] = asked_at_s, manifest
        self._known.move_to_end(key)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return manifest

    def forget(self, tenant_id: str, collection: str) -> None:
        """It was changed here: this process need not wait until it is too old."""
        self._known.pop((tenant_id, collection), None)
