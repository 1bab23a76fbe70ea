"""Hands open files to the worker processes: a worker asks with a task's token and gets that task's descriptors."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import selectors
import signal
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOKEN_BYTES = 16
_MOST_FDS = 8
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_YES, _NO = b"\x01", b"\x00"
_MOST_TAKEN_BACK = 4096  # tokens that a worker may still ask for in vain
_NO_DESCRIPTORS_S = 0.05  # until the next try when this process has no descriptor left for a new connection


@dataclass(slots=True)
class _Peer:
    """A connected worker."""

    pid: int
    ready: bool = False


class Handover:
    """The parent's side: one thread that answers all workers.

    Workers connect before their sandbox closes and keep the connection. The address is abstract, so no file is left
    behind, and who is no child of ours is turned away. A worker says once that it is ready, then asks for each of its
    tasks once and reads the answer. One that says anything else, does not read, or hangs up is killed, and never waited
    for.

    Args:
        fetched: called with the token and the worker's process id when a worker takes a task's descriptors.
        joined, left: called with the process id when a worker is ready, and when it is gone.
    """

    def __init__(
        self, fetched: Callable[[bytes, int], None], joined: Callable[[int], None], left: Callable[[int], None]
    ) -> None:
        self._fetched, self._joined, self._left = fetched, joined, left
        self._fds: dict[bytes, tuple[int, ...]] = {}
        self._taken_back: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()
        self.address = f"\0cope-codec-{os.getpid()}-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.address)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._wake_read, self._wake_write = socket.socketpair()
        self._peers: dict[socket.socket, _Peer] = {}
        self._thread = threading.Thread(target=self._serve, name="cope-codec-handover", daemon=True)
        self._thread.start()

    def offer(self, fds: Sequence[int]) -> bytes:
        """Keep duplicates of these descriptors for one worker; returns the token to ask with.

        Raises:
            OSError: no descriptors are left; nothing is kept.
        """
        token = secrets.token_bytes(TOKEN_BYTES)
        with contextlib.ExitStack() as undo:
            copies = []
            for fd in fds:
                copies.append(os.dup(fd))
                undo.callback(os.close, copies[-1])
            undo.pop_all()
        with self._lock:
            self._fds[token] = tuple(copies)
        return token

    def withdraw(self, token: bytes) -> None:
        """Forget an offer, whether it was taken or not."""
        with self._lock:
            fds = self._fds.pop(token, None)
            if fds is None:
                return
            self._taken_back[token] = None
            if len(self._taken_back) > _MOST_TAKEN_BACK:
                self._taken_back.popitem(last=False)
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        """End the thread and every connection, and withdraw all offers."""
        self._wake_write.send(b"x")
        self._thread.join()
        for token in list(self._fds):
            self.withdraw(token)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake_read:
                        for connection in (*self._peers, self._listener, self._wake_read, self._wake_write):
                            connection.close()
                        return
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._answer(selector, key.fileobj)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # no descriptors are left: the worker waits at the door
            time.sleep(_NO_DESCRIPTORS_S)
            return
        who = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, user, _ = _CREDENTIALS.unpack(who)
        if user != os.getuid() or not _is_child(pid) or any(peer.pid == pid for peer in self._peers.values()):
            connection.close()
            return
        connection.setblocking(False)
        self._peers[connection] = _Peer(pid)
        selector.register(connection, selectors.EVENT_READ)

    def _answer(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        peer = self._peers[connection]
        try:
            message = connection.recv(TOKEN_BYTES + 1)
            if message == _YES and not peer.ready:
                peer.ready = True
                self._joined(peer.pid)
                return
            well = self._hand_over(message, connection)
        except OSError:
            well = False  # it died in the middle, or does not read its answers
        if not well:
            self._drop(selector, connection)

    def _hand_over(self, token: bytes, connection: socket.socket) -> bool:
        """Send a task's descriptors, once; False if there was no such task.

        Raises:
            OSError: the worker is gone, or does not read.
        """
        with self._lock:
            fds = self._fds.pop(token, ())
            known = bool(fds) or token in self._taken_back
            self._taken_back.pop(token, None)
        if not known:
            return False
        try:
            socket.send_fds(connection, [_YES if fds else _NO], fds)
        finally:
            for fd in fds:
                os.close(fd)
        if fds:
            self._fetched(token, self._peers[connection].pid)
        return True

    def _drop(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        """End a worker that is gone, or has been taken over; pebble sees it dead, as any other."""
        pid = self._peers.pop(connection).pid
        # First, since a worker whose connection ends would end well, of which pebble says nothing.
        if _is_child(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        selector.unregister(connection)
        connection.close()
        self._left(pid)


def _is_child(pid: int) -> bool:
    """A process has been started by this one."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return int(status.rpartition(")")[2].split()[1]) == os.getpid()


class Receiver:
    """The worker's side.

    Args:
        address: of the parent's `Handover`.
    """

    def __init__(self, address: str) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(address)

    def ready(self) -> None:
        """Tell the parent that this worker is warm."""
        self._connection.send(_YES)

    def end_with_parent(self) -> None:
        """End this process as soon as the parent is gone, however it went and whatever is being done here."""

        def wait() -> None:
            gone = select.poll()
            gone.register(self._connection, 0)  # hanging up is always reported
            gone.poll()
            os._exit(0)

        threading.Thread(target=wait, name="cope-codec-parent", daemon=True).start()

    def take(self, token: bytes) -> list[int]:
        """The descriptors of a task; the caller closes them. Empty when the task was taken back."""
        self._connection.send(token)
        _, fds, _, _ = socket.recv_fds(self._connection, 1, _MOST_FDS)
        for fd in fds:
            os.set_inheritable(fd, False)
        return list(fds)

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._connection.close()
