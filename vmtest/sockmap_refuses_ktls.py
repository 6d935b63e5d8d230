# SPDX-License-Identifier: Apache-2.0
"""The kernel keeps kTLS and sockmap apart: a socket is one or the other. The choice of
engine by pair of sockets rests on that; this tells when it changes."""
import ctypes
import errno
import os
import socket
import struct
import sys

SYS_BPF = 321  # x86-64
MAP_CREATE, MAP_UPDATE = 0, 2
SOCKMAP = 15
SOL_TCP, TCP_ULP, SOL_TLS, TLS_TX, TLS_RX = 6, 31, 282, 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def bpf(cmd, attr):
    buf = ctypes.create_string_buffer(attr.ljust(128, b"\0"), 128)
    r = libc.syscall(SYS_BPF, cmd, buf, 128)
    return r if r >= 0 else -ctypes.get_errno()


def insert(sockmap, fd):
    key = ctypes.c_uint32(0)
    value = ctypes.c_uint64(fd)
    return bpf(MAP_UPDATE, struct.pack("<IIQQQ", sockmap, 0, ctypes.addressof(key), ctypes.addressof(value), 0))


def setsockopt(sock, level, name, value):
    try:
        sock.setsockopt(level, name, value)
        return 0
    except OSError as e:
        return -e.errno


def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def keys():
    """tls12_crypto_info_aes_gcm_128, TLS 1.3; any key will do."""
    return struct.pack("<HH", 0x0304, 51) + os.urandom(8 + 16 + 4) + bytes(8)


def new_map():
    fd = bpf(MAP_CREATE, struct.pack("<IIIII", SOCKMAP, 4, 8, 1, 0))
    if fd < 0:
        sys.exit(f"no sockmap: {os.strerror(-fd)}")
    return fd


def check(what, got):
    print(f"{'ok' if got == -errno.EINVAL else 'not ok'} {what}: {os.strerror(-got) if got else 'accepted'}")


a, b = pair()
assert setsockopt(a, SOL_TCP, TCP_ULP, b"tls") == 0, "the kernel has no TLS"
assert setsockopt(a, SOL_TLS, TLS_TX, keys()) == 0 and setsockopt(a, SOL_TLS, TLS_RX, keys()) == 0
check("a kTLS socket is refused by a sockmap", insert(new_map(), a.fileno()))

for name, direction in (("TX", TLS_TX), ("RX", TLS_RX)):
    c, d = pair()
    m = new_map()
    assert insert(m, c.fileno()) == 0, "a plain socket must be accepted"
    ulp = setsockopt(c, SOL_TCP, TCP_ULP, b"tls")
    check(f"a socket in a sockmap is refused by kTLS {name}", ulp or setsockopt(c, SOL_TLS, direction, keys()))
