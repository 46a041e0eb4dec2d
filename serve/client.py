"""The typed Python client of the HTTP API; the command line goes through it."""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from types import TracebackType
from typing import Self

import httpx2

from serve.calling.assets import Assets
from serve.calling.batches import Batches
from serve.calling.connection import ApiError, ApiUnreachable, Connection, part
from serve.calling.experiments import Experiments
from serve.calling.experts import Experts
from serve.calling.outcomes import Outcomes
from serve.calling.pins import Pins
from serve.calling.rollouts import Rollouts
from serve.calling.versions import Versions
from serve.calling.webhooks import Webhooks
from serve.schemas.jobs import JobCard, JobEventCard, JobOptions, JobPage, JobStatus
from serve.schemas.keys import KeyCard, KeyList, KeyMinted, KeyRotation, NewKey
from serve.schemas.models import ModelList, Readiness
from serve.schemas.receipt import Receipt
from serve.schemas.tenants import AuditVerdict, NewTenant, TenantCard, TenantChange, TenantList
from serve.schemas.tryon import TryOnAnswer, TryOnOptions, write_form
from serve.schemas.usage import UsageBy, UsageReport

__all__ = ("ApiError", "ApiUnreachable", "Client", "Picture", "TryOn", "read_events")


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished picture."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class TryOn:
    """One answered try-on."""

    pictures: tuple[Picture, ...]
    receipt: Receipt


