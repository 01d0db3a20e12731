"""Send DICOM objects to a node on the network by C-STORE, and count what it accepted."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from tqdm import tqdm

from knee.errors import Faults, UserError
from knee.io.tables import shortened

if TYPE_CHECKING:
    from pynetdicom.association import Association

_MOST_CONTEXTS = 127
"""Of 128; the echo takes one."""
_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_VERIFICATION = "1.2.840.10008.1.1"


@dataclass(frozen=True)
class Node:
    """The receiving node."""

    host: str
    port: int
    ae_title: str = "ANY-SCP"
    calling_ae_title: str = "DCMT"
    tls: bool = False
    """Encrypt the connection, and verify the node's certificate by those of the system (or of ``SSL_CERT_FILE``)."""

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


@dataclass(frozen=True)
class Sent:
    """The files that the node accepted and refused."""

    accepted: tuple[Path, ...]
    refused: tuple[tuple[Path, str], ...]
    """With the node's reason."""

    def __str__(self) -> str:
        return f"{len(self.accepted)} of {len(self.accepted) + len(self.refused)} objects were accepted"


def send(paths: Sequence[Path], node: Node, *, timeout_s: float = 20.0) -> Sent:
    """Store files on a node, in the order given; a refused file does not stop the others. An echo comes first.

    Raises UserError where pynetdicom is missing, or the node cannot be reached, refuses the association, does not answer
    within ``timeout_s`` or disconnects.
    Raises Faults, before anything is sent, where files are not DICOM objects.
    """
    try:
        from pynetdicom import AE, evt
    except ImportError as error:
        raise UserError("sending needs pynetdicom; install it with: pip install 'dcmt-knee[send]'") from error
    if not 0 < node.port < 65536:
        raise UserError(f"port {node.port} is not 1–65535; DICOM nodes often listen on 104, 4242 or 11112")
    _check_titles(node)
    _check_host(node)
    kinds = _kinds(paths)
    entity = AE(ae_title=node.calling_ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = timeout_s
    entity.add_requested_context(_VERIFICATION)
    for sop_class, syntax in kinds:
        entity.add_requested_context(sop_class, syntax)
    # Events are recorded as they happen: a node that refuses and closes at once would look like a lost connection.
    seen: set[Any] = set()
    steps = (evt.EVT_CONN_OPEN, evt.EVT_ACCEPTED)
    start = time.monotonic()
    association = entity.associate(
        node.host,
        node.port,
        ae_title=node.ae_title,
        evt_handlers=[(step, lambda event: seen.add(event.event)) for step in steps],
        tls_args=(ssl.create_default_context(), node.host) if node.tls else None,
    )
    if not association.is_established:
        reached, agreed = (step in seen for step in steps)
        if reached and not association.is_rejected and time.monotonic() - start >= timeout_s:
            raise UserError(
                f"{node}: gave no answer in {timeout_s:g} s; it may be busy, or no DICOM node: try a longer --timeout"
            )
        raise UserError(_not_established(association, node, reached=reached, agreed=agreed))
    if all(context.abstract_syntax == _VERIFICATION for context in association.accepted_contexts):
        association.release()
        raise UserError(_not_established(association, node, reached=True, agreed=True))
    accepted: list[Path] = []
    refused: list[tuple[Path, str]] = []
    try:
        _echo(association, node, timeout_s)
        for path in tqdm(paths, desc="sending", unit="object", disable=None):
            reason = _store(association, path, node, len(accepted))
            if reason is None:
                accepted.append(path)
            else:
                refused.append((path, reason))
    finally:
        if association.is_established:
            association.release()
    return Sent(tuple(accepted), tuple(refused))


def _echo(association: Association, node: Node, timeout_s: float) -> None:
    """Raise UserError unless the node answers an echo; one that does not offer echoes is not asked."""
    if not any(context.abstract_syntax == _VERIFICATION for context in association.accepted_contexts):
        return
    status = association.send_c_echo()
    if not status or status.Status != 0:
        reason = f"status 0x{status.Status:04X}" if status else f"no answer in {timeout_s:g} s"
        raise UserError(f"{node}: accepts the association, but not the echo ({reason}); nothing was sent")


def _check_titles(node: Node) -> None:
    for title in (node.ae_title, node.calling_ae_title):
        if not 0 < len(title.strip()) <= 16 or not (title.isascii() and title.isprintable()) or "\\" in title:
            raise UserError(f"AE title {title!r} is not 1–16 plain letters or digits; ask for the node's AE title")


def _check_host(node: Node) -> None:
    try:
        socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    # A host name that is too long, or empty between two dots, raises an encoding error.
    except (OSError, UnicodeError) as error:
        raise UserError(f"{node}: the host name is unknown ({error}); check its spelling") from error


def _kinds(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """The pairs of SOP class and transfer syntax to offer: those of the files, each once.

    Implicit and Explicit VR come together: pynetdicom converts one into the other where a node accepts no more.
    """
    kinds: dict[tuple[str, str], None] = {}
    faults = []
    for path in paths:
        try:
            meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
            kinds[str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)] = None
        except (OSError, InvalidDicomError, AttributeError, ValueError) as error:
            faults.append(f"{path}: is not a DICOM object ({error})")
    if faults:
        raise Faults(shortened(faults), summary=f"{len(faults)} files cannot be sent; nothing was sent")
    if not kinds:
        raise UserError("there are no files to send; export with --format dicom first")
    kinds |= {(sop_class, other): None for sop_class, one in kinds if one in _PLAIN for other in _PLAIN}
    if len(kinds) > _MOST_CONTEXTS:
        raise UserError(f"{len(kinds)} kinds of object are too many for one association; send fewer files at a time")
    return list(kinds)


def _store(association: Association, path: Path, node: Node, done: int) -> str | None:
    """Send one file; returns the node's reason if it was refused. Raises UserError where the connection was lost."""
    try:
        status = association.send_c_store(str(path))
    except (ValueError, RuntimeError, AttributeError) as error:
        if association.is_established:
            return str(error)
        raise UserError(_gone(node, done)) from error
    if not status:
        raise UserError(_gone(node, done))
    if status.Status == 0x0000 or status.Status >> 12 == 0xB:  # success, or stored with a warning
        return None
    return f"status 0x{status.Status:04X} {status.get('ErrorComment', '')}".strip()


def _gone(node: Node, done: int) -> str:
    return (
        f"{node}: the connection ended after {done} objects were accepted; these stay on the node: send all files again"
    )


def _not_established(association: Any, node: Node, *, reached: bool, agreed: bool) -> str:
    if not reached and node.tls:
        return (
            f"{node}: cannot be reached by TLS; check host and port, and that its certificate is valid for {node.host} and "
            "known to this system (or in the file that SSL_CERT_FILE names)"
        )
    if not reached:
        return f"{node}: cannot be reached; check host, port and firewall, and that the node is running"
    if agreed:
        return f"{node}: accepts none of the kinds of object to be sent; export other kinds with --format"
    reply = association.acceptor.primitive if association.is_rejected else None
    reason = getattr(reply, "reason_str", "") or "no reason given"
    return f"{node}: refuses the association ({reason}); have the calling AE title {node.calling_ae_title} registered there"
