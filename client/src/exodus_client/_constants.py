"""Every default of the client, in one place. Times are in seconds, sizes in bytes."""

from typing import Final

API_KEY_VARIABLE: Final = "EXODUS_API_KEY"

CONNECT_TIMEOUT: Final = 5.0
WRITE_TIMEOUT: Final = 60.0
# A request may wait in the queue of a busy device before its first byte comes back.
READ_TIMEOUT: Final = 300.0

RETRIES: Final = 3
FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 8.0
MAX_RETRY_AFTER: Final = 60.0
# Clients that failed together must not come back together.
JITTER: Final = 0.25

MAX_IN_FLIGHT: Final = 8
MAX_RESPONSE_BYTES: Final = 4 * 2**30

# How long an idle connection is kept. A server closes its end at some time, and a request sent into that is lost.
KEEP_IDLE: Final = 5.0

# The longest time that sockets and locks can wait for, about 30 years.
LONGEST: Final = 1e9

# Bytes sent or received in one go, between two looks at the clock. httpx, through which https:// goes, copies what is
# left of a chunk at every partial send: one chunk of a whole body would cost quadratic time on a slow network.
CHUNK_BYTES: Final = 1024 * 1024
HTTPX_CHUNK_BYTES: Final = 256 * 1024

# Up to here a copy costs less than a packet of its own for the header and each pad.
JOINED_BYTES: Final = 64 * 1024

# Below this a compressor saves no packet worth the name.
COMPRESS_FROM_BYTES: Final = 16 * 1024

# Below this a reference is no faster than the bytes themselves.
SHARE_FROM_BYTES: Final = 64 * 1024

# Until a server that did not say where its shared memory is is asked again.
SHARE_AGAIN: Final = 30.0

# Characters shown of an error body that is not a problem document.
MAX_DETAIL_CHARACTERS: Final = 500

# Training calls submitted and not yet answered, and how many of them are under way: one computes, the next are there.
AHEAD: Final = 8
CALLS_UNDER_WAY: Final = 4

# Steps on several servers submitted and not yet done: copies of whole batches, which wait for the one before them.
STEPS_AHEAD: Final = 2

# How long a model waits for a server that does not answer before its calls fail.
PATIENCE: Final = 300.0

# A wait is logged as a warning after so many seconds, and then at intervals that double.
SAY_AFTER: Final = 5.0
LOOK_EVERY: Final = 1.0

# Least seconds between two requests if the server answers, and asks for the same again.
SOONEST: Final = 0.01

# Longest wait that anything asks for: the clocks of the system overflow beyond centuries.
LONGEST_WAIT: Final = 366 * 86400.0

# The server answers a training call that takes longer with 202, and is asked again: proxies cut idle connections.
PREFER_WAIT: Final = 30

# A server that is there answers within PREFER_WAIT, if only by 202: longer silence is worth a line in the log.
SILENT_AFTER: Final = PREFER_WAIT + 10.0

# Calls kept for a server that loses its latest state; beyond, it is asked to save.
MAX_KEPT_BYTES: Final = 256 * 2**20

# Until a server that could not save is asked again; it tries by itself, too.
SAVE_AGAIN: Final = 30.0
