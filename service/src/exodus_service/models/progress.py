"""What was done last to a model: its sequence number, and the answers that are kept for calls that are sent again."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgpack  # type: ignore[import-untyped]

from exodus_service.errors import Fault, ServiceError
from exodus_service.models.storage.state_file import Buffer

#: Calls remembered for each model.
MAX_ANSWERS = 64


@dataclass(frozen=True)
class Answer:
    """One call that was done. `digest` is that of its request, `writer` whoever sent it, as they call themselves.

    `body` is None where it was too large to be kept, or had to make room.
    """

    sequence: int
    digest: str
    writer: str | None
    content_type: str
    body: bytes | None

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return 0 if self.body is None else len(self.body)


@dataclass(frozen=True)
class Progress:
    """How far a model was trained. It is replaced as a whole, so that any thread reads what belongs together."""

    sequence: int = 0
    answers: tuple[Answer, ...] = ()

    @property
    def writer(self) -> str | None:
        """Whoever made the last call."""
        return self.answers[-1].writer if self.answers else None

    @property
    def nbytes(self) -> int:
        """What the kept answers take."""
        return sum(answer.nbytes for answer in self.answers)

    def after(self, answer: Answer, max_bytes: int) -> "Progress":
        """With one more call done. The oldest answers make room for it."""
        kept = [*self.answers, answer][-MAX_ANSWERS:]
        excess = sum(old.nbytes for old in kept) - max_bytes
        for place, old in enumerate(kept):
            if excess <= 0:
                break
            excess -= old.nbytes
            kept[place] = replace(old, body=None)
        return Progress(answer.sequence, tuple(kept))

    def replay(self, sequence: int, digest: str) -> Answer:
        """The answer of a call that was done.

        Raises:
            ServiceError: sequence_conflict: another call had this number; answer_expired.
        """
        answer = next((answer for answer in self.answers if answer.sequence == sequence), None)
        fault = Fault("/params/sequence", str(self.sequence + 1), str(sequence))
        if answer is not None and answer.digest != digest:
            writer = "without a name" if answer.writer is None else repr(answer.writer)
            raise ServiceError(
                "sequence_conflict",
                f"another client trains this model: call {sequence} was another one, by the writer {writer}, and "
                f"{self.sequence} calls are done; nothing was changed",
                (fault,),
            )
        if answer is None or answer.body is None:
            raise ServiceError(
                "answer_expired",
                f"call {sequence} was done, {self.sequence} are, and its answer is not kept any more; "
                f"the next call carries {self.sequence + 1}",
                (fault,),
            )
        return answer

    def pack(self) -> bytes:
        """The answers, to be saved beside the state that they led to."""
        packed = [[a.sequence, a.digest, a.body, a.content_type, a.writer] for a in self.answers]
        return bytes(msgpack.packb(packed))

    @classmethod
    def unpack(cls, sequence: int, packed: bytes) -> "Progress":
        """Read what `pack` wrote."""
        rows = msgpack.unpackb(packed)
        return cls(sequence, tuple(Answer(n, digest, writer, kind, body) for n, digest, body, kind, writer in rows))


def joined(body: Buffer | Iterable[Buffer], max_bytes: int) -> bytes | None:
    """A copy of a body that comes in one piece or several; None, and no copy, where it is longer than `max_bytes`."""
    pieces = [body] if isinstance(body, Buffer) else list(body)
    return None if sum(memoryview(piece).nbytes for piece in pieces) > max_bytes else b"".join(pieces)
