# SPDX-License-Identifier: Apache-2.0
"""A backend that says exactly what a test tells it to, byte by byte, and keeps what it was told."""
import socket
import struct
import threading

from .wait import wait_until


class Gone(Exception):
    """The proxy ended the connection; how: "fin" or "rst"."""

    def __init__(self, how):
        super().__init__(how)
        self.how = how


class BackendConnection:
    def __init__(self, backend, sock, number):
        self.backend = backend
        self.sock = sock
        self.number = number  # from 0, in order of accept
        self.buffer = b""
        self.received = b""
        self.ended = None  # how the proxy ended it

    def _more(self):
        try:
            data = self.sock.recv(262144)
        except (ConnectionResetError, BrokenPipeError):
            self.ended = "rst"
            raise Gone("rst") from None
        except OSError:
            raise Gone("closed") from None
        if not data:
            self.ended = "fin"
            raise Gone("fin")
        self.buffer += data
        self.received += data[:1 << 20]

    def read_head(self):
        """A whole request head, CRLFCRLF included."""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        at = self.buffer.index(b"\r\n\r\n") + 4
        head, self.buffer = self.buffer[:at], self.buffer[at:]
        self.backend.heads.append(head)
        return head

    def read_exactly(self, n):
        while len(self.buffer) < n:
            self._more()
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out

    def read_end(self):
        """Discards up to the proxy's end, says how it came."""
        try:
            while True:
                self._more()
                self.buffer = b""
        except Gone as e:
            return e.how

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            self.ended = "rst"
            raise Gone("rst") from None

    def end(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Backend:
    """
    script(connection) runs in a thread for each connection; when it returns, the connection is closed.
    A script given as bytes answers every request head with them and stays open.
    """

    def __init__(self, script, family=socket.AF_INET, backlog=512):
        self.script = self._answer(script) if isinstance(script, bytes) else script
        self.heads = []
        self.connections = []
        self.errors = []
        self.listener = socket.socket(family)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.listener.listen(backlog)
        self.port = self.listener.getsockname()[1]
        self.address = f"[::1]:{self.port}" if family == socket.AF_INET6 else f"127.0.0.1:{self.port}"
        self.stopping = False
        threading.Thread(target=self._accept, daemon=True).start()

    @staticmethod
    def _answer(response):
        def script(c):
            while True:
                c.read_head()
                c.send(response)
        return script

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            if self.stopping:
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            c = BackendConnection(self, sock, len(self.connections))
            self.connections.append(c)
            threading.Thread(target=self._run, args=(c,), daemon=True).start()

    def _run(self, c):
        try:
            self.script(c)
        except Gone:
            pass
        except Exception as e:  # shown by check()
            self.errors.append(e)
        finally:
            c.sock.close()

    def check(self):
        assert not self.errors, self.errors

    def wait_ended(self, number=0):
        """How the proxy ended the connection of that number."""
        return wait_until(lambda: len(self.connections) > number and self.connections[number].ended,
                          f"the end of connection {number}")

    def stop(self):
        self.stopping = True
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for c in self.connections:
            try:
                c.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def response(body=b"ok\n", status="200 OK", fields=(), length=True):
    head = [f"HTTP/1.1 {status}"] + ([f"Content-Length: {len(body)}"] if length else []) + [f"{n}: {v}" for n, v in fields]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
