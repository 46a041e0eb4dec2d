"""The door to a control plane: what passes is waited out, what does not is named; real HTTP."""

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.control.api import ControlPlane
from k8s.control.connection import Connection
from k8s.control.watching import Event, Watch
from serve.errors import ConfigError, ControlPlaneRefused, ControlPlaneUnreachable, FieldConflict
from serve.settings import Settings
from tests.kube_server import Fault, KubeServer, open_kube


@pytest.fixture
def kube() -> Iterator[KubeServer]:
    with open_kube(namespaces=("default", "sm4ll")) as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def api(kube: KubeServer, tmp_path: Path, pauses: list[float]) -> ControlPlane:
    settings = Settings(SM4LL_KUBECONFIG=str(kube.kubeconfig(tmp_path)))
    plane = ControlPlane.configured(settings)
    plane.sleep = pauses.append
    return plane


def config_map(name: str = "words", **data: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_what_is_applied_is_read_again(api: ControlPlane) -> None:
    applied = api.apply(config_map(a="1"), "sm4ll")
    assert applied["metadata"]["managedFields"][0]["manager"] == "sm4ll"
    found = api.get("v1", "ConfigMap", "words", "sm4ll")
    assert found is not None
    assert found["data"] == {"a": "1"}
    assert api.get("v1", "ConfigMap", "none", "sm4ll") is None


def test_a_dry_run_answers_as_if_and_changes_nothing(api: ControlPlane) -> None:
    assert api.apply(config_map(a="1"), "sm4ll", dry_run=True)["data"] == {"a": "1"}
    assert api.get("v1", "ConfigMap", "words", "sm4ll") is None


def test_a_field_that_is_no_longer_applied_goes_and_another_managers_stays(
    api: ControlPlane, kube: KubeServer
) -> None:
    api.apply(config_map(a="1", b="2"), "sm4ll")
    kube.put(config_map(a="1", b="2", c="3"), "sm4ll")
    assert api.apply(config_map(a="1"), "sm4ll")["data"] == {"a": "1", "c": "3"}


def test_a_conflict_names_manager_field_and_way_out(api: ControlPlane, kube: KubeServer) -> None:
    api.apply(config_map(a="1"), "sm4ll")
    kube.put(config_map(a="theirs"), "sm4ll")
    with pytest.raises(FieldConflict) as caught:
        api.apply(config_map(a="ours"), "sm4ll")
    assert caught.value.causes == ((".data.a", 'conflict with "kubectl"'),)
    assert "--force-conflicts" in caught.value.remedy
    assert api.apply(config_map(a="ours"), "sm4ll", force=True)["data"] == {"a": "ours"}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(
    api: ControlPlane, kube: KubeServer, pauses: list[float], status: int
) -> None:
    kube.fail("PATCH", "configmaps/words", Fault(status), Fault(status))
    assert api.apply(config_map(a="1"), "sm4ll")["data"] == {"a": "1"}
    assert pauses == [0.25, 0.5]


def test_retry_after_is_kept_to(api: ControlPlane, kube: KubeServer, pauses: list[float]) -> None:
    kube.fail("GET", "/version", Fault(429, headers=(("Retry-After", "7"),)))
    assert api.version() == "v1.36.2"
    assert pauses == [7.0]


def test_patience_ends_with_the_status_and_its_words(
    api: ControlPlane, kube: KubeServer, pauses: list[float]
) -> None:
    kube.fail("GET", "/version", *itertools.repeat(Fault(503, "etcd is away"), 6))
    with pytest.raises(ControlPlaneRefused, match="etcd is away") as caught:
        api.version()
    assert caught.value.http_status == 503
    assert len(pauses) == 5


def test_a_cut_connection_is_opened_again(api: ControlPlane, kube: KubeServer) -> None:
    kube.fail("GET", "/version", Fault(is_cut=True), Fault(is_cut=True))
    assert api.version() == "v1.36.2"


def test_nobody_there_says_where_and_what_helps(tmp_path: Path) -> None:
    with open_kube() as kube:
        settings = Settings(SM4LL_KUBECONFIG=str(kube.kubeconfig(tmp_path)))
        api = ControlPlane.configured(settings)
        api.sleep = lambda seconds: None
    with pytest.raises(ControlPlaneUnreachable, match=kube.url) as caught:
        api.version()
    assert "--context" in caught.value.remedy


def test_an_expired_token_is_read_again_from_its_file(
    api: ControlPlane, kube: KubeServer, tmp_path: Path
) -> None:
    api.version()
    kube.token = "second"
    (tmp_path / "token").write_text("second")
    assert api.version() == "v1.36.2"
    assert [asked.token for asked in kube.asked] == ["first", "first", "second"]


def test_a_token_that_stays_refused_says_to_sign_in(api: ControlPlane, kube: KubeServer) -> None:
    kube.token = "other"
    with pytest.raises(ControlPlaneRefused) as caught:
        api.version()
    assert caught.value.http_status == 401
    assert "sign in" in caught.value.remedy
    assert len(kube.asked) == 2


def test_a_409_is_for_the_caller(api: ControlPlane, kube: KubeServer, pauses: list[float]) -> None:
    made = api.create(config_map(a="1"), "sm4ll")
    with pytest.raises(ControlPlaneRefused) as caught:
        api.create(config_map(a="2"), "sm4ll")
    assert (caught.value.reason, pauses) == ("AlreadyExists", [])
    api.replace({**made, "data": {"a": "3"}}, "sm4ll")
    with pytest.raises(ControlPlaneRefused, match="has been modified"):
        api.replace({**made, "data": {"a": "4"}}, "sm4ll")


def test_a_kind_that_is_not_installed_says_what_brings_it(tmp_path: Path) -> None:
    with open_kube(missing=("ray.io",)) as kube:
        api = ControlPlane.configured(Settings(SM4LL_KUBECONFIG=str(kube.kubeconfig(tmp_path))))
        assert api.served_versions("ray.io") == ()
        with pytest.raises(ControlPlaneRefused) as caught:
            api.get("ray.io/v1", "RayService", "sm4ll", "sm4ll")
    assert "KubeRay" in caught.value.remedy


def test_rights_and_versions_are_the_clusters_own_word(api: ControlPlane, kube: KubeServer) -> None:
    kube.forbidden.add(("create", "jobs"))
    assert not api.may("create", "batch", "jobs", "sm4ll")
    assert api.may("get", "batch", "jobs", "sm4ll")
    assert api.served_versions("ray.io") == ("v1",)


def test_lists_are_read_page_by_page(
    api: ControlPlane, kube: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k8s.control.api.PAGE", 2)
    for name in "abcde":
        api.apply(config_map(name), "sm4ll")
    found = api.list("v1", "ConfigMap", "sm4ll").items
    assert [one["metadata"]["name"] for one in found] == list("abcde")
    assert {one["kind"] for one in found} == {"ConfigMap"}


def test_logs_are_the_last_lines(api: ControlPlane, kube: KubeServer) -> None:
    kube.logs["migrate-1"] = "one\ntwo\nthree\n"
    assert api.logs("migrate-1", "sm4ll", tail_lines=2) == "two\nthree\n"
    assert list(api.follow_logs("migrate-1", "sm4ll")) == ["one", "two", "three"]


def test_only_the_object_that_was_meant_is_deleted(api: ControlPlane) -> None:
    api.apply(config_map(a="1"), "sm4ll")
    with pytest.raises(ControlPlaneRefused, match="UID"):
        api.delete("v1", "ConfigMap", "words", "sm4ll", uid="another")
    assert api.delete("v1", "ConfigMap", "words", "sm4ll")
    assert not api.delete("v1", "ConfigMap", "words", "sm4ll")


def test_a_kubeconfig_or_context_that_is_not_there_is_named(
    kube: KubeServer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="none: there is no kubeconfig file"):
        ControlPlane.configured(Settings(SM4LL_KUBECONFIG=str(tmp_path / "none")))
    settings = Settings(SM4LL_KUBECONFIG=str(kube.kubeconfig(tmp_path)))
    with pytest.raises(ConfigError, match="no context other; it has test"):
        ControlPlane.configured(settings, "other")


def test_our_own_variable_goes_before_kubectls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SM4LL_KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBECONFIG", "/kubectls")
    assert Settings().kubeconfig == "/kubectls"
    monkeypatch.setenv("SM4LL_KUBECONFIG", "/ours")
    assert Settings().kubeconfig == "/ours"


# Watches


def told(event: Event) -> tuple[str, str]:
    return event.kind, event.object["metadata"]["name"] if event.object else ""


def test_a_watch_tells_what_is_there_and_then_what_changes(
    api: ControlPlane, kube: KubeServer
) -> None:
    kube.put(config_map("a"))
    events = Watch(api, "v1", "ConfigMap", "sm4ll").events()
    assert told(next(events)) == ("ADDED", "a")
    kube.put(config_map("b"))
    kube.put(config_map("a", changed="1"))
    kube.remove("ConfigMap", "b")
    found = [told(next(events)) for _ in range(3)]
    assert found == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


def test_a_dropped_watch_goes_on_where_it_broke_off(api: ControlPlane, kube: KubeServer) -> None:
    kube.put(config_map("a"))
    watch = Watch(api, "v1", "ConfigMap", "sm4ll")
    events = watch.events()
    next(events)
    kube.put(config_map("b"))
    assert told(next(events)) == ("ADDED", "b")
    kube.drop_watches()
    kube.put(config_map("c"))
    assert told(next(events)) == ("ADDED", "c")
    lists = [one for one in kube.asked if "limit" in one.query]
    assert (watch.num_breaks, len(lists)) == (1, 1)


def test_what_happened_while_the_server_forgot_is_told_as_changes(
    api: ControlPlane, kube: KubeServer
) -> None:
    for name in ("goes", "stays"):
        kube.put(config_map(name))
    events = Watch(api, "v1", "ConfigMap", "sm4ll").events()
    assert [told(next(events)) for _ in range(2)] == [("ADDED", "goes"), ("ADDED", "stays")]
    kube.remove("ConfigMap", "goes")
    kube.put(config_map("comes"))
    kube.put(config_map("stays", changed="1"))
    kube.forget_history()
    found = {told(next(events)) for _ in range(3)}
    assert found == {("ADDED", "comes"), ("MODIFIED", "stays"), ("DELETED", "goes")}


def test_a_watch_of_one_selection_hears_of_nothing_else(
    api: ControlPlane, kube: KubeServer
) -> None:
    events = Watch(api, "v1", "ConfigMap", "sm4ll", fields="metadata.name=b", stream_s=1).events()
    assert told(next(events)) == ("IDLE", "")
    kube.put(config_map("a"))
    kube.put(config_map("b"))
    assert told(next(events)) == ("ADDED", "b")


def test_a_server_that_says_nothing_is_given_up_before_the_other_tries(
    tmp_path: Path, pauses: list[float], kube: KubeServer
) -> None:
    """Six times a minute without a word would be a command that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # takes connections, answers none
        host, port = listening.getsockname()
        path = kube.kubeconfig(tmp_path)
        silent = path.read_text().replace(kube.url, f"http://{host}:{port}")
        path.write_text(silent)
        connection = Connection.configured(Settings(SM4LL_KUBECONFIG=str(path)))
        connection.sleep = pauses.append
        with pytest.raises(ControlPlaneUnreachable, match="timed out"):
            connection.open("GET", "/version", read_s=0.05)
    assert len(pauses) == 1
