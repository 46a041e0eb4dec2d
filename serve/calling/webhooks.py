"""Messages to your own servers, and the secrets that sign them."""

from serve.calling.connection import Connection, part
from serve.schemas.webhooks import (
    Delivery,
    DeliveryDetail,
    DeliveryPage,
    DeliveryStatus,
    NewSecret,
    RotationRequest,
    SecretList,
    TestMessage,
)


class Webhooks:
    """Calls on `/v1/webhooks`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def deliveries(
        self, state: DeliveryStatus | None = None, after: str | None = None, limit: int = 50
    ) -> DeliveryPage:
        """Newest first."""
        answer = self._connection.read(
            "/v1/webhooks/deliveries", state=state, after=after, limit=limit
        )
        return DeliveryPage.model_validate_json(answer)

    def delivery(self, delivery_id: str) -> DeliveryDetail:
        """With what it says."""
        answer = self._connection.read(f"/v1/webhooks/deliveries/{part(delivery_id)}")
        return DeliveryDetail.model_validate_json(answer)

    def redeliver(self, delivery_id: str) -> Delivery:
        """Send it once more, under its own id."""
        path = f"/v1/webhooks/deliveries/{part(delivery_id)}/redeliver"
        return Delivery.model_validate_json(self._connection.send("POST", path).content)

    def send_test(self, url: str) -> Delivery:
        answer = self._connection.write("POST", "/v1/webhooks/test", TestMessage(url=url))
        return Delivery.model_validate_json(answer)

    def secrets(self) -> SecretList:
        """Which secrets sign, never the secrets themselves."""
        return SecretList.model_validate_json(self._connection.read("/v1/webhooks/secrets"))

    def rotate_secret(self, rotation: RotationRequest) -> NewSecret:
        """A new secret, shown this once; the old ones sign beside it during the overlap."""
        answer = self._connection.write("POST", "/v1/webhooks/secrets/rotate", rotation)
        return NewSecret.model_validate_json(answer)
