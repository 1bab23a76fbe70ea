"""What is known of one request: when things happened, how it ended, what the server said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cope_loadtest.outcomes import OK

Phase = Literal["warmup", "ramp", "measured"]


@dataclass(slots=True)
class Record:
    """One request; times are seconds of `time.perf_counter`, None for what did not happen.

    Attributes:
        point: index of the point that it belongs to.
        number: position in the point, from 0.
        phase: only `measured` requests count in summaries.
        kind: name of the scenario's request.
        clip: name of its clip; None for text.
        scheduled: when the arrival process wanted it sent. In a closed loop: when its user was free.
        sent: the first byte of the request was given to the connection, which exists by then.
        body_sent: the last byte was.
        first_byte: the answer's headers were there.
        first_token: the first chunk with content was read; for an answer without any, the chunk that ends it.
        tokens: when each chunk with content was read, in order.
        finished: the chunk was read that says why the model stopped.
        last: the answer was complete, or had failed.
        outcome: one of `outcomes.OUTCOMES`; empty while it is on its way.
        status: HTTP status.
        detail: why it failed, in the server's or the network's words.
        usage: the server's usage block, with `video` and `timings` where it sends them.
        body_bytes: size of the request.
        text_length: characters of the answer.
    """

    point: int
    number: int
    phase: Phase
    kind: str
    clip: str | None
    scheduled: float
    sent: float | None = None
    body_sent: float | None = None
    first_byte: float | None = None
    first_token: float | None = None
    tokens: list[float] = field(default_factory=list)
    finished: float | None = None
    last: float | None = None
    outcome: str = ""
    status: int | None = None
    detail: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    body_bytes: int = 0
    text_length: int = 0

    @property
    def ok(self) -> bool:
        """The answer came whole."""
        return self.outcome == OK

    @property
    def delay_s(self) -> float | None:
        """From scheduled to sent: waiting for a turn or a connection, and this client's own lateness."""
        return _span(self.scheduled, self.sent)

    @property
    def upload_s(self) -> float | None:
        """From the first to the last byte of the request."""
        return _span(self.sent, self.body_sent)

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token from the moment the request was scheduled."""
        return _span(self.scheduled, self.first_token)

    @property
    def ttft_sent_s(self) -> float | None:
        """Time to the first token from the request's first byte: the server's own view, and the network."""
        return _span(self.sent, self.first_token)

    @property
    def ttft_body_s(self) -> float | None:
        """Time to the first token from the request's last byte."""
        return _span(self.body_sent, self.first_token)

    @property
    def e2el_s(self) -> float | None:
        """From scheduled to the end of the answer."""
        return _span(self.scheduled, self.last)

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; by the server's count of tokens where it gives one.

        That counts the end of the text, too, which comes with the chunk that says why the model stopped.
        """
        count = self.output_tokens
        if self.first_token is None or not self.tokens or count is None or count < 2:
            return None
        end = self.tokens[-1] if self.finished is None else max(self.tokens[-1], self.finished)
        return (end - self.first_token) / (count - 1)

    @property
    def itl_s(self) -> list[float]:
        """Gaps between chunks with content."""
        return [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]

    @property
    def output_tokens(self) -> int | None:
        """Tokens of the answer as the server counted them, else chunks with content."""
        counted = self.usage.get("completion_tokens")
        return counted if isinstance(counted, int) else len(self.tokens) or None

    def to_json(self, origin: float) -> dict[str, Any]:
        """All of it, with times in seconds from `origin`, rounded to microseconds."""

        def at(moment: float | None) -> float | None:
            return None if moment is None else round(moment - origin, 6)

        return {
            "point": self.point,
            "number": self.number,
            "phase": self.phase,
            "request": self.kind,
            "clip": self.clip,
            "outcome": self.outcome,
            "status": self.status,
            "detail": self.detail,
            "scheduled_s": at(self.scheduled),
            "sent_s": at(self.sent),
            "body_sent_s": at(self.body_sent),
            "first_byte_s": at(self.first_byte),
            "first_token_s": at(self.first_token),
            "tokens_s": [at(moment) for moment in self.tokens],
            "finished_s": at(self.finished),
            "last_s": at(self.last),
            "body_bytes": self.body_bytes,
            "text_length": self.text_length,
            "usage": self.usage,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Record:
        """Read `to_json` back; the origin is then 0.

        Raises:
            KeyError, TypeError: a field is missing or of another type.
        """
        return cls(
            point=int(row["point"]),
            number=int(row["number"]),
            phase=row["phase"],
            kind=str(row["request"]),
            clip=row["clip"],
            scheduled=float(row["scheduled_s"]),
            sent=row["sent_s"],
            body_sent=row["body_sent_s"],
            first_byte=row["first_byte_s"],
            first_token=row["first_token_s"],
            tokens=list(row["tokens_s"]),
            finished=row["finished_s"],
            last=row["last_s"],
            outcome=str(row["outcome"]),
            status=row["status"],
            detail=row["detail"],
            usage=dict(row["usage"]),
            body_bytes=int(row["body_bytes"]),
            text_length=int(row["text_length"]),
        )


def _span(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
