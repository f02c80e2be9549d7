"""Mechanisms with a neighborhood beside their memory keep the whole contract."""

import pytest

from tests import test_contract, test_contract_forms
from tests.support.neighborhoods import CHOICES, registered

pytestmark = [pytest.mark.parametrize("name", CHOICES), pytest.mark.slow]


@pytest.fixture(autouse=True)
def in_the_registry():
    with registered():
        yield


for tests in (test_contract, test_contract_forms):  # every promise, those added later too
    globals().update({name: one for name, one in vars(tests).items() if name.startswith("test_")})
