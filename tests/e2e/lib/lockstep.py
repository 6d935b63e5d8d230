# SPDX-License-Identifier: Apache-2.0
"""
Bodies in lockstep: the receiver has a piece before the sender sends the next. So whoever is between them is never behind
and never ahead, however slow the machine is, and what an engine moves of such a body does not depend on speed.
"""
import hashlib
import json
import threading

from . import pattern
from .client import Client, request_bytes

WAIT = 60


class Lockstep:
    """Serves itself as a backend: Backend(lockstep.script). A body is `pieces` times `size` bytes."""

    def __init__(self, size, pieces, seed=1):
        self.size = size
        self.pieces = pieces
        self.n = size * pieces
        self.seed = seed
        self.sha256 = pattern.sha256(self.n, seed)
        self._got = 0
        self._arrived = threading.Condition()

    def _took(self, n):
        with self._arrived:
            self._got += n
            self._arrived.notify_all()

    def _wait(self, n):
        with self._arrived:
            assert self._arrived.wait_for(lambda: self._got >= n, WAIT), f"{self._got} of {n} bytes came through"

    def _begin(self):
        with self._arrived:
            self._got = 0

    def _send(self, send, chunk=0):
        """chunk: pieces to a chunk; 0: as they are."""
        body = pattern.body(self.n, self.seed)
        for i in range(self.pieces):
            piece = body[i * self.size:(i + 1) * self.size]
            if chunk and i % chunk == 0:
                piece = b"%x\r\n" % (min(chunk, self.pieces - i) * self.size) + piece
            if chunk and (i + 1) % chunk == 0:
                piece += b"\r\n"
            send(piece)
            self._wait((i + 1) * self.size)

    def script(self, c):
        """The backend: /length, /chunked and /close are answered by a body, /upload takes one."""
        while True:
            head = c.read_head()
            if b" /upload " in head:
                self._take(c)
            elif b" /length " in head:
                c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.n)
                self._send(c.send)
            elif b" /chunked " in head:
                c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                self._send(c.send, chunk=self.pieces // 2)
                c.send(b"0\r\n\r\n")
            else:
                c.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                self._send(c.send)
                return

    def _take(self, c):
        digest = hashlib.sha256()
        left = self.n
        while left:
            if not c.buffer:
                c._more()
            piece, c.buffer = c.buffer[:left], c.buffer[left:]
            left -= len(piece)
            digest.update(piece)
            self._took(len(piece))
        answer = json.dumps({"sha256": digest.hexdigest()}).encode()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    def download(self, address, path):
        """The response, its body read in lockstep."""
        self._begin()
        with Client(address) as c:
            c.taken = self._took
            return c.get(path, keep=False)

    def upload(self, address):
        """The digest that the backend made of the body."""
        self._begin()
        with Client(address) as c:
            c.send(request_bytes("POST", "/upload", {"Content-Length": self.n}))
            self._send(c.send)
            return json.loads(c.read_response().body)["sha256"]
