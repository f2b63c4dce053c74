"""The ways in which the scripted server fails."""

from __future__ import annotations

import json
import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import Any


class Faults(BaseHTTPRequestHandler):
    """Answers, and fails to."""

    def answer(self, reply: Any, status: int = 200, **headers: str) -> None:
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def fail(self, fault: str, body: dict[str, Any]) -> bool:
        """Do what `fault` says; whether that was all."""
        if fault.isdecimal():
            self.answer({"error": {"message": f"fault {fault}"}}, int(fault), **{"retry-after": "0"})
        elif fault == "garbage":
            self.answer(b"<html>it works</html>")
        elif fault == "half":
            self.answer(b'{"choices": [{"text": "li')
        elif fault == "list":
            self.answer([1, 2])
        elif fault == "error body":
            self.answer({"error": {"message": "out of memory", "code": 500}})
        elif fault == "no choices":
            self.answer({"choices": []})
        elif fault == "redirect":
            self.answer({}, 307, location="http://127.0.0.1:9/v1/completions")
        elif fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "short":  # the connection closes before the reply is whole
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            self.close_connection = True
        elif fault == "loris":
            self.send_response(200)
            self.send_header("content-length", "100000")
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
        else:
            return False
        return True
