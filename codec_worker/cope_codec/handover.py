"""Hands open files to the worker processes: a worker asks with a task's token and gets that task's descriptors."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

TOKEN_BYTES = 16
_MOST_FDS = 8
_DOOR_S = 0.01
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_YES, _NO = b"\x01", b"\x00"


class Handover:
    """The parent's side: one thread that answers all workers.

    Workers connect before their sandbox closes and keep the connection. The address is abstract, so no file is left
    behind; who does not run under our user is turned away, and who does not know a token gets nothing.

    Args:
        fetched: called with the token and the worker's process id when a worker takes a task's descriptors.
        joined, left: called with the process id when a worker is ready, and when it is gone.
    """

    def __init__(
        self, fetched: Callable[[bytes, int], None], joined: Callable[[int], None], left: Callable[[int], None]
    ) -> None:
        self._fetched, self._joined, self._left = fetched, joined, left
        self._fds: dict[bytes, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self.address = f"\0cope-codec-{os.getpid()}-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.address)
        self._listener.listen(128)
        self._wake_read, self._wake_write = socket.socketpair()
        self._pids: dict[socket.socket, int] = {}
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
            fds = self._fds.pop(token, ())
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
                        for connection in (*self._pids, self._listener, self._wake_read, self._wake_write):
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
            time.sleep(_DOOR_S)
            return
        who = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, user, _ = _CREDENTIALS.unpack(who)
        if user != os.getuid():
            connection.close()
            return
        self._pids[connection] = pid
        selector.register(connection, selectors.EVENT_READ)

    def _answer(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        pid = self._pids[connection]
        try:
            token = connection.recv(TOKEN_BYTES)
            if token == _YES:  # the worker is warm
                self._joined(pid)
                return
            if token:
                with self._lock:
                    fds = self._fds.get(token, ())
                    socket.send_fds(connection, [_YES if fds else _NO], fds)
                if fds:
                    self._fetched(token, pid)
                return
        except OSError:
            pass  # the worker died in the middle; the pool hears of it from pebble
        selector.unregister(connection)
        connection.close()
        del self._pids[connection]
        self._left(pid)


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
