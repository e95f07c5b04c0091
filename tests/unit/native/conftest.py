import pytest
from native_levels import LEVELS


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    """Each instruction set that the processor has."""
    monkeypatch.setenv("QINCO_NATIVE_LEVEL", request.param)
    return request.param
