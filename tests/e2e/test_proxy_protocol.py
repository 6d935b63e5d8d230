# SPDX-License-Identifier: Apache-2.0
"""The PROXY header of a balancer in front: who the client is, or nothing at all. What is not one is never taken for a request."""
import json

import pytest

from lib.client import Client, Ended, request_bytes

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command, family, data=b"", length=None, version=2):
    return SIGNATURE + bytes([version << 4 | command, family]) + (len(data) if length is None else length).to_bytes(2, "big") + data


PORTS = (1111).to_bytes(2, "big") + (80).to_bytes(2, "big")
V4 = bytes([192, 0, 2, 7, 192, 0, 2, 1]) + PORTS
V6 = bytes.fromhex("20010db8" + "0" * 23 + "7") + bytes.fromhex("20010db8" + "0" * 23 + "1") + PORTS

GOOD = {  # header: the client it names
    "v1_tcp4": (b"PROXY TCP4 192.0.2.7 192.0.2.1 1111 80\r\n", "192.0.2.7"),
    "v1_tcp6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 1111 80\r\n", "2001:db8::7"),
    "v1_unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "v1_unknown_with_more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "127.0.0.1"),
    "v2_tcp4": (v2(1, 0x11, V4), "192.0.2.7"),
    "v2_tcp6": (v2(1, 0x21, V6), "2001:db8::7"),
    "v2_with_tlv": (v2(1, 0x11, V4 + b"\x04\0\x01x"), "192.0.2.7"),
    "v2_local": (v2(0, 0), "127.0.0.1"),
    "v2_unix": (v2(1, 0x31, b"\0" * 216), "127.0.0.1"),
}

BAD = {
    "none": b"",
    "v1_bare_lf": b"PROXY TCP4 192.0.2.7 192.0.2.1 1111 80\n",
    "v1_lower_case": b"proxy TCP4 192.0.2.7 192.0.2.1 1111 80\r\n",
    "v1_address": b"PROXY TCP4 192.0.2.999 192.0.2.1 1111 80\r\n",
    "v1_mixed_families": b"PROXY TCP4 2001:db8::7 192.0.2.1 1111 80\r\n",
    "v1_port": b"PROXY TCP4 192.0.2.7 192.0.2.1 1111 80000\r\n",
    "v1_more": b"PROXY TCP4 192.0.2.7 192.0.2.1 1111 80 9\r\n",
    "v1_two_spaces": b"PROXY  TCP4 192.0.2.7 192.0.2.1 1111 80\r\n",
    "v1_long": b"PROXY UNKNOWN " + b"a" * 200 + b"\r\n",
    "v1_twice": b"PROXY TCP4 192.0.2.7 192.0.2.1 1111 80\r\n" * 2,
    "v2_short": v2(1, 0x11, V4[:4]),
    "v2_version": v2(1, 0x11, V4, version=1),
    "v2_command": v2(2, 0x11, V4),
    "v2_family": v2(1, 0x41, V4),
    "v2_endless": v2(1, 0x11, V4, length=65535),
}


@pytest.fixture(scope="module")
def proxy(module_sluice, origin):
    return module_sluice([origin.address], listener={"proxy_protocol": True})


def send(c, raw, pieces):
    if pieces == "whole":
        c.try_send(raw)
        return
    for i in range(len(raw)):
        if not c.try_send(raw[i:i + 1]):
            break


@pytest.mark.parametrize("pieces", ["whole", "bytewise"])
@pytest.mark.parametrize("name", GOOD)
def test_the_client_is_whom_the_header_names(proxy, name, pieces):
    header, client = GOOD[name]
    with proxy.client() as c:
        send(c, header + request_bytes(path="/headers"), pieces)
        r = c.read_response()
        fields = {n.lower(): v for n, v in json.loads(r.body)["fields"]}
        assert (r.status, fields["x-forwarded-for"]) == (200, client)
        assert c.get("/bytes/7").length == 7, "the header comes once for a connection"


@pytest.mark.parametrize("pieces", ["whole", "bytewise"])
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_header_ends_the_connection(proxy, name, pieces):
    with proxy.client() as c:
        send(c, BAD[name] + request_bytes(path="/headers"), pieces)
        try:
            assert c.read_response().status == 400, "behind a good header, a bad request"
        except Ended as e:
            assert e.got == b""


def test_a_header_that_does_not_come_is_not_waited_for_for_ever(sluice, origin):
    d = sluice([origin.address], listener={"proxy_protocol": True, "timeouts": {"head": "300ms"}})
    with Client(d.address) as c:
        c.send(b"PROXY TCP4 ")
        assert c.ended() in ("fin", "rst")
