"""Test the server of the monitor's page: three addresses, local host names only, and no external resources."""

from __future__ import annotations

import json
import re
from http.client import HTTPConnection
from threading import Thread

import pytest

from fedrift.core.errors import UserError
from fedrift.report.monitor import Monitor
from fedrift.report.web import MonitorServer, is_local_host

from .stored_runs import ROUNDS, start_run


@pytest.fixture
def send_request(tmp_path):
    start_run(tmp_path, "a", ROUNDS)
    with MonitorServer(Monitor(tmp_path), port=0) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

        def send(path: str, method: str = "GET", host: str | None = None):
            connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
            connection.putrequest(method, path, skip_host=host is not None)
            if host is not None:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer, body

        yield send
        server.shutdown()


def test_the_page_needs_no_other_file(send_request):
    answer, body = send_request("/")
    page = body.decode()
    assert answer.status == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    fetched = r'<(?:script|img|iframe)[^>]* src=|<link[^>]* href="(?!data:)|@import|url\('
    assert not re.findall(fetched, page.split("<script", 1)[0])
    assert "cdn" not in page.split('id="colors"')[0] and "vegaEmbed" in page
    assert len(body) < 2_000_000


def test_state_and_curves_are_json(send_request):
    said = json.loads(send_request("/state.json")[1])
    assert said["is_complete"] and said["groups"][0]["runs"][0]["state"] == "finished"
    got = json.loads(send_request(f"/curves.json?groups={said['groups'][0]['id']}&domain=tech")[1])
    assert {point["round"] for point in got["points"]} == set(range(ROUNDS + 1))
    assert json.loads(send_request("/curves.json")[1])["points"] == []
    assert json.loads(send_request("/curves.json?" + "&".join(f"a{k}=1" for k in range(9)))[1])["points"] == []


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/a/experiment.json", "//etc/passwd", "/%2e%2e/a", "/web.js", "/."])
def test_files_are_not_served(send_request, path):
    answer, body = send_request(path)
    assert answer.status in (400, 404) or body.startswith(b"<!doctype")
    assert b"root:" not in body and b"TopicMix" not in body


def test_other_host_names_are_refused(send_request):
    for host in ("evil.example", "evil.example:8770", "", "localhost.evil.example", "127.0.0.1.evil.example"):
        answer, body = send_request("/state.json", host=host)
        assert answer.status == 403, host
        assert b"groups" not in body
    for host in ("localhost:9999", "127.0.0.1", "[::1]:8770"):
        assert send_request("/state.json", host=host)[0].status == 200, host
    assert is_local_host("node7:8770", "node7") and not is_local_host("node8", "node7")


def test_only_reading_is_allowed(send_request):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer, _ = send_request("/state.json", method)
        assert answer.status == 501
        assert "Access-Control-Allow-Origin" not in answer.headers
    answer, body = send_request("/", "HEAD")
    assert answer.status == 200 and body == b""


def test_a_port_in_use_is_refused(tmp_path):
    with MonitorServer(Monitor(tmp_path), port=0) as server, pytest.raises(UserError, match="--port"):
        MonitorServer(Monitor(tmp_path), port=server.server_address[1])
