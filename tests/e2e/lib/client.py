# SPDX-License-Identifier: Apache-2.0
"""An HTTP client that shows bytes and endings as they are: what was sent, what came, FIN or RST."""
import hashlib
import socket
import ssl
import struct

TIMEOUT = 60.0


class Ended(Exception):
    """The peer ended the connection; how is "fin", "rst" or "tls" (an end without close_notify)."""

    def __init__(self, how, got=b""):
        super().__init__(f"the connection ended ({how}) after {got[:200]!r}")
        self.how = how
        self.got = got


class Response:
    def __init__(self, status, reason, fields, version):
        self.status = status
        self.reason = reason
        self.fields = fields  # [(name, value)] as they came
        self.version = version
        self.body = b""
        self.sha256 = None
        self.length = 0  # of the body
        self.trailers = []
        self.framing = None  # none, length, chunked, close
        self.interim = []  # the 1xx before it
        self.chunks = 0

    def all(self, name):
        return [v for n, v in self.fields if n.lower() == name.lower()]

    def get(self, name, default=None):
        values = self.all(name)
        return values[0] if values else default

    def names(self):
        return [n.lower() for n, _ in self.fields]

    def __repr__(self):
        return f"<Response {self.status} {self.fields} {self.body[:100]!r}>"


def _parse_head(raw):
    lines = raw.split(b"\r\n")
    version, status, reason = (lines[0].split(b" ", 2) + [b""])[:3]
    assert version in (b"HTTP/1.1", b"HTTP/1.0"), f"not a status line: {lines[0]!r}"
    fields = []
    for line in lines[1:]:
        assert b":" in line and b"\n" not in line and b"\r" not in line, f"not a field line: {line!r}"
        name, value = line.split(b":", 1)
        fields.append((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")))
    return Response(int(status), reason.decode("latin-1"), fields, version.decode())


class Client:
    """One connection. address: (host, port) or a path of a unix socket."""

    def __init__(self, address, tls=None, server_name=None, timeout=TIMEOUT, rcvbuf=None, source=None):
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
        else:
            self.sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if source:
            self.sock.bind((source, 0))
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        if tls:
            self.sock = tls.wrap_socket(self.sock, server_hostname=server_name)
        self.buffer = b""
        self.taken = None  # called with the length of each piece of a body that read_body took

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def reset(self):
        """Ends with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def end(self):
        """Ends our direction with a FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def send(self, data):
        if isinstance(data, str):
            data = data.encode("latin-1")
        self.sock.sendall(data)

    def try_send(self, data):
        """Sends; a peer that has gone meanwhile is not an error here."""
        try:
            self.send(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def _more(self, size=262144):
        try:
            data = self.sock.recv(size)
        except ConnectionResetError:
            raise Ended("rst", self.buffer) from None
        except ssl.SSLEOFError:
            raise Ended("tls", self.buffer) from None
        if not data:
            raise Ended("fin", self.buffer)
        self.buffer += data

    def read_until(self, mark):
        while mark not in self.buffer:
            self._more()
        at = self.buffer.index(mark) + len(mark)
        out, self.buffer = self.buffer[:at], self.buffer[at:]
        return out

    def read_exactly(self, n):
        while len(self.buffer) < n:
            self._more()
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out

    def read_end(self):
        """Everything up to the end, and how it ended."""
        while True:
            try:
                self._more()
            except Ended as e:
                out, self.buffer = self.buffer, b""
                return out, e.how

    def read_head(self):
        return _parse_head(self.read_until(b"\r\n\r\n")[:-4])

    def _take(self, r, digest, n, keep):
        """Moves n body bytes into the response without holding them all."""
        while n:
            if not self.buffer:
                self._more()
            piece, self.buffer = self.buffer[:n], self.buffer[n:]
            n -= len(piece)
            r.length += len(piece)
            digest.update(piece)
            if keep:
                r.body += piece
            if self.taken:
                self.taken(len(piece))

    def read_body(self, r, method="GET", keep=None):
        """Reads the body by its framing. keep: hold the bytes too (default: while they are few)."""
        digest = hashlib.sha256()
        coding = r.all("transfer-encoding")
        lengths = r.all("content-length")
        assert not (coding and lengths), f"both framings: {r}"
        assert len(lengths) <= 1 and len(coding) <= 1, f"framing said twice: {r}"
        if method == "HEAD" or r.status in (204, 304) or r.status < 200:
            r.framing = "none"
        elif coding:
            assert coding[0].lower() == "chunked", coding
            r.framing = "chunked"
            while True:
                line = self.read_until(b"\r\n")[:-2]
                assert line and all(b in b"0123456789abcdefABCDEF" for b in line), f"not a chunk size: {line!r}"
                size = int(line, 16)
                if size == 0:
                    break
                r.chunks += 1
                self._take(r, digest, size, keep is not False and r.length + size < 1 << 20)
                assert self.read_exactly(2) == b"\r\n", "no CRLF behind a chunk"
            while True:
                line = self.read_until(b"\r\n")[:-2]
                if not line:
                    break
                name, value = line.split(b":", 1)
                r.trailers.append((name.decode("latin-1"), value.strip().decode("latin-1")))
        elif lengths:
            r.framing = "length"
            n = int(lengths[0])
            self._take(r, digest, n, n < 1 << 20 if keep is None else keep)
        else:
            r.framing = "close"
            while True:
                try:
                    self._take(r, digest, max(len(self.buffer), 1), keep is not False and r.length < 1 << 20)
                except Ended as e:
                    if e.how != "fin":
                        raise
                    break
        r.sha256 = digest.hexdigest()
        return r

    def read_response(self, method="GET", keep=None):
        interim = []
        while True:
            r = self.read_head()
            if r.status >= 200 or r.status == 101:
                break
            interim.append(r)
        r.interim = interim
        return r if r.status == 101 else self.read_body(r, method, keep)

    def request(self, method="GET", path="/", fields=(), body=None, host="test.example", version="1.1", keep=None):
        self.send(request_bytes(method, path, fields, body, host, version))
        return self.read_response(method, keep)

    def get(self, path="/", **kw):
        return self.request("GET", path, **kw)

    def ended(self):
        """How the peer ends the connection, when it sends nothing more: "fin" or "rst"."""
        rest, how = self.read_end()
        assert rest == b"", f"bytes where an end was due: {rest[:200]!r}"
        return how

    def quiet(self, seconds=0.2):
        """True when nothing comes and nothing ends for so long. Only for what must NOT happen."""
        self.sock.settimeout(seconds)
        try:
            if not self.buffer:
                self.sock.recv(1, socket.MSG_PEEK)
            return False
        except TimeoutError:
            return True
        except ConnectionResetError:
            return False
        finally:
            self.sock.settimeout(TIMEOUT)


def chunked(data, size=4096, trailer=b""):
    out = bytearray()
    for at in range(0, len(data), size):
        piece = data[at:at + size]
        out += b"%x\r\n" % len(piece) + piece + b"\r\n"
    return bytes(out) + b"0\r\n" + trailer + b"\r\n"


def request_bytes(method="GET", path="/", fields=(), body=None, host="test.example", version="1.1"):
    head = [f"{method} {path} HTTP/{version}"]
    if host is not None:
        head.append(f"Host: {host}")
    head += [f"{n}: {v}" for n, v in (fields.items() if isinstance(fields, dict) else fields)]
    if body is not None and not any(h.lower().startswith(("content-length:", "transfer-encoding:")) for h in head):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def get(address, path="/", **kw):
    """One request on a connection of its own."""
    with Client(address) as c:
        return c.get(path, **kw)
