"""The port is taken before anything is loaded, and every way to fail is explained."""

from __future__ import annotations

import os
import socket

import pytest

from tunesmith.errors import BusyError, ConfigError
from tunesmith.serve.listening import listen


def test_a_free_port_is_chosen_and_named():
    listener = listen("127.0.0.1", 0)
    with listener.socket as opened:
        assert listener.base_url == f"http://127.0.0.1:{opened.getsockname()[1]}/v1"
    assert listener.warnings == ()
    assert {"localhost", "127.0.0.1"} <= listener.hosts


def test_a_busy_port_is_named_with_the_fix():
    with listen("127.0.0.1", 0).socket as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=str(port)) as caught:
            listen("127.0.0.1", port)
        assert "serve.port" in caught.value.fix


def test_localhost_is_loopback():
    listener = listen("localhost", 0)
    listener.socket.close()
    assert "localhost" in listener.hosts


def test_a_network_address_warns_and_is_reachable_from_here():
    listener = listen("0.0.0.0", 0)
    with listener.socket as opened:
        assert "unencrypted" in listener.warnings[0]
        assert listener.hosts is None
        with socket.create_connection(("127.0.0.1", opened.getsockname()[1]), timeout=5):
            assert listener.base_url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["", " ", "no such host", "203.0.113.7", "bad\0host", "x" * 300])
def test_an_address_that_is_not_this_machine_is_refused(host):
    with pytest.raises(ConfigError, match=r"serve\.host|cannot listen"):
        listen(host, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every port")
def test_a_port_that_needs_rights_is_explained():
    from tunesmith.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem, match="1024"):
        listen("127.0.0.1", 80)


def test_ipv6_loopback_has_brackets_in_its_address():
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    listener = listen("::1", 0)
    listener.socket.close()
    assert listener.base_url.startswith("http://[::1]:")
    assert "::1" in listener.hosts
