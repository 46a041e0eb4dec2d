"""What stands below a field is its description in every JSON schema, and nowhere before that."""

from pydantic import Field, TypeAdapter

from serve.described import Described


class Cap(Described):
    """Worn."""

    size_cm: int
    """Around the head;
    without hair."""
    colour: str
    price_usd: float = Field(0.0, description="For one.")
    """Without tax."""
    with_peak: bool = True
    """Most have one."""


class Beret(Cap):
    """Without a peak, mostly."""

    with_peak: bool = False
    """Few have one."""
    kept_with: Cap | None = None
    """Another one."""


def test_string_below_a_field_describes_it() -> None:
    told = Cap.model_json_schema()["properties"]
    assert told["size_cm"]["description"] == "Around the head;\nwithout hair."
    assert "description" not in told["colour"]


def test_what_stands_nearest_describes_an_inherited_field() -> None:
    told = TypeAdapter(list[Beret]).json_schema()["$defs"]["Beret"]["properties"]
    assert told["with_peak"]["description"] == "Few have one."
    assert told["size_cm"]["description"].startswith("Around the head")
    assert told["kept_with"]["description"] == "Another one."


def test_description_in_a_field_stays() -> None:
    told = Cap.model_json_schema()["properties"]
    assert told["price_usd"]["description"] == "For one."


def test_nothing_is_read_before_somebody_asks() -> None:
    assert Beret.model_fields["with_peak"].description is None


def test_model_without_a_source_has_no_descriptions() -> None:
    space: dict[str, type[Described]] = {}
    text = "class Ghost(Described):\n    seen: int\n    '''Never.'''\n"
    exec(text, {"Described": Described, "__name__": "nowhere"}, space)
    assert "description" not in space["Ghost"].model_json_schema()["properties"]["seen"]
