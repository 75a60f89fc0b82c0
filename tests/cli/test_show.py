"""What ``minerva status`` says of the join proxy, and on a device that is not enrolled yet."""

from __future__ import annotations

from typing import Any

from minerva.cli.show import _join_proxy, _pledge_text


def test_the_join_proxy() -> None:
    registrar = {"address": "fd00::1", "port": 8443, "variation": "", "state": "usable", "problem": None}
    proxy: dict[str, Any] = {
        "enabled": True,
        "registrars": [
            registrar | {"in_use": True},
            registrar | {"port": 9443, "variation": "a\x1b[31m", "in_use": False, "problem": "no answer"},
            registrar | {"port": 7443, "in_use": False, "state": "not tried yet"},
        ],
        "offers": {"eth0": [{"tcp_port": 4443, "variation": ""}], "eth1": []},
        "connections": {"eth0": 2, "eth1": 0},
    }
    text = "\n".join(_join_proxy(proxy))
    assert "\x1b" not in text
    assert "[fd00::1]:8443" in text
    assert [word in text for word in ("EST-TLS", "in use", "no answer", "not tried yet", "4443")] == [
        True
    ] * 5
    assert "eth1" not in text


def test_why_there_is_none() -> None:
    assert "switched off" in _join_proxy({"enabled": False})[0]
    assert "does not answer" in _join_proxy({"enabled": True})[0]
    nothing = {"enabled": True, "registrars": [], "offers": {}, "connections": {}}
    assert "no registrar announces itself" in "\n".join(_join_proxy(nothing))


def test_a_device_on_its_way_in() -> None:
    step = {"port": "eth0", "proxy": "fe80::1", "step": "failed", "detail": "no voucher"}
    proxy = {"port": "eth0", "address": "fe80::1", "heard_by": ["grasp", "mdns"], "retry_in": 24.7}
    steps = [step, step | {"proxy": "fe80::2", "step": "voucher_requested", "detail": None}]
    found = {"ports": [], "pledge": {"serial_number": "SN-1", "steps": steps, "proxies": [proxy]}}
    first, second = _pledge_text(found).splitlines()[-2:]
    assert first.split(maxsplit=5)[2:] == ["grasp,", "mdns", "failed", "no voucher; trying again in 25 s"]
    assert "voucher requested" in second
