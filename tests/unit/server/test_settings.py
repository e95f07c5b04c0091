"""Settings of a server: keys, hosts and limits."""

import pytest

from qinco.errors import ConfigError
from qinco.server.settings import ServerSettings


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("QINCO_API_KEY", "QINCO_READ_ONLY_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_key_only_this_machine_may_call():
    assert ServerSettings().is_local and not ServerSettings().has_keys
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="QINCO_API_KEY"):
            ServerSettings(host=host)
        assert ServerSettings(host=host, api_key="secret").host == host
        assert ServerSettings(host=host, insecure=True).host == host


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 65536}, {"port": -1}, {"readers": 0}, {"timeout": -1}, {"max_k": 0}, {"api_key": ""},
        {"api_key": "with space"}, {"api_key": "schlüssel"}, {"read_only_api_key": "r"}, {"insecure": "yes"},
        {"api_key": "same", "read_only_api_key": "same"},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        ServerSettings(**settings)


def test_keys_come_from_a_file_or_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("all\n\nread\n")
    found = ServerSettings.from_environment(file, port=0)
    assert (found.api_key, found.read_only_api_key, found.port) == ("all", "read", 0)
    monkeypatch.setenv("QINCO_API_KEY", "other")
    found = ServerSettings.from_environment()
    assert (found.api_key, found.read_only_api_key) == ("other", None)
    assert "other" not in repr(found)
    for text in ("", "a\nb\nc\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="keys"):
            ServerSettings.from_environment(file)
    with pytest.raises(ConfigError, match="No such file"):
        ServerSettings.from_environment(tmp_path / "none")
