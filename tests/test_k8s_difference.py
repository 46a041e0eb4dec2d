"""A difference is what a person would call one: fields, not text; and no secret in it."""

import pytest

from k8s.changes.difference import (
    ABSENT,
    Difference,
    compare,
    compare_objects,
    in_words,
)
from k8s.control.objects import inputs_of, with_inputs

Manifest = dict[str, object]


def differences(before: object, after: object) -> list[tuple[str, object, object]]:
    return [(one.where, one.before, one.after) for one in compare(before, after)]


def thing(kind: str = "ConfigMap", **more: object) -> Manifest:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "a"}, **more}


def test_fields_are_named_by_their_path() -> None:
    before = {"spec": {"replicas": 1, "paused": False}}
    after = {"spec": {"replicas": 2, "suspend": True}}
    assert differences(before, after) == [
        ("spec.replicas", 1, 2),
        ("spec.paused", False, ABSENT),
        ("spec.suspend", ABSENT, True),
    ]


def test_items_of_a_list_are_known_by_name_not_by_place() -> None:
    before = {"groups": [{"groupName": "a", "n": 1}, {"groupName": "b", "n": 1}]}
    after = {"groups": [{"groupName": "b", "n": 2}, {"groupName": "a", "n": 1}]}
    assert differences(before, after) == [("groups[b].n", 1, 2)]


def test_lists_without_names_are_compared_in_place_or_as_a_whole() -> None:
    assert differences({"r": [{"x": 1}, {"x": 1}]}, {"r": [{"x": 1}, {"x": 3}]}) == [
        ("r[1].x", 1, 3)
    ]
    assert differences({"args": ["a", "b"]}, {"args": ["a"]}) == [("args", ["a", "b"], ["a"])]


def test_a_number_and_its_digits_are_not_the_same() -> None:
    assert differences({"a": "1"}, {"a": 1}) == [("a", "1", 1)]
    assert differences({"a": 1.0}, {"a": 1}) == []


def test_the_serve_config_is_read_as_yaml_not_as_text() -> None:
    before = "applications:\n- {name: sm4ll, deployments: [{name: Top, max: 2}]}\n"
    same = "# words\napplications:\n  - deployments:\n    - {max: 2, name: Top}\n    name: sm4ll\n"
    more = before.replace("2}", "5}")
    assert differences({"serveConfigV2": before}, {"serveConfigV2": same}) == []
    where = "serveConfigV2.applications[sm4ll].deployments[Top].max"
    assert differences({"serveConfigV2": before}, {"serveConfigV2": more}) == [(where, 2, 5)]


def test_yaml_that_cannot_be_read_is_compared_as_text() -> None:
    (found,) = compare({"f.yaml": "a: [1\nb"}, {"f.yaml": "a: [1]\nb: 2"})
    assert found.is_text
    assert found.lines() == ["-a: [1", "-b", "+a: [1]", "+b: 2"]


def test_a_text_shows_its_changed_lines_only() -> None:
    before = "\n".join(map(str, range(20)))
    found = Difference(("data", "x"), before, before.replace("\n10\n", "\nten\n"))
    assert found.lines() == [" 9", "-10", "+ten", " 11"]


def test_what_the_server_notes_is_no_difference() -> None:
    noted = {"name": "a", "uid": "u", "resourceVersion": "7", "generation": 2, "managedFields": []}
    kubectls = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    live = thing(status={"ready": 1}) | {"metadata": {**noted, "annotations": kubectls}}
    assert compare_objects(live, thing() | {"metadata": {"name": "a", "annotations": {}}}) == []


def test_a_secrets_values_are_never_in_a_difference() -> None:
    before = thing("Secret", data={"url": "b2xk", "same": "c2FtZQ=="})
    after = thing("Secret", data={"url": "bmV3", "same": "c2FtZQ=="}, stringData={"more": "clear"})
    found = compare_objects(before, after)
    assert [one.where for one in found] == ["data.url", "stringData"]
    told = repr(found)
    assert not {word for word in ("b2xk", "bmV3", "clear", "old", "new") if word in told}
    assert "hidden:" in told


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ABSENT, "nothing"),
        ("plain", "plain"),
        ("", '""'),
        (" edge ", '" edge "'),
        (True, "true"),
        (None, "null"),
        ({"a": [1, 2]}, "{a: [1, 2]}"),
        ("x" * 200, "x" * 99 + "…"),
    ],
)
def test_values_are_said_in_one_short_line(value: object, words: str) -> None:
    assert in_words(value) == words


def job(image: str = "a") -> Manifest:
    container = {"name": "migrate", "image": image}
    reads = {"name": "seeds", "configMap": {"name": "sm4ll-family"}}
    template = {"spec": {"containers": [container], "volumes": [reads]}}
    return thing("Job", spec={"template": template})


def test_a_job_is_another_when_it_or_what_it_reads_has_changed() -> None:
    family = thing(data={"tenants.yaml": "1"}) | {"metadata": {"name": "sm4ll-family"}}
    other = thing(data={"x": "1"}) | {"metadata": {"name": "dashboards"}}

    def inputs(*manifests: Manifest) -> str:
        return inputs_of(next(one for one in with_inputs(manifests) if one["kind"] == "Job"))

    first = inputs(job(), family, other)
    assert first == inputs(other, family, job())
    assert first == inputs(job(), family, other | {"data": {"x": "2"}})
    assert first != inputs(job("b"), family, other)
    assert first != inputs(job(), family | {"data": {"tenants.yaml": "2"}}, other)
