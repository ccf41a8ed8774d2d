"""Certificates for TLS to Redis, made by the openssl command."""

import shutil
import subprocess
from pathlib import Path

import pytest


def openssl(*arguments: str, directory: Path) -> None:
    binary = shutil.which("openssl")
    if binary is None:
        pytest.skip("needs the openssl command, to make certificates")
    subprocess.run([binary, *arguments], cwd=directory, check=True, capture_output=True)


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
HERE = "subjectAltName=IP:127.0.0.1,DNS:localhost"
SUBJECT_HERE = ("-subj", "/CN=redis", "-addext", HERE)
IDENTIFIED = "authorityKeyIdentifier=keyid"
SIGNED = {
    "here": (HERE, IDENTIFIED),
    "else": ("subjectAltName=DNS:elsewhere.example", IDENTIFIED),
    "name": ("subjectAltName=DNS:localhost", IDENTIFIED),
    # As Python 3.13 refuses it.
    "old": (HERE, "authorityKeyIdentifier=none", "subjectKeyIdentifier=none"),
    "expired": (HERE, IDENTIFIED),
    "client": (HERE, IDENTIFIED, "extendedKeyUsage=clientAuth"),
}
"""The extensions of certificates that the CA signs, by name."""


def make_certificates(directory: Path) -> Path:
    """Make a self-signed certificate (own); a CA (ca), and what it signed."""
    make = ("req", "-x509", *NEW_KEY, "-days", "2", "-keyout")
    openssl(*make, "own.key", "-out", "own.crt", *SUBJECT_HERE, directory=directory)
    # Python 3.13 wants RFC 5280 to the letter: a CA says what its key is for.
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(*make, "ca.key", "-out", "ca.crt", "-subj", "/CN=a private CA", *usage, directory=directory)
    for name, extensions in SIGNED.items():
        request = ("req", "-new", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(*request, "-subj", "/CN=redis", directory=directory)
        (directory / "extensions").write_text("\n".join(extensions))
        days = "-1" if name == "expired" else "2"
        signing = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", days)
        openssl(*(*signing, "-CAcreateserial", "-extfile", "extensions", "-out", f"{name}.crt"), directory=directory)
    return directory


def with_certificate(certificates: Path, name: str) -> dict[str, str]:
    """Return the options of a server that shows one of the certificates."""
    return {
        "tls-auth-clients": "no",
        "tls-cert-file": str(certificates / f"{name}.crt"),
        "tls-key-file": str(certificates / f"{name}.key"),
        "tls-ca-cert-file": str(certificates / "ca.crt"),
    }
