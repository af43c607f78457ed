"""The page's server: three addresses, this machine's names only, nothing from anywhere else."""

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
def ask(tmp_path):
    start_run(tmp_path, "a", ROUNDS)
    with MonitorServer(Monitor(tmp_path), port=0) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

        def asked(path: str, method: str = "GET", host: str | None = None):
            connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
            connection.putrequest(method, path, skip_host=host is not None)
            if host is not None:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer, body

        yield asked
        server.shutdown()


def test_the_page_holds_all_that_it_needs(ask):
    answer, body = ask("/")
    page = body.decode()
    assert answer.status == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    fetched = r'<(?:script|img|iframe)[^>]* src=|<link[^>]* href="(?!data:)|@import|url\('
    assert not re.findall(fetched, page.split("<script", 1)[0])
    assert "cdn" not in page.split('id="colors"')[0] and "vegaEmbed" in page
    assert len(body) < 2_000_000


def test_state_and_curves_are_json(ask):
    said = json.loads(ask("/state.json")[1])
    assert said["is_complete"] and said["groups"][0]["runs"][0]["state"] == "finished"
    got = json.loads(ask(f"/curves.json?groups={said['groups'][0]['id']}&domain=tech")[1])
    assert {point["round"] for point in got["points"]} == set(range(ROUNDS + 1))
    assert json.loads(ask("/curves.json")[1])["points"] == []
    assert json.loads(ask("/curves.json?" + "&".join(f"a{k}=1" for k in range(9)))[1])["points"] == []


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/a/experiment.json", "//etc/passwd", "/%2e%2e/a", "/web.js", "/."])
def test_no_file_can_be_had(ask, path):
    answer, body = ask(path)
    assert answer.status in (400, 404) or body.startswith(b"<!doctype")
    assert b"root:" not in body and b"TopicMix" not in body


def test_a_name_that_is_not_this_machines_is_refused(ask):
    for host in ("evil.example", "evil.example:8770", "", "localhost.evil.example", "127.0.0.1.evil.example"):
        answer, body = ask("/state.json", host=host)
        assert answer.status == 403, host
        assert b"groups" not in body
    for host in ("localhost:9999", "127.0.0.1", "[::1]:8770"):
        assert ask("/state.json", host=host)[0].status == 200, host
    assert is_local_host("node7:8770", "node7") and not is_local_host("node8", "node7")


def test_it_can_only_be_read(ask):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer, _ = ask("/state.json", method)
        assert answer.status == 501
        assert "Access-Control-Allow-Origin" not in answer.headers
    answer, body = ask("/", "HEAD")
    assert answer.status == 200 and body == b""


def test_a_port_that_is_taken_is_told(tmp_path):
    with MonitorServer(Monitor(tmp_path), port=0) as server, pytest.raises(UserError, match="--port"):
        MonitorServer(Monitor(tmp_path), port=server.server_address[1])
