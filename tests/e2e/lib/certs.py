# SPDX-License-Identifier: Apache-2.0
"""Certificates, good and bad, by the openssl command."""
import subprocess

from . import build


def _openssl(*args, cwd):
    done = subprocess.run(["openssl", *map(str, args)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def demo(directory):
    """The set `make run` uses: ca, server (one.demo, localhost, 127.0.0.1, ::1), client."""
    subprocess.run([build.ORIGIN, "--make-certs", directory], check=True, stdout=subprocess.DEVNULL)
    return directory


def leaf(directory, name, ca, san="DNS:one.demo", days=30, start=None, end=None):
    """A certificate signed by the authority in directory `ca`, as NAME.pem and NAME.key. start, end: YYYYMMDDHHMMSSZ."""
    conf = directory / f"{name}.cnf"
    conf.write_text(f"[ca]\ndefault_ca=d\n[d]\ndatabase={name}.index\nserial={name}.serial\nnew_certs_dir=.\n"
                    f"default_md=sha256\npolicy=p\nx509_extensions=v3\nrand_serial=yes\nunique_subject=no\n"
                    f"[p]\ncommonName=supplied\n[v3]\nbasicConstraints=critical,CA:FALSE\nsubjectAltName={san}\n")
    (directory / f"{name}.index").write_text("")
    _openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key",
             "-out", f"{name}.csr", "-subj", f"/CN={name}", cwd=directory)
    when = ["-startdate", start, "-enddate", end] if start else ["-days", days]
    _openssl("ca", "-batch", "-notext", "-config", conf.name, "-cert", ca / "ca.pem", "-keyfile", ca / "ca.key",
             "-in", f"{name}.csr", "-out", f"{name}.pem", *when, cwd=directory)
    return directory / f"{name}.pem", directory / f"{name}.key"


def revoke(directory, cert, ca):
    """The path of a list by the authority in directory `ca` that revokes the certificate in file `cert`."""
    (directory / "crl.cnf").write_text("[ca]\ndefault_ca=d\n[d]\ndatabase=crl.index\ndefault_md=sha256\ndefault_crl_days=30\n")
    (directory / "crl.index").write_text("")
    who = ["-config", "crl.cnf", "-cert", ca / "ca.pem", "-keyfile", ca / "ca.key"]
    _openssl("ca", *who, "-revoke", cert, cwd=directory)
    _openssl("ca", *who, "-gencrl", "-out", "list.pem", cwd=directory)
    return directory / "list.pem"


def self_signed(directory, name, san="DNS:one.demo"):
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key",
             "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "30", "-addext", f"subjectAltName={san}", cwd=directory)
    return directory / f"{name}.pem", directory / f"{name}.key"
