"""Every error survives a Ray handle and has a stable code."""

import pickle

import pytest

from serve import errors
from serve.errors import CapacityError, InvalidRequest, Sm4llError


def subclasses(kind: type[Sm4llError]) -> list[type[Sm4llError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in subclasses(child))]


@pytest.mark.parametrize("kind", subclasses(Sm4llError))
def test_error_pickles_with_all_its_fields(kind: type[Sm4llError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", remedy="how", retry_after_s=2.5)))
    assert type(error) is kind
    assert (error.detail, error.remedy, error.retry_after_s) == ("what", "how", 2.5)


def test_blamed_fields_survive_pickling() -> None:
    error = InvalidRequest("seed: too large", fields=(("seed", "too large"),))
    assert pickle.loads(pickle.dumps(error)).fields == (("seed", "too large"),)


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in subclasses(Sm4llError)]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", subclasses(Sm4llError))
def test_error_is_documented_in_the_tree(kind: type[Sm4llError]) -> None:
    assert kind.__doc__
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", subclasses(CapacityError))
def test_capacity_errors_always_say_when_to_retry(kind: type[CapacityError]) -> None:
    assert kind("full").retry_after_s is not None
