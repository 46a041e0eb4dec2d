"""Column types that read the same from SQLite and from PostgreSQL."""

from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

from sqlalchemy import JSON, Dialect, Enum, SmallInteger, types
from sqlalchemy.dialects.postgresql import JSONB

# A `None` is SQL's NULL, so that "has no result" is one state and not two.
Document = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def utc_now() -> datetime:
    """The wall clock of this process, with its zone."""
    return datetime.now(UTC)


class UtcTime(types.TypeDecorator[datetime]):
    """An instant; refuses one without a zone, because SQLite would forget which zone it was."""

    impl = types.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Rank(types.TypeDecorator[IntEnum]):
    """An ordered choice, kept as its number so that the database can sort by it."""

    impl = SmallInteger
    cache_ok = True

    def __init__(self, kind: type[IntEnum]):
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: IntEnum | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> IntEnum | None:
        return None if value is None else self.kind(value)


def choice(kind: type[StrEnum], name: str) -> Enum:
    """One of a few words, checked by the database; a new word needs no type migration."""

    def list_words(members: Any) -> list[str]:
        return [member.value for member in members]

    return Enum(
        kind,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=list_words,
    )