class Client:
    """Calls one sm4ll-serve API.

    Args:
        url: for example http://127.0.0.1:8000.
        api_key: sent as a bearer token when given.
        transport: replaces the network, for tests.
    """

    def __init__(
        self, url: str, api_key: str | None = None, transport: httpx2.BaseTransport | None = None
    ):
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._connection = Connection(self.url, self.headers, transport)
        self.assets = Assets(self._connection)
        self.batches = Batches(self._connection)
        self.experiments = Experiments(self._connection)
        self.experts = Experts(self._connection)
        self.pins = Pins(self._connection)
        self.outcomes = Outcomes(self._connection)
        self.rollouts = Rollouts(self._connection)
        self.webhooks = Webhooks(self._connection)
        self.versions = Versions(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._connection.close()

    def tryon(
        self, options: TryOnOptions, person: bytes, product: bytes, mask: bytes | None = None
    ) -> TryOn:
        """Try a product on a person.

        Args:
            person, product, mask: encoded pictures.

        Raises:
            ApiError: refused or failed, with a code and a remedy.
            ApiUnreachable: nothing answers at the address.
        """
        response = self._post_tryon(options, person, product, mask, "application/json")
        answer = TryOnAnswer.model_validate_json(response.content)
        pictures = tuple(
            Picture(base64.b64decode(output.data.partition(",")[2]), output.media_type)
            for output in answer.outputs
        )
        return TryOn(pictures, answer.receipt)

    def tryon_layers(
        self, options: TryOnOptions, person: bytes, product: bytes, mask: bytes | None = None
    ) -> bytes:
        """As `tryon`, answered as a zip: final picture, product layer, region, receipt."""
        layered = options.model_copy(update={"output": "layers"})
        return self._post_tryon(layered, person, product, mask, "*/*").content

    def _post_tryon(
        self,
        options: TryOnOptions,
        person: bytes,
        product: bytes,
        mask: bytes | None,
        accept: str,
    ) -> httpx2.Response:
        files = {"person": person, "product": product, "mask": mask}
        return self._connection.send(
            "POST",
            "/v1/tryon",
            data=write_form(options),
            files={name: (name, data) for name, data in files.items() if data is not None},
            headers={"Accept": accept},
        )

    def submit_job(
        self, options: JobOptions, person: bytes, product: bytes, mask: bytes | None = None
    ) -> JobCard:
        """As `tryon`, done later; what this answers will end, whatever dies meanwhile."""
        files = {"person": person, "product": product, "mask": mask}
        response = self._connection.send(
            "POST",
            "/v1/jobs",
            data=write_form(options),
            files={name: (name, data) for name, data in files.items() if data is not None},
        )
        return JobCard.model_validate_json(response.content)

    def job(self, job_id: str) -> JobCard:
        return JobCard.model_validate_json(
            self._connection.send("GET", f"/v1/jobs/{part(job_id)}").content
        )

    def jobs(
        self, status: JobStatus | None = None, after: str | None = None, limit: int = 50
    ) -> JobPage:
        """Newest first."""
        asked = {"status": status, "after": after, "limit": limit}
        parameters = {name: value for name, value in asked.items() if value is not None}
        return JobPage.model_validate_json(
            self._connection.send("GET", "/v1/jobs", params=parameters).content
        )

    def cancel_job(self, job_id: str) -> JobCard:
        """One that runs stops at its next step; follow it to see."""
        return JobCard.model_validate_json(
            self._connection.send("DELETE", f"/v1/jobs/{part(job_id)}").content
        )

    def job_events(self, job_id: str, after: int = 0) -> Iterator[JobEventCard]:
        """What happens to a job, as it happens, up to `finished`; taken up again where a stream
        ends before.

        Raises:
            ApiError: there is no such job.
            ApiUnreachable: the stream broke and nothing answers any more.
        """
        path = f"/v1/jobs/{part(job_id)}/events"
        while True:
            try:
                with self._connection.http.stream(
                    "GET", path, headers={"Last-Event-ID": str(after)}
                ) as answer:
                    if answer.status_code != httpx2.codes.OK:
                        answer.read()
                        if answer.status_code != httpx2.codes.NO_CONTENT:
                            self._connection.refuse(answer)
                        return
                    for event in read_events(answer.iter_lines()):
                        after = event.id
                        yield event
                        if event.kind == "finished":
                            return
            except httpx2.TransportError:
                self.job(job_id)  # raises where nothing answers

    def download(self, path: str) -> bytes:
        """The bytes at a path that an answer named, such as a job's output."""
        return self._connection.send("GET", path).content

    def models(self) -> ModelList:
        """Every deployed expert version."""
        return ModelList.model_validate_json(self._connection.send("GET", "/v1/models").content)

    def usage(
        self,
        by: Sequence[UsageBy] = ("day",),
        first: date | None = None,
        last: date | None = None,
        tenant: str | None = None,
    ) -> UsageReport:
        """What was used from first to last, both included, and what is left of the month.

        Args:
            tenant: another's, for administrators.
        """
        wanted = {"by": list(by), "from": first, "to": last, "tenant": tenant}
        parameters = {
            name: str(value) if isinstance(value, date) else value
            for name, value in wanted.items()
            if value is not None
        }
        response = self._connection.send("GET", "/v1/usage", params=parameters)
        return UsageReport.model_validate_json(response.content)

    def tenants(self) -> Iterator[TenantCard]:
        """Every tenant, newest first; like all of the below for keys with the scope `admin`."""
        after: str | None = ""
        while after is not None:
            page = TenantList.model_validate_json(self._page("/v1/tenants", after))
            yield from page.items
            after = page.next

    def create_tenant(self, new: NewTenant) -> TenantCard:
        return TenantCard.model_validate_json(self._connection.write("POST", "/v1/tenants", new))

    def change_tenant(self, tenant_id: str, change: TenantChange) -> TenantCard:
        answer = self._connection.write("PATCH", f"/v1/tenants/{part(tenant_id)}", change)
        return TenantCard.model_validate_json(answer)

    def keys(self, tenant_id: str) -> Iterator[KeyCard]:
        """Every key of a tenant, newest first."""
        path = f"/v1/tenants/{part(tenant_id)}/keys"
        after: str | None = ""
        while after is not None:
            page = KeyList.model_validate_json(self._page(path, after))
            yield from page.items
            after = page.next

    def create_key(self, tenant_id: str, new: NewKey) -> KeyMinted:
        answer = self._connection.write("POST", f"/v1/tenants/{part(tenant_id)}/keys", new)
        return KeyMinted.model_validate_json(answer)

    def rotate_key(self, tenant_id: str, key_id: str, rotation: KeyRotation) -> KeyMinted:
        path = f"/v1/tenants/{part(tenant_id)}/keys/{part(key_id)}/rotate"
        return KeyMinted.model_validate_json(self._connection.write("POST", path, rotation))

    def revoke_key(self, tenant_id: str, key_id: str) -> KeyCard:
        path = f"/v1/tenants/{part(tenant_id)}/keys/{part(key_id)}"
        return KeyCard.model_validate_json(self._connection.send("DELETE", path).content)

    def verify_audit(self, head_sha256: str | None = None) -> AuditVerdict:
        """Walk the audit log; see `AuditVerdict`."""
        params = {"head": head_sha256} if head_sha256 else {}
        answer = self._connection.send("GET", "/v1/audit/verify", params=params).content
        return AuditVerdict.model_validate_json(answer)

    def _page(self, path: str, after: str) -> bytes:
        params = {"limit": "200", **({"after": after} if after else {})}
        return self._connection.send("GET", path, params=params).content

    def readiness(self) -> Readiness:
        """Whether the family can serve; never raises ApiError for not being ready."""
        try:
            response = self._connection.http.get("/readyz")
            return Readiness.model_validate_json(response.content)
        except (httpx2.TransportError, ValueError):
            return Readiness(ready=False, waiting_for=("the API",))


def read_events(lines: Iterable[str]) -> Iterator[JobEventCard]:
    """Server-sent events of a job; comments and what is no event are passed over.

    Source: html.spec.whatwg.org/multipage/server-sent-events.html
    """
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if {"id", "event", "data"} <= fields.keys():
                data = json.loads(fields["data"])
                yield JobEventCard(id=int(fields["id"]), kind=fields["event"], data=data)
            fields = {}
            continue
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
