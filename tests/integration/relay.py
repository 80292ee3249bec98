"""A network between clients and a Redis server in which one request, or its answer, gets stuck."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress

CHUNK_BYTES = 1 << 16


class Relay:
    """Passes bytes on between a port of its own and a server's; a context manager.

    Args:
        port: of the server, on this machine.

    Attributes:
        url: for clients.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._wanted: _Catch | None = None

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def catch(self, words: bytes, *, answered: bool) -> threading.Event:
        """Stops the next request that has these words near its beginning.

        Args:
            words: e.g. the name of a command, or a script's digest.
            answered: the server gets it, but the client no answer; otherwise the server does not.

        Returns:
            Set when it is caught. From then on its connection is dead, which nobody is told.
        """
        with self._lock:
            self._wanted = _Catch(words, answered)
            return self._wanted.caught

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                stuck: list[_Catch] = []
                for pump in (self._requests, self._answers):
                    threading.Thread(target=pump, args=(client, server, stuck), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, stuck: list[_Catch]) -> None:
        with suppress(OSError), closing(server):
            while data := client.recv(CHUNK_BYTES):
                stuck += self._caught(data)
                if not stuck or stuck[0].answered:
                    server.sendall(data)
                else:
                    stuck[0].caught.set()
            server.shutdown(socket.SHUT_RDWR)

    def _answers(self, client: socket.socket, server: socket.socket, stuck: list[_Catch]) -> None:
        with suppress(OSError), closing(client):
            while data := server.recv(CHUNK_BYTES):
                if stuck:
                    stuck[0].caught.set()
                else:
                    client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)

    def _caught(self, data: bytes) -> list[_Catch]:
        with self._lock:
            if self._wanted is None or self._wanted.words not in data[:200]:
                return []
            found, self._wanted = [self._wanted], None
            return found


class _Catch:
    def __init__(self, words: bytes, answered: bool) -> None:
        self.words, self.answered = words, answered
        self.caught = threading.Event()
