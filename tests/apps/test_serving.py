"""The explorer's server: for this machine alone, silent, and closed to pages of other sites."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the explorer needs the [app] extra")

import server

NAME = "shard.example.org"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of an explorer that is told the name by which a proxy is reached, as docs/explorer.md says."""
    folder = tmp_path_factory.mktemp("served")
    os.environ["STREAMLIT_BROWSER_SERVER_ADDRESS"] = NAME
    try:
        with server.explorer(folder, log=folder / "server.log") as address:
            yield int(address.rpartition(":")[2])
    finally:
        del os.environ["STREAMLIT_BROWSER_SERVER_ADDRESS"]


def answer(port: int, origin: str) -> str:
    """The status of the answer to a page of `origin` that opens the explorer's websocket."""
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {NAME}\r\nOrigin: {origin}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with socket.create_connection(("localhost", port), timeout=60) as connection:
        connection.sendall(request.encode())
        return connection.recv(4096).decode(errors="replace").split("\r\n")[0]


def test_a_proxy_reaches_it_under_its_name_and_a_page_of_another_site_does_not(port: int) -> None:
    assert "101" in answer(port, f"https://{NAME}")
    assert "101" in answer(port, f"http://localhost:{port}")
    assert "403" in answer(port, "https://evil.example")


def test_only_this_machine_can_open_it(port: int) -> None:
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    if not listening:
        pytest.skip("this system does not list its sockets")
    this_machine = re.compile(r"0100007F:|0{24}01000000:")
    assert [where for where in listening if not this_machine.match(where)] == []


def test_its_settings_send_nothing_and_let_no_other_site_in() -> None:
    """Read from beside the page however it is started, so `make demo` and `shardscope explore` need no flags."""
    settings = tomllib.loads((server.ROOT / "apps" / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["browser"]["gatherUsageStats"] is False
    assert settings["server"]["address"] == "localhost"
    assert settings["server"]["enableXsrfProtection"] is settings["server"]["enableCORS"] is True
    commands = (server.ROOT / "Makefile").read_text() + (server.ROOT / "shardscope/cli/explore_command.py").read_text()
    assert not re.search(r"(?i)usagestats\W+true|server\.address|(xsrf\w*|cors)\W+false", commands)
